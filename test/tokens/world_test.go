package tokens

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/controlplane"
)

// world is a namespace with what tokens are bound to.
type world struct {
	namespace string
	pod       *corev1.Pod // of service account web
	node      *corev1.Node
	secret    *corev1.Secret
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{namespace: plane.NewNamespace(t, "tokens")}
	w.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: w.namespace + "-node"}}
	w.create(t, w.node)
	w.secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "bound"}}
	w.create(t, w.secret)
	require.NoError(t, plane.ServiceAccount(t.Context(), w.namespace, "web"))
	w.pod = w.newPod(t, "web-1", "web")
	w.awaitKnown(t, w.pod)
	awaitTrue(t, "node is known", func() bool { is, _ := objects.Node(w.node.Name); return is.UID == string(w.node.UID) })
	return w
}

func (w *world) create(t testing.TB, object client.Object) {
	t.Helper()
	require.NoError(t, plane.Client().Create(t.Context(), object))
}

// remove deletes an object at once.
func (w *world) remove(t testing.TB, object client.Object) {
	t.Helper()
	require.NoError(t, plane.Client().Delete(t.Context(), object, client.GracePeriodSeconds(0)))
}

func (w *world) newPod(t testing.TB, name, account string) *corev1.Pod {
	t.Helper()
	pod, err := plane.Pod(t.Context(), w.namespace, name, account, w.node.Name)
	require.NoError(t, err)
	return pod
}

func (w *world) newAccount(t testing.TB) *corev1.ServiceAccount {
	t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "account-" + rand.String(5)}}
	w.create(t, account)
	w.awaitAccount(t, account.Name, string(account.UID))
	return account
}

// awaitAccount waits until the service account is known by this UID; by none where that is "".
func (w *world) awaitAccount(t testing.TB, name, uid string) {
	t.Helper()
	awaitTrue(t, "service account is known as it is", func() bool { is, _ := objects.ServiceAccount(w.namespace, name); return is.UID == uid })
}

// awaitKnown waits until the pod and its service account are known.
func (w *world) awaitKnown(t testing.TB, pod *corev1.Pod) {
	t.Helper()
	w.awaitPod(t, pod.Name, string(pod.UID))
	awaitTrue(t, "service account is known", func() bool {
		_, ok := objects.ServiceAccount(w.namespace, pod.Spec.ServiceAccountName)
		return ok
	})
}

func (w *world) awaitPod(t testing.TB, name, uid string) {
	t.Helper()
	awaitTrue(t, "pod is known as it is", func() bool { is, _ := objects.Pod(w.namespace, name); return is.UID == uid })
}

// token is one of the API server's own, of a service account and bound to an object; nil for none.
func (w *world) token(t testing.TB, account string, bound client.Object, audiences ...string) string {
	t.Helper()
	if pod, ok := bound.(*corev1.Pod); ok || bound == nil {
		sealed, err := plane.Token(t.Context(), w.namespace, account, controlplane.TokenOptions{Audiences: audiences, Pod: pod})
		require.NoError(t, err)
		return sealed
	}
	if len(audiences) == 0 {
		audiences = []string{controlplane.DefaultAudience}
	}
	kind := "Secret"
	if _, ok := bound.(*corev1.Node); ok {
		kind = "Node"
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences:      audiences,
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: kind, Name: bound.GetName(), UID: bound.GetUID()},
	}}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: account}}
	require.NoError(t, plane.Client().SubResource("token").Create(t.Context(), sa, request))
	return request.Status.Token
}

// awaitTrue waits until a condition holds.
func awaitTrue(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to be that: %s", what)
		}
	}
}
