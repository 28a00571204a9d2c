package chart

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// TestObjects: each feature has its objects, and without it they aren't there.
func TestObjects(t *testing.T) {
	usual := []string{
		"ClusterRole/signet-istio-system", "ClusterRole/signet-prober", "ClusterRole/signet-reader", "ClusterRoleBinding/signet-istio-system", "ClusterRoleBinding/signet-reader",
		"ConfigMap/signet-config", "FlowSchema/signet-istio-system", "FlowSchema/signet-istio-system-leases", "NetworkPolicy/signet", "PodDisruptionBudget/signet",
		"PriorityLevelConfiguration/signet-istio-system", "Role/signet", "RoleBinding/signet", "Service/signet", "Service/signet-headless", "Service/signet-metrics",
		"ServiceAccount/signet", "ServiceAccount/signet-reader", "StatefulSet/signet", "ValidatingAdmissionPolicy/signet-istio-system",
		"ValidatingAdmissionPolicy/signet-istio-system-signers", "ValidatingAdmissionPolicyBinding/signet-istio-system", "ValidatingAdmissionPolicyBinding/signet-istio-system-signers",
	}
	for _, row := range []struct {
		name, values  string
		more, without []string
	}{
		{name: "usual"},
		{name: "no budget", values: "podDisruptionBudget: {enabled: false}", without: []string{"PodDisruptionBudget/signet"}},
		{name: "autoscaling", values: "autoscaling: {enabled: true}", more: []string{"HorizontalPodAutoscaler/signet"}},
		{name: "no account", values: "serviceAccount: {create: false}", without: []string{"ServiceAccount/signet"}},
		{name: "no rights", values: "rbac: {create: false}", without: []string{
			"ClusterRole/signet-istio-system", "ClusterRoleBinding/signet-istio-system", "Role/signet", "RoleBinding/signet",
		}},
		{name: "no readers", values: "readers: {create: false}", without: []string{
			"ClusterRole/signet-prober", "ClusterRole/signet-reader", "ClusterRoleBinding/signet-reader", "ServiceAccount/signet-reader",
		}},
		{name: "nobody reads all", values: "readers: {serviceAccount: false}", without: []string{"ClusterRoleBinding/signet-reader", "ServiceAccount/signet-reader"}},
		{name: "no inspection", values: "config: {api: {disabled: true}}", without: []string{
			"ClusterRole/signet-prober", "ClusterRole/signet-reader", "ClusterRoleBinding/signet-reader", "ServiceAccount/signet-reader",
		}},
		{name: "no probes", values: "config: {probes: {disabled: true}}", without: []string{"ClusterRole/signet-prober"}},
		{name: "no network policy", values: "networkPolicy: {enabled: false}", without: []string{"NetworkPolicy/signet"}},
		{name: "no admission policy", values: "admissionPolicy: {enabled: false}", without: []string{
			"ValidatingAdmissionPolicy/signet-istio-system", "ValidatingAdmissionPolicy/signet-istio-system-signers",
			"ValidatingAdmissionPolicyBinding/signet-istio-system", "ValidatingAdmissionPolicyBinding/signet-istio-system-signers",
		}},
		{name: "no fairness", values: "priorityAndFairness: {enabled: false}", without: []string{
			"FlowSchema/signet-istio-system", "FlowSchema/signet-istio-system-leases", "PriorityLevelConfiguration/signet-istio-system",
		}},
		{name: "no metrics", values: "metrics: {service: {enabled: false}}", without: []string{"Service/signet-metrics"}},
		{name: "Services are scraped", values: "metrics: {serviceMonitor: {enabled: true}}", more: []string{"ServiceMonitor/signet"}},
		{name: "pods are scraped", values: "metrics: {podMonitor: {enabled: true}}", more: []string{"PodMonitor/signet"}},
		{name: "alerts", values: "metrics: {prometheusRule: {enabled: true}}", more: []string{"PrometheusRule/signet"}},
		{name: "dashboard", values: "metrics: {dashboard: {enabled: true}}", more: []string{"ConfigMap/signet-dashboard"}},
		{name: "alias", values: "service: {aliases: [{name: old, namespace: istio-system}]}\nconfig: {serving: {dnsNames: [old.istio-system.svc]}}", more: []string{"Service/old"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			objects := rendered(t, row.values)
			want := slices.DeleteFunc(slices.Concat(usual, row.more), func(name string) bool { return slices.Contains(row.without, name) })
			var got []string
			for _, object := range objects {
				got = append(got, object.GetKind()+"/"+object.GetName())
			}
			assert.ElementsMatch(t, want, got)
			for _, object := range objects {
				assert.Equal(t, "signet", object.GetLabels()["app.kubernetes.io/name"], "%s %s", object.GetKind(), object.GetName())
			}
		})
	}
}

// TestPods: what the pods are like that isn't seen at a glance in the golden files.
func TestPods(t *testing.T) {
	for _, row := range []struct {
		name, values string
		check        func(t *testing.T, set *appsv1.StatefulSet, pod corev1.PodSpec)
	}{
		{"replicas are left to the autoscaler", "autoscaling: {enabled: true}", func(t *testing.T, set *appsv1.StatefulSet, _ corev1.PodSpec) {
			assert.Nil(t, set.Spec.Replicas)
		}},
		{"none", "replicas: 0", func(t *testing.T, set *appsv1.StatefulSet, _ corev1.PodSpec) {
			assert.Equal(t, int32(0), *set.Spec.Replicas)
		}},
		{"apart", "spread: required", func(t *testing.T, _ *appsv1.StatefulSet, pod corev1.PodSpec) {
			assert.Len(t, pod.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, 1)
			assert.Empty(t, pod.Affinity.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
			assert.Len(t, pod.TopologySpreadConstraints, 1)
		}},
		{"wherever", "spread: none", func(t *testing.T, _ *appsv1.StatefulSet, pod corev1.PodSpec) {
			assert.Nil(t, pod.Affinity)
			assert.Empty(t, pod.TopologySpreadConstraints)
		}},
		{"apart in their own way", "affinity: {podAntiAffinity: {}}\ntopologySpreadConstraints: [{maxSkew: 2, topologyKey: a, whenUnsatisfiable: DoNotSchedule}]", func(t *testing.T, _ *appsv1.StatefulSet, pod corev1.PodSpec) {
			assert.Equal(t, &corev1.PodAntiAffinity{}, pod.Affinity.PodAntiAffinity)
			assert.Len(t, pod.TopologySpreadConstraints, 1)
			assert.Equal(t, "a", pod.TopologySpreadConstraints[0].TopologyKey)
		}},
		{"DSN in a variable", "ledger: {postgres: {secretName: db, key: url}}\nconfig: {ledger: {postgres: {dsnEnv: DSN}}}", func(t *testing.T, _ *appsv1.StatefulSet, pod corev1.PodSpec) {
			require.Len(t, pod.Containers[0].Env, 1)
			assert.Equal(t, "DSN", pod.Containers[0].Env[0].Name)
			assert.Equal(t, &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "db"}, Key: "url"}, pod.Containers[0].Env[0].ValueFrom.SecretKeyRef)
			assert.Len(t, pod.Volumes[0].Projected.Sources, 1)
		}},
		{"records elsewhere", "config: {ledger: {dir: /records}}", func(t *testing.T, _ *appsv1.StatefulSet, pod corev1.PodSpec) {
			assert.Equal(t, "/records", pod.Containers[0].VolumeMounts[1].MountPath)
		}},
		{"records on a claim", "ledger: {volume: {type: claim}}", func(t *testing.T, set *appsv1.StatefulSet, pod corev1.PodSpec) {
			assert.Len(t, pod.Volumes, 1)
			require.Len(t, set.Spec.VolumeClaimTemplates, 1)
			assert.Nil(t, set.Spec.VolumeClaimTemplates[0].Spec.StorageClassName, "the cluster's default")
			assert.Equal(t, appsv1.RetainPersistentVolumeClaimRetentionPolicyType, set.Spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted)
		}},
		{"time to leave", "config: {signer: {timeout: 1m}, shutdown: {delay: 1500ms}}", func(t *testing.T, _ *appsv1.StatefulSet, pod corev1.PodSpec) {
			assert.Equal(t, int64(2+70+25), *pod.TerminationGracePeriodSeconds)
		}},
		{"ports", "config: {ca: {listen: ':443'}, api: {disabled: true}, metrics: {listen: '0.0.0.0:80'}, health: {listen: '[::]:81'}, bundleEndpoint: {listen: ':82'}}", func(t *testing.T, _ *appsv1.StatefulSet, pod corev1.PodSpec) {
			ports := map[string]int32{}
			for _, port := range pod.Containers[0].Ports {
				ports[port.Name] = port.ContainerPort
			}
			assert.Equal(t, map[string]int32{"ca": 443, "metrics": 80, "health": 81, "bundle": 82}, ports)
		}},
		{"labels can't undo what must be", "podLabels: {istio.io/dataplane-mode: ambient, sidecar.istio.io/inject: 'true', app.kubernetes.io/name: x}\ncommonLabels: {app.kubernetes.io/instance: x}", func(t *testing.T, set *appsv1.StatefulSet, _ corev1.PodSpec) {
			labels := set.Spec.Template.Labels
			assert.Equal(t, "none", labels["istio.io/dataplane-mode"])
			assert.Equal(t, "false", labels["sidecar.istio.io/inject"])
			assert.Equal(t, "signet", labels["app.kubernetes.io/instance"])
			for name, value := range set.Spec.Selector.MatchLabels {
				assert.Equal(t, value, labels[name])
			}
		}},
		{"safe by default", "", func(t *testing.T, set *appsv1.StatefulSet, pod corev1.PodSpec) {
			assert.True(t, *pod.SecurityContext.RunAsNonRoot)
			assert.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, pod.SecurityContext.SeccompProfile.Type)
			context := pod.Containers[0].SecurityContext
			assert.False(t, *context.AllowPrivilegeEscalation)
			assert.True(t, *context.ReadOnlyRootFilesystem)
			assert.Equal(t, []corev1.Capability{"ALL"}, context.Capabilities.Drop)
			assert.Equal(t, int32(2), *set.Spec.Replicas)
			assert.Equal(t, appsv1.ParallelPodManagement, set.Spec.PodManagementPolicy)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			var set appsv1.StatefulSet
			into(t, find(t, rendered(t, row.values), "StatefulSet", "istio-system", "signet"), &set)
			row.check(t, &set, set.Spec.Template.Spec)
			for _, mount := range set.Spec.Template.Spec.Containers[0].VolumeMounts {
				named := func(v corev1.Volume) bool { return v.Name == mount.Name }
				claimed := func(c corev1.PersistentVolumeClaim) bool { return c.Name == mount.Name }
				assert.True(t, slices.ContainsFunc(set.Spec.Template.Spec.Volumes, named) || slices.ContainsFunc(set.Spec.VolumeClaimTemplates, claimed), mount.Name)
			}
		})
	}
}

// TestAliases: a name in the release's namespace leads to the pods, one elsewhere to the Service.
func TestAliases(t *testing.T) {
	objects := rendered(t, `
config: {serving: {dnsNames: [old.istio-system.svc, cert-manager-istio-csr.cert-manager.svc], clusterDomain: example.org}}
service: {port: 8443, apiPort: 443, aliases: [{name: old, namespace: istio-system}, {name: cert-manager-istio-csr, namespace: cert-manager}]}
`)
	var ours, here, there corev1.Service
	into(t, find(t, objects, "Service", "istio-system", "signet"), &ours)
	into(t, find(t, objects, "Service", "istio-system", "old"), &here)
	into(t, find(t, objects, "Service", "cert-manager", "cert-manager-istio-csr"), &there)
	assert.Equal(t, ours.Spec.Selector, here.Spec.Selector)
	require.Len(t, here.Spec.Ports, 1)
	assert.Equal(t, ours.Spec.Ports[0], here.Spec.Ports[0])
	assert.Equal(t, corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "signet.istio-system.svc.example.org"}, there.Spec)
}

// TestFairness: the lease goes by another level than the rest, and is looked at first.
func TestFairness(t *testing.T) {
	objects := rendered(t, "serviceAccount: {name: other}\npriorityAndFairness: {shares: 7, lendablePercent: 0, matchingPrecedence: 800}")
	var rest, leases flowcontrolv1.FlowSchema
	var level flowcontrolv1.PriorityLevelConfiguration
	into(t, find(t, objects, "FlowSchema", "", "signet-istio-system"), &rest)
	into(t, find(t, objects, "FlowSchema", "", "signet-istio-system-leases"), &leases)
	into(t, find(t, objects, "PriorityLevelConfiguration", "", "signet-istio-system"), &level)
	assert.Equal(t, int32(7), *level.Spec.Limited.NominalConcurrencyShares)
	assert.Equal(t, int32(0), *level.Spec.Limited.LendablePercent)
	assert.Equal(t, level.Name, rest.Spec.PriorityLevelConfiguration.Name)
	assert.Equal(t, "leader-election", leases.Spec.PriorityLevelConfiguration.Name)
	assert.Less(t, leases.Spec.MatchingPrecedence, rest.Spec.MatchingPrecedence)
	for _, schema := range []flowcontrolv1.FlowSchema{rest, leases} {
		require.Len(t, schema.Spec.Rules, 1)
		require.Len(t, schema.Spec.Rules[0].Subjects, 1)
		assert.Equal(t, flowcontrolv1.ServiceAccountSubject{Namespace: "istio-system", Name: "other"}, *schema.Spec.Rules[0].Subjects[0].ServiceAccount)
	}
}

// TestAlerts: single alerts can be left out, and all can have labels.
func TestAlerts(t *testing.T) {
	alerts := func(values string) map[string]map[string]any {
		found := make(map[string]map[string]any)
		rule := find(t, rendered(t, "metrics: {prometheusRule: {enabled: true}}\n"+values), "PrometheusRule", "istio-system", "signet")
		groups, _, err := unstructured.NestedSlice(rule.Object, "spec", "groups")
		require.NoError(t, err)
		for _, group := range groups {
			for _, rule := range group.(map[string]any)["rules"].([]any) {
				if name, ok := rule.(map[string]any)["alert"].(string); ok {
					found[name] = rule.(map[string]any)
				}
			}
		}
		return found
	}
	all := alerts("")
	require.NotEmpty(t, all)
	for name, alert := range all {
		less := alerts("metrics: {prometheusRule: {enabled: true, disabled: [" + name + "], alertLabels: {team: mesh, severity: none}}}")
		assert.Len(t, less, len(all)-1)
		assert.NotContains(t, less, name)
		for other, with := range less {
			labels := with["labels"].(map[string]any)
			assert.Equal(t, "mesh", labels["team"])
			assert.Equal(t, "none", labels["severity"], "what an operator says goes before the chart")
			assert.Equal(t, all[other]["expr"], with["expr"])
		}
		assert.NotContains(t, alert["labels"], "team")
		break // one stands for all
	}
}

// rendered is the chart with good values and some changes, in istio-system. The schema, which takes longest, isn't asked.
func rendered(t *testing.T, values string) []*unstructured.Unstructured {
	t.Helper()
	loaded, err := Load()
	require.NoError(t, err)
	loaded.Schema = nil
	files, err := render(loaded, "istio-system", configOf(t, good, values))
	require.NoError(t, err)
	objects, err := Objects(files)
	require.NoError(t, err)
	return objects
}

// into reads an object strictly as its type.
func into(t *testing.T, object *unstructured.Unstructured, typed any) {
	t.Helper()
	require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, typed, true))
}

// TestNotesSignetctl: the command that NOTES name finds Signet where this release has it.
func TestNotesSignetctl(t *testing.T) {
	notes := func(namespace string, values map[string]any) string {
		files, err := Files(namespace, values)
		require.NoError(t, err)
		return files["templates/NOTES.txt"]
	}
	assert.Contains(t, notes("istio-system", configOf(t, good)), "\n  signetctl services -A\n")
	assert.Contains(t, notes("istio-system", configOf(t, good, "service: {apiPort: 443}")), "\n  signetctl services -A --signet-port 443\n")
	assert.Contains(t, notes("mesh", configOf(t, good, "config: {namespace: mesh, serving: {service: mesh-ca}}\nfullnameOverride: mesh-ca")),
		"\n  signetctl services -A --signet-namespace mesh --signet-service mesh-ca\n")

	assert.NotContains(t, notes("istio-system", configOf(t, good, "config: {api: {disabled: true}}")), "signetctl")
	unreachable := configOf(t, good)
	unreachable["service"] = map[string]any{"apiPort": nil}
	assert.NotContains(t, notes("istio-system", unreachable), "signetctl")
}
