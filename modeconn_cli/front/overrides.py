"""What there is to override: groups, their choices, and the fields of what is chosen."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from modeconn_cli import settings
from modeconn_cli.errors import UserError
from modeconn_cli.nearest import nearest_words
from modeconn_cli.plugins import conf_directories

HERE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """The configuration files: inside an installed wheel, or at the top of a checkout."""
    return HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"


def roots(config_dir: str | None = None) -> list[Path]:
    """Where configuration files are looked for, first things first: the user's, this package's, those of plugins."""
    return [*([Path(config_dir)] if config_dir else []), conf_dir(), *conf_directories()]


def groups(config_dir: str | None = None) -> dict[str, list[str]]:
    """The configuration groups and the choices in each."""
    found: dict[str, list[str]] = {}
    for root in reversed(roots(config_dir)):
        for file in sorted(root.glob("*/*.yaml")):
            if file.parent.name != "paper":  # those describe published tables
                found.setdefault(file.parent.name, []).append(file.stem)
    return found


def quoted(value: str) -> str:
    """A value as an override can hold it, whatever characters it has."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


REFERENCES = ("endpoints.from", "endpoints.init_from", "endpoints.checkpoints", "curve.init_from", "soup.parent")


def quoted_references(override: str) -> str:
    """An override whose references, as RUN@t=0.3 or RUN#2, are quoted: Hydra takes neither = nor # in a value."""
    key, _, value = override.partition("=")
    if key.lstrip("+") not in REFERENCES or "'" in value or '"' in value:
        return override
    return f"{key}=" + re.sub(r"[^\[\],]*[=#][^\[\],]*", lambda m: quoted(m.group().strip()), value)


POINT = re.compile(r"[^=]*@(t|epoch|step)=[^@#=]*")
MEANT = re.compile(r"#|\.(pt|pth|safetensors)$")  # as a network, whether there is one or not


def naming_networks(words: Sequence[str], output_dir: str) -> list[str]:
    """Arguments with those that name networks, as a file, RUN, RUN@t=0.3 or RUN#2, made one override of endpoints.from.

    Raises:
        UserError: an override names endpoints too.
    """
    from modeconn_cli.runs.find import find

    def names_one(word: str) -> bool:
        if "=" in word:
            return bool(POINT.fullmatch(word))
        if MEANT.search(word) or Path(word).exists():
            return True
        try:
            return bool(find(Path(output_dir), word))
        except UserError as error:
            return "fits" in str(error)

    named = [w for w in words if names_one(w)]
    rest = [w for w in words if w not in named]
    if not named:
        return rest
    beside = [o for o in rest if o.startswith(("endpoints.from=", "endpoints.checkpoints=", "endpoints.seeds="))]
    if beside:
        raise UserError(f"{named[0]} names an endpoint, and {beside[0]} names others: drop one of the two.")
    return [f"endpoints.from=[{','.join(quoted(n) for n in named)}]", *rest]


def nearest(wrong: str, right: Sequence[str]) -> str:
    """The part of a sentence that offers the nearest right word; empty where nothing is near."""
    near = nearest_words(wrong.lower(), right, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""


def node_of(group: str, choice: str, config_dir: str | None = None) -> type | None:
    """The schema behind a choice of a group, from the node that its file names first."""
    for root in roots(config_dir):
        file = root / group / f"{choice}.yaml"
        if file.is_file():
            for name, node in settings.nodes().get(group, {}).items():
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
    own = {
        group: choice
        for entry in listed
        if isinstance(entry, dict)
        for group, choice in entry.items()
        if group in settings.nodes()
    }
    return own | dict.fromkeys(settings.outside_groups(), "default")


def with_outside_groups(overrides: Sequence[str]) -> list[str]:
    """Overrides that also choose in every group from outside, which the root configuration does not list."""
    given = list(overrides)
    for group in settings.outside_groups():
        chosen = [i for i, o in enumerate(given) if o.startswith(f"{group}=")]
        for i in chosen:
            given[i] = f"+{given[i]}"
        if not chosen:
            given.append(f"+{group}=default")
    return given


def without_outside_defaults(overrides: Sequence[str]) -> list[str]:
    """Overrides as they were before :func:`with_outside_groups`."""
    added = {f"+{group}=default" for group in settings.outside_groups()}
    chosen = tuple(f"+{group}=" for group in settings.outside_groups())
    return [o.removeprefix("+") if o.startswith(chosen) else o for o in overrides if o not in added]


def chosen_nodes(overrides: Sequence[str], config_dir: str | None = None) -> dict[str, type]:
    """The schema of every group under these overrides."""
    choices = default_choices()
    for override in overrides:
        key, _, value = override.partition("=")
        if key in choices:
            choices[key] = value.split(",")[0]
    return {g: node_of(g, c, config_dir) or next(iter(settings.nodes()[g].values())) for g, c in choices.items()}


def used_nodes(overrides: Sequence[str], config_dir: str | None = None) -> dict[str, list[type]]:
    """The same, but of each choice only what it uses itself: one by its own name, as curve.kind=chain, counts, of a
    shared schema its own class, and of a sweep over several each.
    """
    used = {}
    for group, default in default_choices().items():
        key, nodes = settings.NAMED_BY.get(group), settings.nodes()[group]
        files = _last(overrides, group) or default
        names = _last(overrides, f"{group}.{key}").split(",") if key else []
        made = [settings.choices(group)[n] for n in names if n in settings.choices(group)]
        for file in [] if made else files.split(","):
            node = node_of(group, file, config_dir) or next(iter(nodes.values()))
            made.append(settings.choices(group).get(file, node) if group in settings.SHARED else node)
        used[group] = made
    return used


def _last(overrides: Sequence[str], key: str) -> str:
    """What the last override of a key says; empty where none does."""
    return next((o.partition("=")[2] for o in reversed(overrides) if o.partition("=")[0] == key), "")


def all_keys(overrides: Sequence[str], config_dir: str | None = None) -> list[str]:
    """Every key that can be overridden: seed, the groups, and the fields of what is chosen."""
    fields = [
        f"{g}.{f.name}" for g, node in chosen_nodes(overrides, config_dir).items() for f in dataclasses.fields(node)
    ]
    return ["seed", *groups(config_dir), *fields]


def used_keys(overrides: Sequence[str]) -> list[str]:
    """Every key that makes a difference: seed, the groups, and the fields that what is chosen uses."""
    fields = [
        f"{g}.{f.name}" for g, nodes in used_nodes(overrides).items() for n in nodes for f in dataclasses.fields(n)
    ]
    return ["seed", *groups(), *dict.fromkeys(fields)]
