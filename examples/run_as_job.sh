#!/bin/sh
# Run a command as a job that others can follow and wait for.
#
#   examples/run_as_job.sh JOB_TYPE COMMAND [ARGUMENT...]
#
# Print the job's id on stderr first. The command's exit code becomes the job's result or error, and the exit code of this
# script. SIGTERM and a cancel of the job end the command; if the machine fails, the job fails two minutes later.
# VIGIL_URL and VIGIL_KEY name the Vigil to use; the default is the local cloud of this directory.
set -eu
VIGIL_URL=${VIGIL_URL:-$(sed -n 's/.*"api_url": "\(.*\)".*/\1/p' .local/stack.json)}
VIGIL_KEY=${VIGIL_KEY:-$(sed -n 's/.*"api_key": "\(.*\)".*/\1/p' .local/stack.json)}

call() { # METHOD PATH BODY
  curl -sS --fail-with-body --retry 5 --retry-connrefused \
    -X "$1" -H "Authorization: Bearer $VIGIL_KEY" "$VIGIL_URL$2" -d "$3"
}

job_type=$1
shift
job=$(call POST /v1/jobs "{\"job_type\": \"$job_type\", \"heartbeat_timeout\": 120}" |
  sed 's/.*"job_id":"\([^"]*\)".*/\1/')
echo "$job" >&2
call POST "/v1/jobs/$job/start" '{}' >/dev/null
call PATCH "/v1/jobs/$job" "{\"job_stage\": \"running\", \"fields\": {\"host\": \"$(uname -n)\"}}" >/dev/null

( # Send heartbeats, and end this script as SIGTERM does if a client cancels the job.
  exec >/dev/null 2>&1
  while sleep 20 && kill -0 $$; do
    case $(call POST "/v1/jobs/$job/heartbeat" '{}') in
    *'"cancel_requested":true'*) kill -TERM $$ ;;
    esac
  done
) &
heartbeats=$!
"$@" <&0 &
command=$!
trap 'kill -TERM "$command" 2>/dev/null || true' TERM INT HUP

code=0
wait "$command" || code=$?
while kill -0 "$command" 2>/dev/null; do # A signal ended the `wait`, not the command.
  code=0
  wait "$command" || code=$?
done
kill "$heartbeats" 2>/dev/null || true
if [ "$code" -eq 0 ]; then
  call POST "/v1/jobs/$job/complete" '{"result": {"exit_code": 0}}' >/dev/null
else
  call POST "/v1/jobs/$job/fail" "{\"error\": {\"code\": \"EXIT_$code\", \"message\": \"exit code $code\"}}" >/dev/null
fi
exit "$code"
