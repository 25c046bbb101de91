"""The command as a process: Ctrl-C while it is still being imported ends in one line too."""

from __future__ import annotations

import os
import sys


def main() -> None:
    try:
        from modeconn_cli.cli import main as run
    except KeyboardInterrupt:
        print("modeconn: stopped by Ctrl-C before anything was begun.", file=sys.stderr, flush=True)
        os._exit(130)  # after an import that was interrupted, Python itself would end by the signal
    run()


if __name__ == "__main__":
    main()
