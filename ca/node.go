package ca

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/signet-ca/signet/ca/presence"
	"github.com/signet-ca/signet/setting"
)

// NodesConfig is who may ask for the pods beside it.
type NodesConfig struct {
	// Accounts are the service accounts of node proxies, each as namespace/name, that may ask for the identities of the
	// pods on their own node (R24): istio-system/ztunnel for Istio's ztunnel chart, kube-system/ztunnel on OpenShift.
	// Signet then follows the pods of the cluster. Default none, so nobody may.
	Accounts []string `json:"accounts,omitempty"`
}

// Enabled says whether anybody may.
func (c NodesConfig) Enabled() bool { return len(c.Accounts) > 0 }

// Validate reports what is wrong with c.
func (c NodesConfig) Validate(p setting.Problems) {
	for n, account := range c.Accounts {
		namespace, name, ok := strings.Cut(account, "/")
		if !ok || !isServiceAccount(namespace, name) {
			p.Addf(fmt.Sprintf("accounts[%d]", n), "%q is not a service account; it must be NAMESPACE/NAME, such as istio-system/ztunnel", account)
		}
	}
}

// isServiceAccount says whether a service account could be called so.
func isServiceAccount(namespace, name string) bool {
	return len(validation.IsDNS1123Label(namespace)) == 0 && len(validation.IsDNS1123Subdomain(name)) == 0
}

// Presence is what exists in a cluster, as [presence.Index] knows it.
type Presence interface {
	Synced(kinds ...presence.Kind) bool
	Pod(namespace, name string) (presence.Pod, bool)
	RunsOn(node, namespace, serviceAccount string) bool
	LookUpPod(ctx context.Context, asker, namespace, name string) (presence.Pod, bool, error)
	LookUpRunsOn(ctx context.Context, asker, node, namespace, serviceAccount string) (bool, error)
}

// NodeProxies lets the proxies of nodes, such as ztunnel, ask for the pods on their own node. It implements
// [NodeAuthoriser]. Safe for concurrent use.
type NodeProxies struct {
	accounts []string
	clusters func(id string) Presence
}

// NewNodeProxies makes one that looks into what clusters returns for the ID of a caller's cluster, nil where no proxy of that
// cluster may ask.
func NewNodeProxies(cfg NodesConfig, clusters func(id string) Presence) *NodeProxies {
	return &NodeProxies{cfg.Accounts, clusters}
}

// MayImpersonate implements [NodeAuthoriser].
func (n *NodeProxies) MayImpersonate(ctx context.Context, caller *Caller, namespace, serviceAccount string) error {
	if !slices.Contains(n.accounts, caller.Namespace+"/"+caller.ServiceAccount) {
		return kindNoNodeProxy.because("%s asks for %s/%s; it is none of ca.nodes.accounts", caller.ID, namespace, serviceAccount)
	}
	// R21. Who came by a certificate was proven long ago.
	if caller.PodName == "" || caller.PodUID == "" || !caller.ProvenAt.IsZero() {
		return kindNoNodeProxy.because("%s asks for %s/%s with no token that is bound to a pod", caller.ID, namespace, serviceAccount)
	}
	exists := n.clusters(caller.Cluster)
	if exists == nil {
		return kindNoNodeProxy.because("%s asks for %s/%s; proxies of cluster %q may not", caller.ID, namespace, serviceAccount, caller.Cluster)
	}
	node, err := nodeOf(ctx, exists, caller)
	if err != nil {
		return err
	}
	if !isServiceAccount(namespace, serviceAccount) {
		return kindNotOnNode.because("%s/%s can't be a service account; %s on node %s asks for it", namespace, serviceAccount, caller.ID, node)
	}
	synced := exists.Synced(presence.Pods)
	if synced && exists.RunsOn(node, namespace, serviceAccount) {
		return nil
	}
	// R27: the pod may be newer than what is known. The node pays.
	there, err := exists.LookUpRunsOn(ctx, "node "+node, node, namespace, serviceAccount)
	if err != nil {
		return notLookedUp(err, synced, kindNotOnNode, "%s asks for %s/%s on node %s", caller.ID, namespace, serviceAccount, node)
	}
	if !there {
		return kindNotOnNode.because("no pod of %s/%s runs on node %s, whose %s asks for it", namespace, serviceAccount, node, caller.ID)
	}
	return nil
}

// nodeOf is the node of the caller's pod, which must be as the token has it. A pod's node and service account never change, so
// one with the right UID needs no second look.
func nodeOf(ctx context.Context, exists Presence, caller *Caller) (string, error) {
	pod, ok := exists.Pod(caller.Namespace, caller.PodName)
	if !ok || pod.UID != caller.PodUID || pod.Node == "" {
		synced := exists.Synced(presence.Pods)
		var err error
		pod, ok, err = exists.LookUpPod(ctx, "pod "+caller.PodUID, caller.Namespace, caller.PodName)
		if err != nil {
			return "", notLookedUp(err, synced, kindProxyPod, "%s calls from pod %s", caller.ID, caller.PodName)
		}
	}
	wrong := func(format string, args ...any) error {
		return kindProxyPod.because("%s calls from pod %s (UID %s), which %s", caller.ID, caller.PodName, caller.PodUID, fmt.Sprintf(format, args...))
	}
	switch {
	case !ok:
		return "", wrong("isn't there")
	case pod.UID != caller.PodUID:
		return "", wrong("is another one now, with UID %s", pod.UID)
	case pod.ServiceAccount != caller.ServiceAccount:
		return "", wrong("has service account %s", pod.ServiceAccount)
	case pod.Ended:
		return "", wrong("has ended")
	case pod.Node == "":
		return "", wrong("is on no node")
	case caller.NodeName != "" && caller.NodeName != pod.Node: // R28
		return "", wrong("is on node %s; the token says %s", pod.Node, caller.NodeName)
	}
	return pod.Node, nil
}

// notLookedUp is the refusal of what couldn't be looked up. Where only the budget is used up, what is known decides, as long as
// it can be relied on.
func notLookedUp(err error, synced bool, otherwise kind, format string, args ...any) error {
	about := fmt.Sprintf(format, args...)
	switch {
	case errors.Is(err, context.Canceled):
		return kindCanceled.because("%s: %w", about, err)
	case synced && errors.Is(err, presence.ErrTooOften):
		return otherwise.because("%s, of which nothing is known: %w", about, err)
	}
	return kindPodsUnknown.because("%s: %w", about, err)
}
