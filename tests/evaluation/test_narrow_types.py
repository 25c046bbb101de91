"""Networks whose parameters are float16 or bfloat16, measured along a path, beside PyTorch at the same points."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modeconn_cli.evaluation.evaluator import Evaluator, gram
from modeconn_cli.evaluation.options import BatchNorm, Interpolation
from modeconn_cli.families.bezier import Bezier
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.weights import FlatModule

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 3))


def convolutional():
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(6, 3))


@HALF
@pytest.mark.parametrize("policy", [BatchNorm.reestimate, BatchNorm.mean])
@pytest.mark.parametrize("make", [dense, convolutional])
def test_scores_along_a_path_are_those_of_pytorch(make, policy, dtype, make_data):
    data, path = make_data(n=600, n_test=50, shape=(3, 4, 4), dtype=torch.float32), Bezier(2)
    modules = []
    for seed in range(3):
        torch.manual_seed(seed)
        modules.append(make().to(dtype))
        for name, buffer in modules[-1].named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    net = FlatModule(copy.deepcopy(modules[0]))
    W = torch.stack([FlatModule(m).point for m in modules])
    buffers = [FlatModule(modules[k]).rest() for k in (0, 2)]
    evaluator = Evaluator(net, Classify(data), Interpolation(batch_size=250, batch_norm=policy))
    for t in (0.0, 0.3, 0.5, 1.0):
        c = path.coefficients([t])[0]
        found = evaluator.at(W, c, buffers)
        w = sum(float(c[k]) * W[k].double() for k in range(3))
        step = (net.point.double() - w).abs() / w.abs().clamp_min(0.1)
        assert step.max() < 2 * torch.finfo(dtype).eps
        plain = _at(make, net, buffers, t, policy, normalised(data, data.train).to(dtype))
        for split in (data.train, data.test):
            logits = plain(normalised(data, split).to(dtype)).detach()
            assert logits.dtype is dtype
            losses = F.cross_entropy(logits.double(), split.y, reduction="none")
            np.testing.assert_allclose(found[split.name].columns["nll"], losses, rtol=1e-3, atol=1e-3)
            wrong = 100 * float((logits.argmax(1) != split.y).double().mean())
            assert found[split.name].means["error"] == pytest.approx(wrong, abs=0.5)  # ties of narrow numbers
            assert found[split.name].means["nll"] == pytest.approx(float(losses.mean()), rel=1e-4)


def normalised(data, split):
    return (split.x - data.mean) / data.std


@torch.no_grad()
def _at(make, net, buffers, t, policy, x):
    """A module of its own, with the weights of a network; its statistics by an average of float64, or over x."""
    plain = make().to(net.point.dtype)
    plain.load_state_dict(net.state() | buffers[t == 1])
    norms = [m for m in plain if isinstance(m, nn.BatchNorm2d)]
    if norms and t not in (0, 1):
        (norm,) = norms
        entering = plain[0](x).double()
        for name, own in (("running_mean", entering.mean((0, 2, 3))), ("running_var", entering.var((0, 2, 3)))):
            ends = [b[f"1.{name}"].double() for b in buffers]
            getattr(norm, name).copy_(own if policy is BatchNorm.reestimate else (1 - t) * ends[0] + t * ends[1])
    return plain.eval()


@HALF
def test_lengths_of_a_path_are_those_of_its_numbers(dtype):
    W = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)).mul(40).to(dtype)
    rows = torch.stack([W[0].double(), *(W[k].double() - W[0].double() for k in (1, 2))])
    np.testing.assert_allclose(gram(W), rows @ rows.T, rtol=1e-12)
