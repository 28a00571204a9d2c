// Pilot-agent is Istio's own agent, unchanged: the process that runs beside every sidecar, gateway
// and waypoint and asks the certificate authority for its certificate.
//
// It is built from the module instead of taken from an image, so that tests run it as an ordinary
// process. Package meshclient of the test module starts it without Envoy and reads the certificates
// it writes. Build it without the race detector: the tests do not look for Istio's races, and the
// agent would need several times its memory.
package main

import (
	"os"

	meshconfig "istio.io/api/mesh/v1alpha1"
	"istio.io/istio/pilot/cmd/pilot-agent/app"
	istioagent "istio.io/istio/pkg/istio-agent"
	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/nodeagent/sds"
)

func main() {
	log.EnableKlogWithCobra()
	newSDS := func(opts *security.Options, secrets security.SecretManager, keys *meshconfig.PrivateKeyProvider) istioagent.SDSService {
		return sds.NewServer(opts, secrets, keys)
	}
	if err := app.NewRootCommand(newSDS).Execute(); err != nil {
		log.Error(err)
		os.Exit(1)
	}
}
