package probe

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/signet-ca/signet/api"
)

// step is one of a mail server: the line that must come, and what it says then. A hello is the begin of a handshake.
type step struct{ hears, says string }

const (
	handshakes = "TLS"   // says
	hello      = "hello" // hears
)

// mailServer follows a script. What it heard that it should not is sent to strange.
func mailServer(config *tls.Config, strange chan<- string, steps ...step) func(net.Conn) {
	return func(conn net.Conn) {
		lines := bufio.NewReader(conn)
		for _, s := range steps {
			if s.hears == hello {
				_, _ = lines.Peek(1) // then it isn't read ahead any more
			} else if s.hears != "" {
				heard, err := lines.ReadString('\n')
				if err != nil || heard != s.hears {
					strange <- heard
					return
				}
			}
			if s.says == handshakes {
				overTLS(config)(&peeked{conn, lines})
				return
			}
			if _, err := io.WriteString(conn, s.says); err != nil {
				return
			}
		}
		rest, _ := io.ReadAll(lines)
		if len(rest) > 0 {
			strange <- string(rest)
		}
	}
}

func TestStartTLS(t *testing.T) {
	const (
		ehlo     = "EHLO signet.invalid\r\n"
		smtp     = "STARTTLS\r\n"
		imap     = "signet STARTTLS\r\n"
		offering = "250-mail.example\r\n250-SIZE 1000\r\n250-StartTLS\r\n250 HELP\r\n"
	)
	tlsNow := step{"", handshakes}
	long := strings.Repeat("x", maxLineBytes+1) + "\r\n"
	for _, row := range []struct {
		name     string
		protocol api.ProbeProtocol
		steps    []step
		code     api.ProbeCode // "" where the certificate is read
		detail   string
	}{
		{"smtp", api.ProbeSMTP, []step{{"", "220 mail.example ESMTP\r\n"}, {ehlo, offering}, {smtp, "220 go\r\n"}, tlsNow}, "", ""},
		{"smtp in many lines", api.ProbeSMTP, []step{{"", "220-mail.example\r\n220 ESMTP\r\n"}, {ehlo, "250-mail.example\n250 STARTTLS\n"}, {smtp, "220-ready\r\n220 go\r\n"}, tlsNow}, "", ""},
		{"smtp without text", api.ProbeSMTP, []step{{"", "220\r\n"}, {ehlo, "250-\r\n250 STARTTLS\r\n"}, {smtp, "220\r\n"}, tlsNow}, "", ""},
		{"imap", api.ProbeIMAP, []step{{"", "* OK IMAP4rev2\r\n"}, {imap, "signet OK begin\r\n"}, tlsNow}, "", ""},
		{"imap with more to say", api.ProbeIMAP, []step{{"", "* ok [CAPABILITY STARTTLS] ready\r\n"}, {imap, "* CAPABILITY IMAP4rev2\r\nSIGNET ok\r\n"}, tlsNow}, "", ""},
		{"pop3", api.ProbePOP3, []step{{"", "+OK POP3\r\n"}, {"STLS\r\n", "+OK begin\r\n"}, tlsNow}, "", ""},

		{"smtp without it", api.ProbeSMTP, []step{{"", "220 x\r\n"}, {ehlo, "250-STARTTLS\r\n250 SIZE\r\n"}}, api.FoundNoTLS, "it offers no STARTTLS"},
		{"smtp with another of its name", api.ProbeSMTP, []step{{"", "220 x\r\n"}, {ehlo, "250-x\r\n250 XSTARTTLS\r\n"}}, api.FoundNoTLS, "it offers no STARTTLS"},
		{"smtp without extensions", api.ProbeSMTP, []step{{"", "220 x\r\n"}, {ehlo, "502 no\r\n"}}, api.FoundNoTLS, "it offers no STARTTLS"},
		{"smtp that is closed", api.ProbeSMTP, []step{{"", "554 go away\r\n"}}, api.FoundUnreachable, "it doesn't greet: its code is 554"},
		{"smtp that refuses", api.ProbeSMTP, []step{{"", "220 x\r\n"}, {ehlo, offering}, {smtp, "454 not now\r\n"}}, api.FoundUnreachable, "it refuses STARTTLS with code 454"},
		{"imap without it", api.ProbeIMAP, []step{{"", "* OK x\r\n"}, {imap, "signet BAD unknown\r\n"}}, api.FoundNoTLS, "it offers no STARTTLS"},
		{"imap that is open already", api.ProbeIMAP, []step{{"", "* PREAUTH x\r\n"}}, api.FoundUnreachable, "doesn't greet as a server of IMAP"},
		{"imap with another's tag", api.ProbeIMAP, []step{{"", "* OK x\r\n"}, {imap, "other OK\r\n"}}, api.FoundUnreachable, "its answer is not IMAP"},
		{"pop3 without it", api.ProbePOP3, []step{{"", "+OK x\r\n"}, {"STLS\r\n", "-ERR\r\n"}}, api.FoundNoTLS, "it offers no STARTTLS"},
		{"pop3 that is none", api.ProbePOP3, []step{{"", "* OK x\r\n"}}, api.FoundUnreachable, "it doesn't greet as a server of POP3"},
		{"pop3 with another answer", api.ProbePOP3, []step{{"", "+OK x\r\n"}, {"STLS\r\n", "OK\r\n"}}, api.FoundUnreachable, "its answer is not POP3"},

		{"smtp, injected", api.ProbeSMTP, []step{{"", "220 x\r\n"}, {ehlo, offering}, {smtp, "220 go\r\n250 injected\r\n"}}, api.FoundInjected, "what comes in plaintext can be taken for what comes in TLS"},
		{"smtp, injected by one byte", api.ProbeSMTP, []step{{"", "220 x\r\n"}, {ehlo, offering}, {smtp, "220 go\r\n\x16"}}, api.FoundInjected, ""},
		{"smtp, answered ahead", api.ProbeSMTP, []step{{"", "220 x\r\n" + offering + "220 go\r\n220 more\r\n"}, {ehlo, ""}, {smtp, ""}}, api.FoundInjected, ""},
		{"imap, injected", api.ProbeIMAP, []step{{"", "* OK x\r\n"}, {imap, "signet OK\r\n* OK [CAPABILITY AUTH=PLAIN]\r\n"}}, api.FoundInjected, ""},
		{"pop3, injected", api.ProbePOP3, []step{{"", "+OK x\r\n"}, {"STLS\r\n", "+OK\r\n+OK injected\r\n"}}, api.FoundInjected, ""},
		{"pop3, injected later", api.ProbePOP3, []step{{"", "+OK x\r\n"}, {"STLS\r\n", "+OK\r\n"}, {hello, "+OK injected\r\n"}}, api.FoundInjected, ""},

		{"a long line", api.ProbeSMTP, []step{{"", "220 " + long}}, api.FoundUnreachable, "its answer is no line of text"},
		{"a line that doesn't end", api.ProbeIMAP, []step{{"", "* OK " + strings.Repeat("x", maxLineBytes)}}, api.FoundUnreachable, "its answer is no line of text"},
		{"many lines", api.ProbeSMTP, []step{{"", strings.Repeat("220-x\r\n", maxLines+1)}}, api.FoundUnreachable, "it sent more than a handshake needs"},
		{"many lines of imap", api.ProbeIMAP, []step{{"", "* OK x\r\n"}, {imap, strings.Repeat("* x\r\n", maxLines+1)}}, api.FoundUnreachable, "it sent more than a handshake needs"},
		{"two codes", api.ProbeSMTP, []step{{"", "220-x\r\n250 x\r\n"}}, api.FoundUnreachable, "its answer is not SMTP"},
		{"no code", api.ProbeSMTP, []step{{"", "hello\r\n"}}, api.FoundUnreachable, "its answer is not SMTP"},
		{"an empty line", api.ProbeSMTP, []step{{"", "\r\n"}}, api.FoundUnreachable, "its answer is not SMTP"},
		{"another protocol", api.ProbeSMTP, []step{{"", "2200\x00\x00\n"}}, api.FoundUnreachable, "its answer is not SMTP"},
		{"nothing", api.ProbePOP3, []step{}, api.FoundUnreachable, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, Config{})
			leaf := newAuthority(t, "public").leaf(t, "")
			strange := make(chan string, 1)
			server := mailServer(&tls.Config{Certificates: []tls.Certificate{*leaf}}, strange, row.steps...)
			if len(row.steps) == 0 {
				server = func(net.Conn) {}
			}
			r.serve(t, 8080, server)
			got := r.asked(t.Context(), row.protocol, true, corev1.ServicePort{Name: "http"})
			assert.Empty(t, got.Plaintext, "a server of mail speaks first")
			if row.code == "" {
				require.Empty(t, got.Findings)
				assert.Equal(t, serialOf(leaf.Leaf), got.Chain[0].Serial)
				assert.Equal(t, api.ProbeGood, got.Verdict)
			} else {
				require.Equal(t, []api.ProbeCode{row.code}, codes(got), "%+v", got.Findings)
				assert.Contains(t, got.Findings[0].Detail, row.detail)
				assert.Empty(t, got.Chain)
			}
			select {
			case heard := <-strange:
				if row.code != api.FoundInjected { // there the handshake may have begun
					t.Errorf("the server heard %q", heard)
				}
			default:
			}
		})
	}
}
