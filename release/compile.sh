#!/bin/sh
# Builds one command as it is released: the same bytes wherever and whenever it is built by the same version of Go.
#
#   release/compile.sh PACKAGE OUTPUT
#
# VERSION, COMMIT and DATE say what it is built from (see release/version.sh), GOOS and GOARCH what it is for. The image
# and the released binaries come from here both, so that they are the same file.
set -eu
package=$1
output=$2
cd "$(dirname "$0")/.."

# What the environment could change is set here. The repository isn't asked for, because images are built without it. Of what
# was set by `go env -w`, which would hold where a variable is empty, only where modules come from and lie is taken.
for name in GOPROXY GOSUMDB GONOSUMDB GONOPROXY GOPRIVATE GOINSECURE GOAUTH GOVCS GOMODCACHE GOCACHE GOTOOLCHAIN; do
	value=$(go env "$name")
	export "$name=$value"
done
export GOENV=off CGO_ENABLED=0 GOFLAGS='' GOWORK=off GOEXPERIMENT='' GOAMD64=v1 GOARM64=v8.0 GOFIPS140=off
at=github.com/signet-ca/signet/version
exec go build -mod=readonly -trimpath -buildvcs=false \
	-ldflags "-s -w -buildid= -X $at.release=${VERSION:-devel} -X $at.commit=${COMMIT:-} -X $at.date=${DATE:-}" \
	-o "$output" "$package"
