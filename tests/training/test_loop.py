"""The one training loop against float64 autograd and loops written out by hand."""

from __future__ import annotations

import copy
import io
import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from modeconn_cli.data.dataset import Augment
from modeconn_cli.errors import RunFailed
from modeconn_cli.families.bezier import Bezier, segment
from modeconn_cli.families.chain import Chain
from modeconn_cli.families.options import Sampling
from modeconn_cli.families.point import Point
from modeconn_cli.tasks.base import Batch, Column, Criterion, draw_examples
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.training import loop
from modeconn_cli.training.loop import Trainer, steps_per_epoch
from modeconn_cli.training.recipe import Every, Optimizer, Schedule, Training
from modeconn_cli.training.schedules import learning_rate
from modeconn_cli.weights import FlatModule

FREE, FIXED = slice(0, None), slice(1, -1)


def constant(**fields):
    """A recipe without a schedule."""
    return Training(**{"schedule": Schedule.constant, "epochs": 2, "batch_size": 4, "lr": 0.1, **fields})


def begin(net, family, control_points, trained, data, recipe, seed, sampling=Sampling.stratified):
    """Training to classify, smoothed as the recipe says."""
    task = Classify(data, recipe.label_smoothing)
    return Trainer(net, family, control_points, trained, task, recipe, seed, sampling)


def descend(trainer, batch, c):
    """One step at the recipe's learning rate; the loss and the sums of other columns."""
    trainer.net.module.train()
    c = torch.as_tensor(np.asarray(c), dtype=trainer.W_kp.dtype)
    return trainer.descend(batch, c, torch.tensor(trainer.recipe.lr, dtype=torch.float64))


def draw_epoch(data, *asked):
    """What training to classify draws."""
    return loop.draw_epoch(Classify(data), *asked)


def mlp(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def with_unused(dtype=torch.float64, seed=0):
    """A parameter that the loss never sees still decays."""
    module = mlp(dtype, seed)
    module.register_parameter("spare", nn.Parameter(torch.full((3,), 0.7, dtype=dtype)))
    return module


def tied(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(4, 3)).to(dtype)


def noisy(dtype=torch.float64, seed=0):
    """BatchNorm and dropout: state that is not weights."""
    torch.manual_seed(seed)
    layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)
    return nn.Sequential(*layers).to(dtype)


def smoothed_cross_entropy(logits, y, smoothing):
    """Cross-entropy against (1 - s) one-hot + s / classes, written out."""
    classes = logits.shape[1]
    target = torch.full_like(logits, smoothing / classes)
    target[torch.arange(len(y)), y] += 1 - smoothing
    logp = logits - torch.log(torch.exp(logits).sum(1, keepdim=True))
    return -(target * logp).sum() / len(y)


def at_point(module, w, x):
    """The module's output with its trainable parameters taken from a vector; autograd goes through."""
    parts, start = {}, 0
    for name, p in module.named_parameters():
        parts[name] = w[start : start + p.numel()].reshape(p.shape)
        start += p.numel()
    assert start == len(w)
    return functional_call(module, parts, (x,))


def rows_gradient(module, W, c, x, y, decay=0.0, smoothing=0.0):
    """d/dW of CE(w) + decay/2 |w|^2 at w = sum_k c_k W_k, by autograd all the way to W; and the CE, and w."""
    W = W.detach().clone().requires_grad_()
    w = sum(float(c[k]) * W[k] for k in range(len(W)))
    loss = smoothed_cross_entropy(at_point(module, w, x), y, smoothing)
    (gradient,) = torch.autograd.grad(loss + decay / 2 * (w * w).sum(), W)
    return gradient, float(loss.detach()), w.detach()


def random_rows(net, K, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return 0.4 * torch.randn(K, len(net.point), generator=generator, dtype=net.point.dtype)


def times(data, seed, epoch, steps, sampling):
    """t of every step, which is a segment's second coefficient."""
    return draw_epoch(data, segment(), seed, epoch, steps, sampling).coefficients[:, 1]


def normalised(data, index):
    """Examples as the network must see them."""
    return (data.train.x[index] - data.mean) / data.std


# ---------------------------------------------------------------------------------------- one step's gradient

PATHS = [Bezier(1), Bezier(2), Bezier(3), Chain(1), Chain(3)]


CASES = [(path, trained) for path in PATHS for trained in (FREE, FIXED) if path != Bezier(1) or trained is FREE]


@pytest.mark.parametrize("make", [mlp, with_unused, tied])
@pytest.mark.parametrize(("path", "trained"), CASES, ids=str)
def test_gradient_of_every_row_is_autograds(path, trained, make, make_data):
    """Plain SGD with lr 1 moves each trained row by its gradient, and no other row at all."""
    data, module = make_data(), make()
    reference = copy.deepcopy(module)
    recipe = constant(lr=1.0, momentum=0.0, weight_decay=0.03, label_smoothing=0.15)
    net = FlatModule(module)
    W = random_rows(net, path.vertices)
    x, y = normalised(data, slice(0, 6)), data.train.y[:6]
    for t in (0.0, 0.37, 0.62, 1.0):
        moved, c = W.clone(), path.coefficients([t])[0]
        trainer = begin(net, path, moved, trained, data, recipe, seed=0)
        seen = record_batches(module)
        loss = descend(trainer, Batch(x, y), c)[0]
        ((_, logits),) = seen
        wanted, wanted_loss, w = rows_gradient(reference, W, c, x, y, decay=0.03, smoothing=0.15)
        torch.testing.assert_close((W - moved)[trained], wanted[trained], rtol=1e-10, atol=1e-14)
        untouched = torch.ones(len(W), dtype=torch.bool)
        untouched[trained] = False
        assert torch.equal(moved[untouched], W[untouched])
        assert float(loss) == pytest.approx(wanted_loss, rel=1e-12)
        torch.testing.assert_close(logits.detach(), at_point(reference, w, x).detach(), rtol=1e-12, atol=1e-13)


@settings(max_examples=30)
@given(
    path=st.one_of(st.integers(1, 5).map(Bezier), st.integers(0, 5).map(Chain)),
    t=st.floats(0, 1),
    decay=st.sampled_from([0.0, 1e-3, 0.5]),
    smoothing=st.sampled_from([0.0, 0.4]),
    seed=st.integers(0, 1000),
)
def test_gradient_for_any_path_and_t(make_data, path, t, decay, smoothing, seed):
    data, module = make_data(seed=seed), mlp(seed=seed)
    recipe = constant(lr=1.0, momentum=0.0, weight_decay=decay, label_smoothing=smoothing)
    net = FlatModule(copy.deepcopy(module))
    W = random_rows(net, path.vertices, seed)
    moved, c = W.clone(), path.coefficients([t])[0]
    x, y = normalised(data, slice(0, 5)), data.train.y[:5]
    descend(begin(net, path, moved, FREE, data, recipe, seed=0), Batch(x, y), c)
    wanted, _, _ = rows_gradient(module, W, c, x, y, decay, smoothing)
    torch.testing.assert_close(W - moved, wanted, rtol=1e-10, atol=1e-14)


def test_gradient_through_batch_statistics(make_data):
    """BatchNorm in training mode: the batch's own statistics at w(t), and its buffers moved once."""
    data, module = make_data(), noisy()
    module[3].p = 0.0
    reference = copy.deepcopy(module)
    net, path = FlatModule(module), Bezier(2)
    W = random_rows(net, 3)
    moved, c = W.clone(), path.coefficients([0.3])[0]
    x, y = normalised(data, slice(0, 6)), data.train.y[:6]
    recipe = constant(lr=1.0, momentum=0.0, weight_decay=0.01)
    descend(begin(net, path, moved, FREE, data, recipe, seed=0), Batch(x, y), c)
    wanted, _, _ = rows_gradient(reference, W, c, x, y, decay=0.01)
    torch.testing.assert_close(W - moved, wanted, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(module[1].running_mean, reference[1].running_mean)
    assert module[1].num_batches_tracked.item() == 1


def test_decay_acts_on_the_point_not_on_the_rows(make_data):
    """Where the loss is flat, dW_k = wd c_k w(t): rows that cancel at t do not decay, however long they are."""
    data = make_data()
    net = FlatModule(with_unused())
    W = torch.zeros(3, len(net.point), dtype=torch.float64)
    names = net.named(torch.arange(len(net.point)))
    spare = names["spare"]
    W[:, spare] = torch.tensor([[4.0, 4, 4], [-4, -2, 0], [4, 4, 4]], dtype=torch.float64)
    before, c = W.clone(), [0.25, 0.5, 0.25]
    recipe = constant(lr=1.0, momentum=0.0, weight_decay=0.1)
    descend(begin(net, Bezier(2), W, FREE, data, recipe, seed=0), Batch(data.train.x, data.train.y), c)
    point = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close((before - W)[:, spare], 0.1 * torch.outer(torch.tensor(c).double(), point))


def test_decoupled_decay_shrinks_rows_by_their_share_of_the_point(make_data):
    """AdamW where the loss is flat: Adam does not move, and decay takes lr wd c_k w(t)."""
    data = make_data()
    net = FlatModule(with_unused())
    W = torch.zeros(3, len(net.point), dtype=torch.float64)
    spare = net.named(torch.arange(len(net.point)))["spare"]
    W[:, spare] = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.float64)
    before, c = W.clone(), [0.25, 0.5, 0.25]
    recipe = constant(lr=0.5, optimizer=Optimizer.adamw, weight_decay=0.1)
    descend(begin(net, Bezier(2), W, FREE, data, recipe, seed=0), Batch(data.train.x, data.train.y), c)
    point = torch.tensor([4.0, 5.0, 6.0], dtype=torch.float64)
    torch.testing.assert_close((before - W)[:, spare], 0.05 * torch.outer(torch.tensor(c).double(), point))


class Spectral(nn.Module):
    """Complex weights before real ones."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(4, 5, dtype=torch.complex128))
        self.head = nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, x):
        return self.head((x.to(self.a.dtype) @ self.a).abs())


@pytest.mark.parametrize("trained", [FREE, FIXED])
@pytest.mark.parametrize("optimizer", [Optimizer.sgd, Optimizer.adam])
def test_complex_weights_descend_in_their_real_and_imaginary_parts(trained, optimizer, make_data):
    data, torch_rule = make_data(), {Optimizer.sgd: torch.optim.SGD, Optimizer.adam: torch.optim.Adam}[optimizer]
    module = Spectral()
    net = FlatModule(module)
    W, c = random_rows(net, 3), [0.25, 0.5, 0.25]
    expected = W.clone().requires_grad_()
    w = torch.tensor(c, dtype=torch.float64) @ expected
    parts = {"a": torch.view_as_complex(w[:40].view(4, 5, 2)), "head.weight": w[40:55].view(3, 5), "head.bias": w[55:]}
    logits = functional_call(module, parts, (data.train.x,))
    (smoothed_cross_entropy(logits, data.train.y, 0.0) + 0.05 * (w @ w)).backward()
    torch_rule([expected], lr=0.1).step()
    recipe = constant(lr=0.1, momentum=0.0, weight_decay=0.1, optimizer=optimizer)
    before = W.clone()
    descend(begin(net, Bezier(2), W, trained, data, recipe, seed=0), Batch(data.train.x, data.train.y), c)
    torch.testing.assert_close(W[trained], expected[trained].detach(), rtol=1e-9, atol=1e-9)
    if trained == FIXED:
        assert torch.equal(W[[0, 2]], before[[0, 2]])


# ------------------------------------------------------------------------------- whole runs, against plain loops

RECIPES = {
    "sgd": constant(momentum=0.0, weight_decay=0.02),
    "momentum": constant(momentum=0.9, weight_decay=0.02),
    "nesterov": constant(momentum=0.8, nesterov=True, weight_decay=0.02),
    "adam": constant(optimizer=Optimizer.adam, lr=0.01, betas=[0.8, 0.95], eps=1e-6, weight_decay=0.02),
    "adamw": constant(optimizer=Optimizer.adamw, lr=0.01, betas=[0.8, 0.95], eps=1e-6, weight_decay=0.3),
    "no decay": constant(momentum=0.9, weight_decay=0.0),
    "smoothed": constant(momentum=0.9, weight_decay=0.02, label_smoothing=0.2),
}


def plain_optimizer(recipe, parameters):
    if recipe.optimizer is Optimizer.sgd:
        return torch.optim.SGD(
            parameters,
            recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
    kind = {Optimizer.adam: torch.optim.Adam, Optimizer.adamw: torch.optim.AdamW}[recipe.optimizer]
    return kind(parameters, recipe.lr, betas=tuple(recipe.betas), eps=recipe.eps, weight_decay=recipe.weight_decay)


@pytest.mark.parametrize("make", [mlp, tied, noisy])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_ordinary_training_is_a_plain_loop(recipe, make, make_data):
    """The optimizer's own weight decay over module.parameters() on the same batches."""
    data, plain = make_data(), make()
    net = FlatModule(copy.deepcopy(plain))
    trainer = begin(net, Point(), net.point[None], slice(0, 1), data, recipe, seed=3)
    trainer.run()

    optimizer = plain_optimizer(recipe, plain.parameters())
    plain.train()
    torch.manual_seed(3)
    for epoch in range(2):
        order = draw_epoch(data, Point(), 3, epoch, 3, Sampling.stratified).order
        for batch in (order[0:4], order[4:8], order[8:11]):
            optimizer.zero_grad()
            logits = plain(normalised(data, batch))
            smoothed_cross_entropy(logits, data.train.y[batch], recipe.label_smoothing).backward()
            optimizer.step()
    assert trainer.step == 6
    for (name, mine), wanted in zip(net.module.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


class HandOptimizer:
    """SGD (Sutskever's momentum as PyTorch has it, Nesterov) and Adam (Kingma and Ba, algorithm 1) for one tensor."""

    def __init__(self, recipe):
        self.recipe, self.step, self.m, self.v = recipe, 0, 0.0, 0.0

    def update(self, gradient, lr):
        recipe = self.recipe
        self.step += 1
        if recipe.optimizer is Optimizer.sgd:
            self.m = recipe.momentum * self.m + gradient
            return lr * (gradient + recipe.momentum * self.m if recipe.nesterov else self.m)
        b1, b2 = recipe.betas
        self.m = b1 * self.m + (1 - b1) * gradient
        self.v = b2 * self.v + (1 - b2) * gradient**2
        m, v = self.m / (1 - b1**self.step), self.v / (1 - b2**self.step)
        return lr * m / (v.sqrt() + recipe.eps)


@pytest.mark.parametrize("trained", [FREE, FIXED, slice(1, None)], ids=["free", "fixed", "free end"])
@pytest.mark.parametrize("path", [Bezier(2), Bezier(3), Chain(2)], ids=repr)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_curve_training_is_a_loop_by_hand(recipe, path, trained, make_data):
    """Garipov et al. 2018, section 3.2, with the learning rate of his code, one row at a time."""
    recipe = replace(recipe, schedule=Schedule.garipov, epochs=4)
    factors = [1, 1, 1 - 0.99 * 0.625, 0.01]  # 1-based epochs of four: 1/4, 1/2, 3/4, 1
    data, module = make_data(), mlp()
    net = FlatModule(copy.deepcopy(module))
    W = random_rows(net, path.vertices)
    ours = W.clone()
    begin(net, path, ours, trained, data, recipe, seed=5).run()

    optimizers = {k: HandOptimizer(recipe) for k in range(len(W))[trained]}
    coupled = 0.0 if recipe.optimizer is Optimizer.adamw else recipe.weight_decay
    for epoch in range(4):
        drawn = draw_epoch(data, path, 5, epoch, 3, Sampling.stratified)
        lr = recipe.lr * factors[epoch]
        drawn_t = times(data, 5, epoch, 3, Sampling.stratified)
        for batch, t in zip((slice(0, 4), slice(4, 8), slice(8, 11)), drawn_t, strict=True):
            chosen, c = drawn.order[batch], path.coefficients([t])[0]
            x, y = normalised(data, chosen), data.train.y[chosen]
            gradient, _, w = rows_gradient(module, W, c, x, y, coupled, recipe.label_smoothing)
            for k, optimizer in optimizers.items():
                if recipe.optimizer is Optimizer.adamw:
                    W[k] -= lr * recipe.weight_decay * c[k] * w
                W[k] -= optimizer.update(gradient[k], lr)
    torch.testing.assert_close(ours, W, rtol=1e-9, atol=1e-11)


def test_the_network_ends_where_its_only_control_point_is(make_data):
    data, module = make_data(), mlp()
    net = FlatModule(module)
    start = net.point.clone()
    begin(net, Point(), net.point[None], slice(0, 1), data, constant(), seed=0).run()
    assert not torch.equal(net.point, start)
    assert torch.equal(torch.cat([p.detach().flatten() for p in module.parameters()]), net.point)


# -------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(
    ("n", "size", "steps"),
    [(10, 5, 2), (11, 5, 2), (12, 5, 3), (9, 5, 2), (6, 5, 1), (5, 5, 1), (4, 5, 1), (2, 5, 1), (1, 5, 1), (3, 1, 3)],
)
def test_steps_of_an_epoch(n, size, steps):
    assert steps_per_epoch(n, size) == steps


def record_batches(module):
    """Every input and output of the module from now on."""
    seen = []
    module.register_forward_hook(lambda _, args, out: seen.append((args[0].clone(), out.detach().clone())))
    return seen


@pytest.mark.parametrize(
    ("n", "size", "sizes"),
    [(7, 3, [3, 3]), (8, 3, [3, 3, 2]), (9, 3, [3, 3, 3]), (5, 8, [5]), (1, 4, [1]), (3, 1, [1, 1, 1])],
)
def test_batches_are_the_order_cut_in_pieces(n, size, sizes, make_data):
    """The short last batch is used; one of a single example is left out."""
    data, module = make_data(n=n), mlp()
    seen = record_batches(module)
    net = FlatModule(module)
    recipe = constant(epochs=1, batch_size=size)
    begin(net, Point(), net.point[None], slice(0, 1), data, recipe, seed=4).run()
    assert [len(x) for x, _ in seen] == sizes
    order = draw_epoch(data, Point(), 4, 0, len(sizes), Sampling.stratified).order
    torch.testing.assert_close(torch.cat([x for x, _ in seen]), normalised(data, order[: sum(sizes)]))


@pytest.mark.parametrize("n", [7, 8, 9])
@pytest.mark.parametrize("path", [Point(), Bezier(2)], ids=repr)
def test_rows_are_means_over_every_example(path, n, make_data):
    """Not means of batch means: batches of 3, 3 and 2 (n = 8)."""
    data, module = make_data(n=n), mlp()
    seen = record_batches(module)
    net = FlatModule(module)
    W = net.point[None] if path == Point() else random_rows(net, 3) * 5
    recipe = constant(epochs=3, batch_size=3, lr=0.5, schedule=Schedule.linear)
    trainer = begin(net, path, W, FREE, data, recipe, seed=4)
    trainer.run()
    steps = trainer.steps_per_epoch
    assert [r["epoch"] for r in trainer.rows] == [1, 2, 3]
    assert [r["step"] for r in trainer.rows] == [steps, 2 * steps, 3 * steps]
    assert [r["lr"] for r in trainer.rows] == pytest.approx([0.5, 0.5 * 2 / 3, 0.5 / 3])
    for epoch, row in enumerate(trainer.rows):
        outputs = torch.cat([out for _, out in seen[epoch * steps : (epoch + 1) * steps]])
        labels = data.train.y[draw_epoch(data, Point(), 4, epoch, steps, Sampling.stratified).order[: len(outputs)]]
        losses = [float(smoothed_cross_entropy(o[None], y[None], 0.0)) for o, y in zip(outputs, labels, strict=True)]
        wrong = [int(o.tolist().index(max(o.tolist())) != int(y)) for o, y in zip(outputs, labels, strict=True)]
        assert row["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
        assert row["train_error"] == pytest.approx(100 * sum(wrong) / len(wrong), rel=1e-12)


class Squares:
    """Mean squared error against one-hot labels, and how far off the largest output is; its own columns."""

    columns = Column("mse", "squared error"), Column("worst", "worst deviation", scale=1000.0)
    verdict = Criterion("mse", "above_mean", 0.1)
    outputs = 3

    def __init__(self, data):
        self.data = data

    def draw(self, seed, epoch):
        return draw_examples(self.data, seed, epoch)

    def batch(self, split, index, draw=None):
        return Batch(self.data.inputs(split, index, draw), split.y[index])

    def loss(self, output, batch):
        return self.scores(output, batch)["mse"].mean()

    def scores(self, output, batch):
        off = output["answer"] - nn.functional.one_hot(batch.y, 3)
        return {"mse": off.square().mean(1), "worst": off.abs().amax(1)}


class Answers(nn.Module):
    """A network that returns a dict."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        return {"answer": self.inner(x)}


def test_any_objective_is_trained_and_its_columns_are_reported(make_data):
    """Plain SGD on a mean squared error, against the same written out."""
    data, net = make_data(), FlatModule(Answers())
    plain = mlp()
    W = net.point[None]
    trainer = Trainer(net, Point(), W, slice(0, 1), Squares(data), constant(momentum=0.0, weight_decay=0.0), seed=4)
    trainer.run()
    losses, worst = [], []
    for epoch in range(2):
        order = draw_epoch(data, Point(), 4, epoch, 3, Sampling.stratified).order
        for batch in (order[:4], order[4:8], order[8:11]):
            off = plain(normalised(data, batch)) - torch.eye(3, dtype=torch.float64)[data.train.y[batch]]
            loss = (off * off).sum() / (3 * len(batch))
            losses.append(float(loss.detach()) * len(batch))
            worst.append(float(off.detach().abs().max(1).values.sum()))
            gradients = torch.autograd.grad(loss, [*plain.parameters()])
            with torch.no_grad():
                for p, g in zip(plain.parameters(), gradients, strict=True):
                    p -= 0.1 * g
    wanted = torch.cat([p.detach().flatten() for p in plain.parameters()])
    torch.testing.assert_close(net.point, wanted, rtol=1e-10, atol=1e-12)
    assert [list(row) for row in trainer.rows] == [["epoch", "step", "lr", "train_loss", "train_worst"]] * 2
    for epoch, row in enumerate(trainer.rows):
        assert row["train_loss"] == pytest.approx(sum(losses[3 * epoch : 3 * epoch + 3]) / 11, rel=1e-6)
        assert row["train_worst"] == pytest.approx(1000 * sum(worst[3 * epoch : 3 * epoch + 3]) / 11, rel=1e-6)


def test_smoothing_leaves_perfectly_smoothed_logits_alone(make_data):
    """A bias-only network at the smoothed targets' log has no gradient; at any other point it has one."""
    data = make_data()
    data = replace(data, train=replace(data.train, y=torch.zeros_like(data.train.y)))
    smoothing = 0.3
    target = torch.tensor([1 - smoothing + smoothing / 3, smoothing / 3, smoothing / 3], dtype=torch.float64)
    net = FlatModule(nn.Linear(4, 3).double())
    net.point.zero_()
    net.point[-3:] = target.log()
    recipe = constant(lr=1.0, momentum=0.0, weight_decay=0.0, label_smoothing=smoothing)
    trainer = begin(net, Point(), net.point[None], slice(0, 1), data, recipe, seed=0)
    loss = descend(trainer, Batch(data.train.x, data.train.y), [1.0])[0]
    torch.testing.assert_close(net.point[-3:], target.log(), rtol=1e-12, atol=1e-14)
    assert float(loss) == pytest.approx(float(-(target * target.log()).sum()), rel=1e-12)


# ------------------------------------------------------------------------------------------------ the draw


@given(st.integers(1, 60), st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_is_every_example_once_and_one_t_a_stratum(make_data, n, seed, epoch):
    data = make_data(n=n)
    drawn = draw_epoch(data, segment(), seed, epoch, n, Sampling.stratified)
    assert sorted(drawn.order.tolist()) == list(range(n))
    assert sorted(np.floor(drawn.coefficients[:, 1] * n).astype(int).tolist()) == list(range(n))
    assert len(drawn.augmentation) == n


@pytest.mark.parametrize("sampling", Sampling)
def test_t_is_drawn_as_ever(sampling, make_data):
    """Figures of runs that are already published stand on this very stream."""
    entropy = np.random.SeedSequence([3, 5]).generate_state(2, np.uint64)
    rng = np.random.default_rng(entropy[1])
    t = rng.random(7)
    if sampling is Sampling.stratified:
        t = (rng.permutation(7) + t) / 7
    drawn = draw_epoch(make_data(), Bezier(2), 3, 5, 7, sampling)
    assert np.array_equal(drawn.coefficients, Bezier(2).coefficients(t))


def test_uniform_t_is_not_stratified(make_data):
    t = times(make_data(), 0, 0, 1000, Sampling.uniform)
    assert ((t >= 0) & (t < 1)).all()
    strata = len(np.unique(np.floor(t * 1000)))
    assert 590 < strata < 675  # 1 - 1/e of them


@pytest.mark.parametrize("sampling", Sampling)
def test_t_is_uniform_at_every_step_of_an_epoch(sampling, make_data):
    """Stratified t must not rise with the step, nor sit anywhere special inside its stratum."""
    data = make_data()
    t = np.stack([times(data, 0, epoch, 4, sampling) for epoch in range(3000)])
    error = 1 / np.sqrt(12 * 3000)
    assert np.abs(t.mean(0) - 0.5).max() < 4.5 * error
    np.testing.assert_allclose(np.quantile(t, [0.1, 0.25, 0.5, 0.75, 0.9]), [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.02)
    within = (t * 4) % 1
    assert abs(within.mean() - 0.5) < 4.5 * error / 2
    assert within.var() == pytest.approx(1 / 12, rel=0.05)


def test_a_draw_depends_on_seed_and_epoch_alone(make_data):
    data = replace(make_data(n=50, shape=(1, 4, 4)), augment=Augment(crop_padding=2, flip=True))

    def everything(seed, epoch, sampling=Sampling.stratified):
        drawn = draw_epoch(data, segment(), seed, epoch, 10, sampling)
        return (
            drawn.order.tolist(),
            drawn.coefficients[:, 1].tolist(),
            drawn.augmentation.offsets.tolist(),
            drawn.augmentation.flips,
        )

    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = everything(3, 4)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    state = torch.get_rng_state()
    again = everything(3, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert again[:3] == first[:3]
    assert torch.equal(again[3], first[3])
    for other in (everything(3, 5), everything(4, 4), everything(4, 3)):
        assert all(a != b for a, b in zip(other[:3], first[:3], strict=True))
    uniform = everything(3, 4, Sampling.uniform)
    assert uniform[0] == first[0]
    assert uniform[1] != first[1]


def test_augmentation_is_the_drawn_one(make_data):
    data = replace(make_data(n=8, shape=(1, 3, 3)), augment=Augment(flip=True))
    module = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).double()
    seen = record_batches(module)
    net = FlatModule(module)
    begin(net, Point(), net.point[None], slice(0, 1), data, constant(epochs=1), seed=0).run()
    drawn = draw_epoch(data, Point(), 0, 0, 2, Sampling.stratified)
    wanted = [
        (data.train.x[i].flip(-1) if flip else data.train.x[i])
        for i, flip in zip(drawn.order, drawn.augmentation.flips, strict=True)
    ]
    assert 0 < int(drawn.augmentation.flips.sum()) < 8
    torch.testing.assert_close(torch.cat([x for x, _ in seen]), (torch.stack(wanted) - data.mean) / data.std)


# ---------------------------------------------------------------------------------------------- schedules


def rates(steps_in_epoch, **fields):
    recipe = Training(lr=2.0, **fields)
    return [learning_rate(recipe, s, steps_in_epoch) / 2 for s in range(recipe.epochs * steps_in_epoch)]


S, E = Schedule, Every
HALF_ROOT = math.sqrt(0.5) / 2
TABLES = {
    # Garipov's code: alpha = epoch / epochs with epochs from 1; 1 to 0.5, then down to 0.01 at 0.9.
    "garipov, epochs": (
        1,
        {"schedule": S.garipov, "epochs": 10},
        [1, 1, 1, 1, 1, 0.7525, 0.505, 0.2575, 0.01, 0.01],
    ),
    "garipov, two steps an epoch": (
        2,
        {"schedule": S.garipov, "epochs": 4},
        [1, 1, 1, 1, 0.38125, 0.38125, 0.01, 0.01],
    ),
    "garipov, steps": (
        10,
        {"schedule": S.garipov, "epochs": 1, "schedule_every": E.step},
        [1, 1, 1, 1, 1, 1, 0.7525, 0.505, 0.2575, 0.01],
    ),
    "garipov, one epoch": (3, {"schedule": S.garipov, "epochs": 1}, [0.01, 0.01, 0.01]),
    "constant": (2, {"schedule": S.constant, "epochs": 2}, [1, 1, 1, 1]),
    "cosine, epochs": (1, {"schedule": S.cosine, "epochs": 4}, [1, 0.5 + HALF_ROOT, 0.5, 0.5 - HALF_ROOT]),
    "cosine, steps": (
        4,
        {"schedule": S.cosine, "epochs": 1, "schedule_every": E.step},
        [1, 0.5 + HALF_ROOT, 0.5, 0.5 - HALF_ROOT],
    ),
    "linear, epochs": (2, {"schedule": S.linear, "epochs": 4}, [1, 1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]),
    "linear, steps": (
        2,
        {"schedule": S.linear, "epochs": 2, "schedule_every": E.step},
        [1, 0.75, 0.5, 0.25],
    ),
    "multistep": (
        1,
        {"schedule": S.multistep, "epochs": 10, "milestones": [0.3, 0.7], "gamma": 0.2},
        [1, 1, 1, 0.2, 0.2, 0.2, 0.2, 0.04, 0.04, 0.04],
    ),
    "multistep inside an epoch": (
        2,
        {"schedule": S.multistep, "epochs": 2, "milestones": [0.25], "gamma": 0.5},
        [1, 1, 0.5, 0.5],
    ),
    "warm-up, then steps": (
        4,
        {"schedule": S.linear, "epochs": 3, "warmup_epochs": 1, "schedule_every": E.step},
        [0.25, 0.5, 0.75, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125],
    ),
    "warm-up, then epochs": (
        4,
        {"schedule": S.linear, "epochs": 3, "warmup_epochs": 1},
        [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5],
    ),
    "half an epoch's warm-up": (
        4,
        {"schedule": S.linear, "epochs": 2, "warmup_epochs": 0.5},
        [0.5, 1, 1, 1, 2 / 3, 2 / 3, 2 / 3, 2 / 3],
    ),
    "warm-up, then garipov": (
        1,
        {"schedule": S.garipov, "epochs": 11, "warmup_epochs": 1},
        [1, 1, 1, 1, 1, 1, 0.7525, 0.505, 0.2575, 0.01, 0.01],
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_schedules_worked_by_hand(name):
    steps, fields, wanted = TABLES[name]
    assert rates(steps, **fields) == pytest.approx(wanted, rel=1e-12)


@given(
    schedule=st.sampled_from([s for s in Schedule if s is not Schedule.constant]),
    every=st.sampled_from(Every),
    epochs=st.integers(1, 30),
    steps=st.integers(1, 12),
    share=st.floats(0, 0.9),
)
def test_rates_rise_to_the_peak_and_never_rise_again(schedule, every, epochs, steps, share):
    warmup = share * epochs
    values = rates(steps, schedule=schedule, schedule_every=every, epochs=epochs, warmup_epochs=warmup)
    rising = round(warmup * steps)
    assert values[:rising] == pytest.approx([(i + 1) / rising for i in range(rising)])
    after = values[rising:]
    assert all(a >= b for a, b in pairwise(after))
    assert all(0 < v <= 1 for v in values)


def test_the_loop_moves_with_the_schedules_rate(make_data):
    """Plain SGD on a flat loss with decay alone: w shrinks by 1 - lr wd at every step."""
    data, net = make_data(), FlatModule(with_unused())
    recipe = constant(momentum=0.0, weight_decay=0.5, lr=0.4, epochs=2, schedule=Schedule.linear, warmup_epochs=1)
    seen = []
    trainer = begin(net, Point(), net.point[None], slice(0, 1), data, recipe, seed=0)
    trainer.run(lambda t: seen.append((t.lr, t.step)))
    wanted = [0.4 / 3, 0.8 / 3, 0.4, 0.4, 0.4, 0.4]
    assert [lr for lr, _ in seen] == pytest.approx(wanted)
    assert [step for _, step in seen] == [1, 2, 3, 4, 5, 6]
    spare = net.named(net.point)["spare"]
    assert spare.tolist() == pytest.approx([0.7 * math.prod(1 - 0.5 * lr for lr in wanted)] * 3, rel=1e-12)


def test_the_loop_moves_with_a_schedule_that_it_is_given(make_data):
    """By the step's number, whatever the recipe says, up and down."""
    data, net = make_data(), FlatModule(with_unused())
    recipe = constant(momentum=0.0, weight_decay=0.5, epochs=2, schedule=Schedule.linear, warmup_epochs=1)
    wanted, seen = [0.3, 0.1, 0.3, 0.2, 0.4, 0.1], []
    rows = net.point[None]
    trainer = Trainer(net, Point(), rows, slice(0, 1), Classify(data), recipe, 0, schedule=wanted.__getitem__)
    trainer.run(lambda t: seen.append(t.lr))
    assert seen == wanted
    assert [row["lr"] for row in trainer.rows] == [0.3, 0.1]
    spare = net.named(net.point)["spare"]
    assert spare.tolist() == pytest.approx([0.7 * math.prod(1 - 0.5 * lr for lr in wanted)] * 3, rel=1e-12)


# ----------------------------------------------------------------------------------------- stopping, resuming


def to_disk_and_back(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def frozen_noisy(dtype, seed):
    module = noisy(dtype, seed)
    module[0].bias.requires_grad_(False)
    return module


@pytest.mark.parametrize("recipe", [RECIPES["nesterov"], RECIPES["adam"], RECIPES["adamw"]], ids=lambda r: r.optimizer)
@pytest.mark.parametrize("path", [Point(), Bezier(2), Chain(2)], ids=repr)
@pytest.mark.parametrize("make", [noisy, frozen_noisy])
def test_resuming_at_any_step_changes_no_bit(make, path, recipe, make_data):
    data = make_data(dtype=torch.float32)
    recipe = replace(recipe, schedule=Schedule.cosine, schedule_every=Every.step)

    def fresh(module_seed):
        net = FlatModule(make(torch.float32, module_seed))
        if path == Point():
            return net, net.point[None], begin(net, path, net.point[None], slice(0, 1), data, recipe, seed=9)
        W = random_rows(net, path.vertices)
        return net, W, begin(net, path, W, FIXED, data, recipe, seed=9)

    net, W, trainer = fresh(0)
    saved = [to_disk_and_back(trainer.state())]
    trainer.run(lambda t: saved.append(to_disk_and_back(t.state())))
    assert [s["step"] for s in saved] == list(range(7))
    assert len(trainer.rows) == 2

    for state in saved:
        other_net, other_W, other = fresh(1)  # another initialisation, other buffers
        torch.manual_seed(12345)
        other.load(state)
        other.run()
        assert torch.equal(other_W, W), f"from step {state['step']}"
        assert other.rows == trainer.rows
        for name, value in net.rest().items():
            assert torch.equal(other_net.rest()[name], value), f"{name} from step {state['step']}"


def test_the_same_seed_gives_the_same_bits_and_another_does_not(make_data):
    data = make_data(dtype=torch.float32)

    def fit(seed):
        net = FlatModule(noisy(torch.float32, 0))
        W = random_rows(net, 3)
        begin(net, Bezier(2), W, FIXED, data, constant(), seed).run()
        return W

    first = fit(1)
    torch.manual_seed(77)
    assert torch.equal(fit(1), first)
    assert not torch.equal(fit(2), first)


def test_a_finished_run_stays_finished(make_data):
    data, net = make_data(), FlatModule(mlp())
    trainer = begin(net, Point(), net.point[None], slice(0, 1), data, constant(), seed=0)
    trainer.run()
    point, rows = net.point.clone(), copy.deepcopy(trainer.rows)
    trainer.run()
    assert torch.equal(net.point, point)
    assert trainer.rows == rows


# -------------------------------------------------------------------------------------------------- failure


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bad_place", [0, 5, 10])
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_loss_that_is_not_finite_stops_the_run(value, bad_place, epoch, make_data):
    """The step and its own learning rate are named, and nobody sees a state after it."""
    data = make_data()
    recipe = constant(lr=0.5, epochs=2, schedule=Schedule.linear, schedule_every=Every.step)
    net = FlatModule(mlp())
    poisoned = draw_epoch(data, Point(), 2, epoch, 3, Sampling.stratified).order[bad_place]
    trainer = begin(net, Point(), net.point[None], slice(0, 1), data, recipe, seed=2)
    seen = []

    def watch(t):
        seen.append(t.step)
        if t.step == 3 * epoch:
            data.train.x[poisoned] = value

    if epoch == 0:
        data.train.x[poisoned] = value
    step = 3 * epoch + bad_place // 4 + 1
    lr = 0.5 * (1 - (step - 1) / 6)
    words = rf"the loss became nan at step {step} of 6 with learning rate {re.escape(f'{lr:g}')};"
    with pytest.raises(RunFailed, match=words):
        trainer.run(watch)
    assert seen == list(range(1, step))


def test_no_state_is_given_after_a_loss_that_is_not_finite(make_data):
    """On an accelerator losses are read seldom, so asking for the state must look first."""
    data, net = make_data(), FlatModule(mlp())
    trainer = begin(net, Point(), net.point[None], slice(0, 1), data, constant(epochs=9), seed=2)
    trainer._check_every = 50
    data.train.x[draw_epoch(data, Point(), 2, 0, 3, Sampling.stratified).order[0]] = math.nan

    with pytest.raises(RunFailed, match="step 1 of 27"):
        trainer.run(lambda t: t.state())
    assert trainer.step == 1


def test_progress_shows_the_mean_of_this_epochs_losses(make_data):
    data, module = make_data(), mlp()
    seen = record_batches(module)
    net = FlatModule(module)
    shown = []
    trainer = begin(net, Point(), net.point[None], slice(0, 1), data, constant(), seed=0)
    assert math.isnan(trainer.recent_loss)
    trainer.run(lambda t: shown.append(t.recent_loss))
    losses = []
    for epoch in range(2):
        order = draw_epoch(data, Point(), 0, epoch, 3, Sampling.stratified).order
        for i, batch in enumerate((order[:4], order[4:8], order[8:])):
            losses.append(float(smoothed_cross_entropy(seen[3 * epoch + i][1], data.train.y[batch], 0)))
    wanted = [np.mean(losses[3 * (i // 3) : i + 1]) for i in range(6)]
    assert shown == pytest.approx(wanted, rel=1e-5)


def test_progress_of_a_long_epoch_shows_its_last_fifty_losses(make_data):
    data, net = make_data(n=60), FlatModule(mlp())
    trainer = begin(net, Point(), net.point[None], slice(0, 1), data, constant(batch_size=1, epochs=1), seed=0)
    shown = []
    trainer.run(lambda t: shown.append((t.recent_loss, float(t._losses[t.step - 1]))))
    losses = [loss for _, loss in shown]
    assert shown[-1][0] == pytest.approx(np.mean(losses[10:]), rel=1e-5)
    assert shown[-1][0] != pytest.approx(np.mean(losses), rel=1e-5)


def test_a_spectral_norm_follows_the_point_along_a_path(make_data):
    """Steps jump along a path, so one power iteration from the last point's vectors would be behind."""
    data = make_data(n=40)
    net = FlatModule(nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Linear(5, 3)).double())
    rows = random_rows(net, 3)
    trainer = begin(net, Bezier(2), rows, FIXED, data, constant(epochs=1), seed=1)
    norms = []

    def look(layer, _inputs, _output):
        with torch.no_grad():
            layer.eval()  # a look moves no vectors
            norms.append(float(torch.linalg.matrix_norm(layer.weight, 2)))
            layer.train()

    net.module[0].register_forward_hook(look)
    trainer.run()
    np.testing.assert_allclose(norms, 1, rtol=1e-9)
    assert len(norms) == 10
