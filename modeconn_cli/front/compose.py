"""The bridge to Hydra: from a command's flags and overrides to typed configurations, one for each job.

Hydra composes, sweeps and launches; what it refuses is said again in one line that names the override, what is
allowed, and the nearest right one.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
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
from modeconn_cli.runs.directory import writable
from modeconn_cli.runs.find import run_names

if TYPE_CHECKING:
    from omegaconf import DictConfig

HERE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """The configuration files: inside an installed wheel, or at the top of a checkout."""
    return HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"


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

    jobs: list[Job] = []

    def keep(cfg: DictConfig) -> None:
        given = list(HydraConfig.get().overrides.task)
        try:
            jobs.append(Job(given, to_config(cfg)))
        except UserError as error:  # raised here, Hydra would print lines of its own
            jobs.append(Job(given, error))

    # Composing is quick: whatever launches the jobs later, it is done here and in turn. Hydra keeps records of its
    # own of a sweep; the run directories say all that there is to say.
    elsewhere = ("hydra/launcher=", "hydra.launcher.", "hydra.sweep.dir=")
    here = [o for o in overrides if not o.startswith(elsewhere)]
    asks_hydra = any(o.lstrip("+~").startswith("hydra") or "${" in o for o in here)
    if config_dir is None and not asks_hydra and list(flags) in ([], ["--multirun"]):
        return _compose_directly(here, sweep="--multirun" in flags)
    with tempfile.TemporaryDirectory() as scratch:
        run_hydra(keep, [*here, f"hydra.sweep.dir={scratch}"], flags, config_dir)
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
            (parts,) = BasicSweeper.split_arguments(parser.parse_overrides(given), None)
        for part in parts:
            values = parser.parse_overrides([o for o in part if not _CHOICE.fullmatch(o)])
            if any(v.is_sweep_override() or v.key_or_group in groups() for v in values):  # Hydra has words for these
                cfg = _composed(tuple(part))
            else:
                cfg = copy.deepcopy(_composed(tuple(o for o in part if _CHOICE.fullmatch(o))))
                ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
            try:
                jobs.append(Job(part, to_config(cfg)))
            except UserError as error:
                jobs.append(Job(part, error))
    return jobs


_CHOICE = re.compile(r"(?!seed=)[a-z_]+=[\w-]+")  # of a group


@functools.lru_cache(maxsize=64)
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
        _check_form(override, overrides, config_dir)
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir} is not a directory; give one with files such as dataset/mine.yaml.")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    os.environ["MODECONN_COMMAND"] = shlex.join(["modeconn", *sys.argv[1:]])
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_nodes()
    try:
        # kwargs take any name, which Hydra would want a + for.
        yield [f"++{o}" if o.startswith("architecture.kwargs") else quoted_references(o) for o in overrides]
    except (HydraException, OmegaConfBaseException) as error:
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
        near = _suggest(name, [*LAUNCHERS, "basic"], "did you mean hydra/launcher={}?", otherwise="choose another.")
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
    from modeconn_cli.work.plan import make_plan

    os.chdir(directory)
    job = HydraConfig.get().job
    os.environ["MODECONN_JOB"] = str(job.num)
    outcome: dict[str, Any] = {"job": job.num, "error": None, "code": 0, "stages": []}
    try:
        plan = make_plan(command, to_config(cfg), TerminalReporter(quiet=True))
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


def _check_form(override: str, beside: Sequence[str], config_dir: str | None) -> None:
    """Raise UserError for what Hydra answers less plainly, or takes for something else than was meant."""
    key, equals, value = override.partition("=")
    if not equals and not override.startswith("~"):
        owner = next((g for g, choices in groups(config_dir).items() if override in choices), None)
        near = _suggest(override, all_keys([], config_dir), "did you mean {}=...?")
        near = f"; did you mean {owner}={override}?" if owner else near
        raise UserError(f"{override!r} is not an override: write key=value, as seed=1 or architecture=vgg16{near}")
    if key.lstrip("~+") in settings.NODES and (override.startswith("~") or value == "null"):
        raise UserError(f"{override}: every run needs its {key.lstrip('~+')}; choose one, or leave the default.")
    group = key.partition(".")[0]
    chosen = next((o.partition("=")[2] for o in beside if o.startswith(f"{group}=")), None)
    if key == f"{group}.name" and value != chosen:
        meant = f"{group}={value}" if value in groups(config_dir).get(group, []) else ""
        meant = f"{group}.model={value}" if chosen == "torchvision" else meant
        if meant:
            raise UserError(f"{override} would only name the directories; did you mean {meant}?")


def register_nodes() -> None:
    """Tell Hydra the schema's nodes, which the YAML files name in their defaults."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="_config", node={"seed": 0})  # a typed root would admit no groups beside it
    for group, nodes in settings.NODES.items():
        for name, node in nodes.items():
            if f"{name}.yaml" not in store.repo.get(group, {}):  # storing is slow, and a process composes often
                store.store(group=group, name=name, node=node)


def to_config(cfg: DictConfig) -> settings.Config:
    """The composed tree as dataclasses."""
    from omegaconf import OmegaConf

    parts: dict[str, Any] = {}
    for group in settings.NODES:
        parts[group] = OmegaConf.to_object(cfg[group])
        if not dataclasses.is_dataclass(parts[group]):
            raise UserError(
                f"{group}: the chosen file does not begin with its schema; start it with "
                f"`defaults: [{', '.join(settings.NODES[group])}]`, one of them."
            )
    unknown = [str(k) for k in cfg if k != "seed" and k not in settings.NODES]
    for group, node in parts.items():
        known = {f.name for f in dataclasses.fields(node)}
        unknown += [f"{group}.{k}" for k in cfg[group] if k not in known]
    if unknown:
        raise UserError(f"{unknown[0]}: no such key{_suggest(unknown[0], all_keys([]), 'did you mean {}?')}")
    if not isinstance(cfg.seed, int) or isinstance(cfg.seed, bool):
        raise UserError(
            f"seed={cfg.seed} is not a whole number; give one, as seed=1, or several with --multirun seed=0,1,2."
        )
    named = {group: settings.named_choice(node, group) for group, node in parts.items()}
    return settings.Config(seed=cfg.seed, **named)


# ------------------------------------------------------------------------------- what there is to override


def groups(config_dir: str | None = None) -> dict[str, list[str]]:
    """The configuration groups and the choices in each."""
    found: dict[str, list[str]] = {}
    for root in [conf_dir(), *([Path(config_dir)] if config_dir else [])]:
        for file in sorted(root.glob("*/*.yaml")):
            if file.parent.name != "paper":  # those describe published tables
                found.setdefault(file.parent.name, []).append(file.stem)
    return found


def quoted(value: str) -> str:
    """A value as an override can hold it, whatever characters it has."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


REFERENCES = ("endpoints.from", "endpoints.init_from", "endpoints.checkpoints", "curve.init_from")


def quoted_references(override: str) -> str:
    """An override whose references, as RUN@t=0.3 or RUN#2, are quoted: Hydra takes neither = nor # in a value."""
    key, _, value = override.partition("=")
    if key.lstrip("+") not in REFERENCES or "'" in value or '"' in value:
        return override
    return f"{key}=" + re.sub(r"[^\[\],]*[=#][^\[\],]*", lambda m: quoted(m.group().strip()), value)


def nearest(wrong: str, right: Sequence[str]) -> str:
    """The part of a sentence that offers the nearest right word; empty where nothing is near."""
    near = difflib.get_close_matches(wrong, right, n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""


def node_of(group: str, choice: str, config_dir: str | None = None) -> type | None:
    """The schema behind a choice of a group, from the node that its file names first."""
    for root in [*([Path(config_dir)] if config_dir else []), conf_dir()]:
        file = root / group / f"{choice}.yaml"
        if file.is_file():
            for name, node in settings.NODES.get(group, {}).items():
                if (
                    name
                    in file.read_text(encoding="utf-8").replace("[", " ").replace("]", " ").replace(",", " ").split()
                ):
                    return node
    return None


def default_choices() -> dict[str, str]:
    """What config.yaml chooses in each group of the schema."""
    import yaml

    listed = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    return {
        group: choice
        for entry in listed
        if isinstance(entry, dict)
        for group, choice in entry.items()
        if group in settings.NODES
    }


def chosen_nodes(overrides: Sequence[str], config_dir: str | None = None) -> dict[str, type]:
    """The schema of every group under these overrides."""
    choices = default_choices()
    for override in overrides:
        key, _, value = override.partition("=")
        if key in choices:
            choices[key] = value.split(",")[0]
    return {g: node_of(g, c, config_dir) or next(iter(settings.NODES[g].values())) for g, c in choices.items()}


def all_keys(overrides: Sequence[str], config_dir: str | None = None) -> list[str]:
    """Every key that can be overridden: seed, the groups, and the fields of what is chosen."""
    fields = [
        f"{g}.{f.name}" for g, node in chosen_nodes(overrides, config_dir).items() for f in dataclasses.fields(node)
    ]
    return ["seed", *groups(config_dir), *fields]


# ---------------------------------------------------------------------------------------------- explaining


def explain(error: Exception, overrides: Sequence[str], config_dir: str | None = None) -> str:
    """Hydra's complaint as one line about the override that caused it."""
    from hydra.errors import OverrideParseException

    choices, keys = groups(config_dir), all_keys(overrides, config_dir)
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key.startswith("hydra"):
            continue
        if key in choices:
            wrong = [v for v in value.split(",") if v not in choices[key] and v != "null"]
            if wrong:
                near = _suggest(wrong[0], choices[key], f"did you mean {key}={{}}?", otherwise="choose another.")
                return f"{key}={wrong[0]}: no such {key}{near} There are {', '.join(choices[key])}."
        elif key not in keys and ".kwargs." not in key:  # inside kwargs anything goes
            owners = _owners(key)
            if owners:
                return f"{key}: the chosen {key.split('.')[0]} has no such field; it belongs to {', '.join(owners)}."
            return f"{key}: no such key{_suggest(key, keys, 'did you mean {}?')}"
    if "Ambiguous value" in str(error):
        several = next((o for o in overrides if o in str(error)), overrides[0])
        return f"{several}: several values are a sweep, which wants --multirun (-m); a list is written as [0,1]."
    culprit = _type_culprit(error, overrides, config_dir)
    if culprit:
        return culprit
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    line = next((part.strip() for part in str(cause).splitlines() if part.strip()), type(cause).__name__)
    named = [o for o in overrides if o in str(error) or o in str(cause)]
    if not named and isinstance(error, OverrideParseException):
        return f"{error.override.removeprefix('++')}: cannot be read; close every bracket and quote."
    return f"{named[0]}: {line}" if named else line


def _type_culprit(error: Exception, overrides: Sequence[str], config_dir: str | None) -> str | None:
    """The override whose value its field cannot hold, said with what the field is."""
    said = f"{error} {error.__cause__ or ''}"
    nodes = chosen_nodes(overrides, config_dir)
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        group, _, name = key.partition(".")
        node = nodes.get(group)
        doc = settings.describe(node, name) if node else None
        if (
            node is None
            or doc is None
            or not (override in said or f"full_key: {key}" in said or f"full_key: {name}\n" in said)
        ):
            continue
        items = settings.allowed_items(node, name)
        allowed = items or settings.allowed_values(node, name)
        wrong = [v for v in value.strip("[]").split(",") if v.strip() not in items] if items else [value]
        if not allowed or not wrong:
            return f"{key}={value}: not {settings.kind_of(node, name)}. It is: {doc}"
        meant = f"{key}=[{{}}]" if items else f"{key}={{}}"
        near = _suggest(wrong[0], allowed, f"did you mean {meant}?", otherwise="choose one of these.")
        return f"{key}={value}: {f'{wrong[0]} is ' if items else ''}not one of {', '.join(allowed)}{near}"
    return None


def _owners(key: str) -> list[str]:
    group, _, name = key.partition(".")
    return [
        n.lstrip("_")
        for n, node in settings.NODES.get(group, {}).items()
        if name in {f.name for f in dataclasses.fields(node)}
    ]


def _suggest(
    wrong: str, right: Sequence[str], phrase: str, otherwise: str = "`modeconn fit-curve --cfg job` shows every key."
) -> str:
    """The end of a sentence: a phrase with the nearest right word, or ``otherwise`` where nothing is near."""
    exact = [r for r in right if r.lower() == wrong.lower()]
    near = exact or difflib.get_close_matches(wrong, right, n=1, cutoff=0.5)
    if not near:  # the last part alone may be near: a field given without its group, say
        tails = {k.rsplit(".", 1)[-1]: k for k in reversed(list(right))}
        near = [tails[n] for n in difflib.get_close_matches(wrong.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.6)]
    return f"; {phrase.format(near[0]) if near else otherwise}"


# ---------------------------------------------------------------------------------------------- completing


def complete(words: Sequence[str], incomplete: str) -> list[str]:
    """Completions of an override after a command: keys and groups, then their values."""
    key, equals, value = incomplete.partition("=")
    if not equals:
        keys = all_keys(words)
        return [f"{k}=" for k in keys if k.startswith(key) and ("." in key or "." not in k)] + [
            f"{g}." for g in settings.NODES if g.startswith(key) and "." not in key
        ]
    group, _, name = key.partition(".")
    if key in groups():
        values = groups()[key]
    elif key in REFERENCES:
        bracket = "" if "," in value or key.endswith("init_from") else "["
        values = [bracket + name for name in run_names(Path("outputs"))]
    elif name and group in settings.NODES:
        node = chosen_nodes(words)[group]
        bracket = "" if "," in value else "["
        values = settings.allowed_values(node, name) or [bracket + v for v in settings.allowed_items(node, name)]
    else:
        values = []
    head, comma, tail = value.rpartition(",")
    return [f"{key}={head}{comma}{v}" for v in values if v.startswith(tail)]
