// Package audit_test reads the audit stream as others do: with the SDK of CloudEvents.
package audit_test

import (
	"bufio"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/audit"
	"github.com/signet-ca/signet/api/ledger"
)

// fill sets every text in value to text.
func fill(value reflect.Value, text string) {
	switch value.Kind() {
	case reflect.String:
		value.SetString(text)
	case reflect.Struct:
		for _, field := range value.Fields() {
			if field.CanSet() {
				fill(field, text)
			}
		}
	}
}

func of[T any](text string) T {
	var value T
	fill(reflect.ValueOf(&value).Elem(), text)
	return value
}

// TestCloudEvents: every kind of line is a valid event of CloudEvents 1.0, whatever texts are in it.
func TestCloudEvents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	origin := audit.Origin{Cluster: "a cluster/with%odd#names?", Namespace: "istio-system", Replica: "signet-0\n"}
	stream, err := audit.New(audit.Config{Output: path}, origin, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	texts := []string{"plain", "", "two\nlines", "\x00\x1b\x7f\u0085", "\xff", "\ufffe\u2028", `"},{"`, strings.Repeat("long", 10_000)}
	tell := func(text string) {
		stream.Issued(of[ledger.Issuance](text))
		stream.Refused(of[ledger.Refusal](text))
		stream.Probed(of[audit.Probe](text))
		read := of[api.Read](text)
		read.Status, read.Duration = 200, time.Second
		stream.Read(read)
		read.Status = 403
		stream.Read(read)
	}
	for _, text := range texts {
		tell(text)
	}
	for range 20_000 { // more than there is room for before it runs
		stream.Probed(audit.Probe{Namespace: "shop", Service: "cart"})
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- stream.Start(ctx) }()
	stop()
	require.NoError(t, <-ended)

	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	kinds, keys := make(map[string]int), make(map[string]bool)
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e cloudevents.Event
		require.NoError(t, json.Unmarshal(lines.Bytes(), &e), lines.Text())
		require.NoError(t, e.Validate(), lines.Text())
		assert.Equal(t, cloudevents.CloudEventsVersionV1, e.SpecVersion())
		assert.Equal(t, cloudevents.ApplicationJSON, e.DataContentType())
		assert.Empty(t, e.Extensions())
		assert.False(t, e.DataBase64)
		kinds[e.Type()]++
		if e.Type() == audit.TypeIssued {
			continue // these have texts for their certificates
		}
		key := e.Source() + " " + e.ID()
		assert.False(t, keys[key], "%s occurs twice", key)
		keys[key] = true
	}
	require.NoError(t, lines.Err())
	assert.Equal(t, len(texts), kinds[audit.TypeIssued])
	assert.Positive(t, kinds[audit.TypeProbe])
	assert.Equal(t, 1, kinds[audit.TypeLost])
	// Counts are told of at the end, where there was no room before the stream began to write.
	assert.Equal(t, len(texts), kinds[audit.TypeRefused])
	assert.Equal(t, 2*len(texts), kinds[audit.TypeRead])
	assert.Len(t, kinds, 5)
}

// TestSDKRefuses: what the test above relies on.
func TestSDKRefuses(t *testing.T) {
	for _, line := range []string{
		`{"specversion":"1.0","id":"1","type":"t"}`,
		`{"specversion":"1.0","id":"1","source":"a b://%","type":"t"}`,
		`{"specversion":"1.0","id":"","source":"//a","type":"t"}`,
		`{"specversion":"1.0","id":"1","source":"//a","type":""}`,
		`{"specversion":"2.0","id":"1","source":"//a","type":"t"}`,
		`{"specversion":"1.0","id":"1","source":"//a","type":"t","time":"yesterday"}`,
	} {
		var e cloudevents.Event
		err := json.Unmarshal([]byte(line), &e)
		if err == nil {
			err = e.Validate()
		}
		assert.Error(t, err, line)
	}
}
