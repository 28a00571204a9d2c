package istiod

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// mount keeps the files of a directory as an object has them, as the kubelet does, until the test
// ends: the files are links through ..data, a link to a directory with one version of them all, which
// is replaced by a rename. Where there is no object the directory stays empty, as an optional mount.
func mount(t *testing.T, dir string, object client.Object, data func() map[string][]byte) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	var mounted map[string][]byte
	version := 0
	once := func() error {
		if err := plane.Client().Get(ctx, client.ObjectKeyFromObject(object), object); err != nil {
			return client.IgnoreNotFound(err)
		}
		wanted := data()
		if mounted != nil && maps.EqualFunc(mounted, wanted, bytes.Equal) {
			return nil
		}
		version++
		mounted = wanted
		return writeVersion(dir, version, wanted)
	}
	require.NoError(t, once())
	running.Go(func() {
		for ctx.Err() == nil {
			if err := once(); err != nil && ctx.Err() == nil {
				t.Errorf("mount %s: %v", dir, err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
}

func mountSecret(t *testing.T, dir, ns, name string) {
	t.Helper()
	secret := &corev1.Secret{}
	secret.Namespace, secret.Name = ns, name
	mount(t, dir, secret, func() map[string][]byte { return secret.Data })
}

func mountConfigMap(t *testing.T, dir, ns, name string) {
	t.Helper()
	object := &corev1.ConfigMap{}
	object.Namespace, object.Name = ns, name
	mount(t, dir, object, func() map[string][]byte {
		files := make(map[string][]byte)
		for name, text := range object.Data {
			files[name] = []byte(text)
		}
		return files
	})
}

func writeVersion(dir string, version int, files map[string][]byte) error {
	name := fmt.Sprintf("..version_%d", version)
	if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
		return err
	}
	for file, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name, file), content, 0o644); err != nil {
			return err
		}
	}
	before, _ := os.Readlink(filepath.Join(dir, "..data")) // none at first
	if err := os.Symlink(name, filepath.Join(dir, "..data_tmp")); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
		return err
	}
	for file := range files {
		if err := os.Symlink(filepath.Join("..data", file), filepath.Join(dir, file)); err != nil && !os.IsExist(err) {
			return err
		}
	}
	if before == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(dir, before))
}
