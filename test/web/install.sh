#!/usr/bin/env bash
# Installs Chromium on Debian where no browser is there that the tests of the page can drive.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
	command -v "$name" >/dev/null && exit 0
done
echo "installing Chromium" >&2
apt-get update
# The fonts are what the page's text is measured and drawn with.
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium fonts-dejavu-core
