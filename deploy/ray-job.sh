#!/usr/bin/env bash
# Submits `nap-stream run` to a Ray cluster as a job.
#
#   deploy/ray-job.sh monitor.yaml                 the path as the cluster's nodes see it
#   deploy/ray-job.sh monitor.yaml --until-idle 60 further arguments go to `nap-stream run`
#
#   RAY_API_SERVER_ADDRESS   the cluster's dashboard, http://127.0.0.1:8265 by default
#   NAP_STREAM_JOB_ID        the job's submission id, nap-stream-<seconds since the epoch> by default
#   NAP_STREAM_STOP_WAIT_S   how long `ray job stop` waits; more than driver.shutdown_deadline_s
#
# nap-stream must be installed in the cluster's Python environment. Secrets do not belong into a
# job's environment, which the dashboard shows: mount a file and name it in
# kafka.sasl_password_file.
#
# Stop it with `ray job stop <submission id>`: what is in flight is published and committed.
set -euo pipefail

if [ $# -lt 1 ] || [ "$1" = "-h" ] || [ "$1" = "--help" ]; then
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"
    exit 2
fi

config=$1
shift
job_id=${NAP_STREAM_JOB_ID:-nap-stream-$(date +%s)}
# Ray kills the entrypoint 3 s after SIGTERM unless this says otherwise.
stop_wait_s=${NAP_STREAM_STOP_WAIT_S:-45}

exec ray job submit \
    --address "${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}" \
    --submission-id "$job_id" \
    --runtime-env-json "{\"env_vars\": {\"RAY_JOB_STOP_WAIT_TIME_S\": \"$stop_wait_s\"}}" \
    --no-wait \
    -- python -m nap_stream run --config "$config" "$@"
