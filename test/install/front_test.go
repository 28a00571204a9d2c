package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// A front leads connections to a Service's port on to one of its ready pods, as kube-proxy does.
type front struct {
	listener net.Listener
	service  corev1.Service
	port     corev1.ServicePort
	pods     *workloads
	stop     context.CancelFunc
	done     sync.WaitGroup
}

// openFront reads the Service and listens on a free port of localhost.
func openFront(ctx context.Context, key client.ObjectKey, port int32, pods *workloads) (*front, error) {
	f := &front{pods: pods}
	if err := plane.Client().Get(ctx, key, &f.service); err != nil {
		return nil, fmt.Errorf("get Service: %w", err)
	}
	for _, p := range f.service.Spec.Ports {
		if p.Port == port {
			f.port = p
		}
	}
	if f.port.Port == 0 {
		return nil, fmt.Errorf("Service %s has no port %d", key, port)
	}
	var err error
	if f.listener, err = new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	ctx, f.stop = context.WithCancel(context.WithoutCancel(ctx))
	f.done.Go(func() { f.accept(ctx) })
	return f, nil
}

// address is localhost with the port.
func (f *front) address() string {
	_, port, _ := net.SplitHostPort(f.listener.Addr().String())
	return net.JoinHostPort("localhost", port)
}

// close ends all connections.
func (f *front) close() error {
	err := f.listener.Close()
	f.stop()
	f.done.Wait()
	return err
}

func (f *front) accept(ctx context.Context) {
	for {
		conn, err := f.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			f.done.Go(func() { f.lead(ctx, conn) })
		}
	}
}

// lead copies both ways until one side has had enough or the front is closed. Without a pod the connection is closed.
func (f *front) lead(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	onward := f.dial(ctx)
	if onward == nil {
		return
	}
	defer onward.Close()
	defer context.AfterFunc(ctx, func() { conn.Close(); onward.Close() })()
	var both sync.WaitGroup
	pass := func(to, from net.Conn) {
		_, _ = io.Copy(to, from) // an end in error is an end
		if tcp, ok := to.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
	}
	both.Go(func() { pass(onward, conn) })
	both.Go(func() { pass(conn, onward) })
	both.Wait()
}

// dial connects to a pod, nil where there is none. A pod that has stopped listening since it was chosen isn't ready any more.
func (f *front) dial(ctx context.Context) net.Conn {
	for {
		pods := f.pods.endpoints(f.service.Spec.Selector)
		if len(pods) == 0 || ctx.Err() != nil {
			return nil
		}
		pod := pods[rand.IntN(len(pods))]
		port, err := pod.port(f.port.TargetPort)
		if err != nil {
			return nil
		}
		at := net.JoinHostPort(pod.pod.Status.PodIP, strconv.Itoa(int(port)))
		if conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", at); err == nil {
			return conn
		}
		select {
		case <-ctx.Done():
		case <-time.After(25 * time.Millisecond):
		}
	}
}
