package install

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/patiently"
)

// flows wants that the API server gives the requests of Signet's account, and no others, the flow that the chart names.
func (i *installation) flows(t *testing.T) {
	ctx := t.Context()
	flow, level := flowNamed(t, "signet-istio-system")
	leases, elections := flowNamed(t, "signet-istio-system-leases")
	assert.Equal(t, "signet-istio-system", level.Name)
	assert.Equal(t, "leader-election", elections.Name)

	ours, err := plane.As(ctx, system, "signet")
	require.NoError(t, err)
	const certManager, coordination = "/apis/cert-manager.io/v1", "/apis/coordination.k8s.io/v1"
	for path, want := range map[string]client.Object{
		certManager + "/namespaces/istio-system/certificaterequests": flow,
		"/api/v1/namespaces":                                    flow,
		"/.well-known/openid-configuration":                     flow,
		coordination + "/namespaces/istio-system/leases":        flow, // a list, which nobody needs
		coordination + "/namespaces/istio-system/leases/signet": leases,
		coordination + "/namespaces/shop/leases/signet":         flow,
	} {
		wantLevel := level.UID
		if want == client.Object(leases) {
			wantLevel = elections.UID
		}
		// The API server learns of flows a moment after they are made.
		patiently.Until(t, "flow of "+path, func(ctx context.Context) error {
			inFlow, inLevel, err := flowOf(ctx, ours, path)
			if err == nil && (inFlow != string(want.GetUID()) || inLevel != string(wantLevel)) {
				err = fmt.Errorf("it is %s with %s, not %s with %s", inFlow, inLevel, want.GetUID(), wantLevel)
			}
			return err
		})
	}
	for _, other := range []string{"default", "signet-reader"} {
		theirs, err := plane.As(ctx, system, other)
		require.NoError(t, err)
		inFlow, inLevel, err := flowOf(ctx, theirs, "/api/v1/namespaces")
		require.NoError(t, err)
		assert.NotEmpty(t, inFlow, other)
		assert.NotEqual(t, string(flow.UID), inFlow, other)
		assert.NotEqual(t, string(level.UID), inLevel, other)
	}
}

// flowOf says in which flow and at which priority level a request is served, whatever is answered.
func flowOf(ctx context.Context, as *rest.Config, path string) (flow, level string, err error) {
	c, err := rest.HTTPClientFor(as)
	if err != nil {
		return "", "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, as.Host+path, nil)
	if err != nil {
		return "", "", err
	}
	res, err := c.Do(req)
	if err != nil {
		return "", "", err
	}
	return res.Header.Get(flowcontrolv1.ResponseHeaderMatchedFlowSchemaUID), res.Header.Get(flowcontrolv1.ResponseHeaderMatchedPriorityLevelConfigurationUID), res.Body.Close()
}

// flowNamed is a FlowSchema and the priority level that it names.
func flowNamed(t *testing.T, name string) (*flowcontrolv1.FlowSchema, *flowcontrolv1.PriorityLevelConfiguration) {
	t.Helper()
	flow, level := &flowcontrolv1.FlowSchema{}, &flowcontrolv1.PriorityLevelConfiguration{}
	require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Name: name}, flow))
	require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Name: flow.Spec.PriorityLevelConfiguration.Name}, level))
	return flow, level
}
