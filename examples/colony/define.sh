#!/bin/sh
# Define the three job types.
#
#   examples/colony/define.sh
#
# VIGIL_URL and VIGIL_KEY (of scope `admin`) name the Vigil to use; the default is the local cloud of this directory.
set -eu
VIGIL_URL=${VIGIL_URL:-$(sed -n 's/.*"api_url": "\(.*\)".*/\1/p' .local/stack.json)}
VIGIL_KEY=${VIGIL_KEY:-$(sed -n 's/.*"api_key": "\(.*\)".*/\1/p' .local/stack.json)}

for name in cache_refresh cache_upload search_subject; do
  curl -sS --fail-with-body -X PUT -H "Authorization: Bearer $VIGIL_KEY" "$VIGIL_URL/v1/job-types/$name" \
    -d "$(cat "$(dirname "$0")/$name.json")" >/dev/null
done
