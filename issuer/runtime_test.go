package issuer

import (
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestParseRuntime(t *testing.T) {
	for _, row := range []struct {
		name string
		data map[string]string
		want Ref
		err  string
	}{
		{"name alone", map[string]string{"issuer-name": "mesh"}, Ref{Name: "mesh", Kind: "Issuer", Group: "cert-manager.io"}, ""},
		{"all", map[string]string{"issuer-name": "mesh", "issuer-kind": "AWSPCAClusterIssuer", "issuer-group": "awspca.cert-manager.io"},
			Ref{Name: "mesh", Kind: "AWSPCAClusterIssuer", Group: "awspca.cert-manager.io"}, ""},
		{"kind alone", map[string]string{"issuer-name": "mesh", "issuer-kind": "ClusterIssuer"}, Ref{Name: "mesh", Kind: "ClusterIssuer", Group: "cert-manager.io"}, ""},
		{"empty values", map[string]string{"issuer-name": "mesh", "issuer-kind": "", "issuer-group": ""}, Ref{Name: "mesh", Kind: "Issuer", Group: "cert-manager.io"}, ""},
		{"white space around, as editors leave it", map[string]string{"issuer-name": " mesh\n", "issuer-kind": "Issuer\n", "issuer-group": "\tcert-manager.io "},
			Ref{Name: "mesh", Kind: "Issuer", Group: "cert-manager.io"}, ""},
		{"keys of others", map[string]string{"issuer-name": "mesh", "note": "x"}, Ref{Name: "mesh", Kind: "Issuer", Group: "cert-manager.io"}, ""},
		{"nothing", nil, Ref{}, "ConfigMap istio-system/signet-issuer.issuer-name: must be set"},
		{"no name", map[string]string{"issuer-kind": "Issuer"}, Ref{}, "issuer-name: must be set"},
		{"name of white space", map[string]string{"issuer-name": " \n"}, Ref{}, "issuer-name: must be set"},
		{"kind of a typo", map[string]string{"issuer-name": "mesh", "issuer-kind": "Isuer"}, Ref{}, `"Isuer" is not an issuer kind of cert-manager.io`},
		{"kind of another group without it", map[string]string{"issuer-name": "mesh", "issuer-kind": "AWSPCAIssuer"}, Ref{}, "kind: "},
		{"another case", map[string]string{"issuer-name": "mesh", "issuer-kind": "clusterissuer"}, Ref{}, "kind: "},
	} {
		t.Run(row.name, func(t *testing.T) {
			ref, found, err := ParseRuntime(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "signet-issuer"}, Data: row.data})
			assert.Equal(t, row.want, ref)
			if row.err != "" {
				assert.ErrorContains(t, err, row.err)
				assert.ErrorContains(t, err, "ConfigMap istio-system/signet-issuer", "the error names the object")
				assert.False(t, found)
				return
			}
			assert.NoError(t, err)
			assert.True(t, found)
		})
	}
}

func TestParseRuntimeWithoutOne(t *testing.T) {
	ref, found, err := ParseRuntime(nil)
	assert.NoError(t, err)
	assert.False(t, found, "the static issuer holds")
	assert.Empty(t, ref)
}
