"""Networks whose parameters are float16 or bfloat16 are trained as PyTorch would, and reported rightly."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.sgd import sgd

from modeconn_cli.families.bezier import Bezier
from modeconn_cli.families.chain import Chain
from modeconn_cli.families.point import Point
from modeconn_cli.inputs import InputForm
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.training.loop import Trainer
from modeconn_cli.training.optimizers import make_update
from modeconn_cli.training.recipe import Optimizer, Schedule, Training
from modeconn_cli.weights import FlatModule

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def mlp(dtype):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).to(dtype)


def recipe(**fields):
    return Training(**{"schedule": Schedule.constant, "epochs": 2, "batch_size": 400, "lr": 0.1, **fields})


@HALF
def test_what_is_logged_of_a_batch_is_not_rounded_to_half_precision(dtype, make_data):
    """Hundreds of errors in one batch, which bfloat16 counts in steps of two."""
    data, module = make_data(n=700, dtype=torch.float32), mlp(dtype)
    outputs = []
    module.register_forward_hook(lambda _, args, out: outputs.append((args[0].clone(), out.detach().float())))
    net = FlatModule(module)
    assert net.takes == InputForm(dtype)
    trainer = Trainer(net, Point(), net.point[None], slice(0, None), Classify(data), recipe(lr=0.0), seed=1)
    trainer.run()
    logits = copy.deepcopy(module).eval()(((data.train.x - data.mean) / data.std).to(dtype)).detach().float()
    wrong = int((logits.argmax(1) != data.train.y).sum())
    assert wrong > 300
    for row in trainer.rows:
        assert row["train_error"] == pytest.approx(100 * wrong / 700, rel=1e-12)
        assert row["train_loss"] == pytest.approx(float(F.cross_entropy(logits.double(), data.train.y)), rel=1e-5)
    assert {x.dtype for x, _ in outputs} == {dtype}


@HALF
def test_ordinary_training_is_a_plain_loop_in_its_own_type(dtype, make_data):
    data, module = make_data(n=40, dtype=torch.float32), mlp(dtype)
    plain = copy.deepcopy(module)
    net = FlatModule(module)
    asked = recipe(batch_size=40, epochs=3, momentum=0.0, weight_decay=0.0)
    Trainer(net, Point(), net.point[None], slice(0, None), Classify(data), asked, seed=1).run()
    x = ((data.train.x - data.mean) / data.std).to(dtype)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(plain(x).float(), data.train.y).backward()
        optimizer.step()
    close = {"rtol": 0, "atol": 4 * torch.finfo(dtype).eps}  # batches come in another order
    for p, q in zip(module.parameters(), plain.parameters(), strict=True):
        assert p.dtype is dtype
        torch.testing.assert_close(p, q, **close)


@HALF
@pytest.mark.parametrize("fields", [{"momentum": 0.0}, {"nesterov": True}, {"optimizer": Optimizer.adam}], ids=str)
def test_an_update_is_pytorchs_in_float64(dtype, fields):
    """Of 40 numbers, more than a CPU takes at once."""
    asked = recipe(eps=1e-3, **fields)
    row, *gradients = torch.randn(4, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    wanted = nn.Parameter(row.double())
    options = {"momentum": asked.momentum, "nesterov": asked.nesterov}
    plain = (
        torch.optim.Adam([wanted], 0.1, eps=1e-3)
        if "optimizer" in fields
        else torch.optim.SGD([wanted], 0.1, **options)
    )
    update = make_update(asked, [row])
    for g in gradients:
        wanted.grad = g.double()
        plain.step()
        update.step([g], torch.tensor(0.1, dtype=torch.float64))
    torch.testing.assert_close(row.double(), wanted.detach(), rtol=0, atol=6 * torch.finfo(dtype).eps)


def test_fused_sgd_in_half_precision_still_moves_nothing():
    """A PyTorch that does is noticed: then the exception in optimizers.py can go."""
    row, gradient = torch.zeros(32, dtype=torch.bfloat16), torch.ones(32, dtype=torch.bfloat16)
    options = {"weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "maximize": False}
    sgd([row], [gradient], [None], fused=True, lr=1.0, **options)
    assert not row.any()


@HALF
@pytest.mark.parametrize("path", [Bezier(2), Bezier(3), Chain(3)], ids=repr)
def test_a_path_is_trained_as_in_float64_but_for_rounding(dtype, path, make_data):
    data = make_data(n=40, dtype=torch.float32)
    begun = (0.4 * torch.randn(path.vertices, 71, generator=torch.Generator().manual_seed(7))).to(dtype)
    asked = recipe(batch_size=10, lr=0.2, weight_decay=1e-2)
    ended = []
    for kind in (dtype, torch.float64):
        net, W = FlatModule(mlp(kind)), begun.to(kind, copy=True)
        Trainer(net, path, W, slice(1, -1), Classify(data), asked, seed=3).run()
        assert W.dtype is kind
        assert torch.equal(W[[0, -1]], begun[[0, -1]].to(kind))
        ended.append(W.double())
    half, wanted = ended
    moved = (wanted - begun.double())[1:-1]
    assert moved.norm() > 10 * (half - wanted)[1:-1].norm()
