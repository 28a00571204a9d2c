package controlplane

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// fieldOwner is who owns what Apply sets.
const fieldOwner = "controlplane"

// Apply applies the documents of manifestYAML one after the other, as the administrator
// (server-side apply, taking over fields that others own). After CustomResourceDefinitions it
// waits until what they define is served, before it goes on. The error names the object that was
// refused; those before it have been applied.
func (p *Plane) Apply(ctx context.Context, manifestYAML []byte) error {
	objects, err := parseManifest(manifestYAML)
	if err != nil {
		return fmt.Errorf("apply manifest: %w", err)
	}
	var definitions []*unstructured.Unstructured
	for _, obj := range objects {
		if obj.GetKind() == "CustomResourceDefinition" {
			definitions = append(definitions, obj)
		} else if err := p.awaitServed(ctx, definitions); err != nil {
			return err
		} else {
			definitions = nil
		}
		err := p.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(obj.DeepCopy()), client.FieldOwner(fieldOwner), client.ForceOwnership)
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", obj.GetKind(), client.ObjectKeyFromObject(obj), err)
		}
	}
	return p.awaitServed(ctx, definitions)
}

// applyCRDs applies the definitions of the cert-manager that is in the binary.
func (p *Plane) applyCRDs(ctx context.Context, binary string) error {
	cmd := exec.CommandContext(ctx, binary, "crds")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("list cert-manager's definitions: %w: %s", err, stderr.Bytes())
	}
	return p.Apply(ctx, text)
}

// awaitServed waits until every version of the definitions can be listed and is discovered. For
// about two seconds after they are established an API server that has just started answers 404.
func (p *Plane) awaitServed(ctx context.Context, definitions []*unstructured.Unstructured) error {
	for _, crd := range definitions {
		group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
		plural, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "plural")
		kind, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "kind")
		versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
		if err != nil {
			return fmt.Errorf("read CustomResourceDefinition %s: %w", crd.GetName(), err)
		}
		for _, v := range versions {
			v, _ := v.(map[string]any)
			if served, _ := v["served"].(bool); !served {
				continue
			}
			version, _ := v["name"].(string)
			url := fmt.Sprintf("%s/apis/%s/%s/%s?limit=1", p.admin.Host, group, version, plural)
			err := poll(ctx, 3*time.Minute, func(ctx context.Context) error {
				if err := probe(ctx, p.http, url); err != nil {
					return err
				}
				_, err := p.client.RESTMapper().RESTMapping(schema.GroupKind{Group: group, Kind: kind}, version)
				return err
			})
			if err != nil {
				return fmt.Errorf("wait for CustomResourceDefinition %s: %w", crd.GetName(), err)
			}
		}
	}
	return nil
}

// parseManifest parses a stream of YAML documents; empty ones are left out.
func parseManifest(text []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read document %d: %w", n, err)
		}
		obj := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(doc, &obj.Object); err != nil {
			return nil, fmt.Errorf("parse document %d: %w", n, err)
		}
		if len(obj.Object) == 0 {
			continue
		}
		if obj.GetKind() == "" || obj.GetName() == "" {
			return nil, fmt.Errorf("parse document %d: no kind or no name", n)
		}
		objects = append(objects, obj)
	}
}

// createIfAbsent creates obj; one that is there already stays as it is.
func (p *Plane) createIfAbsent(ctx context.Context, obj client.Object) error {
	kind := "object"
	if gvk, err := p.client.GroupVersionKindFor(obj); err == nil {
		kind = gvk.Kind
	}
	if err := p.client.Create(ctx, obj); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create %s %s: %w", kind, client.ObjectKeyFromObject(obj), err)
	}
	return nil
}

// poll asks until the answer is nil, or until the timeout or ctx ends, with the last answer.
func poll(ctx context.Context, timeout time.Duration, look func(context.Context) error) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, 25*time.Millisecond, timeout, true, func(ctx context.Context) (bool, error) {
		err := look(ctx)
		if last == nil || ctx.Err() == nil {
			last = err // and not that the time was up
		}
		return err == nil, nil
	})
	if err != nil && last != nil {
		return fmt.Errorf("%w: %w", err, last)
	}
	return err
}
