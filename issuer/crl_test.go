package issuer

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// authority is a CA that revokes.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newAuthority is a root that is valid for a day from now on, and may sign CRLs.
func newAuthority(t testing.TB, name string, now time.Time, change func(*x509.Certificate)) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return &authority{key: key, cert: selfSign(t, key, name, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = now.Add(-time.Hour), now.Add(24*time.Hour)
		c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		if change != nil {
			change(c)
		}
	})}
}

// sign issues a certificate of this serial number.
func (a *authority) sign(t testing.TB, serial int64, change func(*x509.Certificate)) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		NotBefore:    a.cert.NotBefore,
		NotAfter:     a.cert.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{cert: cert, key: key}
}

// intermediate is a CA below a.
func (a *authority) intermediate(t testing.TB, name string) *authority {
	return a.sign(t, 100, func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: name}
		c.IsCA, c.BasicConstraintsValid = true, true
		c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	})
}

// crl revokes serials in a CRL that is good for an hour from now on, in DER.
func (a *authority) crl(t testing.TB, now time.Time, change func(*x509.RevocationList), serials ...int64) []byte {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(10), ThisUpdate: now, NextUpdate: now.Add(time.Hour)}
	for _, serial := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: now})
	}
	if change != nil {
		change(list)
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	require.NoError(t, err)
	return der
}

// rawCRL is a CRL that the library wouldn't make.
func (a *authority) rawCRL(t testing.TB, now time.Time, change func(*pkix.TBSCertificateList)) []byte {
	t.Helper()
	ecdsaWithSHA256 := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}
	tbs := pkix.TBSCertificateList{Version: 1, Signature: ecdsaWithSHA256, Issuer: a.cert.Subject.ToRDNSequence(), ThisUpdate: now.UTC(), NextUpdate: now.Add(time.Hour).UTC()}
	change(&tbs)
	tbsDER, err := asn1.Marshal(tbs)
	require.NoError(t, err)
	tbs.Raw = tbsDER
	sum := sha256.Sum256(tbsDER)
	signature, err := a.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	require.NoError(t, err)
	der, err := asn1.Marshal(pkix.CertificateList{TBSCertList: tbs, SignatureAlgorithm: tbs.Signature, SignatureValue: asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}})
	require.NoError(t, err)
	return der
}

func crlPEM(lists ...[]byte) string {
	var text strings.Builder
	for _, der := range lists {
		text.Write(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	}
	return text.String()
}

func certs(all ...*authority) []*x509.Certificate {
	var list []*x509.Certificate
	for _, a := range all {
		list = append(list, a.cert)
	}
	return list
}

func TestR57_ParseCRLs(t *testing.T) {
	root := newAuthority(t, "root", epoch, nil)
	other := newAuthority(t, "other", epoch, nil)
	below := root.intermediate(t, "below")
	cas := append(certs(root, below, other), root.cert) // repeated
	lists := [][]byte{root.crl(t, epoch, nil, 100), below.crl(t, epoch, nil, 7, 8), other.crl(t, epoch, nil)}

	set, err := ParseCRLs([]byte("# of the root\n"+crlPEM(lists[0])+"\r\n# the others\n"+crlPEM(lists[1:]...)), cas, epoch)
	require.NoError(t, err)
	infos := set.Lists()
	require.Len(t, infos, 3)
	assert.Equal(t, epoch.Add(time.Hour), set.NextUpdate())
	assert.Equal(t, "a", infos[0].Number)
	assert.Empty(t, set.Remarks())
	assert.True(t, strings.HasSuffix(set.PEM(), "-----END X509 CRL-----\n"))
	assert.Equal(t, 3, strings.Count(set.PEM(), "-----BEGIN X509 CRL-----"))

	for range 5 { // whatever order the source has
		slices.Reverse(lists)
		lists[0], lists[1] = lists[1], lists[0]
		again, err := ParseCRLs([]byte(crlPEM(lists...)), cas, epoch)
		require.NoError(t, err)
		assert.Equal(t, set.PEM(), again.PEM())
	}
	again, err := ParseCRLs([]byte(set.PEM()), cas, epoch)
	require.NoError(t, err)
	assert.Equal(t, set.PEM(), again.PEM())

	assert.True(t, set.Revoked(below.cert))
	assert.False(t, set.Revoked(root.cert))
	assert.True(t, set.Revoked(below.sign(t, 7, nil).cert))
	assert.False(t, set.Revoked(below.sign(t, 9, nil).cert))
	assert.False(t, set.Revoked(root.sign(t, 7, nil).cert), "the serial of another CA")
	assert.False(t, (&CRLSet{}).Revoked(below.cert))
}

func TestR57_ParseCRLsRefusesWhole(t *testing.T) {
	root := newAuthority(t, "root", epoch, nil)
	imposter := newAuthority(t, "root", epoch, nil) // of the same name
	other := newAuthority(t, "other", epoch, nil)
	below := root.intermediate(t, "below")
	mayNot := newAuthority(t, "may not", epoch, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })
	good := root.crl(t, epoch, nil, 7)
	extended := func(critical bool, oid ...int) []byte {
		return root.crl(t, epoch, func(l *x509.RevocationList) {
			l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: oid, Critical: critical, Value: []byte{0x30, 0}})
		})
	}
	entry := func(change func(*x509.RevocationListEntry)) []byte {
		return root.crl(t, epoch, func(l *x509.RevocationList) { change(&l.RevokedCertificateEntries[0]) }, 7)
	}
	changedByte := slices.Clone(good)
	changedByte[len(changedByte)-1] ^= 1
	// Bytes behind the signature, within the outer SEQUENCE.
	var inner asn1.RawValue
	_, err := asn1.Unmarshal(good, &inner)
	require.NoError(t, err)
	behindSignature, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: append(slices.Clone(inner.Bytes), 5, 0)})
	require.NoError(t, err)
	at := func(this, next time.Duration) []byte {
		return root.crl(t, epoch, func(l *x509.RevocationList) { l.ThisUpdate, l.NextUpdate = epoch.Add(this), epoch.Add(next) })
	}

	for _, row := range []struct {
		name, text string
		cas        []*x509.Certificate
		want       string
	}{
		{"nothing", "", nil, "PEM: no X509 CRL"},
		{"comment only", "# later\n", nil, "PEM: no X509 CRL"},
		{"DER", string(good), nil, "PEM: text outside of blocks, after X509 CRL 0"},
		{"certificate", toPEM(root.cert), nil, `PEM: block of type "CERTIFICATE", after X509 CRL 0; only plain X509 CRL blocks are allowed`},
		{"private key behind", crlPEM(good) + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", nil, `block of type "PRIVATE KEY"`},
		{"junk between", crlPEM(good) + "junk\n" + crlPEM(good), nil, "PEM: text outside of blocks, after X509 CRL 1"},
		{"half written", crlPEM(good)[:100], nil, "PEM: broken block, after X509 CRL 0"},
		{"headers", strings.Replace(crlPEM(good), "-----\n", "-----\nA: b\n\n", 1), nil, `block of type "X509 CRL"`},
		{"broken in front", crlPEM(good)[:60] + "\n" + crlPEM(good), nil, "PEM: broken block"},
		{"not DER", crlPEM([]byte("no CRL")), nil, "CRL 1: it is no CRL in DER"},
		{"bytes behind", crlPEM(append(slices.Clone(good), 0)), nil, "CRL 1: there are bytes behind it"},
		{"bytes behind the signature", crlPEM(behindSignature), nil, "CRL 1: there are bytes behind it"},
		{"too large", crlPEM(good) + strings.Repeat("\n", maxCRLBytes), nil, "at most 1048576 are allowed"},
		{"wrong signature", crlPEM(changedByte), nil, `CRL 1, of "CN=root": not signed by that CA`},
		{"signed by an imposter", crlPEM(imposter.crl(t, epoch, nil)), nil, `CRL 1, of "CN=root": not signed by that CA`},
		{"foreign CA alone", crlPEM(other.crl(t, epoch, nil)), nil, `there is no CRL of "CN=root" (serial 01)`},
		{"intermediate missing", crlPEM(good), certs(root, below), `there is no CRL of "CN=below" (serial 64); proxies want one of every CA or none`},
		{"anchor missing", crlPEM(good), certs(root, other), `there is no CRL of "CN=other" (serial 01)`},
		{"second of the same name missing", crlPEM(good), certs(root, imposter), `there is no CRL of "CN=root" (serial 01)`},
		{"two of one CA", crlPEM(good, at(0, time.Hour)), nil, "CRL 2, of \"CN=root\": it is the second one"},
		{"no CA known", crlPEM(good), []*x509.Certificate{}, "there is no CRL of any CA of the mesh"},
		{"CA may not sign CRLs", crlPEM(mayNot.rawCRL(t, epoch, func(*pkix.TBSCertificateList) {})), certs(mayNot), "that CA may not sign CRLs"},
		{"expired", crlPEM(at(-time.Hour, 0)), nil, "it has expired: the next one was due at 2030-01-01T00:00:00Z"},
		{"expires at once", crlPEM(at(-time.Hour, 5*time.Minute)), nil, "it expires in less than 5m0s"},
		{"not valid yet", crlPEM(at(time.Second, time.Hour)), nil, "it is not valid before 2030-01-01T00:00:01Z"},
		{"delta", crlPEM(extended(true, 2, 5, 29, 27)), nil, "it is a delta CRL"},
		{"delta that isn't critical", crlPEM(extended(false, 2, 5, 29, 27)), nil, "it is a delta CRL"},
		{"of some certificates", crlPEM(extended(true, 2, 5, 29, 28)), nil, "it has an issuing distribution point"},
		{"unknown critical extension", crlPEM(extended(true, 1, 2, 3)), nil, "it has an unknown critical extension, 1.2.3"},
		{"other key identifier", crlPEM(root.rawCRL(t, epoch, func(l *pkix.TBSCertificateList) {
			l.Extensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 35}, Value: []byte{0x30, 3, 0x80, 1, 9}}}
		})), nil, "its authority key identifier is 09"},
		{"no next update", crlPEM(root.rawCRL(t, epoch, func(l *pkix.TBSCertificateList) { l.NextUpdate = time.Time{} })), nil, "it has no nextUpdate"},
		{"next update before this one", crlPEM(root.rawCRL(t, epoch, func(l *pkix.TBSCertificateList) { l.NextUpdate = epoch.Add(-time.Hour) })), nil, "is not after its thisUpdate"},
		{"version 1", crlPEM(root.rawCRL(t, epoch, func(l *pkix.TBSCertificateList) { l.Version = 0 })), nil, "unsupported crl version"},
		{"SHA-1", crlPEM(root.rawCRL(t, epoch, func(l *pkix.TBSCertificateList) {
			l.Signature.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}
		})), nil, "its signature algorithm, ECDSA-SHA1, is not safe"},
		{"indirect", crlPEM(entry(func(e *x509.RevocationListEntry) {
			e.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 29}, Critical: true, Value: []byte{0x30, 0}}}
		})), nil, "entry of serial 07: it is an indirect CRL"},
		{"unknown critical extension of an entry", crlPEM(entry(func(e *x509.RevocationListEntry) {
			e.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{0x30, 0}}}
		})), nil, "entry of serial 07: it has an unknown critical extension"},
		{"removed entry", crlPEM(entry(func(e *x509.RevocationListEntry) { e.ReasonCode = removeFromCRL })), nil, "entry of serial 07: it is removed"},
	} {
		t.Run(row.name, func(t *testing.T) {
			cas := row.cas
			if cas == nil {
				cas = certs(root)
			}
			set, err := ParseCRLs([]byte(row.text), cas, epoch)
			require.ErrorContains(t, err, row.want)
			assert.Nil(t, set)
		})
	}
}

func TestCRLsOfCAsThatComeAndGo(t *testing.T) {
	root, old := newAuthority(t, "root", epoch, nil), newAuthority(t, "old", epoch, nil)
	expired := newAuthority(t, "expired", epoch, func(c *x509.Certificate) { c.NotAfter = epoch.Add(-time.Second) })

	set, err := ParseCRLs([]byte(crlPEM(root.crl(t, epoch, nil), old.crl(t, epoch, nil))), certs(root), epoch)
	require.NoError(t, err)
	assert.Equal(t, []string{`CRL of "CN=old", which is no CA of the mesh: passed on, not verified`}, set.Remarks())
	assert.Len(t, set.Lists(), 1)
	assert.Equal(t, 2, strings.Count(set.PEM(), "BEGIN"), "it may be an intermediate that isn't known yet")
	known, err := ParseCRLs([]byte(set.PEM()), certs(root, old), epoch)
	require.NoError(t, err)
	assert.Equal(t, set.PEM(), known.PEM(), "the bytes don't depend on what a replica knows")

	past := func(l *x509.RevocationList) { l.ThisUpdate, l.NextUpdate = epoch.Add(-time.Hour), epoch }
	set, err = ParseCRLs([]byte(crlPEM(root.crl(t, epoch, nil), old.crl(t, epoch, past))), certs(root), epoch)
	require.NoError(t, err)
	assert.Equal(t, []string{`CRL of "CN=old", which is no CA of the mesh: left out, it has expired: the next one was due at 2030-01-01T00:00:00Z`}, set.Remarks())
	assert.Equal(t, 1, strings.Count(set.PEM(), "BEGIN"))

	_, err = ParseCRLs([]byte(crlPEM(root.crl(t, epoch, nil))), certs(root, expired), epoch)
	assert.NoError(t, err, "nothing can be signed under an expired CA")

	// A renewed root has the same name and key, so one CRL is both certificates'.
	renewed := &authority{key: root.key, cert: selfSign(t, root.key, "root", func(c *x509.Certificate) {
		c.NotAfter, c.KeyUsage = epoch.Add(48*time.Hour), x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	})}
	set, err = ParseCRLs([]byte(crlPEM(root.crl(t, epoch, nil, 7))), certs(root, renewed), epoch)
	require.NoError(t, err)
	assert.True(t, set.Revoked(renewed.sign(t, 7, nil).cert))

	// A new root of the same name has another key, so both need one.
	second := newAuthority(t, "root", epoch, nil)
	both := [][]byte{second.crl(t, epoch, nil, 8), root.crl(t, epoch, nil, 7)}
	set, err = ParseCRLs([]byte(crlPEM(both...)), certs(root, second), epoch)
	require.NoError(t, err)
	assert.Len(t, set.Lists(), 2)
	other, err := ParseCRLs([]byte(crlPEM(both[1], both[0])), certs(second, root), epoch)
	require.NoError(t, err)
	assert.Equal(t, set.PEM(), other.PEM())
	for _, row := range []struct {
		by     *authority
		serial int64
		want   bool
	}{{root, 7, true}, {root, 8, false}, {second, 8, true}, {second, 7, false}} {
		assert.Equal(t, row.want, set.Revoked(row.by.sign(t, row.serial, nil).cert))
	}
}

// FuzzParseCRLs: what is accepted reads back to the same bytes, covers the CA, and is current.
func FuzzParseCRLs(f *testing.F) {
	root, other := newAuthority(f, "root", epoch, nil), newAuthority(f, "other", epoch, nil)
	good, foreign := root.crl(f, epoch, nil, 7, 8), other.crl(f, epoch, nil)
	for _, seed := range []string{
		"", crlPEM(good), crlPEM(foreign, good), crlPEM(good, good), "# a\n" + crlPEM(good) + "x", toPEM(root.cert), crlPEM(good)[:200],
		strings.ReplaceAll(crlPEM(good), "\n", "\r\n"), crlPEM(append(slices.Clone(good), 0)),
		crlPEM(root.rawCRL(f, epoch, func(l *pkix.TBSCertificateList) { l.NextUpdate = time.Time{} })),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		set, err := ParseCRLs(text, certs(root), epoch)
		if err != nil {
			require.Nil(t, set)
			return
		}
		require.NoError(t, set.usable(certs(root), epoch))
		require.Len(t, set.Lists(), 1)
		ours := 0
		for block, rest := pem.Decode([]byte(set.PEM())); block != nil; block, rest = pem.Decode(rest) {
			list, err := x509.ParseRevocationList(block.Bytes)
			require.NoError(t, err)
			require.Equal(t, block.Bytes, list.Raw)
			if bytes.Equal(list.RawIssuer, root.cert.RawSubject) {
				require.NoError(t, list.CheckSignatureFrom(root.cert))
				ours++
			}
		}
		require.Equal(t, 1, ours)
		again, err := ParseCRLs([]byte(set.PEM()), certs(root), epoch)
		require.NoError(t, err)
		require.Equal(t, set.PEM(), again.PEM())
	})
}
