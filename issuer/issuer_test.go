package issuer

import (
	"context"
	"errors"
	"sync"
	"testing"

	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/setting"
)

func TestRefValidate(t *testing.T) {
	for _, row := range []struct {
		name string
		ref  Ref
		want string // "" is right
	}{
		{"name alone", Ref{Name: "mesh"}, ""},
		{"Issuer", Ref{Name: "mesh", Kind: "Issuer"}, ""},
		{"ClusterIssuer", Ref{Name: "mesh", Kind: "ClusterIssuer", Group: "cert-manager.io"}, ""},
		{"external", Ref{Name: "mesh", Kind: "AWSPCAIssuer", Group: "awspca.cert-manager.io"}, ""},
		{"nameless", Ref{}, "issuer.name: must be set to the name of a cert-manager issuer"},
		{"other kind", Ref{Name: "mesh", Kind: "issuer"}, `issuer.kind: "issuer" is not an issuer kind of cert-manager.io; it must be Issuer or ClusterIssuer, or group must be set`},
		{"both", Ref{Kind: "CA"}, "issuer.name: must be set to the name of a cert-manager issuer\n" +
			`issuer.kind: "CA" is not an issuer kind of cert-manager.io; it must be Issuer or ClusterIssuer, or group must be set`},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := setting.NewProblems()
			row.ref.Validate(p.At("issuer"))
			if row.want == "" {
				assert.NoError(t, p.Err())
			} else {
				assert.EqualError(t, p.Err(), row.want)
			}
		})
	}
}

func TestRef(t *testing.T) {
	ref := Ref{Name: "mesh"}.WithDefaults()
	assert.Equal(t, Ref{Name: "mesh", Kind: "Issuer", Group: "cert-manager.io"}, ref)
	assert.Equal(t, ref, ref.WithDefaults())
	assert.Equal(t, "Issuer.cert-manager.io/mesh", ref.String())
	assert.Equal(t, "Issuer.cert-manager.io/mesh", ref.LogValue().String())
	assert.Equal(t, "none", Ref{}.LogValue().String())
	assert.Equal(t, cmmeta.IssuerReference{Name: "mesh", Kind: "Issuer", Group: "cert-manager.io"}, ref.Reference())
}

func TestLookupOfExternalIssuer(t *testing.T) {
	condition := Lookup(t.Context(), nil, "istio-system", Ref{Name: "mesh", Kind: "K", Group: "example.org"})
	assert.Equal(t, Condition{StateUnknown, "external issuers of group example.org can't be looked up"}, condition)
}

func TestStore(t *testing.T) {
	store := NewStore(Ref{Name: "mesh"})
	first := store.Current()
	assert.Equal(t, "Issuer", first.Ref.Kind)
	assert.True(t, first.Anchors.Empty())

	why := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	assert.ErrorIs(t, store.WaitKnown(ctx), why)

	// An empty bundle is not yet anchors.
	store.SetAnchors(Bundle{})
	assert.ErrorIs(t, store.WaitKnown(ctx), why)

	one, err := NewBundle(newRoot(t, "a", nil))
	require.NoError(t, err)
	var waiting sync.WaitGroup
	for range 3 {
		waiting.Go(func() { assert.NoError(t, store.WaitKnown(t.Context())) })
	}
	store.SetAnchors(one)
	waiting.Wait()
	assert.True(t, first.Anchors.Empty(), "a snapshot never changes")
	assert.Equal(t, one.PEM(), store.Current().Anchors.PEM())
	assert.Equal(t, first.Ref, store.Current().Ref)

	two, err := NewBundle(newRoot(t, "b", nil))
	require.NoError(t, err)
	store.SetAnchors(two)
	assert.Equal(t, two.PEM(), store.Current().Anchors.PEM())
	assert.NoError(t, store.WaitKnown(t.Context()))
}
