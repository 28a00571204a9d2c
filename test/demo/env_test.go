package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestEnvFileReadsBackInAShell(t *testing.T) {
	for i, value := range []string{
		"/home/me/.demo/kubeconfig", "127.0.0.1:6443", "http://127.0.0.1:9402/metrics", "",
		"/with space/a", "it's", "'", `"$HOME" \ $(id) ` + "`id`", "~/x", "a;b&c|d>e*?[f]#g!h", "two\nlines", "ä",
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "env")
			text := envFile([]variable{{"BEFORE", "1"}, {"VALUE", value}, {"AFTER", "2"}})
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
			script := fmt.Sprintf(`. %s; exec env -i BEFORE="$BEFORE" VALUE="$VALUE" AFTER="$AFTER" sh -c 'printf "%%s|%%s|%%s" "$BEFORE" "$VALUE" "$AFTER"'`, path)
			out, err := exec.Command("sh", "-euc", script).CombinedOutput()
			require.NoError(t, err, "%s", out)
			assert.Equal(t, "1|"+value+"|2", string(out))

			// Exported: children see it without being told.
			out, err = exec.Command("sh", "-euc", fmt.Sprintf(`. %s; sh -c 'printf %%s "$VALUE"'`, path)).CombinedOutput()
			require.NoError(t, err, "%s", out)
			assert.Equal(t, value, string(out))
		})
	}
}

func TestEnvFileIsPlainWhereItCanBe(t *testing.T) {
	assert.Equal(t, "SIGNET_CA=127.0.0.1:6443\nSIGNET_CA_ROOT='/a b/root.pem'\nexport SIGNET_CA SIGNET_CA_ROOT\n",
		envFile([]variable{{"SIGNET_CA", "127.0.0.1:6443"}, {"SIGNET_CA_ROOT", "/a b/root.pem"}}))
}
