#!/bin/sh
# Wait until every named job has completed, or until one of them can no longer complete, without a time limit.
#
#   examples/wait_for.sh JOB_ID...
#
# Print the last answer. The exit code is 0 if all jobs have completed, 1 if they have not, and 2 if a request failed.
# VIGIL_URL and VIGIL_KEY name the Vigil to use; the default is the local cloud of this directory.
set -eu
VIGIL_URL=${VIGIL_URL:-$(sed -n 's/.*"api_url": "\(.*\)".*/\1/p' .local/stack.json)}
VIGIL_KEY=${VIGIL_KEY:-$(sed -n 's/.*"api_key": "\(.*\)".*/\1/p' .local/stack.json)}

wait_on=
for job in "$@"; do
  wait_on="$wait_on${wait_on:+, }\"$job\": {\"job_stage\": \"complete\"}"
done

answer="{\"wait_on\": {$wait_on}, \"wait_options\": {\"get_fields\": {\"job_health\": null}, \"fail_fast\": null}}"
while :; do
  # curl retries a failed request: posting the last answer again continues the same wait.
  answer=$(curl -sS --fail-with-body --retry 5 --retry-connrefused \
    -H "Authorization: Bearer $VIGIL_KEY" "$VIGIL_URL/scheduler/wait-jobs" -d "$answer") || {
    echo "$answer" >&2
    exit 2
  }
  case $answer in *'"wait_on":'*) ;; *) break ;; esac
done

echo "$answer"
case $answer in *'"status":"met"'*) ;; *) exit 1 ;; esac
