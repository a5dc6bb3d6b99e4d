#!/usr/bin/env bash
# Runs the tests that need a GPU, and benchmarks/throughput.py on it, in less than 8 minutes.
#
#   benchmarks/gpu.sh                        further arguments go to benchmarks.throughput
#   benchmarks/gpu.sh --only photos
#
#   PYTHON   an interpreter with the packages of requirements-dev.lock, .venv/bin/python by default
#
# Without a GPU it fails. The benchmark needs Java and the jars of Apache Kafka, as the tests on it do.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
test_s=120
benchmark_s=330
export NAP_STREAM_REQUIRE_GPU=1

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
failed=0
timeout --kill-after=10 "$test_s" \
    "$python" -m pytest -q -p no:cacheprovider -m gpu tests/model tests/gpu || failed=1
timeout --kill-after=10 "$benchmark_s" \
    "$python" -m benchmarks.throughput \
    --device cuda --rounds 1 --before none --only resnet18 photos "$@" || failed=1
exit "$failed"
