"""The evaluator, BatchNorm re-estimation and the search for a maximum, against slow float64 references."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modeconn_cli.data.dataset import Augment, Split
from modeconn_cli.errors import RunFailed
from modeconn_cli.evaluation.evaluator import Evaluator, Scores, gram, metrics, require_same, search_maximum
from modeconn_cli.evaluation.options import BatchNorm, Interpolation
from modeconn_cli.evaluation.statistics import norm_layers, reestimate
from modeconn_cli.families.bezier import Bezier, segment
from modeconn_cli.families.chain import Chain
from modeconn_cli.tasks.classify import COLUMNS, Classify
from modeconn_cli.weights import FlatModule


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def options(**fields):
    return Interpolation(**{"batch_size": 4, **fields})


def mlp(dtype=torch.float32):
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def two_norms(dtype=torch.float64):
    """BatchNorm before and after dropout: either must know the other's statistics to get its own right."""
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 5), nn.BatchNorm1d(5)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def with_statistics(module, seed):
    """The module with weights and buffers of its own, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            drawn = torch.rand(buffer.shape, generator=generator, dtype=torch.float64)
            buffer.copy_(drawn + 0.5 if name.endswith("var") else drawn - 0.5)
        else:
            buffer.fill_(100 + seed)
    return module


def normalised(data, split):
    return (split.x - data.mean) / data.std


def float64_nll(module, x, y):
    """Cross-entropy in nats from the module's logits, one example and one class at a time."""
    logits = module.eval()(x).double().tolist()
    return [math.log(sum(math.exp(v) for v in row)) - row[int(label)] for row, label in zip(logits, y, strict=True)]


# -------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_scores_are_every_examples_own(batch_size, make_data):
    """The short last batch included; dropout and augmentation off."""
    data = make_data(n=11, n_test=7, dtype=torch.float32)
    module = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)).train()
    scores = Evaluator(FlatModule(module), Classify(data), options(batch_size=batch_size)).scores()
    for name, split in (("train", data.train), ("test", data.test)):
        x = normalised(data, split)
        wanted = float64_nll(module, x, split.y)
        assert scores[name].columns["nll"].shape == (len(split),)
        np.testing.assert_allclose(scores[name].columns["nll"], wanted, rtol=1e-5, atol=1e-6)
        wrong = [int(np.argmax(row)) != int(y) for row, y in zip(module(x).tolist(), split.y, strict=True)]
        assert 0 < sum(wrong) < len(split)
        assert scores[name].columns["error"].tolist() == wrong
        nll, error = scores[name].means.values()
        assert nll == pytest.approx(sum(wanted) / len(wanted), rel=1e-5)
        assert error == pytest.approx(100 * sum(wrong) / len(wrong), rel=1e-12)


def test_means_do_not_lose_digits():
    """A float32 mean of a million losses would."""
    nll = torch.full((1_000_000,), 0.1)
    nll[::2] = 1000.0
    wrong = torch.arange(1_000_000) % 8 == 0
    means = Scores({"nll": nll, "error": wrong}, {"error": 100.0}).means
    assert means["nll"] == pytest.approx((1000 + float(torch.tensor(0.1).double())) / 2, rel=1e-12)
    assert means["error"] == 12.5


def test_train_examples_are_a_fixed_draw_in_order(make_data):
    data = make_data(n=11, n_test=7, dtype=torch.float32)
    module = mlp()
    every = np.array(float64_nll(module, normalised(data, data.train), data.train.y))
    nll = [
        Evaluator(FlatModule(module), Classify(data), options(train_examples=5)).scores()["train"].columns["nll"]
        for _ in range(2)
    ]
    places = [int(np.argmin(np.abs(every - float(v)))) for v in nll[0]]
    np.testing.assert_allclose(nll[0], every[places], rtol=1e-5, atol=1e-6)
    assert places == sorted(set(places))
    assert len(places) == 5
    assert places != [0, 1, 2, 3, 4]
    assert torch.equal(*nll)


def test_sorted_classes_are_all_in_a_draw(make_data):
    data = make_data(n=60)
    order = data.train.y.argsort()
    data = replace(data, train=Split("train", data.train.x[order], data.train.y[order]))
    evaluator = Evaluator(FlatModule(mlp(torch.float64)), Classify(data), options(train_examples=30))
    assert set(evaluator.splits["train"].y.tolist()) == set(data.train.y.tolist())


@given(t=st.floats(0, 1), path=st.sampled_from([segment(), Bezier(2), Bezier(4), Chain(1), Chain(3)]))
def test_scores_along_a_path_are_those_of_the_explicit_sum(make_data, t, path):
    data, module = make_data(), mlp(torch.float64)
    net = FlatModule(module)
    W = torch.randn(path.vertices, len(net.point), dtype=torch.float64)
    c = path.coefficients([t])[0]
    scores = Evaluator(net, Classify(data), options()).at(W, c, [net.rest(), net.rest()])
    w = sum(float(c[k]) * W[k] for k in range(len(W)))
    module.load_state_dict({k: v.clone() for k, v in net.named(w).items()})
    wanted = float64_nll(module, normalised(data, data.test), data.test.y)
    np.testing.assert_allclose(scores["test"].columns["nll"], wanted, rtol=1e-9, atol=1e-9)


# -------------------------------------------------------------------------------------- the ends of a path


def endpoints(make_module, control_points=2):
    """A network, two endpoints' modules, control points between them, and their buffers."""
    modules = [with_statistics(make_module(), seed) for seed in (1, 2)]
    net = FlatModule(make_module())
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in modules]
    W = torch.randn(control_points, len(net.point), dtype=net.point.dtype)
    W[0], W[-1] = (net.flatten(s) for s in states)
    net.bind(W[0].clone())
    names = set(net.names)
    return net, [m.eval() for m in modules], W, [{k: v for k, v in s.items() if k not in names} for s in states]


@pytest.mark.parametrize("policy", BatchNorm)
@pytest.mark.parametrize("path", [segment(), Bezier(2), Chain(2)], ids=repr)
def test_ends_are_their_endpoints_bit_for_bit(path, policy, make_data):
    data = make_data(dtype=torch.float32)
    net, modules, W, buffers = endpoints(lambda: two_norms(torch.float32), path.vertices)
    evaluator = Evaluator(net, Classify(data), options(batch_norm=policy))
    x = normalised(data, data.test)
    for t in (1.0, 0.0, 0.4, 0.0, 0.8, 1.0, 1.0):  # whatever was visited before
        scores = evaluator.at(W, path.coefficients([t])[0], buffers)
        if t not in (0, 1):
            continue
        module = modules[int(t)]
        state = net.module.state_dict()
        for name, value in module.state_dict().items():
            assert torch.equal(state[name], value), name
        with torch.no_grad():
            assert torch.equal(net(x[:4]), module(x[:4]))
            logits = torch.cat([module(part) for part in x.split(4)])
        assert torch.equal(scores["test"].columns["nll"], F.cross_entropy(logits, data.test.y, reduction="none"))
        assert torch.equal(scores["test"].columns["error"], logits.argmax(1) != data.test.y)


def test_the_ends_own_buffers_are_not_changed_by_a_walk(make_data):
    data = make_data()
    net, _, W, buffers = endpoints(two_norms)
    before = copy.deepcopy(buffers)
    evaluator = Evaluator(net, Classify(data), options())
    for t in (0, 0.5, 1):
        evaluator.at(W, segment().coefficients([t])[0], buffers)
    for rest, old in zip(buffers, before, strict=True):
        assert all(torch.equal(rest[k], old[k]) for k in old)


def instance_norms():
    """Running statistics that no BatchNorm keeps."""
    return nn.Sequential(nn.InstanceNorm1d(2, affine=True, track_running_stats=True), nn.Flatten(), nn.Linear(8, 3))


def batch_and_instance_norms():
    return nn.Sequential(
        nn.BatchNorm1d(2), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(8, 3)
    )


@pytest.mark.parametrize("make", [instance_norms, batch_and_instance_norms])
def test_every_buffer_of_an_end_is_its_endpoints(make, make_data):
    """At t=0 and t=1 a path's network is its endpoint, whatever keeps the buffers."""
    data = make_data(shape=(2, 4), dtype=torch.float32)
    net, modules, W, buffers = endpoints(make)
    evaluator = Evaluator(net, Classify(data), options())
    for t in (0, 0.5, 1, 0.5, 0):
        scores = evaluator.at(W, segment().coefficients([t])[0], buffers)
        if t in (0, 1):
            wanted = float64_nll(modules[t], normalised(data, data.test), data.test.y)
            np.testing.assert_allclose(scores["test"].columns["nll"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [two_norms, batch_and_instance_norms])
def test_an_inner_point_does_not_depend_on_what_was_visited_before(make, make_data):
    """Resumed evaluation skips what it has, so history must leave no trace."""
    data = make_data(shape=(4,) if make is two_norms else (2, 4), dtype=torch.float64)
    net, _, W, buffers = endpoints(lambda: make().double())
    evaluator = Evaluator(net, Classify(data), options())
    after = []
    for first in (0, 1, 0.9):
        evaluator.at(W, segment().coefficients([first])[0], buffers)
        after.append(evaluator.at(W, segment().coefficients([0.3])[0], buffers)["test"].columns["nll"])
    assert torch.equal(after[1], after[0])
    assert torch.equal(after[2], after[0])


# ------------------------------------------------------------------------------------- BatchNorm statistics


def brute_force(module, batches):
    """Running statistics of two_norms: batch means and unbiased variances, averaged by examples, in float64."""
    first, norm, _, _, second, last = (module[i] for i in range(6))
    total, sums = sum(len(b) for b in batches), [0.0] * 4
    for x in batches:
        share = len(x) / total
        a = x @ first.weight.T + first.bias
        mean, centred = a.sum(0) / len(x), a - a.sum(0) / len(x)
        biased = (centred**2).sum(0) / len(x)
        h = torch.clamp(centred / torch.sqrt(biased + norm.eps) * norm.weight + norm.bias, min=0)
        b = h @ second.weight.T + second.bias
        mean2, centred2 = b.sum(0) / len(x), b - b.sum(0) / len(x)
        parts = mean, (centred**2).sum(0) / (len(x) - 1), mean2, (centred2**2).sum(0) / (len(x) - 1)
        sums = [s + share * p for s, p in zip(sums, parts, strict=True)]
    keys = [(layer, f"running_{what}") for layer in (norm, last) for what in ("mean", "var")]
    return dict(zip(keys, sums, strict=True))


@pytest.mark.parametrize("sizes", [[11], [4, 4, 3], [9, 2], [2, 2, 2, 2, 2]])
def test_reestimated_statistics_are_weighted_averages(sizes):
    module = with_statistics(two_norms(), 3).train()
    batches = [2 + 3 * torch.randn(size, 4, dtype=torch.float64) for size in sizes]
    with torch.no_grad():
        wanted = brute_force(module, batches)
    reestimate(FlatModule(module), batches)
    for (layer, name), value in wanted.items():
        torch.testing.assert_close(getattr(layer, name), value, rtol=1e-10, atol=1e-12)


def test_nothing_is_left_of_the_statistics_before():
    module = two_norms()
    module[1].running_mean.fill_(math.nan)
    module[5].running_var.fill_(math.inf)
    module[1].num_batches_tracked.fill_(77)
    batches = [torch.randn(5, 4, dtype=torch.float64) for _ in range(3)]
    with torch.no_grad():
        wanted = brute_force(module, batches)
    reestimate(FlatModule(module), batches)
    for (layer, name), value in wanted.items():
        torch.testing.assert_close(getattr(layer, name), value, rtol=1e-10, atol=1e-12)
    assert module[1].num_batches_tracked.item() == 3


def test_reestimated_statistics_of_images():
    """Over examples, rows and columns together, unbiased in their joint count."""
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)).double()
    batches = [torch.randn(size, 2, 4, 4, dtype=torch.float64) for size in (5, 2)]
    reestimate(FlatModule(module), batches)
    mean, var = torch.zeros(2, 3, dtype=torch.float64)
    for x in batches:
        a = F.conv2d(x, module[0].weight, module[0].bias).detach()
        for channel in range(3):
            values = a[:, channel].flatten().numpy()
            mean[channel] += len(x) / 7 * values.mean()
            var[channel] += len(x) / 7 * values.var(ddof=1)
    torch.testing.assert_close(module[1].running_mean, mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(module[1].running_var, var, rtol=1e-10, atol=1e-12)


def test_reestimation_puts_every_setting_back():
    module = two_norms()
    module[1].momentum, module[5].momentum = None, 0.03
    net = FlatModule(module.train())
    point = net.point.clone()
    reestimate(net, [torch.randn(6, 4, dtype=torch.float64)])
    assert (module[1].momentum, module[5].momentum) == (None, 0.03)
    assert not any(m.training for m in module.modules())
    assert torch.equal(net.point, point)


def test_settings_are_put_back_after_a_failure_too():
    module = two_norms()
    with pytest.raises(RuntimeError):
        reestimate(FlatModule(module), [torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)])
    assert (module[1].momentum, module[5].momentum) == (0.1, 0.1)
    assert not any(m.training for m in module.modules())


def test_layers_without_running_statistics_are_left_alone():
    module = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm1d(4), nn.LayerNorm(4))
    assert norm_layers(module) == [module[1]]


def test_a_network_without_batch_norm_reads_no_data():
    def batches():
        raise AssertionError("data was read")
        yield

    reestimate(FlatModule(mlp()), batches())


def test_a_last_batch_of_one_example_does_not_stop_the_estimation(make_data):
    """n = batch_size k + 1: a lone example has no variance, which is no reason for a traceback."""
    data = make_data(n=9)
    net, _, W, buffers = endpoints(two_norms)
    evaluator = Evaluator(net, Classify(data), options(batch_size=4))
    scores = evaluator.at(W, np.array([0.5, 0.5]), buffers)
    assert len(scores["train"].columns["nll"]) == 9
    assert all(torch.isfinite(v).all() for v in net.rest().values())


def batch_norm_batches(data, sizes):
    """Clean examples in the order that seed 0 shuffles them, in batches of these sizes."""
    shuffled = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[: sum(sizes)]
    return normalised(data, data.train)[shuffled].split(sizes)


@pytest.mark.parametrize("batch_size", [3, 100])
@pytest.mark.parametrize(("bn_examples", "sizes"), [(None, [4, 4, 3]), (6, [4, 2]), (4, [4]), (9, [4, 4])])
def test_inner_points_are_estimated_on_shuffled_clean_examples(bn_examples, sizes, batch_size, make_data, monkeypatch):
    """Whatever the evaluation's own batch size; a last batch of one example is left out."""
    monkeypatch.setattr("modeconn_cli.evaluation.evaluator.BATCH_NORM_BATCH", 4)
    data = make_data(n=11)
    net, _, W, buffers = endpoints(two_norms)
    Evaluator(net, Classify(data), options(bn_examples=bn_examples, batch_size=batch_size)).at(
        W, np.array([0.3, 0.7]), buffers
    )
    with torch.no_grad():
        wanted = brute_force(net.module, batch_norm_batches(data, sizes))
    for (layer, name), value in wanted.items():
        torch.testing.assert_close(getattr(layer, name), value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("fixed", "own"), [((True, True), (1, 1)), ((False, True), (0, 1)), ((True, False), (1, 0))])
def test_a_trained_end_has_no_buffers_of_its_own(fixed, own, make_data, monkeypatch):
    monkeypatch.setattr("modeconn_cli.evaluation.evaluator.BATCH_NORM_BATCH", 4)
    data = make_data(n=11)
    net, modules, W, buffers = endpoints(two_norms)
    evaluator = Evaluator(net, Classify(data), options())
    for t in (0, 1):
        evaluator.at(W, segment().coefficients([t])[0], buffers, fixed)
        with torch.no_grad():
            fresh = brute_force(net.module, batch_norm_batches(data, [4, 4, 3]))[net.module[1], "running_var"]
        wanted = modules[t][1].running_var if own[t] else fresh
        torch.testing.assert_close(net.module[1].running_var, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", [segment(), Bezier(3), Chain(2)], ids=repr)
def test_mean_policy_averages_the_ends_statistics_by_t(path, make_data):
    """Integer buffers enter no average."""
    net, _, W, buffers = endpoints(two_norms, path.vertices)
    evaluator = Evaluator(net, Classify(make_data()), options(batch_norm=BatchNorm.mean))
    for t in (0.3, 0.8):
        evaluator.at(W, path.coefficients([t])[0], buffers)
        state = net.module.state_dict()
        for name in ("1.running_mean", "1.running_var", "5.running_mean", "5.running_var"):
            torch.testing.assert_close(state[name], (1 - t) * buffers[0][name] + t * buffers[1][name])
        assert state["1.num_batches_tracked"].item() == 101


def test_integer_buffers_are_not_coordinates(make_data):
    net, _, W, buffers = endpoints(two_norms)
    assert W.shape[1] == sum(p.numel() for p in two_norms().parameters())
    Evaluator(net, Classify(make_data()), options()).at(W, np.array([0.5, 0.5]), buffers)
    assert net.module[1].num_batches_tracked.dtype == torch.int64


# ---------------------------------------------------------------------------------------------------- gram


def explicit_gram(W):
    W = W.double().numpy()
    rows = [W[0]] + [row - W[0] for row in W[1:]]
    return [[math.fsum(a * b) for b in rows] for a in rows]


@pytest.mark.parametrize("K", [1, 2, 4])
def test_gram_is_the_differences_inner_products(K):
    W = torch.randn(K, 300) + 10
    np.testing.assert_allclose(gram(W), explicit_gram(W), rtol=1e-12, atol=1e-10)


def test_gram_of_more_coordinates_than_one_part_holds():
    W = torch.randn(2, (1 << 22) + 3)
    W[1, : 1 << 22] = W[0, : 1 << 22]
    W[1, 1 << 22 :] = W[0, 1 << 22 :] + torch.tensor([1.0, 2.0, 2.0])
    assert gram(W)[1, 1] == pytest.approx(9, rel=1e-5)
    assert gram(W)[0, 0] == pytest.approx(float(W[0].double().square().sum()), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_leaves_the_control_points_alone(dtype):
    W = torch.randn(3, 20, dtype=dtype)
    before = W.clone()
    gram(W)
    assert torch.equal(W, before)


# ------------------------------------------------------------------------------------------ searching a maximum


def searched(f, t, evaluations):
    """What a search evaluates beyond the grid."""
    calls = []

    def g(s):
        calls.append(s)
        return f(s)

    search_maximum(g, t, np.array([f(s) for s in t]), evaluations)
    return calls


@pytest.mark.parametrize("evaluations", [0, 1, 2, 3, 5, 8, 30])
@pytest.mark.parametrize("peak", [0.613, 0.0, 1.0, 0.5])
def test_search_keeps_to_its_budget(peak, evaluations):
    calls = searched(lambda s: -abs(s - peak), np.linspace(0, 1, 11), evaluations)
    assert len(calls) <= evaluations
    assert bool(calls) == bool(evaluations)


@pytest.mark.parametrize(("grid", "wanted"), [([0, 0.5, 0.6, 1], 0.8), ([0, 0.3, 0.6, 0.7], 0.45), ([0, 0.4, 1], 0.7)])
def test_a_search_of_one_evaluation_halves_the_wider_gap_beside_the_highest(grid, wanted):
    assert searched(lambda s: -abs(s - 0.61), np.array(grid), 1) == [pytest.approx(wanted)]


@pytest.mark.parametrize("peak", [0.613, 0.0421, 0.97, 0.25])
def test_search_finds_a_sharp_maximum_between_grid_points(peak):
    grid = np.linspace(0, 1, 21)

    def f(s):
        return 1 / (1 + ((s - peak) / 0.01) ** 2)

    calls = searched(f, grid, 20)
    highest = grid[np.argmax([f(s) for s in grid])]
    assert all(abs(s - highest) <= 0.05 + 1e-12 for s in calls)
    best = max(calls, key=f)
    assert best == pytest.approx(peak, abs=2e-4)
    assert f(best) > 0.999


def test_eight_evaluations_find_most_of_a_smooth_barrier():
    """The default budget, on five points that straddle the top."""
    grid = np.linspace(0, 1, 6)
    calls = searched(lambda s: math.sin(math.pi * s), grid, 8)
    assert max(math.sin(math.pi * s) for s in calls) > 1 - 1e-4 > max(np.sin(np.pi * grid)) + 0.04


def test_search_at_the_ends_stays_on_the_path():
    for f in (lambda s: s, lambda s: -s):
        assert all(0 <= s <= 1 for s in searched(f, np.linspace(0, 1, 5), 10))


# ------------------------------------------------------------------------------------------------- agreement

RECORDED = {"train_nll": 2.0, "train_error": 10.0, "test_nll": 0.0, "test_error": 0.0}


@pytest.mark.parametrize(
    "measured",
    [
        {},
        {"train_nll": 2.0001},
        {"train_nll": 1.9999},
        {"train_error": 10.04},
        {"test_nll": 9e-8},
        {"test_error": 0.04},
        {"unrecorded": 5.0},
    ],
)
def test_ends_that_reproduce_their_endpoint(measured):
    require_same(RECORDED, {**RECORDED, **measured}, "segment at t=0", COLUMNS)


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({"train_nll": 2.001}, "train_nll is 2.001, recorded 2"),
        ({"train_nll": 1.999}, "train_nll is 1.999, recorded 2"),
        ({"train_error": 10.2}, "train_error is 10.2, recorded 10"),
        ({"test_error": 0.1}, "test_error is 0.1, recorded 0"),
        ({"test_nll": 1e-5}, "test_nll is 1e-05, recorded 0"),
        ({"test_nll": math.nan}, "test_nll is nan, recorded 0"),
        ({"train_error": math.inf}, "train_error is inf, recorded 10"),
    ],
)
def test_ends_that_do_not(measured, words):
    with pytest.raises(RunFailed, match=f"segment at t=0 does not reproduce its endpoint: {words}"):
        require_same(RECORDED, {**RECORDED, **measured}, "segment at t=0", COLUMNS)


def test_an_endpoint_that_was_recorded_is_reproduced_in_batches_of_another_size(make_data):
    data = make_data(dtype=torch.float32)
    module = mlp()
    found = []
    for size in (3, 1000):
        scores = Evaluator(FlatModule(module), Classify(data), replace(options(), batch_size=size)).scores()
        found.append(metrics(scores))
    require_same(found[0], found[1], "end", COLUMNS)


def test_statistics_of_augmented_examples(make_data):
    """BatchNorm's are those of the data set's one draw, in the shuffled order's batches; scores stay clean."""
    data = make_data(n=9, shape=(2, 4, 4), dtype=torch.float32)
    augment = Augment(1, True)
    draw = augment.draw(9, torch.Generator().manual_seed(0))
    data = replace(data, augment=augment, statistics_draw=draw)
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3))
    evaluator = Evaluator(FlatModule(net), Classify(data), options())
    evaluator.reestimate()
    x = (augment.apply(data.train.x, draw) - data.mean) / data.std
    torch.testing.assert_close(net[0].running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(net[0].running_var, x.var((0, 2, 3)), rtol=0.01, atol=0.01)
    clean = F.cross_entropy(net.eval()(normalised(data, data.train)), data.train.y, reduction="none")
    torch.testing.assert_close(evaluator.scores()["train"].columns["nll"], clean.detach(), rtol=1e-5, atol=1e-5)
