"""The interface for Python: the command line's numbers and words on live objects, and nothing else changed."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_helpers import QUICK, ROOT, SPIRALS, no_pictures, ok, refused
from torch import Tensor, nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import modeconn_cli as mc
from modeconn_cli.families.base import Family, along
from modeconn_cli.tasks.regress import Regress

SMALL: dict[str, Any] = {"points": 3, "search_max": 0, "bootstrap": 20, "epochs": 2}
NETS = """
from torch import nn


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
"""
Made = dict[str, Any]


@pytest.fixture(autouse=True)
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory that a test must leave empty, unless it takes ``kept``."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    yield place
    if not (place / "kept").exists():
        assert list(place.iterdir()) == []


@pytest.fixture
def kept(empty_place: Path) -> Path:
    """A directory for files."""
    (empty_place / "kept").mkdir()
    return empty_place / "kept"


def make_examples(n: int = 90, features: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(n) % classes
    return torch.randn(n, features, generator=generator) + y[:, None], y


def make_net(seed: int, outputs: int = 3) -> nn.Module:
    """A network with BatchNorm that has seen some data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs)
        )
    x, y = make_examples()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y % outputs).backward()
        optimizer.step()
    return net


@pytest.fixture(scope="module")
def nets() -> tuple[nn.Module, nn.Module]:
    return make_net(0), make_net(1)


@pytest.fixture
def splits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    x, y = make_examples()
    return (x[:60], y[:60]), (x[60:], y[60:])


# --------------------------------------------------------------------------------------- the command line's numbers


def test_paths_are_those_of_the_command_line_to_the_last_digit(
    nets: tuple[nn.Module, nn.Module], splits: Any, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_pictures(monkeypatch)
    (kept / "nets.py").write_text(NETS)
    for name, net in zip("ab", nets, strict=True):
        torch.save(net.state_dict(), kept / f"{name}.pt")
    arrays = zip(
        ("x_train", "y_train", "x_test", "y_test"), (v.numpy() for split in splits for v in split), strict=True
    )
    np.savez(kept / "data.npz", **dict(arrays))
    monkeypatch.chdir(kept)
    ok("connect", "a.pt", "b.pt", "--model", "nets.py:net", "--data", "data.npz", "--curve", *QUICK, "curve.epochs=2")

    found = mc.connect(*nets, splits, align=True, curve=True, **SMALL)
    paths = {p.parent for p in (kept / "outputs").glob("*/*/v1/path.csv")}
    summaries = {mc.load(p).title: mc.load(p) for p in paths}
    assert [p.title for p in found.paths.values()] == ["segment", "aligned segment", "Bezier curve, 1 bend"]
    compared = 0
    for path in found.paths.values():
        if path.title in summaries:
            theirs = summaries[path.title]
            pd.testing.assert_frame_equal(path.table, theirs.table, check_exact=True)
            assert path.summary["barriers"] == theirs.summary["barriers"]
            compared += 1
    assert compared >= 2
    assert found.paths["curve"].state_dict(0.3).keys() == nets[0].state_dict().keys()
    curve = summaries["Bezier curve, 1 bend"]
    for key, value in curve.state_dict(0.3).items():
        assert torch.equal(found.paths["curve"].state_dict(0.3)[key], value), key


def test_a_networks_figures_are_its_own(nets: tuple[nn.Module, nn.Module], splits: Any) -> None:
    """Measured here with plain PyTorch: both ends, and a point between them with its statistics estimated anew."""
    (x, _), (x_test, y_test) = splits
    found = mc.connect(*nets, splits, align=False, curve=False, **SMALL)
    table = found.paths["segment"].table
    for t, net in ((0.0, nets[0]), (1.0, nets[1])):
        with torch.no_grad():
            loss = nn.functional.cross_entropy(copy.deepcopy(net).eval()(x_test), y_test)
        assert table.loc[table["t"] == t, "test_nll"].item() == pytest.approx(loss.item(), rel=1e-6)
    middle = found.paths["segment"].at(0.5)
    assert not middle.training
    weights = [(nets[0].state_dict()[k] + nets[1].state_dict()[k]) / 2 for k in ("0.weight", "0.bias")]
    hidden = x @ weights[0].T + weights[1]
    torch.testing.assert_close(middle[1].running_mean, hidden.mean(0))
    torch.testing.assert_close(middle[1].running_var, hidden.var(0))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(middle(x_test), y_test)
    assert table.loc[table["t"] == 0.5, "test_nll"].item() == pytest.approx(loss.item(), rel=1e-5)
    ends = [found.paths["segment"].state_dict(t) for t in (0, 1)]
    for state, net in zip(ends, nets, strict=True):
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())


# -------------------------------------------------------------------------------------------------- nothing changes


def switches() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "gradients": torch.is_grad_enabled(),
        "environment": dict(os.environ),
        "arguments": list(sys.argv),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
    }


def test_the_callers_networks_and_process_are_as_before(
    nets: tuple[nn.Module, nn.Module], splits: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    a, b = map(copy.deepcopy, nets)
    a.train(), b.eval()
    a[1].eval()
    b[0].weight.grad = torch.ones_like(b[0].weight)
    seen: list[int] = []
    hook = a[5].register_forward_hook(lambda *_: seen.append(1))
    hooks = [dict(m._forward_hooks) for m in a.modules()]
    modes = [[m.training for m in net.modules()] for net in (a, b)]
    states = [copy.deepcopy(net.state_dict()) for net in (a, b)]
    before = switches()
    with torch.no_grad():  # as a notebook often is
        found = mc.connect(a, b, splits, align=True, curve=True, **SMALL)
        found.paths["curve"].at(0.5)
    assert switches() == before
    assert capfd.readouterr() == ("", "")
    assert [[m.training for m in net.modules()] for net in (a, b)] == modes
    assert [dict(m._forward_hooks) for m in a.modules()] == hooks
    for net, state in zip((a, b), states, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
        assert all(p.requires_grad for p in net.parameters())
    assert a[0].weight.grad is None
    assert torch.equal(b[0].weight.grad, torch.ones_like(b[0].weight))
    hook.remove()


def test_a_failure_leaves_the_process_as_before_too(nets: tuple[nn.Module, nn.Module], splits: Any) -> None:
    before = switches()
    with pytest.raises(mc.RunFailed, match="Try a lower lr"):
        mc.fit_curve(*nets, splits, **{**SMALL, "lr": 1e12, "epochs": 20})
    assert switches() == before


def test_ctrl_c_stops_a_call_and_nothing_is_left(
    nets: tuple[nn.Module, nn.Module], splits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def interrupting(output: Tensor, target: Tensor) -> Tensor:
        if output.requires_grad:
            signal.raise_signal(signal.SIGINT)
        return nn.functional.cross_entropy(output, target, reduction="none")

    before = switches()
    with pytest.raises(mc.Interrupted):
        mc.fit_curve(*nets, splits, task=interrupting, **SMALL)
    assert switches() == before
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


def test_a_call_from_a_thread_and_one_under_hydra(nets: tuple[nn.Module, nn.Module], splits: Any) -> None:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    found: list[mc.Connection] = []

    def call() -> None:
        found.append(mc.connect(*nets, splits, align=False, curve=False, **SMALL))

    with hydra.initialize(version_base=None, config_path=None):
        own = GlobalHydra.instance()
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        call()
        assert GlobalHydra.instance() is own
        assert own.is_initialized()
    pd.testing.assert_frame_equal(*(f.paths["segment"].table for f in found), check_exact=True)


def test_progress_shows_only_where_it_is_asked_for(
    nets: tuple[nn.Module, nn.Module], splits: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    mc.fit_curve(*nets, splits, progress=True, **SMALL)
    assert capfd.readouterr().out == ""


# ------------------------------------------------------------------------------------------------ what may be given


def test_one_set_in_any_form_gives_the_same_figures(nets: tuple[nn.Module, nn.Module], splits: Any) -> None:
    train, test = splits
    forms: list[Any] = [
        splits,
        (TensorDataset(*train), TensorDataset(*test)),
        (DataLoader(TensorDataset(*train), batch_size=7, shuffle=True), [*test]),
        {"x_train": train[0], "y_train": train[1], "x_test": test[0].numpy(), "y_test": test[1].numpy()},
    ]
    tables = [mc.connect(*nets, form, align=False, curve=False, **SMALL).paths["segment"].table for form in forms]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)


def test_one_set_is_train_and_test_and_that_is_said(nets: tuple[nn.Module, nn.Module], splits: Any) -> None:
    found = mc.connect(*nets, DataLoader(TensorDataset(*splits[0])), align=False, curve=False, **SMALL)
    assert "train and test are the same examples" in found.notes[0]
    table = found.paths["segment"].table
    assert (table["train_nll"] == table["test_nll"]).all()


def test_a_loaders_examples_are_those_that_it_draws_from(nets: tuple[nn.Module, nn.Module], splits: Any) -> None:
    (x, y), _ = splits
    whole = TensorDataset(x, y)
    rows = [7, 3, 30, 41, 12, 9]
    drawn = DataLoader(whole, batch_size=4, sampler=SubsetRandomSampler(rows))
    collated = DataLoader(
        [{"x": a, "y": b} for a, b in zip(x[sorted(rows)], y[sorted(rows)], strict=True)],  # type: ignore[arg-type]
        batch_size=4,
        shuffle=True,
        collate_fn=lambda items: (torch.stack([i["x"] for i in items]), torch.stack([i["y"] for i in items])),
    )
    forms: list[Any] = [(x[sorted(rows)], y[sorted(rows)]), drawn, collated]
    tables = [mc.connect(*nets, form, align=False, curve=False, **SMALL).paths["segment"].table for form in forms]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)
    weighted = DataLoader(whole, sampler=WeightedRandomSampler([1.0] * len(whole), 5))
    with pytest.raises(mc.UserError, match="a loader with a WeightedRandomSampler does not say which examples"):
        mc.connect(*nets, weighted)


class Branching(nn.Module):
    """What no graph describes: the way taken depends on what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_net(int(torch.randint(9, (1,))))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else self.inner(x) * 1.0


def test_what_cannot_be_aligned_is_noted_where_it_was_not_asked_for(splits: Any) -> None:
    nets = [Branching(), Branching()]
    nets[1].inner.load_state_dict({k: -v if k == "5.weight" else v for k, v in nets[1].inner.state_dict().items()})
    found = mc.connect(*nets, splits, **SMALL)
    assert list(found.paths) == ["segment", "curve"]
    assert found.notes[0].startswith("not aligned: Branching cannot be traced")
    with pytest.raises(mc.UserError, match="Branching cannot be traced"):
        mc.connect(*nets, splits, align=True, **SMALL)


def test_networks_come_as_state_dicts_and_files_too(nets: tuple[nn.Module, nn.Module], splits: Any, kept: Path) -> None:
    torch.save({"state_dict": nets[1].state_dict()}, kept / "b.pt")
    one = {"align": False, "curve": False, **SMALL}
    tables = [
        mc.connect(*nets, splits, **one).paths["segment"].table,
        mc.connect(nets[0], kept / "b.pt", splits, **one).paths["segment"].table,
        mc.connect(nets[0].state_dict(), nets[1].state_dict(), splits, architecture=nets[0], **one)
        .paths["segment"]
        .table,
        mc.connect(nn.DataParallel(nets[0]), nets[1], splits, **one).paths["segment"].table,
    ]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)


def test_labels_keep_their_numbers_where_some_class_has_no_example(nets: tuple[nn.Module, nn.Module]) -> None:
    x, y = make_examples()
    x, y = x[y != 1], y[y != 1]
    table = mc.connect(*nets, (x, y), align=False, curve=False, **SMALL).paths["segment"].table
    with torch.no_grad():
        wrong = (copy.deepcopy(nets[0]).eval()(x).argmax(1) != y).double().mean()
    assert table["test_error"].iloc[0] == pytest.approx(100 * wrong.item())


def test_networks_without_a_trainable_parameter_move_all_the_same(splits: Any) -> None:
    nets = [make_net(seed).requires_grad_(False) for seed in (0, 1)]
    found = mc.fit_curve(*nets, splits, **SMALL)
    assert not any(p.requires_grad for net in (*nets, found.at(0.5)) for p in net.parameters())
    assert not torch.equal(found.state_dict(0.5)["0.weight"], (nets[0][0].weight + nets[1][0].weight) / 2)


def test_float64_stays_float64(splits: Any) -> None:
    nets = [make_net(seed).double() for seed in (0, 1)]
    wide = [(x.double(), y) for x, y in splits]
    found = mc.connect(*nets, tuple(wide), align=True, curve=True, **SMALL)
    end = copy.deepcopy(nets[1]).eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(end(wide[1][0]), wide[1][1])
    assert found.paths["curve"].table["test_nll"].iloc[-1] == pytest.approx(loss.item(), rel=1e-12)
    assert found.paths["curve"].at(0.5)[0].weight.dtype == torch.float64


def test_regression_is_in_the_targets_unit() -> None:
    x, _ = make_examples()
    y = 100 + 30 * x[:, 0] * x[:, 1]
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)))
    for task in ("auto", "regress"):
        found = mc.connect(*nets, (x, y), task=task, align=False, curve=False, **SMALL)
        with torch.no_grad():
            error = (nets[0](x)[:, 0] - y).square().mean()
        assert found.paths["segment"].table["test_squared_error"].iloc[0] == pytest.approx(error.item(), rel=1e-5)
    data = mc.connect(*nets, (x, y), align=False, curve=False, **SMALL).paths["segment"].live.task.data
    whole = mc.connect(*nets, None, task=Regress.of(data, normalise=False), align=False, curve=False, **SMALL)
    pd.testing.assert_frame_equal(whole.paths["segment"].table, found.paths["segment"].table)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(label_smoothing=0.1), nn.functional.cross_entropy])
def test_a_loss_of_output_and_target_is_an_objective(
    nets: tuple[nn.Module, nn.Module], splits: Any, loss: Callable[..., Tensor]
) -> None:
    found = mc.fit_curve(*nets, splits, task=loss, **SMALL)
    (column,) = {c.name for c in found.result.metrics.columns}
    with torch.no_grad():
        mean = loss(copy.deepcopy(nets[0]).eval()(splits[1][0]), splits[1][1])
    assert found.table[f"test_{column}"].iloc[0] == pytest.approx(mean.item(), rel=1e-5)


class TensorTask:
    """What has data of its own."""

    data = None


class Detour(Family):
    """A path through a third point, with coefficients of its own."""

    vertices = 3

    def coefficients(self, u_td: Any) -> Any:
        t = along(u_td)
        over = np.sin(np.pi * t) ** 2
        return np.stack([(1 - t) * (1 - over), over, t * (1 - over)], axis=1)


def test_a_family_of_ones_own_is_fitted(nets: tuple[nn.Module, nn.Module], splits: Any) -> None:
    found = mc.fit_curve(*nets, splits, kind=Detour(), **SMALL)
    assert found.title == "Detour curve"
    W = [w["0.weight"] for w in found.points]
    c = Detour().coefficients([[0.3]])[0]
    expected = sum(float(ck) * w.double() for ck, w in zip(c, W, strict=True))
    torch.testing.assert_close(found.state_dict(0.3)["0.weight"].double(), expected, atol=1e-6, rtol=1e-5)
    assert len(found.networks) == 3
    assert list(found.history["epoch"]) == [1, 2]


# ----------------------------------------------------------------------------------------------------------- align


def test_an_aligned_network_computes_the_same_and_lies_nearer(nets: tuple[nn.Module, nn.Module], splits: Any) -> None:
    a, b = nets
    found = mc.align(a, b, splits)
    x = splits[0][0]
    torch.testing.assert_close(found.module(x), copy.deepcopy(b).eval()(x), atol=1e-5, rtol=1e-5)
    moved = dict(b.state_dict())
    for place, index in found.permutations.items():
        name, dim = place.split(":")
        moved[name] = moved[name].index_select(int(dim), index)
    assert all(torch.equal(moved[k], v) for k, v in found.state.items())

    def distance(state: dict[str, Tensor]) -> float:
        return sum((a.state_dict()[n] - state[n]).square().sum().item() for n, _ in a.named_parameters())

    assert distance(found.state) < distance(b.state_dict())
    assert found.objective_after > found.objective_before
    assert found.certificate["difference"] <= 1e-10 < found.certificate["control"]
    torch.testing.assert_close(found.midpoint(a)[0].weight, (a[0].weight + found.module[0].weight) / 2)


def test_weights_are_aligned_without_data_and_units_with_inputs_alone(nets: tuple[nn.Module, nn.Module]) -> None:
    with_data = mc.align(*nets, make_examples())
    assert all(torch.equal(mc.align(*nets).state[k], v) for k, v in with_data.state.items())
    assert "activation" in repr(mc.align(*nets, make_examples()[0], method="activation"))
    images = [nn.Sequential(nn.Conv2d(3, 4, 28), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)) for _ in range(2)]
    assert mc.align(*images).certificate["difference"] <= 1e-10
    with pytest.raises(mc.UserError, match=r"give data, inputs and targets"):
        mc.align(*nets, method="sinkhorn")


# ------------------------------------------------------------------------------------------------- runs from Python


def test_commands_run_from_python_and_runs_are_loaded(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures(monkeypatch)
    monkeypatch.chdir(kept)
    before = switches()
    runs = mc.run("fit-curve", SPIRALS)
    assert switches() == before
    assert [r.kind for r in runs] == ["endpoint", "endpoint", "path", "curve", "path", "picture"]
    curve = runs.paths[1]
    assert runs.verdicts[1] == curve.verdict
    loaded = mc.load(str(curve.folder))
    pd.testing.assert_frame_equal(loaded.table, pd.read_csv(curve.folder / "path.csv"))
    assert loaded.title == "Bezier curve, 1 bend"
    assert len(loaded.networks) == 3
    assert mc.open_networks(str(runs[0].folder)).names == ["endpoint"]
    module = loaded.at(0.25)
    assert not module.training
    state = loaded.state_dict(0.25)
    assert all(torch.equal(v.cpu(), state[k]) for k, v in module.state_dict().items())
    exported = kept / "quarter.pt"
    ok("export", f"{curve.folder}@t=0.25", "-o", str(exported))
    assert all(torch.equal(v, state[k]) for k, v in torch.load(exported, weights_only=True).items())
    end = runs[0].at()
    assert all(torch.equal(v.cpu(), loaded.state_dict(0.0)[k]) for k, v in end.state_dict().items())
    with pytest.raises(mc.UserError, match="is no measured path"):
        _ = runs[0].verdict
    axes = loaded.plot(_axes())
    assert axes.get_title(loc="left") == "Test error (%)"
    # What runs hold goes into connect as it is, with the data that they learnt by name.
    same = {"dataset.examples": 200, "endpoints.weight_decay": 5e-4, "align": False, "curve": False}
    found = mc.connect(runs[0].at(), runs[1].folder, "two_spirals", **same, **SMALL)
    pd.testing.assert_frame_equal(found.paths["segment"].table, runs.paths[0].table, check_exact=True)


def test_a_path_that_is_kept_is_answered_from_its_directory(
    nets: tuple[nn.Module, nn.Module], splits: Any, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = mc.fit_curve(*nets, splits, output_dir=kept, **SMALL)
    files = sorted(p for p in kept.rglob("*") if p.is_file())
    with monkeypatch.context() as patch:
        patch.setattr("modeconn_cli.stages.curve.Trainer", None)
        again = mc.fit_curve(*nets, splits, output_dir=kept, **SMALL)
    pd.testing.assert_frame_equal(first.table, again.table, check_exact=True)
    assert sorted(p for p in kept.rglob("*") if p.is_file()) == files
    (folder,) = {p.parent for p in files if p.name == "path.csv"}
    with pytest.raises(mc.UserError, match="was made from a torch module"):
        mc.load(folder).at(0.5)
    refused("export", f"{folder}@t=0.5", "-o", str(kept / "half.pt"))
    assert all(torch.equal(v, nets[1].state_dict()[k]) for k, v in mc.load(folder).state_dict(1.0).items())
    mc.fit_curve(*nets, splits, kind=Detour(), output_dir=kept, **SMALL)
    (detour,) = kept.glob("evaluate/*Detour*/v1")
    with pytest.raises(mc.UserError, match="holds a Detour curve, whose family is not here"):
        mc.load(detour).state_dict(0.5)
    assert len(mc.load(detour).networks) == 3
    rows = ok("gather", "--output-dir", str(kept), "--json").json["rows"]
    assert {row["path"] for row in rows} >= {"Bezier curve, 1 bend", "Detour curve"}
    ok("report", "--output-dir", str(kept))
    assert "a call from Python" in (kept / "report.html").read_text()


def test_points_of_a_kept_path_are_had_with_the_module_and_the_data(
    nets: tuple[nn.Module, nn.Module], splits: Any, kept: Path
) -> None:
    first = mc.fit_curve(*nets, splits, output_dir=kept, **SMALL)
    (folder,) = {p.parent for p in kept.glob("evaluate/*/v1/path.csv")}
    again = mc.load(folder, model=make_net(7), data=splits)
    x = splits[1][0]
    for t in (0.0, 0.3, 1.0):
        wanted, found = first.state_dict(t), again.state_dict(t)
        assert {*wanted} == {*found}
        assert all(torch.equal(v, found[k]) for k, v in wanted.items())
        assert torch.equal(again.at(t)(x), first.at(t)(x))
    for other, said in [
        ({"model": make_net(0), "data": (splits[1], splits[0])}, "not the data"),
        ({"model": nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3)), "data": splits}, "0.weight has shape"),
        ({"model": make_net(0)}, "give data with the model"),
    ]:
        with pytest.raises(mc.UserError, match=said):
            mc.load(folder, **other)


def _axes() -> Any:
    from matplotlib.figure import Figure

    return Figure().subplots()


def test_paths_are_drawn_over_any_axes(nets: tuple[nn.Module, nn.Module], splits: Any) -> None:
    found = mc.connect(*nets, splits, align=True, curve=False, **SMALL)
    axes = _axes()
    assert found.plot(axes, metric="train_loss") is axes
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["segment", "aligned segment", "endpoints"]
    with pytest.raises(mc.UserError, match="metric=loss: no such metric; there are train_loss"):
        found.plot(axes, metric="loss")
    assert list(found.barriers["path"]) == ["segment", "aligned segment"] * 2
    assert (found.barriers["above_mean_low"] <= found.barriers["above_mean"]).all()


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a, b, d: mc.connect(a, b, d, pionts=3), "pionts: no such option; did you mean points"),
        (
            lambda a, b, d: mc.connect(a, b, d, points=1),
            "interpolation.points=1 is out of range: it must be at least 2",
        ),
        (lambda a, b, d: mc.connect(a, a, d), "model_a and model_b hold the same weights"),
        (lambda a, b, d: mc.connect(a, nn.Linear(4, 3), d), "model_b lacks 0.weight"),
        (lambda a, b, d: mc.connect(a, b, d[0][0]), "data is a Tensor: give a pair"),
        (lambda a, b, d: mc.connect(a, b, (d[0][0][:, :2], d[0][1])), r"cannot take .* \(2,\)"),
        (lambda a, b, d: mc.connect(a, b, (d[0][0], d[0][1] + 3)), "a label is 5, and the networks answer with 3"),
        (lambda a, b, d: mc.connect(a, b, (d[0][0] / 0, d[0][1])), "NaN or infinity"),
        (lambda a, b, d: mc.connect(a.state_dict(), b.state_dict(), d), "no torch module among"),
        (lambda a, b, d: mc.connect(a, 3, d), "model_b is a int: give a torch module"),
        (lambda a, b, d: mc.connect(a, "nowhere.pt", d), "model_b: nowhere.pt: no file nowhere.pt"),
        (lambda a, b, d: mc.connect(a, b, d, align="magic"), "align=magic: no such method"),
        (lambda a, b, d: mc.connect(a, b, d, task="guess"), "task=guess: no such task"),
        (lambda a, b, d: mc.fit_curve(a, b, d, kind="spiral"), "curve=spiral: no such curve"),
        (lambda a, b, d: mc.connect(a, b, d, task=TensorTask()), "the task holds its data already"),
        (lambda a, b, d: mc.run("interpolat"), "interpolat: no such command; did you mean interpolate?"),
        (lambda a, b, d: mc.run("interpolate", "seed=1"), r"overrides are a list"),
        (lambda a, b, d: mc.load("nothing"), "no run 'nothing' under outputs/"),
        (lambda a, b, d: mc.load("nothing@t=0.5"), "is one network of a run"),
    ],
)
def test_a_mistake_is_one_line(
    nets: tuple[nn.Module, nn.Module], splits: Any, call: Callable[..., Any], words: str
) -> None:
    with pytest.raises(mc.UserError, match=words) as caught:
        call(*nets, splits)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_overrides_has_the_command_lines_words() -> None:
    with pytest.raises(mc.UserError) as caught:
        mc.run("interpolate", ["dataset=digit"])
    assert str(caught.value) == refused("interpolate", "dataset=digit")


def test_importing_is_light() -> None:
    heavy = ["torch", "numpy", "pandas", "scipy", "matplotlib", "hydra", "omegaconf", "rich", "typer", "yaml"]
    script = f"import sys, modeconn_cli as mc; dir(mc); print([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"
    assert {"connect", "fit_curve", "align", "load", "run", "open_networks"} <= set(dir(mc))
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        _ = mc.conect
