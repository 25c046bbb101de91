"""Gathered runs as text: no name ends a cell or acts in it, and numbers stay numbers."""

from __future__ import annotations

import csv
import io

import pytest

from modeconn_cli.report.formats import as_csv, as_latex, as_markdown

NAMES = ["a|b", "*a*", "_a_ test_error", "`a`", "[a](b)", "<b>&", "a\nb", "\\x", "$x_1^2$ 50% {a} #~"]


@pytest.mark.parametrize("name", NAMES)
def test_a_markdown_row_has_as_many_cells_as_its_head(name: str) -> None:
    written = as_markdown(["name", "n"], [[name, "1"]])
    assert written.count("\n") == 2
    row = written.splitlines()[2].replace("\\\\", "")
    assert row.replace("\\|", "").count("|") == 3
    for mark in ("*", "`"):
        assert row.replace(f"\\{mark}", "").count(mark) == 0
    assert "<" not in row
    assert "](" not in row


def test_words_with_underscores_stay_as_they_are_in_markdown() -> None:
    assert "| test_error.max |" in as_markdown(["test_error.max"], [["[0.1, 0.2]"]])
    assert "| [0.1, 0.2] |" in as_markdown(["a"], [["[0.1, 0.2]"]])


def test_every_letter_that_latex_acts_on_is_escaped() -> None:
    written = as_latex(["name"], [[r"a_b&c%d#e$f{g}~h^i\j<k>|l"]])
    row = written.splitlines()[4]
    assert row == (
        r"a\_b\&c\%d\#e\$f\{g\}\textasciitilde{}h\textasciicircum{}i\textbackslash{}j\textless{}k\textgreater{}"
        r"\textbar{}l \\"
    )


def test_no_cell_of_csv_is_a_formula_and_figures_are_figures() -> None:
    found = {"mean": -1.5, "std": 0.1, "n": 2, "low": -2.0, "high": 0.5}
    row = {"path": "=cmd|' /C calc'!A0", "lr": -0.5, "name": "@x", "n": 2, "metrics": {"loss": found}, "digits": {}}
    head, line = csv.reader(io.StringIO(as_csv([row])))
    read = dict(zip(head, line, strict=True))
    assert (read["path"], read["name"]) == ("'=cmd|' /C calc'!A0", "'@x")
    assert (read["lr"], read["loss.mean"]) == ("-0.5", "-1.5")
