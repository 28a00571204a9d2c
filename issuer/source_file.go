package issuer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"
)

// NewFileSource is the source of the anchors in a PEM file. A change takes effect within seconds,
// whether the file is written in place or, as mounted ConfigMaps and Secrets are, exchanged with its
// directory. The file need not be there yet.
func NewFileSource(path string, log *slog.Logger) Source {
	return &textSource{text: &fileText{path: path, most: maxBundleBytes}, parse: ParseBundle, log: log}
}

// fileText is the text in a file.
type fileText struct {
	path string
	most int // bytes
}

func (f *fileText) String() string { return "file " + f.path }

// watch looks at the file's content and at nothing else, so it doesn't matter how it changes. What is
// found first counts at once. A change counts when two looks in a row find the same: a file that is
// being written is not taken for one that is finished.
func (f *fileText) watch(ctx context.Context, found func([]byte, error)) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	content, err := f.read()
	before, beforeErr := content, err
	for {
		found(content, err)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now, nowErr := f.read()
		if bytes.Equal(now, before) && sameError(nowErr, beforeErr) {
			content, err = now, nowErr
		}
		before, beforeErr = now, nowErr
	}
}

// read is the file's content, of which one byte too many is read at most.
func (f *fileText) read() ([]byte, error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // opening a pipe could take for ever
		return nil, fmt.Errorf("%s is not a regular file", f.path)
	}
	file, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // it was only read
	content, err := io.ReadAll(io.LimitReader(file, int64(f.most)+1))
	if err != nil {
		return nil, err
	}
	if len(content) > f.most {
		return nil, fmt.Errorf("%s has more than the %d bytes that are allowed", f.path, f.most)
	}
	return content, nil
}
