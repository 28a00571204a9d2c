#!/usr/bin/env bash
# Builds the container image with Docker, from the tree as it is.
#
#   release/image.sh NAME:TAG [docker build's options...]
#
# For several platforms at once, and with times that don't change from build to build, use buildx:
#
#   release/image.sh NAME:TAG --platform linux/amd64,linux/arm64 --output type=image,push=true,rewrite-timestamp=true
set -euo pipefail
image=${1:?how the image is called}
shift
cd "$(dirname "$0")/.."
if ! docker version --format '{{.Server.Version}}' >/dev/null 2>&1; then
	echo "error: no Docker daemon answers; start one, or set DOCKER_HOST" >&2
	exit 1
fi
assignments=$(release/version.sh)
eval "$assignments"
SOURCE_DATE_EPOCH=$(date -u -d "$DATE" +%s)
export SOURCE_DATE_EPOCH
exec docker build --build-arg VERSION="$VERSION" --build-arg COMMIT="$COMMIT" --build-arg DATE="$DATE" \
	--build-arg SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" -t "$image" "$@" .
