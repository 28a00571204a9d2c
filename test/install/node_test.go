package install

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/signet-ca/signet/test/process"
)

// A node runs pods of one container, as a kubelet does. It is used by one goroutine.
type node struct {
	dir   string // of everything below
	image *image
}

// newNode makes one that keeps its files in dir.
func newNode(dir string) (*node, error) {
	image, err := openImage(filepath.Join(dir, "image"))
	if err != nil {
		return nil, err
	}
	return &node{dir: dir, image: image}, nil
}

// claim is where a claim's files are while no pod uses them.
func (n *node) claim(namespace, name string) string {
	return filepath.Join(n.dir, "claims", namespace, name)
}

// A container is the one of a pod, running.
type container struct {
	node *node
	pod  *corev1.Pod // as it was when the container started, with its address in its status
	root string
	proc *process.Process
}

// start runs the container of a pod, which is at the API server and names this node, and says there that it runs.
func (n *node) start(ctx context.Context, pod *corev1.Pod) (*container, error) {
	if len(pod.Spec.Containers) != 1 || len(pod.Spec.InitContainers) != 0 {
		return nil, fmt.Errorf("start Pod %s: this kubelet runs pods of one container", pod.Name)
	}
	ip := net.IPv4(127, byte(64+rand.IntN(128)), byte(rand.IntN(256)), byte(1+rand.IntN(254))).String()
	pod.Status.PodIP, pod.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
	pod.Status.Phase = corev1.PodRunning
	c := &container{node: n, pod: pod, root: filepath.Join(n.dir, "pods", string(pod.UID))}
	if err := c.run(ctx); err != nil {
		return nil, fmt.Errorf("start Pod %s: %w", pod.Name, err)
	}
	if err := plane.Client().Status().Update(ctx, pod); err != nil {
		c.proc.Kill()
		return nil, fmt.Errorf("update status of Pod %s: %w", pod.Name, err)
	}
	return c, nil
}

func (c *container) run(ctx context.Context) error {
	spec := &c.pod.Spec.Containers[0]
	if err := c.node.image.unpack(c.root); err != nil {
		return err
	}
	uid, gid, err := c.user(spec)
	if err != nil {
		return err
	}
	env, err := c.environment(ctx, spec)
	if err != nil {
		return err
	}
	for _, m := range spec.VolumeMounts {
		volume := volumeNamed(c.pod, m.Name)
		if volume == nil || m.SubPath != "" || m.SubPathExpr != "" {
			return fmt.Errorf("mount %s: no volume of that name, or a part of one", m.Name)
		}
		if err := c.node.mount(ctx, c.pod, volume, filepath.Join(c.root, m.MountPath), uid); err != nil {
			return err
		}
	}
	// A kubelet and the container's runtime make these.
	if err := makeDir(filepath.Join(c.root, "etc"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.root, "etc", "hosts"), []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
		return err
	}
	command := c.node.image.entrypoint
	if len(spec.Command) > 0 {
		command = spec.Command
	}
	command = append(append([]string{}, command...), spec.Args...)
	if err := c.isolate(command); err != nil {
		return err
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = env
	cmd.Dir = "/"
	credential := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	if group := c.pod.Spec.SecurityContext.FSGroup; group != nil {
		credential.Groups = []uint32{uint32(*group)}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: c.root, Credential: credential}
	c.proc, err = process.Start(cmd, filepath.Join(c.node.dir, c.pod.Name+"-"+string(c.pod.UID)+".log"))
	return err
}

// isolate stands in for a network and a host name of the pod's own: in the configuration file of the command, as it is
// mounted, what has no host listens on the pod's address, and replica, where it is unset, is the pod's name.
func (c *container) isolate(command []string) error {
	var path string
	for _, arg := range command {
		if after, ok := strings.CutPrefix(arg, "--config="); ok {
			path = filepath.Join(c.root, after)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("find the file of --config: %w", err)
	}
	var config map[string]any
	if err := yaml.Unmarshal(text, &config); err != nil {
		return err
	}
	section := func(name string) map[string]any {
		below, ok := config[name].(map[string]any)
		if !ok {
			below = make(map[string]any)
			config[name] = below
		}
		return below
	}
	for name, fallback := range map[string]string{"ca": ":6443", "api": ":8443", "metrics": ":9402", "health": ":6060"} {
		at := section(name)
		listen, ok := at["listen"].(string)
		if !ok {
			listen = fallback
		}
		host, port, err := net.SplitHostPort(listen)
		if err != nil {
			return err
		}
		if host == "" || host == "0.0.0.0" {
			at["listen"] = net.JoinHostPort(c.pod.Status.PodIP, port)
		}
	}
	if _, ok := config["replica"]; !ok {
		config["replica"] = c.pod.Name
	}
	if text, err = yaml.Marshal(config); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644) // in place: owner and mode stay
}

// user is who the container runs as.
func (c *container) user(spec *corev1.Container) (uid, gid int64, err error) {
	uid, gid = c.node.image.uid, c.node.image.gid
	ofPod, own := c.pod.Spec.SecurityContext, spec.SecurityContext
	if own == nil {
		own = &corev1.SecurityContext{}
	}
	for _, id := range []*int64{ofPod.RunAsUser, own.RunAsUser} {
		if id != nil {
			uid = *id
		}
	}
	for _, id := range []*int64{ofPod.RunAsGroup, own.RunAsGroup} {
		if id != nil {
			gid = *id
		}
	}
	if uid == 0 {
		return 0, 0, errors.New("it would run as root")
	}
	return uid, gid, nil
}

// environment is what the container sees: its own variables and where the API server is.
func (c *container) environment(ctx context.Context, spec *corev1.Container) ([]string, error) {
	server, err := url.Parse(plane.Admin().Host)
	if err != nil {
		return nil, err
	}
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOSTNAME=" + c.pod.Name,
		"KUBERNETES_SERVICE_HOST=" + server.Hostname(),
		"KUBERNETES_SERVICE_PORT=" + server.Port(),
	}
	if len(spec.EnvFrom) > 0 {
		return nil, errors.New("this kubelet knows no envFrom")
	}
	for _, v := range spec.Env {
		value := v.Value
		switch from := v.ValueFrom; {
		case from == nil:
		case from.FieldRef != nil:
			if value, err = field(c.pod, from.FieldRef); err != nil {
				return nil, err
			}
		case from.ResourceFieldRef != nil:
			if value, err = resource(spec, from.ResourceFieldRef); err != nil {
				return nil, err
			}
		case from.SecretKeyRef != nil:
			var secret corev1.Secret
			if err := plane.Client().Get(ctx, client.ObjectKey{Namespace: c.pod.Namespace, Name: from.SecretKeyRef.Name}, &secret); err != nil {
				return nil, err
			}
			value = string(secret.Data[from.SecretKeyRef.Key])
		default:
			return nil, fmt.Errorf("variable %s: no source that this kubelet knows", v.Name)
		}
		env = append(env, v.Name+"="+value)
	}
	return env, nil
}

// field is one of a pod's own that the downward API tells.
func field(pod *corev1.Pod, ref *corev1.ObjectFieldSelector) (string, error) {
	if ref != nil {
		switch ref.FieldPath {
		case "metadata.name":
			return pod.Name, nil
		case "metadata.namespace":
			return pod.Namespace, nil
		case "status.podIP":
			return pod.Status.PodIP, nil
		case "spec.nodeName":
			return pod.Spec.NodeName, nil
		}
	}
	return "", fmt.Errorf("no field that this kubelet knows: %v", ref)
}

// resource is a limit or request of the container, in units of the divisor, rounded up.
func resource(spec *corev1.Container, ref *corev1.ResourceFieldSelector) (string, error) {
	list, name, _ := strings.Cut(ref.Resource, ".")
	amounts := map[string]corev1.ResourceList{"limits": spec.Resources.Limits, "requests": spec.Resources.Requests}[list]
	amount, ok := amounts[corev1.ResourceName(name)]
	if !ok {
		return "", fmt.Errorf("the container has no %s", ref.Resource)
	}
	divisor := max(ref.Divisor.Value(), 1)
	return strconv.FormatInt((amount.Value()+divisor-1)/divisor, 10), nil
}

func volumeNamed(pod *corev1.Pod, name string) *corev1.Volume {
	for n := range pod.Spec.Volumes {
		if pod.Spec.Volumes[n].Name == name {
			return &pod.Spec.Volumes[n]
		}
	}
	return nil
}

// port is the container's port of that name or number.
func (c *container) port(want intstr.IntOrString) (int32, error) {
	if want.Type == intstr.Int {
		return want.IntVal, nil
	}
	for _, port := range c.pod.Spec.Containers[0].Ports {
		if port.Name == want.StrVal {
			return port.ContainerPort, nil
		}
	}
	return 0, fmt.Errorf("container of Pod %s has no port %s", c.pod.Name, want.StrVal)
}

// probe asks what a kubelet asks for one of the container's probes.
func (c *container) probe(ctx context.Context, p *corev1.Probe) error {
	if p == nil || p.HTTPGet == nil {
		return errors.New("it has no such probe over HTTP")
	}
	port, err := c.port(p.HTTPGet.Port)
	if err != nil {
		return err
	}
	at := url.URL{Scheme: "http", Host: net.JoinHostPort(c.pod.Status.PodIP, strconv.Itoa(int(port))), Path: p.HTTPGet.Path}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("%s: %s", at.String(), res.Status)
	}
	return nil
}

// awaitReady waits until the probes are content, and says at the API server that the pod is ready.
func (c *container) awaitReady(ctx context.Context) error {
	spec := c.pod.Spec.Containers[0]
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		err := c.probe(ctx, spec.ReadinessProbe)
		if err == nil {
			err = c.probe(ctx, spec.LivenessProbe)
		}
		if err == nil && spec.StartupProbe != nil {
			err = c.probe(ctx, spec.StartupProbe)
		}
		if err == nil {
			break
		}
		select {
		case <-tick.C:
		case <-c.proc.Done():
			return fmt.Errorf("Pod %s: the container ended: %w; the end of its log:\n%s", c.pod.Name, c.proc.Exit(), process.Tail(c.proc.Log(), 20))
		case <-ctx.Done():
			return fmt.Errorf("Pod %s is not ready: %w: %w; the end of its log:\n%s", c.pod.Name, ctx.Err(), err, process.Tail(c.proc.Log(), 20))
		}
	}
	c.pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}
	if err := plane.Client().Status().Update(ctx, c.pod); err != nil {
		return fmt.Errorf("update status of Pod %s: %w", c.pod.Name, err)
	}
	return nil
}

// stop ends a container whose pod is being deleted, within its grace, and then lets the pod go. Claims are kept. The error
// says so where it had ended by itself, had to be killed, or did not end well.
func (c *container) stop(ctx context.Context) error {
	var problem error
	if c.proc.Ended() {
		problem = fmt.Errorf("Pod %s: the container had ended by itself: %w; the end of its log:\n%s", c.pod.Name, c.proc.Exit(), process.Tail(c.proc.Log(), 20))
	}
	c.proc.Stop(time.Duration(*c.pod.Spec.TerminationGracePeriodSeconds) * time.Second)
	if code := c.proc.ExitCode(); problem == nil && code != 0 {
		problem = fmt.Errorf("Pod %s: the container ended with code %d; the end of its log:\n%s", c.pod.Name, code, process.Tail(c.proc.Log(), 20))
	}
	for _, m := range c.pod.Spec.Containers[0].VolumeMounts {
		if source := volumeNamed(c.pod, m.Name).PersistentVolumeClaim; source != nil {
			problem = errors.Join(problem, os.Rename(filepath.Join(c.root, m.MountPath), c.node.claim(c.pod.Namespace, source.ClaimName)))
		}
	}
	gone := &client.DeleteOptions{GracePeriodSeconds: new(int64), Preconditions: &metav1.Preconditions{UID: &c.pod.UID}}
	return errors.Join(problem, client.IgnoreNotFound(plane.Client().Delete(ctx, c.pod, gone)), os.RemoveAll(c.root))
}
