package main

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/signet-ca/signet/api"
)

var issuanceKind = kind[api.Issuance]{
	word: "issuance", words: "issuances",
	name: func(i *api.Issuance) string {
		return pick(i, func(c *api.Certificate) string { return c.SHA256 }, nil) // a refusal is of nothing that has a name
	},
	key: func(*api.Issuance) string { return "" }, // none is ever removed
	columns: func(time.Time) []column[api.Issuance] {
		return []column[api.Issuance]{
			{title: "TIME", value: func(i *api.Issuance) string { return stamp(i.Time) }},
			{title: "OUTCOME", value: func(i *api.Issuance) string { return string(i.Outcome) }},
			{title: "NAMESPACE", value: func(i *api.Issuance) string { return pick(i, certificateNamespace, refusalNamespace) }},
			{title: "IDENTITY", value: func(i *api.Issuance) string {
				return pick(i,
					func(c *api.Certificate) string { return shortIdentity(c.Identity, c.Namespace) },
					func(r *api.Refusal) string { return shortIdentity(r.Identity, r.Namespace) })
			}},
			{title: "CALLER", value: func(i *api.Issuance) string {
				return pick(i, func(c *api.Certificate) string { return holderOf(c.Holder) }, func(r *api.Refusal) string { return r.Address })
			}},
			{title: "DETAIL", value: func(i *api.Issuance) string {
				return pick(i,
					func(c *api.Certificate) string {
						return fmt.Sprintf("%s, until %s", first(c.SHA256, 12), stamp(c.NotAfter))
					},
					func(r *api.Refusal) string {
						if r.Count > 1 {
							return fmt.Sprintf("%s (%s), %d times since %s", r.Reason, r.Code, r.Count, stamp(r.First))
						}
						return fmt.Sprintf("%s (%s)", r.Reason, r.Code)
					})
			}},
			{title: "WHOLE SHA256", wide: true, value: func(i *api.Issuance) string {
				return pick(i, func(c *api.Certificate) string { return c.SHA256 }, nil)
			}},
			{title: "SERIAL", wide: true, value: func(i *api.Issuance) string {
				return pick(i, func(c *api.Certificate) string { return c.Serial }, nil)
			}},
			{title: "SANS", wide: true, value: func(i *api.Issuance) string {
				return pick(i, func(c *api.Certificate) string { return strings.Join(c.SANs, ",") }, nil)
			}},
			{title: "REPLICA", wide: true, value: func(i *api.Issuance) string {
				return pick(i, func(c *api.Certificate) string { return c.Replica }, func(r *api.Refusal) string { return r.Replica })
			}},
		}
	},
}

func certificateNamespace(c *api.Certificate) string { return c.Namespace }
func refusalNamespace(r *api.Refusal) string         { return r.Namespace }

// pick asks what a line of the audit is about.
func pick(i *api.Issuance, issued func(*api.Certificate) string, refused func(*api.Refusal) string) string {
	switch {
	case i.Certificate != nil && issued != nil:
		return issued(i.Certificate)
	case i.Refusal != nil && refused != nil:
		return refused(i.Refusal)
	}
	return ""
}

func (p *program) issuances() *cobra.Command {
	var flags listFlags
	var q api.IssuanceQuery
	var since, outcome string
	c := &cobra.Command{
		Use:   "issuances",
		Short: "List what was issued and what was refused",
		Long: `Lists the audit, the latest first: each certificate that was issued, and each kind of refusal with how often it
happened. With --follow new lines come as they happen, from now on or from --since.`,
		Example: p.examples("issuances -A --since 1h --outcome refused", "issuances -n shop --follow"),
		Aliases: []string{"issuance", "audit"},
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if q.Since, err = parseSince(since, p.now()); err != nil {
				return err
			}
			q.Outcome = api.Outcome(outcome)
			return lists(c.Context(), p, issuanceKind, flags, &q.Namespace,
				func(ctx context.Context, client *api.Client, at api.Page) (*page[api.Issuance], error) {
					q.Page = at
					l, err := client.Issuances(ctx, q)
					return (*page[api.Issuance])(l), err
				},
				func(ctx context.Context, client *api.Client, resume string) iter.Seq2[api.Event[api.Issuance], error] {
					return client.WatchIssuances(ctx, q, resume)
				})
		},
	}
	c.Flags().StringVar(&since, "since", "", "not before this `time`: RFC 3339, or how long ago, such as 90m or 7d")
	c.Flags().StringVar(&q.Identity, "identity", "", "of this SPIFFE `ID`")
	choice(c, c.Flags(), &outcome, "outcome", "with this `outcome`", api.Issued, api.Refused)
	flags.flags(c, 100, "")
	c.Flags().BoolVarP(&flags.watch, "follow", "f", false, "go on with new lines, until interrupted")
	c.Flags().BoolVarP(&flags.watch, "watch", "w", false, "the same")
	return c
}

func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at, nil
	}
	ago, err := parseLength(text)
	if err != nil {
		return time.Time{}, usage("--since %q: it must be a time such as 2026-01-31T12:00:00Z, or how long ago: a number of seconds, or such as 90m, 36h or 7d", text)
	}
	return now.Add(-ago), nil
}
