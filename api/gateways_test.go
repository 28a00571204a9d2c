package api

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func gateways(namespaces ...string) []GatewayObject {
	var all []GatewayObject
	for _, namespace := range namespaces {
		for _, group := range []GatewayAPI{KubernetesGateway, IstioGateway} {
			all = append(all, GatewayObject{
				API: group, Namespace: namespace, Name: "web", State: Fresh, NotAfter: time.Unix(2e9, 0).UTC(),
				Listeners: []GatewayListener{{
					Name: "https", Port: 443, Protocol: "HTTPS", TLSMode: "SIMPLE", Hosts: []GatewayHost{{Name: "web.example", Covered: CoveredYes}},
					Certificates: []GatewayCertificate{{Secret: &ObjectRef{Namespace: namespace, Name: "web"}, From: FromCertificate, RemainingSeconds: 60, State: Fresh, Ready: new(true)}},
				}},
			})
		}
	}
	return all
}

// TestGatewaysThatMayBeSeen: a list has the namespaces that the caller may see, and the views are told of all of them,
// because a gateway may name Secrets of another one than its own.
func TestGatewaysThatMayBeSeen(t *testing.T) {
	for _, row := range []struct {
		user, query string
		want        []string // namespaces
		restricted  bool
		elsewhere   bool // what is in namespace two is shown too
	}{
		{"all", "", []string{"one", "two"}, false, true},
		{"all", "?namespace=one", []string{"one"}, false, true},
		{"two", "?namespace=one", []string{"one"}, false, true},
		{"one", "", []string{"one"}, true, false},
		{"one", "?namespace=one", []string{"one"}, false, false},
		{"new", "?namespace=new", nil, false, false},
	} {
		t.Run(row.user+row.query, func(t *testing.T) {
			r := newRig(t, Config{})
			r.api.set(func() { r.api.rights["new"] = []string{"new"} }) // a namespace that isn't known of yet
			r.data.gateways = gateways("one", "two")
			got := r.do(t, "GET", "/v1/gateways"+row.query, row.user)
			require.Equal(t, 200, got.status, got.body)
			assert.Contains(t, got.body, `"items":[`, "an empty list is one")
			var list GatewayList
			require.NoError(t, json.Unmarshal([]byte(got.body), &list))
			var namespaces []string
			for n, g := range list.Items {
				if n%2 == 0 {
					namespaces = append(namespaces, g.Namespace)
				}
			}
			assert.Equal(t, row.want, namespaces)
			assert.Equal(t, row.restricted, list.Restricted)
			visible := r.data.last().(GatewayQuery).Visible
			assert.Equal(t, row.elsewhere, visible.Namespace("two"))
			if _, namespace, ok := strings.Cut(row.query, "="); ok {
				assert.True(t, visible.Namespace(namespace))
			}
		})
	}
	r := newRig(t, Config{})
	for path, user := range map[string]string{"/v1/gateways": "none", "/v1/gateways?namespace=two": "one"} {
		problem := r.do(t, "GET", path, user).problem(t)
		assert.Equal(t, 403, problem.Status)
		assert.Contains(t, problem.Detail, user+" may not list gateways.signet.dev")
	}
	assert.Equal(t, 422, r.do(t, "GET", "/v1/gateways?state=due", "all").status)
}

func TestTheClientAsksForGateways(t *testing.T) {
	r := newRig(t, Config{})
	r.data.gateways = gateways("one", "two")
	client := r.client(t, "all")
	list, err := client.Gateways(t.Context(), GatewayQuery{Namespace: "one", Problems: true, Page: Page{Limit: 7}})
	require.NoError(t, err)
	assert.Equal(t, gateways("one"), list.Items)
	asked := r.data.last().(GatewayQuery)
	asked.Visible = nil
	assert.Equal(t, GatewayQuery{Namespace: "one", Problems: true, Page: Page{Limit: 7}}, asked)

	n := 0
	for g, err := range client.AllGateways(t.Context(), GatewayQuery{Page: Page{Limit: 1}}) {
		require.NoError(t, err)
		assert.Equal(t, "web", g.Name)
		n++
	}
	assert.Equal(t, 4, n)
}

// TestAWatchOfGateways: both of a name are told apart, and that less of a life is left is no change.
func TestAWatchOfGateways(t *testing.T) {
	r := newRig(t, Config{}, func(s *Server) { s.pace.pause = 10 * time.Millisecond })
	r.data.gateways = gateways("one")
	step, keys := 0, map[string]bool{}
	for event, err := range r.client(t, "all").WatchGateways(t.Context(), GatewayQuery{Namespace: "one"}, "") {
		require.NoError(t, err)
		switch event.Type {
		case Added:
			keys[gatewayKey(event.Item)] = true
		case Synced:
			assert.Len(t, keys, 2)
			r.data.change(func() {
				less := gateways("one")
				less[0].Listeners[0].Certificates[0].RemainingSeconds = 30
				less[1].State = Due
				r.data.gateways = less
			})
		case Changed:
			assert.Equal(t, IstioGateway, event.Item.API, "the other is the same")
			assert.Equal(t, Due, event.Item.State)
			step++
			r.data.change(func() { r.data.gateways = r.data.gateways[1:] })
		case Removed:
			assert.Equal(t, "one/web.gateway.networking.k8s.io", event.Key)
			assert.Equal(t, 1, step)
			return
		}
	}
	t.Fatal("the watch has ended")
}
