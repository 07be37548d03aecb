#!/bin/sh
# Waits until every named job has completed, or the first of them cannot any more; however long that takes.
#
#   examples/wait_for.sh JOB_ID...
#
# Prints the last answer. Exit code 0 when all have completed, 1 when that did not come about, 2 when it broke off.
# Where Vigil is: VIGIL_URL and VIGIL_KEY, else the local stack of this directory.
set -eu
VIGIL_URL=${VIGIL_URL:-$(sed -n 's/.*"api_url": "\(.*\)".*/\1/p' .local/stack.json)}
VIGIL_KEY=${VIGIL_KEY:-$(sed -n 's/.*"api_key": "\(.*\)".*/\1/p' .local/stack.json)}

wait_on=
for job in "$@"; do
  wait_on="$wait_on${wait_on:+, }\"$job\": {\"job_stage\": \"complete\"}"
done

answer="{\"wait_on\": {$wait_on}, \"wait_options\": {\"get_fields\": {\"job_health\": null}, \"fail_fast\": null}}"
while :; do
  # What breaks off is asked again: the answer that was kept goes on with the same wait.
  answer=$(curl -sS --fail-with-body --retry 5 --retry-connrefused \
    -H "Authorization: Bearer $VIGIL_KEY" "$VIGIL_URL/scheduler/wait-jobs" -d "$answer") || {
    echo "$answer" >&2
    exit 2
  }
  case $answer in *'"wait_on":'*) ;; *) break ;; esac
done

echo "$answer"
case $answer in *'"status":"met"'*) ;; *) exit 1 ;; esac
