package install

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// mount makes a volume of the pod at path, as a kubelet does: what comes from the API server is read anew, an emptyDir is
// the container's own, and a claim's directory is moved there until the pod has ended. Owner is the user of the container.
func (n *node) mount(ctx context.Context, pod *corev1.Pod, volume *corev1.Volume, path string, owner int64) error {
	if err := makeDir(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	group := pod.Spec.SecurityContext.FSGroup
	switch {
	case volume.PersistentVolumeClaim != nil:
		claim := n.claim(pod.Namespace, volume.PersistentVolumeClaim.ClaimName)
		if err := makeDir(claim, 0o755); err != nil { // root's, as most drivers make it
			return err
		}
		if err := os.Rename(claim, path); err != nil {
			return err
		}
		return lendToGroup(path, group)
	case volume.EmptyDir != nil:
		if err := makeDir(path, 0o777); err != nil {
			return err
		}
		return lendToGroup(path, group)
	}
	files, err := n.contents(ctx, pod, volume)
	if err != nil {
		return fmt.Errorf("volume %s: %w", volume.Name, err)
	}
	if err := makeDir(path, 0o755); err != nil {
		return err
	}
	for _, file := range files {
		at := filepath.Join(path, file.path)
		if err := makeDir(filepath.Dir(at), 0o755); err != nil {
			return err
		}
		uid, gid, mode := int64(0), int64(0), file.mode
		switch {
		case group != nil:
			gid, mode = *group, mode|0o440
		case file.token:
			uid, mode = owner, 0o600
		}
		if err := os.WriteFile(at, file.text, mode); err != nil {
			return err
		}
		if err := os.Chmod(at, mode); err != nil {
			return err
		}
		if err := os.Chown(at, int(uid), int(gid)); err != nil {
			return err
		}
	}
	return nil
}

// lendToGroup is what a kubelet does with a volume for fsGroup.
func lendToGroup(path string, group *int64) error {
	if group == nil {
		return nil
	}
	return filepath.WalkDir(path, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() | 0o660
		if entry.IsDir() {
			mode = info.Mode().Perm() | 0o770 | os.ModeSetgid
		}
		if err := os.Lchown(path, -1, int(*group)); err != nil {
			return err
		}
		return os.Chmod(path, mode)
	})
}

// A mounted file is one of a volume that the API server fills.
type mounted struct {
	path  string // below the mount
	text  []byte
	mode  os.FileMode
	token bool
}

// contents are the files of a volume that the API server fills.
func (n *node) contents(ctx context.Context, pod *corev1.Pod, volume *corev1.Volume) ([]mounted, error) {
	switch {
	case volume.ConfigMap != nil:
		source := volume.ConfigMap
		return n.configMap(ctx, pod.Namespace, source.Name, source.Items, source.Optional, modeOf(source.DefaultMode))
	case volume.Secret != nil:
		source := volume.Secret
		return n.secret(ctx, pod.Namespace, source.SecretName, source.Items, source.Optional, modeOf(source.DefaultMode))
	case volume.Projected != nil:
		var files []mounted
		for _, source := range volume.Projected.Sources {
			some, err := n.projected(ctx, pod, source, modeOf(volume.Projected.DefaultMode))
			if err != nil {
				return nil, err
			}
			files = append(files, some...)
		}
		return files, nil
	}
	return nil, fmt.Errorf("no volume that this kubelet knows: %v", volume.VolumeSource)
}

func (n *node) projected(ctx context.Context, pod *corev1.Pod, source corev1.VolumeProjection, mode os.FileMode) ([]mounted, error) {
	switch {
	case source.ConfigMap != nil:
		return n.configMap(ctx, pod.Namespace, source.ConfigMap.Name, source.ConfigMap.Items, source.ConfigMap.Optional, mode)
	case source.Secret != nil:
		return n.secret(ctx, pod.Namespace, source.Secret.Name, source.Secret.Items, source.Secret.Optional, mode)
	case source.ServiceAccountToken != nil:
		token, err := podToken(ctx, pod, source.ServiceAccountToken)
		if err != nil {
			return nil, err
		}
		return []mounted{{source.ServiceAccountToken.Path, []byte(token), mode, true}}, nil
	case source.DownwardAPI != nil:
		var files []mounted
		for _, item := range source.DownwardAPI.Items {
			text, err := field(pod, item.FieldRef)
			if err != nil {
				return nil, err
			}
			files = append(files, mounted{path: item.Path, text: []byte(text), mode: mode})
		}
		return files, nil
	}
	return nil, fmt.Errorf("no projection that this kubelet knows: %v", source)
}

// podToken has the API server make a token that is bound to the pod.
func podToken(ctx context.Context, pod *corev1.Pod, source *corev1.ServiceAccountTokenProjection) (string, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: source.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if source.Audience != "" {
		request.Spec.Audiences = []string{source.Audience}
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Spec.ServiceAccountName}}
	if err := plane.Client().SubResource("token").Create(ctx, account, request); err != nil {
		return "", fmt.Errorf("create token of Pod %s: %w", pod.Name, err)
	}
	return request.Status.Token, nil
}

func (n *node) configMap(ctx context.Context, namespace, name string, items []corev1.KeyToPath, optional *bool, mode os.FileMode) ([]mounted, error) {
	var object corev1.ConfigMap
	if err := plane.Client().Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &object); err != nil {
		return nil, unlessOptional(err, optional)
	}
	data := object.BinaryData
	if data == nil {
		data = make(map[string][]byte)
	}
	for key, text := range object.Data {
		data[key] = []byte(text)
	}
	return keys(data, items, mode)
}

func (n *node) secret(ctx context.Context, namespace, name string, items []corev1.KeyToPath, optional *bool, mode os.FileMode) ([]mounted, error) {
	var object corev1.Secret
	if err := plane.Client().Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &object); err != nil {
		return nil, unlessOptional(err, optional)
	}
	return keys(object.Data, items, mode)
}

func unlessOptional(err error, optional *bool) error {
	if optional != nil && *optional {
		return client.IgnoreNotFound(err)
	}
	return err
}

// keys are the files of an object's data: all, or those that items name.
func keys(data map[string][]byte, items []corev1.KeyToPath, mode os.FileMode) ([]mounted, error) {
	var files []mounted
	if len(items) == 0 {
		for key, text := range data {
			files = append(files, mounted{path: key, text: text, mode: mode})
		}
	}
	for _, item := range items {
		text, ok := data[item.Key]
		if !ok {
			return nil, fmt.Errorf("it has no key %s", item.Key)
		}
		files = append(files, mounted{path: item.Path, text: text, mode: mode})
	}
	return files, nil
}

func modeOf(mode *int32) os.FileMode {
	if mode == nil {
		return 0o644
	}
	return os.FileMode(*mode)
}
