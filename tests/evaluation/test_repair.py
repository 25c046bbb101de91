"""REPAIR and RESCALE of small networks in float64, against their definitions written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from modeconn_cli.evaluation.evaluator import Evaluator
from modeconn_cli.evaluation.options import Interpolation, Renormalise
from modeconn_cli.evaluation.repair import Repair
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.weights import FlatModule


def dense(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def images(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(4, 5, 2), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)).double()


def by_channel(layer, x):
    return x if isinstance(layer, nn.Linear) else x.movedim(1, -1).flatten(0, -2)


def moments(module, x):
    """Of every set layer's output over all examples: mean and deviation (C,)."""
    found = []
    for layer in module[:-1]:
        x = layer(x)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            rows = by_channel(layer, x)
            found.append((rows.mean(0), rows.std(0, correction=0)))
    return found


def repaired(module, x, target, shift):
    """The module's output, each layer set as soon as it is computed."""
    target = iter(target)
    for layer in module[:-1]:
        x = layer(x)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            rows, (mean, std) = by_channel(layer, x), next(target)
            shape = [-1] + [1] * (x.dim() - 2)
            ratio = (std / rows.std(0, correction=0)).view(shape)
            x = (x - rows.mean(0).view(shape)) * ratio + mean.view(shape) if shift else x * ratio
    return module[-1](x)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.8, 0.2], [0.2, 0.3, 0.5]])
@pytest.mark.parametrize("make", [dense, images])
@torch.no_grad()
def test_a_repaired_network_is_set_layer_by_layer(make, shares, shift):
    x = torch.randn(40, *([4] if make is dense else [4, 3, 3]), generator=torch.Generator().manual_seed(9)).double()
    ends, net = [make(seed) for seed in range(len(shares))], FlatModule(make(0))
    repair = Repair(net, lambda: [x], shift)
    for end in ends:
        net.load(FlatModule(copy.deepcopy(end)).state())
        repair.add_end()
    points = torch.stack([FlatModule(copy.deepcopy(end)).point for end in ends])
    net.point.copy_(torch.tensor(shares, dtype=torch.float64) @ points)
    plain = net(x)
    repair.set(shares)
    target = []
    for layer in zip(*(moments(end, x) for end in ends), strict=True):
        target.append([sum(s * own[k] for s, own in zip(shares, layer, strict=True)) for k in range(2)])
    torch.testing.assert_close(net(x), repaired(net.module, x, target, shift), rtol=1e-5, atol=1e-6)
    repair.release()
    assert torch.equal(net(x), plain)


@torch.no_grad()
def test_statistics_of_batches_are_averaged_by_their_examples():
    """The pass that sets a network takes each batch's own deviation: of one layer, the mean variance within batches."""
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(9)).double()
    net = FlatModule(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double())
    repair = Repair(net, lambda: [x[:5], x[5:]], True)
    repair.add_end()
    hidden = net.module[0](x)
    mean, std = hidden.mean(0), hidden.std(0, correction=0)
    repair.set([1.0])
    within = (5 * hidden[:5].var(0, correction=0) + 2 * hidden[5:].var(0, correction=0)) / 7
    wanted = (hidden - mean) * (std / within.sqrt()) + mean
    torch.testing.assert_close(net(x), net.module[1](wanted), rtol=1e-5, atol=1e-6)
    repair.release()


@pytest.mark.parametrize("shift", [True, False])
@torch.no_grad()
def test_a_channel_that_does_not_vary_gets_the_mean_alone(shift):
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(9)).double()
    net = FlatModule(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)).double())
    repair = Repair(net, lambda: [x], shift)
    net.module[0].weight.fill_(1.0)
    net.module[0].bias.fill_(3.0)
    repair.add_end()
    mean = net.module[0](x).mean(0)[1]
    net.module[0].weight[1] = 0.0
    net.module[0].bias[1] = 0.5
    net.module[1].weight.copy_(torch.eye(2))
    net.module[1].bias.zero_()
    repair.set([1.0])
    torch.testing.assert_close(net(x)[:, 1], (mean if shift else torch.tensor(0.5)).expand(20).double())
    repair.release()


@pytest.mark.parametrize("kind", [Renormalise.repair, Renormalise.rescale])
def test_points_of_a_path_are_repaired_by_their_place(kind, make_data):
    data, ends = make_data(n=40), [dense(0), dense(1)]
    net = FlatModule(dense(2))
    W = torch.stack([FlatModule(copy.deepcopy(end)).point for end in ends])
    evaluator = Evaluator(net, Classify(data), Interpolation(renormalise=kind))
    x, y = (data.train.x - data.mean) / data.std, data.train.y
    for t in (0.25, 0.5, 1.0, 0.75):
        found = evaluator.at(W, torch.tensor([1 - t, t]).double().numpy(), [net.rest()] * 2)["train"]
        between = dense(0)
        FlatModule(between).point.copy_((1 - t) * W[0] + t * W[1])
        with torch.no_grad():
            pairs = zip(*(moments(end, x) for end in ends), strict=True)
            target = [[(1 - t) * a[k] + t * b[k] for k in range(2)] for a, b in pairs]
            logits = ends[1](x) if t == 1 else repaired(between, x, target, kind is Renormalise.repair)
        wanted = nn.functional.cross_entropy(logits, y, reduction="none")
        torch.testing.assert_close(found.columns["nll"], wanted, rtol=1e-5, atol=1e-6)


def test_a_layer_is_set_where_it_is_used_last_and_one_that_a_norm_follows_is_not():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.before, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
            self.head, self.unused = nn.Linear(4, 2), nn.Linear(4, 4)

        def forward(self, x):
            h = self.twice(x)
            return self.head(self.twice(self.norm(self.before(torch.relu(h)))))

    module = Shared()
    repair = Repair(FlatModule(module), lambda: [torch.randn(8, 4)], True)
    assert [n for s in repair.sites for n, m in module.named_modules() if m is s] == ["norm", "twice"]
