package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/signet-ca/signet/api"
)

func (p *program) probe() *cobra.Command {
	var q api.ProbeRequest
	var protocol string
	var check bool
	c := &cobra.Command{
		Use:   "probe SERVICE",
		Short: "Ask a service's pods which certificates they really serve",
		Long: `Has Signet connect to the pods behind a service (NAME or NAMESPACE/NAME), and shows which certificates they really
serve, whether they demand one of their clients, whether they answer plaintext too, and whether that is what is known of
what was issued. It needs the right to create probes.signet.dev in the service's namespace.`,
		Example: p.examples("probe cart -n shop", "probe edge/gateway --port 443 --tls-name shop.example.com"),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return errors.New("it must be: probe SERVICE")
			}
			return nil
		},
		ValidArgsFunction: func(c *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return p.completeSubject(c, []string{"service"}, begun)
		},
		RunE: func(c *cobra.Command, args []string) (err error) {
			if q.Namespace, q.Service, err = p.serviceOf(args[0]); err != nil {
				return err
			}
			q.Protocol = api.ProbeProtocol(protocol)
			var found *api.Probe
			err = show(c.Context(), p, "probe", q.Namespace+"/"+q.Service, func(ctx context.Context, client *api.Client) (_ *api.Probe, err error) {
				found, err = client.Probe(ctx, q)
				return found, err
			}, p.writeProbe)
			if err == nil && check && (found.Verdict == api.ProbeAlarm || found.Verdict == api.ProbeWarning) {
				return errAttention
			}
			return err
		},
	}
	flags := c.Flags()
	flags.StringVar(&q.Pod, "pod", "", "only this `pod`")
	flags.IntVar(&q.Pods, "pods", 0, "how many `pods` at most, 3 by default")
	flags.Int32Var(&q.Port, "port", 0, "one of the service's `ports`; its first ones by default")
	flags.StringVar(&q.ServerName, "tls-name", "", "the host `name` to ask a gateway for (SNI)")
	flags.BoolVar(&q.SkipPlaintext, "skip-plaintext", false, "don't ask whether plaintext is answered")
	choice(c, flags, &protocol, "protocol", "the `protocol`, auto by default",
		api.ProbeAuto, api.ProbeSidecar, api.ProbeAmbient, api.ProbeTLS, api.ProbeSMTP, api.ProbeIMAP, api.ProbePOP3)
	flags.BoolVar(&check, "check", false, "exit with code 5 where the verdict is warning or alarm")
	return c
}

// serviceOf reads NAME or NAMESPACE/NAME.
func (p *program) serviceOf(text string) (namespace, name string, err error) {
	namespace, name, ok := strings.Cut(text, "/")
	if ok {
		return namespace, name, nil
	}
	if p.all {
		return "", "", usage("--all-namespaces: a service is of one; -n NAMESPACE, or NAMESPACE/NAME")
	}
	namespace, err = p.namespaceOf()
	return namespace, text, err
}

func (p *program) writeProbe(out io.Writer, found *api.Probe, now time.Time) error {
	probed := make(map[string]bool)
	for _, result := range found.Results {
		probed[result.PodUID] = true
	}
	if err := facts(out, "",
		"Service", found.Namespace+"/"+found.Service,
		"Verdict", string(found.Verdict),
		"Probed", fmt.Sprintf("%d of %d pods", len(probed), found.Pods),
	); err != nil {
		return err
	}
	if len(found.Results) > 0 {
		if _, err := io.WriteString(out, "\n"); err != nil {
			return err
		}
		if err := newTable(out, p.output, []column[api.ProbeResult]{
			{title: "POD", value: func(r *api.ProbeResult) string { return r.Pod }},
			{title: "PORT", value: func(r *api.ProbeResult) string {
				if r.Port == 0 {
					return ""
				}
				return fmt.Sprint(r.Port)
			}},
			{title: "PROTOCOL", value: func(r *api.ProbeResult) string { return string(r.Protocol) }},
			{title: "VERDICT", value: func(r *api.ProbeResult) string { return string(r.Verdict) }},
			{title: "SERVES", value: served},
			{title: "NOT AFTER", value: func(r *api.ProbeResult) string {
				if len(r.Chain) == 0 {
					return ""
				}
				return relative(r.Chain[0].NotAfter, now)
			}},
			{title: "CLIENT CERT", value: func(r *api.ProbeResult) string { return string(r.ClientCertificate) }},
			{title: "PLAINTEXT", value: func(r *api.ProbeResult) string { return string(r.Plaintext) }},
			{title: "ADDRESS", wide: true, value: func(r *api.ProbeResult) string { return r.Address }},
			{title: "TLS", wide: true, value: func(r *api.ProbeResult) string { return strings.TrimSpace(r.TLSVersion + " " + r.ALPN) }},
			{title: "SHA256", wide: true, value: func(r *api.ProbeResult) string {
				if len(r.Chain) == 0 {
					return ""
				}
				return r.Chain[0].SHA256
			}},
			{title: "KNOWN AS", wide: true, value: func(r *api.ProbeResult) string {
				if r.Record != nil {
					return "issued to " + holderOf(r.Record.Holder)
				}
				return r.KnownAs
			}},
		}).write(found.Results); err != nil {
			return err
		}
	}
	for _, result := range found.Results {
		for _, finding := range result.Findings {
			if _, err := fmt.Fprintf(out, "%s: pod %s: %s: %s\n", clean(string(finding.Verdict)), clean(result.Pod), clean(string(finding.Code)), clean(finding.Detail)); err != nil {
				return err
			}
		}
	}
	p.tellCompleteness(found.Coverage, false)
	return nil
}

// served is whom a result's leaf is for.
func served(r *api.ProbeResult) string {
	if len(r.Chain) == 0 {
		return ""
	}
	leaf := r.Chain[0]
	names := make([]string, len(leaf.SANs))
	for i, san := range leaf.SANs {
		names[i] = san
		if uri, ok := strings.CutPrefix(san, "URI:"); ok {
			names[i] = shortIdentity(uri, "")
		}
	}
	if len(names) == 0 {
		return leaf.Subject
	}
	return few(names, 2)
}
