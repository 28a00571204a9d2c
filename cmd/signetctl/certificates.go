package main

import (
	"context"
	"errors"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/signet-ca/signet/api"
)

var certificateKind = kind[api.Certificate]{
	word: "certificate", words: "certificates",
	name: func(c *api.Certificate) string { return c.SHA256 },
	key:  func(c *api.Certificate) string { return c.SHA256 },
	attention: func(c *api.Certificate) bool {
		return c.Standing == api.Live && (c.State == api.Overdue || c.State == api.Expired)
	},
	columns: certificateColumns,
}

func certificateColumns(now time.Time) []column[api.Certificate] {
	return []column[api.Certificate]{
		{title: "NAMESPACE", value: func(c *api.Certificate) string { return c.Namespace }},
		{title: "IDENTITY", value: func(c *api.Certificate) string { return shortIdentity(c.Identity, c.Namespace) }},
		{title: "HOLDER", value: func(c *api.Certificate) string { return holderOf(c.Holder) }},
		{title: "NOT AFTER", value: func(c *api.Certificate) string { return relative(c.NotAfter, now) }},
		{title: "REMAINING", value: func(c *api.Certificate) string {
			if c.NotAfter.IsZero() {
				return "" // one that was removed, and isn't known
			}
			return bar(c.RemainingRatio)
		}},
		{title: "STATE", value: func(c *api.Certificate) string { return string(c.State) }},
		{title: "STANDING", value: func(c *api.Certificate) string { return string(c.Standing) }},
		{title: "SHA256", value: func(c *api.Certificate) string { return first(c.SHA256, 12) }},
		{title: "WHOLE SHA256", wide: true, value: func(c *api.Certificate) string { return c.SHA256 }},
		{title: "SERIAL", wide: true, value: func(c *api.Certificate) string { return c.Serial }},
		{title: "SANS", wide: true, value: func(c *api.Certificate) string { return strings.Join(c.SANs, ",") }},
		{title: "NODE", wide: true, value: func(c *api.Certificate) string { return c.Holder.Node }},
		{title: "KEY", wide: true, value: keyOf},
		{title: "ISSUER", wide: true, value: func(c *api.Certificate) string { return c.Issuer }},
		{title: "ISSUED", wide: true, value: func(c *api.Certificate) string { return stamp(c.IssuedAt) }},
		{title: "ENDS", wide: true, value: func(c *api.Certificate) string { return stamp(c.NotAfter) }},
	}
}

// holderOf names who holds a certificate, as well as it is known.
func holderOf(h api.Holder) string {
	switch {
	case h.Impersonated && h.Node != "":
		return "node " + h.Node
	case h.Pod != "":
		return h.Pod
	}
	return h.Address
}

func keyOf(c *api.Certificate) string {
	if c.KeyAlgorithm == "" {
		return ""
	}
	return c.KeyAlgorithm + " " + strconv.Itoa(c.KeyBits)
}

func first(text string, n int) string {
	if runes := []rune(text); len(runes) > n {
		return string(runes[:n])
	}
	return text
}

// length is a flag: seconds, or Go's form, or days.
type length time.Duration

func (l *length) String() string {
	if *l == 0 {
		return ""
	}
	return time.Duration(*l).String()
}
func (*length) Type() string { return "length" }
func (l *length) Set(text string) error {
	d, err := parseLength(text)
	*l = length(d)
	return err
}

// maxLength is the longest that Signet takes.
const maxLength = 100 * 365 * 24 * time.Hour

func parseLength(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if count, unit := strings.TrimSuffix(text, "d"), 24*time.Hour; err != nil {
		if count == text {
			unit = time.Second
		}
		var n int64
		if n, err = strconv.ParseInt(count, 10, 64); err == nil {
			if n > int64(maxLength/unit) {
				n = int64(maxLength/unit) + 1
			}
			d = time.Duration(n) * unit
		}
	}
	if err != nil || d <= 0 || d > maxLength {
		return 0, errors.New("it must be a length of time above zero and at most 100 years: a number of seconds, or such as 90m, 36h or 7d")
	}
	return d, nil
}

// anyStanding asks for certificates of every standing.
const anyStanding = "any"

// certificateFlags are the filters of certificates.
type certificateFlags struct {
	listFlags
	query  api.CertificateQuery
	within length
	state  string
	stands string
}

func (f *certificateFlags) filters(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.query.Identity, "identity", "", "of this SPIFFE `ID`")
	flags.StringVar(&f.query.SAN, "san", "", "with this `name`, such as URI:spiffe://…")
	flags.StringVar(&f.query.Serial, "serial", "", "with this serial `number`, hexadecimal")
	flags.StringVar(&f.query.Node, "node", "", "held on this `node`")
	flags.StringVar(&f.query.Issuer, "issuer", "", "of this `issuer`, kind.group/name")
	flags.Float64Var(&f.query.RemainingRatioBelow, "remaining-below", 0, "with less than this `part` of their life left, 0 to 1")
	choice(c, flags, &f.state, "state", "in this `state`", api.Fresh, api.Due, api.Overdue, api.Expired)
}

// choice adds a flag that has one of a few values; Signet says so where it has another.
func choice[S ~string](c *cobra.Command, flags *pflag.FlagSet, into *string, name, text string, values ...S) {
	words := make([]string, len(values))
	for i, value := range values {
		words[i] = string(value)
	}
	flags.StringVar(into, name, "", text+": "+strings.Join(words, ", "))
	_ = c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// set turns the flags into the query.
func (f *certificateFlags) set() error {
	f.query.ExpiresWithin = time.Duration(f.within)
	f.query.State, f.query.Standing = api.State(f.state), api.Standing(f.stands)
	f.query.Serial = strings.ToLower(strings.ReplaceAll(f.query.Serial, ":", "")) // as other programs show it
	if !(f.query.RemainingRatioBelow >= 0 && f.query.RemainingRatioBelow <= 1) {
		return usage("--remaining-below %v: it must be from 0 to 1", f.query.RemainingRatioBelow)
	}
	return nil
}

func (p *program) certificates() *cobra.Command {
	var flags certificateFlags
	c := &cobra.Command{
		Use:     "certificates",
		Short:   "List certificates that were issued",
		Long:    "Lists certificates that were issued, the latest first: by default those that their holders use now, and with --serial those of every standing.",
		Example: p.examples("certificates -A --state overdue", "certificates -A --serial 5f:3a:99"),
		Aliases: []string{"certificate", "certs", "cert"},
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if flags.query.Serial != "" && flags.stands == "" {
				flags.stands = anyStanding // a number from an older line of the log is that of one renewed since
			}
			return p.listCertificates(c.Context(), &flags, certificateKind, (*api.Client).Certificates)
		},
	}
	flags.filters(c)
	choice(c, c.Flags(), &flags.stands, "standing", "of this `standing`, by default live, and any with --serial", api.Live, api.Superseded, api.Orphaned, api.Ended, anyStanding)
	c.Flags().Var(&flags.within, "expires-within", "that end within this time, such as 90m, 36h or 7d")
	flags.flags(c, pageSize, "a live one that was listed is overdue or has expired")
	flags.watchFlag(c)
	return c
}

func (p *program) expiring() *cobra.Command {
	flags := certificateFlags{within: length(time.Hour)}
	c := &cobra.Command{
		Use:     "expiring",
		Short:   "List live certificates that end soon",
		Long:    "Lists the certificates that their holders use now and that end soon, the earliest first.",
		Example: p.examples("expiring -A --within 2h", "expiring -A --within 30m --check   for scripts: exit code 5 where there is one"),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			k := certificateKind
			k.attention = func(*api.Certificate) bool { return true }
			return p.listCertificates(c.Context(), &flags, k, (*api.Client).Expiring)
		},
	}
	flags.filters(c)
	c.Flags().Var(&flags.within, "within", "they end within this time, such as 90m, 36h or 7d")
	c.Flags().Lookup("within").DefValue = "1h"
	flags.flags(c, pageSize, "one was listed")
	flags.watchFlag(c)
	return c
}

func (p *program) listCertificates(ctx context.Context, flags *certificateFlags, k kind[api.Certificate], ask func(*api.Client, context.Context, api.CertificateQuery) (*api.CertificateList, error)) error {
	if err := flags.set(); err != nil {
		return err
	}
	q := &flags.query
	return lists(ctx, p, k, flags.listFlags, &q.Namespace,
		func(ctx context.Context, client *api.Client, at api.Page) (*page[api.Certificate], error) {
			q.Page = at
			l, err := ask(client, ctx, *q)
			return (*page[api.Certificate])(l), err
		},
		func(ctx context.Context, client *api.Client, resume string) iter.Seq2[api.Event[api.Certificate], error] {
			return client.WatchCertificates(ctx, *q, resume)
		})
}
