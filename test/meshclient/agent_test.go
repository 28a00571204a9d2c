package meshclient

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// agentContext bounds a test with an agent; on two busy cores an agent may take seconds to start.
func agentContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestAgent_RotatesTwice(t *testing.T) {
	ca := newMemoryCA(t)
	ctx := agentContext(t)
	agent, err := StartAgent(ctx, AgentConfig{
		Address:    ca.serve(t),
		Roots:      []byte(pemOf(ca.root)),
		Token:      "a.b.c\n",
		ID:         testID,
		TTL:        4 * time.Second,
		ClusterID:  "east",
		CertSigner: "blue",
		Headers:    map[string]string{"x-tenant": "green"},
		Dir:        t.TempDir(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, agent.Stop()) })

	require.NoError(t, agent.WaitRotations(ctx, 0))
	first, err := agent.Certificate()
	require.NoError(t, err)
	assert.Less(t, agent.Rotations(), len(ca.recorded()), "the first one is no rotation")
	// The agent writes its own rendering of the anchors.
	assert.Equal(t, strings.TrimSpace(pemOf(ca.root)), string(first.RootsPEM))
	assert.Len(t, first.Chain, 3)
	require.NoError(t, JudgeSidecar(
		[]string{string(first.ChainPEM), string(first.RootsPEM)}, first.Key.Public(), testID, first.Leaf.NotBefore))

	require.NoError(t, agent.SetToken("d.e.f"))
	before := len(ca.recorded())
	require.Eventually(t, func() bool { return len(ca.recorded()) >= before+2 }, 2*time.Minute, lookInterval)
	require.NoError(t, agent.WaitRotations(ctx, 2))
	assert.GreaterOrEqual(t, agent.Rotations(), 2)
	second, err := agent.Certificate()
	require.NoError(t, err)
	assert.NotEqual(t, first.Leaf.SerialNumber, second.Leaf.SerialNumber)
	assert.NotEqual(t, first.Key.Public(), second.Key.Public())

	asks := ca.recorded()
	require.GreaterOrEqual(t, len(asks), 3)
	assert.Equal(t, []string{"Bearer a.b.c"}, asks[0].header.Get("authorization"))
	// The one behind it may have been on its way when the token was replaced.
	assert.Equal(t, []string{"Bearer d.e.f"}, asks[before+1].header.Get("authorization"))
	assert.Equal(t, []string{"east"}, asks[0].header.Get("clusterid"))
	assert.Equal(t, []string{"green"}, asks[0].header.Get("x-tenant"))
	assert.Equal(t, "blue", asks[0].request.GetMetadata().AsMap()["CertSigner"])
	assert.EqualValues(t, 4, asks[0].request.GetValidityDuration())
	// Our sidecar profile is true to the agent: same subject, same one extension.
	theirs := parseCSR(t, asks[0].request.GetCsr())
	_, text, err := SidecarCSR(testID, P256)
	require.NoError(t, err)
	ours := parseCSR(t, text)
	assert.Equal(t, ours.RawSubject, theirs.RawSubject)
	assert.Equal(t, ours.Extensions, theirs.Extensions)
}

// An agent keeps its connection, so the certificate it holds is seen only on the connection that it
// makes after a request has failed.
func TestAgent_ReusesItsCertificate(t *testing.T) {
	ca := newMemoryCA(t)
	ca.refuse = 2
	ctx := agentContext(t)
	agent, err := StartAgent(ctx, AgentConfig{
		Address: ca.serve(t), Roots: []byte(pemOf(ca.root)), Token: "a.b.c", ID: testID,
		TTL: 6 * time.Second, Key: P384, Reuse: true,
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, agent.Stop()) })
	require.NoError(t, agent.WaitRotations(ctx, 1))
	asks := ca.recorded()
	require.GreaterOrEqual(t, len(asks), 3)
	assert.Empty(t, asks[0].certs)
	assert.Empty(t, asks[1].certs)
	require.NotEmpty(t, asks[2].certs)
	assert.Equal(t, asks[0].issued, asks[2].certs[0].Raw, "its first")
	assert.Equal(t, []string{"Bearer a.b.c"}, asks[2].header.Get("authorization"))
}

func TestAgent_FailsInWords(t *testing.T) {
	ca := newMemoryCA(t)
	config := AgentConfig{Address: "127.0.0.1:1", Roots: []byte(pemOf(ca.root)), ID: testID}

	agent, err := StartAgent(t.Context(), config)
	require.NoError(t, err)
	_, err = agent.Certificate()
	require.ErrorIs(t, err, os.ErrNotExist)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, agent.WaitRotations(ctx, 0), context.DeadlineExceeded)
	require.NoError(t, agent.Stop())
	require.NoError(t, agent.Stop())
	require.NoDirExists(t, agent.dir)
	require.ErrorIs(t, agent.WaitRotations(t.Context(), 0), errStopped)

	weak := config
	weak.Key = RSA1024
	_, err = StartAgent(t.Context(), weak)
	require.ErrorContains(t, err, "cannot use a RSA-1024 key")

	broken := config
	broken.Env = []string{"CA_PROVIDER=none"}
	agent, err = StartAgent(t.Context(), broken)
	require.NoError(t, err)
	require.ErrorIs(t, agent.WaitRotations(agentContext(t), 0), errStopped)
	require.ErrorContains(t, agent.Stop(), "exit status 1")

	t.Setenv("SIGNET_PILOT_AGENT", filepath.Join(t.TempDir(), "pilot-agent"))
	_, err = StartAgent(t.Context(), config)
	require.ErrorContains(t, err, "make bin")
}

// TestAgent_EndsWithItsParent runs itself as a child that starts an agent and is then killed.
func TestAgent_EndsWithItsParent(t *testing.T) {
	if dir := os.Getenv("MESHCLIENT_TEST_DIR"); dir != "" {
		ca := newMemoryCA(t)
		agent, err := StartAgent(t.Context(), AgentConfig{
			Address: "127.0.0.1:1", Roots: []byte(pemOf(ca.root)), ID: testID, Dir: dir,
		})
		require.NoError(t, err)
		fmt.Printf("agent=%d\n", agent.PID())
		<-t.Context().Done()
		return
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAgent_EndsWithItsParent$")
	child.Env = append(os.Environ(), "MESHCLIENT_TEST_DIR="+t.TempDir())
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	line := make([]byte, 64)
	n, err := out.Read(line)
	require.NoError(t, err)
	text, found := strings.CutPrefix(strings.TrimSpace(string(line[:n])), "agent=")
	require.True(t, found, "%q", line[:n])
	pid, err := strconv.Atoi(text)
	require.NoError(t, err)
	require.DirExists(t, fmt.Sprintf("/proc/%d", pid))
	require.NoError(t, child.Process.Kill())
	_ = child.Wait() // the error says that it was killed
	require.Eventually(t, func() bool {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(state), ") Z ") // gone, or waiting to be reaped by init
	}, time.Minute, 50*time.Millisecond)
}
