#!/bin/sh
# Install the suite beside the caller's packages, measure $CASES and compare with $BASELINE.
set -eu
suite=$(cd "$(dirname "$0")/../../.." && pwd)
BIN=$(dirname "$(command -v python)")
export BIN PIP="python -m pip" TORCH=${TORCH:-cpu}
export TORCH_CPU_INDEX=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
(cd "$suite" && .ci/install-torch)
python -m pip install --quiet -c "$suite/constraints.txt" "$suite[baselines,bench]"
records=$(mktemp -d)
# Split into words, without expanding what looks like a file's pattern.
set -f
# shellcheck disable=SC2086
jfbbench run $CASES --out "$records"
jfbbench gate --baseline "$BASELINE" "$records"
