package clusters

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestSecretsWithoutRoomAreRefused: where there are too many, the metric and readiness tell, not only the log.
func TestSecretsWithoutRoomAreRefused(t *testing.T) {
	var log bytes.Buffer
	s := followed(Config{Namespace: "signet-clusters", Allowed: []Allowed{{ID: "west"}}}, &log)
	store := s.store()
	data := map[string][]byte{"west": kubeconfig(t)}
	var all []any
	for n := range maxSecrets + maxPassed + 3 {
		all = append(all, secretOf(fmt.Sprintf("s%04d", n), 0, data))
	}
	passed := func() (names []string) {
		for _, r := range s.State().Refused {
			if r.ID == "" {
				assert.Contains(t, r.Reason, "there are 512 Secrets of remote clusters already")
				names = append(names, r.Secret.Name)
			}
		}
		return names
	}
	require.NoError(t, store.Replace(all[:maxSecrets], ""))
	assert.Empty(t, passed(), "there is room for them")
	require.NoError(t, store.Replace(all, ""))
	assert.Len(t, passed(), maxPassed)
	assert.Equal(t, "s0512", passed()[0])
	assert.Len(t, s.State().Connections, 1)
	assert.Equal(t, 3, bytes.Count(log.Bytes(), []byte("too many Secrets")), "of the others only the log tells")

	// One that is written again when there is room is used.
	require.NoError(t, store.Delete(all[0]))
	assert.Contains(t, passed(), "s0512")
	require.NoError(t, store.Update(all[maxSecrets]))
	assert.NotContains(t, passed(), "s0512")
	assert.Len(t, s.kept, maxSecrets)
	require.NoError(t, store.Delete(all[maxSecrets+1]))
	assert.Len(t, passed(), maxPassed-2)
	require.NoError(t, store.Replace(nil, ""))
	assert.Empty(t, passed())
}
