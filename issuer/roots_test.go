package issuer

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/setting"
)

func TestRootsConfigValidate(t *testing.T) {
	for _, row := range []struct {
		name string
		cfg  RootsConfig
		want string // "" is right
	}{
		{"file", RootsConfig{File: "roots.pem"}, ""},
		{"secret", RootsConfig{Secret: &SecretKey{Name: "roots"}}, ""},
		{"secret and key", RootsConfig{Secret: &SecretKey{Name: "roots", Key: "tls.crt"}}, ""},
		{"first use", RootsConfig{FromIssuer: true}, ""},
		{"none", RootsConfig{}, "roots: exactly one of file, secret and fromIssuer must be set; 0 are"},
		{"file and secret", RootsConfig{File: "f", Secret: &SecretKey{Name: "s"}}, "roots: exactly one of file, secret and fromIssuer must be set; 2 are"},
		{"all", RootsConfig{File: "f", Secret: &SecretKey{Name: "s"}, FromIssuer: true}, "roots: exactly one of file, secret and fromIssuer must be set; 3 are"},
		{"nameless secret", RootsConfig{Secret: &SecretKey{Key: "ca.crt"}}, "roots.secret.name: must be set to the name of a Secret in Signet's namespace"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := setting.NewProblems()
			row.cfg.Validate(p.At("roots"))
			if row.want == "" {
				assert.NoError(t, p.Err())
			} else {
				assert.EqualError(t, p.Err(), row.want)
			}
		})
	}
}

func TestLoadPinnedFile(t *testing.T) {
	a, b := newRoot(t, "a", nil), newRoot(t, "b", nil)
	path := filepath.Join(t.TempDir(), "roots.pem")
	write := func(text string) { require.NoError(t, os.WriteFile(path, []byte(text), 0o600)) }
	load := func() (Bundle, error) {
		return LoadPinned(t.Context(), nil, "istio-system", RootsConfig{File: path})
	}

	_, err := load()
	require.ErrorIs(t, err, fs.ErrNotExist)
	assert.ErrorContains(t, err, "read trust anchors: ")

	write("# the mesh's roots\n" + toPEM(a, b))
	bundle, err := load()
	require.NoError(t, err)
	want, err := NewBundle(b, a)
	require.NoError(t, err)
	assert.Equal(t, want.PEM(), bundle.PEM())

	write(toPEM(a) + "rubbish")
	_, err = load()
	assert.ErrorContains(t, err, "trust anchors in file "+path+": PEM: text outside of blocks")

	write("")
	_, err = load()
	assert.ErrorContains(t, err, "PEM: no certificate")
}
