package ca

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

func TestR14_R24_R25_Authorise(t *testing.T) {
	caller := &Caller{ID: alice}
	server := &Server{cfg: Config{TrustDomain: alice.TrustDomain()}}
	for _, row := range []struct {
		name   string
		fields map[string]any
		want   *kind
	}{
		{"nothing", nil, nil},
		{"as pilot-agent sends it", map[string]any{"CertSigner": ""}, nil},
		{"for oneself, as ztunnel sends it", map[string]any{"ImpersonatedIdentity": alice.String()}, nil},
		{"unknown keys", map[string]any{"x": 1.0, "y": map[string]any{"z": nil}}, nil},
		{"null", map[string]any{"ImpersonatedIdentity": nil, "CertSigner": nil}, nil},
		{"empty", map[string]any{"ImpersonatedIdentity": ""}, nil},
		{"for another", map[string]any{"ImpersonatedIdentity": bob.String()}, &kindIdentity},
		{"for oneself, nearly", map[string]any{"ImpersonatedIdentity": alice.String() + "/"}, &kindIdentity},
		{"a signer", map[string]any{"CertSigner": "vault"}, &kindCertSigner},
		{"identity as a number", map[string]any{"ImpersonatedIdentity": 1.0}, &kindMalformed},
		{"identity in a list", map[string]any{"ImpersonatedIdentity": []any{alice.String()}}, &kindMalformed},
		{"signer as a map", map[string]any{"CertSigner": map[string]any{}}, &kindMalformed},
		{"signer as true", map[string]any{"CertSigner": true}, &kindMalformed},
	} {
		t.Run(row.name, func(t *testing.T) {
			md, err := structpb.NewStruct(row.fields)
			require.NoError(t, err)
			grant, err := server.authorise(t.Context(), md, caller)
			if row.want == nil {
				assert.NoError(t, err)
				assert.Equal(t, own(caller), grant)
			} else {
				requireKind(t, *row.want, err)
			}
		})
	}
	for _, md := range []*structpb.Struct{nil, {Fields: map[string]*structpb.Value{keyCertSigner: {}, keyImpersonated: nil}}} {
		grant, err := server.authorise(t.Context(), md, caller)
		assert.NoError(t, err)
		assert.Equal(t, own(caller), grant)
	}
}

// FuzzMetadata: whatever a client packs into its metadata, it gets no identity but its own, and no
// signer.
func FuzzMetadata(f *testing.F) {
	for _, fields := range []map[string]any{
		nil, {"CertSigner": ""}, {"ImpersonatedIdentity": alice.String()}, {"ImpersonatedIdentity": bob.String()},
		{"ImpersonatedIdentity": []any{1.0, "x", nil, true, map[string]any{"CertSigner": "a"}}}, {"CertSigner": "x", "other": -1.5},
	} {
		md, err := structpb.NewStruct(fields)
		require.NoError(f, err)
		wire, err := proto.Marshal(md)
		require.NoError(f, err)
		f.Add(wire)
	}
	f.Add([]byte("\x0a\x00"))
	caller := &Caller{ID: alice}
	server := &Server{cfg: Config{TrustDomain: alice.TrustDomain()}}
	f.Fuzz(func(t *testing.T, wire []byte) {
		var md structpb.Struct
		if proto.Unmarshal(wire, &md) != nil {
			return
		}
		grant, err := server.authorise(t.Context(), &md, caller)
		if err != nil {
			requireOneOf(t, err, kindMalformed, kindIdentity, kindCertSigner)
			return
		}
		require.Equal(t, own(caller), grant)
		require.Contains(t, []any{nil, "", alice.String()}, md.GetFields()[keyImpersonated].AsInterface())
		require.Contains(t, []any{nil, ""}, md.GetFields()[keyCertSigner].AsInterface())
	})
}

func TestAnnotations(t *testing.T) {
	s := &Server{cfg: Config{ClusterID: "east"}}
	assert.Equal(t, map[string]string{
		"istio.cert-manager.io/identities": alice.String(), "signet.dev/caller": "foo/alice",
		"signet.dev/pod": "p", "signet.dev/pod-uid": "u", "signet.dev/node": "n", "signet.dev/caller-uid": "s",
	}, s.annotations(&Caller{Cluster: "east", Namespace: "foo", ServiceAccount: "alice", ServiceAccountUID: "s", PodName: "p", PodUID: "u", NodeName: "n"}, Grant{ID: alice}, "192.0.2.1"))
	assert.Equal(t, map[string]string{
		"istio.cert-manager.io/identities": alice.String(), "signet.dev/caller": "foo/alice", "signet.dev/address": "192.0.2.1", "signet.dev/caller-uid": "s",
		"signet.dev/impersonated": "true", "signet.dev/proven-at": "2026-05-01T12:00:00Z",
	}, s.annotations(&Caller{Cluster: "east", Namespace: "foo", ServiceAccount: "alice", ServiceAccountUID: "s", ProvenAt: certNow}, Grant{ID: alice, Impersonated: true}, "192.0.2.1"))
	for _, cluster := range []string{"west", ""} {
		about, ok := s.annotations(&Caller{Cluster: cluster}, Grant{ID: alice}, "")["signet.dev/cluster"]
		assert.True(t, ok)
		assert.Equal(t, cluster, about)
	}
}
