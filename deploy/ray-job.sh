#!/usr/bin/env bash
# Submits `nap-stream run` to a Ray cluster as a job; `deploy/ray-job.sh --help` says how.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/ray_job.py" "$@"
