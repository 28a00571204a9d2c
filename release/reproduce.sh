#!/usr/bin/env bash
# Shows that the build is reproducible: copies the tree into two directories with other names, builds in each with an empty
# cache and another umask, time zone, home, GOFLAGS and `go env -w`, and compares what came out, byte by byte.
#
#   release/reproduce.sh [TARGET...]
#
# Targets are those of release/build.sh; all of them and the chart without any. It takes minutes, since everything is compiled
# twice.
set -euo pipefail
cd "$(dirname "$0")/.."
assignments=$(release/version.sh)
eval "$assignments"
GOMODCACHE=$(go env GOMODCACHE) # downloads are shared; go.sum says what they must be
export GOMODCACHE

work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
# Tracked files and new ones, as they are now.
mkdir -p "$work/a" "$work/another-place/of-the-same/tree"
git ls-files -z --cached --others --exclude-standard |
	while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done >"$work/files"
for tree in "$work/a" "$work/another-place/of-the-same/tree"; do
	tar -c --null -T "$work/files" | tar -x -C "$tree"
done
(
	umask 022
	env GOCACHE="$work/cache-1" TZ=UTC "$work/a/release/build.sh" "$work/first" "$@"
)
rm -rf "$work/cache-1"
find "$work/another-place" -exec touch -d '2001-02-03 04:05:06' {} +
mkdir "$work/home"
echo GOFLAGS=-tags=anybody >"$work/goenv"
(
	umask 077
	env GOCACHE="$work/cache-2" TZ=Pacific/Auckland HOME="$work/home" GOENV="$work/goenv" GOFLAGS=-tags=somebody USER=somebody LC_ALL=C \
		"$work/another-place/of-the-same/tree/release/build.sh" "$work/second" "$@"
)
if ! diff "$work/first/SHA256SUMS" "$work/second/SHA256SUMS"; then
	echo "error: the two builds differ" >&2
	exit 1
fi
cat "$work/first/SHA256SUMS"
echo "reproduced: both builds are the same"
