package main

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/ca"
)

// existing reads objects of these UIDs, by name, and fails for the names that have an error.
type existing struct {
	client.Reader
	uids map[string]types.UID
	errs map[string]error
}

func (e existing) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	if err := e.errs[key.Name]; err != nil {
		return err
	}
	uid, ok := e.uids[key.Name]
	if !ok {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "objects"}, key.Name)
	}
	into.SetUID(uid)
	return nil
}

// TestLocalLeaf: a client certificate is good while the workload that it was issued to is there. That nobody can tell
// isn't that it is gone.
func TestLocalLeaf(t *testing.T) {
	to := ca.IssuedTo{Namespace: "shop", ServiceAccount: "cart", ServiceAccountUID: "a1", PodName: "cart-0", PodUID: "p1", Cluster: "east"}
	there := existing{uids: map[string]types.UID{"cart": "a1", "cart-0": "p1"}}
	unsynced := errors.New("the cache isn't synced")
	with := func(change func(*ca.IssuedTo)) ca.IssuedTo {
		changed := to
		change(&changed)
		return changed
	}
	for name, row := range map[string]struct {
		to      ca.IssuedTo
		unknown bool
		objects existing
		whyNot  string
		err     string
	}{
		"there":                   {to: to, objects: there},
		"no pod":                  {to: with(func(to *ca.IssuedTo) { to.PodName, to.PodUID = "", "" }), objects: existing{uids: map[string]types.UID{"cart": "a1"}}},
		"not in the ledger":       {to: to, unknown: true, objects: there, whyNot: "it isn't in the ledger"},
		"held by a node's proxy":  {to: with(func(to *ca.IssuedTo) { to.Impersonated = true }), objects: there, whyNot: "a node's proxy holds it, not the workload"},
		"another cluster":         {to: with(func(to *ca.IssuedTo) { to.Cluster = "west" }), objects: there, whyNot: `it was issued to a workload of cluster "west"`},
		"account deleted":         {to: to, objects: existing{uids: map[string]types.UID{"cart-0": "p1"}}, whyNot: "the service account that it was issued to is gone"},
		"account made anew":       {to: to, objects: existing{uids: map[string]types.UID{"cart": "a2", "cart-0": "p1"}}, whyNot: "the service account that it was issued to is gone"},
		"account not to be read":  {to: to, objects: existing{errs: map[string]error{"cart": unsynced}}, err: "look up service account shop/cart: the cache isn't synced"},
		"pod deleted":             {to: to, objects: existing{uids: map[string]types.UID{"cart": "a1"}}, whyNot: "the pod that it was issued to is gone"},
		"pod of the same name":    {to: to, objects: existing{uids: map[string]types.UID{"cart": "a1", "cart-0": "p2"}}, whyNot: "the pod that it was issued to is gone"},
		"pod that can't be asked": {to: to, objects: existing{uids: map[string]types.UID{"cart": "a1"}, errs: map[string]error{"cart-0": unsynced}}, err: "look up pod shop/cart-0: the cache isn't synced"},
	} {
		t.Run(name, func(t *testing.T) {
			whyNot, err := localLeaf(t.Context(), row.to, !row.unknown, "east", row.objects)
			assert.Equal(t, row.whyNot, whyNot)
			if row.err == "" {
				assert.NoError(t, err)
			} else {
				assert.EqualError(t, err, row.err)
			}
		})
	}
}
