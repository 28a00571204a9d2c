// Package web is the page of the inspection API, for people: which services of the mesh need somebody, and which
// certificates they hold. It is made of a few files of plain HTML, CSS and JavaScript modules, which are shown as they
// are written and need nothing from elsewhere. The page asks the API for the same JSON as everybody else, at ../v1/ of its
// own address, so that it works behind a proxy with a path of its own.
//
// What the cluster says is never markup: the page writes it as text only, and its Content-Security-Policy has the browser
// refuse anything else.
package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"
)

//go:embed page
var files embed.FS

// policy lets the page load and ask only its own server, and be put into no other page. It has no inline script or style,
// and no text can become markup (Trusted Types).
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// index is the document; the other files are below assets.
const index = "index.html"

// file is one that is served, as it is and compressed.
type file struct {
	kind         string // media type
	tag          string // strong, of the plain form
	plain, small []byte
}

// Handler serves the page at /ui/, and what it is made of below /ui/assets/VERSION/, where VERSION is a digest of it all:
// these never change and are kept by browsers, while the document is asked for each time. It has no state, and everybody
// may see it, because it says nothing of the cluster.
func Handler() http.Handler {
	served, version, err := load()
	if err != nil {
		panic(fmt.Sprintf("web: %v", err)) // they are compiled in, and a test loads them
	}
	return &handler{served, version}
}

type handler struct {
	files   map[string]*file // by name
	version string
}

// load reads the files. The document is told the version of the others.
func load() (map[string]*file, string, error) {
	below, err := fs.Sub(files, "page")
	if err != nil {
		return nil, "", err
	}
	entries, err := fs.ReadDir(below, ".") // sorted
	if err != nil {
		return nil, "", err
	}
	contents := make(map[string][]byte)
	all := sha256.New()
	for _, entry := range entries {
		text, err := fs.ReadFile(below, entry.Name())
		if err != nil {
			return nil, "", err
		}
		contents[entry.Name()] = text
		fmt.Fprintf(all, "%s %d\n%s", entry.Name(), len(text), text)
	}
	version := hex.EncodeToString(all.Sum(nil)[:8])
	contents[index] = bytes.ReplaceAll(contents[index], []byte("assets/VERSION/"), []byte("assets/"+version+"/"))
	served := make(map[string]*file)
	for name, text := range contents {
		kind, ok := kinds[path.Ext(name)]
		if !ok {
			return nil, "", fmt.Errorf("the media type of %s is not known", name)
		}
		var small bytes.Buffer
		packer, err := gzip.NewWriterLevel(&small, gzip.BestCompression)
		if err != nil {
			return nil, "", err
		}
		if _, err := packer.Write(text); err != nil {
			return nil, "", err
		}
		if err := packer.Close(); err != nil {
			return nil, "", err
		}
		digest := sha256.Sum256(text)
		served[name] = &file{kind: kind, tag: hex.EncodeToString(digest[:8]), plain: text, small: small.Bytes()}
	}
	return served, version, nil
}

// kinds are media types by ending: what the machine's own tables say of them may be wrong.
var kinds = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

// ServeHTTP answers GET and HEAD.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Security-Policy", policy)
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD are allowed here", http.StatusMethodNotAllowed)
		return
	}
	if r.URL.Path == "/ui" {
		// Relative, so that a proxy's path before it stays.
		header.Set("Location", "ui/")
		w.WriteHeader(http.StatusPermanentRedirect)
		return
	}
	name, cache := index, "no-cache"
	if rest, ok := strings.CutPrefix(r.URL.Path, "/ui/assets/"); ok {
		var version string
		version, name, _ = strings.Cut(rest, "/")
		// Another replica may have another version: what is here fits better than nothing, but not for long.
		if version == h.version {
			cache = "public, max-age=31536000, immutable"
		}
	} else if r.URL.Path != "/ui/" {
		name = ""
	}
	found := h.files[name]
	if found == nil || name == index && r.URL.Path != "/ui/" {
		http.NotFound(w, r)
		return
	}
	found.answer(w, r, cache)
}

func (f *file) answer(w http.ResponseWriter, r *http.Request, cache string) {
	header := w.Header()
	header.Set("Cache-Control", cache)
	header.Set("Vary", "Accept-Encoding")
	body, tag := f.plain, `"`+f.tag+`"`
	if acceptsGzip(r) && len(f.small) < len(f.plain) {
		body, tag = f.small, `"`+f.tag+`-gzip"`
		header.Set("Content-Encoding", "gzip")
	}
	header.Set("ETag", tag)
	for each := range strings.SplitSeq(r.Header.Get("If-None-Match"), ",") {
		if strings.TrimPrefix(strings.TrimSpace(each), "W/") == tag {
			header.Del("Content-Encoding")
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	header.Set("Content-Type", f.kind)
	_, _ = w.Write(body) // who left doesn't read it, and of a HEAD only the length is answered
}

// acceptsGzip is about what browsers send. Who refuses it with a weight of zero gets the plain form, as does who doesn't
// name it.
func acceptsGzip(r *http.Request) bool {
	for each := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		coding, weight, _ := strings.Cut(each, ";")
		if strings.EqualFold(strings.TrimSpace(coding), "gzip") {
			weight = strings.ReplaceAll(weight, " ", "")
			return weight == "" || strings.Trim(weight, "q=0.") != ""
		}
	}
	return false
}
