package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// compileTell builds a small command as releases are built, in a tree of its own at dir, and returns its file. It has one
// module beside ours.
func compileTell(t *testing.T, dir string) string {
	t.Helper()
	files := map[string]string{"cmd/tell/main.go": tell}
	for _, name := range []string{"go.mod", "go.sum", "release/compile.sh", "version/version.go"} {
		content, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(name)))
		require.NoError(t, err)
		files[name] = string(content)
	}
	for name, content := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
	// As if somebody had said so by go env -w.
	written := filepath.Join(dir, "env")
	require.NoError(t, os.WriteFile(written, []byte("GOFLAGS=-tags="+filepath.Base(dir)+"\n"), 0o600))
	output := filepath.Join(dir, "tell")
	compile := exec.CommandContext(t.Context(), "sh", filepath.Join(dir, "release", "compile.sh"), "./cmd/tell", output)
	compile.Env = append(os.Environ(),
		"VERSION=v9.9.9", "COMMIT=0123-dirty", "DATE=2026-01-02T03:04:05Z",
		"GOOS="+runtime.GOOS, "GOARCH="+runtime.GOARCH, "GOFLAGS=-tags="+filepath.Base(dir), "GOENV="+written)
	text, err := compile.CombinedOutput()
	require.NoError(t, err, string(text))
	return output
}

const tell = `package main

import (
	"fmt"

	"github.com/spf13/pflag"

	"github.com/signet-ca/signet/version"
)

func main() {
	pflag.Parse()
	fmt.Println(version.Current())
}
`

func sbomOf(t *testing.T, binary string) (bom, string) {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, run([]string{"-name", "tell", "-version", "v1.2.3+meta", "-commit", "0123", "-date", "2026-01-02T03:04:05Z", binary}, &out))
	var got bom
	decoder := json.NewDecoder(bytes.NewReader(out.Bytes()))
	decoder.DisallowUnknownFields()
	require.NoError(t, decoder.Decode(&got))
	return got, out.String()
}

func TestSBOM(t *testing.T) {
	binary := compileTell(t, t.TempDir())
	got, text := sbomOf(t, binary)
	assert.Equal(t, "CycloneDX", got.Format)
	assert.Equal(t, "1.6", got.SpecVersion)
	assert.Regexp(t, `^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`, got.SerialNumber)
	assert.Equal(t, "2026-01-02T03:04:05Z", got.Metadata.Timestamp)

	content, err := os.ReadFile(binary)
	require.NoError(t, err)
	sum := sha256.Sum256(content)
	main := got.Metadata.Component
	assert.Equal(t, []hash{{"SHA-256", hex.EncodeToString(sum[:])}}, main.Hashes)
	assert.Equal(t, "pkg:golang/github.com/signet-ca/signet@v1.2.3%2Bmeta#cmd/tell", main.PURL)
	assert.Contains(t, main.Properties, property{"signet:goarch", runtime.GOARCH})
	assert.Contains(t, main.Properties, property{"signet:commit", "0123"})

	// It has what was linked, as go.mod and go.sum say.
	sums, err := os.ReadFile(filepath.Join("..", "..", "go.sum"))
	require.NoError(t, err)
	refs := map[string]bool{main.Ref: true}
	for _, c := range got.Components {
		assert.False(t, refs[c.Ref], "%s stands twice", c.Ref)
		refs[c.Ref] = true
		assert.Contains(t, got.Dependencies[0].DependsOn, c.Ref)
		if c.Name == "std" {
			assert.Equal(t, strings.TrimPrefix(runtime.Version(), "go"), c.Version)
			continue
		}
		require.Len(t, c.Properties, 1, c.Name)
		assert.Contains(t, string(sums), c.Name+" "+c.Version+" "+c.Properties[0].Value+"\n")
	}
	assert.Contains(t, text, `"name": "github.com/spf13/pflag"`)
	require.Len(t, got.Components, 2)
	assert.Equal(t, "std", got.Components[1].Name, "sorted by package URL")
	assert.True(t, refs["pkg:golang/std@"+strings.TrimPrefix(runtime.Version(), "go")])

	_, again := sbomOf(t, binary)
	assert.Equal(t, text, again, "the same binary has the same SBOM")
}

func TestSBOMRefuses(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	require.NoError(t, os.WriteFile(text, []byte("no binary"), 0o600))
	for want, args := range map[string][]string{
		"a name and one binary must be given": {text},
		"read the binary: ":                   {"-name", "x", text + "-none"},
		"read the build information of ":      {"-name", "x", text},
	} {
		var out bytes.Buffer
		assert.ErrorContains(t, run(args, &out), want)
		assert.Empty(t, out.String())
	}
}

// TestCompileIsReproducible builds the same in two directories; release/reproduce.sh does so with the real commands.
func TestCompileIsReproducible(t *testing.T) {
	var binaries, contents []string
	for _, dir := range []string{filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "another", "place")} {
		binary := compileTell(t, dir)
		content, err := os.ReadFile(binary)
		require.NoError(t, err)
		assert.False(t, strings.Contains(string(content), dir), "it holds the path of the tree that it was built from")
		binaries, contents = append(binaries, binary), append(contents, string(content))
	}
	assert.True(t, contents[0] == contents[1], "the two builds differ")

	told, err := exec.CommandContext(t.Context(), binaries[0]).Output()
	require.NoError(t, err)
	assert.Equal(t, "v9.9.9 (commit 0123-dirty, 2026-01-02T03:04:05Z, "+runtime.Version()+", "+runtime.GOOS+"/"+runtime.GOARCH+")\n", string(told))
}

// TestVersionScript: where there is no repository, what isn't told is an error, and never empty.
func TestVersionScript(t *testing.T) {
	tree := filepath.Join(t.TempDir(), "a tree")
	require.NoError(t, os.MkdirAll(filepath.Join(tree, "release"), 0o755))
	text, err := os.ReadFile(filepath.Join("..", "version.sh"))
	require.NoError(t, err)
	script := filepath.Join(tree, "release", "version.sh")
	require.NoError(t, os.WriteFile(script, text, 0o755))
	tell := func(env ...string) (string, error) {
		command := exec.CommandContext(t.Context(), "sh", script)
		command.Env = append([]string{"PATH=" + os.Getenv("PATH"), "GIT_CEILING_DIRECTORIES=" + filepath.Dir(tree)}, env...)
		out, err := command.Output()
		return string(out), err
	}
	out, err := tell("VERSION=v1.2.3", "COMMIT=0123", "DATE=2026-01-02T03:04:05Z")
	require.NoError(t, err)
	assert.Equal(t, "export VERSION=v1.2.3 COMMIT=0123 DATE=2026-01-02T03:04:05Z\n", out)
	for _, env := range [][]string{
		nil, {"VERSION=v1.2.3", "COMMIT=0123"}, {"VERSION=v1.2.3", "DATE=2026-01-02T03:04:05Z"}, {"VERSION=$(id)", "COMMIT=0123", "DATE="},
	} {
		out, err := tell(env...)
		assert.Error(t, err, env)
		assert.Empty(t, out, env)
	}
}

// TestBuildScriptHoldsVersions: a release isn't begun whose chart would pull an image of another version.
func TestBuildScriptHoldsVersions(t *testing.T) {
	tree := t.TempDir()
	for _, name := range []string{"release/build.sh", "release/version.sh", "Dockerfile"} {
		text, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(name)))
		require.NoError(t, err)
		path := filepath.Join(tree, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, text, 0o755))
	}
	chart := filepath.Join(tree, "deploy", "chart", "signet", "Chart.yaml")
	require.NoError(t, os.MkdirAll(filepath.Dir(chart), 0o755))
	build := func(of string) string {
		require.NoError(t, os.WriteFile(chart, []byte(of), 0o600))
		command := exec.CommandContext(t.Context(), "bash", filepath.Join(tree, "release", "build.sh"), filepath.Join(tree, "dist"))
		command.Env = append(os.Environ(), "VERSION=v1.2.3", "COMMIT=0123", "DATE=2026-01-02T03:04:05Z", "GOFLAGS=-mod=mod", "GOPROXY=off")
		text, err := command.CombinedOutput()
		require.Error(t, err, "there is nothing to build")
		return string(text)
	}
	const started = "signet v1.2.3, commit 0123"
	assert.Contains(t, build("version: 1.2.3\nappVersion: \"1.2.3\"\n"), started)
	for _, of := range []string{"version: 1.2.4\nappVersion: 1.2.3\n", "version: 1.2.3\nappVersion: 1.2.3-rc.1\n", "version: v1.2.3\nappVersion: v1.2.3\n", ""} {
		text := build(of)
		assert.Contains(t, text, "error: the commit is tagged v1.2.3, but ")
		assert.NotContains(t, text, started)
	}
}

// TestDockerfile: the image is built as releases are, by a version of Go that go.mod allows.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "Dockerfile"))
	require.NoError(t, err)
	assert.Contains(t, string(text), "release/compile.sh ./cmd/signet ")
	assert.NotContains(t, string(text), "go build")
	assert.Contains(t, string(text), "go run ./release/licenses /out/signet >/out/LICENSES")
	assert.Regexp(t, `(?m)^ARG GO_VERSION=1\.\d+\.\d+$`, string(text), "release/build.sh reads it")
	assert.Contains(t, string(text), "\nUSER 65532:65532\n")
	ignored, err := os.ReadFile(filepath.Join("..", "..", ".dockerignore"))
	require.NoError(t, err)
	for _, line := range strings.Fields(string(ignored)) {
		for _, needed := range []string{"/api", "/ca", "/cmd", "/issuer", "/release", "/rotation", "/setting", "/signer", "/version"} {
			assert.False(t, line == needed, "the build needs %s", needed)
		}
	}
}
