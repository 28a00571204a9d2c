package install

import (
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/signet-ca/signet/test/process"
)

// An image is what a container starts from: the program as the Dockerfile places it, and the libraries that this build of
// it links.
type image struct {
	dir        string   // its files
	entrypoint []string // of the Dockerfile
	uid, gid   int64    // likewise
}

var (
	entrypointLine = regexp.MustCompile(`(?m)^ENTRYPOINT (\[.*\])$`)
	userLine       = regexp.MustCompile(`(?m)^USER (\d+):(\d+)$`)
)

// openImage makes one in an empty directory.
func openImage(dir string) (*image, error) {
	root, err := process.Root()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		return nil, err
	}
	entrypoint, user := entrypointLine.FindSubmatch(text), userLine.FindSubmatch(text)
	if entrypoint == nil || user == nil {
		return nil, errors.New("the Dockerfile has no line ENTRYPOINT [...] or USER n:n")
	}
	i := &image{dir: dir}
	if err := json.Unmarshal(entrypoint[1], &i.entrypoint); err != nil {
		return nil, fmt.Errorf("read ENTRYPOINT of the Dockerfile: %w", err)
	}
	if i.uid, err = strconv.ParseInt(string(user[1]), 10, 32); err != nil {
		return nil, err
	}
	if i.gid, err = strconv.ParseInt(string(user[2]), 10, 32); err != nil {
		return nil, err
	}
	binary, err := process.Find("signet", "SIGNET_BIN")
	if err != nil {
		return nil, err
	}
	files, err := linked(binary)
	if err != nil {
		return nil, err
	}
	files[i.entrypoint[0]] = binary
	for at, from := range files {
		if err := copyFile(from, filepath.Join(dir, at)); err != nil {
			return nil, err
		}
	}
	return i, nil
}

// linked are the files that a program can't start without, none for one that is linked statically.
func linked(binary string) (map[string]string, error) {
	program, err := elf.Open(binary)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", binary, err)
	}
	defer program.Close()
	files := make(map[string]string)
	if program.Section(".interp") == nil {
		return files, nil
	}
	out, err := exec.Command("ldd", binary).Output()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w", binary, err)
	}
	for word := range strings.FieldsSeq(string(out)) {
		if filepath.IsAbs(word) {
			files[word] = word
		}
	}
	return files, nil
}

// unpack makes a container's root directory.
func (i *image) unpack(root string) error {
	return filepath.WalkDir(i.dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		within, err := filepath.Rel(i.dir, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return makeDir(filepath.Join(root, within), 0o755)
		}
		return os.Link(path, filepath.Join(root, within))
	})
}

func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(target, source); err != nil {
		target.Close()
		return err
	}
	return target.Close()
}

// makeDir makes a directory with those above it, for which everybody may do what mode says whatever the umask is.
func makeDir(path string, mode os.FileMode) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}
