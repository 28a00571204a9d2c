package issuer

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"

	"github.com/signet-ca/signet/setting"
)

// CRLConfig says where the mesh's certificate revocation lists come from. At most one source may be
// set; without one there are none. A change of the source takes effect within seconds.
//
// The source must hold a current CRL of every CA in force: of each trust anchor, federated ones too,
// and of each intermediate. Proxies want one of each or none (R57), so they get all or nothing. Bring
// the CRL of a new CA before the CA, and take that of an old one away after it.
//
// A CRL that ends without a new one is withdrawn 5 minutes before (a tenth of its time, if that is
// less), together with all others: Envoy refuses every connection under a CA whose CRL has expired, so
// that a forgotten CRL would stop the mesh. Until there are new ones the mesh's proxies check no
// revocation; what the last good CRLs revoke stays revoked for Signet itself. Alert on
// signet_crl_next_update_timestamp_seconds long before that, and on signet_crl_covered being 0.
type CRLConfig struct {
	// File is the path of a PEM file with the CRLs, usually a mounted ConfigMap or Secret. Optional.
	File string `json:"file,omitempty"`
	// Secret is a Secret in Signet's namespace that holds the CRLs as PEM; its key is ca-crl.pem by default. Optional.
	Secret *ObjectKey `json:"secret,omitempty"`
	// ConfigMap is a ConfigMap in Signet's namespace that holds the CRLs as PEM; its key is ca-crl.pem by default. Optional.
	ConfigMap *ObjectKey `json:"configMap,omitempty"`
}

// Enabled says whether there is a source of CRLs.
func (c CRLConfig) Enabled() bool { return c.File != "" || c.Secret != nil || c.ConfigMap != nil }

// Validate reports what is wrong with c.
func (c CRLConfig) Validate(p setting.Problems) {
	n := 0
	for _, set := range []bool{c.File != "", c.Secret != nil, c.ConfigMap != nil} {
		if set {
			n++
		}
	}
	if n > 1 {
		p.Addf("", "at most one of file, secret and configMap may be set; %d are", n)
	}
	if c.Secret != nil && c.Secret.Name == "" {
		p.Addf("secret.name", "must be set to the name of a Secret in Signet's namespace")
	}
	if c.ConfigMap != nil && c.ConfigMap.Name == "" {
		p.Addf("configMap.name", "must be set to the name of a ConfigMap in Signet's namespace")
	}
}

// text is the source that is set, nil for none.
func (c CRLConfig) text(config *rest.Config, namespace string) (text, error) {
	kind, at := "Secret", c.Secret
	switch {
	case c.File != "":
		return &fileText{path: c.File, most: maxCRLBytes}, nil
	case c.ConfigMap != nil:
		kind, at = "ConfigMap", c.ConfigMap
	case c.Secret == nil:
		return nil, nil
	}
	return newObjectText(config, kind, namespace, at.Name, at.KeyOr("ca-crl.pem"))
}

// CRLs keeps the mesh's certificate revocation lists current. Safe for concurrent use.
type CRLs struct {
	source text // nil where there are none
	cas    func() []*x509.Certificate
	log    *slog.Logger

	current atomic.Pointer[crlState]

	// The following are used by Start only.

	began   time.Time
	read    []byte              // what was parsed last
	readFor []*x509.Certificate // and for which CAs
	parsed  *CRLSet             // what came of it, nil after an error
}

// crlState is a set with what tells that it isn't in force any more. Immutable.
type crlState struct {
	set      *CRLSet
	decided  bool  // what proxies are to be given; see Publish
	trouble  error // why the source, as it is now, isn't what is in force; nil where it is
	replaced chan struct{}
}

// NewCRLs makes the keeper of the CRLs of the CAs that cas returns: every CA of every chain in force,
// anchors and intermediates, in any order, repetitions allowed. It must return nothing while it doesn't
// know them all: nobody notices when a CA that it leaves out has no CRL. Cas is called every few seconds and
// must be safe for concurrent use. Config and namespace are for Secrets and ConfigMaps, which Signet needs to
// list and watch; the rights may be limited to their name.
func NewCRLs(cfg CRLConfig, config *rest.Config, namespace string, cas func() []*x509.Certificate, log *slog.Logger, reg prometheus.Registerer) (*CRLs, error) {
	source, err := cfg.text(config, namespace)
	if err != nil {
		return nil, err
	}
	c := &CRLs{source: source, cas: cas, log: log}
	first := &crlState{set: &CRLSet{}, replaced: make(chan struct{})}
	if source != nil {
		first.trouble = fmt.Errorf("read CRLs: %s: not read yet", source)
	}
	c.current.Store(first)
	newCRLMetrics(reg, c)
	return c, nil
}

// NeedLeaderElection says that every replica needs the CRLs.
func (c *CRLs) NeedLeaderElection() bool { return false }

// Start keeps the CRLs current until ctx ends.
func (c *CRLs) Start(ctx context.Context) error {
	if c.source == nil {
		<-ctx.Done()
		return nil
	}
	c.source.watch(ctx, func(text []byte, err error) { c.update(text, err, time.Now()) })
	return nil
}

// Current is the set in force, never nil.
func (c *CRLs) Current() *CRLSet { return c.current.Load().set }

// Publish is what the file of proxies must hold now, where that is decided: the PEM of the set in force,
// or nothing, which must be written too; see [CRLSet.PEM]. Good CRLs decide it, or a minute without any: so
// a start doesn't withdraw what an earlier process has published before its source has answered. It is never
// decided without a source.
func (c *CRLs) Publish() (crlsPEM string, decided bool) {
	current := c.current.Load()
	return current.set.PEM(), current.decided
}

// undecided is how long after a start a source without good CRLs takes nothing away.
const undecided = time.Minute

// Watch is the set in force, and a channel that is closed when another one is, or has been withdrawn, or
// what Publish returns is decided.
func (c *CRLs) Watch() (*CRLSet, <-chan struct{}) {
	current := c.current.Load()
	return current.set, current.replaced
}

// Revoked says whether cert is revoked; see [CRLSet.Revoked].
func (c *CRLs) Revoked(cert *x509.Certificate) bool { return c.Current().Revoked(cert) }

// Ready says for people how things are. It is never an error, because a replica can sign without CRLs.
func (c *CRLs) Ready(time.Time) (string, error) {
	if c.source == nil {
		return "none configured", nil
	}
	state := c.current.Load()
	var text string
	switch {
	case state.set.PEM() != "":
		text = fmt.Sprintf("%d, of every CA in force, the next due at %s", len(state.set.lists), stamp(state.set.NextUpdate()))
	case len(state.set.lists) != 0:
		text = "withdrawn, so proxies check nothing"
	default:
		text = "none yet, so proxies check nothing"
	}
	if state.trouble != nil {
		text += "; " + state.trouble.Error()
	}
	return text, nil
}

// update brings into force what the source holds at now. Where that can't be used, the last good set
// stays as long as it is current and covers every CA in force; after that it is withdrawn.
func (c *CRLs) update(text []byte, err error, now time.Time) {
	before := c.current.Load()
	cas := slices.SortedFunc(slices.Values(c.cas()), func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	if c.began.IsZero() {
		c.began = now
	}
	next := &crlState{set: before.set}
	if err == nil && len(cas) == 0 {
		err = errors.New("the CAs of the mesh are not known yet")
	}
	if err == nil {
		if err = c.parse(text, cas, now); err == nil {
			next.set = c.parsed
		} else {
			err = fmt.Errorf("%s: %w", c.source, err)
		}
	}
	if err != nil {
		next.trouble = fmt.Errorf("read CRLs: %w", err)
		if next.set.PEM() != "" && len(cas) != 0 && next.set.usable(cas, now) != nil {
			next.set = next.set.withdrawn()
		}
	}
	next.decided = before.decided || next.set.PEM() != "" || now.Sub(c.began) >= undecided
	c.put(before, next)
}

// parse sets parsed to what text holds, and looks only at the clock where that is known already.
func (c *CRLs) parse(text []byte, cas []*x509.Certificate, now time.Time) error {
	same := func(a, b *x509.Certificate) bool { return a.Equal(b) }
	if c.parsed != nil && bytes.Equal(c.read, text) && slices.EqualFunc(c.readFor, cas, same) {
		return c.parsed.usable(cas, now)
	}
	set, err := ParseCRLs(text, cas, now)
	c.read, c.readFor, c.parsed = bytes.Clone(text), slices.Clone(cas), set
	return err
}

// put brings next into force, and says what is new.
func (c *CRLs) put(before, next *crlState) {
	same := next.set.PEM() == before.set.PEM() && len(next.set.lists) == len(before.set.lists) && slices.Equal(next.set.remarks, before.set.remarks)
	if same {
		next.set = before.set
	}
	changed := !same || next.decided != before.decided
	if !changed && sameError(next.trouble, before.trouble) {
		return
	}
	next.replaced = before.replaced
	if changed {
		next.replaced = make(chan struct{})
	}
	c.current.Store(next)
	switch {
	case next.set.PEM() == "" && before.set.PEM() != "":
		c.log.Error("CRLs withdrawn: proxies check no revocation until there are new ones", "err", next.trouble)
	case next.trouble != nil && !sameError(next.trouble, before.trouble):
		c.log.Warn("CRLs not taken", "err", next.trouble, "in_force", len(next.set.lists))
	}
	if !same && next.trouble == nil {
		for _, list := range next.set.Lists() {
			c.log.Info("CRL in force", "issuer", list.Issuer, "number", list.Number, "next_update", list.NextUpdate, "revoked", list.Revoked)
		}
		for _, remark := range next.set.remarks {
			c.log.Warn("odd CRL", "remark", remark)
		}
	}
	if changed {
		close(before.replaced)
	}
}

func newCRLMetrics(reg prometheus.Registerer, c *CRLs) {
	gauge := func(name, help string, value func(*crlState) float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return value(c.current.Load()) }))
	}
	flag := func(is bool) float64 {
		if is {
			return 1
		}
		return 0
	}
	if c.source == nil {
		return // there is nothing to alert on
	}
	gauge("crl_covered", "1 while every CA in force has a current CRL, so that proxies are given CRLs; 0 while they check nothing.",
		func(s *crlState) float64 { return flag(s.set.PEM() != "") })
	gauge("crl_next_update_timestamp_seconds", "When the first CRL expires, in seconds since 1970; 0 while there is none.",
		func(s *crlState) float64 {
			if next := s.set.NextUpdate(); !next.IsZero() {
				return float64(next.Unix())
			}
			return 0
		})
	gauge("crl_source_refused", "1 while the source of the CRLs can't be read, or what it holds can't be used.",
		func(s *crlState) float64 { return flag(s.trouble != nil) })
	gauge("crl_lists", "CRLs that are known, withdrawn ones included.",
		func(s *crlState) float64 { return float64(len(s.set.lists)) })
	gauge("crl_revoked_certificates", "Certificates that the known CRLs revoke.",
		func(s *crlState) float64 {
			n := 0
			for _, list := range s.set.lists {
				n += len(list.revoked)
			}
			return float64(n)
		})
}
