#!/bin/sh
# Makes niivue.mjs.gz from npm: NiiVue and what it needs in one module, without the decoders of compressed Zarr chunks
# (numcodecs, 1.4 MB of WebAssembly), which the page does not use. Needs node and npm; nothing of it runs later.
#
#     pipeline/report/web/vendor/build.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$here/package.json" "$here/package-lock.json" "$here/entry.mjs" "$work"
cd "$work"
npm ci --ignore-scripts --no-audit --no-fund --silent
npx esbuild entry.mjs --bundle --minify --format=esm --target=es2022 --legal-comments=none \
  '--external:numcodecs/*' --outfile=niivue.mjs --metafile=meta.json --log-level=warning
gzip -9 -n -c niivue.mjs > "$here/niivue.mjs.gz"
sha256sum niivue.mjs | cut -d ' ' -f 1 > "$here/niivue.mjs.sha256"
