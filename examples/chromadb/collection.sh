#!/bin/sh
# Creates a collection in ChromaDB, adds documents, and asks for the nearest: three jobs of executor `http`.
#
#   examples/chromadb/collection.sh [CHROMA_URL]
#
# Prints the ids of the documents that were found. CHROMA_URL is http://localhost:8000 unless told otherwise, and its host
# one of those that the deployment's parameter AllowedPrivateHosts names, unless it is public and has TLS.
# Where Vigil is: VIGIL_URL and VIGIL_KEY (of scope `admin`), else the local stack of this directory.
set -eu
VIGIL_URL=${VIGIL_URL:-$(sed -n 's/.*"api_url": "\(.*\)".*/\1/p' .local/stack.json)}
VIGIL_KEY=${VIGIL_KEY:-$(sed -n 's/.*"api_key": "\(.*\)".*/\1/p' .local/stack.json)}
chroma=${1:-http://localhost:8000}

call() { # METHOD PATH BODY
  curl -sS --fail-with-body -X "$1" -H "Authorization: Bearer $VIGIL_KEY" -H "Prefer: wait=25" "$VIGIL_URL$2" -d "$3"
}

run() { # JOB_TYPE PAYLOAD: the job, once it has ended
  job=$(call POST /v1/jobs "{\"job_type\": \"$1\", \"payload\": $2}")
  case $job in
  *'"status":"completed"'*) echo "$job" ;;
  *) echo "$job" >&2 && exit 1 ;;
  esac
}

for name in create_collection add_documents query_documents; do
  call PUT "/v1/job-types/$name" "$(sed "s|http://localhost:8000|$chroma|" "$(dirname "$0")/$name.json")" >/dev/null
done

created=$(run create_collection '{"name": "fruit", "description": "What grows on trees"}')
collection=$(echo "$created" | sed 's/.*"body":{"id":"\([^"]*\)".*/\1/')
run add_documents "{\"collection\": \"$collection\", \"ids\": [\"apple\", \"boat\", \"pear\"],
  \"documents\": [\"An apple\", \"A boat\", \"A pear\"], \"embeddings\": [[1, 0.1], [0, 1], [0.99, 0]]}" >/dev/null
run query_documents "{\"collection\": \"$collection\", \"embeddings\": [[1, 0]], \"most\": 2}" |
  sed 's/.*"ids":\[\[\([^]]*\)\]\].*/\1/'
