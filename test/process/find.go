package process

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

// Find returns the path of a program that make bin builds: what the environment variable says, else
// bin/name in the repository. One that isn't there is an error that says how to build it.
func Find(name, variable string) (string, error) {
	path := os.Getenv(variable)
	if path == "" {
		root, err := Root()
		if err != nil {
			return "", fmt.Errorf("find bin/%s (or set %s): %w", name, variable, err)
		}
		path = filepath.Join(root, "bin", name)
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: run make bin, or point %s to the program", err, variable)
	}
	return filepath.Abs(path)
}

// Root walks up to the directory of the repository, from this source file, or, where it was compiled
// elsewhere or with -trimpath, from the working directory.
func Root() (string, error) {
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
