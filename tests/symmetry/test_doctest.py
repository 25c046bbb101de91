"""What docstrings of these rooms show is what happens."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import modeconn_cli.matching
import modeconn_cli.symmetry

MODULES = [
    f"{room.__name__}.{module.name}"
    for room in (modeconn_cli.symmetry, modeconn_cli.matching)
    for module in pkgutil.iter_modules(room.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    assert sum(doctest.testmod(importlib.import_module(name)).attempted for name in MODULES) >= 5
