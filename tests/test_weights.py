"""Weights as one point: views, tied and frozen parameters, buffers, gradients, states that fit or do not."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from modeconn_cli.errors import UserError
from modeconn_cli.states import matching_state
from modeconn_cli.weights import FlatModule, combine


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Tied(nn.Module):
    """One matrix under two names, used twice, between two layers of their own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4, bias=False)
        self.again.weight = self.inner.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.again(torch.tanh(self.inner(x)))))


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)


def conv_bn():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 3)), torch.randn(6, 2, 5, 5)


def embedding():
    return nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 3)), torch.randint(10, (6, 2))


def tied():
    return Tied(), torch.randn(6, 4)


def frozen():
    module, x = mlp()
    module[0].bias.requires_grad_(False)
    return module, x


NETWORKS = pytest.mark.parametrize("make", [mlp, conv_bn, embedding, tied, frozen])


def trainable(module):
    """Distinct trainable parameters in the module's own order, found by identity."""
    found = []
    for parameter in module.parameters():
        if parameter.requires_grad and not any(parameter is other for other in found):
            found.append(parameter)
    return found


# --------------------------------------------------------------------------------------------------- views


@NETWORKS
def test_point_lists_the_parameters_in_order(make):
    module, _ = make()
    wanted = [v for p in trainable(module) for v in p.detach().flatten().tolist()]
    assert FlatModule(module).point.tolist() == wanted


@NETWORKS
def test_wrapping_changes_no_output(make):
    module, x = make()
    module.eval()
    before = module(x)
    assert torch.equal(FlatModule(module)(x), before)


@NETWORKS
def test_moving_the_point_moves_the_network(make):
    module, x = make()
    module.eval()
    net = FlatModule(module)
    before = module(x)
    net.point.mul_(1.5)
    assert not torch.allclose(module(x), before)
    start = 0
    for p in trainable(module):
        assert p.detach().flatten().tolist() == net.point[start : start + p.numel()].tolist()
        start += p.numel()
    assert start == len(net.point)


@NETWORKS
def test_moving_the_network_moves_the_point(make):
    module, x = make()
    net = FlatModule(module)
    optimizer = torch.optim.SGD(trainable(module), 0.5)
    before = net.point.clone()
    module(x).square().sum().backward()
    moved = torch.cat([(p - 0.5 * p.grad).detach().flatten() for p in trainable(module)])
    optimizer.step()
    assert torch.equal(net.point, moved)
    assert not torch.equal(net.point, before)


def test_bind_moves_to_another_vector_and_lets_go_of_the_first():
    module, x = mlp()
    net = FlatModule(module)
    first, second = net.point, torch.randn_like(net.point)
    net.bind(second)
    assert net.point is second
    first.zero_()
    assert torch.equal(module[0].weight, second[:20].view(5, 4))
    second.zero_()
    assert torch.equal(module(x), torch.zeros(6, 3))


def test_a_bound_row_of_a_matrix_is_moved_with_the_network():
    module, _ = mlp()
    W_kp = torch.randn(2, FlatModule(module).point.numel())
    net = FlatModule(module)
    net.bind(W_kp[1])
    with torch.no_grad():
        module[2].bias.fill_(7)
    assert W_kp[1, -3:].tolist() == [7, 7, 7]


def test_layout_in_memory_does_not_matter():
    plain = nn.Conv2d(3, 2, 2)
    turned = nn.Conv2d(3, 2, 2).to(memory_format=torch.channels_last)
    turned.load_state_dict(plain.state_dict())
    assert not turned.weight.is_contiguous()
    assert torch.equal(FlatModule(turned).point, FlatModule(plain).point)


@given(st.lists(st.lists(st.integers(1, 4), max_size=4), min_size=1, max_size=5))
def test_named_parts_have_the_parameters_names_and_shapes(shapes):
    module = nn.ParameterDict({f"p{i}": nn.Parameter(torch.randn(s)) for i, s in enumerate(shapes)})
    values = {n: p.detach().clone() for n, p in module.named_parameters()}
    net = FlatModule(module)
    assert len(net.point) == sum(math.prod(s) for s in shapes)
    named = net.named(net.point)
    assert list(named) == list(values)
    for name, value in values.items():
        assert torch.equal(named[name], value)
        assert named[name].shape == value.shape
    assert torch.equal(net.flatten(values), net.point)


# ------------------------------------------------------------------------------- tied, frozen and buffers


def test_tied_weights_are_one_set_of_coordinates():
    net = FlatModule(Tied())
    assert net.names == ["inner.weight", "inner.bias", "head.weight", "head.bias"]
    assert len(net.point) == 16 + 4 + 12 + 3
    net.point.normal_()
    assert torch.equal(net.module.again.weight, net.point[:16].view(4, 4))
    assert set(net.state()) == {"inner.weight", "inner.bias", "again.weight", "head.weight", "head.bias"}
    assert net.rest() == {}


def test_frozen_parameters_are_no_coordinates():
    module, _ = frozen()
    bias = module[0].bias.clone()
    net = FlatModule(module)
    assert net.names == ["0.weight", "2.weight", "2.bias"]
    net.point.zero_()
    assert torch.equal(module[0].bias, bias)
    assert list(net.rest()) == ["0.bias"]


def test_buffers_are_no_coordinates():
    module, _ = conv_bn()
    net = FlatModule(module)
    assert len(net.point) == 2 * 3 * 9 + 3 + 3 + 3 + 27 * 3 + 3
    net.point.fill_(5)
    assert module[1].running_var.tolist() == [1, 1, 1]
    assert set(net.rest()) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_rest_goes_back_where_it_came_from():
    module, x = conv_bn()
    net = FlatModule(module)
    rest = net.rest()
    point = net.point.clone()
    module(x)  # in training mode
    moved = net.rest()
    assert not torch.equal(moved["1.running_mean"], rest["1.running_mean"])
    net.load_rest(rest)
    assert module[1].running_mean.tolist() == [0, 0, 0]
    assert module[1].num_batches_tracked.item() == 0
    net.load_rest(moved)
    assert torch.equal(module[1].running_var, moved["1.running_var"])
    assert module[1].num_batches_tracked.item() == 1
    assert torch.equal(net.point, point)


def test_rest_sets_frozen_parameters():
    module, _ = frozen()
    net = FlatModule(module)
    net.load_rest({"0.bias": torch.arange(5.0)})
    assert module[0].bias.tolist() == [0, 1, 2, 3, 4]


@NETWORKS
def test_state_is_a_copy_that_makes_the_same_network(make):
    module, x = make()
    net = FlatModule(module)
    state, point = net.state(), net.point.clone()
    before = module.eval()(x)
    net.point.normal_()
    other, _ = make()
    other.load_state_dict(state)
    assert torch.equal(other.eval()(x), before)
    assert torch.equal(net.flatten(state), point)


# ----------------------------------------------------------------------------------------------- gradients


def gradient(net, loss):
    return torch.cat([g.flatten() for g in net.gradients(loss)])


@NETWORKS
def test_gradients_are_those_of_the_plain_module(make):
    """Every time anew: nothing is left behind by an earlier one."""
    module, x = make()
    plain = copy.deepcopy(module)
    net = FlatModule(module)
    torch.logsumexp(plain(x), 1).sum().backward()
    wanted = torch.cat([p.grad.flatten() for p in trainable(plain)])
    assert wanted.abs().max() > 0
    for _ in range(2):
        found = gradient(net, torch.logsumexp(net(x), 1).sum())
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_gradients_are_tensors_of_their_own():
    """Autograd hands the parts of a sum one and the same gradient."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return x * (self.a + self.b)

    net = FlatModule(Sum())
    first, second = net.gradients(net(torch.ones(3)).sum())
    first.add_(1)
    assert second.tolist() == [1, 1, 1]
    assert first.tolist() == [2, 2, 2]


def test_gradient_of_tied_weights_counts_both_uses():
    """f = a b x with a = b = w has the slope 2 w x."""
    inner, outer = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    outer.weight = inner.weight
    net = FlatModule(nn.Sequential(inner, outer))
    net.point.fill_(3.0)
    assert gradient(net, net(torch.tensor([[5.0]])).sum()).tolist() == [30]


def test_parameters_that_are_not_used_have_a_gradient_of_zero():
    module = nn.ModuleDict({"a": nn.Linear(2, 1, bias=False), "b": nn.Linear(2, 1, bias=False)})
    net = FlatModule(module)
    x = torch.tensor([[2.0, 3.0]])
    assert gradient(net, module["a"](x).sum() + 2 * module["b"](x).sum()).tolist() == [2, 3, 4, 6]
    assert gradient(net, module["b"](x).sum()).tolist() == [0, 0, 2, 3]
    assert gradient(net, module["a"](x).sum()).tolist() == [2, 3, 0, 0]


# ------------------------------------------------------------------------------------------------- combining


@given(st.lists(st.floats(0, 3), min_size=1, max_size=6), st.integers(1, 40))
def test_combining_is_the_explicit_sum(raw, P):
    assume(sum(raw) > 1e-3)
    c = [v / math.fsum(raw) for v in raw]
    rows = torch.randn(len(c), P, dtype=torch.float64)
    before, out = rows.clone(), torch.full((P,), math.nan, dtype=torch.float64)
    combine(c, rows, out)
    wanted = [math.fsum(c[k] * float(rows[k, i]) for k in range(len(c))) for i in range(P)]
    np.testing.assert_allclose(out, wanted, rtol=1e-12, atol=1e-13)
    assert torch.equal(rows, before)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.integers(1, 40), st.integers(0, 100))
def test_combining_with_any_coefficients_is_the_explicit_sum(c, P, seed):
    """Negative ones too, whether or not they sum to one or cancel on the way."""
    assume(any(c))
    rows = torch.randn(len(c), P, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    out = torch.full((P,), math.nan, dtype=torch.float64)
    combine(c, rows, out)
    wanted = [math.fsum(c[k] * float(rows[k, i]) for k in range(len(c))) for i in range(P)]
    np.testing.assert_allclose(out, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("c", [(-1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (0.0, -1.0, 2.0), (0.5, -0.5, 0.0), (2.0, 0.0, 0.0)])
def test_combining_with_coefficients_that_cancel(c):
    rows, out = torch.randn(3, 100, dtype=torch.float64), torch.empty(100, dtype=torch.float64)
    combine(c, rows, out)
    torch.testing.assert_close(out, torch.tensor(c, dtype=torch.float64) @ rows, rtol=1e-13, atol=1e-15)


def test_a_row_without_a_share_is_not_looked_at():
    rows, out = torch.ones(4, 50), torch.zeros(50)
    rows[1] = math.nan
    combine([0.5, 0.0, -0.5, 1.0], rows, out)
    assert torch.equal(out, torch.ones(50))


def test_combining_many_coordinates():
    """More than one block of a sweep, the last one short."""
    P = (1 << 19) + 5
    rows, out = torch.randn(4, P, dtype=torch.float64), torch.zeros(P).double()
    combine([0.25, 0.0, 0.7, 0.05], rows, out)
    torch.testing.assert_close(out, rows[0] / 4 + rows[2] * 0.7 + rows[3] * 0.05, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_a_one_hot_combination_is_its_row_exactly(k):
    rows, out = torch.randn(3, 1000), torch.zeros(1000)
    rows[(k + 1) % 3, 7] = math.inf
    combine([float(i == k) for i in range(3)], rows, out)
    assert torch.equal(out, rows[k])


def test_images_enter_in_the_layout_asked_for():
    module, x = conv_bn()
    module.eval()
    layouts = []
    module.register_forward_pre_hook(
        lambda _, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    torch.testing.assert_close(FlatModule(module, channels_last=True)(x), FlatModule(module)(x))
    assert layouts == [True, False]


# ------------------------------------------------------------------------------------------------ refusals


def test_parameters_of_two_types_are_refused():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(UserError, match=r"float32.*float64"):
        FlatModule(module)


def test_a_network_without_trainable_parameters_is_refused():
    with pytest.raises(UserError, match="no trainable parameters"):
        FlatModule(nn.Linear(2, 2).requires_grad_(False))


def test_frozen_parameters_may_be_of_another_type():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double().requires_grad_(False))
    assert len(FlatModule(module).point) == 6


# -------------------------------------------------------------------------------------------- matching_state


def fresh_state():
    return {k: v.clone() for k, v in conv_bn()[0].state_dict().items()}


def test_a_state_that_fits_is_given_back_in_the_networks_types():
    module, _ = conv_bn()
    state = {k: v.double() if v.is_floating_point() else v for k, v in fresh_state().items()}
    fitted = matching_state(module, state, "file")
    assert {k: v.dtype for k, v in fitted.items()} == {k: v.dtype for k, v in module.state_dict().items()}
    for key, value in state.items():
        assert torch.equal(fitted[key].double(), value.double())
    module.load_state_dict(fitted)


def test_a_count_of_batches_may_be_missing():
    module, _ = conv_bn()
    state = fresh_state()
    del state["1.num_batches_tracked"]
    assert matching_state(module, state, "file")["1.num_batches_tracked"].item() == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("0.weight"), r"run\.pt lacks 0\.weight"),
        (lambda s: [s.pop(k) for k in list(s)[:5]], r"lacks 0\.weight, 0\.bias, 1\.weight and 2 more"),
        (lambda s: s.update(extra=torch.zeros(1)), r"run\.pt holds extra"),
        (lambda s: s.update({"3.bias": torch.zeros(4)}), r"run\.pt: 3\.bias has shape \(4,\), the network's is \(3,\)"),
        (lambda s: s["0.bias"].__setitem__(1, math.nan), r"run\.pt: 0\.bias holds NaN or infinite"),
        (lambda s: s["1.running_var"].__setitem__(0, math.inf), r"run\.pt: 1\.running_var holds NaN or infinite"),
    ],
)
def test_the_first_reason_why_a_state_does_not_fit(change, words):
    module, _ = conv_bn()
    state = fresh_state()
    change(state)
    with pytest.raises(UserError, match=words):
        matching_state(module, state, "run.pt")


# ------------------------------------------------------------------------------------------------- alignment


@NETWORKS
def test_aligned_parameters_are_the_same_network(make):
    module, x = make()
    module.eval()
    before, values = module(x), {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
    net = FlatModule(module, channels_last=True, alignment=128)
    torch.testing.assert_close(net(x), before)
    for view in net.views(net.point):
        assert (view.data_ptr() - net.point.data_ptr()) % (128 * 4) == 0
    for name, value in net.named(net.point).items():
        assert torch.equal(value, values[name])
    assert net.size == sum(v.numel() for v in values.values())
    state, point = net.state(), net.point.clone()
    assert torch.equal(net.flatten(state), point)
    net.point.mul_(2)
    assert all(torch.equal(v, 2 * values[n]) for n, v in net.named(net.point).items())


def test_aligned_convolutions_are_channels_last_where_batches_are():
    for channels_last in (True, False):
        net = FlatModule(conv_bn()[0], channels_last, alignment=128)
        weight = net.module[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


# ------------------------------------------------------------------------------------------- complex parameters


class Fourier(nn.Module):
    """Real and complex weights side by side, an odd number of real ones before the first complex one."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3))
        self.a = nn.Parameter(torch.randn(3, 4, dtype=torch.cfloat))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh((self.scale * x).to(torch.cfloat) @ self.a).abs())


def test_a_complex_weight_is_two_coordinates():
    torch.manual_seed(0)
    module = Fourier()
    plain = copy.deepcopy(module)
    net = FlatModule(module)
    assert net.point.dtype == torch.float32
    assert net.size == 3 + 2 * 12 + 10
    assert net.point.square().sum() == pytest.approx(sum(p.abs().square().sum().item() for p in plain.parameters()))
    again = net.named(net.flatten(net.state()))
    assert all(torch.equal(again[n], p) for n, p in plain.named_parameters())
    x = torch.randn(5, 3)
    assert torch.equal(net(x), plain(x))


def test_descent_along_the_flat_gradient_of_complex_weights_is_torchs_own():
    torch.manual_seed(0)
    module, x = Fourier(), torch.randn(6, 3)
    plain = copy.deepcopy(module)
    net = FlatModule(module)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, weight_decay=0.01)
    plain(x).square().mean().backward()
    optimizer.step()
    gradients = net.gradients(net(x).square().mean())
    flat = torch.zeros_like(net.point)
    torch._foreach_copy_(net.views(flat), gradients)
    net.point.sub_(flat + 0.01 * net.point, alpha=0.1)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(module.get_parameter(name).detach(), p.detach())


class Added(nn.Module):
    """Parameters of several shapes that are added as views: their gradients are views of one memory."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.rand(s)) for s in ((2, 3), (6,), (2, 3)))

    def forward(self, x):
        return x * (self.a.view(6) + self.b + self.c.reshape(6))


def test_gradients_share_no_memory():
    net = FlatModule(Added())
    found = net.gradients(net(torch.ones(6)).square().sum())
    wanted = [g.clone() for g in found]
    found[0].add_(1)
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(found[2], wanted[2])


def test_sparse_gradients_are_made_dense():
    net = FlatModule(nn.Embedding(5, 2, sparse=True))
    (found,) = net.gradients(net(torch.tensor([1, 1, 3])).sum())
    assert found.tolist() == [[0, 0], [2, 2], [0, 0], [1, 1], [0, 0]]
