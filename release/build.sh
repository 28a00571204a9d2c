#!/usr/bin/env bash
# Builds what a release consists of into DIRECTORY (dist): the binaries, an SBOM of each, the licenses of what is linked, the
# chart, and SHA256SUMS of all.
#
#   release/build.sh [DIRECTORY [TARGET...]]
#
# Targets are COMMAND/GOOS/GOARCH, such as signet/linux/amd64; without any all are built, and the chart. The version of Go is
# the Dockerfile's, so that the image holds the same binary.
set -euo pipefail
umask 022
mkdir -p "${1:-dist}"
out=$(cd "${1:-dist}" && pwd)
shift || true
cd "$(dirname "$0")/.."

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
	targets=(
		signet/linux/amd64 signet/linux/arm64
		signetctl/linux/amd64 signetctl/linux/arm64 signetctl/darwin/amd64 signetctl/darwin/arm64
	)
fi
rm -f "$out"/signet-* "$out"/signetctl-* "$out"/SHA256SUMS

assignments=$(release/version.sh)
eval "$assignments"
unset GOOS GOARCH # what helps to build runs here
GOTOOLCHAIN=go$(sed -n 's/^ARG GO_VERSION=//p' Dockerfile)
export GOTOOLCHAIN
if [ $# -eq 0 ] && [[ $VERSION == v* ]]; then
	for field in version appVersion; do
		value=$(sed -n "s/^$field: *\"\{0,1\}\([^\"]*\).*/\1/p" deploy/chart/signet/Chart.yaml)
		if [ "v$value" != "$VERSION" ]; then
			echo "error: the commit is tagged $VERSION, but $field in deploy/chart/signet/Chart.yaml is $value" >&2
			exit 1
		fi
	done
fi
echo "signet $VERSION, commit ${COMMIT:-unknown}, $(go version)"

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
go build -trimpath -o "$tools/" ./release/sbom ./release/licenses
binaries=()
for target in "${targets[@]}"; do
	IFS=/ read -r command os arch <<<"$target"
	name=$command-$VERSION-$os-$arch
	GOOS=$os GOARCH=$arch release/compile.sh "./cmd/$command" "$out/$name"
	"$tools/sbom" -name "$command" -version "$VERSION" -commit "$COMMIT" -date "$DATE" "$out/$name" >"$out/$name.cdx.json"
	binaries+=("$out/$name")
	echo "$name"
done
"$tools/licenses" "${binaries[@]}" >"$out/signet-$VERSION-licenses.txt"
if [ $# -eq 0 ]; then
	(cd test && go run ./chart/cmd/package --values chart/testdata/minimal.yaml --out "$out" --date "$DATE")
fi
cd "$out"
shopt -s nullglob
sha256sum signet-* signetctl-* >SHA256SUMS
echo "$out/SHA256SUMS"
