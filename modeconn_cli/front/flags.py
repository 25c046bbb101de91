"""Flags and arguments that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Overrides, as seed=1 or architecture=vgg16 or curve.bends=2.",
        show_default=False,
    ),
]


NetworksAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NETWORK]... [KEY=VALUE]...",
        help="Networks, as a file, RUN, RUN@epoch=20, RUN@t=0.3 or RUN#2, in place of endpoints.from; and overrides, "
        "as seed=1 or architecture=vgg16.",
        show_default=False,
    ),
]


Multirun = Annotated[
    bool, typer.Option("--multirun", "-m", help="One job for every combination of comma-separated values.")
]


Cfg = Annotated[
    str | None, typer.Option("--cfg", metavar="WHAT", help="Print the configuration (job, hydra or all) and stop.")
]


Info = Annotated[
    str | None,
    typer.Option(
        "--info",
        metavar="WHAT",
        help="Print how it was composed (all, config, defaults, defaults-tree, plugins, searchpath) and stop.",
    ),
]


ConfigDir = Annotated[
    str | None, typer.Option("--config-dir", metavar="DIR", help="Look for further configuration files here.")
]


DryRun = Annotated[bool, typer.Option("--dry-run", help="Show every stage, whether it would run and why, and stop.")]


Force = Annotated[
    bool, typer.Option("--force", help="Compute this command's own stages again, into their next version.")
]


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no stage lines; results only.")]


OwnOutputDir = Annotated[
    str | None,
    typer.Option("--output-dir", metavar="DIR", help="Where runs are kept; runtime.output_dir=DIR is the same."),
]


OutputDir = Annotated[Path, typer.Option("--output-dir", help="Where runs are kept.")]
