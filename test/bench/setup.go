package main

import (
	"context"
	"crypto"
	"fmt"
	"runtime"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/replica"
)

const (
	workloads  = 400 // each with a service account and a token of its own
	namespaces = 8
	rsaKeys    = 8 // RSA keys are slow to make; CSRs differ by their identity too
)

// bench is one kind of key: a namespace with its CA, a Signet and a bare client in it.
type bench struct {
	plane     *controlplane.Plane
	rsa       bool
	namespace string
	root      []byte
	replica   *replica.Replica
	progress  func(format string, args ...any)
	bare      side
	signet    side

	ids    []spiffeid.ID
	tokens []string
	keys   []crypto.Signer // for RSA
	csrs   []string        // of the measurement that runs
}

// prepare makes the CA, the identities and both sides.
func prepare(ctx context.Context, plane *controlplane.Plane, rsa bool, progress func(string, ...any)) (*bench, error) {
	b := &bench{plane: plane, rsa: rsa, namespace: "signet-ecdsa", progress: progress}
	if rsa {
		b.namespace = "signet-rsa"
	}
	if err := plane.Namespace(ctx, b.namespace); err != nil {
		return nil, err
	}
	var err error
	if b.root, err = plane.BootstrapCA(ctx, b.namespace, "istio-ca", controlplane.CAOptions{RSA: rsa}); err != nil {
		return nil, err
	}
	if err := b.identities(ctx); err != nil {
		return nil, err
	}
	progress("%d workloads with tokens in %d namespaces", workloads, namespaces)
	settings := map[string]any{}
	if rsa {
		settings["serving.key"] = "RSA-2048"
	}
	if b.replica, err = replica.Start(ctx, plane, replica.Config{Namespace: b.namespace, RootPEM: b.root, Settings: settings}); err != nil {
		return nil, err
	}
	b.signet = &signetSide{bench: b}
	if b.bare, err = newBareSide(ctx, b); err != nil {
		b.stop()
		return nil, err
	}
	settling, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return b, b.signet.settle(settling) // the serving certificate's own request
}

func (b *bench) stop() { b.replica.Stop() }

// identities makes the workloads' service accounts and tokens, before any clock runs.
func (b *bench) identities(ctx context.Context) error {
	b.ids, b.tokens = make([]spiffeid.ID, workloads), make([]string, workloads)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i := range workloads {
		namespace, account := fmt.Sprintf("%s-%d", b.namespace, i%namespaces), fmt.Sprintf("workload-%d", i)
		b.ids[i] = spiffeid.RequireFromString("spiffe://cluster.local/ns/" + namespace + "/sa/" + account)
		if i < namespaces {
			if err := b.plane.Namespace(ctx, namespace); err != nil {
				return err
			}
		}
		group.Go(func() error {
			if err := b.plane.ServiceAccount(ctx, namespace, account); err != nil {
				return err
			}
			var err error
			b.tokens[i], err = b.plane.Token(ctx, namespace, account, controlplane.TokenOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if b.rsa {
		for range rsaKeys {
			key, err := meshclient.NewKey(meshclient.RSA2048)
			if err != nil {
				return err
			}
			b.keys = append(b.keys, key)
		}
	}
	return nil
}

// prepareCSRs makes n different CSRs, CSR i for workload i modulo their number. With RSA they are the
// same in each measurement, when the objects of the last one are gone.
func (b *bench) prepareCSRs(n int) error {
	b.csrs = make([]string, n)
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for i := range n {
		id := b.ids[i%workloads]
		group.Go(func() error {
			var err error
			if b.rsa {
				b.csrs[i], err = rsaCSR(b.keys[i/workloads%rsaKeys], id)
			} else {
				_, b.csrs[i], err = meshclient.ZtunnelCSR(id)
			}
			return err
		})
	}
	return group.Wait()
}

// objects counts the CertificateRequests in the bench's namespace.
func (b *bench) objects(ctx context.Context) (int, error) {
	var list cmapi.CertificateRequestList
	err := b.plane.Client().List(ctx, &list, client.InNamespace(b.namespace))
	n := 0
	for _, cr := range list.Items {
		if len(cr.OwnerReferences) == 0 { // cert-manager keeps the CA's own
			n++
		}
	}
	return n, err
}

// rsaCSR is the request that Istio's agent sends, for a key that is there already.
func rsaCSR(key crypto.Signer, id spiffeid.ID) (string, error) {
	der, err := meshclient.BuildCSR(meshclient.Template{
		Key:        key,
		Subject:    meshclient.EmptyOrganization(),
		Extensions: []meshclient.Extension{meshclient.SAN(true, meshclient.URIName(id.String()))},
	})
	return meshclient.EncodeCSR(der), err
}
