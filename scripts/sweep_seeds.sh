#!/usr/bin/env bash
# Replicates from the shell: each seed is an independent pair of endpoints (2*seed, 2*seed+1) and its own curve.
# Jobs run side by side; every run has a directory of its own, and two that need the same one wait for each other.
#
#   scripts/sweep_seeds.sh "0 1 2 3" [OVERRIDE ...]       JOBS=2 processes at a time, unless set
#
# The same without the shell: modeconn fit-curve --multirun seed=0,1,2,3 [OVERRIDE ...]
set -euo pipefail
seeds=${1:-0 1 2 3}
shift || true
threads=$(( $(nproc) / ${JOBS:-2} ))
tr ' ' '\n' <<<"$seeds" | xargs -P "${JOBS:-2}" -I{} \
  modeconn fit-curve --quiet seed={} runtime.threads=$(( threads > 0 ? threads : 1 )) "$@"
modeconn runs list s
