"""Modules that anyone may have written: what is measured of them does not depend on how they behave."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.evaluator import Evaluator
from modeconn_cli.evaluation.options import Interpolation
from modeconn_cli.evaluation.repair import Repair
from modeconn_cli.forward import Passes, evaluating, modes_kept, rest_kept
from modeconn_cli.models.external import check_answers
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.weights import FlatModule


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Silent(nn.Module):
    """train() returns nothing."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def train(self, mode=True):
        super().train(mode)

    def forward(self, x):
        return self.norm(self.layer(x))


class Counting(Silent):
    """Counts its calls and keeps an average in evaluation too; its answer depends on both."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x):
        self.calls += 1
        self.average = 0.9 * self.average + 0.1 * x.mean(0)
        return super().forward(x) + self.calls * self.average.sum()


class InPlace(Silent):
    def forward(self, x):
        x -= 1
        return super().forward(x.relu_())


class Squeezing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x).squeeze()


def test_a_module_need_not_return_itself():
    module = Silent()
    assert evaluating(module) is module
    assert not module.training
    module.norm.training = True
    with modes_kept(module):
        module.train()
        assert module.layer.training
    assert [m.training for m in module.modules()] == [False, False, True]


@pytest.mark.parametrize("kind", [Silent, Counting, InPlace, Squeezing])
def test_scores_are_those_of_the_module_as_it_is_given(kind, make_data):
    """In every batch, at every point, however often it is asked; the last batch is of one example."""
    data = make_data(n=9, n_test=5, dtype=torch.float32)
    module = kind()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    evaluator = Evaluator(FlatModule(module), Classify(data), Interpolation(batch_size=4))
    found = [evaluator.scores()["test"].columns["nll"] for _ in range(2)]
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    for got in found:
        for i in range(5) if kind is not Counting else ():
            x = ((data.test.x - data.mean) / data.std)[i : i + 1]
            with torch.no_grad():
                logits = evaluating(module)(x.clone()).reshape(1, 3)
            torch.testing.assert_close(got[i], F.cross_entropy(logits, data.test.y[i : i + 1]))
    assert torch.equal(*found)


def test_a_walk_leaves_counters_at_a_point_where_they_are(make_data):
    module = Counting()
    net = FlatModule(module)
    ends = [net.rest(), {**net.rest(), "average": torch.ones(4)}]
    W = torch.stack([net.point, net.point + 1])
    evaluator = Evaluator(net, Classify(make_data(n=9, dtype=torch.float32)), Interpolation())
    first = evaluator.at(W, np.array([0.5, 0.5]), ends)["test"].columns["nll"]
    assert (module.calls.item(), module.average.tolist()) == (0, [0.5] * 4)
    evaluator.at(W, np.array([0.2, 0.8]), ends)
    assert torch.equal(evaluator.at(W, np.array([0.5, 0.5]), ends)["test"].columns["nll"], first)


def test_passes_look_at_the_first_batch_and_leave_every_one():
    net = FlatModule(InPlace())
    passes, x = Passes(net), torch.randn(6, 4)
    given = x.clone()
    answers = [passes(x) for _ in range(3)]
    assert torch.equal(x, given)
    assert torch.equal(answers[0], answers[2])


def test_repair_works_on_layers_that_are_called_by_keyword():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, x):
            return self.last(input=F.relu(self.norm(input=self.first(input=x))))

    module, x = Keyword(), torch.randn(50, 4)
    repair = Repair(FlatModule(module), lambda: [x], True)
    assert repair.sites == [module.norm]  # the linear layer before is left to it


# ------------------------------------------------------------------------------------------------- randomness


class Dropping(nn.Module):
    """Dropout that knows no evaluation mode."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(F.dropout(x, 0.5))


class HeldOn(nn.Module):
    """A dropout layer that eval() leaves in training mode."""

    def __init__(self):
        super().__init__()
        self.layer, self.drop = nn.Linear(4, 3), nn.Dropout(0.5)

    def train(self, mode=True):
        super().train(mode)
        self.drop.training = True
        return self

    def forward(self, x):
        return self.drop(self.layer(x))


class Numpys(Squeezing):
    def forward(self, x):
        return super().forward(x) + float(np.random.normal())  # noqa: NPY002


class Pythons(Squeezing):
    def forward(self, x):
        return super().forward(x) + random.random()


class Own(Squeezing):
    """A generator that nobody sees."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return super().forward(x) + torch.randn((), generator=self.generator)


class Idle(Squeezing):
    """Draws, and does nothing with it in evaluation mode."""

    def forward(self, x):
        noise = torch.randn(3)
        return super().forward(x) + (noise if self.training else 0)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (Dropping, r"dropout in Dropping, test_forward\.py line \d+"),
        (HeldOn, r"dropout in drop \(Dropout\), test_forward\.py line \d+"),
        (Numpys, "numpy"),
        (Pythons, "Python's random"),
    ],
)
def test_a_random_network_is_refused_and_what_is_random_is_named(kind, named, make_data):
    with pytest.raises(UserError, match=rf"differently each time.*is random \({named}\)"):
        check_answers(kind(), "a net", (4,), ((3,),))
    data = make_data(dtype=torch.float32)
    with pytest.raises(UserError, match=named):
        Evaluator(FlatModule(kind()), Classify(data), Interpolation()).scores()


def test_a_network_that_draws_for_nothing_is_not_refused(make_data):
    check_answers(Idle(), "a net", (4,), ((3,),))
    Evaluator(FlatModule(Idle()), Classify(make_data(dtype=torch.float32)), Interpolation()).scores()


def test_a_hidden_generator_is_found_where_it_is_looked_for(make_data):
    evaluator = Evaluator(FlatModule(Own()), Classify(make_data(dtype=torch.float32)), Interpolation())
    with pytest.raises(UserError, match="is random, so nothing"):
        evaluator.require_repeatable()


def test_trying_a_network_does_not_move_its_buffers():
    module = Counting()
    check_answers(module, "a net", (4,), ((3,),))
    assert module.calls.item() == 0
    assert all(m.training for m in module.modules())
    with rest_kept(module):
        module(torch.ones(3, 4))
    assert (module.calls.item(), module.norm.num_batches_tracked.item()) == (0, 0)


def test_answers_that_are_no_logits_are_said_to_be_none():
    class Labels(Squeezing):
        def forward(self, x):
            return super().forward(x).argmax(1)

    with pytest.raises(UserError, match=r"a net: the network returns a tensor of int64: an answer is real numbers"):
        check_answers(Labels(), "a net", (4,), ((3,),))
