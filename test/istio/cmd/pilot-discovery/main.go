// Pilot-discovery is istiod, unchanged: the mesh's control plane, which takes its serving certificate
// and its roots from files.
//
// It is built from the module instead of taken from an image, so that tests run it as an ordinary
// process. Build it without the race detector, like pilot-agent.
package main

import (
	"os"

	"istio.io/istio/pilot/cmd/pilot-discovery/app"
	"istio.io/istio/pkg/log"
)

func main() {
	log.EnableKlogWithCobra()
	if err := app.NewRootCommand().Execute(); err != nil {
		log.Error(err)
		os.Exit(1)
	}
}
