package controlplane

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// modulePath is the module at the root of the repository.
const modulePath = "github.com/signet-ca/signet"

// findBinary returns the path of the binary of test/kube: what SIGNET_KUBE says, else bin/kube in
// the repository.
func findBinary() (string, error) {
	path := os.Getenv("SIGNET_KUBE")
	if path == "" {
		root, err := repositoryRoot()
		if err != nil {
			return "", fmt.Errorf("find bin/kube (or set SIGNET_KUBE): %w", err)
		}
		path = filepath.Join(root, "bin", "kube")
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: run make bin, or point SIGNET_KUBE to the binary of test/kube", err)
	}
	return filepath.Abs(path)
}

// repositoryRoot walks up to the directory of the module, from this source file, or, where it was
// compiled elsewhere or with -trimpath, from the working directory.
func repositoryRoot() (string, error) {
	var starts []string
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		starts = append(starts, filepath.Dir(file))
	}
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	for _, dir := range starts {
		for ; ; dir = filepath.Dir(dir) {
			text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
			if err == nil && strings.HasPrefix(string(text), "module "+modulePath+"\n") {
				return dir, nil
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", fmt.Errorf("no module %s above %s", modulePath, strings.Join(starts, " or "))
}
