package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDirectoryIsTakenOnceAndRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	d, err := openDirectory(path)
	require.NoError(t, err)
	_, err = d.make(workloadsName, "shop-cart")
	require.NoError(t, err)

	_, err = openDirectory(path)
	require.ErrorContains(t, err, "another demo runs in "+path)
	require.ErrorContains(t, err, "DEMO_DIR=")
	assert.DirExists(t, d.join(workloadsName, "shop-cart"), "the second demo must not touch the first")

	require.NoError(t, d.close())
	assert.NoDirExists(t, path)
}

func TestDirectoryOfAKilledDemoIsCleaned(t *testing.T) {
	path := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(path, lockName), nil, 0o600))
	require.NoError(t, os.MkdirAll(filepath.Join(path, planeName, "etcd"), 0o700))
	d, err := openDirectory(path)
	require.NoError(t, err)
	assert.NoDirExists(t, d.join(planeName))
	require.NoError(t, d.close())
	assert.NoDirExists(t, path)
}

func TestDirectoryKeepsWhatIsNotOurs(t *testing.T) {
	path := t.TempDir()
	theirs := filepath.Join(path, "notes.txt")
	require.NoError(t, os.WriteFile(theirs, nil, 0o600))
	d, err := openDirectory(path)
	require.NoError(t, err)
	require.NoError(t, d.close())
	assert.FileExists(t, theirs)
	assert.NoFileExists(t, d.join(lockName))

	env := filepath.Join(path, envName)
	require.NoError(t, os.WriteFile(env, []byte("PRECIOUS=1"), 0o600))
	_, err = openDirectory(path)
	require.ErrorContains(t, err, env)
	require.ErrorContains(t, err, "DEMO_DIR")
	assert.FileExists(t, env)
	assert.NoFileExists(t, d.join(lockName))
}
