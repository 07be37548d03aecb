#!/bin/sh
# Create a collection in ChromaDB, add documents, and query the nearest ones: three jobs of executor `http`.
#
#   examples/chromadb/collection.sh [CHROMA_URL]
#
# Print the ids of the nearest documents. The default of CHROMA_URL is http://localhost:8000. A host that is private or has
# no TLS must be in the deployment's parameter AllowedPrivateHosts.
# VIGIL_URL and VIGIL_KEY (of scope `admin`) name the Vigil to use; the default is the local cloud of this directory.
set -eu
VIGIL_URL=${VIGIL_URL:-$(sed -n 's/.*"api_url": "\(.*\)".*/\1/p' .local/stack.json)}
VIGIL_KEY=${VIGIL_KEY:-$(sed -n 's/.*"api_key": "\(.*\)".*/\1/p' .local/stack.json)}
chroma=${1:-http://localhost:8000}

call() { # METHOD PATH BODY
  curl -sS --fail-with-body -X "$1" -H "Authorization: Bearer $VIGIL_KEY" -H "Prefer: wait=${wait:-0}" "$VIGIL_URL$2" -d "$3"
}

create() { # JOB_TYPE DEPENDS_ON PAYLOAD: prints the id of the new job
  call POST /v1/jobs "{\"job_type\": \"$1\", \"depends_on\": [$2], \"payload\": $3}" | sed 's/.*"job_id":"\([^"]*\)".*/\1/'
}

for name in create_collection add_documents query_documents; do
  call PUT "/v1/job-types/$name" "$(sed "s|http://localhost:8000|$chroma|" "$(dirname "$0")/$name.json")" >/dev/null
done

collection=$(create create_collection '' '{"name": "fruit", "description": "What grows on trees"}')
filled=$(create add_documents "\"$collection\"" '{"ids": ["apple", "boat", "pear"],
  "documents": ["An apple", "A boat", "A pear"], "embeddings": [[1, 0.1], [0, 1], [0.99, 0]]}')
found=$(create query_documents "\"$collection\", \"$filled\"" '{"embeddings": [[1, 0]], "most": 2}')

job=$(wait=25 call GET "/v1/jobs/$found" '')
case $job in
*'"status":"completed"'*) echo "$job" | sed 's/.*"ids":\[\[\([^]]*\)\]\].*/\1/' ;;
*) echo "$job" >&2 && exit 1 ;;
esac
