package ca

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestReceiveWaitsForItsTurn: who leaves before its message is looked at isn't turned away for want of room, which is what
// an alert would be about.
func TestReceiveWaitsForItsTurn(t *testing.T) {
	s := New(Config{}, Parts{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	s.receiving = newQueue(1, 1, 10)
	release, err := s.receiving.acquire(t.Context(), "192.0.2.1", "192.0.2.1")
	require.NoError(t, err)
	defer release()

	left, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.receive(left, nil, "192.0.2.1")
	requireKind(t, kindCanceled, err)

	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	_, err = s.receive(late, nil, "192.0.2.1")
	requireKind(t, kindOverloaded, err)
}

// TestCausesAreBounded: no caller fills the log with what it says of itself.
func TestCausesAreBounded(t *testing.T) {
	var log bytes.Buffer
	s := New(Config{}, Parts{Recorder: &told{}}, slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry())
	reviewer := newReviewer(Config{}, nil, 1, prometheus.NewRegistry())
	err := reviewer.concerned(Credentials{Cluster: strings.Repeat("x", maxHeaderBytes)})
	requireKind(t, kindUnknownCluster, err)
	requireKind(t, kindUnknownCluster, s.finish(&exchange{}, err))
	assert.Contains(t, log.String(), "cluster")
	assert.Contains(t, log.String(), "reason=unknown_cluster")
	assert.Less(t, log.Len(), 2*maxLogged)
}
