"""Commands are declared in the stages' own files: read without importing them, and the same when imported."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import subprocess
import sys
from typing import Any

import pytest

import modeconn_cli.stages
from modeconn_cli import plugins
from modeconn_cli.settings import check, make_config, nodes
from modeconn_cli.work.command import COMMANDS, PANELS, Command, read_declarations
from modeconn_cli.work.plan import ordered
from modeconn_cli.work.stage import Stage


def words(command: Command) -> dict[str, Any]:
    return {f.name: getattr(command, f.name) for f in dataclasses.fields(command) if f.name != "request"}


def test_what_is_read_is_what_importing_registers() -> None:
    plugins.load()
    script = (
        "import json, sys; from modeconn_cli import plugins; from modeconn_cli.work.command import COMMANDS\n"
        "plugins.load(); assert 'torch' not in sys.modules\n"
        "print(json.dumps([{k: v for k, v in vars(c).items() if k != 'request'} for c in COMMANDS.values()]))"
    )
    read = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for module in pkgutil.iter_modules(modeconn_cli.stages.__path__):
        importlib.import_module(f"modeconn_cli.stages.{module.name}")
    registered = json.loads(json.dumps({c.name: words(c) for c in COMMANDS.values()}))
    assert {c["name"]: {**c, "examples": [*c["examples"]]} for c in json.loads(read.stdout)} == registered
    assert len(registered) >= 7
    assert all(c.panel in PANELS and c.help.endswith((".", "?")) for c in COMMANDS.values())


def test_a_declaration_may_use_constants_of_its_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Command] = {}
    monkeypatch.setattr("modeconn_cli.work.command.COMMANDS", found)
    (tmp_path / "one.py").write_text(
        'raise RuntimeError("never imported")\nNAME = "one"\n\n'
        '@command(NAME, panel="look", help="a " "b.", chooses={"rebasin": "weight"})\ndef request(context): ...\n'
    )
    (tmp_path / "two.py").write_text("raise RuntimeError\n")
    read_declarations("nowhere", tmp_path)
    assert {n: words(c) for n, c in found.items()} == {
        "one": {
            "name": "one",
            "panel": "look",
            "help": "a b.",
            "more": "",
            "chooses": {"rebasin": "weight"},
            "listed": True,
            "examples": (),
            "introduction": "",
            "networks": False,
        }
    }


class Made(Stage):
    """A stage of a graph, by name."""

    def __init__(self, label: str, *upstream: Made) -> None:
        self.label, self._upstream, self.done = label, list(upstream), None  # type: ignore[misc]

    name = "made"
    label = ""

    def fields(self) -> dict[str, Any]:
        return {"label": self.label}

    def compute(self, run: Any) -> None: ...


def test_a_plan_has_what_is_needed_first_and_each_result_once() -> None:
    a, b = Made("a"), Made("b")
    line, again = Made("line", a, b), Made("line", Made("a"), Made("b"))
    curve = Made("curve", a, b)
    picture = Made("picture", again, Made("measured", curve))
    stages, twins = ordered([line, picture])
    assert [s.label for s in stages] == ["a", "b", "line", "curve", "measured", "picture"]
    assert twins[line.identity.digest] == [line, again]
    assert len(twins[a.identity.digest]) == 2


def test_every_group_composes_into_a_configuration() -> None:
    config = make_config(0, {group: next(iter(choices.values()))() for group, choices in nodes().items()})
    check(config)
