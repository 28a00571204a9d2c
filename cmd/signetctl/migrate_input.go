package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	yamlv3 "go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// maxInputBytes bounds one file that is read, and maxWrittenOut what its aliases make of a document.
const (
	maxInputBytes = 4 << 20
	maxWrittenOut = 4 * maxInputBytes
)

// istioCSR is an installation of istio-csr: what its values, its Deployment or its command line say, and its defaults for
// the rest.
type istioCSR struct {
	flags      *pflag.FlagSet
	given      map[string]string // flags that were set: how the user knows them, such as app.tls.trustDomain
	fromValues bool
	values     map[string]any // of the chart; made up of the pod template where a Deployment was given
	namespace  string         // its own
	name       string         // of its Deployment and Service
	user       string         // name of its ServiceAccount; empty for the same name
	podLabels  labels.Set     // of its pods, as far as they are known
	istiodCert string         // true, false or dynamic, as app.tls.istiodCertificateEnable; unknown where only flags are known
	audiences  []string       // environment variable TOKEN_AUDIENCES; nil where it isn't set
	env        []string       // further variables, by name
	further    []string       // what its Deployment has and its chart can't make, by the names of the fields
	unknown    []string
}

// document is one YAML document of a file.
type document struct {
	file   string
	object map[string]any
	text   []byte // as JSON
}

// readDocuments reads the YAML documents of a file, or of in where its name is "-". What helm get values prints above them
// is no part of them.
func readDocuments(name string, in io.Reader) ([]document, error) {
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer func() { _ = file.Close() }() // it was only read
		in = file
	} else {
		name = "standard input"
	}
	text, err := io.ReadAll(io.LimitReader(in, maxInputBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(text) > maxInputBytes {
		return nil, fmt.Errorf("%s has more than %d bytes", name, maxInputBytes)
	}
	for _, title := range []string{"USER-SUPPLIED VALUES:", "COMPUTED VALUES:"} {
		text = bytes.TrimPrefix(text, []byte(title+"\n"))
	}
	var all []document
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		part, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: not YAML: %w", name, err)
		}
		found, err := readDocument(name, part)
		if err != nil {
			return nil, err
		}
		if found != nil {
			all = append(all, *found)
		}
	}
}

// readDocument is nil for one that holds nothing.
func readDocument(name string, text []byte) (*document, error) {
	var node yamlv3.Node
	if yamlv3.Unmarshal(text, &node) == nil && bytesOf(&node, make(map[*yamlv3.Node]int)) > maxWrittenOut {
		return nil, fmt.Errorf("%s has more than %d bytes where its aliases stand for what they mean", name, maxWrittenOut)
	}
	asJSON, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return nil, fmt.Errorf("%s: not YAML: %w", name, err)
	}
	var value any
	decoder := json.NewDecoder(bytes.NewReader(asJSON))
	decoder.UseNumber()
	if err := decoder.Decode(&value); err != nil {
		return nil, fmt.Errorf("%s: not YAML: %w", name, err)
	}
	switch value := value.(type) {
	case nil:
		return nil, nil
	case map[string]any:
		return &document{name, withNumbers(value).(map[string]any), asJSON}, nil
	}
	return nil, fmt.Errorf("%s: it holds no map of values, and no Deployment", name)
}

// bytesOf is about how long a node is with all aliases written out, and more than [maxWrittenOut] where it is longer or is
// within itself. Known are those that were measured.
func bytesOf(n *yamlv3.Node, known map[*yamlv3.Node]int) int {
	if size, ok := known[n]; ok {
		return size
	}
	known[n] = maxWrittenOut + 1 // meanwhile
	size := len(n.Value) + 1
	if n.Alias != nil {
		size += bytesOf(n.Alias, known)
	}
	for _, below := range n.Content {
		size = min(size+bytesOf(below, known), maxWrittenOut+1)
	}
	known[n] = size
	return size
}

// withNumbers turns the numbers of JSON into those of Go.
func withNumbers(value any) any {
	switch value := value.(type) {
	case map[string]any:
		for key := range value {
			value[key] = withNumbers(value[key])
		}
	case []any:
		for n := range value {
			value[n] = withNumbers(value[n])
		}
	case json.Number:
		if whole, err := value.Int64(); err == nil {
			return whole
		}
		float, _ := value.Float64() // what JSON has as a number is one, if rounded
		return float
	}
	return value
}

// isManifest says that a document is a Kubernetes object. Values have no kind.
func (d document) isManifest() bool {
	kind, _ := d.object["kind"].(string)
	version, _ := d.object["apiVersion"].(string)
	return kind != "" && version != ""
}

// deployments are those in a document.
func (d document) deployments() ([]appsv1.Deployment, error) {
	if d.object["kind"] == "List" {
		var list appsv1.DeploymentList
		if err := json.Unmarshal(d.text, &list); err != nil {
			return nil, fmt.Errorf("%s: list of Deployments: %w", d.file, err)
		}
		return slices.DeleteFunc(list.Items, func(item appsv1.Deployment) bool { return item.Kind != "Deployment" }), nil
	}
	if d.object["kind"] != "Deployment" {
		return nil, nil
	}
	var one appsv1.Deployment
	if err := json.Unmarshal(d.text, &one); err != nil {
		return nil, fmt.Errorf("%s: Deployment: %w", d.file, err)
	}
	return []appsv1.Deployment{one}, nil
}

// readIstioCSR makes one installation of all that was given: values files, merged as Helm does, or one Deployment, and flags,
// which count before both. namespace is istio-csr's own, and below is the key that its values are below; both are empty where
// they weren't said.
func readIstioCSR(documents []document, args []string, namespace, below string) (*istioCSR, error) {
	c := &istioCSR{
		flags: newCSRFlags(), given: make(map[string]string), values: make(map[string]any),
		namespace: istioCSRNamespace, name: istioCSRName, istiodCert: "unknown",
	}
	manifests := slices.Collect(func(yield func(document) bool) {
		for _, d := range documents {
			if d.isManifest() && !yield(d) {
				return
			}
		}
	})
	var found []appsv1.Deployment
	for _, d := range manifests {
		some, err := d.deployments()
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
	}
	if len(manifests) > 0 && len(manifests) < len(documents) {
		return nil, errors.New("values and a manifest were given; it must be one of them")
	}
	if below != "" && (len(manifests) > 0 || len(documents) == 0) {
		return nil, fmt.Errorf("--below %s: it is for values, and none were given", below)
	}
	var problems []string
	switch {
	case len(manifests) > 0:
		deployment, container, err := chooseDeployment(found)
		if err != nil {
			return nil, err
		}
		problems = c.readDeployment(deployment, container)
	case len(documents) > 0:
		c.fromValues, c.istiodCert = true, "true"
		for _, d := range documents {
			mergeValues(c.values, d.object)
		}
		if err := c.goBelow(below); err != nil {
			return nil, err
		}
		problems = c.readValues()
	}
	problems = append(problems, c.readFlags(args)...)
	if namespace != "" {
		c.namespace = namespace
	}
	if c.fromValues && c.given["runtime-issuance-config-map-namespace"] == "" {
		_ = c.flags.Set("runtime-issuance-config-map-namespace", c.namespace)
	}
	if len(problems) > 0 {
		return nil, errors.New(strings.Join(problems, "; "))
	}
	return c, nil
}

// mergeValues puts those of a later file over earlier ones, as Helm does: maps are merged, everything else is replaced.
func mergeValues(into, from map[string]any) {
	for key, value := range from {
		above, isMap := value.(map[string]any)
		below, wasMap := into[key].(map[string]any)
		if isMap && wasMap {
			mergeValues(below, above)
			continue
		}
		into[key] = value
	}
}

// lookUp is the value at a path. One that is null is found as nil.
func lookUp(values map[string]any, path string) (any, bool) {
	head, rest, deeper := strings.Cut(path, ".")
	value, ok := values[head]
	if !ok || !deeper {
		return value, ok
	}
	below, ok := value.(map[string]any)
	if !ok {
		return nil, false
	}
	return lookUp(below, rest)
}

// unknownValues are the paths of values that istio-csr's chart doesn't have, each with what it has there. Wrong is what stands
// where a map must be.
func unknownValues(values map[string]any, prefix string, known []string) (unknown, wrong []string) {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		path := prefix + key
		dotted := strings.Contains(key, ".") // one key, though it looks like a path
		if slices.Contains(known, path) && !dotted {
			continue
		}
		if dotted || !slices.ContainsFunc(known, func(k string) bool { return strings.HasPrefix(k, path+".") }) {
			unknown = append(unknown, path)
			continue
		}
		below, ok := values[key].(map[string]any)
		if !ok {
			wrong = append(wrong, path+": a map of values is expected")
			continue
		}
		more, moreWrong := unknownValues(below, path+".", known)
		unknown, wrong = append(unknown, more...), append(wrong, moreWrong...)
	}
	return unknown, wrong
}

// readValues sets the flags that the chart makes of the values, and returns what is wrong with them.
func (c *istioCSR) readValues() (problems []string) {
	unknown, wrong := unknownValues(c.values, "", knownValues())
	c.unknown, problems = unknown, wrong
	problems = append(problems, c.readTexts()...)
	for _, path := range slices.Sorted(maps.Keys(chartValues)) {
		if value, ok := lookUp(c.values, path); ok && !chartValues[path].fits(value) {
			problems = append(problems, fmt.Sprintf("%s: %s is expected", path, chartValues[path]))
		}
	}
	for _, f := range csrFlags {
		value, ok := lookUp(c.values, f.value)
		if f.value == "" || !ok {
			continue
		}
		if err := c.setValue(f, value); err != nil {
			problems = append(problems, f.value+": "+err.Error())
		}
	}
	const deprecated = "app.runtimeIssuanceConfigMap"
	if name := c.text(deprecated); name != "" && c.string("runtime-issuance-config-map-name") == "" {
		c.set("runtime-issuance-config-map-name", deprecated, name)
	}
	_, address := lookUp(c.values, "app.server.serving.address")
	_, port := lookUp(c.values, "app.server.serving.port")
	if address || port {
		c.set("serving-address", "app.server.serving", c.textOr("app.server.serving.address", "0.0.0.0")+":"+c.textOr("app.server.serving.port", "6443"))
	}
	if value, ok := lookUp(c.values, "app.tls.istiodCertificateEnable"); ok {
		c.istiodCert, _ = scalar(value)
		if value == nil {
			c.istiodCert = "false"
		}
		if !slices.Contains([]string{"true", "false", "dynamic"}, c.istiodCert) {
			problems = append(problems, `app.tls.istiodCertificateEnable: it must be true, false or "dynamic"`)
		}
	}
	_ = c.flags.Set("istiod-cert-enabled", strconv.FormatBool(c.istiodCert == "dynamic"))
	if c.istiodCert == "true" {
		_ = c.flags.Set("istiod-cert-name", "istiod")
	}
	// The chart takes the algorithm of the serving certificate where istiod's has none.
	if c.string("istiod-cert-key-algorithm") == "" || c.given["istiod-cert-key-algorithm"] == "" {
		_ = c.flags.Set("istiod-cert-key-algorithm", c.string("serving-signature-algorithm"))
	}
	if pairs := c.pairs("certificate-request-additional-annotations"); len(pairs) > 0 {
		for _, name := range slices.Sorted(maps.Keys(pairs)) {
			_ = c.flags.Set("istiod-cert-additional-annotations", name+"="+pairs[name])
		}
		c.given["istiod-cert-additional-annotations"] = "app.certmanager.additionalAnnotations"
	}
	if name := c.text("nameOverride"); name != "" {
		c.name = name
	}
	c.podLabels = labels.Set{"app": c.name, nameLabel: c.name, "app.kubernetes.io/managed-by": "Helm"}
	for _, path := range []string{"commonLabels", "podLabels"} {
		maps.Copy(c.podLabels, textsAt(c.values, path))
	}
	return problems
}

// readTexts returns which labels and the like aren't texts. The chart writes them without quotes, the API server refuses them
// so, and what was meant by yes or 1.10 can't be told. Those that are null are none, but for the nodes', where null takes a
// default away.
func (c *istioCSR) readTexts() (problems []string) {
	for _, path := range []string{
		"commonLabels", "deploymentLabels", "deploymentAnnotations", "podLabels", "podAnnotations", "nodeSelector",
		"app.metrics.service.servicemonitor.labels",
	} {
		value, _ := lookUp(c.values, path)
		fields, _ := value.(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			switch value := fields[name].(type) {
			case string:
			case nil:
				if path != "nodeSelector" {
					delete(fields, name)
				}
			default:
				problems = append(problems, fmt.Sprintf("%s: %s: %s is no text; put it in quotes", path, name, inShort(value)))
			}
		}
	}
	return problems
}

// textsAt are those of a map of values that are texts.
func textsAt(values map[string]any, path string) map[string]string {
	texts := make(map[string]string)
	value, _ := lookUp(values, path)
	fields, _ := value.(map[string]any)
	for name, value := range fields {
		if text, ok := value.(string); ok {
			texts[name] = text
		}
	}
	return texts
}

// setValue sets a flag as the chart's template does.
func (c *istioCSR) setValue(f csrFlag, value any) error {
	if value == nil {
		if f.fallback != "" && f.name != "max-concurrent-reconciles" && f.kind != flagList {
			return errors.New("it is null, which takes istio-csr's default away; leave it out, or set it")
		}
		return nil
	}
	if f.name == "certificate-request-additional-annotations" {
		return c.setAnnotations(f, value)
	}
	items, isList := value.([]any)
	if !isList {
		items = []any{value}
	} else if f.kind != flagList {
		return errors.New("a list stands where one value is expected")
	} else if len(items) == 0 {
		items = []any{""} // takes the default's place
	}
	for _, item := range items {
		text, ok := scalar(item)
		if !ok {
			return errors.New("a text or a number is expected")
		}
		if err := c.flags.Set(f.name, strings.TrimSpace(text)); err != nil {
			return fmt.Errorf("%q is no %s", text, flagWords[f.kind])
		}
	}
	c.given[f.name] = f.value
	return nil
}

var flagWords = map[flagKind]string{
	flagBool: "bool; it must be true or false", flagNumber: "whole number", flagDuration: "duration, such as 1h",
	flagList: "list", flagPairs: "name=value", flagText: "text",
}

// setAnnotations sets those that the chart has as a list of names and values.
func (c *istioCSR) setAnnotations(f csrFlag, value any) error {
	items, ok := value.([]any)
	if !ok {
		return errors.New("a list of name and value is expected")
	}
	for _, item := range items {
		pair, _ := item.(map[string]any)
		name, ok := scalar(pair["name"])
		text, hasValue := scalar(pair["value"])
		if !ok || !hasValue || len(pair) != 2 || name == "" {
			return errors.New("each must have a name and a value, and nothing else")
		}
		if err := c.flags.Set(f.name, name+"="+text); err != nil {
			return fmt.Errorf("annotation %q: %w", name, err)
		}
		c.given[f.name] = f.value
	}
	return nil
}

// scalar is a value as Helm writes it into a template.
func scalar(value any) (string, bool) {
	switch value := value.(type) {
	case string:
		return value, true
	case bool, int64, float64:
		return fmt.Sprint(value), true
	}
	return "", false
}

// chooseDeployment finds istio-csr's among those of a manifest, and its container.
func chooseDeployment(all []appsv1.Deployment) (*appsv1.Deployment, *corev1.Container, error) {
	var chosen *appsv1.Deployment
	var in *corev1.Container
	for d := range all {
		for n := range all[d].Spec.Template.Spec.Containers {
			container := &all[d].Spec.Template.Spec.Containers[n]
			if !strings.Contains(container.Name+" "+container.Image, "istio-csr") && !slices.ContainsFunc(container.Args, isOfIstioCSR) {
				continue
			}
			if in != nil {
				return nil, nil, fmt.Errorf("there are several containers of istio-csr, %s and %s; give one Deployment", in.Name, container.Name)
			}
			chosen, in = &all[d], container
		}
	}
	if in == nil {
		return nil, nil, errors.New("the manifest has no Deployment with a container of istio-csr")
	}
	return chosen, in, nil
}

func isOfIstioCSR(arg string) bool { return strings.HasPrefix(arg, "--serving-certificate-dns-names") }

// readDeployment takes over the command line, the environment and the pod template, as values of the chart that stand for
// the same.
func (c *istioCSR) readDeployment(d *appsv1.Deployment, container *corev1.Container) (problems []string) {
	args := slices.Clone(container.Args)
	if len(container.Command) > 1 {
		args = append(slices.Clone(container.Command[1:]), args...)
	}
	problems = c.readFlags(args)
	for _, arg := range args {
		if strings.Contains(arg, "$(") {
			problems = append(problems, fmt.Sprintf("argument %q: it takes a variable; write its value into the manifest", arg))
		}
	}
	for _, variable := range container.Env {
		switch {
		case variable.Name != "TOKEN_AUDIENCES":
			c.env = append(c.env, variable.Name)
		case variable.ValueFrom != nil:
			problems = append(problems, "env TOKEN_AUDIENCES: it comes from elsewhere; write its value into the manifest")
		default:
			c.audiences = slices.DeleteFunc(strings.Split(variable.Value, ","), func(a string) bool { return a == "" })
		}
	}
	if len(container.EnvFrom) > 0 {
		c.env = append(c.env, "envFrom")
	}
	for field, there := range map[string]bool{
		"containers": len(d.Spec.Template.Spec.Containers) > 1, "initContainers": len(d.Spec.Template.Spec.InitContainers) > 0,
		"hostNetwork": d.Spec.Template.Spec.HostNetwork, "hostAliases": len(d.Spec.Template.Spec.HostAliases) > 0,
		"dnsConfig": d.Spec.Template.Spec.DNSConfig != nil, "runtimeClassName": d.Spec.Template.Spec.RuntimeClassName != nil,
		"securityContext": d.Spec.Template.Spec.SecurityContext != nil && !reflect.DeepEqual(*d.Spec.Template.Spec.SecurityContext, corev1.PodSecurityContext{}),
	} {
		if there {
			c.further = append(c.further, "spec.template.spec."+field)
		}
	}
	slices.Sort(c.further)
	c.name, c.user = d.Name, cmp.Or(d.Spec.Template.Spec.ServiceAccountName, d.Spec.Template.Spec.DeprecatedServiceAccount, "default")
	if d.Namespace != "" {
		c.namespace = d.Namespace
	}
	pod := d.Spec.Template
	c.podLabels = pod.Labels
	drop := func(from map[string]string, also ...string) map[string]string {
		from = maps.Clone(from)
		maps.DeleteFunc(from, func(name, _ string) bool {
			return isChartLabel(name) || slices.ContainsFunc(also, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
		})
		return from
	}
	values := map[string]any{
		"podLabels":                 drop(pod.Labels),
		"podAnnotations":            drop(pod.Annotations, "kubectl.kubernetes.io/"),
		"deploymentLabels":          drop(d.Labels),
		"deploymentAnnotations":     drop(d.Annotations, "kubectl.kubernetes.io/", "deployment.kubernetes.io/", "meta.helm.sh/"),
		"imagePullSecrets":          pod.Spec.ImagePullSecrets,
		"nodeSelector":              pod.Spec.NodeSelector,
		"affinity":                  pod.Spec.Affinity,
		"tolerations":               pod.Spec.Tolerations,
		"topologySpreadConstraints": pod.Spec.TopologySpreadConstraints,
		"priorityClassName":         pod.Spec.PriorityClassName,
		"volumes":                   pod.Spec.Volumes,
		"volumeMounts":              container.VolumeMounts,
		"resources":                 container.Resources,
		"securityContext":           container.SecurityContext,
		"image":                     map[string]any{"repository": container.Image, "pullPolicy": container.ImagePullPolicy},
	}
	if d.Spec.Replicas != nil {
		values["replicaCount"] = *d.Spec.Replicas
	}
	text, err := yaml.Marshal(values)
	if err == nil {
		var again *document
		if again, err = readDocument("the Deployment", text); err == nil {
			c.values = again.object
		}
	}
	if err != nil {
		problems = append(problems, err.Error())
	}
	maps.DeleteFunc(c.values, func(_ string, value any) bool { return isEmpty(value) })
	return problems
}

// isEmpty says that a value is as if it weren't there.
func isEmpty(value any) bool {
	switch value := value.(type) {
	case nil:
		return true
	case string:
		return value == ""
	case []any:
		return len(value) == 0
	case map[string]any:
		return len(value) == 0
	}
	return false
}

// readFlags sets flags as istio-csr does. Those that it doesn't have are noted, so that all of them can be told at once.
func (c *istioCSR) readFlags(args []string) (problems []string) {
	set := newCSRFlags()
	for err := set.Parse(args); err != nil; err = set.Parse(args) {
		missing, ok := errors.AsType[*pflag.NotExistError](err)
		if !ok {
			return append(problems, err.Error())
		}
		n := slices.IndexFunc(args, func(arg string) bool { return isFlag(arg, missing) })
		if n < 0 {
			return append(problems, err.Error())
		}
		name, _, hasValue := strings.Cut(args[n], "=")
		c.unknown = append(c.unknown, name)
		end := n + 1
		if !hasValue && strings.HasPrefix(name, "--") && end < len(args) && !strings.HasPrefix(args[end], "-") {
			end++ // its value
		}
		args = slices.Delete(slices.Clone(args), n, end)
		set = newCSRFlags() // lists would grow
	}
	if rest := set.Args(); len(rest) > 0 {
		problems = append(problems, fmt.Sprintf("%q: istio-csr takes flags only", rest[0]))
	}
	set.Visit(func(f *pflag.Flag) {
		c.flags.Lookup(f.Name).Value = f.Value
		c.given[f.Name] = "--" + f.Name
	})
	if enabled, _ := set.GetBool("istiod-cert-enabled"); set.Changed("istiod-cert-enabled") && (enabled || c.istiodCert == "dynamic") {
		c.istiodCert = map[bool]string{true: "dynamic", false: "unknown"}[enabled]
	}
	return problems
}

// isFlag says whether arg is the flag that was missing: --name, or a group of short ones.
func isFlag(arg string, missing *pflag.NotExistError) bool {
	if group := missing.GetSpecifiedShortnames(); group != "" {
		return strings.HasPrefix(arg, "-"+group[:1]) && strings.HasSuffix(arg, group) || arg == "-"+group
	}
	name, _, _ := strings.Cut(arg, "=")
	return name == "--"+missing.GetSpecifiedName()
}

// account is the name of its ServiceAccount.
func (c *istioCSR) account() string { return cmp.Or(c.user, c.name) }

// The values of flags, by their names in [csrFlags].

func (c *istioCSR) set(name, where, value string) {
	if c.flags.Set(name, value) == nil {
		c.given[name] = where
	}
}

func (c *istioCSR) string(name string) string { return c.flags.Lookup(name).Value.String() }

func (c *istioCSR) bool(name string) bool {
	on, _ := c.flags.GetBool(name)
	return on
}

func (c *istioCSR) list(name string) []string {
	all, _ := c.flags.GetStringSlice(name)
	var items []string
	for _, item := range all {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

func (c *istioCSR) pairs(name string) map[string]string {
	pairs, _ := c.flags.GetStringToString(name)
	return pairs
}

// text is a value of the chart that is a text or a number, empty where it isn't set.
func (c *istioCSR) text(path string) string {
	value, _ := lookUp(c.values, path)
	text, _ := scalar(value)
	return text
}

func (c *istioCSR) textOr(path, fallback string) string {
	if text := c.text(path); text != "" {
		return text
	}
	return fallback
}

// where is how the user knows a flag's setting.
func (c *istioCSR) where(name string) string {
	if at := c.given[name]; at != "" {
		return at
	}
	for _, f := range csrFlags {
		if c.fromValues && f.name == name && f.value != "" {
			return f.value
		}
	}
	if in := map[string]string{
		"serving-address": "app.server.serving", "istiod-cert-name": "istiod's Certificate", "istiod-cert-additional-annotations": "app.certmanager.additionalAnnotations",
	}[name]; c.fromValues && in != "" {
		return in
	}
	return "--" + name
}
