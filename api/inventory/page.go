package inventory

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/signet-ca/signet/api"
)

// maxPage is how many items a page has at most.
const maxPage = 500

// limitOf is how many items a page may have.
func limitOf(p api.Page) int {
	if p.Limit <= 0 {
		return maxPage
	}
	return min(p.Limit, maxPage)
}

// filters are what a continue is bound to: the list and what selects its items. It says where the next page begins, by
// the last item of the one before, so that any replica can go on. It gives no right: what the caller may see is asked
// anew for each page.
type filters [sha256.Size]byte

// continueVersion changes with the meaning of a continue.
const continueVersion = 1

func filtersOf(values ...any) filters {
	text, err := json.Marshal(append(values, continueVersion))
	if err != nil {
		panic(fmt.Sprintf("inventory: filters %v: %v", values, err)) // only texts, numbers and times are passed
	}
	return sha256.Sum256(text)
}

// sumBytes is the length of the checksum before a continue's text.
const sumBytes = 12

func (f filters) sum(text []byte) []byte {
	sum := sha256.Sum256(append(f[:], text...))
	return sum[:sumBytes]
}

// seal makes a continue of a position.
func (f filters) seal(position ...any) string {
	text, err := json.Marshal(position)
	if err != nil {
		panic(fmt.Sprintf("inventory: position %v: %v", position, err)) // only texts and numbers are passed
	}
	return base64.RawURLEncoding.EncodeToString(append(f.sum(text), text...))
}

// open reads what seal made; "" leaves the position as it is. The error matches [api.ErrBadContinue].
func (f filters) open(text string, position ...any) error {
	if text == "" {
		return nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) < sumBytes || !bytes.Equal(raw[:sumBytes], f.sum(raw[sumBytes:])) {
		return api.ErrBadContinue
	}
	if err := json.Unmarshal(raw[sumBytes:], &position); err != nil {
		return api.ErrBadContinue
	}
	return nil
}

// sight is what a caller may see; each namespace is asked for once.
type sight struct {
	visible api.Visible
	all     bool
	known   map[string]bool
}

// visible is what v lets see; nothing where it is nil.
func visible(v api.Visible) *sight {
	if v == nil {
		return &sight{}
	}
	return &sight{visible: v, all: v.All(), known: make(map[string]bool)}
}

// see says whether the caller may see a namespace; "" stands for what belongs to none.
func (s *sight) see(namespace string) bool {
	if s.all {
		return true
	}
	if s.visible == nil || namespace == "" {
		return false
	}
	may, known := s.known[namespace]
	if !known {
		may = s.visible.Namespace(namespace)
		s.known[namespace] = may
	}
	return may
}
