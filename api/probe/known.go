package probe

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Known names certificates that are in no record, though they lead to the mesh's anchors: istiod's, those of gateways.
// Safe for concurrent use.
type Known interface {
	// Known is the namespace and the name of what holds leaf, best in a namespace; ok is false where nothing does.
	Known(ctx context.Context, leaf *x509.Certificate, namespace string) (in, name string, ok bool, err error)
}

// Certificates knows cert-manager's Certificates: one holds a leaf where their names are the same, and the validity that
// its status tells. No Secret is read. Reader must not be a cache.
type Certificates struct{ Reader client.Reader }

const certificatesPage = 250

// Known implements [Known].
func (c Certificates) Known(ctx context.Context, leaf *x509.Certificate, namespace string) (in, name string, ok bool, err error) {
	for _, scope := range [][]client.ListOption{{client.InNamespace(namespace)}, nil} {
		for next := ""; ; {
			var list cmapi.CertificateList
			options := append([]client.ListOption{client.Limit(certificatesPage), client.Continue(next)}, scope...)
			if err := c.Reader.List(ctx, &list, options...); apierrors.IsNotFound(err) {
				return "", "", false, nil // there is no such kind
			} else if err != nil {
				return "", "", false, fmt.Errorf("list Certificates: %w", err)
			}
			for i := range list.Items {
				if holds(&list.Items[i], leaf) {
					return list.Items[i].Namespace, list.Items[i].Name, true, nil
				}
			}
			if next = list.Continue; next == "" {
				break
			}
		}
	}
	return "", "", false, nil
}

// holds says whether a Certificate is where leaf comes from, as far as it tells.
func holds(c *cmapi.Certificate, leaf *x509.Certificate) bool {
	begins, ends := c.Status.NotBefore, c.Status.NotAfter
	if begins == nil || ends == nil || !sameSecond(begins.Time, leaf.NotBefore) || !sameSecond(ends.Time, leaf.NotAfter) {
		return false
	}
	var uris []string
	for _, uri := range leaf.URIs {
		uris = append(uris, uri.String())
	}
	var addresses, wanted []string
	for _, address := range leaf.IPAddresses {
		addresses = append(addresses, address.String())
	}
	for _, text := range c.Spec.IPAddresses {
		wanted = append(wanted, net.ParseIP(text).String())
	}
	return sameNames(leaf.DNSNames, c.Spec.DNSNames) && sameNames(uris, c.Spec.URIs) &&
		sameNames(addresses, wanted) && sameNames(leaf.EmailAddresses, c.Spec.EmailAddresses)
}

func sameSecond(a, b time.Time) bool { return a.Unix() == b.Unix() }

func sameNames(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}
