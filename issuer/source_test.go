package issuer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var quiet = slog.New(slog.DiscardHandler)

// answers are those that a source has told, in their order. It is for use in a synctest bubble.
type answers struct {
	t *testing.T

	mu  sync.Mutex
	all []Answer // guarded by mu
}

// ask runs source until the test ends.
func ask(t *testing.T, source Source) *answers {
	t.Helper()
	a := &answers{t: t}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		source.Run(ctx, func(answer Answer) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.all = append(a.all, answer)
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	synctest.Wait()
	return a
}

// next waits so long that every change has been told, and returns what was told since the last time.
func (a *answers) next() []Answer {
	a.t.Helper()
	time.Sleep(2*lookEvery + time.Millisecond)
	return a.now()
}

// now is what was told since the last time.
func (a *answers) now() []Answer {
	synctest.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.all
	a.all = nil
	return all
}

// one is the one answer that was told.
func (a *answers) one() Answer {
	a.t.Helper()
	all := a.next()
	require.Len(a.t, all, 1)
	return all[0]
}

// valid is a root that is valid from now on for lifetime.
func valid(t testing.TB, name string, lifetime time.Duration) *x509.Certificate {
	now := time.Now().Truncate(time.Second)
	return newRoot(t, name, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-time.Hour), now.Add(lifetime) })
}

func write(t testing.TB, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

func TestFileSourceFollowsTheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := valid(t, "a", 24*time.Hour), valid(t, "b", 24*time.Hour)
		path := filepath.Join(t.TempDir(), "roots.pem")
		source := NewFileSource(path, quiet)
		assert.Equal(t, "file "+path, source.String())
		told := ask(t, source)

		absent := told.one()
		require.ErrorIs(t, absent.Err, ErrNoAnchors)
		assert.ErrorContains(t, absent.Err, "read trust anchors: ")
		assert.True(t, absent.Bundle.Empty())

		write(t, path, toPEM(a))
		answer := told.one()
		require.NoError(t, answer.Err)
		assert.Equal(t, toPEM(a), answer.Bundle.PEM())

		assert.Empty(t, told.next(), "an answer is told once")
		write(t, path, "# touched\n"+toPEM(a))
		assert.Empty(t, told.next(), "and so is the same answer in other words")

		write(t, path, toPEM(a, b))
		answer = told.one()
		require.NoError(t, answer.Err)
		assert.Len(t, answer.Bundle.Anchors(), 2)

		require.NoError(t, os.Remove(path))
		require.ErrorIs(t, told.one().Err, ErrNoAnchors)
		write(t, path, toPEM(b, a))
		answer = told.one()
		require.NoError(t, answer.Err, "the same as before the error, but it must be told")
		assert.Len(t, answer.Bundle.Anchors(), 2)
	})
}

// Kubelets write a new directory and exchange a symbolic link, so the file's own link never changes.
func TestFileSourceFollowsMounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := valid(t, "a", 24*time.Hour), valid(t, "b", 24*time.Hour)
		dir := t.TempDir()
		publish := func(version, text string) {
			require.NoError(t, os.Mkdir(filepath.Join(dir, version), 0o700))
			write(t, filepath.Join(dir, version, "ca.crt"), text)
			require.NoError(t, os.Symlink(version, filepath.Join(dir, "..tmp")))
			require.NoError(t, os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")))
		}
		publish("..1", toPEM(a))
		require.NoError(t, os.Symlink("..data/ca.crt", filepath.Join(dir, "ca.crt")))
		told := ask(t, NewFileSource(filepath.Join(dir, "ca.crt"), quiet))
		assert.Equal(t, toPEM(a), told.one().Bundle.PEM())
		publish("..2", toPEM(b))
		require.NoError(t, os.RemoveAll(filepath.Join(dir, "..1")))
		assert.Equal(t, toPEM(b), told.one().Bundle.PEM())
		require.NoError(t, os.Remove(filepath.Join(dir, "..data")))
		require.ErrorIs(t, told.one().Err, ErrNoAnchors)
	})
}

// A file that is truncated and written in several pieces must not pass for a smaller bundle.
func TestFileSourceWaitsForTheWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := valid(t, "a", 24*time.Hour), valid(t, "b", 24*time.Hour), valid(t, "c", 24*time.Hour)
		path := filepath.Join(t.TempDir(), "roots.pem")
		write(t, path, toPEM(a, b))
		told := ask(t, NewFileSource(path, quiet))
		require.Len(t, told.one().Bundle.Anchors(), 2)
		whole := toPEM(a, b, c)
		for _, piece := range []int{0, 100, len(toPEM(a)), len(toPEM(a)) + 7, len(toPEM(a, b)), len(whole)} {
			write(t, path, whole[:piece])
			time.Sleep(lookEvery)
		}
		answer := told.one()
		require.NoError(t, answer.Err)
		assert.Len(t, answer.Bundle.Anchors(), 3)

		write(t, path, whole[:100]) // the writer died
		require.ErrorContains(t, told.one().Err, "read trust anchors: file "+path+": PEM: broken block")
		write(t, path, "")
		require.ErrorContains(t, told.one().Err, "PEM: no certificate")
	})
}

func TestFileSourceRefusesWhole(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	good := toPEM(valid(t, "good", 24*time.Hour))
	leaf := toPEM(newRoot(t, "leaf", func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 }))
	for name, row := range map[string]struct{ text, want string }{
		"private key behind":  {good + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})), `block of type "PRIVATE KEY"`},
		"half written":        {good + good[:len(good)/2], "PEM: broken block, after certificate 1"},
		"junk between blocks": {good + "junk\n" + good, "PEM: text outside of blocks"},
		"leaf":                {good + leaf, "is not a CA certificate"},
		"300 KB":              {strings.Repeat(good, 300<<10/len(good)+1), "bytes that are allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "roots.pem")
				write(t, path, row.text)
				answer := ask(t, NewFileSource(path, quiet)).one()
				require.ErrorContains(t, answer.Err, row.want)
				assert.ErrorContains(t, answer.Err, "read trust anchors: ")
				assert.True(t, answer.Bundle.Empty())
				assert.NotContains(t, answer.Err.Error(), "BEGIN")
			})
		})
	}
}

// What isn't a file must not hold up the looking.
func TestFileSourceWantsAFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		require.ErrorContains(t, ask(t, NewFileSource(dir, quiet)).one().Err, "is not a regular file")
		pipe := filepath.Join(dir, "pipe")
		require.NoError(t, syscall.Mkfifo(pipe, 0o600))
		require.ErrorContains(t, ask(t, NewFileSource(pipe, quiet)).one().Err, "is not a regular file")
	})
}

func TestSourceLeavesOutTheExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &strings.Builder{}
		gone, soon, long := valid(t, "gone", -time.Minute), valid(t, "soon", time.Minute), valid(t, "long", time.Hour)
		path := filepath.Join(t.TempDir(), "roots.pem")
		write(t, path, toPEM(gone, soon, long))
		told := ask(t, NewFileSource(path, slog.New(slog.NewTextHandler(log, nil))))
		began := time.Now()

		answer := told.one()
		require.NoError(t, answer.Err)
		assert.Len(t, answer.Bundle.Anchors(), 2)
		assert.False(t, answer.Bundle.Contains(gone))
		assert.Equal(t, []string{"CN=gone, serial 01, expired at 1999-12-31T23:59:00Z"}, answer.LeftOut)

		time.Sleep(time.Until(began.Add(time.Minute))) // the last second belongs to it
		assert.Empty(t, told.now())
		answer = told.one()
		require.NoError(t, answer.Err)
		assert.Equal(t, toPEM(long), answer.Bundle.PEM())
		assert.Len(t, answer.LeftOut, 2)

		time.Sleep(time.Until(began.Add(time.Hour)))
		answer = told.one()
		require.ErrorContains(t, answer.Err, "read trust anchors: file "+path+": all 3 have expired")
		assert.True(t, answer.Bundle.Empty())
		assert.Len(t, answer.LeftOut, 3)
		require.Equal(t, 3, strings.Count(log.String(), "expired trust anchor left out"), "each once:\n%s", log)

		fresh := valid(t, "fresh", 24*time.Hour)
		write(t, path, toPEM(fresh, gone))
		assert.Len(t, told.one().LeftOut, 1)
		write(t, path, toPEM(fresh, soon))
		answer = told.one()
		require.NoError(t, answer.Err, "the same bundle, but something else is left out")
		assert.Contains(t, answer.LeftOut[0], "CN=soon")

		write(t, path, toPEM(valid(t, "new", 24*time.Hour)))
		answer = told.one()
		require.NoError(t, answer.Err)
		assert.Empty(t, answer.LeftOut)
	})
}

// A root is published before it is used, so also before it is valid.
func TestSourceKeepsWhatIsNotValidYet(t *testing.T) {
	later := newRoot(t, "later", func(c *x509.Certificate) { c.NotBefore, c.NotAfter = epoch.Add(time.Hour), epoch.Add(2*time.Hour) })
	bundle, err := NewBundle(later)
	require.NoError(t, err)
	answer := unexpired("source", bundle, epoch)
	require.NoError(t, answer.Err)
	assert.Equal(t, bundle.PEM(), answer.Bundle.PEM())
	assert.Empty(t, answer.LeftOut)
}
