"""Where a result comes from: versions, machine, command, upstream."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from modeconn_cli import __version__


def provenance(upstream: Sequence[Path], more: Mapping[str, Any]) -> dict[str, Any]:
    """Where a result comes from: versions, machine, command, the upstream directories, and what the stage adds."""
    import numpy
    import torch

    return {
        "modeconn": __version__,
        "git": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "threads": torch.get_num_threads(),
        "command": command_line(),
        "upstream": [*map(str, upstream)],
        **more,
    }


@cache
def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, marked when it is modified; None elsewhere.

    It is that of the code that runs: looked up once, when the process first wants it.
    """
    here = Path(__file__).parents[1]
    if not (here.parent / ".git").exists() or shutil.which("git") is None:
        return None
    said = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip() or None


def command_line() -> str:
    """This process's command as a person would type it again; workers of a sweep inherit their parent's."""
    return os.environ.get("MODECONN_COMMAND") or shlex.join(["modeconn", *sys.argv[1:]])
