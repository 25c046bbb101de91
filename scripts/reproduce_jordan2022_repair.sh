#!/usr/bin/env bash
# jordan2022-repair beside its published figures: reproduce_jordan2022_repair.sh [full|small|smoke] [override]...
set -euo pipefail
exec modeconn reproduce jordan2022-repair --scale "${1:-full}" "${@:2}"
