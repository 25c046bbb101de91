#!/usr/bin/env bash
# izmailov2018-swa beside its published figures: reproduce_izmailov2018_swa.sh [full|small|smoke] [override]...
set -euo pipefail
exec modeconn reproduce izmailov2018-swa --scale "${1:-full}" "${@:2}"
