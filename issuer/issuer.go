// Package issuer says which cert-manager issuer signs for the mesh and which trust anchors are in
// force, now; where anchors come from, and how they are made known.
//
// Its words: a [Ref] names an issuer; an anchor is a certificate that the mesh trusts without
// asking further; a [Bundle] is the set of all anchors; a [Snapshot] is the reference and the
// bundle that belong together. Snapshots never change. The [Store] holds the current one, which is
// replaced whole, so that whoever reads it once for a request works with one consistent answer.
//
// A [Source] names anchors; the [Rollover] is the state that decides, by pure functions, when an anchor may
// be signed under and when it leaves; [Health] is what requests have shown of the issuers. The [Distributor]
// brings the anchors to the namespaces, the [BundleEndpoint] to other trust domains, and [CRLs] are the
// revocation lists that go with them.
package issuer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"

	"github.com/signet-ca/signet/setting"
)

// CertManagerGroup is the API group of cert-manager's own issuers.
const CertManagerGroup = "cert-manager.io"

// Ref names the issuer that signs.
type Ref struct {
	// Name of the issuer. Required.
	Name string `json:"name"`
	// Kind is Issuer, ClusterIssuer, or the kind of an external issuer. Default Issuer.
	Kind string `json:"kind,omitempty"`
	// Group is the issuer's API group. Default cert-manager.io.
	Group string `json:"group,omitempty"`
}

// WithDefaults fills the kind and the group as cert-manager does.
func (r Ref) WithDefaults() Ref {
	if r.Kind == "" {
		r.Kind = "Issuer"
	}
	if r.Group == "" {
		r.Group = CertManagerGroup
	}
	return r
}

// Validate reports what is wrong with r.
func (r Ref) Validate(p setting.Problems) {
	r = r.WithDefaults()
	if r.Name == "" {
		p.Addf("name", "must be set to the name of a cert-manager issuer")
	}
	if r.Group == CertManagerGroup && r.Kind != "Issuer" && r.Kind != "ClusterIssuer" {
		p.Addf("kind", "%q is not an issuer kind of %s; it must be Issuer or ClusterIssuer, or group must be set", r.Kind, CertManagerGroup)
	}
}

// Reference is r as CertificateRequests carry it.
func (r Ref) Reference() cmmeta.IssuerReference {
	return cmmeta.IssuerReference{Name: r.Name, Kind: r.Kind, Group: r.Group}
}

// String is kind.group/name, for logs and messages.
func (r Ref) String() string { return r.Kind + "." + r.Group + "/" + r.Name }

// LogValue is String in the log, and none where r names no issuer.
func (r Ref) LogValue() slog.Value {
	if r.Name == "" {
		return slog.StringValue("none")
	}
	return slog.StringValue(r.String())
}

// Snapshot is what is in force at one moment. It is immutable.
type Snapshot struct {
	// Ref is the issuer that signs leaves. Its defaults are filled in; its name is empty where there is none.
	Ref Ref
	// Serving is the issuer of our serving certificate and of istiod's; Ref where it isn't set.
	Serving Ref
	// Anchors are the mesh's trust anchors, which every answer carries; empty until they are known.
	Anchors Bundle
	// Trusted are those among them that an issuer may sign under.
	Trusted Bundle
	// Rollover is the state that the anchors come from; nil until it is known.
	Rollover *Rollover
}

// ServingRef is the issuer of our serving certificate and of istiod's.
func (s *Snapshot) ServingRef() Ref {
	if s.Serving.Name != "" {
		return s.Serving
	}
	return s.Ref
}

// Store holds the snapshot in force. Safe for concurrent use.
type Store struct {
	current atomic.Pointer[versioned]
	mu      sync.Mutex // held by writers

	fenced    atomic.Bool
	confirmed atomic.Pointer[time.Time] // nil before the first time
}

// fenceAfter is how old the last confirmation may be. It is less than the time after which a rollover doesn't wait for a
// replica any more that says nothing.
const fenceAfter = 30 * time.Second

// EnableFence makes Fence refuse until the first confirmation.
func (s *Store) EnableFence() { s.fenced.Store(true) }

// Confirm says that the anchors were those of the shared state at a time, and that the others know that.
func (s *Store) Confirm(at time.Time) { s.confirmed.Store(&at) }

// Fence says why leaves must not be signed with the snapshot in force: it was confirmed too long ago, so that the others may
// go on without us. It is nil where there is no fence.
func (s *Store) Fence(now time.Time) error {
	if !s.fenced.Load() {
		return nil
	}
	at := s.confirmed.Load()
	switch {
	case at == nil:
		return errors.New("the other replicas don't know of this one yet")
	case now.Sub(*at) > fenceAfter:
		return fmt.Errorf("this replica hasn't reached the API server for %s; the mesh's anchors may be others by now", now.Sub(*at).Round(time.Second))
	}
	return nil
}

// versioned is a snapshot with what tells that it isn't in force any more.
type versioned struct {
	Snapshot
	replaced chan struct{}
}

// NewStore starts with ref, which may be empty, and no anchors.
func NewStore(ref Ref) *Store {
	s := &Store{}
	if ref.Name != "" {
		ref = ref.WithDefaults()
	}
	s.current.Store(&versioned{Snapshot: Snapshot{Ref: ref}, replaced: make(chan struct{})})
	return s
}

// Current is the snapshot in force, never nil. Read it once per request.
func (s *Store) Current() *Snapshot { return &s.current.Load().Snapshot }

// Watch is the snapshot in force, and a channel that is closed when another one is.
func (s *Store) Watch() (*Snapshot, <-chan struct{}) {
	current := s.current.Load()
	return &current.Snapshot, current.replaced
}

// Update puts in force, for requests that begin from now on, what change makes of the snapshot.
func (s *Store) Update(change func(*Snapshot)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.current.Load()
	next := &versioned{Snapshot: old.Snapshot, replaced: make(chan struct{})}
	change(&next.Snapshot)
	s.current.Store(next)
	close(old.replaced)
}

// SetAnchors puts anchors in force that issuers may sign under, for requests that begin from now on.
func (s *Store) SetAnchors(anchors Bundle) {
	s.Update(func(snapshot *Snapshot) { snapshot.Anchors, snapshot.Trusted = anchors, anchors })
}

// WaitKnown returns when anchors are known and an issuer is in force, or with the error of ctx.
func (s *Store) WaitKnown(ctx context.Context) error {
	for {
		snapshot, replaced := s.Watch()
		if !snapshot.Anchors.Empty() && snapshot.ServingRef().Name != "" {
			return nil
		}
		select {
		case <-replaced:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
