"""The command line of pipeline commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from modeconn_cli.errors import UserError
from modeconn_cli.front.flags import (
    AsJson,
    Cfg,
    ConfigDir,
    DryRun,
    Force,
    Info,
    Multirun,
    NetworksAndOverrides,
    Overrides,
    OwnOutputDir,
    Quiet,
)
from modeconn_cli.front.session import Session
from modeconn_cli.work.command import Command

CFG = ("job", "hydra", "all")


INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def pipeline(command: Command) -> Callable[..., None]:
    """The command line of a pipeline command; they differ in the stages behind their name alone."""

    def run(
        overrides: Overrides = None,
        multirun: Multirun = False,
        cfg: Cfg = None,
        info: Info = None,
        config_dir: ConfigDir = None,
        dry_run: DryRun = False,
        force: Force = False,
        output_dir: OwnOutputDir = None,
        as_json: AsJson = False,
        quiet: Quiet = False,
    ) -> None:
        from modeconn_cli.front.compose import compose, launcher_of, scatter
        from modeconn_cli.front.overrides import naming_networks

        given = list(overrides or [])
        if command.networks:
            given = naming_networks(given, said_in(given) if output_dir is None else output_dir)
        given = [*chosen_for(command, given), *given]
        given += placed(output_dir, given)
        given += [f"runtime.force={str(force).lower()}"] if force else []
        given += [f"runtime.dry_run={str(dry_run).lower()}"] if dry_run else []
        flags = ["--multirun"] if multirun else []
        for flag, value, allowed in (("--cfg", cfg, CFG), ("--info", info, INFO)):
            if value is not None and value not in allowed:
                raise UserError(f"{flag} {value}: choose from {', '.join(allowed)}.")
            flags += [flag, value] if value is not None else []
        session = Session(command.name, dry_run, as_json, quiet, multirun)

        def go() -> None:
            launcher = launcher_of(given)
            jobs = compose(given, flags, config_dir)
            elsewhere = multirun and launcher != "basic"
            session.run(jobs, (lambda folder: scatter(command.name, given, config_dir, folder)) if elsewhere else None)

        session.guarded(go)
        if cfg or info:
            sys.exit(session.code)
        session.close()

    if command.networks:
        run.__annotations__["overrides"] = NetworksAndOverrides
    run.__doc__ = f"{command.help}\n\n{command.more}"
    return run


def said_in(overrides: Sequence[str]) -> str:
    """Where results go, as overrides say or by default."""
    said = [o.partition("=")[2] for o in overrides if o.startswith("runtime.output_dir=")]
    return said[-1] if said else "outputs"


def placed(output_dir: str | None, overrides: Sequence[str]) -> list[str]:
    """--output-dir as an override.

    Raises:
        UserError: an override says otherwise.
    """
    if output_dir is None:
        return []
    from modeconn_cli.front.overrides import quoted

    said = [o for o in overrides if o.startswith("runtime.output_dir=") and o.partition("=")[2] != output_dir]
    if said:
        raise UserError(f"--output-dir {output_dir} and {said[0]} are one setting; drop one.")
    return [f"runtime.output_dir={quoted(output_dir)}"]


def chosen_for(command: Command, overrides: Sequence[str]) -> list[str]:
    """The choices that a command makes in groups where the command line makes none."""
    from modeconn_cli.settings import NAMED_BY

    made = []
    for group, choice in command.chooses.items():
        choosing = (f"{group}=", f"{group}.{NAMED_BY.get(group)}=", "experiment=")
        made += [] if any(o.startswith(choosing) for o in overrides) else [f"{group}={choice}"]
    return made
