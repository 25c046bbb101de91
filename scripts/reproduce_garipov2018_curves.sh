#!/usr/bin/env bash
# garipov2018-curves beside its published figures: reproduce_garipov2018_curves.sh [full|small|smoke] [override]...
set -euo pipefail
exec modeconn reproduce garipov2018-curves --scale "${1:-full}" "${@:2}"
