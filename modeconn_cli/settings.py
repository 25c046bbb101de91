"""What can be configured: how an option is declared, the registry of choices, ranges, the whole.

A group of options is a dataclass. A group with choices, such as ``architecture``, has a dataclass for each, registered
in the file that implements it:

    @choice("curve", "bezier")
    @dataclass
    class Bezier(Curve):
        bends: int = option(1, "Control points between the ends.", ge=1)

``conf/<group>/<name>.yaml`` names it as ``_<name>`` and Hydra composes that file over it, so a value of the wrong type
is refused where it is given; :func:`check` then holds each value to its range and the fields to one another.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from modeconn_cli.errors import UserError
from modeconn_cli.nearest import nearest_words

if TYPE_CHECKING:
    from modeconn_cli.data.options import Dataset
    from modeconn_cli.evaluation.options import Budgets, Ensemble, Interpolation, Uncertainty
    from modeconn_cli.families.options import Curve
    from modeconn_cli.matching.options import Rebasin
    from modeconn_cli.merging.options import Soup
    from modeconn_cli.models.options import Architecture
    from modeconn_cli.tasks.options import TaskBase
    from modeconn_cli.training.cycles import FGE, SWA, SWAG, Snapshot
    from modeconn_cli.training.recipe import Endpoints
    from modeconn_cli.work.options import Pipeline, Runtime

T = TypeVar("T")


def option(
    default: Any,
    doc: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    identity: bool = True,
    names: str | None = None,
) -> Any:
    """A documented field with an optional range; lists and dictionaries hold it for each of their items.

    identity: whether the result depends on it. Labels, places and what only asks about a finished result do not take
    part in a digest. names: the group whose choices are its values.
    """
    limits = {k: v for k, v in {"ge": ge, "gt": gt, "le": le, "lt": lt}.items() if v is not None}
    metadata = {"doc": doc, "limits": limits, "identity": identity, "names": names}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# ------------------------------------------------------------------------------------------- groups and choices

# Which module registers the choices of a group; of a package, all its modules do.
ROOMS = {
    "dataset": "modeconn_cli.data.options",
    "architecture": "modeconn_cli.models.options",
    "task": "modeconn_cli.tasks.options",
    "endpoints": "modeconn_cli.training.recipe",
    "curve": "modeconn_cli.families",
    "interpolation": "modeconn_cli.evaluation.options",
    "rebasin": "modeconn_cli.matching.options",
    "ensemble": "modeconn_cli.evaluation.options",
    "soup": "modeconn_cli.merging.options",
    **dict.fromkeys(("fge", "snapshot", "swa", "swag"), "modeconn_cli.training.cycles"),
    "uncertainty": "modeconn_cli.evaluation.options",
    "budgets": "modeconn_cli.evaluation.options",
    "pipeline": "modeconn_cli.work.options",
    "runtime": "modeconn_cli.work.options",
}
# The field of a group that names its choice; a class registered by @choice has its own name there.
NAMED_BY = {
    "dataset": "source",
    "architecture": "family",
    "curve": "kind",
    "rebasin": "method",
    "soup": "method",
    "task": "kind",
}
# Groups whose choices can be told apart from their options: what is set for another choice is left aside, and one
# schema, _<group>, has the options of all. By the name of its class.
SHARED = {"rebasin": "AnyRebasin", "soup": "AnySoup"}
CHOICES: dict[str, dict[str, type]] = {}


def choice(group: str, *names: str) -> Callable[[type[T]], type[T]]:
    """Register a dataclass as a choice of a group, under one name or several.

    The first name becomes the default of the field that names the group's choice, so that choosing a class is enough.
    """

    def register(cls: type[T]) -> type[T]:
        key = NAMED_BY.get(group)
        if key is not None:
            named = field(default=names[0], metadata=cls.__dataclass_fields__[key].metadata)  # type: ignore[attr-defined]
            like = {k: getattr(cls, k) for k in ("__module__", "__qualname__", "__doc__")}
            cls = dataclass(type(cls.__name__, (cls,), {**like, "__annotations__": {key: "str"}, key: named}))
        CHOICES.setdefault(group, {}).update(dict.fromkeys(names, cls))
        return cls

    return register


def choices(group: str) -> dict[str, type]:
    """The registered choices of a group, those of this package imported first."""
    if group in ROOMS:
        _import_room(ROOMS[group])
    return CHOICES.get(group, {})


@cache
def _import_room(name: str) -> None:
    """Import a module, and all modules of a package, once: a configuration asks for choices over and over."""
    room = importlib.import_module(name)
    for module in pkgutil.iter_modules(getattr(room, "__path__", [])):
        importlib.import_module(f"{room.__name__}.{module.name}")


def named_choice(node: Any, group: str) -> Any:
    """A group's options as the class that they name: ``curve.kind=chain`` makes a Chain of any curve's options.

    Raises:
        UserError: the name is not registered, or an option that was set is none of that class's.
    """
    key = NAMED_BY.get(group)
    if key is None or not choices(group):
        return node
    name = str(getattr(node, key))
    if name not in CHOICES[group]:
        there_are = f"here are {', '.join(CHOICES[group])}."
        near = nearest_words(name, CHOICES[group], cutoff=0.5)
        offer = f"did you mean {group}.{key}={near[0]}? T{there_are}" if near else f"t{there_are}"
        raise UserError(f"{group}.{key}={name}: no such choice; {offer}")
    cls = CHOICES[group][name]
    return node if type(node) is cls else _as(cls, node, group, name)


def rechosen(node: Any, group: str, name: str) -> Any:
    """The same options of a shared group under another choice; what was left aside for it counts."""
    return _as(choices(group)[name], node, group, name)


def _as(cls: type, node: Any, group: str, name: str) -> Any:
    key = NAMED_BY[group]
    known = {f.name for f in dataclasses.fields(cls)}
    given = {f.name: getattr(node, f.name) for f in dataclasses.fields(node) if getattr(node, f.name) != _default(f)}
    given |= {**getattr(node, "aside", {}), key: name}
    foreign = [k for k in given if k not in known]
    if foreign and group not in SHARED:
        raise UserError(f"{group}.{foreign[0]}: {group}.{key}={name} has no such field.")
    made = cls(**{k: v for k, v in given.items() if k in known})
    if foreign:
        made.aside = {k: given[k] for k in foreign}
    return made


def _default(f: dataclasses.Field[Any]) -> Any:
    # Not "is MISSING": in a class that another process was sent, what is missing is a copy of it.
    return f.default_factory() if callable(f.default_factory) else f.default


def keyword_option(name: str, kind: str, default: Any, doc: str) -> Callable[[type[T]], type[T]]:
    """A class with an option whose name is a keyword of Python, which no field can be declared by; before @dataclass.

    It is set and read with setattr and getattr, and left out of what a dataclass writes in Python for its fields.
    """

    def add(cls: type[T]) -> type[T]:
        metadata = option(default, doc).metadata
        cls.__annotations__ = {**inspect.get_annotations(cls), name: kind}
        setattr(cls, name, field(default=default, init=False, repr=False, compare=False, metadata=metadata))
        return cls

    return add


LARGEST_SEED = 2**31 - 1
LARGEST_NUMBER = 3.4e38  # of float32


class Name(StrEnum):
    """An enumeration whose members print as they are typed."""


# -------------------------------------------------------------------------------------------------- the whole


def _group(group: str, name: str, doc: str) -> Any:
    """A field with a group's options; one of its choices where none are given."""
    return field(default_factory=lambda: choices(group)[name](), metadata={"doc": doc})


@dataclass
class Config:
    """A whole composed configuration. `seed` is the replicate: see Endpoints.seeds."""

    seed: int = option(
        0, "Replicate: endpoints 2*seed and 2*seed+1, and the curve's own randomness.", ge=0, le=LARGEST_SEED // 2
    )
    dataset: Dataset = _group("dataset", "digits", "What the networks learn.")
    architecture: Architecture = _group("architecture", "mlp", "The network.")
    task: TaskBase = _group("task", "auto", "What is learnt, and when a path connects.")
    endpoints: Endpoints = _group("endpoints", "endpoints", "How endpoints are trained, or where they come from.")
    curve: Curve = _group("curve", "bezier", "The curve between them and how it is trained.")
    interpolation: Interpolation = _group("interpolation", "interpolation", "How a path is evaluated.")
    rebasin: Rebasin = _group("rebasin", "none", "Whether and how the second endpoint is permuted first.")
    ensemble: Ensemble = _group("ensemble", "ensemble", "How averaged predictions are judged.")
    budgets: Budgets = _group("budgets", "budgets", "What is compared at equal cost.")
    fge: FGE = _group("fge", "fge", "Fast geometric ensembling.")
    soup: Soup = _group("soup", "uniform", "How several networks are made one.")
    snapshot: Snapshot = _group("snapshot", "snapshot", "Snapshot ensembling.")
    swa: SWA = _group("swa", "swa", "Stochastic weight averaging.")
    swag: SWAG = _group("swag", "swag", "SWA-Gaussian.")
    uncertainty: Uncertainty = _group("uncertainty", "uncertainty", "What is asked about inputs along a path.")
    pipeline: Pipeline = _group("pipeline", "pipeline", "What `modeconn run` runs it over.")
    runtime: Runtime = _group("runtime", "runtime", "Where and how it runs; never changes a run's identity.")


def nodes_of(group: str) -> dict[str, type]:
    """Hydra nodes of a group with choices: a class of one name is called by it, a class of several by the group.

    A class that adds no option to one that it derives from has that one's node.
    """
    names: dict[type, list[str]] = {}
    registered = {*choices(group).values()}
    for name, cls in choices(group).items():
        like = [
            c for c in cls.__mro__ if c in registered and len(dataclasses.fields(c)) == len(dataclasses.fields(cls))
        ]
        names.setdefault(like[-1], []).append(name)
    own = {f"_{several[0] if len(several) == 1 else group}": cls for cls, several in names.items()}
    return {f"_{group}": _options_of_all(group, tuple(names)), **own} if group in SHARED else own


@cache
def _options_of_all(group: str, classes: tuple[type, ...]) -> type:
    """A dataclass with the options of several, each as the first that has it declares it, and said whose it is."""
    owners: dict[str, list[tuple[type, Any]]] = {}
    for cls in classes:
        for f in dataclasses.fields(cls):
            owners.setdefault(f.name, []).append((cls, f))
    made = []
    for name, found in owners.items():
        cls, first = found[0]
        if len({str(get_type_hints(c)[name]) for c, _ in found}) > 1:
            raise UserError(f"{group}.{name} is {kind_of(cls, name)} elsewhere: give the option of yours another name.")
        of: dict[str, list[str]] = {}
        for c, f in found:
            of.setdefault(f.metadata["doc"], []).append(str(getattr(c(), NAMED_BY[group])))
        doc = " ".join(f"{', '.join(names)}: {text}" for text, names in of.items())
        metadata = first.metadata if len(found) == len(classes) else {**first.metadata, "doc": doc}
        default: Any = {k: getattr(first, k) for k in ("default", "default_factory")}
        made.append((name, get_type_hints(cls)[name], field(**default, metadata=metadata)))
    whole = dataclasses.make_dataclass(SHARED[group], made)
    whole.__module__ = __name__
    return whole


def __getattr__(name: str) -> type:
    """A shared group's schema by its class's name, by which it is sent to other processes: one sent whole comes back a
    copy, with copies of what dataclasses mark a missing default by."""
    for group, called in SHARED.items():
        if called == name:
            return nodes_of(group)[f"_{group}"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def nodes() -> dict[str, dict[str, type]]:
    """The Hydra nodes of every group, which its YAML files name in their defaults list."""
    own = [f.name for f in dataclasses.fields(Config) if f.name != "seed"]
    groups = [*own, *outside_groups()]
    return {g: nodes_of(g) for g in groups}


def outside_groups() -> list[str]:
    """Groups of settings that came from outside this package, with a stage of their own."""
    own = {f.name for f in dataclasses.fields(Config)}
    return [g for g in CHOICES if g not in own]


def make_config(seed: int, groups: dict[str, Any]) -> Config:
    """A Config of these groups; those from outside this package are fields of it too."""
    outside = [(g, type(groups[g]), field(metadata={"doc": "Settings from outside."})) for g in outside_groups()]
    whole = dataclasses.make_dataclass("Config", outside, bases=(Config,), kw_only=True) if outside else Config
    return whole(seed=seed, **{g: named_choice(node, g) for g, node in groups.items()})


def not_identifying() -> set[str]:
    """The keys (``group.field``) that change no result's identity, names among them."""
    return {
        f"{group}.{f.name}"
        for group, named in nodes().items()
        for node in named.values()
        for f in dataclasses.fields(node)
        if not f.metadata["identity"]
    }


def fields_off_default(node: Any) -> dict[str, Any]:
    """The identifying fields of a config dataclass that differ from its defaults, as plain JSON values.

    Leaving defaults out keeps every digest as it was when a later version adds a field.
    """
    found = {}
    for f in dataclasses.fields(node):
        value = getattr(node, f.name)
        if f.metadata["identity"] and value != _default(f):
            found[f.name] = str(value) if isinstance(value, Enum) else value
    return found


def check(node: Any, prefix: str = "") -> None:
    """Hold every field to its range, and the whole to what one field cannot say.

    Raises UserError naming the key, its value and what is allowed.
    """
    for f in dataclasses.fields(node):
        value, key = getattr(node, f.name), f"{prefix}{f.name}"
        if dataclasses.is_dataclass(value):
            check(value, f"{key}.")
            if isinstance(node, Config) and hasattr(value, "check_together"):
                value.check_together(f.name, node)
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, float) and not math.isfinite(item):
                raise UserError(f"{key}={item} is not a number to work with; give a finite one.")
            if isinstance(item, float) and abs(item) > LARGEST_NUMBER:
                raise UserError(f"{key}={item} is more than a network's numbers hold ({LARGEST_NUMBER:g}); give less.")
            if isinstance(item, int | float) and not isinstance(item, bool):
                _check_range(key, item, f.metadata["limits"])


_RANGES = {
    "ge": ("at least", lambda v, b: v >= b),
    "gt": ("more than", lambda v, b: v > b),
    "le": ("at most", lambda v, b: v <= b),
    "lt": ("less than", lambda v, b: v < b),
}


def _check_range(key: str, value: float, limits: dict[str, float]) -> None:
    if all(_RANGES[k][1](value, bound) for k, bound in limits.items()):
        return
    allowed = " and ".join(
        f"{_RANGES[k][0]} {bound if isinstance(bound, int) else format(bound, 'g')}" for k, bound in limits.items()
    )
    raise UserError(f"{key}={value} is out of range: it must be {allowed}.")


def plain(node: Any) -> Any:
    """A config dataclass as dictionaries, lists, strings and numbers, ready for YAML or JSON."""
    if dataclasses.is_dataclass(node):
        return {f.name: plain(getattr(node, f.name)) for f in dataclasses.fields(node)}
    if isinstance(node, Enum):
        return str(node)
    if isinstance(node, dict):
        return {k: plain(v) for k, v in node.items()}
    return [plain(v) for v in node] if isinstance(node, list | tuple) else node


def kind_of(node: type, key: str) -> str:
    """What a field holds, in words."""
    kind = str(get_type_hints(node)[key])
    for part, words in (
        ("dict", "a dictionary"),
        ("list", "a list, as [0,1]"),
        ("bool", "true or false"),
        ("float", "a number"),
        ("int", "a whole number"),
        ("str'", "text"),
    ):
        if part in kind:
            return words
    return "one of its values"
