package controlplane

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pkiLifetime is how long the certificates of a plane are valid.
const pkiLifetime = 10 * 365 * 24 * time.Hour

// A pki is what the API server proves itself with, and what it checks others by: one CA for its
// serving certificate and for client certificates, and the key that signs ServiceAccount tokens.
type pki struct {
	dir          string
	caFile       string
	tokenKeyFile string

	ca    *x509.Certificate
	caKey crypto.Signer
	caPEM []byte
}

// preparePKI takes the CA and the token key from dir, and makes there what is missing.
func preparePKI(dir string) (*pki, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of keys: %w", err)
	}
	p := &pki{dir: dir, caFile: filepath.Join(dir, "ca.crt"), tokenKeyFile: filepath.Join(dir, "tokens.key")}
	if _, err := loadOrCreateKey(p.tokenKeyFile); err != nil {
		return nil, err
	}
	var err error
	if p.caKey, err = loadOrCreateKey(filepath.Join(dir, "ca.key")); err != nil {
		return nil, err
	}
	if err := p.loadOrCreateCA(); err != nil {
		return nil, fmt.Errorf("prepare CA of the API server: %w", err)
	}
	return p, nil
}

func (p *pki) loadOrCreateCA() error {
	text, err := os.ReadFile(p.caFile)
	if errors.Is(err, fs.ErrNotExist) {
		template := &x509.Certificate{
			Subject:               pkix.Name{CommonName: "control plane CA"},
			IsCA:                  true,
			BasicConstraintsValid: true,
			KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		}
		if text, err = sign(template, template, p.caKey.Public(), p.caKey); err != nil {
			return err
		}
		err = os.WriteFile(p.caFile, text, 0o600)
	}
	if err != nil {
		return err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return fmt.Errorf("no PEM in %s", p.caFile)
	}
	p.caPEM = text
	p.ca, err = x509.ParseCertificate(block.Bytes)
	return err
}

// issueClient makes a client certificate for a user and one group, and its key, both PEM.
func (p *pki) issueClient(user, group string) (certPEM, keyPEM []byte, err error) {
	return p.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: []string{group}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// writeServing makes a serving certificate for this machine, and returns its file and its key's.
func (p *pki) writeServing(name string) (certFile, keyFile string, err error) {
	certPEM, keyPEM, err := p.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return "", "", err
	}
	certFile, keyFile = filepath.Join(p.dir, name+".crt"), filepath.Join(p.dir, name+".key")
	if err := errors.Join(os.WriteFile(certFile, certPEM, 0o600), os.WriteFile(keyFile, keyPEM, 0o600)); err != nil {
		return "", "", fmt.Errorf("write certificate of %s: %w", name, err)
	}
	return certFile, keyFile, nil
}

// issue makes a key, and has the CA sign a certificate for it.
func (p *pki) issue(template *x509.Certificate) (certPEM, keyPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	certPEM, err = sign(template, p.ca, key.Public(), p.caKey)
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificate of %s: %w", template.Subject.CommonName, err)
	}
	return certPEM, keyPEM, nil
}

// sign fills in the serial number and the validity, which begins a little in the past.
func sign(template, parent *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Minute)
	template.NotAfter = template.NotBefore.Add(pkiLifetime)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, signer)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// newKey makes a P-256 key, and its PEM (SEC 1, which kube-apiserver reads everywhere).
func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// loadOrCreateKey reads the key in file, or makes one and writes it there.
func loadOrCreateKey(file string) (crypto.Signer, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		key, text, err := newKey()
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return nil, fmt.Errorf("write key: %w", err)
		}
		return key, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("read key: no PEM in %s", file)
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", file, err)
	}
	return key, nil
}
