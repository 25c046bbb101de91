"""The configuration files and the schema behind them: everything composes, every limit holds, presets are right."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_helpers import ROOT, compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from modeconn_cli import described, settings
from modeconn_cli.data.options import Arrays
from modeconn_cli.errors import UserError
from modeconn_cli.families.bezier import BezierCurve
from modeconn_cli.front import compose as launch
from modeconn_cli.front import overrides
from modeconn_cli.models.options import VGG
from modeconn_cli.settings import Config
from modeconn_cli.training.recipe import Optimizer, recipe

CONF = ROOT / "conf"
# Files under paper/ describe published tables; test_reproduce.py composes all that they ask for.
FILES = sorted(p.relative_to(CONF) for p in CONF.glob("*/*.yaml") if p.parent.name != "paper")
CHOICES = [(str(f.parent), f.stem) for f in FILES]
NODES = [(group, name, node) for group, nodes in settings.nodes().items() for name, node in nodes.items()]
FIELDS = [
    pytest.param(group, node, f, id=f"{group}{name}.{f.name}")
    for group, name, node in NODES
    for f in dataclasses.fields(node)
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


composed = functools.cache(compose)


def config_with(group: str, node: Any) -> Config:
    return Config(**{group: node})


# ------------------------------------------------------------------------------------------------- files


def test_the_files_are_found() -> None:
    """Without this, an empty list of files would pass every test below."""
    assert len(FILES) >= 45
    assert {g for g, _ in CHOICES} == {*settings.nodes(), "experiment"}
    assert all((str(f.parent), f.stem) in CHOICES for f in FILES)
    assert overrides.groups() == {g: sorted(c for h, c in CHOICES if h == g) for g, _ in CHOICES}


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=[f"{g}-{c}" for g, c in CHOICES])
def test_every_choice_composes_and_is_within_limits(group: str, choice: str) -> None:
    config = composed(f"{group}={choice}")
    settings.check(config)
    content = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text())
    if group != "experiment":
        node = settings.plain(getattr(config, group))
        for key, value in content.items():
            if key != "defaults":
                assert node[key] == (float(value) if isinstance(node[key], float) else value), key
    else:
        # An experiment is its overrides and nothing hidden besides.
        chosen = {k.removeprefix("override /"): v for entry in content["defaults"] for k, v in entry.items()}
        own = {f"{g}.{k}": v for g, node in content.items() if g != "defaults" for k, v in node.items()}
        assert config == compose(*(f"{k}={v}" for k, v in {**chosen, **own}.items()))


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=[f"{g}-{c}" for g, c in CHOICES])
def test_files_set_known_keys_and_say_what_they_are(group: str, choice: str) -> None:
    text = (CONF / group / f"{choice}.yaml").read_text()
    comments = [line for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    assert comments, "a file says in its first lines what it is"
    content = yaml.safe_load(text)
    if group == "experiment":
        assert "# @package _global_" in text
        assert {*content} - {"defaults"} <= {"seed", *settings.nodes()}
        config = composed(f"{group}={choice}")
        for part in settings.nodes():
            known = {f.name for f in dataclasses.fields(type(getattr(config, part)))}
            assert {*content.get(part, {})} <= known
        return
    node = overrides.node_of(group, choice)
    assert node is not None
    assert {*content} - {"defaults"} <= {f.name for f in dataclasses.fields(node)}
    assert content["defaults"] == [next(n for n, k in settings.nodes()[group].items() if k is node)]


def test_every_group_of_the_schema_has_a_default_choice() -> None:
    assert {*overrides.default_choices()} == {*settings.nodes()}


def test_a_users_file_without_its_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "more" / "dataset").mkdir(parents=True)
    (tmp_path / "more" / "dataset" / "mine.yaml").write_text("name: mine\nsource: digits\n")
    with pytest.raises(UserError) as caught:
        compose("dataset=mine", config_dir=str(tmp_path / "more"))
    assert "_dataset" in str(caught.value)
    assert "\n" not in str(caught.value)


def through_main(overrides: list[str], sweep: bool) -> Any:
    """The jobs that Hydra's own main composes, or what is said of them."""
    found: list[Any] = []

    def keep(cfg: Any) -> None:
        try:
            outcome: Any = launch.to_config(cfg)
        except UserError as error:
            outcome = str(error)
        found.append((list(HydraConfig.get().overrides.task), outcome))

    try:
        launch.run_hydra(keep, [*overrides, "hydra.sweep.dir=sweep"], ["--multirun"] if sweep else [])
    except UserError as error:
        return str(error)
    return found


@pytest.mark.parametrize(
    ("overrides", "sweep"),
    [
        ("dataset=two_spirals ++seed=3 curve.lr=1e-3 endpoints.seeds=[3,5]", False),
        ("experiment=garipov_vgg16_cifar10 ~curve.lr", False),
        ("architecture=custom architecture.kwargs.width=6,7 endpoints.seeds=[0,1],[2,3]", True),
        ("architecture=mlp,vgg16 seed=range(1,3)", True),
        ("seed=0,1 curve.lr=3", False),
        ("curve=bezier,chain", False),
        ("curve.bends=x,1", True),
        ("+curve.more=1", False),
    ],
)
def test_the_quick_way_composes_what_hydras_main_composes(overrides: str, sweep: bool) -> None:
    given = overrides.split()
    wanted = through_main(given, sweep)
    flags = ["--multirun"] if sweep else []
    if isinstance(wanted, str):
        with pytest.raises(UserError) as caught:
            launch.compose(given, flags)
        assert str(caught.value) == wanted
    else:
        for _ in range(2):  # the second time from what was kept
            jobs = [(j.overrides, j.outcome) for j in launch.compose(given, flags)]
            assert [(o, str(c) if isinstance(c, UserError) else c) for o, c in jobs] == wanted


# ------------------------------------------------------------------------------------------------ schema


@pytest.mark.parametrize(("group", "node", "f"), FIELDS)
def test_every_field_is_documented(group: str, node: type, f: dataclasses.Field[Any]) -> None:
    doc = f.metadata.get("doc", "")
    assert len(doc) >= 5
    assert doc.endswith((".", ")"))
    assert described.describe(node, f.name).startswith(doc)  # type: ignore[union-attr]


def test_the_groups_of_a_config_are_documented() -> None:
    for f in dataclasses.fields(Config):
        assert f.metadata["doc"].endswith(".")
    assert {f.name for f in dataclasses.fields(Config)} == {"seed", *settings.nodes()}


OUTSIDE = {"ge": (-1, 0), "gt": (0, 1), "le": (1, 0), "lt": (0, -1)}  # steps from the bound: outside, inside
LIMITS = [
    pytest.param(group, node, f, bound, id=f"{group}{name}.{f.name}-{bound}")
    for group, name, node in NODES
    for f in dataclasses.fields(node)
    for bound in f.metadata.get("limits", {})
]


def beside(limit: float, steps: int, whole: bool) -> float:
    if steps == 0:
        return limit
    return limit + steps if whole else math.nextafter(limit, math.inf * steps)


@pytest.mark.parametrize(("group", "node", "f", "bound"), LIMITS)
def test_every_limit_is_enforced(group: str, node: type, f: dataclasses.Field[Any], bound: str) -> None:
    limit = f.metadata["limits"][bound]
    kind = settings.kind_of(node, f.name)
    listed = "list" in kind
    whole = "int" in str(f.type)
    outside, inside = (beside(limit, steps, whole) for steps in OUTSIDE[bound])

    def check(value: float) -> None:
        fresh = node()
        if listed and f.name == "betas":
            setattr(fresh, f.name, [0.9, value])
        else:
            setattr(fresh, f.name, [value] if listed else value)
        settings.check(config_with(group, fresh))

    check(inside)
    with pytest.raises(UserError) as caught:
        check(outside)
    message = str(caught.value)
    assert message.startswith(f"{group}.{f.name}=")
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}[bound]
    assert f"{words} {limit if isinstance(limit, int) else f'{limit:g}'}" in message
    assert "\n" not in message


def test_there_are_limits() -> None:
    assert len(LIMITS) > 50
    assert {p.values[3] for p in LIMITS} == {"ge", "gt", "le", "lt"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("key", ["endpoints.lr", "endpoints.weight_decay", "curve.momentum", "curve.warmup_epochs"])
def test_numbers_must_be_finite(key: str, value: float) -> None:
    group, name = key.split(".")
    node = getattr(Config(), group)
    setattr(node, name, value)
    with pytest.raises(UserError, match=key):
        settings.check(config_with(group, node))


ENUMERATED = [
    pytest.param(group, name, node, f.name, id=f"{group}{name}.{f.name}")
    for group, name, node in NODES
    for f in dataclasses.fields(node)
    if described.allowed_values(node, f.name)
]


@pytest.mark.parametrize(("group", "name", "node", "field"), ENUMERATED)
def test_enumerations_take_their_values_and_no_other(group: str, name: str, node: type, field: str) -> None:
    allowed = described.allowed_values(node, field)
    for value in allowed:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(node), OmegaConf.create({field: value})))
        assert str(getattr(made, field)).lower() == value

    def compose_wrong() -> None:
        wrong = OmegaConf.merge(OmegaConf.structured(node), OmegaConf.create({field: "neither"}))
        settings.named_choice(OmegaConf.to_object(wrong), group)  # refuses a name that is no choice of the group

    with pytest.raises((OmegaConfBaseException, UserError)):
        compose_wrong()


@pytest.mark.parametrize(
    "key",
    sorted(
        {
            f"{group}.{f.name}"
            for group, node in ((g, type(getattr(Config(), g))) for g in settings.nodes())
            for f in dataclasses.fields(node)
            if described.allowed_values(node, f.name)
        }
    ),
)
def test_a_wrong_enumeration_is_explained(key: str) -> None:
    group, name = key.split(".")
    with pytest.raises(UserError) as caught:
        compose(f"{key}=neither")
    message = str(caught.value)
    assert message.startswith(f"{key}=neither")
    assert "\n" not in message
    for value in described.allowed_values(type(getattr(Config(), group)), name):
        assert value in message


@pytest.mark.parametrize(
    ("group", "changes", "said"),
    [
        ("curve", {"nesterov": True, "optimizer": Optimizer.adam}, "curve.nesterov"),
        ("endpoints", {"nesterov": True, "momentum": 0.0}, "endpoints.nesterov"),
        ("endpoints", {"betas": [0.9]}, "endpoints.betas"),
        ("curve", {"milestones": [0.75, 0.5]}, "curve.milestones"),
        ("curve", {"warmup_epochs": 100.0}, "curve.warmup_epochs"),
        ("curve", {"warmup_epochs": 10.0, "epochs": 10}, "curve.warmup_epochs"),
        ("endpoints", {"keep_epochs": [0, 61]}, "endpoints.keep_epochs"),
    ],
)
def test_what_only_several_fields_can_say(group: str, changes: dict[str, Any], said: str) -> None:
    node = dataclasses.replace(getattr(Config(), group), **changes)
    with pytest.raises(UserError, match=said):
        settings.check(config_with(group, node))


def test_defaults_pass_their_own_check() -> None:
    for group, _, node in NODES:
        settings.check(config_with(group, node()))
    last = dataclasses.replace(Config().endpoints, epochs=10, keep_epochs=[10], warmup_epochs=9.5)
    settings.check(config_with("endpoints", last))


# ----------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize("experiment", sorted(c for g, c in CHOICES if g == "experiment" and c.startswith("garipov")))
def test_garipovs_recipes_have_the_published_numbers(experiment: str) -> None:
    """Garipov et al. 2018, appendix A.1 and their code's commands."""
    _, network, dataset = experiment.split("_")
    config = composed(f"experiment={experiment}")
    endpoints, curve = config.endpoints, config.curve
    published = {
        "vgg16": ((200, 0.05, 5e-4), (600, 0.015, 5e-4)),
        "preresnet110": ((150, 0.1, 3e-4), (200, 0.03, 3e-4)),
        "preresnet164": ((150, 0.1, 3e-4), (200, 0.03, 3e-4)),
        "wrn28x10": ((200, 0.1, 5e-4), (200, 0.03, 5e-4)),
    }[network]
    assert ((endpoints.epochs, endpoints.lr, endpoints.weight_decay), (curve.epochs, curve.lr, curve.weight_decay)) == (
        published
    )
    for training in (endpoints, curve):
        assert (training.batch_size, training.momentum, training.nesterov) == (128, 0.9, False)
        assert (training.optimizer, training.schedule, training.schedule_every) == ("sgd", "garipov", "epoch")
        assert (training.label_smoothing, training.warmup_epochs, training.precision) == (0, 0, "float32")
    assert (curve.kind, curve.bends, curve.fix_start, curve.fix_end) == ("bezier", 1, True, True)
    assert curve.t_sampling == "uniform"
    assert config.interpolation.points == 61
    assert config.interpolation.train_examples is None
    assert (config.dataset.source, config.architecture.name) == (dataset, network)
    assert (config.dataset.crop_padding, config.dataset.flip) == (4, True)
    depths = {"vgg16": 16, "preresnet110": 110, "preresnet164": 164, "wrn28x10": 28}
    assert config.architecture.depth == depths[network]  # type: ignore[attr-defined]
    if network == "wrn28x10":
        assert config.architecture.widen == 10  # type: ignore[attr-defined]
    if network == "vgg16":
        assert not config.architecture.batch_norm  # type: ignore[attr-defined]
        assert config.dataset.mean == [0.485, 0.456, 0.406]
    else:
        assert config.dataset.mean == [0.4914, 0.4822, 0.4465]


# ---------------------------------------------------------------------------------------------- identity


def test_defaults_are_left_out_of_the_identity() -> None:
    for _, _, node in NODES:
        kept = settings.fields_off_default(node())
        assert kept == {}
    assert recipe(BezierCurve()) == {}


def test_what_differs_from_its_default_is_kept_as_plain_json() -> None:
    curve = BezierCurve(lr=0.2, kind="chain", betas=[0.8, 0.9], epochs=100)
    assert settings.fields_off_default(curve) == {"lr": 0.2, "kind": "chain", "betas": [0.8, 0.9]}
    assert recipe(curve) == {"lr": 0.2, "betas": [0.8, 0.9]}
    json.dumps(settings.fields_off_default(curve))


def test_labels_and_places_are_no_identity() -> None:
    dataset = Arrays(name="other", data_dir="/a", download=True, path="/b", split_seed=3)
    assert settings.fields_off_default(dataset) == {"split_seed": 3}
    assert settings.fields_off_default(VGG(name="other")) == {}


# A digest leaves defaults out, so the defaults are part of what every digest means.
FINGERPRINTS = {
    "dataset/_dataset": "c08e2b29da2caef4",
    "dataset/_two_spirals": "59f66e664e29af3b",
    "dataset/_arrays": "e8b4813220899688",
    "dataset/_custom": "569be95783febc9b",
    "task/_task": "5dc1e849e964e8eb",
    "task/_regress": "86353c6336fc2a9b",
    "task/_custom": "24dbe8915def7842",
    "architecture/_mlp": "b853a47a268dd498",
    "architecture/_convfc": "49ee717cd1f2cff3",
    "architecture/_vgg": "623ab57d6d0e914d",
    "architecture/_resnet": "bfd0a626756792ef",
    "architecture/_preresnet": "b195c55072b964c0",
    "architecture/_wrn": "4fc8f36613e84ac0",
    "architecture/_vit": "9d3fb35e903b0e4e",
    "architecture/_torchvision": "16ee61b22d41ce86",
    "architecture/_custom": "5e1c85b019b60bc5",
    "endpoints/_endpoints": "8c2f443f21c6c655",
    "curve/_bezier": "5826bdd1379aae5a",
    "curve/_chain": "81800b9ffaba4b07",
    "curve/_custom": "90b5ec789cc74661",
    "interpolation/_interpolation": "6114d12938662074",
    "rebasin/_rebasin": "e762c078bfe70a62",
    "rebasin/_none": "9cc44150cb22763f",
    "rebasin/_weight": "ab15a219c7102f3a",
    "rebasin/_activation": "68e6499543e95dd2",
    "rebasin/_straight_through": "acb3fb67e1cfb3e8",
    "rebasin/_sinkhorn": "29c3e9d96dca4ae1",
    "rebasin/_merge_many": "da7a45bdd8eece9a",
    "rebasin/_c2m3": "50a11d71cfd9c7b9",
    "rebasin/_custom": "fd075ca6a4e31b42",
    "pipeline/_pipeline": "07406eeaceb06ad5",
    "fge/_fge": "9508d1a786d07704",
    "ensemble/_ensemble": "3d9c30cf7c2bdc94",
    "soup/_soup": "c20d049d53671986",
    "soup/_uniform": "c04c865a31223022",
    "soup/_greedy": "46a11f0c07281445",
    "soup/_least_squares": "0b2ef7d5be45b60f",
    "soup/_learned": "5f127d52f90ffc8a",
    "soup/_task_arithmetic": "5b665e452703ff8c",
    "soup/_ties": "2798759499c9c8ec",
    "soup/_dare": "5c0cf19cedcfaec3",
    "soup/_slerp": "ac89e6d79052480b",
    "soup/_all": "80587b5181b11190",
    "snapshot/_snapshot": "a557c15c9a5ebab0",
    "swa/_swa": "ba58fa47ab50c76e",
    "swag/_swag": "f0440227d3e07192",
    "budgets/_budgets": "94a787faa534b4b6",
    "uncertainty/_uncertainty": "d43098fd9f22b5ae",
    "runtime/_runtime": "3566fa39d90ca715",
}


@pytest.mark.parametrize(("group", "name", "node"), NODES, ids=[f"{g}{n}" for g, n, _ in NODES])
def test_defaults_are_what_digests_take_them_for(group: str, name: str, node: type) -> None:
    text = json.dumps(settings.plain(node()), sort_keys=True)
    assert FINGERPRINTS.get(f"{group}/{name}") == hashlib.sha256(text.encode()).hexdigest()[:16], (
        "a default changed, so old digests would name other results: raise the VERSION of the stages concerned, "
        f"then update this fingerprint (a field that was only added changes no digest: update it alone); now {text}"
    )


def test_plain_is_json() -> None:
    content = json.loads(json.dumps(settings.plain(Config())))
    assert content["curve"]["kind"] == "bezier"
    assert content["endpoints"]["betas"] == [0.9, 0.999]
    assert not any(isinstance(v, Enum) for v in content["curve"].values())
