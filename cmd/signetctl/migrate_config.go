package main

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// fate is what becomes of a setting.
type fate string

const (
	todo    fate = "to do"               // somebody must do something, or decide
	changes fate = "what changes"        // it won't be as it was
	carried fate = "carried over"        // as it was
	dropped fate = "not needed any more" // Signet has no such thing, and needs none
	strange fate = "not known, left out" // istio-csr has no such setting
	same    fate = "the same by default" // nothing to write
	unset   fate = "not set"             // nor does it mean anything
)

// migrated is one setting of istio-csr and what becomes of it.
type migrated struct {
	name  string // as the user knows it: the path of a value, or a flag
	value string
	given bool   // it was set, to whatever
	to    string // path in Signet's values; may be empty
	fate  fate
	note  string
}

// migration turns an installation of istio-csr into values of Signet's chart.
type migration struct {
	csr      *istioCSR
	values   valuesTree
	settings []migrated
	problems []string
	mounted  []string // paths of volumes that are carried over
}

// migrate makes values of what istio-csr is told. The problems are what can't be carried over as it stands.
func migrate(c *istioCSR) (*migration, []string) {
	m := &migration{csr: c}
	m.names()
	m.issuer()
	m.roots()
	m.distribution()
	m.istiod()
	m.callers()
	m.signing()
	m.serving()
	m.endpoints()
	m.controller()
	m.aliases()
	m.workload()
	for _, name := range c.unknown {
		m.settings = append(m.settings, migrated{name: name, given: true, fate: strange, note: "istio-csr " + istioCSRVersion + " doesn't have it"})
	}
	return m, m.problems
}

// say adds one setting that is a flag, or a value that becomes one.
func (m *migration) say(flag string, fate fate, to, note string) {
	_, given := m.csr.given[flag]
	m.settings = append(m.settings, migrated{name: m.csr.where(flag), value: m.shown(flag), given: given, to: to, fate: fate, note: note})
}

// idle tells of a flag that has no effect where it stands; mostly it isn't set.
func (m *migration) idle(flag, note string) {
	if _, given := m.csr.given[flag]; given && m.shown(flag) != "" {
		m.say(flag, dropped, "", note)
		return
	}
	m.say(flag, unset, "", "")
}

// shown is a flag's value as a person writes it.
func (m *migration) shown(flag string) string {
	f := m.csr.flags.Lookup(flag)
	switch f.Value.Type() {
	case "duration":
		d, _ := m.csr.flags.GetDuration(flag)
		return shortly(d)
	case "stringSlice":
		return strings.Join(m.csr.list(flag), ",")
	case "stringToString":
		pairs := m.csr.pairs(flag)
		var all []string
		for _, name := range slices.Sorted(maps.Keys(pairs)) {
			all = append(all, name+"="+pairs[name])
		}
		return strings.Join(all, ",")
	}
	return f.Value.String()
}

// shortly writes a duration without parts that are zero.
func shortly(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// carry writes a value that means the same as the flag's. Ours is Signet's own default as people write it; a value that is
// that, and wasn't set, isn't written.
func (m *migration) carry(flag, to string, value any, ours, note string) {
	_, given := m.csr.given[flag]
	text := fmt.Sprint(value)
	if !given && text == ours {
		m.say(flag, same, to, note)
		return
	}
	comment := ""
	if ours != "" && text != ours {
		comment = "Signet's own default: " + ours
	}
	m.values.set(to, value, comment)
	m.say(flag, carried, to, note)
}

// refuse adds a problem with a flag's value.
func (m *migration) refuse(flag, format string, args ...any) {
	m.problems = append(m.problems, fmt.Sprintf("%s %q: ", m.csr.where(flag), m.shown(flag))+fmt.Sprintf(format, args...))
}

// between checks a duration.
func (m *migration) between(flag string, least, most time.Duration) time.Duration {
	d, _ := m.csr.flags.GetDuration(flag)
	if d < least || d > most {
		m.refuse(flag, "Signet takes %s to %s", shortly(least), shortly(most))
	}
	return d
}

const longestLifetime = 10 * 365 * 24 * time.Hour

func (m *migration) names() {
	trustDomain := m.csr.string("trust-domain")
	if _, err := spiffeid.TrustDomainFromString(strings.ReplaceAll(trustDomain, "@", ".")); err != nil || strings.Contains(trustDomain, "/") {
		m.refuse("trust-domain", "it is no trust domain, which is a lower-case name such as cluster.local")
	}
	m.carry("trust-domain", "config.trustDomain", trustDomain, "", "")
	m.carry("cluster-id", "config.clusterID", m.csr.string("cluster-id"), "", "callers that send another clusterid are refused; further names: config.ca.clusterAliases")
	namespace := m.csr.string("certificate-namespace")
	if len(validation.IsDNS1123Label(namespace)) != 0 {
		m.refuse("certificate-namespace", "it is no name of a namespace")
	}
	note := "Signet must be installed there"
	if namespace != m.csr.namespace {
		note += ", not in " + m.csr.namespace
	}
	m.carry("certificate-namespace", "config.namespace", namespace, "", note)
}

func (m *migration) issuer() {
	runtime := m.csr.string("runtime-issuance-config-map-name")
	kind, group := m.csr.string("issuer-kind"), m.csr.string("issuer-group")
	switch {
	case m.csr.bool("issuer-enabled"):
		if m.csr.string("issuer-name") == "" {
			m.refuse("issuer-name", "it must be the name of an issuer")
		}
		if group == "cert-manager.io" && kind != "Issuer" && kind != "ClusterIssuer" {
			m.refuse("issuer-kind", "of cert-manager.io there are Issuer and ClusterIssuer")
		}
		m.carry("issuer-name", "config.issuer.name", m.csr.string("issuer-name"), "", "")
		m.carry("issuer-kind", "config.issuer.kind", kind, "Issuer", "")
		m.carry("issuer-group", "config.issuer.group", group, "cert-manager.io", "")
		m.say("issuer-enabled", same, "", "config.issuer is set")
	case runtime == "":
		m.refuse("issuer-enabled", "without an issuer and without a runtime ConfigMap nothing can sign; istio-csr doesn't start so either")
	default:
		m.say("issuer-enabled", carried, "", "config.issuer isn't set; until the ConfigMap is there, nothing is signed")
		for _, flag := range []string{"issuer-name", "issuer-kind", "issuer-group"} {
			m.say(flag, dropped, "", "the static issuer isn't used")
		}
	}
	if runtime == "" {
		m.idle("runtime-issuance-config-map-name", "")
		m.idle("runtime-issuance-config-map-namespace", "there is no runtime ConfigMap")
		return
	}
	if len(validation.IsDNS1123Subdomain(runtime)) != 0 {
		m.refuse("runtime-issuance-config-map-name", "it is no name of a ConfigMap")
	}
	namespace, own := m.csr.string("runtime-issuance-config-map-namespace"), m.csr.string("certificate-namespace")
	m.carry("runtime-issuance-config-map-name", "config.issuers.runtime.name", runtime, "", "the keys are the same")
	if create, _ := lookUp(m.csr.values, "app.runtimeConfiguration.create"); create == true {
		// It goes with istio-csr's release, which made it.
		m.idle("runtime-issuance-config-map-namespace", "that ConfigMap goes with istio-csr's release")
		m.settings = append(m.settings, migrated{
			name: "app.runtimeConfiguration.create", value: "true", given: true, fate: todo, to: "config.issuers.runtime",
			note: fmt.Sprintf("the ConfigMap is part of istio-csr's release and goes with it; make Signet's own: kubectl create configmap %s -n %s --from-literal=issuer-name=%s --from-literal=issuer-kind=%s --from-literal=issuer-group=%s",
				runtime, own, m.csr.textOr("app.runtimeConfiguration.issuer.name", "istio-ca"), m.csr.textOr("app.runtimeConfiguration.issuer.kind", "Issuer"), m.csr.textOr("app.runtimeConfiguration.issuer.group", "cert-manager.io")),
		})
		return
	}
	if namespace == "" {
		namespace = m.csr.namespace
	}
	if len(validation.IsDNS1123Label(namespace)) != 0 {
		m.refuse("runtime-issuance-config-map-namespace", "it is no name of a namespace")
	}
	m.carry("runtime-issuance-config-map-namespace", "config.issuers.runtime.namespace", namespace, own, "Signet is given the right to read that ConfigMap")
}

func (m *migration) roots() {
	file := m.csr.string("root-ca-file")
	mounts, _ := m.csr.values["volumeMounts"].([]any)
	for _, mount := range mounts {
		fields, _ := mount.(map[string]any)
		if at, ok := fields["mountPath"].(string); ok {
			m.mounted = append(m.mounted, strings.TrimRight(at, "/"))
		}
	}
	if file == "" {
		m.values.set("config.roots.fromIssuer", true, "trusts what the issuer says first; better: docs/migrate.md, Pin the root")
		m.say("root-ca-file", todo, "config.roots.fromIssuer", "no root is pinned: Signet trusts the self-signed CA that the issuer names in its first answer, and whoever "+
			"controls the issuer then controls the mesh. That works only where that CA is self-signed. Pin it instead, by config.roots.configMap, secret or file: docs/migrate.md, Pin the root")
		return
	}
	m.carry("root-ca-file", "config.roots.file", file, "", "read again when it changes; a new root is distributed before anything is signed under it")
	if !slices.ContainsFunc(m.mounted, func(at string) bool { return file == at || strings.HasPrefix(file, at+"/") }) {
		m.say("root-ca-file", todo, "config.roots.file", "no volumeMount holds that file; mount it, or name the Secret or ConfigMap instead: config.roots.secret, config.roots.configMap")
	}
}

func (m *migration) distribution() {
	selector := m.csr.string("configmap-namespace-selector")
	if _, err := labels.Parse(selector); err != nil {
		m.refuse("configmap-namespace-selector", `it is no label selector such as "mesh=on"`)
	}
	m.carry("configmap-namespace-selector", "config.distribution.namespaceSelector", selector, "", "")
	if selector == "" {
		m.values.drop("config.distribution.namespaceSelector")
		m.settings[len(m.settings)-1].fate = same
	}
	m.values.set("config.distribution.excludeNamespaces", []any{}, "Signet's own default: kube-public, kube-node-lease, local-path-storage")
	m.values.set("config.distribution.clusterTrustBundle", "off", "Signet's own default: auto; istio-csr writes none")
	m.add(changes, "ConfigMap istio-ca-root-cert", "", "", "written by server-side apply, with rights to this one name; istio-csr may write every ConfigMap of the cluster. "+
		"Two that write it are one too many: docs/migrate.md says when to turn off which")
}

// add tells of something that is no setting.
func (m *migration) add(fate fate, name, value, to, note string) {
	m.settings = append(m.settings, migrated{name: name, value: value, given: true, to: to, fate: fate, note: note})
}

func (m *migration) istiod() {
	flags := []string{
		"istiod-cert-name", "istiod-cert-namespace", "istiod-cert-duration", "istiod-cert-renew-before", "istiod-cert-key-algorithm", "istiod-cert-key-size",
		"istiod-cert-additional-dns-names", "istiod-cert-additional-annotations", "istiod-cert-istio-revisions",
	}
	const enabled = "istiod-cert-enabled"
	name := "--istiod-cert-enabled"
	if m.csr.fromValues && m.csr.given[enabled] == "" {
		name = "app.tls.istiodCertificateEnable"
	}
	on := m.csr.istiodCert == "true" || m.csr.bool(enabled)
	namespace, own := m.csr.string("istiod-cert-namespace"), m.csr.string("certificate-namespace")
	_, given := lookUp(m.csr.values, name)
	row := migrated{name: name, value: m.csr.istiodCert, given: given || m.csr.given[enabled] != "", to: "config.istiod.enabled"}
	switch {
	case !on && m.csr.istiodCert == "unknown":
		row.value, row.fate, row.note = "false", todo, fmt.Sprintf("the command line doesn't tell whether istio-csr's chart made istiod's certificate. If it did (kubectl get certificate istiod -n %s), "+
			"that goes with the release: give the values too (helm get values), or set config.istiod: {enabled: true, name: istiod}", namespace)
	case !on:
		row.fate, row.to, row.note = same, "", "Secret istiod-tls stays with whoever makes it"
	case namespace != own && m.csr.string("issuer-kind") == "Issuer" && m.csr.string("issuer-group") == "cert-manager.io":
		on = false
		row.fate, row.note = todo, fmt.Sprintf("left out: istiod is in %s, and an Issuer signs in its own namespace only, %s; use a ClusterIssuer, or make the certificate yourself", namespace, own)
	case m.csr.istiodCert == "dynamic" || m.csr.bool(enabled):
		row.fate, row.note = carried, "the same Certificate and Secret; Signet also finds revisions and tags in the cluster"
	default:
		row.fate, row.note = carried, "the Certificate of istio-csr's chart goes with its release, its Secret istiod-tls stays; Signet makes the Certificate anew under the same name"
	}
	m.settings = append(m.settings, row)
	if !on {
		for _, flag := range flags {
			m.idle(flag, "config.istiod isn't enabled")
		}
		return
	}
	m.values.set("config.istiod.enabled", true, "")
	certificate := m.csr.string("istiod-cert-name")
	if len(validation.IsDNS1123Subdomain(certificate)) != 0 {
		m.refuse("istiod-cert-name", "it is no name of a Certificate")
	}
	if len(validation.IsDNS1123Label(namespace)) != 0 {
		m.refuse("istiod-cert-namespace", "it is no name of a namespace")
	}
	m.carry("istiod-cert-name", "config.istiod.name", certificate, "istiod-dynamic", "")
	m.carry("istiod-cert-namespace", "config.istiod.namespace", namespace, "istio-system", "")
	lifetime := m.between("istiod-cert-duration", time.Hour, longestLifetime)
	m.carry("istiod-cert-duration", "config.istiod.lifetime", shortly(lifetime), "24h", "")
	const renewal, renewBefore = "istiod-cert-renew-before", "config.istiod.renewBefore"
	switch before, _ := m.csr.flags.GetDuration(renewal); {
	case before >= lifetime:
		m.refuse(renewal, "it must be below the certificate's %s", shortly(lifetime))
	case before < lifetime/5:
		m.say(renewal, changes, renewBefore, fmt.Sprintf("left out, since a renewal that late leaves little time to notice that it fails: Signet's own default is "+
			"a third of lifetime, here %s", shortly((lifetime/3).Truncate(time.Second))))
	default:
		m.carry(renewal, renewBefore, shortly(before), "a third of lifetime", "")
	}
	m.key("istiod-cert-key-algorithm", "istiod-cert-key-size", "config.istiod.key", "RSA-2048")
	m.dnsNames("istiod-cert-additional-dns-names", "config.istiod.dnsNames")
	m.annotations("istiod-cert-additional-annotations", "config.istiod.annotations", "on istiod's Certificate")
	var revisions []any
	for _, revision := range m.csr.list("istiod-cert-istio-revisions") {
		if len(validation.IsDNS1123Label("istiod-"+revision)) != 0 {
			m.refuse("istiod-cert-istio-revisions", "%q is no revision", revision)
		}
		revisions = append(revisions, revision)
	}
	if len(revisions) == 0 {
		m.idle("istiod-cert-istio-revisions", "")
	} else {
		m.carry("istiod-cert-istio-revisions", "config.istiod.revisions", revisions, "[default]", "further ones are found in the cluster")
	}
	m.add(changes, "istiod's certificate", "", "config.istiod", "it has DNS names only, no common name and no SPIFFE ID, so that it can't pass for a client's; "+
		"approvers and issuers that want a common name must be told")
}

// key carries over a kind of key. Signet has fewer sizes.
func (m *migration) key(algorithm, size, to, ours string) {
	kind := m.csr.string(algorithm)
	bits, _ := strconv.Atoi(m.csr.string(size))
	key, note := "", ""
	switch {
	case kind == "RSA" && bits <= 2048:
		key = "RSA-2048"
	case kind == "RSA" && bits <= 3072:
		key = "RSA-3072"
	case kind == "RSA":
		key = "RSA-4096"
	case kind == "ECDSA" && bits == 384:
		key = "ECDSA-P384"
	case kind == "ECDSA":
		key = "ECDSA-P256"
	default:
		m.refuse(algorithm, "it must be RSA or ECDSA")
		return
	}
	if exact := map[string]int{"RSA-2048": 2048, "RSA-3072": 3072, "RSA-4096": 4096, "ECDSA-P256": 256, "ECDSA-P384": 384}[key]; exact != bits {
		note = fmt.Sprintf("there is no %s of %d bits here", kind, bits)
		m.say(size, changes, to, note+": "+key)
	} else {
		m.say(size, carried, to, "part of "+key)
	}
	m.carry(algorithm, to, key, ours, "")
	m.settings[len(m.settings)-1].fate = carried
	m.values.set(to, key, map[bool]string{false: "Signet's own default: " + ours}[key == ours])
}

// dnsNames carries over those that are DNS names, and of addresses what can be.
func (m *migration) dnsNames(flag, to string) {
	var names, rest []any
	for _, name := range m.csr.list(flag) {
		if len(validation.IsDNS1123Subdomain(name)) != 0 {
			rest = append(rest, name)
		} else if !slices.Contains(names, any(name)) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		m.carry(flag, to, names, "", "")
	} else {
		m.idle(flag, "there is none among them")
	}
	if len(rest) > 0 {
		m.say(flag, todo, to, fmt.Sprintf("left out, since they are no DNS names: %v; who connects by them must be moved first", rest))
	}
}

func (m *migration) callers() {
	longest := m.between("max-client-certificate-duration", time.Second, longestLifetime)
	m.carry("max-client-certificate-duration", "config.ca.lifetime.max", shortly(longest), "24h", "")
	if longest >= time.Minute {
		m.add(changes, "shortest lifetime", "", "config.ca.lifetime.min", "whoever asks for less than 1m is refused; istio-csr has no floor")
	}
	if m.csr.bool("enable-client-cert-authenticator") {
		m.carry("enable-client-cert-authenticator", "config.ca.certificates.enabled", true, "", "")
		m.say("enable-client-cert-authenticator", todo, "config.ca.certificates", "Signet accepts only certificates that it issued itself: each such caller, often a virtual machine, must come with a token once. "+
			"What Signet has issued must outlast its pods (docs/callers.md), therefore ledger.volume.type is claim")
		m.values.set("ledger.volume.type", "claim", "Signet's own default: emptyDir")
	} else {
		m.carry("enable-client-cert-authenticator", "config.ca.certificates.enabled", false, "false", "")
	}
	var accounts []any
	for _, account := range m.csr.list("ca-trusted-node-accounts") {
		namespace, name, _ := strings.Cut(account, "/")
		if len(validation.IsDNS1123Label(namespace)) != 0 || len(validation.IsDNS1123Subdomain(name)) != 0 {
			m.refuse("ca-trusted-node-accounts", "%q is not NAMESPACE/NAME", account)
		}
		accounts = append(accounts, account)
	}
	if len(accounts) > 0 {
		m.carry("ca-trusted-node-accounts", "config.ca.nodes.accounts", accounts, "", "for pods on the caller's own node only")
	} else {
		m.say("ca-trusted-node-accounts", same, "config.ca.nodes.accounts", "nobody")
	}
	if len(m.csr.audiences) > 0 {
		audiences := make([]any, 0, len(m.csr.audiences))
		for _, audience := range m.csr.audiences {
			audiences = append(audiences, audience)
		}
		m.values.set("config.ca.token.audiences", audiences, "Signet's own default: istio-ca")
		m.add(carried, "env TOKEN_AUDIENCES", strings.Join(m.csr.audiences, ","), "config.ca.token.audiences", "")
	}
	for _, field := range m.csr.further {
		m.add(todo, field, "", "", "istio-csr's chart has no such thing, and nothing is made of it; see whether Signet needs it")
	}
	for _, name := range m.csr.env {
		m.add(todo, "env "+name, "", "", "istio-csr has no environment variables of its own; see whether Signet needs what it is for (extraEnv)")
	}
}

func (m *migration) signing() {
	m.values.set("config.signer.usages", []any{"client auth", "server auth"}, "what istio-csr asks for; Signet's own default adds digital signature and key encipherment, as istiod's CA has them")
	m.add(carried, "usages of CertificateRequests", "client auth,server auth", "config.signer.usages",
		"so that approvers' policies go on fitting; leave it out once they allow digital signature and key encipherment too")
	namespace := m.csr.string("certificate-namespace")
	requester := "system:serviceaccount:" + namespace + ":signet"
	m.add(todo, "approvers", "", "", fmt.Sprintf("where approver-policy or another approver decides: CertificateRequests come from %s, and their names begin with signet-, not istio-csr-. "+
		"Let that user use the same CertificateRequestPolicy (a RoleBinding) before it asks, and add to its dnsNames those of Signet's own certificate, "+
		"signet.%[2]s, signet.%[2]s.svc and signet.%[2]s.svc.cluster.local (config.serving.clusterDomain), without which no replica gets ready", requester, namespace))
	if m.csr.bool("preserve-certificate-requests") {
		m.say("preserve-certificate-requests", todo, "", "there is no such setting: finished requests are deleted after config.signer.sweep.keep, 10m at most. What was issued is in the ledger: signetctl issuances")
	} else {
		m.say("preserve-certificate-requests", same, "", "finished requests are deleted after 3s")
	}
	m.annotations("certificate-request-additional-annotations", "config.signer.annotations", "on each CertificateRequest; istio-csr lets them take the place of istio.cert-manager.io/identities, Signet doesn't")
}

// annotations carries a list of annotations over.
func (m *migration) annotations(flag, to, note string) {
	pairs := m.csr.pairs(flag)
	if len(pairs) == 0 {
		m.idle(flag, "")
		return
	}
	if problems := apivalidation.ValidateAnnotations(pairs, field.NewPath("annotations")); len(problems) > 0 {
		m.refuse(flag, "%s", problems[0].ErrorBody())
	}
	annotations := make(map[string]any, len(pairs))
	for name, value := range pairs {
		if name == "istio.cert-manager.io/identities" || strings.HasPrefix(name, "signet.dev/") {
			m.refuse(flag, "%s is one that Signet sets itself; leave it out", name)
		}
		annotations[name] = value
	}
	m.carry(flag, to, annotations, "", note)
}

func (m *migration) serving() {
	if len(m.csr.list("serving-certificate-dns-names")) == 0 {
		m.refuse("serving-certificate-dns-names", "there must be one; istio-csr doesn't start so either")
	}
	m.dnsNames("serving-certificate-dns-names", "config.serving.dnsNames")
	m.carry("serving-certificate-duration", "config.serving.lifetime", shortly(m.between("serving-certificate-duration", 10*time.Second, longestLifetime)), "24h", "")
	m.key("serving-signature-algorithm", "serving-certificate-key-size", "config.serving.key", "ECDSA-P256")
	const least = "serving-tls-min-version"
	switch version := m.csr.string(least); {
	case version == "":
		m.say(least, same, "", "TLS 1.2")
	case strings.HasSuffix(version, "13") || strings.HasSuffix(version, "1.3"):
		m.carry(least, "config.serving.minTLSVersion", "1.3", "1.2", "")
	default:
		m.say(least, dropped, "", "Signet speaks TLS 1.2 and 1.3")
	}
	if m.csr.string("serving-tls-cipher-suites") != "[]" {
		m.say("serving-tls-cipher-suites", changes, "", "of TLS 1.2 Signet offers ECDHE with AES-GCM or ChaCha20-Poly1305, no others, and there is no setting for it")
	} else {
		m.idle("serving-tls-cipher-suites", "")
	}
	if m.csr.string("serving-tls-curve-preferences") != "[]" {
		m.say("serving-tls-curve-preferences", changes, "", "Go's own order, with the post-quantum X25519MLKEM768 first; there is no setting for it")
	} else {
		m.idle("serving-tls-curve-preferences", "")
	}
}

// endpoints are the addresses, and what is written to the log.
func (m *migration) endpoints() {
	host, port, err := net.SplitHostPort(m.csr.string("serving-address"))
	if number, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || number == 0 {
		m.refuse("serving-address", "it is no address to listen on, such as 0.0.0.0:6443")
	}
	note := ""
	if host == "0.0.0.0" || host == "::" {
		host, note = "", "all addresses, IPv6 too"
	}
	if ip := net.ParseIP(host); ip.IsLoopback() || host == "localhost" {
		m.refuse("serving-address", "nobody outside of the pod reaches it; write 0.0.0.0 or leave it out")
	}
	m.carry("serving-address", "config.ca.listen", net.JoinHostPort(host, port), ":6443", note)
	metrics := m.port("metrics-port", "config.metrics.listen", ":9402")
	health := m.port("readiness-probe-port", "config.health.listen", ":6060")
	taken := []string{port, metrics, health}
	if port == metrics || port == health || metrics == health {
		m.problems = append(m.problems, fmt.Sprintf("ports %s: those of %s, %s and %s must differ",
			strings.Join(taken, ", "), m.csr.where("serving-address"), m.csr.where("metrics-port"), m.csr.where("readiness-probe-port")))
	}
	if slices.Contains(taken, "8443") {
		inspection := "8444"
		for slices.Contains(taken, inspection) {
			inspection = "1" + inspection
		}
		m.values.set("config.api.listen", ":"+inspection, "Signet's own default: :8443, which is taken")
		m.add(changes, "address of the inspection API", "", "config.api.listen", ":"+inspection+", since 8443 is taken; its Service has 8443 all the same")
	}
	if m.csr.string("readiness-probe-path") == "/readyz" {
		m.say("readiness-probe-path", same, "", "")
	} else {
		m.say("readiness-probe-path", changes, "", "it is /readyz; the chart's own probes know")
	}
	format := m.csr.string("log-format")
	if format != "text" && format != "json" {
		m.refuse("log-format", "it must be text or json")
	}
	m.carry("log-format", "config.log.format", format, "json", "other lines and other names of fields")
	level := "info"
	if number, _ := strconv.Atoi(m.csr.string("log-level")); number > 1 {
		level = "debug"
	}
	m.carry("log-level", "config.log.level", level, "info", "")
}

// port carries over a port as an address, and returns it.
func (m *migration) port(flag, to, ours string) string {
	number, _ := strconv.Atoi(m.csr.string(flag))
	if number < 1 || number > 65535 {
		m.refuse(flag, "it is no port")
	}
	m.carry(flag, to, fmt.Sprintf(":%d", number), ours, "")
	return strconv.Itoa(number)
}

// controller are settings of how istio-csr works inside.
func (m *migration) controller() {
	m.say("leader-election-namespace", dropped, "", "the lease is in Signet's own namespace; who doesn't hold it signs too")
	m.say("disable-kubernetes-client-rate-limiter", dropped, "", "there is no such limiter: API Priority and Fairness is the API server's own, and what Signet has under way at once is bounded (config.ca.admission)")
	m.say("max-concurrent-reconciles", dropped, "", "nothing waits for a reconciler")
	for _, f := range kubernetesFlags {
		if m.csr.given[f.name] != "" {
			note := "a pod finds its API server by itself"
			if f.name == "kubeconfig" {
				note += "; elsewhere Signet has --kubeconfig"
			}
			m.settings = append(m.settings, migrated{name: "--" + f.name, given: true, fate: dropped, note: note})
		}
	}
}
