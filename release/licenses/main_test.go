package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestLicenses reads a binary with one module beside ours.
func TestLicenses(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "linked")
	text, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./testdata/linked").CombinedOutput()
	require.NoError(t, err, string(text))
	licenses := func(args ...string) string {
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), args, &out))
		return out.String()
	}
	got := licenses(binary)
	assert.Contains(t, got, "\ngithub.com/signet-ca/signet: LICENSE\n\nApache License")
	assert.Contains(t, got, "\nGo's standard library, "+runtime.Version()+": LICENSE\n")
	assert.Regexp(t, `\ngithub\.com/spf13/pflag v\S+: LICENSE\n\nCopyright \(c\) 2012 Alex Ogier`, got)
	assert.Equal(t, got, licenses(binary, binary), "the same binaries have the same licenses")
}

// TestCollect: a text that several have is written once, those of directories too, and none is an error.
func TestCollect(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"a/LICENSE": "free\r\n", "a/a.go": "package a", "a/license.go": "package a", "a/forked/COPYING": "as is", "a/testdata/LICENSE": "of a test",
		"b/LICENSE-APACHE.txt": "free", "b/NOTICE": "of b", "ours/LICENSE": "ours", "ours/test/LICENSE": "of a test",
	} {
		path := filepath.Join(dir, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
	a := module{"a v1.0.0", filepath.Join(dir, "a"), true}
	b := module{"b v1.0.0", filepath.Join(dir, "b"), true}
	ours := module{name: "ours", dir: filepath.Join(dir, "ours")}
	texts, err := collect(map[module]bool{a: true, b: true, ours: true})
	require.NoError(t, err)
	assert.Equal(t, []text{
		{[]string{"a v1.0.0: LICENSE", "b v1.0.0: LICENSE-APACHE.txt"}, "free"},
		{[]string{"a v1.0.0: forked/COPYING"}, "as is"},
		{[]string{"b v1.0.0: NOTICE"}, "of b"},
		{[]string{"ours: LICENSE"}, "ours"},
	}, texts)

	require.NoError(t, os.Remove(filepath.Join(dir, "ours", "LICENSE")))
	_, err = collect(map[module]bool{a: true, ours: true})
	assert.ErrorContains(t, err, "ours has no license in "+ours.dir)
	_, err = collect(map[module]bool{{"c v1.0.0", filepath.Join(dir, "c"), true}: true})
	assert.ErrorContains(t, err, "look for licenses of c v1.0.0: ")

	assert.Equal(t, "github.com/!azure/x", escape("github.com/Azure/x"))
	assert.ErrorContains(t, run(t.Context(), nil, nil), "a binary must be given")
	assert.ErrorContains(t, run(t.Context(), []string{filepath.Join(dir, "b", "NOTICE")}, nil), "read the build information of ")
}
