package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// A variable is one line of the file env.
type variable struct{ name, value string }

// variables say where everything is; all paths are absolute.
func (m *mesh) variables() []variable {
	return []variable{
		{"KUBECONFIG", m.plane.Kubeconfig()},
		{"SIGNET_CA", m.signet.CSR()},
		{"SIGNET_CA_ROOT", m.dir.join(rootName)},
		{"SIGNET_METRICS", m.signet.MetricsURL()},
		{"SIGNET_HEALTH", m.signet.HealthURL()},
		{"SIGNET_API", m.signet.APIURL()},
	}
}

// writeEnv writes the trust anchor and the file env, which appears only when it is whole.
func (m *mesh) writeEnv() error {
	if err := os.WriteFile(m.dir.join(rootName), m.rootPEM, 0o600); err != nil {
		return fmt.Errorf("write the trust anchor: %w", err)
	}
	path := m.dir.join(envName)
	if err := os.WriteFile(path+".new", []byte(envFile(m.variables())), 0o600); err != nil {
		return fmt.Errorf("write the variables: %w", err)
	}
	return os.Rename(path+".new", path)
}

// envFile is one assignment per line for a POSIX shell, and then the export of all.
func envFile(variables []variable) string {
	var text, names strings.Builder
	for _, v := range variables {
		fmt.Fprintf(&text, "%s=%s\n", v.name, quote(v.value))
		names.WriteString(" " + v.name)
	}
	return text.String() + "export" + names.String() + "\n"
}

// plain are the values that mean themselves in a shell.
var plain = regexp.MustCompile(`^[A-Za-z0-9_./:@%+,=-]+$`)

// quote writes value as one word of a POSIX shell; as it is where it can be, for readers that are none.
func quote(value string) string {
	if plain.MatchString(value) {
		return value
	}
	return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
}

// directions say where everything is and what to do with it.
func (m *mesh) directions() string {
	var text strings.Builder
	text.WriteString("\nThe addresses:\n")
	for _, v := range m.variables() {
		fmt.Fprintf(&text, "  %-15s %s\n", v.name, v.value)
	}
	fmt.Fprintf(&text, `
In another terminal:
  source %[1]s
  kubectl get certificaterequests -A -w
  kubectl create token default -n sandbox --audience istio-ca
  bin/signetctl services -A; bin/signetctl issuances -A --follow; bin/signetctl dashboard
  curl $SIGNET_HEALTH/readyz
  curl -s $SIGNET_METRICS | grep ^signet_
  openssl s_client -connect $SIGNET_CA -CAfile $SIGNET_CA_ROOT -verify_return_error -alpn h2 </dev/null
  grpcurl -cacert $SIGNET_CA_ROOT $SIGNET_CA list
  tail -f %[2]s

Namespace sandbox is yours. The API is Kubernetes' own, but no kubelet runs: Pods are only objects.
Without the variables it is kubectl --kubeconfig %[3]s get certificaterequests -A -w
`, quote(m.dir.join(envName)), quote(m.dir.join(signetName, "signet.log")), quote(m.plane.Kubeconfig()))
	return text.String()
}
