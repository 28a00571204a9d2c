package controlplane

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Workload creates what a Deployment of one replica with Istio's sidecar comes to: a ServiceAccount and a Service called
// name, and a Pod of that account behind it. No controller runs here that would make the EndpointSlice, so it is made
// too.
func (p *Plane) Workload(ctx context.Context, namespace, name, node string) (*corev1.Pod, error) {
	if err := p.ServiceAccount(ctx, namespace, name); err != nil {
		return nil, err
	}
	pod, err := p.Sidecar(ctx, namespace, name, name, node)
	if err != nil {
		return nil, err
	}
	port := corev1.ServicePort{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{port}},
	}
	if err := p.createIfAbsent(ctx, service); err != nil {
		return nil, err
	}
	return pod, p.Endpoints(ctx, namespace, name, pod)
}

// Sidecar creates a Pod as [Plane.Pod] does, with a container of Istio's proxy beside the application.
func (p *Plane) Sidecar(ctx context.Context, namespace, name, serviceAccount, node string, labels ...map[string]string) (*corev1.Pod, error) {
	return p.pod(ctx, namespace, name, serviceAccount, node, []string{"app", "istio-proxy"}, labels...)
}

// Endpoints makes the EndpointSlice of a Service name exactly these pods, as the controller would.
func (p *Plane) Endpoints(ctx context.Context, namespace, service string, pods ...*corev1.Pod) error {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{},
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080))}},
	}
	for _, pod := range pods {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{pod.Status.PodIP}, NodeName: &pod.Spec.NodeName,
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		})
	}
	if err := p.createIfAbsent(ctx, slice); err != nil {
		return err
	}
	var is discoveryv1.EndpointSlice
	if err := p.client.Get(ctx, client.ObjectKeyFromObject(slice), &is); err != nil {
		return fmt.Errorf("get EndpointSlice %s/%s: %w", namespace, slice.Name, err)
	}
	is.Endpoints = slice.Endpoints
	if err := p.client.Update(ctx, &is); err != nil {
		return fmt.Errorf("update EndpointSlice %s/%s: %w", namespace, slice.Name, err)
	}
	return nil
}
