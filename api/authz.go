package api

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"
	authorizationv1 "k8s.io/api/authorization/v1"
	lru "k8s.io/apimachinery/pkg/util/cache"
)

// rbacGroup is the API group of what callers may see. There are no such objects in Kubernetes; only rights name them.
const rbacGroup = "signet.dev"

// Resources and verbs of the rights.
const (
	resourceServices     = "services"
	resourceCertificates = "certificates"
	resourceIdentities   = "identities"
	resourceIssuances    = "issuances"
	resourceGateways     = "gateways"
	resourceTrust        = "trust"
	resourceProbes       = "probes"

	verbGet    = "get"
	verbList   = "list"
	verbWatch  = "watch"
	verbCreate = "create"
)

// authoriser asks the API server what callers may see, and keeps its answers for a while. Safe for concurrent use.
type authoriser struct {
	cacheTime  time.Duration
	reviews    *reviews
	namespaces func() []string
	kept       *lru.LRUExpireCache // bool by digest of the question
	sets       *lru.LRUExpireCache // someNamespaces by digest of the question
	underWay   singleflight.Group
}

const (
	// keptAnswers bounds the answers that are kept.
	keptAnswers = 16384
	// keptSets bounds the sets of namespaces that are kept.
	keptSets = 256
	// dutyOfSets is how many times as long as it took to ask for a set it is kept at least, up to maxKeepSet.
	dutyOfSets = 10
	maxKeepSet = time.Minute
	// askedAtOnce bounds the questions for one list.
	askedAtOnce = 8
)

func newAuthoriser(cfg Config, reviews *reviews, namespaces func() []string) *authoriser {
	if namespaces == nil {
		namespaces = func() []string { return nil }
	}
	return &authoriser{
		cacheTime:  cfg.CacheTime.Or(0),
		reviews:    reviews,
		namespaces: namespaces,
		kept:       lru.NewLRUExpireCache(keptAnswers),
		sets:       lru.NewLRUExpireCache(keptSets),
	}
}

// everything implements [Visible] for who may see every namespace.
type everything struct{}

func (everything) All() bool             { return true }
func (everything) Namespace(string) bool { return true }

// someNamespaces implements [Visible] for who may see these namespaces, sorted.
type someNamespaces []string

func (someNamespaces) All() bool { return false }

func (s someNamespaces) Namespace(name string) bool {
	_, found := slices.BinarySearch(s, name)
	return found
}

// question is the review that asks whether c may do something. Namespace "" stands for all of them.
func question(c *caller, verb, resource, namespace string) authorizationv1.SubjectAccessReviewSpec {
	spec := authorizationv1.SubjectAccessReviewSpec{
		User: c.name, UID: c.uid, Groups: c.groups,
		ResourceAttributes: &authorizationv1.ResourceAttributes{Group: rbacGroup, Version: "v1", Resource: resource, Verb: verb, Namespace: namespace},
	}
	if len(c.extra) > 0 {
		spec.Extra = make(map[string]authorizationv1.ExtraValue, len(c.extra))
		for key, values := range c.extra {
			spec.Extra[key] = values
		}
	}
	return spec
}

type questionKey [sha256.Size]byte

func keyOf(spec authorizationv1.SubjectAccessReviewSpec) questionKey {
	text, _ := json.Marshal(spec) // of strings only
	return sha256.Sum256(text)
}

// may says whether c may do something in a namespace, "" for all of them. The error is a *fault: 503.
func (a *authoriser) may(ctx context.Context, c *caller, verb, resource, namespace string) (bool, error) {
	spec := question(c, verb, resource, namespace)
	key := keyOf(spec)
	if kept, ok := a.kept.Get(key); ok {
		return kept.(bool), nil
	}
	allowed, err := shared(ctx, &a.underWay, key, func(ctx context.Context) (bool, error) {
		allowed, err := a.reviews.access(ctx, spec)
		if err == nil {
			a.kept.Add(key, allowed, a.cacheTime)
		}
		return allowed, err
	})
	if err != nil {
		return false, unavailable("what you may see", err)
	}
	return allowed, nil
}

// shared runs ask once for all who come with the same key meanwhile; it goes on when one of them leaves.
func shared[T any](ctx context.Context, group *singleflight.Group, key questionKey, ask func(context.Context) (T, error)) (T, error) {
	done := group.DoChan(string(key[:]), func() (any, error) { return ask(context.WithoutCancel(ctx)) })
	select {
	case result := <-done:
		value, _ := result.Val.(T)
		return value, result.Err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// visible are the namespaces of which c may list or watch a resource. With a namespace it is only that one, but for
// gateways, which tell of Secrets in others. The error is a *fault: 403 where there is none, 503.
func (a *authoriser) visible(ctx context.Context, c *caller, verb, resource, namespace string) (Visible, error) {
	if namespace != "" {
		if err := a.must(ctx, c, verb, resource, namespace); err != nil {
			return nil, err
		}
		if resource != resourceGateways {
			return someNamespaces{namespace}, nil
		}
	}
	all, err := a.may(ctx, c, verb, resource, "")
	if err != nil {
		return nil, err
	}
	if all {
		return everything{}, nil
	}
	some, err := a.some(ctx, c, verb, resource)
	if err != nil {
		return nil, err
	}
	if namespace != "" && !some.Namespace(namespace) { // it isn't known of yet
		some = append(slices.Clone(some), namespace)
		slices.Sort(some)
	}
	if len(some) == 0 {
		return nil, forbidden(c, verb, resource, "in any namespace")
	}
	return some, nil
}

// some asks for each namespace.
func (a *authoriser) some(ctx context.Context, c *caller, verb, resource string) (someNamespaces, error) {
	key := keyOf(question(c, verb, resource, "*")) // "*" is no namespace
	if kept, ok := a.sets.Get(key); ok {
		return kept.(someNamespaces), nil
	}
	some, err := shared(ctx, &a.underWay, key, func(ctx context.Context) (someNamespaces, error) {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		begin := time.Now()
		names := a.namespaces()
		allowed := make([]bool, len(names))
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(askedAtOnce)
		for i, name := range names {
			group.Go(func() (err error) {
				allowed[i], err = a.reviews.access(ctx, question(c, verb, resource, name))
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return nil, err
		}
		some := someNamespaces{}
		for i, name := range names {
			if allowed[i] {
				some = append(some, name)
			}
		}
		slices.Sort(some)
		// A thousand questions take the API server seconds of CPU.
		a.sets.Add(key, some, max(a.cacheTime, min(dutyOfSets*time.Since(begin), maxKeepSet)))
		return some, nil
	})
	if err != nil {
		return nil, unavailable("what you may see", err)
	}
	return some, nil
}

// must is may, as a *fault: 403 where c may not.
func (a *authoriser) must(ctx context.Context, c *caller, verb, resource, namespace string) error {
	allowed, err := a.may(ctx, c, verb, resource, namespace)
	if err != nil {
		return err
	}
	if !allowed {
		where := "in the cluster"
		if namespace != "" {
			where = "in namespace " + namespace
		}
		return forbidden(c, verb, resource, where)
	}
	return nil
}

// forbidden says what is missing. It doesn't depend on what exists.
func forbidden(c *caller, verb, resource, where string) *fault {
	return newFault(http.StatusForbidden, fmt.Sprintf("%s may not %s %s.%s %s; a Role or ClusterRole must grant it", c.name, verb, resource, rbacGroup, where))
}
