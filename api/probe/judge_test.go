package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/signet-ca/signet/api"
)

// knows is a Known that knows one leaf.
type knows struct {
	leaf     *tls.Certificate
	in, name string
	err      error
}

func (k knows) Known(_ context.Context, leaf *x509.Certificate, namespace string) (in, name string, ok bool, err error) {
	return k.in, k.name, k.leaf != nil && leaf.Equal(k.leaf.Leaf) && namespace == "shop", k.err
}

// TestJudge: from a good state on, one thing is different in each row.
func TestJudge(t *testing.T) {
	mesh, other := newAuthority(t, "mesh"), newAuthority(t, "other")
	now := time.Now()
	good := mesh.leaf(t, webID)
	with := func(id string, change ...func(*x509.Certificate)) *tls.Certificate {
		return mesh.leaf(t, id, change...)
	}
	ended := with(webID, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Minute) })
	future := with(webID, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(time.Hour), now.Add(2*time.Hour) })
	ahead := with(webID, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(time.Minute), now.Add(2*time.Hour) })
	young := with(webID, func(c *x509.Certificate) { c.NotBefore = now.Add(-time.Second) })
	foreign := other.leaf(t, webID)
	server := with("", func(c *x509.Certificate) { c.DNSNames = []string{"istiod.istio-system.svc"} })
	public := other.leaf(t, "", func(c *x509.Certificate) { c.DNSNames = []string{"shop.example.com"} })
	id, err := url.Parse(webID)
	require.NoError(t, err)
	hidden := with("", func(c *x509.Certificate) { // a name that Go doesn't show
		value, err := asn1.Marshal([]asn1.RawValue{{Class: 2, Tag: 6, Bytes: []byte(webID)}, {Class: 2, Tag: 0, IsCompound: true, Bytes: []byte{6, 1, 0}}})
		require.NoError(t, err)
		c.ExtraExtensions = []pkix.Extension{{Id: oidSAN, Value: value}}
	})
	require.Equal(t, []string{"URI:" + webID}, sansOf(hidden.Leaf))

	type state struct {
		leaf     *tls.Certificate
		protocol api.ProbeProtocol
		name     string
		pod      api.Pod
		records  []api.Certificate
		coverage api.Coverage
		anchors  *x509.CertPool
		known    Known
		err      error
		client   api.ClientCertificate
		visible  api.Visible
	}
	for _, row := range []struct {
		name     string
		change   func(*state)
		verdict  api.ProbeVerdict
		codes    []api.ProbeCode
		detail   string
		known    string
		unshown  bool // the record isn't shown
		unrecord bool // there is none
	}{
		{"good", func(*state) {}, api.ProbeGood, nil, "", "", false, false},
		{"ambient", func(s *state) {
			s.protocol = api.ProbeAmbient
			s.records[0].Holder = api.Holder{Node: "n1", Impersonated: true}
		}, api.ProbeGood, nil, "", "", false, false},
		{"of an address", func(s *state) { s.records[0].Holder = api.Holder{Address: "192.0.2.1"} }, api.ProbeGood, nil, "", "", false, false},
		{"ended", func(s *state) { s.leaf, s.records[0] = ended, recordOf(ended) }, api.ProbeAlarm, []api.ProbeCode{api.FoundExpired}, "the certificate ended at", "", false, false},
		{"not begun", func(s *state) { s.leaf, s.records[0] = future, recordOf(future) }, api.ProbeAlarm, []api.ProbeCode{api.FoundNotYetValid}, "the certificate begins at", "", false, false},
		{"a clock that is a minute ahead", func(s *state) { s.leaf, s.records[0] = ahead, recordOf(ahead) }, api.ProbeGood, nil, "", "", false, false},
		{"another account", func(s *state) { s.pod.ServiceAccount = "pay" }, api.ProbeAlarm, []api.ProbeCode{api.FoundWrongNames}, "it should have URI:spiffe://cluster.local/ns/shop/sa/pay and nothing else", "", false, false},
		{"another trust domain", func(s *state) {
			s.leaf = with("spiffe://elsewhere/ns/shop/sa/web")
			s.records[0] = recordOf(s.leaf)
		}, api.ProbeAlarm, []api.ProbeCode{api.FoundWrongNames}, "has URI:spiffe://elsewhere", "", false, false},
		{"a DNS name beside", func(s *state) {
			s.leaf = with(webID, func(c *x509.Certificate) { c.DNSNames = []string{"shop"} })
			s.records[0] = recordOf(s.leaf)
		}, api.ProbeAlarm, []api.ProbeCode{api.FoundWrongNames}, "", "", false, false},
		{"a second URI", func(s *state) {
			s.leaf = with(webID, func(c *x509.Certificate) { c.URIs = append(c.URIs, id) })
			s.records[0] = recordOf(s.leaf)
		}, api.ProbeAlarm, []api.ProbeCode{api.FoundWrongNames}, "", "", false, false},
		{"a name that Go doesn't show", func(s *state) { s.leaf, s.records[0] = hidden, recordOf(hidden) }, api.ProbeAlarm, []api.ProbeCode{api.FoundWrongNames}, "", "", false, false},
		{"no name", func(s *state) {
			s.leaf = with("")
			s.records[0] = recordOf(s.leaf)
		}, api.ProbeAlarm, []api.ProbeCode{api.FoundWrongNames}, "the certificate has no name that is known", "", false, false},
		{"another chain", func(s *state) { s.leaf, s.records = foreign, nil }, api.ProbeAlarm, []api.ProbeCode{api.FoundOtherChain}, `doesn't lead to the mesh's anchors; "CN=other" issued it`, "", false, true},
		{"another chain, recorded", func(s *state) { s.leaf, s.records[0] = foreign, recordOf(foreign) }, api.ProbeAlarm, []api.ProbeCode{api.FoundOtherChain}, "", "", false, false},
		{"no anchors", func(s *state) { s.anchors = nil }, api.ProbeUnsure, []api.ProbeCode{api.FoundUnknown}, "the mesh's anchors aren't known yet", "", false, false},
		{"nobody asked for a client certificate", func(s *state) { s.client = api.ClientCertNone }, api.ProbeWarning, []api.ProbeCode{api.FoundNoClientCert}, "", "", false, false},
		{"let in without", func(s *state) { s.client = api.ClientCertRequested }, api.ProbeWarning, []api.ProbeCode{api.FoundNoClientCert}, "", "", false, false},
		{"no telling", func(s *state) { s.client = api.ClientCertUnclear }, api.ProbeGood, nil, "", "", false, false},

		{"of another pod", func(s *state) { s.records[0].Holder.PodUID = "u2" }, api.ProbeAlarm, []api.ProbeCode{api.FoundOtherHolder}, "the certificate was issued to pod web-1 with UID u2", "", false, false},
		{"of another node", func(s *state) {
			s.protocol = api.ProbeAmbient
			s.records[0].Holder = api.Holder{Node: "n2", Impersonated: true}
		}, api.ProbeAlarm, []api.ProbeCode{api.FoundOtherHolder}, "the certificate was issued to the proxy of node n2", "", false, false},
		{"of another namespace, which is hidden", func(s *state) {
			s.records[0].Namespace, s.records[0].Holder = "hidden", api.Holder{Pod: "secret", PodUID: "u9"}
		}, api.ProbeAlarm, []api.ProbeCode{api.FoundOtherHolder}, "the certificate was issued to a holder in a namespace that you may not see", "", true, false},
		{"of another namespace, for who sees all", func(s *state) {
			s.visible = everything{}
			s.records[0].Namespace, s.records[0].Holder = "hidden", api.Holder{Pod: "secret", PodUID: "u9"}
		}, api.ProbeAlarm, []api.ProbeCode{api.FoundOtherHolder}, "the certificate was issued to pod secret with UID u9", "", false, false},
		{"superseded", func(s *state) { s.records[0].Standing = api.Superseded }, api.ProbeWarning, []api.ProbeCode{api.FoundSuperseded}, "", "", false, false},
		{"superseded, of another pod", func(s *state) { s.records[0].Standing, s.records[0].Holder.PodUID = api.Superseded, "u2" }, api.ProbeAlarm, []api.ProbeCode{api.FoundOtherHolder, api.FoundSuperseded}, "", "", false, false},

		{"unrecorded", func(s *state) { s.records = nil }, api.ProbeAlarm, []api.ProbeCode{api.FoundUnrecorded}, "Signet has no record of it", "", false, true},
		{"unrecorded, with a gap elsewhere", func(s *state) {
			s.records, s.coverage.Gaps = nil, []api.Gap{{From: now.Add(-5 * time.Hour), To: now.Add(-4 * time.Hour)}, {From: now.Add(time.Hour), To: now.Add(2 * time.Hour)}}
		}, api.ProbeAlarm, []api.ProbeCode{api.FoundUnrecorded}, "", "", false, true},
		{"unrecorded, with a gap then", func(s *state) {
			s.records, s.coverage.Gaps = nil, []api.Gap{{From: now.Add(-40 * time.Minute), To: now.Add(-20 * time.Minute)}}
		}, api.ProbeUnsure, []api.ProbeCode{api.FoundUnknown}, "there is a gap", "", false, true},
		{"unrecorded, with a gap that goes on", func(s *state) {
			s.records, s.coverage.Gaps = nil, []api.Gap{{From: now.Add(-40 * time.Hour)}}
		}, api.ProbeUnsure, []api.ProbeCode{api.FoundUnknown}, "there is a gap", "", false, true},
		{"unrecorded, from before the records", func(s *state) { s.records, s.coverage.Since = nil, now.Add(-time.Minute) }, api.ProbeUnsure, []api.ProbeCode{api.FoundUnknown}, "they go back to", "", false, true},
		{"unrecorded, with a source down", func(s *state) {
			s.records, s.coverage.Sources = nil, append(s.coverage.Sources, api.Source{Name: "observed"})
		}, api.ProbeUnsure, []api.ProbeCode{api.FoundUnknown}, "observed isn't up", "", false, true},
		{"unrecorded, young", func(s *state) { s.leaf, s.records = young, nil }, api.ProbeUnsure, []api.ProbeCode{api.FoundUnknown}, "so young", "", false, true},
		{"serial number reused", func(s *state) {
			s.records[0].SHA256, s.records[0].Root.SHA256 = strings.Repeat("0", 64), digestOf(mesh.certificate)
		}, api.ProbeAlarm, []api.ProbeCode{api.FoundReusedSerial}, serialOf(good.Leaf), "", false, true},
		{"serial number of another root", func(s *state) {
			s.records[0].SHA256, s.records[0].Root.SHA256 = strings.Repeat("0", 64), digestOf(other.certificate)
		}, api.ProbeAlarm, []api.ProbeCode{api.FoundUnrecorded}, "", "", false, true},
		{"records that fail", func(s *state) { s.records, s.err = nil, errors.New("secret words of a database") }, api.ProbeUnsure, []api.ProbeCode{api.FoundRecordsFailing}, "the certificate couldn't be compared with what is known (records)", "", false, true},

		{"a Certificate's", func(s *state) {
			s.leaf, s.records, s.protocol = server, nil, api.ProbeTLS
			s.known = knows{leaf: server, in: "shop", name: "gateway"}
		}, api.ProbeGood, nil, "", "Certificate shop/gateway", false, true},
		{"a Certificate's of a hidden namespace", func(s *state) {
			s.leaf, s.records, s.protocol = server, nil, api.ProbeTLS
			s.known = knows{leaf: server, in: "hidden", name: "gateway"}
		}, api.ProbeGood, nil, "", "a Certificate of another namespace", false, true},
		{"no Certificate's", func(s *state) {
			s.leaf, s.records, s.protocol = server, nil, api.ProbeTLS
			s.known = knows{leaf: good, in: "shop", name: "gateway"}
		}, api.ProbeAlarm, []api.ProbeCode{api.FoundUnrecorded}, "", "", false, true},
		{"Certificates that fail", func(s *state) {
			s.leaf, s.records, s.protocol = server, nil, api.ProbeTLS
			s.known = knows{err: errors.New("secret words of the API server")}
		}, api.ProbeUnsure, []api.ProbeCode{api.FoundRecordsFailing}, "(Certificates)", "", false, true},
		{"one of Signet's own", func(s *state) {
			s.leaf, s.protocol = server, api.ProbeTLS
			s.records[0] = recordOf(server, func(c *api.Certificate) { c.Identity, c.Namespace, c.Holder = "", "", api.Holder{} })
		}, api.ProbeGood, nil, "", "one of Signet's own", true, false},
		{"another's server", func(s *state) { s.leaf, s.records, s.protocol = public, nil, api.ProbeTLS }, api.ProbeGood, nil, "", "", false, true},
		{"another's server, by its name", func(s *state) {
			s.leaf, s.records, s.protocol, s.name = public, nil, api.ProbeTLS, "shop.example.com"
		}, api.ProbeGood, nil, "", "", false, true},
		{"another's server, by another name", func(s *state) {
			s.leaf, s.records, s.protocol, s.name = public, nil, api.ProbeTLS, "pay.example.com"
		}, api.ProbeWarning, []api.ProbeCode{api.FoundWrongNames}, "", "", false, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := state{
				leaf: good, protocol: api.ProbeSidecar, pod: webPod, records: []api.Certificate{recordOf(good)}, coverage: whole(), anchors: mesh.pool(),
				client: api.ClientCertRequired, visible: only("shop"),
			}
			row.change(&s)
			r := newRig(t, Config{})
			r.data.records, r.data.coverage, r.data.err, r.known = s.records, s.coverage, s.err, s.known
			r.anchors = func() *x509.CertPool { return s.anchors }
			got := &api.ProbeResult{Verdict: api.ProbeGood, Protocol: s.protocol, ServerName: s.name}
			r.judged(t.Context(), got, &s.pod, &seen{chain: []*x509.Certificate{s.leaf.Leaf}, clientCert: s.client}, s.visible, now)
			assert.Equal(t, row.codes, codes(got), "%+v", got.Findings)
			assert.Equal(t, row.verdict, got.Verdict)
			var details []string
			for _, f := range got.Findings {
				details = append(details, f.Detail)
			}
			assert.Contains(t, strings.Join(details, "\n"), row.detail)
			assert.NotContains(t, strings.Join(details, "\n"), "secret words")
			assert.Equal(t, row.known, got.KnownAs)
			assert.Equal(t, !row.unshown && !row.unrecord, got.Record != nil)
			if got.Record != nil {
				assert.Empty(t, got.Record.PEM)
			}
			assert.Len(t, got.Chain, 1)
		})
	}
}

// TestServed: what is told of a certificate is bounded.
func TestServed(t *testing.T) {
	mesh := newAuthority(t, "mesh")
	now := time.Now()
	leaf := mesh.leaf(t, webID, func(c *x509.Certificate) {
		c.SerialNumber = new(big.Int).SetBytes([]byte{1, 0, 255})
		c.Subject = pkix.Name{CommonName: strings.Repeat("x", 5000)}
		c.IPAddresses, c.EmailAddresses = []net.IP{net.IPv4(10, 0, 0, 1)}, []string{"a@b"}
		for range 200 {
			c.DNSNames = append(c.DNSNames, strings.Repeat("y", 1000))
		}
	}).Leaf
	got := served(leaf, now)
	assert.Equal(t, "0100ff", got.Serial)
	assert.Len(t, got.Subject, 512)
	assert.Equal(t, "CN=mesh", got.Issuer)
	assert.Len(t, got.SANs, maxNames)
	assert.Equal(t, "URI:"+webID, got.SANs[0])
	assert.Len(t, got.SANs[1], len("DNS:")+maxNameBytes)
	assert.InDelta(t, leaf.NotAfter.Sub(now).Seconds(), got.RemainingSeconds, 1)
	assert.Positive(t, got.RemainingSeconds)
	assert.Equal(t, []any{"ECDSA", 256, "ECDSA-SHA256"}, []any{got.KeyAlgorithm, got.KeyBits, got.SignatureAlgorithm})
	assert.Zero(t, served(leaf, now.AddDate(1, 0, 0)).RemainingSeconds)
	assert.Less(t, len(named(leaf)), 1100)
}

// TestHolds: a Certificate holds what has its names and its validity, to the second.
func TestHolds(t *testing.T) {
	mesh := newAuthority(t, "mesh")
	leaf := mesh.leaf(t, webID, func(c *x509.Certificate) {
		c.DNSNames, c.IPAddresses, c.EmailAddresses = []string{"b", "a"}, []net.IP{net.ParseIP("fd00::1")}, []string{"a@b"}
	}).Leaf
	good := func() *cmapi.Certificate {
		return &cmapi.Certificate{
			Spec:   cmapi.CertificateSpec{DNSNames: []string{"a", "b", "a"}, URIs: []string{webID}, IPAddresses: []string{"fd00:0::1"}, EmailAddresses: []string{"a@b"}},
			Status: cmapi.CertificateStatus{NotBefore: &metav1.Time{Time: leaf.NotBefore}, NotAfter: &metav1.Time{Time: leaf.NotAfter}},
		}
	}
	assert.True(t, holds(good(), leaf))
	for name, change := range map[string]func(*cmapi.Certificate){
		"a name more":      func(c *cmapi.Certificate) { c.Spec.DNSNames = append(c.Spec.DNSNames, "c") },
		"a name less":      func(c *cmapi.Certificate) { c.Spec.DNSNames = c.Spec.DNSNames[:1] },
		"another URI":      func(c *cmapi.Certificate) { c.Spec.URIs[0] += "x" },
		"another address":  func(c *cmapi.Certificate) { c.Spec.IPAddresses[0] = "fd00::2" },
		"no address":       func(c *cmapi.Certificate) { c.Spec.IPAddresses[0] = "x" },
		"another mailbox":  func(c *cmapi.Certificate) { c.Spec.EmailAddresses = nil },
		"begins later":     func(c *cmapi.Certificate) { c.Status.NotBefore.Time = leaf.NotBefore.Add(time.Second) },
		"ends later":       func(c *cmapi.Certificate) { c.Status.NotAfter.Time = leaf.NotAfter.Add(time.Second) },
		"not issued":       func(c *cmapi.Certificate) { c.Status.NotBefore = nil },
		"not issued, half": func(c *cmapi.Certificate) { c.Status.NotAfter = nil },
	} {
		c := good()
		change(c)
		assert.False(t, holds(c, leaf), name)
	}
}
