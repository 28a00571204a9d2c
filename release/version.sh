#!/bin/sh
# Prints what the tree is, as assignments for eval: VERSION is the tag of the commit, or devel; COMMIT its whole hash, with
# -dirty behind it when the tree was changed; DATE when it was made, in UTC. What is set already stays as it is, so that a
# tree without a repository can be built too.
set -eu
cd "$(dirname "$0")/.."
: "${VERSION=$(git describe --tags --exact-match --match 'v[0-9]*' 2>/dev/null || echo devel)}"
if [ -z "${COMMIT+set}" ]; then
	COMMIT=$(git rev-parse HEAD)
	[ -z "$(git status --porcelain)" ] || COMMIT=$COMMIT-dirty
fi
if [ -z "${DATE+set}" ]; then
	DATE=$(TZ=UTC git show -s --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ HEAD)
fi
for value in "$VERSION" "$COMMIT" "$DATE"; do
	case $value in
	*[!A-Za-z0-9.:+-]*)
		echo "error: \"$value\" is no version, commit or date" >&2
		exit 1
		;;
	esac
done
echo "export VERSION=$VERSION COMMIT=$COMMIT DATE=$DATE"
