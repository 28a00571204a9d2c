package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/process"
)

const (
	tokenLifetime = 10 * time.Minute // the least that Kubernetes gives
	tokenRefresh  = 5 * time.Minute  // the kubelet would wait until 8
	tokenRetry    = 10 * time.Second
)

// A workload is a Pod and the agent that runs for it. Used by one goroutine at a time.
type workload struct {
	row   // as of the last look
	id    spiffeid.ID
	pod   *corev1.Pod
	agent *meshclient.Agent

	refreshAt time.Time // when the token is next replaced
	ended     chan struct{}
}

// startWorkload makes a Service with a Pod, asks for a token that is bound to it, and starts the agent with it.
func startWorkload(ctx context.Context, m *mesh, namespace, account string) (*workload, error) {
	w := &workload{row: row{namespace: namespace, account: account}, ended: make(chan struct{})}
	var err error
	if w.id, err = spiffeid.FromSegments(trustDomain, "ns", namespace, "sa", account); err != nil {
		return nil, err
	}
	if w.pod, err = m.plane.Workload(ctx, namespace, account, "demo-node"); err != nil {
		return nil, err
	}
	token, err := w.token(ctx, m.plane)
	if err != nil {
		return nil, err
	}
	dir, err := m.dir.make(workloadsName, namespace+"-"+account)
	if err != nil {
		return nil, err
	}
	roots, err := mountedRoots(ctx, m.plane, namespace)
	if err != nil {
		return nil, err
	}
	// The agent outlives ctx: it is stopped when its turn has come.
	w.agent, err = meshclient.StartAgent(context.WithoutCancel(ctx), meshclient.AgentConfig{
		Address: m.signet.CSR(),
		Roots:   roots,
		Token:   token,
		ID:      w.id,
		TTL:     m.lifetime,
		Dir:     dir,
	})
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(w.ended) // so many rotations never come: it returns when the agent has ended
		_ = w.agent.WaitRotations(context.WithoutCancel(ctx), math.MaxInt)
	}()
	return w, nil
}

// mountedRoots are the anchors that a pod in namespace mounts, once Signet has brought them there.
func mountedRoots(ctx context.Context, plane *controlplane.Plane, namespace string) ([]byte, error) {
	for {
		var mounted corev1.ConfigMap
		err := plane.Client().Get(ctx, client.ObjectKey{Namespace: namespace, Name: "istio-ca-root-cert"}, &mounted)
		if err == nil {
			return []byte(mounted.Data["root-cert.pem"]), nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("get the roots of namespace %s: %w", namespace, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the roots of namespace %s: %w", namespace, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (w *workload) token(ctx context.Context, plane *controlplane.Plane) (string, error) {
	w.refreshAt = time.Now().Add(tokenRefresh)
	return plane.Token(ctx, w.namespace, w.account, controlplane.TokenOptions{Lifetime: tokenLifetime, Pod: w.pod})
}

// refresh replaces the token when it is time, as the kubelet does. Where that fails it is tried again
// after a while, before the old one has expired.
func (w *workload) refresh(ctx context.Context, plane *controlplane.Plane, now time.Time) error {
	if now.Before(w.refreshAt) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tokenRetry)
	defer cancel()
	token, err := w.token(ctx, plane)
	if err == nil {
		err = w.agent.SetToken(token)
	}
	if err != nil {
		w.refreshAt = now.Add(tokenRetry)
		return fmt.Errorf("replace the token of %s/%s: %w", w.namespace, w.account, err)
	}
	return nil
}

// look reads what the agent holds, and verifies it if it is new. It reports whether the row changed.
func (w *workload) look(rootPEM []byte, now time.Time) bool {
	before := w.row
	if renewals := w.agent.Rotations(); w.leaf == nil || renewals != w.renewals || w.problem != "" {
		cert, err := w.agent.Certificate()
		switch {
		case errors.Is(err, fs.ErrNotExist): // none yet
		case err == nil:
			err = w.verify(cert, rootPEM, now)
			if err == nil {
				w.leaf, w.renewals, w.problem = cert.Leaf, renewals, ""
				break
			}
			fallthrough
		default:
			w.problem = err.Error()
		}
	}
	if w.leaf != nil && w.problem == "" && now.After(w.leaf.NotAfter) {
		w.problem = "the certificate has expired"
	}
	return w.row != before
}

// verify judges what the agent holds as Istio's sidecar would, but against the root that cert-manager
// made, and not the one that came with the certificate, which must be the same.
func (w *workload) verify(cert *meshclient.Certificate, rootPEM []byte, now time.Time) error {
	root, _ := pem.Decode(rootPEM)
	if root == nil {
		return errors.New("the root is not PEM")
	}
	anchor, rest := pem.Decode(cert.RootsPEM)
	if anchor == nil || len(bytes.TrimSpace(rest)) > 0 || !bytes.Equal(anchor.Bytes, root.Bytes) {
		return errors.New("the agent was given another root")
	}
	var chain []string
	for _, c := range cert.Chain {
		if !bytes.Equal(c.Raw, root.Bytes) {
			chain = append(chain, encode(c))
		}
	}
	return meshclient.JudgeSidecar(append(chain, string(rootPEM)), cert.Key.Public(), w.id, now)
}

func encode(cert *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}

// hasEnded says whether the agent has ended.
func (w *workload) hasEnded() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

// tail is the end of the agent's log.
func (w *workload) tail() string { return process.Tail(w.agent.LogFile(), 15) }

// stop ends the agent and waits for it.
func (w *workload) stop() error {
	err := w.agent.Stop()
	<-w.ended
	return err
}
