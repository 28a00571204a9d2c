package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// istioCSRVersion is the version of istio-csr whose settings are known here, all of them.
const istioCSRVersion = "v0.17.0"

// What istio-csr's chart calls its objects, and where its own documentation installs it.
const (
	istioCSRName      = "cert-manager-istio-csr"
	istioCSRNamespace = "cert-manager"
)

// flagKind is what the value of a flag is.
type flagKind string

const (
	flagText     flagKind = "text"
	flagBool     flagKind = "bool"
	flagNumber   flagKind = "number"
	flagDuration flagKind = "duration"
	flagList     flagKind = "list"  // separated by commas; the flag may stand several times
	flagPairs    flagKind = "pairs" // name=value, else as flagList
)

// csrFlag is one of istio-csr's flags.
type csrFlag struct {
	name, short string
	kind        flagKind
	fallback    string // its default
	value       string // where the chart's values have it; empty where they don't
}

// csrFlags are all that istio-csr has, but for those of [kubernetesFlags].
var csrFlags = []csrFlag{
	{name: "log-level", short: "v", kind: flagNumber, fallback: "1", value: "app.logLevel"},
	{name: "log-format", kind: flagText, fallback: "text", value: "app.logFormat"},
	{name: "readiness-probe-port", kind: flagNumber, fallback: "6060", value: "app.readinessProbe.port"},
	{name: "readiness-probe-path", kind: flagText, fallback: "/readyz", value: "app.readinessProbe.path"},
	{name: "metrics-port", kind: flagNumber, fallback: "9402", value: "app.metrics.port"},

	{name: "certificate-namespace", short: "c", kind: flagText, fallback: "istio-system", value: "app.certmanager.namespace"},
	{name: "issuer-enabled", short: "e", kind: flagBool, fallback: "true", value: "app.certmanager.issuer.enabled"},
	{name: "issuer-name", short: "u", kind: flagText, fallback: "istio-ca", value: "app.certmanager.issuer.name"},
	{name: "issuer-kind", short: "k", kind: flagText, fallback: "Issuer", value: "app.certmanager.issuer.kind"},
	{name: "issuer-group", short: "g", kind: flagText, fallback: "cert-manager.io", value: "app.certmanager.issuer.group"},
	{name: "preserve-certificate-requests", short: "d", kind: flagBool, fallback: "false", value: "app.certmanager.preserveCertificateRequests"},
	{name: "certificate-request-additional-annotations", kind: flagPairs, value: "app.certmanager.additionalAnnotations"},
	{name: "runtime-issuance-config-map-name", kind: flagText, value: "app.runtimeConfiguration.name"},
	{name: "runtime-issuance-config-map-namespace", kind: flagText},

	{name: "trust-domain", kind: flagText, fallback: "cluster.local", value: "app.tls.trustDomain"},
	{name: "root-ca-file", kind: flagText, value: "app.tls.rootCAFile"},
	{name: "serving-certificate-dns-names", kind: flagList, fallback: istioCSRName + "." + istioCSRNamespace + ".svc", value: "app.tls.certificateDNSNames"},
	{name: "serving-certificate-duration", short: "t", kind: flagDuration, fallback: "1h", value: "app.tls.certificateDuration"},
	{name: "serving-certificate-key-size", kind: flagNumber, fallback: "2048", value: "app.server.serving.certificateKeySize"},
	{name: "serving-signature-algorithm", kind: flagText, fallback: "RSA", value: "app.server.serving.signatureAlgorithm"},
	{name: "serving-tls-min-version", kind: flagText, value: "app.tls.servingTLSMinVersion"},
	{name: "serving-tls-cipher-suites", kind: flagList, value: "app.tls.servingTLSCipherSuites"},
	{name: "serving-tls-curve-preferences", kind: flagList, value: "app.tls.servingTLSCurvePreferences"},

	{name: "serving-address", short: "a", kind: flagText, fallback: "0.0.0.0:6443"}, // of two values
	{name: "max-client-certificate-duration", short: "m", kind: flagDuration, fallback: "1h", value: "app.server.maxCertificateDuration"},
	{name: "cluster-id", kind: flagText, fallback: "Kubernetes", value: "app.server.clusterID"},
	{name: "enable-client-cert-authenticator", kind: flagBool, fallback: "false", value: "app.server.authenticators.enableClientCert"},
	{name: "ca-trusted-node-accounts", kind: flagList, value: "app.server.caTrustedNodeAccounts"},

	{name: "leader-election-namespace", kind: flagText, fallback: "istio-system", value: "app.controller.leaderElectionNamespace"},
	{name: "configmap-namespace-selector", kind: flagText, value: "app.controller.configmapNamespaceSelector"},
	{name: "disable-kubernetes-client-rate-limiter", kind: flagBool, fallback: "false", value: "app.controller.disableKubernetesClientRateLimiter"},
	{name: "max-concurrent-reconciles", kind: flagNumber, fallback: "1", value: "app.controller.maxConcurrentReconciles"},

	{name: "istiod-cert-enabled", kind: flagBool, fallback: "false"}, // istiodCertificateEnable says more
	{name: "istiod-cert-name", kind: flagText, fallback: "istiod-dynamic"},
	{name: "istiod-cert-namespace", kind: flagText, fallback: "istio-system", value: "app.istio.namespace"},
	{name: "istiod-cert-duration", kind: flagDuration, fallback: "1h", value: "app.tls.istiodCertificateDuration"},
	{name: "istiod-cert-renew-before", kind: flagDuration, fallback: "30m", value: "app.tls.istiodCertificateRenewBefore"},
	{name: "istiod-cert-key-algorithm", kind: flagText, fallback: "RSA", value: "app.tls.istiodPrivateKeyAlgorithm"},
	{name: "istiod-cert-key-size", kind: flagNumber, fallback: "2048", value: "app.tls.istiodPrivateKeySize"},
	{name: "istiod-cert-additional-dns-names", kind: flagList, value: "app.tls.istiodAdditionalDNSNames"},
	{name: "istiod-cert-additional-annotations", kind: flagPairs},
	{name: "istiod-cert-istio-revisions", kind: flagList, fallback: "default", value: "app.istio.revisions"},
}

// kubernetesFlags are those that istio-csr has from kubectl's library: how it reaches the API server. In a pod none is needed.
var kubernetesFlags = []csrFlag{
	{name: "as", kind: flagText}, {name: "as-group", kind: flagList}, {name: "as-uid", kind: flagText},
	{name: "cache-dir", kind: flagText}, {name: "certificate-authority", kind: flagText},
	{name: "client-certificate", kind: flagText}, {name: "client-key", kind: flagText}, {name: "cluster", kind: flagText},
	{name: "context", kind: flagText}, {name: "disable-compression", kind: flagBool},
	{name: "insecure-skip-tls-verify", kind: flagBool}, {name: "kubeconfig", kind: flagText},
	{name: "namespace", short: "n", kind: flagText}, {name: "request-timeout", kind: flagText},
	{name: "server", short: "s", kind: flagText}, {name: "tls-server-name", kind: flagText},
	{name: "token", kind: flagText}, {name: "user", kind: flagText},
}

// valueKind is what a value of the chart is that becomes no flag.
type valueKind string

const (
	valueText   valueKind = "one value"
	valueBool   valueKind = "true or false"
	valueNumber valueKind = "a whole number"
	valueList   valueKind = "a list"
	valueMap    valueKind = "a map"
	valueAny    valueKind = ""
)

// chartValues are the values of istio-csr's chart that are no flags, and those that become one in a way of their own.
// Whatever is below one belongs to it.
var chartValues = map[string]valueKind{
	"global": valueAny, "nameOverride": valueText, "replicaCount": valueNumber, "imageRegistry": valueText, "imageNamespace": valueText,
	"image.registry": valueText, "image.repository": valueText, "image.name": valueText, "image.tag": valueText,
	"image.digest": valueText, "image.pullPolicy": valueText, "imagePullSecrets": valueList,
	"deploymentLabels": valueMap, "deploymentAnnotations": valueMap, "podLabels": valueMap, "podAnnotations": valueMap,
	"commonLabels": valueMap, "volumes": valueList, "volumeMounts": valueList, "resources": valueMap,
	"priorityClassName": valueText, "securityContext": valueMap, "affinity": valueMap, "tolerations": valueList,
	"topologySpreadConstraints": valueList, "nodeSelector": valueMap, "extraObjects": valueList,
	"podDisruptionBudget.enabled": valueBool, "podDisruptionBudget.minAvailable": valueText, "podDisruptionBudget.maxUnavailable": valueText,
	"service.type": valueText, "service.port": valueNumber, "service.nodePort": valueNumber,
	"app.metrics.service.enabled": valueBool, "app.metrics.service.type": valueText,
	"app.metrics.service.servicemonitor.enabled": valueBool, "app.metrics.service.servicemonitor.prometheusInstance": valueText,
	"app.metrics.service.servicemonitor.interval": valueText, "app.metrics.service.servicemonitor.scrapeTimeout": valueText,
	"app.metrics.service.servicemonitor.labels": valueMap,
	"app.runtimeIssuanceConfigMap":              valueText, "app.runtimeConfiguration.create": valueBool,
	"app.runtimeConfiguration.issuer.name": valueText, "app.runtimeConfiguration.issuer.kind": valueText,
	"app.runtimeConfiguration.issuer.group": valueText, "app.tls.istiodCertificateEnable": valueText,
	"app.server.serving.address": valueText, "app.server.serving.port": valueNumber,
}

// fits says whether a value is of a kind; null always is, and stands for none.
func (k valueKind) fits(value any) bool {
	switch value := value.(type) {
	case nil:
		return true
	case bool:
		return k == valueBool || k == valueText || k == valueAny
	case float64: // as a tag 1.10 is, without quotes
		return k == valueText || k == valueAny
	case int64:
		return k == valueNumber || k == valueText || k == valueAny
	case string:
		_, err := strconv.Atoi(value)
		return k == valueText || k == valueAny || k == valueNumber && err == nil
	case []any:
		return k == valueList || k == valueAny
	case map[string]any:
		return k == valueMap || k == valueAny
	}
	return k == valueAny
}

// knownValues are the paths of all values of istio-csr's chart.
func knownValues() []string {
	known := slices.Collect(maps.Keys(chartValues))
	for _, f := range csrFlags {
		if f.value != "" {
			known = append(known, f.value)
		}
	}
	return known
}

// newCSRFlags are istio-csr's flags with their defaults, as it parses them itself.
func newCSRFlags() *pflag.FlagSet {
	set := pflag.NewFlagSet("istio-csr", pflag.ContinueOnError)
	set.Usage = func() {}
	for _, f := range append(append([]csrFlag(nil), csrFlags...), kubernetesFlags...) {
		switch f.kind {
		case flagBool:
			set.BoolP(f.name, f.short, f.fallback == "true", "")
		case flagNumber:
			var number int
			_, _ = fmt.Sscan(f.fallback, &number) // of the table
			set.IntP(f.name, f.short, number, "")
		case flagDuration:
			duration, _ := time.ParseDuration(f.fallback) // of the table
			set.DurationP(f.name, f.short, duration, "")
		case flagList:
			set.StringSliceP(f.name, f.short, strings.FieldsFunc(f.fallback, func(r rune) bool { return r == ',' }), "")
		case flagPairs:
			set.StringToStringP(f.name, f.short, nil, "")
		default:
			set.StringP(f.name, f.short, f.fallback, "")
		}
	}
	return set
}
