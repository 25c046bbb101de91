"""The rules of the house: short files and functions, stages known only by themselves, tests where the code is."""

from __future__ import annotations

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import ROOT

PACKAGE = ROOT / "modeconn_cli"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if "conf" not in p.relative_to(PACKAGE).parts)
LONG = "# long: "  # with a reason, among the first lines of a file or a function that is to be longer

# What is still too long, with a little room. Numbers here may only fall, until they are gone.
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}
# Names of stages that are also settings' groups, or keys of an answer in JSON: as a word alone they may stand anywhere.
ALSO_OTHERWISE = {"rebasin", "plot", "budgets", "ensemble", "fge", "snapshot", "soup", "swa", "swag", "uncertainty"}


def name(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def too_long(file: Path) -> dict[str, int]:
    """Lines of the file and of its functions, of those that are too long and do not say why."""
    lines = file.read_text().splitlines()
    found = {}
    if len(lines) > 400 and not any(line.startswith(LONG) for line in lines[:10]):
        found[name(file)] = len(lines)
    for function in functions(ast.parse(file.read_text())):
        length = (function.end_lineno or 0) - function.lineno + 1
        first = lines[function.lineno - 1 : function.body[0].end_lineno]
        if length > 60 and not any(line.strip().startswith(LONG) for line in first):
            found[f"{name(file)} {function.name}"] = length
    return found


def test_files_and_functions_are_short_or_say_why_not() -> None:
    assert len(FILES) > 50
    found = {k: n for file in FILES for k, n in too_long(file).items()}
    allowed = {**LONG_FILES, **LONG_FUNCTIONS}
    assert {k: n for k, n in found.items() if n > allowed.get(k, 0)} == {}


def test_the_rule_about_length_finds_what_it_is_to_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_house.PACKAGE", tmp_path)
    body = "    pass\n" * 60
    file = tmp_path / "a.py"
    file.write_text(f"def f():\n{body}")
    assert too_long(file) == {"a.py f": 61}
    file.write_text(f"def f():\n    # long: a table\n{body}")
    assert too_long(file) == {}
    file.write_text("a = 1\n" * 401)
    assert too_long(file) == {"a.py": 401}
    file.write_text("# long: a table\n" + "a = 1\n" * 401)
    assert too_long(file) == {}


def stage_names() -> set[str]:
    """What the classes under stages/ call themselves."""
    return {
        statement.value.value
        for file in (PACKAGE / "stages").glob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
        and "name" in {ast.unparse(t) for t in getattr(statement, "targets", [getattr(statement, "target", None)])}
    }


def test_no_file_but_its_own_holds_a_stages_name() -> None:
    names = stage_names()
    assert {"train-endpoints", "interpolate", "fit-curve", "evaluate", "rebasin", "plot"} <= names
    found = [
        f"{name(file)}:{node.lineno} {node.value[:60]!r}"
        for file in FILES
        if file.parent.name != "stages"
        for node in constants(ast.parse(file.read_text()))
        if node.value in names - ALSO_OTHERWISE
        or any(f"modeconn {n}" in node.value or ("-" in n and n in node.value) for n in names)
    ]
    assert found == []


def constants(tree: ast.AST) -> Iterator[Any]:
    """The texts in code; what a docstring gives as an example is none."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {
        id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, documented) and isinstance(n.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node


def test_implementations_live_in_named_files() -> None:
    """An __init__.py has a docstring, imports and plain values; and what makes its names lazy."""
    found = [
        f"{name(file)}:{node.lineno}"
        for file in FILES
        if file.name == "__init__.py"
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
        or (isinstance(node, ast.FunctionDef) and node.name not in ("__getattr__", "__dir__"))
    ]
    assert found == []


def test_tests_mirror_the_rooms() -> None:
    rooms = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert {p.parent.name for p in (ROOT / "tests").glob("*/test_*.py")} == rooms


EXAMPLES = [file for file in FILES if "\n    >>> " in file.read_text() or "\n>>> " in file.read_text()]


@pytest.mark.parametrize("file", EXAMPLES, ids=name)
def test_examples_in_docstrings_run(file: Path) -> None:
    module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    failed, tried = doctest.testmod(module)
    assert tried or "+SKIP" in file.read_text()  # where it wants a finished run
    assert not failed


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest imports each by its name alone."""
    names = [p.name for p in (ROOT / "tests").rglob("*.py")]
    assert sorted(n for n in {*names} if names.count(n) > 1) == []
