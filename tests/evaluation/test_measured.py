"""What is said of a path from kept scores, against NumPy by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modeconn_cli.evaluation.measured import Measured, Question, metric_names, statistics, unpack
from modeconn_cli.tasks.classify import COLUMNS, Classify

T = np.linspace(0, 1, 5)


@pytest.fixture
def path(make_data):
    generator = torch.Generator().manual_seed(0)
    splits = {}
    for split, n in (("train", 40), ("test", 30)):
        nll = torch.rand(5, n, generator=generator) + torch.tensor(np.sin(np.pi * T)).float()[:, None]
        splits[split] = {"nll": nll, "error": (nll > 1.2).float()}
    return Measured(T, 1 + T, splits, COLUMNS, 0.3)


def test_means_have_the_decay_of_their_own_point_and_errors_of_means_are_unbiased(path):
    means, errors = path.means(), path.standard_errors()
    assert list(means) == list(errors) == path.metrics == metric_names(["nll", "error"])
    for split, n in (("train", 40), ("test", 30)):
        nll, error = (path.scores[split][k].double().numpy() for k in ("nll", "error"))
        np.testing.assert_allclose(means[f"{split}_nll"], nll.mean(1), rtol=1e-12)
        np.testing.assert_allclose(means[f"{split}_loss"], nll.mean(1) + 0.15 * (1 + T) ** 2, rtol=1e-12)
        np.testing.assert_allclose(means[f"{split}_error"], 100 * error.mean(1), rtol=1e-12)
        spread = ((nll - nll.mean(1, keepdims=True)) ** 2).sum(1) / (n - 1)
        np.testing.assert_allclose(errors[f"{split}_nll"], np.sqrt(spread / n), rtol=1e-12)
        np.testing.assert_array_equal(errors[f"{split}_loss"], errors[f"{split}_nll"])
        share = error.mean(1)
        np.testing.assert_allclose(errors[f"{split}_error"], 100 * np.sqrt(share * (1 - share) / (n - 1)), rtol=1e-9)


def test_an_interval_of_the_loss_is_that_of_its_objective_where_decay_is_the_same_everywhere(path, make_data):
    flat = Measured(T, np.full(5, 2.0), path.scores, COLUMNS, 0.3)
    question = Question(200, 0.95, Classify(make_data()).verdict, 3.0)
    found = flat.barriers(question)
    for split in ("train", "test"):
        for convention, of_loss in found[f"{split}_loss"].items():
            of_nll = found[f"{split}_nll"][convention]
            assert of_loss["high"] > of_loss["low"]
            assert of_loss == {k: pytest.approx(v, abs=1e-9) for k, v in of_nll.items()}


def test_what_is_kept_comes_back(path):
    kept = path.pack()
    assert kept["t"].tolist() == T.tolist()
    again = unpack(kept)
    assert list(again) == ["train", "test"]
    for split, columns in path.scores.items():
        assert all(torch.equal(again[split][k], v) for k, v in columns.items())


def test_statistics_take_extremes_of_every_point_and_means_of_the_grid_alone():
    """The third point was searched for, so it is not on the grid."""
    values, on_grid = np.array([1.0, 2.0, 9.0, 4.0]), np.array([True, True, False, True])
    found = statistics(values, on_grid, np.array([0.0, 1.0, 1.5, 3.0]))
    assert found == {"start": 1, "end": 4, "min": 1, "max": 9, "mean": 7 / 3, "integral": 1.5 + 2.75 + 9.75}
    assert "integral" not in statistics(values, on_grid, None)
    assert statistics(-values, on_grid, None)["min"] == -9
