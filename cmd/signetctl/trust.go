package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/signet-ca/signet/api"
)

func (p *program) trust() *cobra.Command {
	var check bool
	c := &cobra.Command{
		Use:     "trust",
		Short:   "Show whom the mesh trusts and who signs",
		Long:    "Shows the mesh's trust anchors with their place in the rollover, the issuers, how far the anchors are distributed, and all that ends but leaves. It needs a right that is of the whole cluster.",
		Example: p.examples("trust", "trust -o json"),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			attention := false
			err := show(c.Context(), p, "trust", "mesh", func(ctx context.Context, client *api.Client) (*api.Trust, error) {
				found, err := client.Trust(ctx)
				if err == nil {
					for _, subject := range found.Expiring {
						attention = attention || subject.State == api.Overdue || subject.State == api.Expired
					}
				}
				return found, err
			}, p.writeTrust)
			if err == nil && check && attention {
				return errAttention
			}
			return err
		},
	}
	c.Flags().BoolVar(&check, "check", false, "exit with code 5 where something is overdue or has expired")
	return c
}

// waitsFor is what an anchor's phase waits for: somebody, or the end of the last leaf that matters.
func waitsFor(a *api.Anchor, now time.Time) string {
	if a.Waits == "" && !a.Until.IsZero() {
		return "leaves that end " + relative(a.Until, now)
	}
	return a.Waits
}

func (p *program) writeTrust(out io.Writer, t *api.Trust, now time.Time) error {
	anchors := newTable(out, p.output, []column[api.Anchor]{
		{title: "ANCHOR", value: func(a *api.Anchor) string { return a.Subject }},
		{title: "PHASE", value: func(a *api.Anchor) string {
			if a.Federated {
				return "federated"
			}
			return a.Phase
		}},
		{title: "SINCE", value: func(a *api.Anchor) string { return relative(a.Since, now) }},
		{title: "NOT AFTER", value: func(a *api.Anchor) string { return relative(a.NotAfter, now) }},
		{title: "WAITS FOR", value: func(a *api.Anchor) string { return waitsFor(a, now) }},
		{title: "SOURCES", value: func(a *api.Anchor) string { return strings.Join(a.Sources, ",") }},
		{title: "SHA256", value: func(a *api.Anchor) string { return first(a.SHA256, 12) }},
		{title: "WHOLE SHA256", wide: true, value: func(a *api.Anchor) string { return a.SHA256 }},
		{title: "ENDS", wide: true, value: func(a *api.Anchor) string { return stamp(a.NotAfter) }},
	})
	if err := anchors.write(t.Anchors); err != nil {
		return err
	}
	for _, section := range []struct {
		title string
		lines []string
	}{{"Issuers", t.Issuers}, {"Distribution", t.Distribution}, {"Replicas", t.Replicas}} {
		if len(section.lines) == 0 {
			continue
		}
		if _, err := fmt.Fprintf(out, "\n%s:\n", section.title); err != nil {
			return err
		}
		for _, line := range section.lines {
			if _, err := fmt.Fprintf(out, "  %s\n", clean(line)); err != nil {
				return err
			}
		}
	}
	if len(t.Expiring) == 0 {
		return nil
	}
	if _, err := io.WriteString(out, "\n"); err != nil {
		return err
	}
	return newTable(out, p.output, []column[api.Subject]{
		{title: "WHAT ENDS", value: func(s *api.Subject) string { return s.Kind }},
		{title: "NOT AFTER", value: func(s *api.Subject) string { return relative(s.NotAfter, now) }},
		{title: "REMAINING", value: func(s *api.Subject) string { return bar(s.RemainingRatio) }},
		{title: "STATE", value: func(s *api.Subject) string { return string(s.State) }},
		{title: "DETAIL", value: func(s *api.Subject) string { return s.Text }},
	}).write(t.Expiring)
}
