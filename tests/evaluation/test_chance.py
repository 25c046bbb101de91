"""What one answer for every example scores, by brute force, and what is said of networks that do no better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from modeconn_cli.data.convert import from_torch
from modeconn_cli.evaluation.chance import at_chance
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.tasks.regress import Regress


def of(y, y_test, **options):
    y, y_test = torch.as_tensor(y), torch.as_tensor(y_test)
    return from_torch((torch.zeros(len(y), 2), y), (torch.zeros(len(y_test), 2), y_test), **options)


def test_one_class_for_all_errs_as_often_as_another_is_right():
    labels = [0, 1, 2, 2, 2, 1, 0, 2]
    task = Classify(of([0, 1, 2], labels))
    errors = [100 * np.mean([c != label for label in labels]) for c in range(3)]
    assert task.constant == {"error": pytest.approx(min(errors))}


def test_the_best_number_for_all_leaves_unexplained_what_no_other_leaves_less_of():
    rng = np.random.default_rng(0)
    train, test = rng.normal(3, 2, (40, 1)), rng.normal(4, 1, (30, 1))
    task = Regress.of(of(train, test, targets="numbers"))
    batch = task.batch(task.data.test, slice(None))

    def unexplained(answer):
        return 100 * float(task.scores(torch.full((30, 1), answer), batch)["unexplained"].mean())

    answers = np.linspace(-2, 2, 4001)
    assert task.constant["unexplained"] == pytest.approx(min(map(unexplained, answers)), rel=1e-4)


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ({"a": 1.0, "b": 2.0}, ""),
        ({"a": 1.0, "b": 46.0}, "b does little better than one answer for every example (test error 50.00%)"),
        ({"a": 50.0, "b": 46.0}, "a, b do little better"),
        ({"a": 44.0, "b": 45.0}, ""),
    ],
)
def test_those_near_it_are_named(errors, said):
    task = Classify(of([0, 1], [0, 1, 0, 1]))
    line = at_chance({name: {"test_error": error} for name, error in errors.items()}, task)
    assert line.startswith(said)
    assert bool(line) == bool(said)


def test_of_one_class_alone_or_another_column_nothing_is_said():
    assert at_chance({"a": {"test_error": 100.0}}, Classify(of([0, 1], [1, 1]))) == ""
    task = Classify(of([0, 1], [0, 1]))
    assert at_chance({"a": {"test_nll": 9.0}}, replace(task, verdict=replace(task.verdict, column="nll"))) == ""
