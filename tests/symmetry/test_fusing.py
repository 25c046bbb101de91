"""Norms folded into the layers before them: the function stays, in float64 and against PyTorch's own rewrite."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from modeconn_cli.errors import RunFailed
from modeconn_cli.models import build as models
from modeconn_cli.symmetry import fusing
from modeconn_cli.symmetry.fusing import Fusion, certify_fusion, find_fusion, fused


def shaken(module):
    """The module with weights and statistics of a trained one, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.5)
                if "var" in name:
                    tensor.add_(1)
    return module.eval()


class Chained(nn.Module):
    """Every kind of layer that a norm may follow."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4, eps=0.1), nn.ReLU(),
            nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False), nn.ReLU(),
            nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), nn.BatchNorm2d(4), nn.ReLU(),
        )  # fmt: skip
        self.line = nn.Sequential(nn.Conv1d(4, 3, 3, bias=False), nn.BatchNorm1d(3), nn.GELU())
        self.fc, self.norm = nn.Linear(3 * 6, 5), nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.line(self.body(x).mean(-1))
        return self.head(torch.relu(self.norm(self.fc(x.flatten(1)))))


def test_every_kind_of_layer_is_fused_exactly():
    net = shaken(Chained())
    x = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    fusion = find_fusion(net, x[:2])
    assert list(fusion.pairs) == [
        ("body.0", "body.1"), ("body.3", "body.4"), ("body.6", "body.7"), ("line.0", "line.1"), ("fc", "norm"),
    ]  # fmt: skip
    assert (fusion.left, fusion.remark) == ({}, "")
    made = fused(net, fusion)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in made.modules())
    assert not any("running" in name for name in made.state_dict())
    certificate = certify_fusion(net, fusion, x)
    assert certificate["difference"] < 1e-13
    assert certificate["control"] > 1e-3
    assert certificate["rounded"] < 1e-5
    exact = net.double()
    torch.testing.assert_close(fused(exact, fusion)(x.double()), exact(x.double()), rtol=1e-12, atol=1e-12)


def test_one_pair_is_what_pytorch_makes_of_it():
    net = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    made, theirs = fused(net, find_fusion(net, x)), fuse_conv_bn_eval(net[0], net[1])
    torch.testing.assert_close(made[0].weight, theirs.weight)
    torch.testing.assert_close(made[0].bias, theirs.bias)


@pytest.mark.parametrize(
    ("family", "options", "in_shape", "norms"),
    [
        ("mlp", {"width": 6, "norm": "batch"}, (7,), 3),
        ("resnet", {"depth": 8, "width": 0.25, "shortcut": "conv3x3"}, (1, 8, 8), 9),
        ("vgg", {"depth": 11, "width": 0.05, "batch_norm": True}, (1, 32, 32), 8),
    ],
)
def test_networks_of_this_package(family, options, in_shape, norms):
    net = shaken(models.build(family, in_shape, 4, **options))
    x = torch.randn(3, *in_shape)
    fusion = find_fusion(net, x[:2])
    assert (len(fusion.pairs), fusion.left) == (norms, {})
    assert certify_fusion(net, fusion, x)["difference"] < 1e-12


def test_the_module_given_stays_as_it_was():
    net = shaken(nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4))).train()
    before = copy.deepcopy(net.state_dict())
    fused(net, find_fusion(net, torch.zeros(2, 3)))
    assert net.training
    assert net[0].bias is None
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


class Awkward(nn.Module):
    """Norms that must stay, each for a reason of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm1d(4)  # the network's input
        self.a, self.tapped = nn.Linear(4, 4), nn.BatchNorm1d(4)  # a's output is used twice
        self.b, self.after = nn.Linear(4, 4), nn.BatchNorm1d(4)  # a ReLU stands between
        self.tied, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)  # used twice
        self.own = nn.LayerNorm(4)
        self.c, self.batch = nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)
        self.d, self.good = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.e, self.steps = nn.Linear(4, 4), nn.BatchNorm1d(3)  # whose channels are not the units
        self.weight = nn.Parameter(torch.ones(4, 4))
        self.bare = nn.BatchNorm1d(4)  # after a product without a module
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        x = self.first(x)
        y = self.a(x)
        x = self.tapped(y) + y
        x = self.after(self.b(x).relu())
        x = self.norm(self.tied(self.tied(x)))
        x = self.batch(self.c(self.own(x)))
        x = self.steps(self.e(x.unsqueeze(1).expand(-1, 3, -1))).mean(1)
        x = self.bare(F.linear(x, self.weight))
        return F.batch_norm(self.good(self.d(x)), self.mean, self.var)


def test_what_cannot_be_fused_is_named_with_its_reason():
    net = shaken(Awkward())
    fusion = find_fusion(net, torch.randn(2, 4))
    assert fusion.pairs == (("d", "good"),)
    reasons = {
        "first": "what is before it is the network's input",
        "tapped": "the output of a is used elsewhere too",
        "after": "what is before it is relu",
        "norm": "the weights of tied are used elsewhere too",
        "own": "its statistics are those of its input",
        "batch": "it keeps no running statistics",
        "steps": "its channels are not the units of e",
        "bare": "belong to no Linear or Conv module",
    }
    for norm, why in reasons.items():
        assert why in fusion.left[norm], (norm, fusion.left[norm])
    assert len(fusion.left) == len(reasons) + 1  # and the function at the end
    assert "\n" not in fusion.remark
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(fused(net.double(), fusion)(x), net(x))


def test_a_weight_that_two_modules_hold_is_left_alone():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    assert "used elsewhere" in find_fusion(shaken(net), torch.zeros(2, 4)).left["1"]


def test_a_network_that_computes_in_single_precision_is_judged_in_it():
    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))

        def forward(self, x):
            return self.body(x).float().relu()

    net = shaken(Casting())
    x = torch.randn(6, 4)
    fusion = find_fusion(net, x)
    found = certify_fusion(net, fusion, x)
    assert (found["dtype"], found["tolerance"]) == ("float32", 1e-4)
    assert found["difference"] < 1e-5 < found["control"]
    assert certify_fusion(net.double(), fusion, x)["rounded"] < 1e-5


def test_a_wrong_rewrite_is_found_out(monkeypatch):
    net = shaken(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)))
    x = torch.randn(4, 3)
    assert certify_fusion(net, find_fusion(net, x), x)["difference"] < 1e-13
    monkeypatch.setattr(fusing, "_scaled", lambda layer, gain: layer.weight.double())
    with pytest.raises(RunFailed, match="not the same function"):
        certify_fusion(net, Fusion((("0", "1"),), {}), x)


class Named(nn.Module):
    """A norm that has a name of its own and one in a sequence."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
        self.net = nn.Sequential(self.conv, self.bn, nn.ReLU())

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class OtherBias(nn.Module):
    """A linear map that leaves its bias out."""

    def __init__(self):
        super().__init__()
        self.fc, self.bn = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.bn(F.linear(x, self.fc.weight))


def test_a_norm_of_two_names_is_folded_under_both():
    net, x = shaken(Named()), torch.randn(4, 2, 3, 3)
    fusion = find_fusion(net, x)
    assert len(fusion.pairs) == 1
    assert certify_fusion(net, fusion, x)["difference"] < 1e-12


def test_a_bias_that_is_not_the_layers_own_is_named():
    fusion = find_fusion(shaken(OtherBias()), torch.randn(4, 4))
    assert fusion.pairs == ()
    assert "bias" in fusion.left["bn"]
