// Victim records certificates all the time until it is killed, and prints the key of each one whose
// record is acknowledged, a line each: "SERIAL SHA256". It is for tests that kill it at any moment.
//
// Usage: victim DIR NAME
//
// DIR is the store's directory, and NAME makes the keys of this run differ from those of others.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/signet-ca/signet/api/ledger"
)

const callers = 16

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: victim DIR NAME")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir, name string) error {
	store, err := ledger.Open(ctx, ledger.Config{Dir: dir, Replica: "victim"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	group.Go(func() { _ = store.Start(ctx) }) // never returns
	failed := make(chan error, callers)
	for caller := range callers {
		go func() {
			for n := 0; ; n++ {
				i := issuance(fmt.Sprintf("%s %d %d", name, caller, n))
				if err := store.Record(ctx, i); err != nil {
					failed <- err
					return
				}
				// One write: a line is printed whole or not at all.
				if _, err := os.Stdout.WriteString(i.SerialNumber + " " + i.SHA256 + "\n"); err != nil {
					failed <- err
					return
				}
				store.Refused(ledger.Refusal{Reason: "identity", Code: "PermissionDenied", Peer: fmt.Sprint(n % 100)})
				time.Sleep(time.Millisecond) // a store of moderate size, with a commit always under way
			}
		}()
	}
	return <-failed
}

func issuance(name string) ledger.Issuance {
	sum := sha256.Sum256([]byte(name))
	now := time.Now()
	id := fmt.Sprintf("spiffe://cluster.local/ns/victim/sa/%x", sum[0])
	return ledger.Issuance{
		IssuerKeyID: "00112233445566778899aabbccddeeff00112233", SerialNumber: "01" + hex.EncodeToString(sum[:15]), SHA256: hex.EncodeToString(sum[:]),
		DER: make([]byte, 700), NotBefore: now, NotAfter: now.Add(time.Hour), Identity: id, Namespace: "victim", SANs: []string{id, "victim.example"}, PodUID: name,
	}
}
