#!/usr/bin/env bash
# jordan2022-repair-datasets beside its published figures: reproduce_jordan2022_repair_datasets.sh [full|small|smoke] [override]...
set -euo pipefail
exec modeconn reproduce jordan2022-repair-datasets --scale "${1:-full}" "${@:2}"
