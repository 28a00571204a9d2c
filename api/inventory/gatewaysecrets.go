package inventory

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"github.com/signet-ca/signet/api"
)

const (
	// maxSecrets bounds the Secrets that are read, and maxSecretBytes each of them: etcd takes less.
	maxSecrets     = 1000
	maxSecretBytes = 4 << 20
	// readApart is how far apart two rounds of reading are.
	readApart = time.Second
)

// certificateFact is what is kept of a certificate in a Secret.
type certificateFact struct {
	serial, sha256 string
	sans           []string
	validity       validity
}

// secret is what was read of a Secret that a gateway names.
type secret struct {
	fact   *certificateFact // nil where there is none
	reason string           // why
	bad    bool             // there is none, for sure
	wrote  *certificate     // what was known then to write it
}

// secretReader reads the Secrets that gateways name, in namespaces where it may: by get, which needs the least rights,
// one after the other, all of them from time to time and new ones soon. Of a Secret it decodes the certificate alone.
type secretReader struct {
	i          *Inventory
	plain      rest.Interface
	every      time.Duration
	namespaces []string
	soon       chan struct{}          // holds one when there may be something new to read
	reason     atomic.Pointer[string] // why not all could be read; nil before the first round
}

func newSecretReader(i *Inventory, plain rest.Interface, every time.Duration) *secretReader {
	return &secretReader{i: i, plain: plain, every: every, namespaces: i.cfg.Gateways.ReadSecrets, soon: make(chan struct{}, 1)}
}

// state is what the coverage says of it.
func (r *secretReader) state() api.Source {
	reason := r.reason.Load()
	if reason == nil {
		return api.Source{Name: secretsSource, Reason: "not read yet"}
	}
	return api.Source{Name: secretsSource, Up: *reason == "", Reason: *reason}
}

// look says that there may be something new to read.
func (r *secretReader) look() {
	select {
	case r.soon <- struct{}{}:
	default:
	}
}

// run reads until ctx ends.
func (r *secretReader) run(ctx context.Context) {
	every := time.NewTicker(r.every) // one that what is new doesn't put off
	defer every.Stop()
	for all := true; ; {
		r.round(ctx, all)
		if !pause(ctx, min(readApart, r.every)) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
			all = true
		case <-r.soon:
			all = false
		}
	}
}

// round reads all Secrets, or those that are new or whose Certificate has changed, and forgets those that no gateway
// names any more.
func (r *secretReader) round(ctx context.Context, all bool) {
	wanted, problem := r.i.secretsNamed(r.namespaces), ""
	if len(wanted) > maxSecrets {
		problem = fmt.Sprintf("gateways name %d Secrets; only %d are read", len(wanted), maxSecrets)
		wanted = wanted[:maxSecrets]
	}
	x, changed := r.i.gateways, false
	for _, of := range wanted {
		former, writer := x.secretAt(of), x.writer(of)
		if former != nil && former.wrote == writer && !all {
			continue
		}
		now, err := r.read(ctx, of)
		if ctx.Err() != nil {
			return
		}
		if err != nil && problem == "" {
			problem = err.Error()
		}
		if now == nil { // nobody knows
			if now = (&secret{reason: err.Error()}); former != nil {
				now.fact, now.reason, now.bad = former.fact, former.reason, former.bad
			}
		}
		now.wrote = writer
		x.setSecret(of, now)
		changed = true
	}
	if x.keepSecrets(wanted) || changed {
		r.i.touch()
	}
	if former := r.reason.Load(); all || former == nil || *former == "" || problem != "" {
		if problem != "" && (former == nil || *former != problem) {
			r.i.log.Warn("read the Secrets of gateways", "err", problem)
		}
		r.reason.Store(&problem)
	}
}

// read reads the certificate of a Secret. It is nil, with an error, where that can't be asked now.
func (r *secretReader) read(ctx context.Context, of name) (*secret, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	// As a stream, because a body that is read whole is logged at the highest verbosity of the client.
	body, err := r.plain.Get().Namespace(of.namespace).Resource("secrets").Name(of.name).Stream(ctx)
	switch {
	case apierrors.IsNotFound(err):
		return &secret{reason: "there is no such Secret", bad: true}, nil
	case err != nil:
		return nil, fmt.Errorf("read Secret %s/%s: %w", of.namespace, of.name, err)
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, maxSecretBytes))
	defer clear(text) // the key is in there
	if err != nil {
		return nil, fmt.Errorf("read Secret %s/%s: %w", of.namespace, of.name, err)
	}
	fact, err := factOf(text)
	if err != nil {
		return &secret{reason: err.Error(), bad: true}, nil
	}
	return &secret{fact: fact}, nil
}

// factOf is what is kept of a Secret in JSON. The error has nothing of its content.
func factOf(text []byte) (*certificateFact, error) {
	var object struct {
		Data struct {
			Certificate []byte `json:"tls.crt"`
		} `json:"data"`
	}
	if err := json.Unmarshal(text, &object); err != nil {
		return nil, errors.New("the Secret can't be decoded")
	}
	block, _ := pem.Decode(object.Data.Certificate)
	for rest := object.Data.Certificate; block != nil && block.Type != "CERTIFICATE"; {
		block, rest = pem.Decode(rest)
	}
	if block == nil {
		return nil, errors.New("there is no certificate in tls.crt of the Secret")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the certificate in tls.crt of the Secret: %w", err)
	}
	sum := sha256.Sum256(c.Raw)
	fact := &certificateFact{serial: cmp.Or(hex.EncodeToString(c.SerialNumber.Bytes()), "00"), sha256: hex.EncodeToString(sum[:]), validity: validityOf(c.NotBefore, c.NotAfter)}
	for _, dns := range c.DNSNames {
		fact.sans = append(fact.sans, dnsSAN+dns)
	}
	for _, ip := range c.IPAddresses {
		fact.sans = append(fact.sans, ipSAN+ip.String())
	}
	for _, uri := range c.URIs {
		fact.sans = append(fact.sans, uriSAN+uri.String())
	}
	for _, email := range c.EmailAddresses {
		fact.sans = append(fact.sans, emailSAN+email)
	}
	return fact, nil
}

// secretsNamed are the Secrets of some namespaces that gateways name, sorted.
func (i *Inventory) secretsNamed(namespaces []string) []name {
	look := i.lookAtGateways(visible(everywhere{}), time.Now())
	var all []name
	add := func(of name) {
		if slices.Contains(namespaces, of.namespace) {
			all = append(all, of)
		}
	}
	var after *gateway
	for {
		some := i.gateways.gatewaysAfter(after, batch)
		if len(some) == 0 {
			break
		}
		for _, g := range some {
			for _, l := range g.listeners {
				for _, of := range l.secrets {
					if of.namespace != "" {
						add(of)
						continue
					}
					for _, namespace := range look.served(g) {
						add(name{namespace, of.name})
					}
				}
			}
		}
		after = some[len(some)-1]
	}
	slices.SortFunc(all, name.compare)
	return slices.Compact(all)
}

func (x *gatewayIndex) setSecret(of name, s *secret) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.secrets[of] = s
}

// keepSecrets forgets all but some, and says whether there were others.
func (x *gatewayIndex) keepSecrets(some []name) (forgot bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for of := range x.secrets {
		if _, found := slices.BinarySearchFunc(some, of, name.compare); !found {
			delete(x.secrets, of)
			forgot = true
		}
	}
	return forgot
}
