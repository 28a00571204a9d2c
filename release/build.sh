#!/usr/bin/env bash
# Builds what a release consists of into DIRECTORY (dist): the binaries, an SBOM of each, the chart, and SHA256SUMS of all.
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
echo "signet $VERSION, commit ${COMMIT:-unknown}, $(go version)"

sbom=$(mktemp -d)
trap 'rm -rf "$sbom"' EXIT
go build -trimpath -o "$sbom/sbom" ./release/sbom
for target in "${targets[@]}"; do
	IFS=/ read -r command os arch <<<"$target"
	name=$command-$VERSION-$os-$arch
	GOOS=$os GOARCH=$arch release/compile.sh "./cmd/$command" "$out/$name"
	"$sbom/sbom" -name "$command" -version "$VERSION" -commit "$COMMIT" -date "$DATE" "$out/$name" >"$out/$name.cdx.json"
	echo "$name"
done
if [ $# -eq 0 ]; then
	(cd test && go run ./chart/cmd/package --values chart/testdata/minimal.yaml --out "$out")
fi
cd "$out"
shopt -s nullglob
sha256sum signet-* signetctl-* >SHA256SUMS
echo "$out/SHA256SUMS"
