"""The documentation is true: every command in it runs, every setting, default, command and link in it exists.

A command runs in a directory with stand-ins for the files that the pages speak of, on settings made small: sweeps are
cut to two values, training to an epoch, and what names a paper's recipe or a large network is planned with --dry-run. A
command for which no rule here fits fails.
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from cli_helpers import BIN, QUICK, ROOT, call, no_pictures, ok, refused
from safetensors.torch import save_file
from test_data import IDX_FILES, cifar_pickles, idx_bytes, write_folder

from modeconn_cli import cli, plugins, settings
from modeconn_cli.errors import UserError
from modeconn_cli.front import compose as launch
from modeconn_cli.front import overrides
from modeconn_cli.settings import plain
from modeconn_cli.torchvision_compat import import_torchvision
from modeconn_cli.work.command import COMMANDS as REQUESTS
from modeconn_cli.work.context import Context
from modeconn_cli.work.reporting import Silent

plugins.load()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDE = ROOT / "docs" / "own-network.md"
# Its files, with groups and settings of their own, are made and its commands run by test_outside.py.
OUTSIDE = ROOT / "docs" / "extending.md"

# ----------------------------------------------------------------------------------------------- reading pages

COMMANDS, OTHERS = ("", "sh", "bash"), ("text", "python", "yaml")
MENTION = re.compile(r"(?<![\w./-])(?:modeconn\s|scripts/\w+\.sh)")
INSIDE = re.compile(r"\$\((modeconn [^()]*)\)")
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    page: Path
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(page, language.strip(), text) for language, text in found]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def words_of(line: str) -> list[str]:
    """The words of a shell line's first command: up to a pipe, a redirection or a comment, without assignments.

    Raises ValueError where it is neither modeconn nor one of the scripts.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>;&")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|>;&"):
            break
        words.append(word)
    while words and ASSIGNMENT.match(words[0]):
        words.pop(0)
    if not words or not (words[0] == "modeconn" or MENTION.match(words[0])):
        raise ValueError(f"no rule for this line of the documentation: {line}")
    return words


def commands_of(block: Block) -> list[tuple[str, ...]]:
    """Every command line of modeconn and of the scripts in a block, those inside $(...) too."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        inside = INSIDE.findall(line)
        found += [tuple(words_of(part)) for part in inside]
        if not inside and MENTION.search(line.partition(" #")[0]):
            found.append(tuple(words_of(line)))
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
LINES = list(dict.fromkeys(words for b in BLOCKS if b.language in COMMANDS for words in commands_of(b)))


def test_every_block_is_of_a_known_kind_and_commands_stand_where_they_are_run() -> None:
    assert {b.language for b in BLOCKS} <= {*COMMANDS, *OTHERS}
    elsewhere = [b for b in BLOCKS if b.language in OTHERS and b.page != OUTSIDE]
    hidden = [line for b in elsewhere for line in b.text.splitlines() if MENTION.match(line)]
    assert hidden == []
    assert len(LINES) > 50


def test_a_line_that_no_rule_fits_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match="no rule"):
        commands_of(Block(GUIDE, "", "nohup modeconn fit-curve\n"))
    with pytest.raises(ValueError, match="no rule"):
        small(["modeconn", "conjure", "seed=1"])
    lines = 'A=1 modeconn doctor > x  # "a\ncd "$(modeconn runs path ab)"\nmodeconn run \\\n  \'a=[0,1]\' | wc\n'
    assert commands_of(Block(GUIDE, "", lines)) == [
        ("modeconn", "doctor"),
        ("modeconn", "runs", "path", "ab"),
        ("modeconn", "run", "a=[0,1]"),
    ]


# ------------------------------------------------------------------------------------------------- made small

AS_IT_IS = ("plot", "report", "export", "gather", "symmetries", "runs", "doctor", "completion", "--help", "--version")
PLACEHOLDERS = {"curve.epochs=E": "curve.epochs=20"}
LARGE = re.compile(r"experiment=|architecture=(vgg|preresnet|wrn|resnet(32|44|56|110)|vit|torchvision)")
CYCLIC = ("budgets", "fge", "snapshot", "swa", "swag")
RESNET = re.compile(r"(architecture=)?resnet\d+(_conv)?")
IN_TWO_PARTS = ("izmailov2018-swa", "garipov2018-fge")  # tables of what CYCLIC are
FROM_FILES = ("fashion_mnist", "mnist", "kmnist", "cifar", "svhn")


def shallow(words: Sequence[str]) -> list[str]:
    """What makes a small ResNet of one that a command names, where it says neither depth nor width."""
    if not any(RESNET.fullmatch(w) for w in words):
        return []
    settings = {"architecture.depth": "8", "architecture.width": "0.25"}
    return [f"{k}={v}" for k, v in settings.items() if not any(w.startswith(f"{k}=") for w in words)]


def small(words: Sequence[str]) -> list[str]:
    """A documented command as it is run here. Raises ValueError for one that no rule fits."""
    given = [PLACEHOLDERS.get(w, w) for w in words]
    name, *rest = given if given[0] != "modeconn" else given[1:]
    if name in AS_IT_IS:
        return [name, *rest]
    if name == "scripts/sweep_seeds.sh":
        return [name, "0 1", *rest[1:], *QUICK, "dataset.train_size=200"]
    if name == "reproduce" and "--list" not in rest:
        scale = rest[rest.index("--scale") + 1] if "--scale" in rest else "full"
        if rest.count("--row") > 1:
            rest = rest[: rest.index("--row", rest.index("--row") + 1)]
        return [
            name,
            *rest,
            *{
                "smoke": [*QUICK, "endpoints.epochs=10"] if rest[0] in IN_TWO_PARTS else QUICK,
                "small": ["dataset.train_size=8", "--dry-run"],
            }.get(scale, ["--dry-run"]),
            *(["--row", "vgg11"] if name == "reproduce" and rest[0] == "jordan2022-repair" else []),
        ]
    if name == "reproduce":
        return [name, *rest]
    if name == "connect":
        return [name, *rest, *QUICK, *shallow(rest)]
    if name not in REQUESTS:
        raise ValueError(f"no rule for this command of the documentation: {' '.join(words)}")
    if {"--cfg", "--info", "--dry-run"} & {*rest}:
        return [name, *rest]
    if "-m" in rest or "--multirun" in rest:
        rest = [re.sub(r"^([\w./]+=[^,\[\]]+,[^,\[\]]+),.*", r"\1", w) for w in rest]
    if any(LARGE.match(w) for w in rest):
        return [name, *rest, "--dry-run"]
    less = re.compile(r"endpoints.warmup_epochs=|dataset.(train|validation)_size=\d{4}")  # there is less
    rest = [w for w in rest if not less.match(w)]
    rest = [w for w in rest if w != "architecture.width=4"] + shallow(rest)  # of a ResNet: sixteen times the work
    settings = [s for s in QUICK if not (s == "endpoints.epochs=1" and any("keep_" in w for w in rest))]
    if name in CYCLIC:  # which want an end of the training to be cyclic in
        epochs = 40 if name == "budgets" else 20
        settings = [s.replace("endpoints.epochs=1", f"endpoints.epochs={epochs}") for s in settings]
        settings += ["pipeline.replicates=[0]"] if name == "budgets" else []
    if not any(w.startswith(f"dataset={source}") for w in rest for source in FROM_FILES):
        settings.append("dataset.train_size=200")
    if name == "rebasin" or any(w.startswith("rebasin=") for w in rest):
        settings += ["rebasin.restarts=0", "rebasin.steps=5"]
    if "hydra.launcher.n_jobs" in " ".join(rest):
        settings.append("hydra.launcher.n_jobs=2")
    return [name, *rest, *settings]


def launcher(words: Sequence[str]) -> str:
    return next((w.partition("=")[2] for w in words if w.startswith("hydra/launcher=")), "basic")


def check_launcher(words: Sequence[str]) -> None:
    """Compose the launcher's own settings, which modeconn looks at only when it launches."""
    import hydra

    launch.register_nodes()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(overrides.conf_dir())):
        hydra.compose("config", [w for w in words if w.startswith("hydra")], return_hydra_config=True)


# ----------------------------------------------------------------------------------------------------- sandbox


def python_files() -> dict[str, str]:
    """The guide's Python blocks, by the file name in their first line."""
    texts = [b.text for b in blocks(GUIDE) if b.language == "python"]
    return {text.split("\n")[0].removeprefix("# "): text for text in texts}


def forget_modules() -> None:
    """Another sandbox has its own."""
    for name in [n for n in sys.modules if n.partition(".")[0] in ("nets", "models", "make_data")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the guide's own files, run as it says: nets.py, data.npz, a.pt, b.safetensors."""
    folder = tmp_path_factory.mktemp("guide")
    for name, text in python_files().items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        runpy.run_path("make_data.py", run_name="__main__")
        runpy.run_path("save.py", run_name="__main__")
    forget_modules()
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    models = folder / "models"  # stands for another repository's package
    models.mkdir()
    (models / "__init__.py").write_text("")
    (models / "vgg.py").write_text(
        "from torch import nn\n\n"
        "def VGGBase(num_classes, depth=16, batch_norm=False):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten(), nn.Linear(4, num_classes))\n"
    )
    return folder


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files in the formats of MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and UCI's yacht."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for folder in ("mnist", "fashion_mnist"):
        (root / folder).mkdir()
        for name, n in zip(IDX_FILES, (30, 30, 20, 20), strict=True):
            array = random.integers(0, 256, (n, 28, 28)) if "images" in name else np.arange(n) % 10
            (root / folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array.astype(np.uint8))))
    (root / "cifar10").mkdir()
    write_folder(root / "cifar10" / "cifar-10-batches-py", cifar_pickles(10, 2))
    (root / "cifar100").mkdir()
    write_folder(root / "cifar100" / "cifar-100-python", cifar_pickles(100, 2))
    (root / "yacht").mkdir()
    np.savetxt(root / "yacht" / "yacht.data", random.normal(size=(308, 7)))
    return root


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs, for the commands that look at some: two replicates on digits."""
    root = tmp_path_factory.mktemp("lab") / "outputs"
    settings = [*QUICK, "dataset.train_size=200", f"runtime.output_dir={root}"]
    with pytest.MonkeyPatch.context() as patch:
        no_pictures(patch)
        ok("run", "pipeline.replicates=[0,1]", *settings, "-q")
    return root


@pytest.fixture
def sandbox(guide: Path, datasets: Path, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of one documented command."""
    place = tmp_path / "here"
    shutil.copytree(guide, place)
    shutil.copytree(lab, place / "outputs")
    (curve,) = lab.glob("fit-curve/*s0-1*/v1/checkpoint.safetensors")
    shutil.copy(curve, place / "curve.safetensors")
    monkeypatch.chdir(place)
    monkeypatch.setenv("MODECONN_DATA", str(datasets))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield place
    forget_modules()


def without_test_split(file: Path) -> None:
    with np.load(file) as arrays:
        train = {k: arrays[k] for k in ("x_train", "y_train")}
    np.savez(file, **train)


def network(words: Sequence[str]) -> list[str]:
    """The overrides that choose the network and the data set of a command."""
    if words[0] != "connect":
        return [w for w in words if w.startswith(("architecture", "dataset"))]
    model, data = (words[words.index(option) + 1] for option in ("--model", "--data"))
    chosen = ["architecture=custom", f"architecture.target={model}"] if ":" in model else [f"architecture={model}"]
    chosen += [w for w in words if w.startswith("architecture.")]
    return [*chosen, *(["dataset=arrays", f"dataset.path={data}"] if data.endswith(".npz") else [f"dataset={data}"])]


def write_checkpoints(words: Sequence[str]) -> None:
    """Every checkpoint that a command names, of the network that it names."""
    names = [n for w in words if "init_from" not in w for n in re.findall(r"[\w-]+\.(?:pt|safetensors)\b", w)]
    if words[0] == "export" or not names or any("nets.py:Net" in w for w in words):  # those are the guide's own
        return
    (job,) = launch.compose(network(words))
    context = Context(job.config, Silent())
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        state = context.module().state_dict()
        save_file(state, name) if name.endswith(".safetensors") else torch.save({"model_state": state}, name)


def narrow_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torchvision's ViT-B/16, of 86 million weights, of two narrow layers."""
    made = import_torchvision().models.vision_transformer
    whole, few = made._vision_transformer, {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    monkeypatch.setattr(made, "_vision_transformer", lambda **options: whole(**options | few))


@pytest.mark.parametrize("line", LINES, ids=[" ".join(words)[:110] for words in LINES])
def test_a_documented_command_runs(line: tuple[str, ...], sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = small(line)
    if words[0].startswith("scripts/"):
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        env = {**os.environ, "PATH": path, "PYTHONPATH": paths}
        done = subprocess.run([str(ROOT / words[0]), *words[1:]], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return
    if any("dataset.test_size" in w for w in words):
        without_test_split(sandbox / "data.npz")
    write_checkpoints(words)
    if words[0] != "plot":
        no_pictures(monkeypatch)
    if "architecture.model=vit_b_16" in words:
        narrow_vit(monkeypatch)
    how = launcher(words)
    if how != "basic":
        try:
            launch.launcher_of(words)
        except UserError:  # not installed here: the command has to say how it is
            assert importlib.util.find_spec(f"hydra_plugins.hydra_{how.partition('_')[0]}_launcher") is None
            assert "pip install 'modeconn[" in refused(*words)
            return
        check_launcher(words)
        if how == "submitit_slurm" and "--dry-run" not in words:  # there is no cluster here
            words.append("--dry-run")
    answer = call(*words)
    assert answer.code == 0, f"modeconn {shlex.join(words)}\n{answer.err}"


# ------------------------------------------------------------------------------- settings, commands, links

GROUPS = "|".join(settings.nodes())
KEY = re.compile(rf"(?<![\w/.-])({GROUPS})\.([a-z]\w*)")
CHOICE = re.compile(rf"(?<![\w/.-])({GROUPS}|experiment)=([a-z]\w*)")
ENDINGS = ("py", "pt", "csv", "npz", "md", "json", "yaml", "safetensors", "png")


def fields(group: str) -> dict[str, dataclasses.Field[Any]]:
    """The settings of a group, whatever is chosen in it; with the default choice's defaults where it has them."""
    nodes = [*settings.nodes()[group].values(), overrides.chosen_nodes([])[group]]
    return {f.name: f for node in nodes for f in dataclasses.fields(node)}


def code_of(page: Path) -> list[str]:
    """A page's code spans, and its code blocks but for those that speak of what is not this package's."""
    inside = [b.text for b in blocks(page) if b.language != "python" and page != OUTSIDE]
    return [*re.findall(r"`([^`\n]+)`", prose(page)), *inside]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_setting_and_choice_in_a_page_exists(page: Path) -> None:
    code = code_of(page)
    keys = {k for text in code for k in KEY.findall(text) if k[1] not in ENDINGS}
    assert sorted(f"{group}.{key}" for group, key in keys if key not in fields(group)) == []
    choices = {c for text in code for c in CHOICE.findall(text)}
    assert sorted(f"{group}={name}" for group, name in choices if name not in overrides.groups()[group]) == []


def default_of(group: str, key: str) -> str:
    """A setting's default as the pages write it."""
    f = fields(group)[key]
    value = plain(f.default_factory() if callable(f.default_factory) else f.default)
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value).replace(" ", "")


ROW = re.compile(rf"^\| `({GROUPS})\.(\w+)` \| ([^|]*) \|", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_default_in_a_table_is_the_default(page: Path) -> None:
    tables = re.findall(r"^\| setting \| default \|.*?(?=^\n|\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    rows = [row for table in tables for row in ROW.findall(table)]
    assert [(f"{g}.{k}", said) for g, k, said in rows if said != default_of(g, k)] == []
    assert not tables or rows


def command_names() -> list[str]:
    """Every command, those of `runs` with it in front."""
    root: Any = typer.main.get_command(cli.app)
    names = []
    for name, command in root.commands.items():
        if not command.hidden:
            names += [f"{name} {inner}" for inner in getattr(command, "commands", {})] or [name]
    return names


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    listed = " ".join(re.findall(r"`modeconn runs ([\w /]+)`", text)).replace("/", " ").split()
    missing = [
        name
        for name in command_names()
        if (name.split()[1] not in listed if name.startswith("runs ") else f"modeconn {name}" not in text)
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_in_a_page_exists(page: Path) -> None:
    named = {
        m for code in re.findall(r"`([^`\n]+)`", prose(page)) for m in re.findall(r"^modeconn ([a-z][\w-]*)", code)
    }
    assert sorted(named - {name.split()[0] for name in command_names()}) == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "outputs" / "README.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    broken = [t for t in targets if ":" not in t and not (page.parent / t.partition("#")[0]).exists()]
    assert broken == []


def test_the_readme_links_to_every_page() -> None:
    linked = {(ROOT / t).resolve() for t in re.findall(r"\]\((docs/[^)\s#]+)", (ROOT / "README.md").read_text())}
    assert [str(p.relative_to(ROOT)) for p in PAGES[1:] if p.resolve() not in linked] == []
