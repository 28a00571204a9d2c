package controlplane

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
)

// ports are those of 127.0.0.1 on which the parts of one plane listen. They are the plane's own until it closes them, also
// while a part is stopped or has not been started yet.
type ports struct {
	numbers  []int
	reserved []io.Closer
}

// reservePorts finds n ports that nobody has. They are below the range from which Linux takes the ports of outgoing
// connections, and above those of Istio.
func reservePorts(n int) (*ports, error) {
	const lowest, highest = 20000, 32000
	p := &ports{}
	var err error
	for range 100*n + 1 {
		if len(p.numbers) == n {
			return p, nil
		}
		port := lowest + rand.IntN(highest-lowest)
		var reserved io.Closer
		if reserved, err = reserve(port); err != nil {
			continue
		}
		p.numbers, p.reserved = append(p.numbers, port), append(p.reserved, reserved)
	}
	return nil, errors.Join(fmt.Errorf("find %d free ports: %w", n, err), p.close())
}

// close lets others have the ports. Calling it again does nothing.
func (p *ports) close() error {
	var errs []error
	for _, reserved := range p.reserved {
		errs = append(errs, reserved.Close())
	}
	p.reserved = nil
	return errors.Join(errs...)
}
