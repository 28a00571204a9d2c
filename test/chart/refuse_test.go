package chart

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// good is a file of values that is accepted.
const good = `
config:
  issuer: {name: istio-ca}
  roots: {secret: {name: mesh-roots}}
`

// TestRefuses: values that contradict themselves are refused, and what to write is said.
func TestRefuses(t *testing.T) {
	for _, row := range []struct {
		name, values string
		want         string
	}{
		{"no issuer", "config: {issuer: null}", "config.issuer.name isn't set: write the name of the cert-manager issuer"},
		{"no source of roots", "config: {roots: {secret: null}}", "config.roots names no source of trust anchors: write config.roots.secret or config.roots.configMap"},
		{"another namespace", "config: {namespace: mesh}", `config.namespace is "mesh", but the release is installed in "istio-system": write config.namespace: istio-system, or install into mesh`},
		{"another Service", "config: {serving: {service: ca}}", `config.serving.service is "ca", but the Service is called "signet": write config.serving.service: signet`},
		{"another name", "fullnameOverride: ca", `config.serving.service is "signet", but the Service is called "ca": write config.serving.service: ca`},
		{"one name for all replicas", "config: {replica: a}", "config.replica is set: leave it out"},
		{"port by name", "config: {ca: {listen: ':https'}}", `config.ca.listen is ":https", which has no number of a port`},
		{"any port", "config: {health: {listen: ':0'}}", `config.health.listen is ":0", which has no number of a port that a Service could lead to: write one such as :6443`},
		{"loopback", "config: {api: {listen: '127.0.0.1:8443'}}", `config.api.listen is "127.0.0.1:8443", which can't be reached from outside of the pod: write :8443`},
		{"loopback of IPv6", "config: {metrics: {listen: '[::1]:9402'}}", `config.metrics.listen is "[::1]:9402", which can't be reached`},
		{"the same port twice", "config: {bundleEndpoint: {listen: ':6443'}}", "config.bundleEndpoint.listen and config.ca.listen have the same port, 6443"},
		{"a file that isn't there", "config: {roots: {file: /etc/signet/roots/a.pem}}", `config.roots.file is "/etc/signet/roots/a.pem", which isn't in the pod: add an entry to files with path: roots/a.pem`},
		{"a file elsewhere", "config: {crl: {file: /crl/a.pem}}", `config.crl.file is "/crl/a.pem", which isn't in the pod: write a path below /etc/signet and add an entry to files, or mount it`},
		{"a file beside a mount", "config: {crl: {file: /crls/a.pem}}\nextraVolumeMounts: [{name: a, mountPath: /crl}]", `config.crl.file is "/crls/a.pem", which isn't in the pod`},
		{"a mount inside the volume", "extraVolumeMounts: [{name: a, mountPath: /etc/signet/crl}]\nextraVolumes: [{name: a, emptyDir: {}}]", "extraVolumeMounts: /etc/signet/crl is inside the volume of /etc/signet, which is read-only, so the container wouldn't start: add an entry to files, or mount it elsewhere"},
		{"federation's file", "config: {roots: {federated: [{trustDomain: a.example, endpointURL: 'https://a.example', caFile: /x}]}}", `config.roots.federated[0].caFile is "/x", which isn't in the pod`},
		{"an OIDC issuer's file", "config: {ca: {oidc: [{issuer: 'https://a.example', audiences: [a], match: {sub: '{a}'}, namespace: a, serviceAccount: '{a}', caFile: /x}]}}", `config.ca.oidc[0].caFile is "/x", which isn't in the pod`},
		{"the endpoint's files", "config: {bundleEndpoint: {listen: ':8444', certFile: /x, keyFile: /y}}", `config.bundleEndpoint.keyFile is "/y", which isn't in the pod`},
		{"a file of nothing", "files: [{path: a}]", "files: a needs a secret or a configMap, one of the two"},
		{"a file of two things", "files: [{path: a, secret: {name: a, key: a}, configMap: {name: a, key: a}}]", "files: a needs a secret or a configMap, one of the two"},
		{"a file twice", "files: [{path: a, secret: {name: a, key: a}}, {path: a, configMap: {name: a, key: a}}]", "files: a is there twice"},
		{"the file itself", "files: [{path: signet.yaml, secret: {name: a, key: a}}]", "files: signet.yaml is there twice"},
		{"DSN of nobody", "ledger: {postgres: {secretName: a}}", "ledger.postgres.secretName is set, but config doesn't say where Signet finds the DSN: write config.ledger.postgres.dsnFile: /etc/signet/postgres/dsn"},
		{"DSN elsewhere", "ledger: {postgres: {secretName: a}}\nconfig: {ledger: {postgres: {dsnFile: /dsn}}}", `config.ledger.postgres.dsnFile is "/dsn", but ledger.postgres.secretName is mounted below /etc/signet`},
		{"DSN without its Secret", "config: {ledger: {postgres: {dsnFile: /etc/signet/postgres/dsn}}}", `config.ledger.postgres.dsnFile is "/etc/signet/postgres/dsn", which isn't in the pod`},
		{"DSN's variable without its Secret", "config: {ledger: {postgres: {dsnEnv: DSN}}}", `config.ledger.postgres.dsnEnv is "DSN", which isn't set in the pod: write ledger.postgres.secretName`},
		{"DSN twice", "ledger: {postgres: {secretName: a}}\nconfig: {ledger: {postgres: {dsnFile: /etc/signet/dsn}}}\nfiles: [{path: dsn, secret: {name: a, key: a}}]", "/etc/signet/dsn comes from files and from ledger.postgres"},
		{"audit in the image", "config: {audit: {output: /var/log/audit.jsonl}}", `config.audit.output is "/var/log/audit.jsonl", which can't be written because the container's file system is read-only: write stdout, a path below /var/lib/signet`},
		{"no time to leave", "terminationGracePeriodSeconds: 54", "terminationGracePeriodSeconds is 54, but config.shutdown takes 55 at most: write 55 or more, or leave it out"},
		{"no time for a long request", "terminationGracePeriodSeconds: 60\nconfig: {ca: {requestTimeout: 45s}}", "config.shutdown takes 75 at most"},
		{"no time for a long signature", "terminationGracePeriodSeconds: 60\nconfig: {signer: {timeout: 1m}}", "config.shutdown takes 95 at most"},
		{"no time for a long delay", "terminationGracePeriodSeconds: 60\nconfig: {shutdown: {delay: 0.5m}}", "config.shutdown takes 80 at most"},
		{"no time for a long drain", "terminationGracePeriodSeconds: 60\nconfig: {shutdown: {drain: 60001ms}}", "config.shutdown takes 86 at most"},
		{"two budgets", "podDisruptionBudget: {minAvailable: 0, maxUnavailable: 1}", "podDisruptionBudget has both minAvailable and maxUnavailable: leave one of them out"},
		{"scaling the wrong way", "autoscaling: {enabled: true, minReplicas: 7}", "autoscaling.minReplicas is 7, above maxReplicas, 6"},
		{"denied with a warning", "admissionPolicy: {actions: [Deny, Warn]}", "admissionPolicy.actions has both Deny and Warn, which the API server refuses: leave Warn out"},
		{"namespace of a ClusterIssuer", "admissionPolicy: {issuers: [{name: root, kind: ClusterIssuer, namespace: pki}]}", "admissionPolicy.issuers: ClusterIssuer root has the namespace pki, but is in none: leave namespace out, or write kind: Issuer"},
		{"namespace of a ClusterIssuer with its group", "admissionPolicy: {issuers: [{name: a}, {name: root, kind: ClusterIssuer, group: cert-manager.io, namespace: pki}]}", "admissionPolicy.issuers: ClusterIssuer root has the namespace pki"},
		{"node port of a cluster IP", "service: {nodePort: 30000}", "service.nodePort is set, but service.type ClusterIP has none: write service.type: NodePort or LoadBalancer"},
		{"networks of a cluster IP", "service: {loadBalancerSourceRanges: [192.0.2.0/24]}", "have no use with service.type ClusterIP"},
		{"alias without a name in the certificate", "service: {aliases: [{name: cert-manager-istio-csr, namespace: cert-manager}]}", "service.aliases: cert-manager-istio-csr.cert-manager.svc isn't a name of Signet's certificate, so agents would refuse it: add cert-manager-istio-csr.cert-manager.svc to config.serving.dnsNames"},
		{"alias of itself", "service: {aliases: [{name: signet, namespace: istio-system}]}", "service.aliases: signet in istio-system is the Service itself"},
		{"two monitors", "metrics: {serviceMonitor: {enabled: true}, podMonitor: {enabled: true}}", "metrics.serviceMonitor and metrics.podMonitor are both enabled"},
		{"monitor of nothing", "metrics: {service: {enabled: false}, serviceMonitor: {enabled: true}}", "metrics.serviceMonitor needs the Service"},
		{"no such alert", "metrics: {prometheusRule: {enabled: true, disabled: [SignetNoSuchThing]}}", "metrics.prometheusRule.disabled: there is no alert SignetNoSuchThing: the alerts are Signet"},
		// the schema
		{"unknown value", "replicaCount: 2", "additional properties 'replicaCount' not allowed"},
		{"unknown value below", "service: {prot: 443}", "additional properties 'prot' not allowed"},
		{"unknown setting", "config: {issuer: {nmae: a}}", "additional properties 'nmae' not allowed"},
		{"type", "replicas: two", "at '/replicas': got string, want integer"},
		{"enum", "spread: far", "at '/spread': value must be one of 'preferred', 'required', 'none'"},
		{"path out of the volume", "files: [{path: ../a, secret: {name: a, key: a}}]", "at '/files/0/path'"},
		{"action", "admissionPolicy: {actions: [Refuse]}", "at '/admissionPolicy/actions/0'"},
		{"empty namespace of an issuer", "admissionPolicy: {issuers: [{name: root, namespace: ''}]}", "at '/admissionPolicy/issuers/0/namespace'"},
		{"volume", "ledger: {volume: {type: hostPath}}", "at '/ledger/volume/type'"},
		{"digest", "image: {digest: sha256}", "at '/image/digest'"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := Render("istio-system", configOf(t, good, row.values))
			require.Error(t, err)
			assert.ErrorContains(t, err, row.want)
		})
	}
	_, err := Render("istio-system", configOf(t, good))
	require.NoError(t, err)
}

// TestRefusesAllAtOnce: whoever has made two mistakes is told of both.
func TestRefusesAllAtOnce(t *testing.T) {
	_, err := Render("mesh", configOf(t, good, "config: {issuer: null, replica: a}"))
	for _, want := range []string{"config.issuer.name", "config.namespace", "config.replica"} {
		assert.ErrorContains(t, err, want)
	}
}

// TestAccepts: what is near to what is refused.
func TestAccepts(t *testing.T) {
	for name, values := range map[string]string{
		"issuer at run time":      "config: {issuer: null, issuers: {runtime: {name: a}}}",
		"default namespace":       "config: {namespace: istio-system}",
		"another name":            "fullnameOverride: ca\nconfig: {serving: {service: ca}}",
		"addresses":               "config: {ca: {listen: '0.0.0.0:443'}, api: {listen: '[::]:8443'}}",
		"API off":                 "config: {api: {disabled: true, listen: ':6443'}}",
		"parts without settings":  "config: {ca: null, signer: {}, ledger: {postgres: null}}",
		"file in a mount":         "config: {crl: {file: /crl/a.pem}}\nextraVolumeMounts: [{name: a, mountPath: /crl/}]\nextraVolumes: [{name: a, emptyDir: {}}]",
		"file that is mounted":    "config: {crl: {file: /crl/a.pem}}\nextraVolumeMounts: [{name: a, mountPath: /crl/a.pem, subPath: a}]\nextraVolumes: [{name: a, emptyDir: {}}]",
		"DSN's variable":          "config: {ledger: {postgres: {dsnEnv: DSN}}}\nextraEnv: [{name: DSN, value: a}]",
		"audit on stdout":         "config: {audit: {output: stdout}}",
		"audit with the records":  "config: {audit: {output: /var/lib/signet/audit.jsonl}}",
		"time to leave":           "terminationGracePeriodSeconds: 55",
		"budget":                  "podDisruptionBudget: {minAvailable: 1}",
		"no budget":               "podDisruptionBudget: {enabled: false}",
		"alias":                   "service: {aliases: [{name: a, namespace: b}]}\nconfig: {serving: {dnsNames: [a.b.svc]}}",
		"pods are scraped":        "metrics: {service: {enabled: false}, podMonitor: {enabled: true}}",
		"issuer elsewhere":        "admissionPolicy: {issuers: [{name: root, namespace: pki}, {name: root, kind: ClusterIssuer}]}",
		"another's ClusterIssuer": "admissionPolicy: {issuers: [{name: root, kind: ClusterIssuer, group: issuers.example.com, namespace: pki}]}",
		"as part of another":      "global: {a: b}",
	} {
		_, err := Render("istio-system", configOf(t, good, values))
		assert.NoError(t, err, name)
	}
}
