// Package meshclient asks for certificates as the mesh does, and judges the answers as the mesh would.
//
// Four clients are known (protocol rules R1 to R60 say where each claim comes from): the sidecar is
// Istio's agent in Go, ztunnel and agentgateway are written in Rust, and the hostile client is
// whoever can reach the port. The words of the package:
//
//   - A [Client] is one connection; an [Ask] is one call on it, with every field free to be wrong.
//   - A request (CSR) is built byte by byte from a [Template], so that what Go's own encoder would
//     never write can be sent too. [SidecarCSR], [ZtunnelCSR] and [AgentgatewayCSR] write what the
//     real clients write, [HostileCSRs] is a table of requests with one thing wrong in each.
//   - A judge ([JudgeSidecar], [JudgeZtunnel], [JudgeAgentgateway]) reads an answer with the strictness
//     of one client and names the rule that is broken ([Violation]).
//   - An [Agent] is Istio's real agent, running as a process of its own without Envoy.
//
// The package depends on the API of Istio but never on Istio itself: the agent is a binary.
package meshclient

import (
	"google.golang.org/protobuf/types/known/structpb"
)

// SidecarMetadata is the metadata that Istio's Go agent sends with every request: the name of a
// signer, which is empty unless ISTIO_META_CERT_SIGNER is set (R14).
func SidecarMetadata(signer string) *structpb.Struct {
	return stringField("CertSigner", signer)
}

// ZtunnelMetadata is the metadata that ztunnel sends with every request, also for its own identity:
// the SPIFFE ID it asks for (R24, R25). The ID is sent as given, so that it may be a wrong one.
func ZtunnelMetadata(id string) *structpb.Struct {
	return stringField("ImpersonatedIdentity", id)
}

func stringField(name, value string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{name: structpb.NewStringValue(value)}}
}
