package controlplane

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// GatewayDefinitions are the CustomResourceDefinitions of both gateway APIs as their modules have them, to be applied
// ([Plane.Apply]): gateways and referencegrants of gateway.networking.k8s.io, and gateways of networking.istio.io.
func GatewayDefinitions(ctx context.Context) ([]byte, error) {
	var all bytes.Buffer
	for _, from := range []struct{ module, file, name string }{
		{"sigs.k8s.io/gateway-api", "config/crd/standard/gateway.networking.k8s.io_gateways.yaml", "gateways.gateway.networking.k8s.io"},
		{"sigs.k8s.io/gateway-api", "config/crd/standard/gateway.networking.k8s.io_referencegrants.yaml", "referencegrants.gateway.networking.k8s.io"},
		{"istio.io/api", "kubernetes/customresourcedefinitions.gen.yaml", "gateways.networking.istio.io"},
	} {
		dir, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", from.module).Output()
		if err != nil {
			return nil, fmt.Errorf("find module %s: %w", from.module, err)
		}
		text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), from.file))
		if err != nil {
			return nil, fmt.Errorf("read definition of %s: %w", from.name, err)
		}
		found := false
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			if strings.Contains(document, "\n  name: "+from.name+"\n") {
				all.WriteString("\n---\n" + document)
				found = true
			}
		}
		if !found {
			return nil, fmt.Errorf("%s of %s doesn't define %s", from.file, from.module, from.name)
		}
	}
	return all.Bytes(), nil
}
