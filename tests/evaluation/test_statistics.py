"""Running statistics in every layout and of every kind of norm, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modeconn_cli.evaluation.spectral import vector_names
from modeconn_cli.evaluation.statistics import estimable, norm_layers, reestimate, statistics_names
from modeconn_cli.weights import FlatModule


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def exact(batches):
    """Mean and unbiased variance of batches (N, C, ...) by channel, averaged by examples, in float64."""
    total = sum(len(x) for x in batches)
    mean, variance = 0, 0
    for x in batches:
        by_channel = x.double().movedim(1, 0).flatten(1)
        mean = mean + len(x) / total * by_channel.mean(1)
        variance = variance + len(x) / total * by_channel.var(1, correction=1)
    return mean, variance


def relative(found, wanted):
    return float(((found.double() - wanted) / wanted).abs().max())


def images(channels_last, n=240, channels=2, side=64):
    x = torch.randn(n, channels, side, side) + 0.7
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_pytorchs_own_kernel_is_wrong_in_the_third_digit():
    """Where this fails PyTorch has been mended, and reestimate may leave it to the layers again."""
    errors = []
    for channels_last in (True, False):
        x = images(channels_last)
        mean, variance = torch.zeros(2), torch.ones(2)
        F.batch_norm(x, mean, variance, None, None, True, 1.0)
        errors.append(relative(variance, exact([x])[1]))
    assert errors[0] > 1e-4
    assert errors[1] < 1e-6


@pytest.mark.parametrize("channels_last", [True, False])
def test_estimates_are_right_in_every_layout(channels_last):
    """So is what the next layers see, which is normalised by the same figures."""
    first, second = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    x = images(channels_last)
    reestimate(FlatModule(nn.Sequential(first, nn.ReLU(), second)), [x])
    mean, variance = exact([x])
    assert relative(first.running_mean, mean) < 1e-6
    assert relative(first.running_var, variance) < 1e-6
    count = x.numel() // 2
    around = (1, 2, 1, 1)
    biased = (variance * (count - 1) / count).view(around)
    seen = ((x.double() - mean.view(around)) / (biased + first.eps).sqrt()).clamp(min=0)
    mean, variance = exact([seen])
    assert relative(second.running_mean, mean) < 1e-6
    assert relative(second.running_var, variance) < 1e-6


def test_statistics_far_from_zero_keep_their_digits():
    layer = nn.BatchNorm1d(1)
    x = 3000 + torch.randn(500, 1)
    reestimate(FlatModule(nn.Sequential(layer)), [x])
    assert relative(layer.running_var, exact([x])[1]) < 1e-6


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.bn(input=x)


class Scaled(nn.BatchNorm1d):
    """Takes more than the input, and gives PyTorch's norm another one."""

    def forward(self, scale, x):
        return super().forward(scale * x)


class MoreArguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = Scaled(3)

    def forward(self, x):
        return self.bn(torch.tensor(2.0), x)


class OverTime(nn.BatchNorm1d):
    """Channels last, which PyTorch's norm is not given."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class OwnRule(nn.BatchNorm1d):
    """Computes for itself, and moves its statistics by its momentum."""

    def forward(self, x):
        if not self.training:
            return (x - self.running_mean) / (self.running_var + self.eps).sqrt()
        variance, mean = torch.var_mean(x, 0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        return (x - mean) / (variance + self.eps).sqrt()


class Written(nn.Module):
    """No subclass of PyTorch's, but its function."""

    def __init__(self):
        super().__init__()
        self.momentum = 0.1
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x):
        rest = self.running_mean, self.running_var, self.scale, None
        return F.batch_norm(x, *rest, training=self.training, momentum=self.momentum)


def batches(*sizes, more=()):
    return [2 + 3 * torch.randn(size, *more, 3) for size in sizes]


@pytest.mark.parametrize(
    ("make", "given", "sees"),
    [
        (ByKeyword, batches(7, 4), lambda x: x),
        (MoreArguments, batches(7, 4), lambda x: 2 * x),
        (lambda: OverTime(3), batches(7, 4, more=(5,)), lambda x: x.transpose(1, 2)),
        (lambda: OwnRule(3), batches(7, 4), lambda x: x),
        (Written, batches(7, 4), lambda x: x),
    ],
)
def test_whatever_a_norm_is_called_with_its_statistics_are_of_what_it_normalises(make, given, sees):
    module = nn.Sequential(make())
    net = FlatModule(module)
    (layer,) = norm_layers(module)
    layer.running_mean.fill_(99)
    reestimate(net, given, estimable(net, given[0]))
    mean, variance = exact([sees(x) for x in given])
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-6, atol=1e-6)
    assert layer.momentum == 0.1


def test_instance_norm_averages_its_examples():
    layer = nn.InstanceNorm1d(3, track_running_stats=True, affine=True)
    given = [2 + 3 * torch.randn(n, 3, 6) for n in (5, 2)]
    reestimate(FlatModule(nn.Sequential(layer)), given)
    every = torch.cat(given).double()
    torch.testing.assert_close(layer.running_mean.double(), every.mean(2).mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), every.var(2).mean(0), rtol=1e-6, atol=1e-6)


class Frozen(nn.Module):
    """One norm that its owner's train() holds in evaluation mode, and one that trains; train() returns nothing."""

    def __init__(self):
        super().__init__()
        self.held, self.free = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def train(self, mode=True):
        super().train(mode)
        self.held.eval()

    def forward(self, x):
        return self.free(self.held(x))


def test_a_norm_without_statistics_is_left_to_normalise_by_itself():
    """Beside one that has them; in evaluation mode it takes those of its input, too."""
    first, own = nn.InstanceNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False)
    tracked = nn.BatchNorm2d(2)
    x = 3 * torch.randn(6, 2, 4, 4) + 1
    reestimate(FlatModule(nn.Sequential(first, own, tracked)), [x])
    mean, variance = exact([own(first(x))])
    torch.testing.assert_close(tracked.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tracked.running_var.double(), variance, rtol=1e-5, atol=1e-6)


def test_one_value_a_channel_has_no_variance():
    with pytest.raises(ValueError, match="no variance"):
        reestimate(FlatModule(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))), [torch.ones(1, 3)])


def test_statistics_of_a_layer_with_two_names_go_by_both():
    norm, spectral = nn.BatchNorm1d(3), nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    module = nn.ModuleDict({"a": norm, "b": norm, "c": spectral, "d": spectral})
    names = {*statistics_names(module, [norm]), *vector_names(module)}
    assert names == {k for k in module.state_dict() if not k.endswith(("weight", "bias", "original"))}
    assert len(names) == 10


def test_frozen_norms_keep_their_statistics():
    module = Frozen()
    module.held.running_var.fill_(9.0)
    still = nn.BatchNorm1d(3, momentum=0.0)
    assert norm_layers(nn.Sequential(module, still)) == [module.free]
    x = batches(40)[0]
    reestimate(FlatModule(module), [x])
    assert module.held.running_var.tolist() == [9, 9, 9]
    _, variance = exact([x / (9 + module.held.eps) ** 0.5])
    torch.testing.assert_close(module.free.running_var.double(), variance, rtol=1e-5, atol=1e-6)


def test_a_norm_that_no_pass_reaches_keeps_its_statistics():
    module = nn.ModuleDict({"used": nn.BatchNorm1d(3), "idle": nn.BatchNorm1d(3)})
    module.forward = lambda x: module["used"](x)
    module["idle"].running_mean.fill_(5.0)
    reestimate(FlatModule(module), batches(9))
    assert module["idle"].running_mean.tolist() == [5, 5, 5]
    assert module["used"].running_mean.abs().min() > 0


class Unknown(nn.Module):
    """Normalises by hand, with a momentum that means something else."""

    def __init__(self):
        super().__init__()
        self.momentum = 0.9
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("running_mean", torch.full((3,), 4.0))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x):
        if self.training:
            self.running_mean = self.momentum * self.running_mean + (1 - self.momentum) * x.detach().mean(0)
        return (x - self.running_mean) * self.scale


def test_a_norm_that_is_not_understood_is_left_as_it_is():
    module = nn.Sequential(Unknown(), nn.BatchNorm1d(3))
    net, (x,) = FlatModule(module), batches(9)
    layers = estimable(net, x)
    assert layers == [module[1]]
    reestimate(net, [x], layers)
    assert module[0].running_mean.tolist() == [4, 4, 4]
    torch.testing.assert_close(module[1].running_mean, x.mean(0) - 4)
