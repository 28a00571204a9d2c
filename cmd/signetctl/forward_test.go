package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestPortOf(t *testing.T) {
	service := &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{
		{Name: "grpc", Port: 443, TargetPort: intstr.FromInt32(6443), Protocol: corev1.ProtocolTCP},
		{Name: "udp", Port: 8443, TargetPort: intstr.FromInt32(1), Protocol: corev1.ProtocolUDP},
		{Name: "inspection", Port: 8443, TargetPort: intstr.FromString("api")},
		{Name: "same", Port: 9402},
		{Name: "missing", Port: 6060, TargetPort: intstr.FromString("health")},
	}}}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "sidecar"}, {Name: "signet", Ports: []corev1.ContainerPort{{Name: "api", ContainerPort: 18443}}}}}}
	for wanted, want := range map[string]int{"443": 6443, "grpc": 6443, "8443": 18443, "inspection": 18443, "9402": 9402, "1234": 1234, "65535": 65535} {
		got, err := portOf(service, pod, wanted)
		assert.NoError(t, err, wanted)
		assert.Equal(t, want, got, wanted)
	}
	for _, wanted := range []string{"", "0", "-1", "65536", "none", "udp", "6060", "missing", "8443x"} {
		_, err := portOf(service, pod, wanted)
		assert.Error(t, err, wanted)
	}
}

func TestIsReady(t *testing.T) {
	good := corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
	assert.True(t, isReady(&good))
	for name, change := range map[string]func(*corev1.Pod){
		"terminating": func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: now} },
		"pending":     func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending },
		"failed":      func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed },
		"not ready":   func(p *corev1.Pod) { p.Status.Conditions[1].Status = corev1.ConditionFalse },
		"not known":   func(p *corev1.Pod) { p.Status.Conditions = p.Status.Conditions[:1] },
	} {
		pod := good.DeepCopy()
		change(pod)
		assert.False(t, isReady(pod), name)
	}
}
