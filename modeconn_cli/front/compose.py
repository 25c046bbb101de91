"""The bridge to Hydra: from a command's flags and overrides to typed configurations, one for each job.

Hydra composes, sweeps and launches; what it refuses is said again in one line that names the override, what is
allowed, and the nearest right one.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeconn_cli import settings
from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.front.explain import check_form, check_sweep, explain, suggest
from modeconn_cli.front.files import check_files, chosen_files, complaint, without_package
from modeconn_cli.front.overrides import (
    all_keys,
    conf_dir,
    groups,
    quoted_references,
    with_outside_groups,
    without_outside_defaults,
)
from modeconn_cli.plugins import conf_directories
from modeconn_cli.runs.directory import writable

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Job:
    """The overrides of one job, and the configuration they compose."""

    overrides: list[str]
    outcome: settings.Config | UserError

    @property
    def config(self) -> settings.Config:
        """Raises UserError where the overrides are wrong, so that each job of a sweep can say so for itself."""
        if isinstance(self.outcome, UserError):
            raise self.outcome
        return self.outcome


def compose(overrides: Sequence[str], flags: Sequence[str] = (), config_dir: str | None = None) -> list[Job]:
    """Every job that overrides ask for; one, unless the flags hold --multirun.

    Args:
        flags: Hydra's own, such as --multirun or --cfg job; those that print compose no job.
        config_dir: a directory of further configuration files, searched first.

    Raises:
        UserError: an override or a file cannot be composed.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf.errors import OmegaConfBaseException

    jobs: list[Job] = []

    def keep(cfg: DictConfig) -> None:
        given = without_outside_defaults(HydraConfig.get().overrides.task)
        try:
            jobs.append(Job(given, to_config(cfg, given, config_dir)))
        except UserError as error:  # raised here, Hydra would print lines of its own
            jobs.append(Job(given, error))
        except OmegaConfBaseException as error:
            jobs.append(Job(given, UserError(explain(error, given, config_dir))))

    # Composing is quick: whatever launches the jobs later, it is done here and in turn. Hydra keeps records of its
    # own of a sweep; the run directories say all that there is to say.
    elsewhere = ("hydra/launcher=", "hydra.launcher.", "hydra.sweep.dir=")
    here = [o for o in overrides if not o.startswith(elsewhere)]
    asks_hydra = any(o.lstrip("+~").startswith("hydra") or "${hydra" in o or "${now" in o for o in here)
    try:
        if config_dir is None and not asks_hydra and not conf_directories() and list(flags) in ([], ["--multirun"]):
            return _compose_directly(here, sweep="--multirun" in flags)
        with tempfile.TemporaryDirectory() as scratch:
            run_hydra(keep, [*here, f"hydra.sweep.dir={scratch}"], flags, config_dir)
    except (ValueError, TypeError) as error:  # what Hydra has no words for either, as a choice that is a number
        raise UserError(explain(error, here, config_dir)) from None
    return jobs


def _compose_directly(overrides: Sequence[str], sweep: bool) -> list[Job]:
    """The jobs that Hydra's main would compose, for overrides that ask nothing of Hydra itself; far sooner.

    Main composes a command's configuration twice and each job of a sweep twice more. Here what the groups' choices
    make is composed once, and the other overrides are applied to it, which is how Hydra does it.
    """
    jobs: list[Job] = []
    with _speaking_hydra(overrides, None) as given:
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
        from hydra.core.override_parser.overrides_parser import OverridesParser

        parser, parts = OverridesParser.create(), [given]
        if sweep:
            asked = parser.parse_overrides(given)
            check_sweep(asked)
            (parts,) = BasicSweeper.split_arguments(asked, None)
        for part in parts:
            values = parser.parse_overrides([o for o in part if not _CHOICE.fullmatch(o)])
            if any(v.is_sweep_override() or v.key_or_group in groups() for v in values):  # Hydra has words for these
                cfg = _composed(tuple(part))
            else:
                cfg = copy.deepcopy(_composed(tuple(o for o in part if _CHOICE.fullmatch(o))))
                ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
            try:
                jobs.append(Job(part, to_config(cfg, part)))
            except UserError as error:
                jobs.append(Job(part, error))
    return jobs


_CHOICE = re.compile(r"(?!seed=)[a-z_]+=[\w-]+")  # of a group


@functools.lru_cache(maxsize=512)
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    """The configuration under these overrides. Not to be changed: it is kept."""
    import hydra

    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return hydra.compose("config", [*overrides])


def run_hydra(
    task: Callable[[DictConfig], None], overrides: Sequence[str], flags: Sequence[str], config_dir: str | None = None
) -> None:
    """Call ``task`` with each composition, as Hydra's own command line would.

    Raises:
        UserError: an override or a file cannot be composed.
    """
    with _speaking_hydra(overrides, config_dir) as given:
        import hydra

        extra = ["--config-dir", str(Path(config_dir).resolve())] if config_dir else []
        argv = sys.argv
        try:
            with writable(Path()):
                sys.argv = ["modeconn", *flags, *extra, *given]
                hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
        finally:
            sys.argv = argv


@contextmanager
def _speaking_hydra(overrides: Sequence[str], config_dir: str | None) -> Iterator[list[str]]:
    """Gives the overrides as Hydra wants them; what it refuses inside is raised as a UserError in our words."""
    for override in overrides:
        check_form(override, overrides, config_dir)
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir} is not a directory; give one with files such as dataset/mine.yaml.")
    check_files(overrides, config_dir)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    os.environ["MODECONN_COMMAND"] = shlex.join(["modeconn", *sys.argv[1:]])
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_nodes()
    try:
        # kwargs take any name, which Hydra would want a + for.
        given = with_outside_groups(
            [f"++{o.lstrip('+')}" if ".kwargs" in o.partition("=")[0] else quoted_references(o) for o in overrides]
        )
        if conf_directories() and not any(o.startswith("hydra.searchpath=") for o in given):
            given.append(f"hydra.searchpath=[{','.join(f'file://{d}' for d in conf_directories())}]")
        yield given
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(explain(error, overrides, config_dir)) from None


LAUNCHERS = {  # by the extra that installs them, and the package that has to be there
    "joblib": ("joblib", "hydra_plugins.hydra_joblib_launcher"),
    "submitit_local": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "submitit_slurm": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "ray": ("ray", "hydra_plugins.hydra_ray_launcher"),
    "ray_aws": ("ray", "hydra_plugins.hydra_ray_launcher"),
}
JOB_FILE = "job.json"


def launcher_of(overrides: Sequence[str]) -> str:
    """The launcher that overrides choose; basic, which runs jobs in turn, where they choose none.

    Raises:
        UserError: there is no such launcher, or it is not installed.
    """
    chosen = [o.partition("=")[2] for o in overrides if o.startswith("hydra/launcher=")]
    name = chosen[-1] if chosen else "basic"
    if name == "basic":
        return name
    if name not in LAUNCHERS:
        near = suggest(name, [*LAUNCHERS, "basic"], "did you mean hydra/launcher={}?", otherwise="choose another.")
        raise UserError(f"hydra/launcher={name}: no such launcher{near} There are basic, {', '.join(LAUNCHERS)}.")
    extra, package = LAUNCHERS[name]
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise UserError(f"hydra/launcher={name} is not installed: pip install 'modeconn[{extra}]'.")
    return name


def scatter(command: str, overrides: Sequence[str], config_dir: str | None, folder: Path) -> str | None:
    """Run the jobs of a sweep through the launcher that the overrides choose, and wait for them.

    Every job leaves JOB_FILE in a directory of its own under ``folder``, which the workers must be able to reach;
    what it found is in its run directories. Returns the launcher's own complaint, if it has one.
    """
    here = str(Path.cwd())

    # A closure, for its definition travels to workers that have not this process's modules.
    def task(cfg: DictConfig) -> None:
        from modeconn_cli.front.compose import work

        work(command, cfg, here)

    placed = [o for o in overrides if not o.startswith("hydra.sweep.dir=")]
    try:
        run_hydra(task, [*placed, f"hydra.sweep.dir={folder.resolve()}"], ["--multirun"], config_dir)
    except UserError:
        raise
    except Exception as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def work(command: str, cfg: DictConfig, directory: str) -> None:
    """One job, in a launcher's worker. It never raises: what went wrong is in its JOB_FILE."""
    import json
    import traceback

    from hydra.core.hydra_config import HydraConfig

    from modeconn_cli.front.console import TerminalReporter
    from modeconn_cli.work.machine import keep_freed_memory
    from modeconn_cli.work.plan import make_plan

    os.chdir(directory)
    job = HydraConfig.get().job
    os.environ["MODECONN_JOB"] = str(job.num)
    outcome: dict[str, Any] = {"job": job.num, "error": None, "code": 0, "stages": []}
    try:
        plan = make_plan(command, to_config(cfg), TerminalReporter(quiet=True))
        if plan.context.device.type == "cpu":
            keep_freed_memory()
        plan.execute(outcome["stages"])
    except (UserError, RunFailed) as error:
        outcome |= {"error": str(error), "code": 2 if isinstance(error, UserError) else 1}
    except KeyboardInterrupt as stop:
        outcome |= {"error": str(stop) or "stopped", "code": 130}
    except Exception as error:
        outcome |= {"error": f"{type(error).__name__}: {error}", "code": 1, "traceback": traceback.format_exc()}
    target = Path(HydraConfig.get().runtime.output_dir) / JOB_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_suffix(".tmp")
    beside.write_text(json.dumps(outcome))
    beside.replace(target)


def register_nodes() -> None:
    """Tell Hydra the schema's nodes, which the YAML files name in their defaults."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="_config", node={"seed": 0})  # a typed root would admit no groups beside it
    for group, nodes in settings.nodes().items():
        nodes = {f"_{group}": next(iter(nodes.values())), **nodes}  # any file of a group may begin with its plain name
        for name, node in nodes.items():
            if f"{name}.yaml" not in store.repo.get(group, {}):  # storing is slow, and a process composes often
                store.store(group=group, name=name, node=node)


def to_config(cfg: DictConfig, overrides: Sequence[str] = (), config_dir: str | None = None) -> settings.Config:
    """The composed tree as dataclasses; what is wrong is said of the overrides and the files that they choose."""
    from omegaconf import OmegaConf

    parts: dict[str, Any] = {}
    for group in settings.nodes():
        parts[group] = OmegaConf.to_object(cfg[group])
        if not dataclasses.is_dataclass(parts[group]):
            raise UserError(
                f"{group}: the chosen file does not begin with its schema; start it with "
                f"`defaults: [{', '.join(settings.nodes()[group])}]`, one of them."
            )
    unknown = [str(k) for k in cfg if k != "seed" and k not in settings.nodes()]
    for group, node in parts.items():
        known = {f.name for f in dataclasses.fields(node)}
        unknown += [f"{group}.{k}" for k in cfg[group] if k not in known]
    if unknown and unknown[0] in groups(config_dir):  # whose files set what stands elsewhere
        files = [file for group, file in chosen_files(overrides, config_dir) if group == unknown[0]]
        raise UserError(complaint(overrides, config_dir) or without_package(files[0] if files else Path(unknown[0])))
    if unknown:
        near = suggest(unknown[0], all_keys([]), "did you mean {}?")
        raise UserError(complaint(overrides, config_dir) or f"{unknown[0]}: no such key{near}")
    if not isinstance(cfg.seed, int) or isinstance(cfg.seed, bool):
        raise UserError(
            f"seed={cfg.seed} is not a whole number; give one, as seed=1, or several with --multirun seed=0,1,2."
        )
    return settings.make_config(cfg.seed, parts)


# ---------------------------------------------------------------------------------------------- explaining
