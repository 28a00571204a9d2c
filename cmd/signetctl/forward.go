package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// forwarder opens connections to a ready pod of Signet's Service, through the API server. It has no port on this
// machine that others could use. Safe for concurrent use.
type forwarder struct {
	config *rest.Config
	core   corev1client.CoreV1Interface
	where  address
}

// place is a port of a pod.
type place struct {
	namespace, pod string
	port           int
}

func (p place) String() string {
	return fmt.Sprintf("port %d of pod %s/%s", p.port, p.namespace, p.pod)
}

// mostPods is how many pods are tried before giving up.
const mostPods = 3

// find looks for ready pods of the Service, the oldest first.
func (f *forwarder) find(ctx context.Context) ([]place, error) {
	ctx, cancel := context.WithTimeout(ctx, kubernetesTimeout)
	defer cancel()
	namespace, name := f.where.namespace, f.where.service
	doing := fmt.Sprintf("look for Signet's Service %s/%s", namespace, name)
	service, err := f.core.Services(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		failed := explainKubernetes(err, doing, fmt.Sprintf("get service %s in namespace %s", name, namespace))
		if failed.code == exitNotFound {
			failed.hint = "is Signet installed there, and in this cluster? --signet-namespace, --signet-service, --context; or --server URL"
		}
		return nil, failed
	}
	if len(service.Spec.Selector) == 0 {
		return nil, &failure{code: exitFailed, err: fmt.Errorf("%s: it selects no pods", doing), hint: "say where Signet is with --server URL --ca-file FILE"}
	}
	selector := labels.SelectorFromSet(service.Spec.Selector).String()
	pods, err := f.core.Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, explainKubernetes(err, fmt.Sprintf("look for the pods of Service %s/%s", namespace, name), "list pods in namespace "+namespace)
	}
	ready := slices.DeleteFunc(pods.Items, func(pod corev1.Pod) bool { return !isReady(&pod) })
	if len(ready) == 0 {
		return nil, &failure{code: exitFailed, err: fmt.Errorf("%s: none of its %d pods is ready", doing, len(pods.Items)),
			hint: fmt.Sprintf("kubectl get pods -n %s -l '%s'", namespace, selector)}
	}
	slices.SortFunc(ready, func(a, b corev1.Pod) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	var places []place
	for i := range ready {
		port, err := portOf(service, &ready[i], f.where.port)
		if err != nil {
			return nil, &failure{code: exitFailed, err: fmt.Errorf("%s: %w", doing, err), hint: "--signet-port names it"}
		}
		places = append(places, place{namespace, ready[i].Name, port})
	}
	return places[:min(len(places), mostPods)], nil
}

func isReady(pod *corev1.Pod) bool {
	if pod.DeletionTimestamp != nil || pod.Status.Phase != corev1.PodRunning {
		return false
	}
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// portOf is the port of the pod that a port of the Service leads to. A number that the Service doesn't have is one of
// the pod.
func portOf(service *corev1.Service, pod *corev1.Pod, wanted string) (int, error) {
	number, notNumber := strconv.Atoi(wanted)
	for _, port := range service.Spec.Ports {
		if port.Protocol != corev1.ProtocolTCP && port.Protocol != "" || port.Name != wanted && int(port.Port) != number {
			continue
		}
		switch {
		case port.TargetPort.Type == intstr.Int && port.TargetPort.IntVal != 0:
			return int(port.TargetPort.IntVal), nil
		case port.TargetPort.Type == intstr.Int:
			return int(port.Port), nil
		}
		for _, container := range pod.Spec.Containers {
			for _, open := range container.Ports {
				if open.Name == port.TargetPort.StrVal {
					return int(open.ContainerPort), nil
				}
			}
		}
		return 0, fmt.Errorf("its port %s leads to port %q, which pod %s doesn't name", wanted, port.TargetPort.StrVal, pod.Name)
	}
	if notNumber == nil && number > 0 && number < 1<<16 {
		return number, nil
	}
	return 0, fmt.Errorf("it has no TCP port %q", wanted)
}

// dial opens a connection to the first pod that can be reached. What it is asked for is Signet, whatever the address.
func (f *forwarder) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	places, err := f.find(ctx)
	if err != nil {
		return nil, err
	}
	for _, at := range places {
		var conn net.Conn
		if conn, err = f.open(ctx, at); err == nil || ctx.Err() != nil {
			return conn, err
		}
	}
	return nil, err
}

// openTimeout bounds the opening of one port-forward.
const openTimeout = 20 * time.Second

// open connects to a port of a pod. The library takes no context, so what comes after the end of ctx is closed by
// whoever opened it.
func (f *forwarder) open(ctx context.Context, at place) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	type result struct {
		conn net.Conn
		err  error
	}
	opened, left := make(chan result), make(chan struct{})
	defer close(left)
	go func() {
		conn, err := f.forward(at)
		select {
		case opened <- result{conn, err}:
		case <-left:
			if err == nil {
				_ = conn.Close()
			}
		}
	}()
	select {
	case r := <-opened:
		if r.err != nil {
			return nil, explainForward(r.err, at)
		}
		return r.conn, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("forward to %s: %w", at, ctx.Err())
	}
}

func explainForward(err error, at place) error {
	return explainKubernetes(cause(err), "forward to "+at.String(), "create pods/portforward in namespace "+at.namespace)
}

// cause is why a connection couldn't be upgraded to one with streams; the error itself doesn't unwrap.
func cause(err error) error {
	if upgrade, ok := errors.AsType[*httpstream.UpgradeFailureError](err); ok {
		return upgrade.Cause
	}
	return err
}

// isStatus says whether the API server itself refused.
func isStatus(err error) bool {
	return apierrors.ReasonForError(cause(err)) != metav1.StatusReasonUnknown
}

// forward opens a port-forward with one connection in it: over a websocket, or over SPDY where something between us and
// the API server, or the API server itself, knows no better.
func (f *forwarder) forward(at place) (net.Conn, error) {
	target := f.core.RESTClient().Post().Resource("pods").Namespace(at.namespace).Name(at.pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(f.config)
	if err != nil {
		return nil, err
	}
	older := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, target)
	newer, err := portforward.NewSPDYOverWebsocketDialerForStreaming(target, f.config)
	if err != nil {
		return nil, err
	}
	connection, protocol, err := newer.Dial(portforward.PortForwardProtocolV1Name)
	if httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err) {
		refusal := err
		if connection, protocol, err = older.Dial(portforward.PortForwardProtocolV1Name); err != nil && isStatus(refusal) {
			err = refusal // which says why in a form that can be told apart
		}
	}
	if err != nil {
		return nil, err
	}
	if protocol != portforward.PortForwardProtocolV1Name {
		_ = connection.Close()
		return nil, fmt.Errorf("the API server speaks %q, not %q", protocol, portforward.PortForwardProtocolV1Name)
	}
	conn, err := newForwarded(connection, at)
	if err != nil {
		_ = connection.Close()
		return nil, err
	}
	return conn, nil
}

// forwarded is a connection in a port-forward of its own. It has no deadlines; closing it ends what waits.
type forwarded struct {
	connection httpstream.Connection
	data       httpstream.Stream
	at         place

	trouble     chan struct{} // closed when troubleText is set: what the other side says went wrong, if anything
	troubleText string
}

func newForwarded(connection httpstream.Connection, at place) (*forwarded, error) {
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(at.port))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	trouble, err := connection.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("open stream of errors: %w", err)
	}
	_ = trouble.Close() // we say nothing on it
	headers = headers.Clone()
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := connection.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("open stream of data: %w", err)
	}
	c := &forwarded{connection: connection, data: data, at: at, trouble: make(chan struct{})}
	go func() { // ends with the connection
		text, _ := io.ReadAll(io.LimitReader(trouble, maxTroubleBytes))
		c.troubleText = strings.TrimSpace(string(text))
		close(c.trouble)
	}()
	return c, nil
}

const (
	maxTroubleBytes = 4 << 10
	// troubleWait is how long the reason is waited for when the data has ended.
	troubleWait = 5 * time.Second
)

func (c *forwarded) Read(into []byte) (int, error) {
	n, err := c.data.Read(into)
	if n > 0 || err == nil {
		return n, err
	}
	timer := time.NewTimer(troubleWait)
	defer timer.Stop()
	select {
	case <-c.trouble: // it ends with the connection, if not before
	case <-timer.C:
	}
	select { // after a long pause both may be so
	case <-c.trouble:
		if c.troubleText != "" {
			return 0, fmt.Errorf("forward to %s: %s", c.at, c.troubleText)
		}
	default:
	}
	return 0, err
}

func (c *forwarded) Write(from []byte) (int, error) { return c.data.Write(from) }

// Close ends the port-forward.
func (c *forwarded) Close() error {
	_ = c.data.Reset()
	return c.connection.Close()
}

func (c *forwarded) LocalAddr() net.Addr              { return forwardedAddr("port-forward") }
func (c *forwarded) RemoteAddr() net.Addr             { return forwardedAddr(c.at.String()) }
func (c *forwarded) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *forwarded) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *forwarded) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

type forwardedAddr string

func (forwardedAddr) Network() string  { return "port-forward" }
func (a forwardedAddr) String() string { return string(a) }
