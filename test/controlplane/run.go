package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Run is what TestMain does where the tests of a package share one plane: it starts one, sets *plane, prepares it,
// runs the tests and stops the plane. Prepare may be nil. The result is the process's exit code; what went wrong
// besides the tests is on stderr.
//
//	func TestMain(m *testing.M) { os.Exit(controlplane.Run(m, controlplane.Config{}, &plane, prepare)) }
func Run(tests interface{ Run() int }, cfg Config, plane **Plane, prepare func(context.Context) error) int {
	ctx := context.Background()
	started, err := Start(ctx, cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	*plane = started
	if prepare != nil {
		err = prepare(ctx)
	}
	code := 1
	if err == nil {
		code = tests.Run()
	}
	if err = errors.Join(err, started.Stop()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}
