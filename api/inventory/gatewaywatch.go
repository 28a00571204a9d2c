package inventory

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/watches"
)

// Sources of what is said of gateways, in the coverage of their lists.
const (
	kubernetesSource   = "gateways.gateway.networking.k8s.io"
	grantsSource       = "referencegrants.gateway.networking.k8s.io"
	istioSource        = "gateways.networking.istio.io"
	certificatesSource = "certificates.cert-manager.io"
	secretsSource      = "secrets"
)

// gatewayKind is a kind that gateways are joined from. Its API may not be installed.
type gatewayKind struct {
	source   string
	resource schema.GroupResource
	versions []string // that have the same fields, the best first
	read     func(*gatewayIndex, *unstructured.Unstructured) error
	drop     func(*gatewayIndex, name)
	names    func(*gatewayIndex) []name
}

var gatewayKinds = []gatewayKind{
	{
		kubernetesSource, schema.GroupResource{Group: string(api.KubernetesGateway), Resource: "gateways"}, []string{"v1", "v1beta1"},
		keep(readKubernetesGateway, (*gatewayIndex).setGateway),
		func(x *gatewayIndex, of name) { x.dropGateway(api.KubernetesGateway, of) },
		func(x *gatewayIndex) []name { return x.gatewayNames(api.KubernetesGateway) },
	},
	{
		grantsSource, schema.GroupResource{Group: string(api.KubernetesGateway), Resource: "referencegrants"}, []string{"v1", "v1beta1"},
		keep(readGrant, (*gatewayIndex).setGrant), (*gatewayIndex).dropGrant, (*gatewayIndex).grantNames,
	},
	{
		istioSource, schema.GroupResource{Group: string(api.IstioGateway), Resource: "gateways"}, []string{"v1", "v1beta1", "v1alpha3"},
		keep(readIstioGateway, (*gatewayIndex).setGateway),
		func(x *gatewayIndex, of name) { x.dropGateway(api.IstioGateway, of) },
		func(x *gatewayIndex) []name { return x.gatewayNames(api.IstioGateway) },
	},
	{
		certificatesSource, schema.GroupResource{Group: "cert-manager.io", Resource: "certificates"}, []string{"v1"},
		keep(readCertificate, (*gatewayIndex).setCertificate), (*gatewayIndex).dropCertificate, (*gatewayIndex).certificateNames,
	},
}

// keep reads an object, and keeps what was read.
func keep[T any](read func(*unstructured.Unstructured) (*T, error), set func(*gatewayIndex, *T)) func(*gatewayIndex, *unstructured.Unstructured) error {
	return func(x *gatewayIndex, o *unstructured.Unstructured) error {
		kept, err := read(o)
		if err == nil {
			set(x, kept)
		}
		return err
	}
}

// checkTimeout bounds a question whether an API is there, and the reading of a Secret.
const checkTimeout = 10 * time.Second

// ObserveGateways makes [Inventory.Start] follow gateways of both APIs, ReferenceGrants and cert-manager's Certificates
// in all namespaces: list and watch are the rights it needs. Where an API isn't installed, or a right is missing, the
// coverage of [Inventory.Gateways] says so; it is looked for again from time to time. It doesn't dial. Call it once,
// before Start.
func (i *Inventory) ObserveGateways(config *rest.Config) error {
	if i.cfg.Gateways.Disabled {
		return nil
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return fmt.Errorf("make client for gateways: %w", err)
	}
	objects, err := dynamic.NewForConfigAndClient(config, client)
	if err != nil {
		return fmt.Errorf("make client for gateways: %w", err)
	}
	core := rest.CopyConfig(config)
	core.APIPath, core.GroupVersion = "/api", &corev1.SchemeGroupVersion
	core.ContentType, core.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	core.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	plain, err := rest.RESTClientForConfigAndClient(core, client)
	if err != nil {
		return fmt.Errorf("make client for gateways: %w", err)
	}
	every := i.cfg.Gateways.CheckEvery.Or(defaultCheckEvery)
	for _, kind := range gatewayKinds {
		if kind.source != certificatesSource || !i.cfg.Gateways.WithoutCertificates {
			i.followers = append(i.followers, &follower{gatewayKind: kind, i: i, every: every, objects: objects, plain: plain, again: make(chan struct{}, 1)})
		}
	}
	if len(i.cfg.Gateways.ReadSecrets) > 0 {
		i.secretReader = newSecretReader(i, plain, every)
	}
	return nil
}

// gatewaySources say of what gateways are joined from whether it is known.
func (i *Inventory) gatewaySources() []api.Source {
	var sources []api.Source
	for _, kind := range gatewayKinds {
		source := api.Source{Name: kind.source, Reason: "not watched"}
		switch {
		case i.cfg.Gateways.Disabled:
			source.Reason = "turned off by inventory.gateways.disabled"
		case kind.source == certificatesSource && i.cfg.Gateways.WithoutCertificates:
			source.Reason = "turned off by inventory.gateways.withoutCertificates"
		}
		if at := slices.IndexFunc(i.followers, func(f *follower) bool { return f.source == kind.source }); at >= 0 {
			source = i.followers[at].state()
		}
		sources = append(sources, source)
	}
	if i.secretReader != nil {
		sources = append(sources, i.secretReader.state())
	}
	return sources
}

// gatewaySourceDown is why a source isn't up; "" where it is.
func (i *Inventory) gatewaySourceDown(name string) string {
	for _, source := range i.gatewaySources() {
		if source.Name == name && !source.Up {
			return source.Reason
		}
	}
	return ""
}

// followGateways follows all of it until ctx ends and it has stopped.
func (i *Inventory) followGateways(ctx context.Context) {
	var group sync.WaitGroup
	for _, f := range i.followers {
		group.Go(func() { f.run(ctx) })
	}
	if i.secretReader != nil {
		group.Go(func() { i.secretReader.run(ctx) })
	}
	group.Wait()
}

// gatewaysChanged says that an answer about gateways may have changed.
func (i *Inventory) gatewaysChanged() {
	if i.secretReader != nil {
		i.secretReader.look()
	}
	i.touch()
}

// follower follows the objects of one kind, for as long as its API is there. It is the store of its reflector: what is
// kept of an object is all that is kept.
type follower struct {
	gatewayKind
	i       *Inventory
	every   time.Duration
	objects dynamic.Interface
	plain   rest.Interface
	again   chan struct{} // holds one when a request has failed since the last check

	loaded atomic.Bool            // the first list has been worked through
	reason atomic.Pointer[string] // why nothing comes from it; nil where it does
	absent atomic.Bool
}

// state is what the coverage says of it.
func (f *follower) state() api.Source {
	s := api.Source{Name: f.source}
	reason := f.reason.Load()
	switch {
	case f.absent.Load():
		s.Up, s.Reason = true, "not installed in this cluster"
	case reason != nil:
		s.Reason = *reason
	case !f.loaded.Load():
		s.Reason = "not listed yet"
	default:
		s.Up = true
	}
	return s
}

// fail takes note of why nothing comes.
func (f *follower) fail(err error) {
	text := err.Error()
	if former := f.reason.Swap(&text); former == nil || *former != text {
		f.i.log.Warn("follow what gateways are joined from", "source", f.source, "err", err)
	}
	f.i.touch()
}

// succeed takes note that something came.
func (f *follower) succeed() {
	f.absent.Store(false)
	if f.reason.Swap(nil) != nil {
		f.i.touch()
	}
}

// run follows the objects whenever their API is there, until ctx ends.
func (f *follower) run(ctx context.Context) {
	for wait := time.Second; ; {
		version, err := f.check(ctx, true)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && version == "":
			f.forget()
			wait = f.every
		case err == nil:
			f.follow(ctx, version)
			wait = time.Second
			continue
		default:
			f.fail(err)
			if wait = min(2*wait, f.every); apierrors.IsForbidden(err) {
				wait = f.every
			}
		}
		if !pause(ctx, wait) {
			return
		}
	}
}

// forget takes note that the API isn't there.
func (f *follower) forget() {
	f.absent.Store(true)
	f.loaded.Store(false)
	f.reason.Store(nil)
	for _, of := range f.names(f.i.gateways) {
		f.drop(f.i.gateways, of)
	}
	f.i.gatewaysChanged()
}

// check is the version in which the objects are served, "" where they aren't. With list it fails where they may not be
// listed.
func (f *follower) check(ctx context.Context, list bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	for _, version := range f.versions {
		group := f.resource.WithVersion(version).GroupVersion().String()
		text, err := f.plain.Get().AbsPath("/apis/" + group).Do(ctx).Raw()
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("ask which resources %s has: %w", group, err)
		}
		var resources metav1.APIResourceList
		if err := json.Unmarshal(text, &resources); err != nil {
			return "", fmt.Errorf("read which resources %s has: %w", group, err)
		}
		if !slices.ContainsFunc(resources.APIResources, func(r metav1.APIResource) bool { return r.Name == f.resource.Resource }) {
			continue
		}
		if list {
			if _, err := f.in(version).List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
				return "", fmt.Errorf("list %s: %w", f.resource, err)
			}
		}
		return version, nil
	}
	return "", nil
}

func (f *follower) in(version string) dynamic.NamespaceableResourceInterface {
	return f.objects.Resource(f.resource.WithVersion(version))
}

// follow follows the objects in a version until ctx ends, or they aren't served in it any more, or may not be listed.
func (f *follower) follow(ctx context.Context, version string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	note := func(ctx context.Context, err error) {
		switch {
		case ctx.Err() != nil:
		case err == nil:
			f.succeed()
		case apierrors.IsResourceExpired(err) || apierrors.IsGone(err): // it lists anew
		default:
			f.fail(err)
			select {
			case f.again <- struct{}{}:
			default:
			}
		}
	}
	objects := f.in(version)
	reflector := toolscache.NewReflectorWithOptions(watches.ListWatch(
		func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return objects.List(ctx, options)
		},
		objects.Watch,
		note,
	), &unstructured.Unstructured{}, f, toolscache.ReflectorOptions{Name: f.source})
	var group sync.WaitGroup
	group.Go(func() { reflector.RunWithContext(ctx) })
	defer group.Wait()
	defer cancel()
	for {
		timer, failed := time.NewTimer(f.every), false
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-f.again:
			failed = true
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
		// What else fails is tried again by the reflector.
		if now, err := f.check(ctx, failed); err == nil && now != version || apierrors.IsForbidden(err) {
			return
		}
		if failed && !pause(ctx, time.Second) {
			return
		}
	}
}

// The following make it a [toolscache.ReflectorStore].

// Add takes note of an object.
func (f *follower) Add(object any) error { return f.Update(object) }

// Update takes note of an object's new form.
func (f *follower) Update(object any) error {
	f.see(object)
	f.i.gatewaysChanged()
	return nil
}

func (f *follower) see(object any) (of name) {
	o, ok := object.(*unstructured.Unstructured)
	if !ok {
		return name{}
	}
	of = name{o.GetNamespace(), o.GetName()}
	if err := f.read(f.i.gateways, o); err != nil {
		f.i.log.Warn("an object is left out of what gateways are joined from", "source", f.source, "err", err)
		f.drop(f.i.gateways, of)
	}
	return of
}

// Delete takes note that an object isn't there any more.
func (f *follower) Delete(object any) error {
	if o, ok := object.(*unstructured.Unstructured); ok {
		f.drop(f.i.gateways, name{o.GetNamespace(), o.GetName()})
		f.i.gatewaysChanged()
	}
	return nil
}

// Replace takes note of all objects.
func (f *follower) Replace(objects []any, _ string) error {
	there := make(map[name]bool, len(objects))
	for _, object := range objects {
		there[f.see(object)] = true
	}
	for _, of := range f.names(f.i.gateways) {
		if !there[of] {
			f.drop(f.i.gateways, of)
		}
	}
	f.loaded.Store(true)
	f.succeed()
	f.i.gatewaysChanged()
	return nil
}

// Resync does nothing.
func (f *follower) Resync() error { return nil }
