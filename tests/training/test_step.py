"""What a step is made of: device tensors alone, any rows, a family's own forces; and the arithmetic it runs in."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from modeconn_cli.data.dataset import Augment
from modeconn_cli.families.base import Family
from modeconn_cli.families.bezier import Bezier
from modeconn_cli.families.chain import Chain
from modeconn_cli.families.point import Point
from modeconn_cli.front.compose import compose
from modeconn_cli.tasks.base import Batch
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.training.device_only import DeviceOnly
from modeconn_cli.training.loop import Trainer
from modeconn_cli.training.precision import arithmetic
from modeconn_cli.training.recipe import Optimizer, Precision, Schedule, Training
from modeconn_cli.weights import FlatModule
from modeconn_cli.work.context import Context
from modeconn_cli.work.reporting import Silent


def mlp(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def convolutional(dropout=0.0):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(64, 3))


def random_rows(net, K):
    generator = torch.Generator().manual_seed(7)
    return 0.4 * torch.randn(K, len(net.point), generator=generator, dtype=net.point.dtype)


class Plane(Family):
    """Affine coordinates about W[0], beyond the triangle too."""

    vertices = 3
    coordinates = "a", "b"

    def coefficients(self, u_td):
        u = 4 * np.asarray(u_td) - 1.5
        return np.hstack([1 - u.sum(1, keepdims=True), u])


class Perpendicular(Chain):
    """Only what of the gradient is across the chord moves a pivot (a nudged elastic band without springs)."""

    def force(self, g_p, W_kp, c_k):
        chord = W_kp[-1] - W_kp[0]
        across = g_p - (g_p @ chord) / (chord @ chord) * chord
        return c_k[:, None] * across


class Narrow(Bezier):
    """A triangle's squared area, a tenth of it, is part of the objective."""

    def penalty(self, gram_kk):
        edge = gram_kk[1:, 1:] - gram_kk[:1, 1:] - gram_kk[1:, :1] + gram_kk[0, 0]
        return 0.1 * (edge[0, 0] * edge[1, 1] - edge[0, 1] * edge[1, 0]) / 4


# ------------------------------------------------------------------------------------------------ on the device

RECIPES = {
    "sgd": {},
    "nesterov": {"nesterov": True},
    "adam": {"optimizer": Optimizer.adam},
    "adamw": {"optimizer": Optimizer.adamw},
    "bfloat16": {"precision": Precision.bfloat16},
    "smoothed": {"label_smoothing": 0.1},
}
FAMILIES = {
    "endpoint": (Point(), [0]),
    "curve": (Bezier(2), [1]),
    "free chain": (Chain(2), [0, 1, 2, 3]),
    "plane": (Plane(), [0, 2]),
    "forced": (Perpendicular(1), [1]),
    "penalised": (Narrow(2), [1]),
}


def image_trainer(make_data, family, trained, recipe, dropout=0.0):
    data = replace(make_data(n=11, shape=(3, 4, 4), dtype=torch.float32), augment=Augment(2, True))
    net = FlatModule(convolutional(dropout), channels_last=True)
    W = net.point[None] if family == Point() else random_rows(net, family.vertices)
    return Trainer(net, family, W, trained, Classify(data, recipe.label_smoothing), recipe, seed=1)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_reads_draws_and_moves_nothing(family, recipe, make_data):
    """From the gather of the augmented batch to the logged loss, the short last batch included."""
    trainer = image_trainer(make_data, *FAMILIES[family], Training(batch_size=4, lr=0.01, **RECIPES[recipe]))
    before = trainer.W_kp.clone()
    trainer.begin_epoch(0)
    with DeviceOnly():
        for size in (4, 4, 3):
            trainer.take_step(size)
    assert int(trainer._at) == 3
    assert (trainer._log[0] > 0).all()
    assert not torch.equal(trainer.W_kp, before)


def test_dropout_is_the_networks_own_and_all_that_a_step_draws(make_data):
    trainer = image_trainer(make_data, Point(), [0], Training(batch_size=4), dropout=0.5)
    trainer.begin_epoch(0)
    with DeviceOnly(dropout=True):
        trainer.take_step(4)
    with pytest.raises(RuntimeError, match="draws random numbers"), DeviceOnly():
        trainer.take_step(4)
    with pytest.raises(RuntimeError, match="draws random numbers"), DeviceOnly(dropout=True):
        torch.rand(4)


def test_one_step_is_the_same_call_for_every_place_of_every_epoch(make_data):
    """Which step it is, and all that was drawn for it, is in tensors that stay where they are."""
    trainer = image_trainer(make_data, Bezier(2), [1], Training(batch_size=4, epochs=2))
    trainer.begin_epoch(0)
    drawn = trainer._drawn
    held = [drawn.order, drawn.coefficients, drawn.rates, drawn.augmentation.offsets, drawn.augmentation.flips]
    places, before = [t.data_ptr() for t in held], [t.clone() for t in held]
    trainer.begin_epoch(1)
    assert trainer._drawn is drawn
    assert [t.data_ptr() for t in held] == places
    assert not any(torch.equal(a, b) for i, (a, b) in enumerate(zip(held, before, strict=True)) if i != 2)


REFUSED = {
    "a host read": lambda x: x.sum().item(),
    "an index without a dimension": lambda x: x[x.argmax()],
    "a comparison on the host": lambda x: torch.equal(x, x),
    "a mask": lambda x: x[x > 0],
    "a masked selection": lambda x: torch.masked_select(x, x > 0),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: torch.unique(x),
    "host values": lambda x: x + torch.tensor(3.0),
    "a draw": lambda x: x + torch.rand(4),
    "a draw in place": lambda x: x.normal_(),
    "an order": lambda x: x[torch.randperm(4)],
    "a python branch": lambda x: 1 if x.sum() > 0 else 0,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_guard_refuses(kind):
    x = torch.arange(4.0) - 1
    with pytest.raises(RuntimeError, match=r"^aten\."), DeviceOnly():
        REFUSED[kind](x)


def test_the_guard_refuses_two_devices():
    with pytest.raises(RuntimeError, match="cpu and meta"), DeviceOnly():
        torch.ones(3).to("meta")


def test_the_guard_lets_indices_pass():
    with DeviceOnly():
        x = torch.arange(4.0)
        assert x[torch.arange(3)].shape == (3,)
        assert x.index_select(0, torch.arange(1)).shape == (1,)


# ---------------------------------------------------------------------------------------------- any rows, any force


def autograd_of_rows(module, family, W, c, x, y, decay):
    """d/dW of CE(c W) + decay/2 |c W|^2 + penalty(W W^T), by autograd all the way to W."""
    W = W.clone().requires_grad_()
    w = sum(float(c[k]) * W[k] for k in range(len(W)))
    parts, start = {}, 0
    for name, p in module.named_parameters():
        parts[name] = w[start : start + p.numel()].view(p.shape)
        start += p.numel()
    logits = torch.func.functional_call(module, parts, (x,))
    loss = -torch.log_softmax(logits, 1)[torch.arange(len(y)), y].mean()
    loss = loss + decay / 2 * (w * w).sum() + family.penalty(W @ W.T)
    return torch.autograd.grad(loss, W)[0]


@pytest.mark.parametrize("trained", [[0], [2, 0], [0, 3], [1, 2, 3]], ids=str)
@pytest.mark.parametrize("family", [Chain(2), Bezier(3)], ids=repr)
def test_rows_that_are_no_slice_are_trained(family, trained, make_data):
    check_step(family, trained, [0.15, 0.6], make_data())


@pytest.mark.parametrize("trained", [[0], [1], [0, 2], [0, 1, 2]], ids=str)
def test_coefficients_may_be_negative(trained, make_data):
    check_step(Plane(), trained, [0.1, 0.9], make_data())
    check_step(Plane(), trained, [0.625, 0.625], make_data())  # (-1, 1, 1)


@pytest.mark.parametrize("c", [[0.2, 0.5, 0.3], [0, 0.4, 0.6], [0, 0, 1], [1, 0, 0], [0, 1, 0]], ids=str)
def test_a_point_is_interpolated_to_the_same_place(c, make_data):
    """Row by row, whichever rows have no share, as by the product; and at a row alone, to that row's bits."""
    net = FlatModule(mlp())
    W = random_rows(net, 3)
    trainer = Trainer(net, Bezier(2), W, [1], Classify(make_data()), Training(), seed=0)
    for way in (False, True):
        trainer._interpolates = way
        net.point.fill_(torch.nan)
        trainer._form_point(torch.tensor(c, dtype=torch.float64))
        torch.testing.assert_close(net.point, torch.tensor(c, dtype=torch.float64) @ W, rtol=1e-13, atol=1e-15)
        if max(c) == 1:
            assert torch.equal(net.point, W[c.index(1)])


@pytest.mark.parametrize("trained", [[1], [0, 1], [0, 1, 2]], ids=str)
def test_a_penalty_is_part_of_the_objective(trained, make_data):
    check_step(Narrow(2), trained, [0.4], make_data())


def check_step(family, trained, u, data):
    """Plain SGD with lr 1 moves each trained row by its gradient, and no other row at all."""
    net = FlatModule(mlp())
    u = np.array([u[: len(family.coordinates)]])
    W, c = random_rows(net, family.vertices), family.coefficients(u)[0]
    x, y = data.train.x[:6], data.train.y[:6]
    wanted = autograd_of_rows(copy.deepcopy(net.module), family, W, c, x, y, 0.03)
    moved = W.clone()
    recipe = Training(lr=1.0, momentum=0.0, weight_decay=0.03)
    trainer = Trainer(net, family, moved, trained, Classify(data), recipe, seed=0)
    trainer.descend(Batch(x, y), torch.as_tensor(c), torch.tensor(1.0, dtype=torch.float64))
    for k in range(len(W)):
        if k in trained:
            torch.testing.assert_close(W[k] - moved[k], wanted[k], rtol=1e-10, atol=1e-13)
        else:
            assert torch.equal(moved[k], W[k])


@pytest.mark.parametrize("trained", [[1], [1, 2]], ids=str)
def test_a_force_of_the_familys_own_moves_the_rows(trained, make_data):
    data, net, family = make_data(), FlatModule(mlp()), Perpendicular(2)
    W, c = random_rows(net, 4), family.coefficients([[0.45]])[0]
    x, y = data.train.x[:6], data.train.y[:6]
    full = autograd_of_rows(copy.deepcopy(net.module), Chain(2), W, c, x, y, 0.0)
    moved = W.clone()
    trainer = Trainer(
        net, family, moved, trained, Classify(data), Training(lr=1.0, momentum=0.0, weight_decay=0.0), seed=0
    )
    trainer.descend(Batch(x, y), torch.as_tensor(c), torch.tensor(1.0, dtype=torch.float64))
    chord = (W[3] - W[0]) / (W[3] - W[0]).norm()
    for k in trained:
        torch.testing.assert_close(W[k] - moved[k], full[k] - (full[k] @ chord) * chord, rtol=1e-9, atol=1e-13)
        assert abs((W[k] - moved[k]) @ chord) < 1e-12


# ------------------------------------------------------------------------------------------------------ alignment


@pytest.mark.parametrize("recipe", [{}, {"optimizer": Optimizer.adamw}, {"momentum": 0.0}], ids=str)
@pytest.mark.parametrize("family", [Point(), Bezier(2)], ids=repr)
def test_where_parameters_begin_does_not_matter(family, recipe, make_data):
    """A GPU's layout trains to what a CPU's does, and its zeros stay zeros."""
    data = replace(make_data(n=11, shape=(3, 4, 4), dtype=torch.float32), augment=Augment(2, True))
    ends = []
    for alignment in (1, 128):
        net = FlatModule(convolutional(), channels_last=True, alignment=alignment)
        W = net.point[None] if family == Point() else net.point.repeat(family.vertices, 1)
        trained = [0] if family == Point() else [1]
        options = Training(batch_size=4, epochs=3, schedule=Schedule.constant, lr=0.01, **recipe)
        Trainer(net, family, W, trained, Classify(data), options, seed=2).run()
        ends.append(net.named(W[trained[0]]))
        inside = torch.zeros_like(net.point)
        for view in net.views(inside):
            view.fill_(1)
        assert int(inside.sum()) == net.size
        assert not W[:, inside == 0].any()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


# ------------------------------------------------------------------------------------------------------- precision


def switches():
    """What PyTorch was told of float32 products, by every name."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    found = [cuda.allow_tf32, cudnn.allow_tf32]
    if hasattr(cuda, "fp32_precision"):
        found += [cuda.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision]
    return found


FULL, TF32 = [False, False, "ieee", "ieee", "ieee"], [True, True, "tf32", "tf32", "tf32"]


@pytest.mark.parametrize("kind", Precision)
def test_tf32_is_on_within_training_that_asks_for_it_and_nowhere_else(kind, make_data):
    data, net = make_data(dtype=torch.float32), FlatModule(mlp(torch.float32))
    recipe, seen = Training(epochs=1, batch_size=4, precision=kind), []
    trainer = Trainer(net, Point(), net.point[None], [0], Classify(data), recipe, seed=0)
    net.parameters[0].register_hook(lambda _: seen.append(switches()))  # in the backward pass
    before = switches()
    trainer.run()
    wanted = TF32 if kind is Precision.tf32 else FULL
    assert seen == [wanted[: len(before)]] * 3
    assert switches() == before


@pytest.mark.parametrize("kind", Precision)
def test_a_forward_pass_is_in_bfloat16_where_that_is_asked_for_and_nowhere_else(kind, make_data):
    net, seen = FlatModule(mlp(torch.float32)), []
    recipe = Training(epochs=1, batch_size=4, precision=kind)
    net.module[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    data = make_data(dtype=torch.float32)
    Trainer(net, Point(), net.point[None], [0], Classify(data), recipe, seed=0).run()
    assert seen == [torch.bfloat16 if kind is Precision.bfloat16 else torch.float32] * 3


def test_a_request_whose_curve_asks_for_tf32_begins_in_full_float32():
    """Its endpoints, and every evaluation, know nothing of it."""
    (job,) = compose(["curve.precision=tf32", "runtime.device=cpu", "runtime.threads=1"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    assert Context(job.config, Silent()).device.type == "cpu"
    assert switches() == FULL[: len(switches())]


def test_precision_is_as_before_when_training_fails():
    before = switches()
    with pytest.raises(ValueError, match="stop"), arithmetic(Precision.tf32):
        raise ValueError("stop")
    assert switches() == before


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="PyTorch before 2.9")
def test_precision_set_by_its_new_name_is_put_back():
    before = switches()
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
    try:
        with arithmetic(Precision.float32):
            assert switches() == FULL
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[:2]
        torch.backends.cuda.matmul.fp32_precision = before[2]
        torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.rnn.fp32_precision = before[3:]
