package chart

import (
	"fmt"
	"os"

	"helm.sh/helm/v4/pkg/chart/common"
)

// ReadValues reads a file of values.
func ReadValues(path string) (map[string]any, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read values: %w", err)
	}
	values, err := common.ReadValues(text)
	if err != nil {
		return nil, fmt.Errorf("read values %s: %w", path, err)
	}
	return values, nil
}
