package ledger

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
)

// token is what a continue or a cursor stands for. It is opaque to clients, bound to what was asked and
// to the database, and carries a sum that tells a broken one. It is no secret: what it lets one see, the
// filter decides.
type token struct {
	use      byte  // 'p' for a page, 'r' for refusals, 't' for a tail
	at       int64 // Unix s, the time that states are judged at
	snapshot int64 // records with a higher sequence came later
	recorded int64 // the last record told: when it was made,
	seq      int64 // and its sequence
}

const (
	tokenVersion = 1
	tokenBytes   = 1 + 1 + 4*8
	sumBytes     = 8
)

// encode writes t, bound to asked and the database's id.
func (t token) encode(id string, asked any) (string, error) {
	b := []byte{tokenVersion, t.use}
	for _, n := range []int64{t.at, t.snapshot, t.recorded, t.seq} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	sum, err := tokenSum(b, id, asked)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(append(b, sum...)), nil
}

// decodeToken reads what encode wrote for the same use, question and database, else ErrContinue.
func decodeToken(s string, use byte, id string, asked any) (token, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != tokenBytes+sumBytes || b[0] != tokenVersion {
		return token{}, fmt.Errorf("%w: it is not one of ours, or a part of it is missing; ask again without it", ErrContinue)
	}
	sum, err := tokenSum(b[:tokenBytes], id, asked)
	if err != nil {
		return token{}, err
	}
	if string(sum) != string(b[tokenBytes:]) || b[1] != use {
		return token{}, fmt.Errorf("%w: it belongs to another question or another ledger, or is damaged; ask again without it", ErrContinue)
	}
	n := func(i int) int64 { return int64(binary.BigEndian.Uint64(b[2+8*i:])) }
	return token{use: use, at: n(0), snapshot: n(1), recorded: n(2), seq: n(3)}, nil
}

func tokenSum(b []byte, id string, asked any) ([]byte, error) {
	question, err := json.Marshal(asked)
	if err != nil {
		return nil, fmt.Errorf("encode the question: %w", err)
	}
	h := sha256.New()
	h.Write(b)
	h.Write([]byte(id))
	h.Write(question)
	return h.Sum(nil)[:sumBytes], nil
}
