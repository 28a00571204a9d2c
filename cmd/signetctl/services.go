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

var serviceKind = kind[api.Service]{
	word: "service", words: "services",
	name:      func(s *api.Service) string { return s.Namespace + "/" + s.Name },
	key:       func(s *api.Service) string { return s.Namespace + "/" + s.Name },
	attention: func(s *api.Service) bool { return len(s.Problems) > 0 },
	columns: func(now time.Time) []column[api.Service] {
		return []column[api.Service]{
			{title: "NAMESPACE", value: func(s *api.Service) string { return s.Namespace }},
			{title: "SERVICE", value: func(s *api.Service) string { return s.Name }},
			{title: "IDENTITIES", value: func(s *api.Service) string { return few(shortIdentities(s.Identities, s.Namespace), 2) }},
			{title: "PODS", value: func(s *api.Service) string { return holding(s.Summary) }},
			{title: "NOT AFTER", value: func(s *api.Service) string { return relative(s.Summary.NotAfter, now) }},
			{title: "REMAINING", value: func(s *api.Service) string {
				if s.Summary.NotAfter.IsZero() {
					return ""
				}
				return bar(s.Summary.RemainingRatio)
			}},
			{title: "STATE", value: stateOf},
			{title: "SPIFFE IDS", wide: true, value: func(s *api.Service) string { return strings.Join(s.Identities, ",") }},
			{title: "PROBLEMS", wide: true, value: func(s *api.Service) string { return details(s.Problems) }},
		}
	},
}

func (p *program) services() *cobra.Command {
	var flags listFlags
	var problems bool
	c := &cobra.Command{
		Use:   "services",
		Short: "List services with the certificates that their pods hold",
		Long: `Lists services with the certificates that the pods behind them hold: how many of the pods hold one, when the first of
these ends, how much of its life is left, and what somebody should look at.`,
		Example: p.examples("services -A --problems", "services -n shop --watch"),
		Aliases: []string{"service", "svc"},
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			q := api.ServiceQuery{Problems: problems}
			return lists(c.Context(), p, serviceKind, flags, &q.Namespace,
				func(ctx context.Context, client *api.Client, at api.Page) (*page[api.Service], error) {
					q.Page = at
					l, err := client.Services(ctx, q)
					return (*page[api.Service])(l), err
				},
				func(ctx context.Context, client *api.Client, resume string) iter.Seq2[api.Event[api.Service], error] {
					return client.WatchServices(ctx, q, resume)
				})
		},
	}
	c.Flags().BoolVar(&problems, "problems", false, "only those with problems")
	flags.flags(c, 0, "one that was listed has a problem")
	flags.watchFlag(c)
	return c
}

// lists checks what is common to all lists, and then lists or watches.
func lists[T any](ctx context.Context, p *program, k kind[T], flags listFlags, namespace *string,
	ask func(context.Context, *api.Client, api.Page) (*page[T], error), follow func(context.Context, *api.Client, string) iter.Seq2[api.Event[T], error],
) (err error) {
	if err := flags.validate(); err != nil {
		return err
	}
	if *namespace, err = p.namespaceOf(); err != nil {
		return err
	}
	if flags.watch {
		return watch(ctx, p, k, follow)
	}
	return list(ctx, p, k, flags, ask)
}

// holding is how many pods hold a certificate that is good now, of how many that take part in the mesh.
func holding(s api.Summary) string {
	return fmt.Sprintf("%d/%d", s.Fresh+s.Due+s.Overdue, s.Total-s.NoMesh)
}

// stateOf is how it stands with a service, in a few words.
func stateOf(s *api.Service) string {
	var words []string
	count := func(n int, word string) {
		if n > 0 {
			words = append(words, fmt.Sprintf("%d %s", n, word))
		}
	}
	count(s.Summary.Expired, "expired")
	count(s.Summary.Missing, "missing")
	count(s.Summary.Overdue, "overdue")
	count(s.Summary.Unattributed, "unattributed")
	for _, problem := range s.Problems {
		switch problem.Code {
		case api.ProblemExpired, api.ProblemMissing, api.ProblemOverdue: // counted
		default:
			words = append(words, string(problem.Code))
		}
	}
	if len(words) > 0 {
		return strings.Join(words, ", ")
	}
	held := s.Summary.Fresh + s.Summary.Due
	switch inMesh := s.Summary.Total - s.Summary.NoMesh; {
	case s.Summary.Total == 0:
		return "no pods"
	case inMesh == 0:
		return "not in the mesh"
	case held < inMesh:
		return fmt.Sprintf("ok, %d starting", inMesh-held)
	}
	return "ok"
}

// details are what problems say.
func details(problems []api.Problem) string {
	var texts []string
	for _, problem := range problems {
		texts = append(texts, problem.Detail)
	}
	return strings.Join(texts, "; ")
}

// shortIdentities are SPIFFE IDs of service accounts as namespace/name, or as name alone where the namespace is known.
func shortIdentities(ids []string, namespace string) []string {
	short := make([]string, len(ids))
	for i, id := range ids {
		short[i] = shortIdentity(id, namespace)
	}
	return short
}

func shortIdentity(id, namespace string) string {
	_, path, ok := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/")
	if !ok || !strings.HasPrefix(id, "spiffe://") {
		return id
	}
	parts := strings.Split(path, "/")
	if len(parts) != 4 || parts[0] != "ns" || parts[2] != "sa" {
		return id
	}
	if parts[1] == namespace {
		return parts[3]
	}
	return parts[1] + "/" + parts[3]
}

// few are the first of some texts, and how many more there are.
func few(texts []string, most int) string {
	if len(texts) <= most {
		return strings.Join(texts, ",")
	}
	return fmt.Sprintf("%s +%d", strings.Join(texts[:most], ","), len(texts)-most)
}
