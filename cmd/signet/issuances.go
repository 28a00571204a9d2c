package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/ca"
)

// issuances looks up in the ledger whom a certificate was issued to. It implements [ca.Issuances].
type issuances struct{ ledger *ledger.Store }

// sharedLookup bounds a question to the shared view, so that the caller's own deadline isn't used up.
const sharedLookup = 5 * time.Second

// IssuedTo implements [ca.Issuances]: this replica's own store is asked, and then the shared view.
func (i issuances) IssuedTo(ctx context.Context, sum [sha256.Size]byte) (ca.IssuedTo, bool, error) {
	name := hex.EncodeToString(sum[:])
	found, err := i.ledger.Local().Certificate(ctx, name)
	if shared := i.ledger.Shared(); errors.Is(err, ledger.ErrNotFound) && shared != nil {
		ctx, cancel := context.WithTimeout(ctx, sharedLookup)
		defer cancel()
		found, err = shared.Certificate(ctx, name)
	}
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return ca.IssuedTo{}, false, nil
	case err != nil:
		return ca.IssuedTo{}, false, err
	}
	to := ca.IssuedTo{
		Identity: found.Identity, Namespace: found.Namespace, ServiceAccount: found.ServiceAccount, ServiceAccountUID: found.ServiceAccountUID, Cluster: found.Cluster,
		PodName: found.Pod, PodUID: found.PodUID, NodeName: found.Node, Impersonated: found.Impersonated, ProvenAt: found.ProvenAt,
	}
	if to.ProvenAt.IsZero() {
		to.ProvenAt = found.RecordedAt
	}
	return to, true, nil
}
