// Package chart renders the Helm chart of deploy/chart/signet with Helm's own library, as `helm template` does: values are
// merged with those of values.yaml and held against values.schema.json. It imports what renders and nothing that installs,
// so that tests which only need some of the objects can have them cheaply.
//
//	objects, err := chart.Render("istio-system", map[string]any{"config": config})
//	rights, err := chart.Rights("istio-system", map[string]any{"config": config})
package chart

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	releaseutil "helm.sh/helm/v4/pkg/release/v1/util"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/signet-ca/signet/test/process"
)

// ReleaseName is what the release is called. No object of the chart is named after it but for a label.
const ReleaseName = "signet"

// KubeVersion is the version of Kubernetes that is rendered for.
const KubeVersion = "v1.37.1"

// Dir is the chart's directory.
func Dir() (string, error) {
	root, err := process.Root()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "deploy", "chart", "signet"), nil
}

// Load reads the chart. Each call returns one of its own, which may be changed.
func Load() (*chartv2.Chart, error) {
	dir, err := Dir()
	if err != nil {
		return nil, err
	}
	loaded, err := loader.LoadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("load chart %s: %w", dir, err)
	}
	return loaded, nil
}

// Render returns the chart's objects in the order in which Helm installs them, hooks aside, for a release into namespace with
// values beside the chart's own. The error says what is wrong with the values, by the schema or in the words of the chart's
// own checks.
func Render(namespace string, values map[string]any) ([]*unstructured.Unstructured, error) {
	files, err := Files(namespace, values)
	if err != nil {
		return nil, err
	}
	return Objects(files)
}

// rights are the templates of [Rights], by the beginning of their names.
var rights = []string{"_", "serviceaccount", "rbac"}

// Rights returns only the ServiceAccount and the RBAC objects. Nothing else is rendered, so what contradicts only the rest,
// such as files that aren't mounted or addresses no Service leads to, isn't refused.
func Rights(namespace string, values map[string]any) ([]*unstructured.Unstructured, error) {
	loaded, err := Load()
	if err != nil {
		return nil, err
	}
	loaded.Templates = slices.DeleteFunc(loaded.Templates, func(file *common.File) bool {
		name := path.Base(file.Name)
		return !slices.ContainsFunc(rights, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
	})
	files, err := render(loaded, namespace, values)
	if err != nil {
		return nil, err
	}
	return Objects(files)
}

// Files returns what each template is rendered to, by its path in the chart such as templates/statefulset.yaml;
// templates/NOTES.txt is one of them. Those that render to nothing are left out.
func Files(namespace string, values map[string]any) (map[string]string, error) {
	loaded, err := Load()
	if err != nil {
		return nil, err
	}
	return render(loaded, namespace, values)
}

func render(loaded *chartv2.Chart, namespace string, values map[string]any) (map[string]string, error) {
	values, err := asFile(values)
	if err != nil {
		return nil, err
	}
	kubernetes, err := common.ParseKubeVersion(KubeVersion)
	if err != nil {
		return nil, fmt.Errorf("parse version of Kubernetes: %w", err)
	}
	capabilities := common.DefaultCapabilities.Copy()
	capabilities.KubeVersion = *kubernetes
	release := common.ReleaseOptions{Name: ReleaseName, Namespace: namespace, Revision: 1, IsInstall: true}
	with, err := util.ToRenderValues(loaded, values, release, capabilities)
	if err != nil {
		return nil, err
	}
	rendered, err := engine.Render(loaded, with)
	if err != nil {
		return nil, fmt.Errorf("render chart: %w", err)
	}
	files := make(map[string]string, len(rendered))
	for name, text := range rendered {
		if strings.TrimSpace(text) != "" {
			files[strings.TrimPrefix(name, loaded.Name()+"/")] = text
		}
	}
	return files, nil
}

// asFile gives values the types that they have when Helm reads them from a file.
func asFile(values map[string]any) (map[string]any, error) {
	text, err := yaml.Marshal(values)
	if err != nil {
		return nil, fmt.Errorf("write values: %w", err)
	}
	read, err := common.ReadValues(text)
	if err != nil {
		return nil, fmt.Errorf("read values: %w", err)
	}
	return read, nil
}

// Objects reads the objects from files, in the order in which Helm installs them, hooks aside.
func Objects(files map[string]string) ([]*unstructured.Unstructured, error) {
	manifests := make(map[string]string, len(files))
	for name, text := range files {
		if path.Base(name) != "NOTES.txt" {
			manifests[name] = text
		}
	}
	_, sorted, err := releaseutil.SortManifests(manifests, nil, releaseutil.InstallOrder)
	if err != nil {
		return nil, fmt.Errorf("sort objects: %w", err)
	}
	var objects []*unstructured.Unstructured
	for _, manifest := range sorted {
		decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(manifest.Content)), 4096)
		for {
			object := &unstructured.Unstructured{}
			err := decoder.Decode(object)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", manifest.Name, err)
			}
			if len(object.Object) > 0 {
				objects = append(objects, object)
			}
		}
	}
	return objects, nil
}
