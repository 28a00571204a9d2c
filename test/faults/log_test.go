package faults

import (
	"encoding/base64"
	"encoding/pem"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/testca"
)

// TestLogLevelSwitch: SIGUSR1 switches between the configured level and debug.
func TestLogLevelSwitch(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r := m.start(t, map[string]any{"log.level": "info"})
	assert.Zero(t, logCount(t, r, `"level":"DEBUG"`))
	require.NoError(t, r.Process().Signal(syscall.SIGUSR1))
	patiently.Holds(t, func() bool { return logLine(t, r, "log level switched", "DEBUG") != "" }, "the level is debug")
	require.NoError(t, r.Process().Signal(syscall.SIGUSR1))
	patiently.Holds(t, func() bool { return logLine(t, r, "log level switched", "INFO") != "" }, "the level is info again")
	assert.False(t, r.Process().Ended())
}

// TestNoSecretInLogs: at no level does the log hold a token, a key or a whole CSR.
func TestNoSecretInLogs(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r := m.start(t, map[string]any{"log.level": "debug"})
	c := dial(t, r, m.root.PEM())

	var secrets []string
	remember := func(w *workload) {
		parts := strings.Split(w.token, ".")
		secrets = append(secrets, w.token, parts[1], parts[2])
		block, _ := pem.Decode([]byte(w.csr))
		// The bodies of the PEM, of the PEM within JSON and of the DER as other tools may write it.
		secrets = append(secrets, base64.StdEncoding.EncodeToString(block.Bytes)[:64], base64.StdEncoding.EncodeToString([]byte(w.csr))[64:128])
	}
	good := m.workload(t, "good")
	remember(good)
	chain, err := good.ask(t.Context(), c)
	good.issued(t, m.root.PEM(), chain, err)

	denied := m.workload(t, "denied")
	remember(denied)
	m.issuer.Behave(denied.id.String(), testca.Always(testca.Denied, "no"))
	chain, err = denied.ask(t.Context(), c)
	refused(t, codes.FailedPrecondition, chain, err)

	forged := m.workload(t, "forged") // another's signature
	forged.token = forged.token[:strings.LastIndex(forged.token, ".")] + good.token[strings.LastIndex(good.token, "."):]
	remember(forged)
	chain, err = forged.ask(t.Context(), c)
	refused(t, codes.Unauthenticated, chain, err)

	shapeless := m.workload(t, "shapeless")
	remember(shapeless)
	chain, err = c.Create(t.Context(), meshclient.Ask{Authorization: []string{"Bearer " + shapeless.token + "!"}, CSR: shapeless.csr})
	refused(t, codes.Unauthenticated, chain, err)

	greedy := m.workload(t, "greedy")
	greedy.csr = denied.csr
	remember(greedy)
	chain, err = greedy.ask(t.Context(), c)
	refused(t, codes.PermissionDenied, chain, err)

	broken := m.workload(t, "broken")
	remember(broken)
	chain, err = c.Create(t.Context(), meshclient.Ask{Token: broken.token, CSR: broken.csr + "trailing"})
	refused(t, codes.InvalidArgument, chain, err)

	planted := m.workload(t, "planted") // an issuer that answers with a private key
	remember(planted)
	m.issuer.Behave(planted.id.String(), testca.Rewritten(m.root, func([]byte) []byte {
		return []byte("-----BEGIN PRIVATE KEY-----\nbm90aGluZyB0byBzZWUgaGVyZSwgcmVhbGx5\n-----END PRIVATE KEY-----\n")
	}))
	secrets = append(secrets, "bm90aGluZyB0byBzZWUgaGVyZSwgcmVhbGx5")
	chain, err = planted.ask(t.Context(), c)
	refused(t, codes.FailedPrecondition, chain, err)

	r.Stop()
	log, err := r.Log()
	require.NoError(t, err)
	require.Contains(t, log, `"level":"DEBUG"`)
	require.GreaterOrEqual(t, strings.Count(log, "certificate refused"), 6)
	for _, secret := range secrets {
		assert.False(t, strings.Contains(log, secret), "the log holds a secret: %.12s…", secret)
	}
	assert.NotContains(t, log, "BEGIN PRIVATE KEY")
	assert.NotContains(t, log, "BEGIN CERTIFICATE REQUEST")
}
