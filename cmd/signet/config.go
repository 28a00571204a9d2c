package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	yamlv3 "go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/util/validation"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/audit"
	"github.com/signet-ca/signet/api/inventory"
	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/api/probe"
	"github.com/signet-ca/signet/ca"
	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/rotation"
	"github.com/signet-ca/signet/setting"
	"github.com/signet-ca/signet/signer"
)

// Config is the whole configuration file: YAML, in which every field must be known. All settings are
// optional but an issuer and a source of roots; all are read at start. The settings of each part
// are declared, with their defaults, in that part's package.
type Config struct {
	// TrustDomain of the mesh, as in meshConfig.trustDomain. An '@' is read as '.', as Istio does.
	// Default cluster.local.
	TrustDomain string `json:"trustDomain,omitempty"`
	// ClusterID is what callers of this cluster send as clusterid. Default Kubernetes.
	ClusterID string `json:"clusterID,omitempty"`
	// Namespace is where CertificateRequests are made and Signet keeps its own objects. An issuer of
	// kind Issuer must be there. Default istio-system.
	Namespace string `json:"namespace,omitempty"`
	// Replica is the name of this replica, which its records carry; no two may have the same. Default the host's name,
	// which is the pod's.
	Replica string `json:"replica,omitempty"`
	// Issuer is the cert-manager issuer that signs. It may be left out where issuers.runtime is set.
	Issuer issuer.Ref `json:"issuer,omitempty"`
	// Issuers are those that may sign in its place: one that a ConfigMap names while Signet runs, and fallbacks.
	Issuers rotation.IssuersConfig `json:"issuers,omitempty"`
	// Roots is where the mesh's trust anchors come from. Required.
	Roots issuer.RootsConfig `json:"roots"`
	// Distribution is how the anchors come to the namespaces, where Istio's proxies and istiod mount them.
	Distribution issuer.DistributionConfig `json:"distribution,omitempty"`
	// CRL is where certificate revocation lists come from.
	CRL issuer.CRLConfig `json:"crl,omitempty"`
	// BundleEndpoint is where trust domains that federate with ours fetch our anchors: a SPIFFE bundle endpoint, which
	// serves them over HTTPS (profile https_web) at the path /.
	BundleEndpoint issuer.BundleEndpointConfig `json:"bundleEndpoint,omitempty"`
	// Istiod is istiod's serving certificate: a cert-manager Certificate that Signet writes, and whose Secret istiod
	// mounts.
	Istiod rotation.IstiodConfig `json:"istiod,omitempty"`
	// CA is how callers are let in and what they may ask for.
	CA ca.Config `json:"ca,omitempty"`
	// Signer is how requests are signed and cleaned up.
	Signer signer.Config `json:"signer,omitempty"`
	// Serving is Signet's own certificate.
	Serving rotation.ServingConfig `json:"serving,omitempty"`
	// Ledger is where each issuance is recorded before the certificate leaves.
	Ledger ledger.Config `json:"ledger,omitempty"`
	// API is where operators ask what was issued and what each service holds: JSON over HTTPS, described at
	// /openapi.json and, for people, at /docs.
	API api.Config `json:"api,omitempty"`
	// Inventory is how the state of services and their certificates is judged.
	Inventory inventory.Config `json:"inventory,omitempty"`
	// Probes read the certificates that services really serve.
	Probes probe.Config `json:"probes,omitempty"`
	// Audit is a stream of events for other systems.
	Audit audit.Config `json:"audit,omitempty"`
	// Metrics is the endpoint for Prometheus, /metrics over HTTP.
	Metrics struct {
		// Listen is its address. Default :9402.
		Listen string `json:"listen,omitempty"`
	} `json:"metrics,omitempty"`
	// Health is the endpoint for probes, /livez and /readyz over HTTP.
	Health struct {
		// Listen is its address. Default :6060.
		Listen string `json:"listen,omitempty"`
	} `json:"health,omitempty"`
	// Log is what is written to standard error.
	Log LogConfig `json:"log,omitempty"`
	// Shutdown is how a replica leaves.
	Shutdown ShutdownConfig `json:"shutdown,omitempty"`
}

// LogConfig is what is written to standard error.
type LogConfig struct {
	// Format is json or text. Default json.
	Format string `json:"format,omitempty"`
	// Level is debug, info, warn or error. SIGUSR1 switches between this and debug while Signet runs.
	// Default info.
	Level string `json:"level,omitempty"`
}

// ShutdownConfig is how a replica leaves.
type ShutdownConfig struct {
	// Delay is how long new connections are still accepted after the replica has said that it isn't
	// ready any more, until everybody knows. Default 5s.
	Delay setting.Duration `json:"delay,omitempty"`
	// Drain is how long requests under way may take then; not less than ca.requestTimeout. Default
	// ca.requestTimeout and 5s more. The pod's terminationGracePeriodSeconds must be longer than both
	// together, by 20s for the sweeping of what is left.
	Drain setting.Duration `json:"drain,omitempty"`
}

// maxConfigBytes bounds a configuration file.
const maxConfigBytes = 1 << 20

// LoadConfig reads the configuration from a file. The error names every problem found, each with the
// path of its field.
func LoadConfig(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	cfg, err := ParseConfig(text)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return cfg, nil
}

// ParseConfig reads the configuration from YAML, checks it, and fills in the names that several parts
// share.
func ParseConfig(text []byte) (Config, error) {
	var cfg Config
	if err := decodeStrictly(text, &cfg); err != nil {
		return Config{}, err
	}
	if cfg.ClusterID == "" {
		cfg.ClusterID = "Kubernetes"
	}
	if cfg.Namespace == "" {
		cfg.Namespace = "istio-system"
	}
	if cfg.Issuer != (issuer.Ref{}) || cfg.Issuers.Runtime.Name == "" {
		cfg.Issuer = cfg.Issuer.WithDefaults()
	}
	if err := cfg.validate(); err != nil {
		return Config{}, err
	}
	if cfg.Replica == "" {
		host, err := os.Hostname()
		if err != nil {
			return Config{}, fmt.Errorf("replica isn't set, and the host's name can't be read: %w", err)
		}
		cfg.Replica = host
	}
	cfg.Ledger.Replica = cfg.Replica
	cfg.Inventory.TrustDomain, cfg.Inventory.Cluster = cfg.CA.TrustDomain, cfg.ClusterID
	cfg.Probes.TrustDomain = cfg.CA.TrustDomain
	cfg.CA.Usages = cfg.Signer.UsagesOrDefault()
	cfg.CA.RequestTimeout = setting.DurationOf(cfg.CA.RequestTimeout.Or(cfg.Signer.TimeoutOrDefault() + 5*time.Second))
	cfg.CA.ShutdownDelay = cfg.Shutdown.Delay.Or(5 * time.Second)
	cfg.CA.MinTLS, cfg.API.MinTLS, cfg.BundleEndpoint.MinTLS = cfg.Serving.MinTLS(), cfg.Serving.MinTLS(), cfg.Serving.MinTLS()
	cfg.CA.DrainTimeout = cfg.Shutdown.Drain.Or(cfg.CA.RequestTimeout.Or(0) + 5*time.Second)
	return cfg, nil
}

// validate reports all that is wrong, and parses the trust domain.
func (c *Config) validate() error {
	p := setting.NewProblems()
	if c.TrustDomain == "" {
		c.TrustDomain = "cluster.local"
	}
	// R17: Istio replaces '@' in the names that it makes.
	trustDomain, err := spiffeid.TrustDomainFromString(strings.ReplaceAll(c.TrustDomain, "@", "."))
	if err != nil || strings.Contains(c.TrustDomain, "/") {
		p.Addf("trustDomain", "%q is not a trust domain; it must be a lower-case name such as cluster.local", c.TrustDomain)
	}
	c.CA.TrustDomain, c.CA.ClusterID = trustDomain, c.ClusterID
	if len(validation.IsDNS1123Label(c.Namespace)) != 0 {
		p.Addf("namespace", "%q is not the name of a namespace", c.Namespace)
	}
	if c.Replica != "" && len(validation.IsDNS1123Subdomain(c.Replica)) != 0 {
		p.Addf("replica", "%q is not a name such as signet-0; it must be of lower-case letters, digits, '-' and '.'", c.Replica)
	}
	if c.Issuer != (issuer.Ref{}) || c.Issuers.Runtime.Name == "" {
		c.Issuer.Validate(p.At("issuer"))
	}
	c.Issuers.Validate(p.At("issuers"))
	c.Roots.Validate(p.At("roots"), trustDomain)
	c.Distribution.Validate(p.At("distribution"))
	c.CRL.Validate(p.At("crl"))
	c.BundleEndpoint.Validate(p.At("bundleEndpoint"))
	c.Istiod.Validate(p.At("istiod"))
	if at, _ := c.Istiod.Certificate(); c.Istiod.Enabled && c.Issuer.Kind == "Issuer" && c.Issuer.Group == issuer.CertManagerGroup && at != c.Namespace {
		p.Addf("istiod.namespace", "%q is not namespace, %q, where the issuer is; an Issuer signs only in its own namespace, so use a ClusterIssuer", at, c.Namespace)
	}
	c.CA.Validate(p.At("ca"))
	c.Signer.Validate(p.At("signer"))
	c.Serving.Validate(p.At("serving"))
	c.Ledger.Validate(p.At("ledger"))
	c.API.Validate(p.At("api"))
	c.Inventory.Validate(p.At("inventory"))
	c.Probes.Validate(p.At("probes"))
	c.Audit.Validate(p.At("audit"))
	p.Address("metrics.listen", c.Metrics.Listen)
	p.Address("health.listen", c.Health.Listen)
	signing := c.Signer.TimeoutOrDefault()
	whole := c.CA.RequestTimeout.Or(signing + 5*time.Second)
	if whole < signing {
		p.Addf("ca.requestTimeout", "%s is shorter than signer.timeout, %s; it must not be", whole, signing)
	}
	if drain := c.Shutdown.Drain.Or(whole); drain < whole {
		p.Addf("shutdown.drain", "%s is shorter than ca.requestTimeout, %s; it must not be", drain, whole)
	}
	if c.Log.Format != "" && c.Log.Format != "json" && c.Log.Format != "text" {
		p.Addf("log.format", "%q is not a format; it must be json or text", c.Log.Format)
	}
	if _, err := parseLevel(c.Log.Level); err != nil {
		p.Addf("log.level", "%q is not a level; it must be debug, info, warn or error", c.Log.Level)
	}
	shutdown := p.At("shutdown")
	shutdown.Duration("delay", c.Shutdown.Delay, time.Millisecond, 5*time.Minute)
	shutdown.Duration("drain", c.Shutdown.Drain, time.Millisecond, 10*time.Minute)
	return p.Err()
}

// decodeStrictly reads one YAML document into cfg and refuses fields that it doesn't have, fields that
// occur twice, and values of another type.
func decodeStrictly(text []byte, cfg *Config) error {
	if len(text) > maxConfigBytes {
		return fmt.Errorf("it has %d bytes; at most %d are allowed", len(text), maxConfigBytes)
	}
	text, err := oneDocument(text)
	if err != nil {
		return err
	}
	asJSON, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return fmt.Errorf("not YAML: %w", err)
	}
	problems, err := kjson.UnmarshalStrict(asJSON, cfg)
	if mismatch, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		where := mismatch.Field
		if where == "" {
			where = "the file"
		}
		return fmt.Errorf("%s: %s stands where %s is expected", where, valueInWords(mismatch.Value), kindInWords(mismatch.Type))
	}
	if err != nil {
		return err
	}
	var all []error
	for _, problem := range problems {
		all = append(all, withKnownFields(problem))
	}
	return errors.Join(all...)
}

// oneDocument is the one YAML document of a file. Several are refused, since all but the first would
// be ignored; those that hold nothing don't count.
func oneDocument(text []byte) ([]byte, error) {
	decoder := yamlv3.NewDecoder(bytes.NewReader(text))
	var found *yamlv3.Node
	for {
		var document yamlv3.Node
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("not YAML: %w", err)
		}
		if len(document.Content) == 0 || document.Content[0].Tag == "!!null" {
			continue
		}
		if found != nil {
			return nil, errors.New("it holds several YAML documents; there must be one")
		}
		found = &document
	}
	if found == nil {
		return nil, nil
	}
	return yamlv3.Marshal(found)
}

var unknownField = regexp.MustCompile(`^unknown field "(.*)"$`)

// withKnownFields adds to the report of an unknown field the names that are known in its place.
func withKnownFields(problem error) error {
	match := unknownField.FindStringSubmatch(problem.Error())
	if match == nil {
		return problem
	}
	path := strings.Split(match[1], ".")
	at := reflect.TypeFor[Config]()
	for _, name := range path[:len(path)-1] {
		field, ok := fieldNamed(at, name)
		if !ok {
			return fmt.Errorf("%s: unknown field", match[1])
		}
		at = field
	}
	return fmt.Errorf("%s: unknown field; known here are %s", match[1], strings.Join(fieldNames(at), ", "))
}

func fieldNamed(t reflect.Type, name string) (reflect.Type, bool) {
	for field := range fieldsOf(t) {
		if jsonName(field) == name {
			return field.Type, true
		}
	}
	return nil, false
}

func fieldNames(t reflect.Type) []string {
	var names []string
	for field := range fieldsOf(t) {
		if name := jsonName(field); name != "-" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// fieldsOf are those of a struct, or of what a pointer points to.
func fieldsOf(t reflect.Type) func(yield func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct {
			return
		}
		for field := range t.Fields() {
			if !yield(field) {
				return
			}
		}
	}
}

func jsonName(field reflect.StructField) string {
	name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
	return name
}

// valueInWords turns what encoding/json calls a value into what YAML's users do.
func valueInWords(value string) string {
	switch value {
	case "object":
		return "a map of settings"
	case "array":
		return "a list"
	case "string":
		return "a text"
	case "bool":
		return "true or false"
	}
	return "a " + value
}

func kindInWords(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Int:
		return "a whole number"
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a text"
	case reflect.Slice:
		return "a list"
	}
	return "a map of settings"
}
