// Package web looks at the page of the inspection API with a real browser, as its users do: what they read, what is said
// to a screen reader, how far the keyboard gets them, on a phone and in the dark. Behind it are a real API server, the
// real inventory and a real ledger; only the gateways are made up, and the names are as hostile as they can be.
//
// With SIGNET_SCREENSHOTS=DIR, pictures of each view are written into DIR.
package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/signet-ca/signet/test/controlplane"
)

// What all tests of the package share; none of them changes it but by adding an issuance.
var (
	plane   *controlplane.Plane
	shown   *world
	browser *chromium
)

// patience is how long a test waits for what must come; it only ever runs out when it doesn't.
const patience = 3 * time.Minute

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	ctrl.SetLogger(logr.FromSlogHandler(slog.DiscardHandler)) // or it asks for one
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Minute)
	defer cancel()
	failed := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	var err error
	if plane, err = controlplane.Start(ctx, controlplane.Config{WithoutCertManager: true}); err != nil {
		failed(err)
		return
	}
	defer func() {
		if err := plane.Stop(); err != nil {
			failed(err)
		}
	}()
	if shown, err = newWorld(ctx); err != nil {
		failed(err)
		return
	}
	defer func() {
		if err := shown.stop(); err != nil {
			failed(err)
		}
	}()
	if browser, err = newChromium(ctx, shown); err != nil {
		failed(fmt.Errorf("%w; test/web/install.sh installs a browser on Debian", err))
		return
	}
	defer func() {
		if err := browser.stop(); err != nil && !errors.Is(err, context.Canceled) {
			failed(err)
		}
	}()
	return m.Run()
}
