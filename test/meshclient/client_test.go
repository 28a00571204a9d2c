package meshclient

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestClient_SendsWhatIsAsked(t *testing.T) {
	ca := newMemoryCA(t)
	client, err := Dial(ca.serve(t), []byte(pemOf(ca.root)), ZtunnelTLS())
	require.NoError(t, err)
	defer client.Close()
	_, err = client.TLS()
	require.Error(t, err)

	key, csr, err := ZtunnelCSR(testID)
	require.NoError(t, err)
	chain, err := client.Create(t.Context(), Ask{
		Token:           "a.b.c",
		Authorization:   []string{"Basic x"},
		CSR:             csr,
		ValiditySeconds: 3600,
		Metadata:        ZtunnelMetadata(testID.String()),
		ClusterIDs:      []string{"one", "two"},
		Headers:         metadata.Pairs("x-tenant", "blue"),
	})
	require.NoError(t, err)
	require.NoError(t, JudgeZtunnel(chain, key.Public(), testID, time.Now()))
	require.NoError(t, JudgeSidecar(chain, key.Public(), testID, time.Now()))
	state, err := client.TLS()
	require.NoError(t, err)
	require.NoError(t, JudgeZtunnelTLS(state))

	asks := ca.recorded()
	require.Len(t, asks, 1)
	assert.Equal(t, []string{"Basic x", "Bearer a.b.c"}, asks[0].header.Get("authorization"))
	assert.Equal(t, []string{"one", "two"}, asks[0].header.Get("clusterid"))
	assert.Equal(t, []string{"blue"}, asks[0].header.Get("x-tenant"))
	assert.Equal(t, testID.String(), asks[0].request.GetMetadata().AsMap()["ImpersonatedIdentity"])
	assert.EqualValues(t, 3600, asks[0].request.GetValidityDuration())

	_, err = client.Create(t.Context(), Ask{})
	assert.Equal(t, codes.InvalidArgument, status.Code(err))
	assert.Equal(t, "no request", status.Convert(err).Message())
	asks = ca.recorded()
	require.Len(t, asks, 2)
	assert.Empty(t, asks[1].header.Get("authorization"))
	assert.Nil(t, asks[1].request.GetMetadata())
}

func TestR2_ProfilesNegotiate(t *testing.T) {
	ca := newMemoryCA(t)
	addr := ca.serve(t)
	named := SidecarTLS()
	named.ServerName = "signet.test"
	for _, c := range []struct {
		name    string
		opts    Options
		version uint16
		curve   tls.CurveID // 0: any
	}{
		{"sidecar", SidecarTLS(), tls.VersionTLS13, 0},
		{"server name", named, tls.VersionTLS13, 0},
		{"FIPS 140-2", FIPSTLS(), tls.VersionTLS12, tls.CurveP256},
		{"post-quantum", PQCTLS(), tls.VersionTLS13, tls.X25519MLKEM768},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, err := Dial(addr, []byte(pemOf(ca.root)), c.opts)
			require.NoError(t, err)
			defer client.Close()
			_, err = client.Create(t.Context(), Ask{})
			require.Equal(t, codes.InvalidArgument, status.Code(err), "%v", err)
			state, err := client.TLS()
			require.NoError(t, err)
			assert.Equal(t, c.version, state.Version)
			if c.curve != 0 {
				assert.Equal(t, c.curve, state.CurveID)
			}
		})
	}
}

func TestDial_TrustsItsRootsOnly(t *testing.T) {
	ca, other := newMemoryCA(t), newMemoryCA(t)
	client, err := Dial(ca.serve(t), []byte(pemOf(other.root)), SidecarTLS())
	require.NoError(t, err)
	defer client.Close()
	_, err = client.Create(t.Context(), Ask{})
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, x509.UnknownAuthorityError{}.Error())

	_, err = Dial("127.0.0.1:1", []byte("nothing"), Options{})
	require.ErrorContains(t, err, "no certificate in the roots")
}
