#!/bin/sh
# Defines the three job types.
#
#   examples/colony/define.sh
#
# Where Vigil is: VIGIL_URL and VIGIL_KEY (of scope `admin`), else the local stack of this directory.
set -eu
VIGIL_URL=${VIGIL_URL:-$(sed -n 's/.*"api_url": "\(.*\)".*/\1/p' .local/stack.json)}
VIGIL_KEY=${VIGIL_KEY:-$(sed -n 's/.*"api_key": "\(.*\)".*/\1/p' .local/stack.json)}

for name in cache_refresh cache_upload search_subject; do
  curl -sS --fail-with-body -X PUT -H "Authorization: Bearer $VIGIL_KEY" "$VIGIL_URL/v1/job-types/$name" \
    -d "$(cat "$(dirname "$0")/$name.json")" >/dev/null
done
