package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/signet-ca/signet/api"
)

func (p *program) describe() *cobra.Command {
	return &cobra.Command{
		Use:   "describe service|certificate|identity NAME",
		Short: "Show one service, certificate or identity",
		Long: `Shows all that is known of one thing: a service (NAME or NAMESPACE/NAME) with its pods, a certificate by its
whole SHA-256, or an identity by its SPIFFE ID. KIND/NAME, as -o name prints it, will do as well.`,
		Example: p.examples("describe service cart -n shop", "describe identity spiffe://cluster.local/ns/shop/sa/cart", "describe certificate 3f0c… -o json"),
		Args: func(_ *cobra.Command, args []string) error {
			_, _, err := parseSubject(args)
			return err
		},
		ValidArgsFunction: p.completeSubject,
		RunE: func(c *cobra.Command, args []string) error {
			subject, name, err := parseSubject(args)
			if err != nil {
				return err
			}
			return p.describeOne(c.Context(), subject, name)
		},
	}
}

var subjects = []string{"service", "certificate", "identity"}

// parseSubject reads KIND NAME, or KIND/NAME.
func parseSubject(args []string) (subject, name string, err error) {
	switch len(args) {
	case 1:
		var ok bool
		if subject, name, ok = strings.Cut(args[0], "/"); !ok {
			return "", "", fmt.Errorf("a name is missing: describe %s NAME", args[0])
		}
	case 2:
		subject, name = args[0], args[1]
	default:
		return "", "", fmt.Errorf("it must be: describe %s NAME", strings.Join(subjects, "|"))
	}
	switch subject {
	case "service", "services", "svc":
		subject = "service"
	case "certificate", "certificates", "cert", "issuance":
		subject = "certificate"
	case "identity", "identities", "id":
		subject = "identity"
	default:
		return "", "", fmt.Errorf("%q can't be described; these can: %s", subject, strings.Join(subjects, ", "))
	}
	if name == "" {
		return "", "", fmt.Errorf("a name is missing: describe %s NAME", subject)
	}
	if subject == "certificate" {
		name = strings.ToLower(strings.ReplaceAll(name, ":", "")) // as other programs show it
		if !isSHA256(name) {
			return "", "", fmt.Errorf("certificate %q: a certificate is named by its whole SHA-256, 64 hexadecimal digits; -o name and -o wide print it", name)
		}
	}
	return subject, name, nil
}

func isSHA256(text string) bool {
	sum, err := hex.DecodeString(text)
	return err == nil && len(sum) == sha256.Size
}

func (p *program) describeOne(ctx context.Context, subject, name string) error {
	switch subject {
	case "service":
		namespace, short, err := p.serviceOf(name)
		if err != nil {
			return err
		}
		return show(ctx, p, serviceKind.word, namespace+"/"+short, func(ctx context.Context, client *api.Client) (*api.Service, error) {
			return client.Service(ctx, namespace, short)
		}, writeService)
	case "certificate":
		return show(ctx, p, certificateKind.word, name, func(ctx context.Context, client *api.Client) (*api.Certificate, error) {
			return client.Certificate(ctx, name)
		}, writeCertificate)
	}
	return show(ctx, p, "identity", name, func(ctx context.Context, client *api.Client) (*api.Identity, error) {
		return client.Identity(ctx, name)
	}, p.writeIdentity)
}

// show asks for one thing and writes it.
func show[T any](ctx context.Context, p *program, word, name string, ask func(context.Context, *api.Client) (*T, error), write func(io.Writer, *T, time.Time) error) error {
	ctx, cancel := p.bound(ctx)
	defer cancel()
	s, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	found, err := ask(ctx, s.client)
	if err != nil {
		return err
	}
	switch p.output {
	case formatName:
		_, err = fmt.Fprintf(p.out, "%s/%s\n", word, clean(name))
		return err
	case formatJSON, formatYAML:
		return writeValue(p.out, p.output, found)
	}
	return write(p.out, found, p.now())
}

func writeService(out io.Writer, s *api.Service, now time.Time) error {
	sum := s.Summary
	if err := facts(out, "",
		"Service", s.Namespace+"/"+s.Name,
		"Identities", strings.Join(s.Identities, ", "),
		"Pods", fmt.Sprintf("%s hold a certificate, %d take no part in the mesh", holding(sum), sum.NoMesh),
		"State", stateOf(s),
		"First end", both(sum.NotAfter, now),
	); err != nil {
		return err
	}
	if err := writeProblems(out, "", s.Problems); err != nil {
		return err
	}
	for i := range s.Pods {
		pod := &s.Pods[i]
		if _, err := fmt.Fprintf(out, "\nPod %s\n", clean(pod.Namespace+"/"+pod.Name)); err != nil {
			return err
		}
		held := ""
		if len(pod.Certificates) == 0 {
			held = "none"
			switch {
			case pod.DataPlane == api.NoMesh:
				held = "none, and needs none"
			case pod.Unattributed:
				held = "not known, because istiod asked for it"
			}
		}
		if err := facts(out, "  ", "Service account", pod.ServiceAccount, "Node", pod.Node, "Data plane", string(pod.DataPlane), "Certificate", held); err != nil {
			return err
		}
		if err := writeProblems(out, "  ", pod.Problems); err != nil {
			return err
		}
		for n := range pod.Certificates {
			if _, err := io.WriteString(out, "  Certificate\n"); err != nil {
				return err
			}
			if err := writeLife(out, "    ", &pod.Certificates[n], now); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeProblems(out io.Writer, indent string, problems []api.Problem) error {
	for _, problem := range problems {
		if _, err := fmt.Fprintf(out, "%sProblem: %s: %s\n", indent, clean(string(problem.Code)), clean(problem.Detail)); err != nil {
			return err
		}
	}
	return nil
}

// writeLife writes what matters of a certificate among others.
func writeLife(out io.Writer, indent string, c *api.Certificate, now time.Time) error {
	return facts(out, indent,
		"SHA-256", c.SHA256,
		"Serial", c.Serial,
		"SANs", strings.Join(c.SANs, ", "),
		"Valid", stamp(c.NotBefore)+" to "+both(c.NotAfter, now),
		"Remaining", bar(c.RemainingRatio),
		"State", string(c.State)+", "+string(c.Standing),
		"Holder", holderOf(c.Holder),
		"Issuer", c.Issuer,
		"Root", c.Root.Subject,
	)
}

func writeCertificate(out io.Writer, c *api.Certificate, now time.Time) error {
	impersonated := ""
	if c.Holder.Impersonated {
		impersonated = "by the proxy of node " + c.Holder.Node
	}
	if err := facts(out, "",
		"SHA-256", c.SHA256,
		"Serial", c.Serial,
		"Identity", c.Identity,
		"SANs", strings.Join(c.SANs, ", "),
		"Namespace", c.Namespace,
		"Service account", c.ServiceAccount,
		"Pod", c.Holder.Pod,
		"Node", c.Holder.Node,
		"Cluster", c.Holder.Cluster,
		"Address", c.Holder.Address,
		"Asked for", impersonated,
		"Issued", both(c.IssuedAt, now),
		"Not before", stamp(c.NotBefore),
		"Not after", both(c.NotAfter, now),
		"Asked lifetime", seconds(c.RequestedSeconds),
		"Remaining", bar(c.RemainingRatio),
		"State", string(c.State),
		"Standing", string(c.Standing),
		"Key", keyOf(c),
		"Key SHA-256", c.SPKISHA256,
		"Signature", c.SignatureAlgorithm,
		"Issuer", c.Issuer,
		"Root", c.Root.Subject,
		"Root SHA-256", c.Root.SHA256,
		"Request", objectName(c.Request),
		"Replica", c.Replica,
	); err != nil {
		return err
	}
	if c.PEM == "" {
		return nil
	}
	_, err := io.WriteString(out, "\n"+strings.TrimRight(cleanLines(c.PEM), "\n")+"\n")
	return err
}

func seconds(n int64) string {
	if n == 0 {
		return ""
	}
	if n > int64(maxLength/time.Second) {
		return strconv.FormatInt(n, 10) + "s"
	}
	return (time.Duration(n) * time.Second).String()
}

func objectName(o api.ObjectRef) string {
	if o.Namespace == "" || o.Name == "" {
		return o.Name
	}
	return o.Namespace + "/" + o.Name
}

func (p *program) writeIdentity(out io.Writer, id *api.Identity, now time.Time) error {
	services := make([]string, len(id.Services))
	for i, s := range id.Services {
		services[i] = objectName(s)
	}
	if err := facts(out, "",
		"Identity", id.SPIFFEID,
		"Namespace", id.Namespace,
		"Service account", id.ServiceAccount,
		"Services", strings.Join(services, ", "),
		"Live certificates", strconv.Itoa(len(id.Live)),
	); err != nil {
		return err
	}
	for i := range id.Live {
		if _, err := io.WriteString(out, "\nCertificate\n"); err != nil {
			return err
		}
		if err := writeLife(out, "  ", &id.Live[i], now); err != nil {
			return err
		}
	}
	p.tellCompleteness(id.Coverage, false)
	return nil
}

// completeTimeout bounds how long a shell waits for names.
const completeTimeout = 5 * time.Second

// completeSubject completes kinds, and the names of services.
func (p *program) completeSubject(c *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	switch {
	case len(args) == 0:
		return subjects, none
	case len(args) > 1 || args[0] != "service":
		return nil, none
	}
	ctx, cancel := context.WithTimeout(c.Context(), completeTimeout)
	defer cancel()
	namespace, err := p.namespaceOf()
	if err != nil {
		return nil, none
	}
	s, err := p.connect(ctx)
	if err != nil {
		return nil, none
	}
	defer s.close()
	found, err := s.client.Services(ctx, api.ServiceQuery{Namespace: namespace, Page: api.Page{Limit: pageSize}})
	if err != nil {
		return nil, none
	}
	var names []cobra.Completion
	for i := range found.Items {
		if name := clean(found.Items[i].Name); strings.HasPrefix(name, begun) {
			names = append(names, name)
		}
	}
	return names, none
}
