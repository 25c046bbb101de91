"""Regression against formulas written out in float64, and its figures in the data's own unit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeconn_cli.data.convert import from_torch
from modeconn_cli.errors import UserError
from modeconn_cli.tasks.base import Criterion
from modeconn_cli.tasks.options import Likelihood
from modeconn_cli.tasks.regress import Regress


def make(y, y_test=None, **options):
    y = torch.as_tensor(y, dtype=torch.float64)
    y_test = y if y_test is None else torch.as_tensor(y_test, dtype=torch.float64)
    x = [torch.zeros(len(v), 2) for v in (y, y_test)]
    return Regress.of(from_torch((x[0], y), (x[1], y_test), targets="numbers"), **options)


def on_train(task):
    return task.batch(task.data.train, slice(None))


def rows(targets, n=6):
    value = st.floats(-50, 50)
    return st.lists(st.lists(value, min_size=targets, max_size=targets), min_size=n, max_size=n)


@given(y=rows(2), f=rows(2))
def test_squared_error_is_of_normalised_targets_and_reported_in_their_own_unit(y, f):
    y, f = np.array(y), np.array(f)
    task = make(y)
    std = np.array([s if s > 1e-12 * abs(m) else 1.0 for m, s in zip(y.mean(0), y.std(0), strict=True)])
    z = (y - y.mean(0)) / std
    scores = task.scores(torch.from_numpy(f), on_train(task))
    # z is kept in single precision
    np.testing.assert_allclose(scores["mse"], ((z - f) ** 2).mean(1), rtol=1e-4, atol=1e-4)
    predicted = y.mean(0) + std * f
    np.testing.assert_allclose(scores["absolute_error"], abs(y - predicted).mean(1), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(scores["squared_error"], ((y - predicted) ** 2).mean(1), rtol=1e-3, atol=1e-2)
    assert float(task.loss(torch.from_numpy(f), on_train(task))) == pytest.approx(
        float(scores["mse"].mean()), rel=1e-12
    )


@given(y=rows(2), f=rows(4))
def test_gaussian_is_the_density_written_out(y, f):
    task = make(y, likelihood=Likelihood.gaussian)
    batch = on_train(task)
    f = torch.tensor(f, dtype=torch.float64) / 10
    assert task.outputs == 4
    nll = task.scores(f, batch)["nll"]
    for row, z, value in zip(f.tolist(), batch.y.double().tolist(), nll.tolist(), strict=True):
        density = 1.0
        for k in range(2):
            variance = math.exp(row[2 + k])
            density *= math.exp(-((z[k] - row[k]) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
        if density > 1e-300:
            assert value == pytest.approx(-math.log(density), rel=1e-9, abs=1e-9)


def test_the_gaussian_is_least_at_the_residuals_own_variance():
    """With a constant mean, the best log-variance is the log of the mean squared residual."""
    y = [1.0, 2.0, 4.0, 9.0]
    task = make(y, likelihood=Likelihood.gaussian)
    batch = on_train(task)

    def loss(log_variance):
        output = torch.tensor([[0.0, log_variance]], dtype=torch.float64).expand(4, 2)
        return float(task.loss(output, batch))

    best = math.log(float(batch.y.double().square().mean()))  # 0, for normalised targets
    assert best == pytest.approx(0, abs=1e-6)
    assert loss(best) < min(loss(best - 0.01), loss(best + 0.01))
    assert loss(best) == pytest.approx(0.5 * (math.log(2 * math.pi) + 1), rel=1e-6)


@given(f=st.lists(st.floats(-8, 8), min_size=4, max_size=4), delta=st.floats(0.1, 4))
def test_huber_is_square_within_delta_and_linear_beyond(f, delta):
    task = make([0.0, 1.0, 5.0, 2.0], likelihood=Likelihood.huber, delta=delta)
    batch = on_train(task)
    found = task.scores(torch.tensor(f, dtype=torch.float64), batch)["huber"].tolist()
    for value, z, huber in zip(f, batch.y[:, 0].double().tolist(), found, strict=True):
        r = abs(z - value)
        assert huber == pytest.approx(r * r / 2 if r <= delta else delta * (r - delta / 2), rel=1e-9, abs=1e-12)


@given(shift=st.floats(-1e6, 1e6), factor=st.floats(1e-3, 1e3))
def test_another_unit_changes_the_unit_of_errors_and_nothing_else(shift, factor):
    y = np.array([[0.1, 3.0], [0.4, -2.0], [0.9, 0.0], [-1.0, 7.0], [0.2, 1.0]])
    f = torch.tensor(np.linspace(-1, 1, 10).reshape(5, 2))
    one, other = make(y), make(factor * y + shift)
    a, b = (t.scores(f, on_train(t)) for t in (one, other))
    for name in ("mse", "unexplained"):
        torch.testing.assert_close(b[name], a[name], rtol=2e-4, atol=1e-4)
    torch.testing.assert_close(b["absolute_error"], factor * a["absolute_error"], rtol=2e-3, atol=1e-4 * factor)


def test_statistics_are_of_the_training_split_alone():
    task = make([[1.0], [3.0]], [[100.0], [-7.0]])
    assert (task.scale.mean.item(), task.scale.std.item()) == (2.0, 1.0)
    assert task.data.test.y.tolist() == [[98.0], [-9.0]]
    assert task.data.train.y.dtype is torch.float32


def test_targets_far_from_zero_keep_their_digits():
    """A float32 has none left of differences of 1 around 10^9."""
    task = make(1e9 + np.arange(4.0))
    torch.testing.assert_close(task.data.train.y[:, 0], (torch.arange(4) - 1.5) / math.sqrt(1.25))


def test_the_mean_of_the_targets_leaves_all_variance_unexplained():
    task = make(np.random.default_rng(0).normal(3, 5, (50, 3)))
    scores = task.scores(torch.zeros(50, 3), on_train(task))
    assert 100 * float(scores["unexplained"].mean()) == pytest.approx(100, rel=1e-4)
    assert [c.name for c in task.columns] == ["mse", "squared_error", "absolute_error", "unexplained"]
    assert task.columns[3].scale == 100
    assert task.verdict == Criterion("unexplained", "above_mean", 2.0)


def test_targets_may_stay_as_they_are():
    task = make([10.0, 12.0, 17.0], normalise=False)
    scores = task.scores(torch.tensor([11.0, 12.0, 12.0]), on_train(task))
    assert scores["mse"].tolist() == scores["squared_error"].tolist() == [1.0, 0.0, 25.0]
    assert float(scores["unexplained"].mean()) == pytest.approx((26 / 3) / (26 / 3), rel=1e-5)


def test_a_constant_target_is_not_divided_by_nothing():
    task = make([[1.0, 4.0], [2.0, 4.0]])
    assert task.data.train.y.tolist() == [[-1.0, 0.0], [1.0, 0.0]]


def test_one_target_may_be_answered_flat():
    task = make([1.0, 2.0, 6.0])
    flat = torch.tensor([0.5, 0.0, 1.0])
    torch.testing.assert_close(task.scores(flat, on_train(task)), task.scores(flat[:, None], on_train(task)))
    with pytest.raises(UserError, match=r"wants \(3, 1\)"):
        task.loss(torch.zeros(3, 2), on_train(task))


def test_a_unit_is_named_where_it_belongs():
    units = {c.name: c.unit for c in make([1.0, 2.0], unit="MPa").columns}
    assert units == {"mse": "", "squared_error": "MPa^2", "absolute_error": "MPa", "unexplained": "%"}


def test_a_validation_split_is_normalised_too():
    data = from_torch((torch.zeros(4, 1), torch.tensor([0.5, 1.5, 0.5, 1.5])), (torch.zeros(2, 1), torch.ones(2)))
    task = Regress.of(replace(data, validation=replace(data.test, name="validation")))
    assert task.data.validation.y.tolist() == [[0.0], [0.0]]
    reported = Regress.of(replace(data, validation=data.test))
    assert reported.data.validation is reported.data.test


def test_labels_are_not_smoothed_that_are_none():
    with pytest.raises(UserError, match=r"label_smoothing=0\.1 is for classes"):
        make([1.0, 2.0]).smoothed(0.1)


def test_gaussian_answers_are_averaged_as_the_mixture_that_they_are():
    random = np.random.default_rng(0)
    task = make(random.normal(size=(6, 2)), likelihood=Likelihood.gaussian)
    answers = torch.from_numpy(random.normal(size=(3, 1, 4)))
    mixed = np.concatenate([random.normal(a[0, :2], np.exp(a[0, 2:] / 2), size=(200_000, 2)) for a in answers.numpy()])
    (together,) = task.averaged(answers)
    np.testing.assert_allclose(together[:2], mixed.mean(0), atol=0.02)
    np.testing.assert_allclose(together[2:].exp(), mixed.var(0), rtol=0.02)
    assert torch.equal(make(random.normal(size=(6, 2))).averaged(answers), answers.mean(0))
