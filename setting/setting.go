// Package setting holds what the settings of every package have in common: a duration that is
// written as in Kubernetes, and the list of problems that a configuration file has.
//
// Each package declares its own Config and checks it with Problems; a problem names the field by
// its path in the file (`ca.lifetime.max`) and says what would be right. Nothing here is safe for
// concurrent use; configuration is read once, at start.
package setting

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time written as Go writes it: "90s", "1h30m", "24h".
//
// The zero value means "not set". A text that is no duration is kept and reported by
// [Problems.Duration] together with its path, which a decoder doesn't know.
type Duration struct {
	value   time.Duration
	invalid string
}

// DurationOf is the setting for d.
func DurationOf(d time.Duration) Duration { return Duration{value: d} }

// Or is the duration that was set, or fallback where none was.
func (d Duration) Or(fallback time.Duration) time.Duration {
	if d.value == 0 {
		return fallback
	}
	return d.value
}

// UnmarshalJSON never fails: see [Duration].
func (d *Duration) UnmarshalJSON(data []byte) error {
	*d = Duration{}
	if string(data) == "null" || string(data) == `""` {
		return nil
	}
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		d.invalid = string(data)
		return nil
	}
	value, err := time.ParseDuration(text)
	if err != nil || value == 0 {
		d.invalid = fmt.Sprintf("%q", text)
		return nil
	}
	d.value = value
	return nil
}

// MarshalJSON writes the duration as UnmarshalJSON reads it; "" stands for one that isn't set.
func (d Duration) MarshalJSON() ([]byte, error) {
	if d.value == 0 {
		return []byte(`""`), nil
	}
	return json.Marshal(d.value.String())
}

// Problems collects what is wrong with a configuration, each with the path of its field.
type Problems struct {
	path  string
	found *[]error
}

// NewProblems starts an empty list at the top of the file.
func NewProblems() Problems { return Problems{found: new([]error)} }

// At is the same list, for fields below field.
func (p Problems) At(field string) Problems {
	return Problems{path: p.join(field), found: p.found}
}

// Addf adds a problem with field: what is wrong and what would be right.
func (p Problems) Addf(field, format string, args ...any) {
	*p.found = append(*p.found, fmt.Errorf("%s: %s", p.join(field), fmt.Sprintf(format, args...)))
}

// Duration checks that d, where it is set, is a duration between least and most.
func (p Problems) Duration(field string, d Duration, least, most time.Duration) {
	switch {
	case d.invalid != "":
		p.Addf(field, `%s is not a duration; write a number and a unit above zero, such as "30s" or "24h"`, d.invalid)
	case d.value != 0 && (d.value < least || d.value > most):
		p.Addf(field, "%s is out of range; it must be between %s and %s", d.value, least, most)
	}
}

// Count checks that n, where it is set (not 0), is between least and most.
func (p Problems) Count(field string, n, least, most int) {
	if n != 0 && (n < least || n > most) {
		p.Addf(field, "%d is out of range; it must be between %d and %d", n, least, most)
	}
}

// Address checks that address, where it is set, is one to listen on: a host, which may be empty, and a
// port.
func (p Problems) Address(field, address string) {
	if address == "" {
		return
	}
	_, port, err := net.SplitHostPort(address)
	if _, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil {
		p.Addf(field, "%q is not an address to listen on; it must be HOST:PORT or :PORT", address)
	}
}

// Err is all that was found, in the order of the checks, or nil.
func (p Problems) Err() error { return errors.Join(*p.found...) }

func (p Problems) join(field string) string {
	return strings.Trim(p.path+"."+field, ".")
}
