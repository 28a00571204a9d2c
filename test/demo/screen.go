package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// A screen is where the demo writes: lines one after the other, and on a terminal one block at the end
// that is drawn again in place. Safe for concurrent use.
type screen struct {
	begin  time.Time
	cancel context.CancelCauseFunc // called when nothing can be written any more
	file   *os.File                // out, where it is a terminal that can move its cursor; else nil

	mu    sync.Mutex // guards the following
	out   io.Writer
	drawn int // lines of the block that stand above the cursor
	width int // of the terminal when they were drawn
}

func newScreen(out io.Writer, cancel context.CancelCauseFunc) *screen {
	s := &screen{begin: time.Now(), cancel: cancel, out: out}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		s.file = f
	}
	return s
}

// size is that of the terminal in characters; ok is false where there is none.
func (s *screen) size() (width, height int, ok bool) {
	if s.file == nil {
		return 0, 0, false
	}
	width, height, err := term.GetSize(int(s.file.Fd()))
	return width, height, err == nil && width > 0 && height > 0
}

// progress writes one line with the time that has passed.
func (s *screen) progress(format string, args ...any) {
	s.print(fmt.Sprintf("%6.1fs  %s", time.Since(s.begin).Seconds(), fmt.Sprintf(format, args...)))
}

// print writes lines, below a block that was drawn.
func (s *screen) print(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drawn = 0
	s.write(text + "\n")
}

// draw writes a block in the place of the one before, if nothing was printed since. It reports whether
// there is a terminal large enough for that; otherwise nothing is written.
func (s *screen) draw(block string) bool {
	width, height, ok := s.size()
	lines := strings.Split(block, "\n")
	if !ok || len(lines) >= height {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var text strings.Builder
	// In a terminal of another width the block may have been broken into more lines: it stays.
	if s.drawn > 0 && s.width == width {
		fmt.Fprintf(&text, "\x1b[%dA", s.drawn) // up
	}
	text.WriteString("\r\x1b[J") // from the beginning of the line, clear to the end of the screen
	for _, line := range lines {
		// A line that is broken by the terminal would count twice on the way up.
		text.WriteString(clip(line, width) + "\n")
	}
	s.drawn, s.width = len(lines), width
	s.write(text.String())
	return true
}

// write is called with mu held.
func (s *screen) write(text string) {
	if _, err := io.WriteString(s.out, text); err != nil {
		s.cancel(fmt.Errorf("write output: %w", err))
	}
}

// clip shortens a line to a number of characters.
func clip(line string, width int) string {
	if utf8.RuneCountInString(line) <= width {
		return line
	}
	return string([]rune(line)[:width-1]) + "…"
}
