package main

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// tell adds one setting that is a value of the chart and no flag. It isn't told of where it isn't set.
func (m *migration) tell(path string, fate fate, to, note string) {
	value, ok := lookUp(m.csr.values, path)
	if !ok || value == nil {
		return
	}
	m.settings = append(m.settings, migrated{name: m.workloadName(path), value: inShort(value), given: true, to: to, fate: fate, note: note})
}

// podFields are where a Deployment has what the chart has as values.
var podFields = map[string]string{
	"podLabels": "spec.template.metadata.labels", "podAnnotations": "spec.template.metadata.annotations",
	"deploymentLabels": "metadata.labels", "deploymentAnnotations": "metadata.annotations", "replicaCount": "spec.replicas",
	"volumeMounts": "volumeMounts of the container", "resources": "resources of the container",
	"securityContext": "securityContext of the container", "image.repository": "image of the container", "image.pullPolicy": "imagePullPolicy of the container",
}

// workloadName is how the user knows a value of the chart.
func (m *migration) workloadName(path string) string {
	if m.csr.fromValues {
		return path
	}
	if field, ok := podFields[path]; ok {
		return field
	}
	return "spec.template.spec." + path
}

// inShort is a value in one line.
func inShort(value any) string {
	switch value := value.(type) {
	case map[string]any:
		return "{" + strings.Join(slices.Sorted(maps.Keys(value)), ", ") + "}"
	case []any:
		return fmt.Sprintf("%d of them", len(value))
	}
	text, _ := scalar(value)
	return text
}

// pass carries over a value of the chart as it is; an empty one means nothing.
func (m *migration) pass(path, to, note string) {
	value, ok := lookUp(m.csr.values, path)
	if !ok || isEmpty(value) {
		return
	}
	m.values.set(to, value, "")
	m.tell(path, carried, to, note)
}

// some is tell, where an empty value means nothing.
func (m *migration) some(path string, fate fate, to, note string) {
	if value, _ := lookUp(m.csr.values, path); !isEmpty(value) {
		m.tell(path, fate, to, note)
	}
}

// aliases has pods that were injected with istio-csr's name find Signet.
func (m *migration) aliases() {
	own := m.csr.name + "." + m.csr.namespace + ".svc"
	names := m.csr.list("serving-certificate-dns-names")
	const flag = "serving-certificate-dns-names"
	switch {
	case own == "signet."+m.csr.string("certificate-namespace")+".svc":
		m.add(todo, "Service "+m.csr.name, "", "", "istio-csr's Service has the name of Signet's: Signet can be installed only when istio-csr is gone, or under another name (fullnameOverride, config.serving.service)")
	case !slices.Contains(names, own):
		m.say(flag, todo, "service.aliases", fmt.Sprintf("istio-csr's own Service would be %s, which isn't among these names, so that none is taken over. "+
			"If running pods ask istio-csr by the name of a Service, add that to service.aliases; names that lead to it otherwise must be led to Signet", own))
	case len(validation.IsDNS1123Label(m.csr.namespace)) != 0 || len(validation.IsDNS1035Label(m.csr.name)) != 0:
		m.problems = append(m.problems, fmt.Sprintf("%s: it is no name of a Service", own))
	default:
		m.values.set("service.aliases", []any{map[string]any{"name": m.csr.name, "namespace": m.csr.namespace}},
			"Running pods keep the caAddress that they were injected with. Helm can make it once istio-csr's Service is gone.")
		m.add(carried, "Service "+m.csr.name+"."+m.csr.namespace, "", "service.aliases", "pods that ask by this name go on without a restart; while istio-csr has it, it must be left out (docs/migrate.md, Beside the old one)")
		for _, name := range names {
			if name != own && len(validation.IsDNS1123Subdomain(name)) == 0 {
				m.add(todo, m.csr.where(flag), name, "config.serving.dnsNames", "in Signet's certificate too, but who leads clients from this name to istio-csr must lead them to Signet")
			}
		}
	}
}

// guard lets istio-csr go on while it runs beside Signet, whose chart lets nobody else ask the mesh's issuers.
func (m *migration) guard() {
	user := "system:serviceaccount:" + m.csr.namespace + ":" + m.csr.account()
	if len(validation.IsDNS1123Label(m.csr.namespace)) != 0 || len(validation.IsDNS1123Subdomain(m.csr.account())) != 0 {
		m.problems = append(m.problems, fmt.Sprintf("%q: it is no ServiceAccount", user))
	}
	m.values.set("admissionPolicy.allowed.users", []any{user}, "while istio-csr runs beside Signet; take it out when istio-csr is gone")
	m.add(todo, "who else uses the issuer", "", "admissionPolicy", fmt.Sprintf("only Signet, cert-manager and those allowed may ask the mesh's issuers from now on. istio-csr (%s) is allowed: take it out at the end. "+
		"If others do too, such as Certificates of gateways, allow who makes them, or look first with admissionPolicy.actions: [Warn, Audit]", user))
	if m.csr.string("runtime-issuance-config-map-name") == "" {
		return
	}
	name := m.csr.text("app.runtimeConfiguration.issuer.name")
	if name == "" {
		m.add(todo, "issuers that the runtime ConfigMap can name", "", "admissionPolicy.issuers", "list them, so that nobody else may ask them")
		return
	}
	m.values.set("admissionPolicy.issuers", []any{map[string]any{
		"name":  name,
		"kind":  m.csr.textOr("app.runtimeConfiguration.issuer.kind", "Issuer"),
		"group": m.csr.textOr("app.runtimeConfiguration.issuer.group", "cert-manager.io"),
	}}, "")
	m.tell("app.runtimeConfiguration.issuer", carried, "admissionPolicy.issuers", "add every issuer that the ConfigMap may ever name")
}

func (m *migration) workload() {
	m.service()
	m.guard()
	m.replicas()
	m.image()
	m.labels()
	m.placement()
	m.container()
	m.metrics()
	m.some("extraObjects", todo, "extraObjects", "they are part of istio-csr's release and go with it; those that are still needed can be in Signet's extraObjects, without istio-csr's template functions")
	m.add(changes, "objects that istio-csr doesn't have", "", "", "NetworkPolicy (in: Signet's ports; out: what the configuration needs), PodDisruptionBudget, ValidatingAdmissionPolicy, "+
		"FlowSchemas; each can be turned off: networkPolicy, podDisruptionBudget, admissionPolicy, priorityAndFairness")
}

func (m *migration) service() {
	m.pass("service.type", "service.type", "")
	if port := m.csr.text("service.port"); port != "" {
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil || number == 0 {
			m.problems = append(m.problems, fmt.Sprintf("service.port %q: it is no port", port))
			return
		}
		m.values.set("service.port", number, "")
		m.tell("service.port", carried, "service.port", "")
		if number == 8443 {
			m.values.set("service.apiPort", 9443, "Signet's own default, 8443, is taken by service.port")
			m.add(changes, "port of the inspection API", "", "service.apiPort", "9443, since 8443 is taken; signetctl is told by --signet-port 9443")
		}
	}
	if !m.csr.fromValues {
		m.add(todo, "Service "+m.csr.name, "", "service.port", "its port and type are not told by a Deployment or flags; where running pods ask at another port than 443 (caAddress), set service.port to that")
	}
	m.tell("service.nodePort", todo, "service.nodePort", "left out while istio-csr has it; set it when istio-csr is gone")
	m.tell("nameOverride", dropped, "", "Signet's objects are named signet; fullnameOverride and config.serving.service would change that")
}

func (m *migration) replicas() {
	const path = "replicaCount"
	if text := m.csr.text(path); text != "" {
		number, err := strconv.Atoi(text)
		if err != nil || number < 0 || number > 1000 {
			m.problems = append(m.problems, fmt.Sprintf("%s %q: a number of replicas is expected", path, text))
			return
		}
		comment := ""
		if number != 2 {
			comment = "Signet's own default: 2"
		}
		m.values.set("replicas", number, comment)
		switch number {
		case 0:
			m.tell(path, todo, "replicas", "with none, nothing signs; Signet's own default is 2")
		case 1:
			m.tell(path, todo, "replicas", "with one, nobody gets a certificate while it restarts, is updated or its node is drained: pods that start wait, and so do renewals. "+
				"All replicas sign, so that with two, Signet's own default, one may be away")
		default:
			m.tell(path, carried, "replicas", "")
		}
	} else {
		m.settings = append(m.settings, migrated{name: m.workloadName(path), value: "1", to: "replicas", fate: changes, note: "2, Signet's own default: all sign, and one may be away"})
	}
	const budget = "podDisruptionBudget."
	if enabled, ok := lookUp(m.csr.values, budget+"enabled"); ok && enabled != nil {
		m.values.set(budget+"enabled", enabled, "")
		if enabled == true {
			m.tell(budget+"enabled", carried, budget+"enabled", "")
		} else {
			m.tell(budget+"enabled", todo, budget+"enabled", "without it, drains of nodes may take all replicas at once, and nobody gets a certificate until one is back; Signet's own default is true")
		}
	} else {
		m.settings = append(m.settings, migrated{name: budget + "enabled", value: "false", to: budget + "enabled", fate: changes, note: "true, Signet's own default"})
	}
	least, most := m.csr.text(budget+"minAvailable"), m.csr.text(budget+"maxUnavailable")
	switch {
	case least != "" && most != "":
		m.budget(budget+"maxUnavailable", most, "")
		m.tell(budget+"minAvailable", changes, "", "left out: a PodDisruptionBudget has one of minAvailable and maxUnavailable, and is refused with both")
	case least != "":
		m.budget(budget+"minAvailable", least, "without maxUnavailable: istio-csr's chart adds its default to it, which the API server refuses")
	case most != "":
		m.budget(budget+"maxUnavailable", most, "")
	}
}

// budget carries over a number or a percentage.
func (m *migration) budget(path, text, note string) {
	if number, err := strconv.Atoi(text); err == nil {
		m.values.set(path, number, "")
	} else {
		m.values.set(path, text, "")
	}
	m.tell(path, carried, path, note)
}

// csrImage are the defaults of istio-csr's chart.
var csrImage = map[string]string{"imageRegistry": "quay.io", "imageNamespace": "jetstack", "image.name": istioCSRName}

func (m *migration) image() {
	what, note := todo, "if you have a registry of your own, bring Signet's image there and set image.registry and image.repository"
	if !m.csr.fromValues {
		what = dropped
	}
	for _, path := range []string{"imageRegistry", "imageNamespace", "image.registry", "image.repository", "image.name"} {
		switch m.csr.text(path) {
		case "":
		case csrImage[path]:
			m.tell(path, same, "", "istio-csr's default; Signet's image has its own")
		default:
			m.tell(path, what, "image", note)
			note = "likewise"
		}
	}
	for _, path := range []string{"image.tag", "image.digest"} {
		m.tell(path, dropped, "", "it is istio-csr's version")
	}
	m.pass("image.pullPolicy", "image.pullPolicy", "")
	secrets, ok := lookUp(m.csr.values, "imagePullSecrets")
	if !ok || isEmpty(secrets) {
		return
	}
	m.pass("imagePullSecrets", "imagePullSecrets", "")
	if m.moves() {
		m.tell("imagePullSecrets", todo, "imagePullSecrets", "the Secrets must be in "+m.csr.string("certificate-namespace")+" too")
	}
}

// moves says whether Signet is in another namespace than istio-csr.
func (m *migration) moves() bool { return m.csr.namespace != m.csr.string("certificate-namespace") }

func (m *migration) labels() {
	m.pass("commonLabels", "commonLabels", "")
	m.pass("deploymentLabels", "statefulSetLabels", "it is a StatefulSet")
	m.pass("deploymentAnnotations", "statefulSetAnnotations", "it is a StatefulSet")
	m.pass("podLabels", "podLabels", "")
	m.pass("podAnnotations", "podAnnotations", "")
}

// csrSecurityContext is the default of istio-csr's chart.
var csrSecurityContext = map[string]any{
	"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
	"capabilities":   map[string]any{"drop": []any{"ALL"}},
	"seccompProfile": map[string]any{"type": "RuntimeDefault"},
}

func (m *migration) container() {
	if value, ok := lookUp(m.csr.values, "securityContext"); ok && !isEmpty(value) {
		// Helm merges maps, the file of the values too: what isn't said is istio-csr's default, and Signet's is as strict.
		fields, _ := value.(map[string]any)
		for name, usual := range csrSecurityContext {
			if _, said := fields[name]; said && reflect.DeepEqual(fields[name], usual) {
				delete(fields, name)
			}
		}
		if len(fields) > 0 {
			m.pass("securityContext", "securityContext", "beside Signet's own, which is as strict as istio-csr's")
		}
	}
	m.resources()
	volumes, _ := m.csr.values["volumes"].([]any)
	m.pass("volumes", "extraVolumes", "")
	m.pass("volumeMounts", "extraVolumeMounts", "")
	for _, volume := range volumes {
		fields, _ := volume.(map[string]any)
		for _, object := range mountedObjects(fields) {
			if m.moves() {
				m.add(todo, object, "", "extraVolumes", fmt.Sprintf("it must be in %s too, where Signet is; %s", m.csr.string("certificate-namespace"),
					"copy it, or have what makes it make it there (the namespaceSelector of a trust-manager Bundle, a Certificate)"))
			}
		}
	}
}

// mountedObjects are the Secrets, ConfigMaps and claims that a volume needs.
func mountedObjects(volume map[string]any) (all []string) {
	name := func(of any, field, kind string) {
		fields, _ := of.(map[string]any)
		if text, ok := fields[field].(string); ok {
			all = append(all, kind+" "+text)
		}
	}
	name(volume["secret"], "secretName", "Secret")
	name(volume["configMap"], "name", "ConfigMap")
	name(volume["persistentVolumeClaim"], "claimName", "PersistentVolumeClaim")
	projected, _ := volume["projected"].(map[string]any)
	sources, _ := projected["sources"].([]any)
	for _, source := range sources {
		fields, _ := source.(map[string]any)
		name(fields["secret"], "name", "Secret")
		name(fields["configMap"], "name", "ConfigMap")
	}
	return all
}

// resources carries over those of the container. Helm would merge them with Signet's own, so what isn't there is taken away.
func (m *migration) resources() {
	value, ok := lookUp(m.csr.values, "resources")
	given, isMap := value.(map[string]any)
	if !ok || !isMap || len(given) == 0 {
		return
	}
	result := maps.Clone(given)
	defaults := [][2]string{{"requests", "cpu"}, {"requests", "memory"}, {"limits", "memory"}}
	const storage = "ephemeral-storage"
	if limits, _ := given["limits"].(map[string]any); limits[storage] != nil {
		// More must not be requested than is allowed.
		defaults = append(defaults, [2]string{"requests", storage})
		m.add(todo, m.workloadName("resources"), "", "resources.limits."+storage, "on an emptyDir, Signet's own records count too: a pod with more than this is evicted, so it must be "+
			"above ledger.volume.size; or leave it out")
	}
	for _, own := range defaults {
		part, _ := result[own[0]].(map[string]any)
		part = maps.Clone(part)
		if _, said := part[own[1]]; !said {
			if part == nil {
				part = make(map[string]any)
			}
			part[own[1]] = nil
		}
		result[own[0]] = part
	}
	m.values.set("resources", result, "")
	m.tell("resources", carried, "resources", "they were measured for istio-csr; Signet's own defaults are in the values of its chart. null takes a default away")
}

func (m *migration) metrics() {
	const from, to = "app.metrics.service.", "metrics.serviceMonitor."
	if enabled, ok := lookUp(m.csr.values, from+"enabled"); ok && enabled != nil {
		m.values.set("metrics.service.enabled", enabled, "")
		m.tell(from+"enabled", carried, "metrics.service.enabled", "")
	}
	if kind := m.csr.text(from + "type"); kind != "" && kind != "ClusterIP" {
		m.tell(from+"type", changes, "", "it is a ClusterIP")
	}
	if port := m.csr.string("metrics-port"); port != "9402" && m.csr.fromValues {
		number, _ := strconv.Atoi(port)
		m.values.set("metrics.service.port", number, "")
	}
	m.add(changes, "metrics", "", "", "Signet's are other ones, signet_…, at Service signet-metrics; dashboards and alerts: metrics.dashboard, metrics.prometheusRule. "+
		"SignetServicesWithProblems fires until every pod has a certificate of Signet: put it into metrics.prometheusRule.disabled meanwhile")
	monitor := m.csr.text(from+"servicemonitor.enabled") == "true" && m.csr.textOr(from+"enabled", "true") == "true"
	m.tell(from+"servicemonitor.enabled", map[bool]fate{true: carried, false: same}[monitor], to+"enabled", "")
	if !monitor {
		return
	}
	m.values.set(to+"enabled", true, "")
	m.values.set(to+"interval", m.csr.textOr(from+"servicemonitor.interval", "10s"), "")
	m.values.set(to+"scrapeTimeout", m.csr.textOr(from+"servicemonitor.scrapeTimeout", "5s"), "")
	m.tell(from+"servicemonitor.interval", carried, to+"interval", "")
	m.tell(from+"servicemonitor.scrapeTimeout", carried, to+"scrapeTimeout", "")
	labels := map[string]any{"prometheus": m.csr.textOr(from+"servicemonitor.prometheusInstance", "default")}
	more, _ := lookUp(m.csr.values, from+"servicemonitor.labels")
	moreLabels, _ := more.(map[string]any)
	maps.Copy(labels, moreLabels)
	m.values.set(to+"labels", labels, "")
	m.tell(from+"servicemonitor.prometheusInstance", carried, to+"labels.prometheus", "")
	m.tell(from+"servicemonitor.labels", carried, to+"labels", "")
}
