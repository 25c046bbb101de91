"""Validation scores and gradients of points between networks, beside networks put together by hand."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modeconn_cli.data.dataset import Split
from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.evaluator import Evaluator
from modeconn_cli.evaluation.options import Interpolation
from modeconn_cli.evaluation.statistics import reestimate
from modeconn_cli.merging.judge import Judge
from modeconn_cli.states import named_state
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.tasks.regress import Regress
from modeconn_cli.weights import FlatModule


def net(seed, norm=True):
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(6)] if norm else []
    return nn.Sequential(nn.Linear(4, 6), *middle, nn.Tanh(), nn.Linear(6, 3)).double().eval()


def judged(make_data, norm=True, column="error", batch_size=4):
    data = make_data(n=20)
    more = make_data(n=13, seed=5).train
    data = replace(data, validation=Split("validation", more.x, more.y))
    modules = [net(0, norm), net(1, norm)]
    flat = FlatModule(copy.deepcopy(modules[0]))
    evaluator = Evaluator(flat, Classify(data), Interpolation(batch_size=batch_size))
    states = [{k: v.detach().clone() for k, v in named_state(m).items()} for m in modules]
    return Judge(evaluator, states, column), modules, data


def inputs(data, split):
    return (split.x - data.mean) / data.std


@torch.no_grad()
def test_points_are_scored_on_the_validation_split_with_statistics_of_their_own(make_data):
    judge, modules, data = judged(make_data)
    x, y = inputs(data, data.validation), data.validation.y
    for module, (error, nll) in zip(modules, judge.alone(), strict=True):
        assert error == pytest.approx(100 * float((module(x).argmax(1) != y).double().mean()))
        assert nll == pytest.approx(float(F.cross_entropy(module(x), y)))
    mean = copy.deepcopy(modules[0])
    for p, a, b in zip(mean.parameters(), *(m.parameters() for m in modules), strict=True):
        p.data = (a.data + b.data) / 2
    reestimate(FlatModule(mean), [inputs(data, data.train)])
    error, nll = judge.score(judge.points.mean(0), [0.5, 0.5])
    assert nll == pytest.approx(float(F.cross_entropy(mean.eval()(x), y)), rel=1e-9)
    assert error == pytest.approx(100 * float((mean(x).argmax(1) != y).double().mean()))


@pytest.mark.parametrize("batch_size", [3, 4, 100])  # 13 examples: a last batch of one, too
def test_the_gradient_is_that_of_the_mean_loss(make_data, batch_size):
    judge, _, data = judged(make_data, norm=False, batch_size=batch_size)
    x, y = inputs(data, data.validation), data.validation.y
    point = 0.3 * judge.points[0] + 0.7 * judge.points[1]
    loss, g = judge.gradient(point, [0.3, 0.7])
    flat = judge.evaluator.net
    w = point.clone().requires_grad_()
    named = dict(zip(flat.names, flat.views(w), strict=True))
    wanted = F.cross_entropy(torch.func.functional_call(flat.module, named, (x,)), y)
    assert loss == pytest.approx(wanted.item(), rel=1e-10)
    torch.testing.assert_close(g, torch.autograd.grad(wanted, w)[0], rtol=1e-9, atol=1e-12)


def test_with_norms_the_gradient_is_taken_with_statistics_held(make_data):
    judge, _, data = judged(make_data)
    x, y = inputs(data, data.validation), data.validation.y
    _, g = judge.gradient(judge.points.mean(0), [0.5, 0.5])
    module = judge.evaluator.net.module  # stays where it was placed
    before = {k: v.clone() for k, v in module.named_buffers()}
    module.zero_grad()
    F.cross_entropy(module(x), y).backward()
    wanted = torch.cat([p.grad.flatten() for p in module.parameters()])
    torch.testing.assert_close(g, wanted, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(v, before[k]) for k, v in module.named_buffers())


def test_residuals_are_answers_less_targets(make_data):
    judge, modules, data = judged(make_data)
    x, y = inputs(data, data.validation), data.validation.y
    wanted = torch.stack([m(x).softmax(1) - F.one_hot(y, 3) for m in modules])
    torch.testing.assert_close(judge.residuals(), wanted.detach())


def test_residuals_of_numbers_are_those_of_normalised_targets(make_data):
    data = make_data(n=20)
    y = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    split = Split("train", data.train.x.float(), y)
    data = replace(data, train=split, validation=replace(split, name="validation"), test=split, classes=None)
    data = replace(data, mean=data.mean.float(), std=data.std.float())
    task, module = Regress.of(data), net(0, norm=False).float()
    judge = Judge(Evaluator(FlatModule(module), task, Interpolation()), [FlatModule(module).state()], "mse")
    z = ((y - y.mean(0)) / y.std(0, unbiased=False)).float()
    torch.testing.assert_close(judge.residuals()[0], module(inputs(data, split)).detach() - z, rtol=1e-5, atol=1e-6)


def test_a_column_that_is_none_is_refused_and_a_diverged_network_is_worst(make_data):
    with pytest.raises(UserError, match=r"soup\.by=accuracy: no such column; there are nll, error"):
        judged(make_data, column="accuracy")
    judge, _, _ = judged(make_data)
    assert judge.score(judge.points.mean(0) * float("nan"), [0.5, 0.5]) == (float("inf"), float("inf"))
