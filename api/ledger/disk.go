package ledger

import "sync/atomic"

// disk knows how much room is left. Safe for concurrent use.
type disk struct {
	dir     string
	reserve uint64
	ask     func(dir string) (uint64, error)

	known atomic.Bool
	left  atomic.Uint64
}

func newDisk(dir string, reserve uint64) *disk {
	return &disk{dir: dir, reserve: reserve, ask: freeBytes}
}

// look asks the filesystem.
func (d *disk) look() {
	left, err := d.ask(d.dir)
	d.known.Store(err == nil)
	d.left.Store(left)
}

// free is what was left when it was last looked, and whether that is known.
func (d *disk) free() (uint64, bool) { return d.left.Load(), d.known.Load() }

// low says that less than the reserve is left.
func (d *disk) low() bool {
	left, known := d.free()
	return known && left < d.reserve
}
