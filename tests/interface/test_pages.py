"""The page about Python and the notebook run as they stand, each in one process and an empty directory."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli_helpers import ROOT

PAGE, NOTEBOOK = ROOT / "docs" / "python.md", ROOT / "docs" / "python.ipynb"


def run_cells(cells: list[str], name: str) -> None:
    """Run code in one namespace; the last expression of a cell is evaluated and not shown."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"{name}, block {number + 1}", "exec"), namespace)


@pytest.fixture(autouse=True)
def in_an_empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)


def test_the_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(cells) >= 8
    run_cells(cells, PAGE.name)
    said = capsys.readouterr().out
    assert said.startswith("Verdict: model_a and model_b are not linearly connected, but after alignment they are ")
    assert "model_b lacks 0.weight" in said
    assert [p.name for p in tmp_path.iterdir()] == ["outputs"]  # of mc.run


def test_the_notebook_runs_and_holds_no_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    assert len(cells) >= 5
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in cells)
    run_cells(["".join(c["source"]) for c in cells], NOTEBOOK.name)
    assert capsys.readouterr().out.startswith("Verdict: ")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True)
def figures_are_closed() -> object:
    yield
    from matplotlib import pyplot

    pyplot.close("all")
