package install

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/kube"
	helmrelease "helm.sh/helm/v4/pkg/release"
	release "helm.sh/helm/v4/pkg/release/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"

	"github.com/signet-ca/signet/test/chart"
)

// A helm does what the command does with one release of the chart, as the administrator. What it installed is kept in
// Secrets of the namespace. It waits for nothing: there are no controllers that would report.
type helm struct {
	namespace, release string
	config             *action.Configuration
}

func newHelm(t *testing.T, namespace, name string) *helm {
	t.Helper()
	config := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	access, err := newClients(namespace)
	require.NoError(t, err)
	require.NoError(t, config.Init(access, namespace, "secrets"))
	return &helm{namespace, name, config}
}

// install is helm install, and returns the notes.
func (h *helm) install(t *testing.T, values map[string]any) string {
	t.Helper()
	loaded, err := chart.Load()
	require.NoError(t, err)
	do := action.NewInstall(h.config)
	do.Namespace, do.ReleaseName, do.WaitStrategy = h.namespace, h.release, kube.HookOnlyStrategy
	installed, err := do.RunWithContext(t.Context(), loaded, fromFile(t, values))
	require.NoError(t, err)
	return notes(t, installed)
}

// upgrade is helm upgrade --reuse-values with what is new.
func (h *helm) upgrade(t *testing.T, values map[string]any) {
	t.Helper()
	loaded, err := chart.Load()
	require.NoError(t, err)
	do := action.NewUpgrade(h.config)
	do.Namespace, do.ReuseValues, do.WaitStrategy = h.namespace, true, kube.HookOnlyStrategy
	do.DisableOpenAPIValidation = true // install had it; it takes seconds, and the API server judges anyway
	_, err = do.RunWithContext(t.Context(), h.release, loaded, fromFile(t, values))
	require.NoError(t, err)
}

// rollBack is helm rollback to a revision.
func (h *helm) rollBack(t *testing.T, revision int) {
	t.Helper()
	do := action.NewRollback(h.config)
	do.Version, do.WaitStrategy = revision, kube.HookOnlyStrategy
	require.NoError(t, do.Run(h.release))
}

// uninstall is helm uninstall.
func (h *helm) uninstall(t *testing.T) {
	t.Helper()
	do := action.NewUninstall(h.config)
	do.WaitStrategy = kube.HookOnlyStrategy
	_, err := do.Run(h.release)
	require.NoError(t, err)
}

func notes(t *testing.T, installed helmrelease.Releaser) string {
	t.Helper()
	known, ok := installed.(*release.Release)
	require.True(t, ok, "%T", installed)
	return known.Info.Notes
}

// fromFile gives values the types that they have when Helm reads them from a file.
func fromFile(t *testing.T, values map[string]any) map[string]any {
	t.Helper()
	text, err := yaml.Marshal(values)
	require.NoError(t, err)
	read, err := common.ReadValues(text)
	require.NoError(t, err)
	return read
}

// clients are how Helm reaches the API server. Nothing is cached on disk, where another control plane could be meant by the
// same address.
type clients struct {
	namespace string
	config    *rest.Config
	discovery discovery.CachedDiscoveryInterface
	mapper    meta.RESTMapper
}

func newClients(namespace string) (*clients, error) {
	config := plane.Admin()
	config.WarningHandler = rest.NoWarnings{}
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	cached := memory.NewMemCacheClient(client)
	return &clients{namespace, config, cached, restmapper.NewDeferredDiscoveryRESTMapper(cached)}, nil
}

func (c *clients) ToRESTConfig() (*rest.Config, error) { return rest.CopyConfig(c.config), nil }

func (c *clients) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return c.discovery, nil
}

func (c *clients) ToRESTMapper() (meta.RESTMapper, error) { return c.mapper, nil }

func (c *clients) ToRawKubeConfigLoader() clientcmd.ClientConfig {
	at := clientcmdapi.Context{Cluster: "test", AuthInfo: "test", Namespace: c.namespace}
	config := clientcmdapi.Config{CurrentContext: "test", Contexts: map[string]*clientcmdapi.Context{"test": &at}}
	return clientcmd.NewDefaultClientConfig(config, &clientcmd.ConfigOverrides{})
}
