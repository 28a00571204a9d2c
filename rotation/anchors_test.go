package rotation

import (
	"bytes"
	"context"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/signer"
)

// A file that isn't there yet is looked for again; once it is, its anchors are in force.
func TestAnchorsFromFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "roots.pem")
	synctest.Test(t, func(t *testing.T) {
		ca := newMemoryCA(t)
		issuers := issuer.NewStore(issuer.Ref{Name: "mesh"})
		registry := prometheus.NewPedanticRegistry()
		log := slog.New(slog.NewTextHandler(new(bytes.Buffer), nil))
		serving := NewServing(ServingConfig{}, "istio-system", ca, issuers, log, prometheus.NewRegistry())
		anchors := NewAnchors(issuer.RootsConfig{File: path}, signer.Cluster{Namespace: "istio-system"}, serving, log, registry)
		r := &running{t: t, registry: registry}

		_, err := anchors.Ready(time.Now())
		assert.EqualError(t, err, "no trust anchors are known yet")
		var group sync.WaitGroup
		group.Go(func() { assert.NoError(t, anchors.Start(t.Context())) })
		pass(time.Minute)
		_, err = anchors.Ready(time.Now())
		assert.ErrorIs(t, err, os.ErrNotExist)
		assert.Equal(t, map[string]float64{"trust_anchors": 0, "trust_anchors_on_first_use": 0}, r.values())

		require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.root.Raw}), 0o600))
		group.Wait() // within 5s of the next try
		assert.Equal(t, ca.bundle().PEM(), issuers.Current().Anchors.PEM())
		text, err := anchors.Ready(time.Now())
		require.NoError(t, err)
		assert.Equal(t, "1 trust anchors, 1 of them valid", text)
		_, err = anchors.Ready(ca.root.NotAfter.Add(time.Second))
		assert.EqualError(t, err, "none of the 1 trust anchors is valid any more")
		assert.Equal(t, 1.0, r.values()["trust_anchors"])
	})
}

func TestAnchorsStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuers := issuer.NewStore(issuer.Ref{Name: "mesh"})
		log := slog.New(slog.DiscardHandler)
		serving := NewServing(ServingConfig{}, "istio-system", newMemoryCA(t), issuers, log, prometheus.NewRegistry())
		anchors := NewAnchors(issuer.RootsConfig{File: "does/not/exist"}, signer.Cluster{}, serving, log, prometheus.NewRegistry())
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() { assert.NoError(t, anchors.Start(ctx)) })
		pass(time.Second)
		cancel()
		group.Wait()
	})
}
