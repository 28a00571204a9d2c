#!/bin/sh
# Builds the control plane of the tests: build.sh OUTPUT
#
# Beyond go build it sets the versions that are reported, read from go.mod, and lays
# cert-manager's CustomResourceDefinitions over crds/ from the module itself.
# The first build compiles Kubernetes and takes minutes, an unchanged one about a second.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 OUTPUT" >&2; exit 2; }
case $1 in /*) out=$1 ;; *) out=$PWD/$1 ;; esac
cd "$(dirname "$0")"

certmanager=github.com/cert-manager/cert-manager
go mod download $certmanager
crds=$(go list -m -f '{{.Dir}}' $certmanager)/deploy/crds
kubernetes=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${kubernetes#v1.}

overlay=$(mktemp)
trap 'rm -f "$overlay"' EXIT
{
	printf '{"Replace":{'
	separator=
	for file in "$crds"/*.yaml; do
		printf '%s\n"%s":"%s"' "$separator" "$PWD/crds/${file##*/}" "$file"
		separator=,
	done
	printf '}}\n'
} >"$overlay"

version=k8s.io/component-base/version
go build -buildvcs=false -overlay "$overlay" -ldflags "-s -w \
	-X $version.gitVersion=$kubernetes -X $version.gitMajor=1 -X $version.gitMinor=${minor%%.*} \
	-X $certmanager/pkg/util.AppVersion=$(go list -m -f '{{.Version}}' $certmanager)" \
	-o "$out" .
