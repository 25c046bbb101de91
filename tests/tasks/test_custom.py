"""Objectives from the user's own files, and which task settings make of which data."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from modeconn_cli import settings
from modeconn_cli.data.convert import from_torch
from modeconn_cli.errors import CodeFailed, UserError
from modeconn_cli.tasks.base import Batch, Criterion
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.tasks.make import make_task
from modeconn_cli.tasks.options import Classification, Convention, CustomTask, Likelihood, Regression, TaskBase
from modeconn_cli.tasks.regress import Regress

LOSSES = """
import torch
import torch.nn.functional as F
from torch import nn


def pinball(output, y):
    r = y - output
    return torch.maximum(0.9 * r, -0.1 * r)

def mean_of_squares(output, y):
    return F.mse_loss(output, y)

def loss(output, y):
    return (output - y).abs()

def branching(output, y):
    r = (output - y).abs()
    return r.mean() if float(r.max()) < 1 else r.square().mean()

def broken(output, y):
    return output.nothing

def one_number_too_few(output, y):
    return (output - y)[1:]

class Scaled(nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, output, y):
        return self.factor * (output - y).square()

class Both:
    columns = ("cubes", "signs")
    outputs = 2

    def loss(self, output, batch):
        return self.scores(output, batch)["cubes"].mean()

    def scores(self, output, batch):
        r = output[:, 0] - batch.y
        return {"cubes": r.abs() ** 3, "signs": r > 0}

NUMBER = 3
"""


@pytest.fixture
def make(tmp_path):
    (tmp_path / "loss.py").write_text(LOSSES)
    torch.manual_seed(0)
    split = torch.randn(7, 3), torch.randn(7, dtype=torch.float64)
    data = from_torch(split, split)

    def made(name, of=data, **options):
        return make_task(CustomTask(target=f"{tmp_path}/loss.py:{name}", **options), of, 2.0)

    return made


def batch_of(task):
    return task.batch(task.data.train, slice(None))


@pytest.mark.parametrize("column", [False, True], ids=["flat", "one column"])
def test_a_function_of_output_and_target(make, column):
    task = make("pinball")
    batch, f = batch_of(task), torch.linspace(-1, 1, 7)
    wanted = [max(0.9 * (y - v), -0.1 * (y - v)) for y, v in zip(batch.y.tolist(), f.tolist(), strict=True)]
    output = f[:, None] if column else f
    assert task.scores(output, batch)["pinball"].tolist() == pytest.approx(wanted, rel=1e-5)
    assert float(task.loss({"logits": output}, batch)) == pytest.approx(sum(wanted) / 7, rel=1e-5)


@pytest.mark.parametrize(("name", "column"), [("mean_of_squares", "mean_of_squares"), ("branching", "branching")])
def test_a_function_that_gives_a_mean_is_asked_one_by_one(make, name, column):
    task = make(name)
    batch, f = batch_of(task), torch.linspace(-1, 1, 7)
    residuals = (f - batch.y).abs()
    wanted = residuals.square()
    if name == "branching":
        wanted = torch.where(residuals < 1, residuals, wanted)
    torch.testing.assert_close(task.scores(f, batch)[column], wanted)


def test_no_column_is_called_as_the_whole_loss_is(make):
    assert [c.name for c in make("loss").columns] == ["objective"]


def test_a_class_is_made_with_kwargs(make):
    task = make("Scaled", kwargs={"factor": 3.0})
    batch, f = batch_of(task), torch.zeros(7)
    torch.testing.assert_close(task.scores(f, batch)["scaled"], 3 * batch.y.square())


def test_a_class_with_columns_of_its_own(make):
    task = make("Both")
    assert ([c.name for c in task.columns], task.outputs, task.answers) == (["cubes", "signs"], 2, ())
    batch, f = batch_of(task), torch.stack([torch.linspace(-1, 1, 7), torch.zeros(7)], 1)
    assert float(task.loss(f, batch)) == pytest.approx(float((f[:, 0] - batch.y).abs().pow(3).mean()), rel=1e-6)


def test_its_threshold_is_a_share_of_what_a_constant_answer_costs(make):
    task = make("mean_of_squares")
    y = task.data.train.y.double()
    assert task.verdict.below == pytest.approx(0.02 * float((y - y.mean()).square().mean()), rel=5e-3)
    assert (task.verdict.column, task.verdict.convention) == ("mean_of_squares", "above_mean")


def test_targets_can_be_normalised(make):
    task = make("pinball", normalise=True)
    assert task.data.train.y.mean().item() == pytest.approx(0, abs=1e-6)
    assert task.data.train.y.shape == (7,)


def test_labels_reach_a_function_as_they_are(make, make_data):
    data = make_data(classes=3)
    task = make_task(CustomTask(target="torch.nn.functional:cross_entropy"), data, 2.0)
    assert task.outputs == 3
    logits = torch.randn(5, 3)
    batch = Batch(torch.empty(5), torch.tensor([0, 2, 1, 1, 0]))
    wanted = F.cross_entropy(logits, batch.y, reduction="none")
    torch.testing.assert_close(task.scores(logits, batch)["cross_entropy"], wanted)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("pinbal", {}, r"has no pinbal \(did you mean pinball\?\)"),
        ("broken", {}, r"fails on outputs \(7, 1\) and targets \(7,\) \(AttributeError"),
        ("one_number_too_few", {}, "fails on outputs"),
        ("NUMBER", {}, "is a int: point task.target"),
        ("pinball", {"kwargs": {"a": 1}}, "task.kwargs are what a class is made with"),
        ("Scaled", {"kwargs": {"a": 1}}, "cannot be called with a"),
    ],
)
def test_what_is_no_objective_is_refused(make, name, options, words):
    with pytest.raises(CodeFailed if name == "broken" else UserError, match=words):
        make(name, **options)


def test_a_missing_target_is_said(make_data):
    with pytest.raises(UserError, match="custom task has no usable target ''"):
        make_task(CustomTask(), make_data(), 2.0)


# --------------------------------------------------------------------------------------------- what is made


def numbers():
    split = torch.randn(7, 3), torch.randn(7, 2)
    return from_torch(split, split)


def test_the_data_say_what_is_learnt(make_data):
    labelled = make_task(Classification(), make_data(), 3.5)
    assert isinstance(labelled, Classify)
    assert labelled.verdict == Criterion("error", "above_mean", 3.5)
    counted = make_task(Classification(), numbers(), 3.5)
    assert isinstance(counted, Regress)
    assert (counted.outputs, counted.verdict.below) == (2, 2.0)
    assert make_task(Regression(likelihood=Likelihood.gaussian), numbers(), 3.5).outputs == 4


def test_targets_that_do_not_fit_are_refused(make_data):
    with pytest.raises(UserError, match="use task=classify"):
        make_task(Regression(), make_data(), 2.0)
    with pytest.raises(UserError, match="use task=regress"):
        make_task(Classification(kind="classify"), numbers(), 2.0)


def test_the_verdict_can_be_set(make_data):
    asked = Regression(verdict_column="absolute_error", verdict_convention=Convention.above_max, verdict_below=0.3)
    assert make_task(asked, numbers(), 2.0).verdict == Criterion("absolute_error", "above_max", 0.3)
    only = make_task(Classification(verdict_below=1.0), make_data(), 2.0)
    assert only.verdict == Criterion("error", "above_mean", 1.0)
    with pytest.raises(UserError, match=r"verdict_column=eror: no such column; there are loss, nll, error"):
        make_task(Classification(verdict_column="eror"), make_data(), 2.0)
    with pytest.raises(UserError, match=r"verdict_column=nll needs task.verdict_below"):
        make_task(Classification(verdict_column="nll"), make_data(), 2.0)


def test_a_task_from_outside_makes_itself(monkeypatch, make_data):
    monkeypatch.setitem(settings.CHOICES, "task", {**settings.choices("task")})

    @settings.choice("task", "nearest")
    @dataclass
    class Nearest(TaskBase):
        below: float = settings.option(0.5, "Threshold of its verdict.")

        def make(self, data, connected_below):
            return Classify(data, verdict=Criterion("nll", "above_max", self.below))

    asked = settings.named_choice(TaskBase(kind="nearest"), "task")
    assert make_task(asked, make_data(), 2.0).verdict == Criterion("nll", "above_max", 0.5)
    asked.verdict_below = 0.25
    assert make_task(asked, make_data(), 2.0).verdict.below == 0.25
    assert asked.targets == "auto"
