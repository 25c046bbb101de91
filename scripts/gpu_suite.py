"""What should be run once on a machine with a GPU: correctness there, the benchmark, the largest real experiment.

    python scripts/gpu_suite.py --out DIR [--device cuda] [--smoke]

Steps are independent and come with what is worth most first; each writes DIR/<step>.json when it is done, and a step
that is there is not run again. The experiment's own runs are cached under DIR/outputs. --only runs some steps. --smoke
makes every step small, to try the script on a CPU, where steps are replayed by calling them.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from modeconn_cli.data.dataset import Augment, Data, Split
from modeconn_cli.families.base import Family
from modeconn_cli.families.bezier import Bezier
from modeconn_cli.families.point import Point
from modeconn_cli.matching.sinkhorn import sinkhorn_matching
from modeconn_cli.matching.weight import weight_matching
from modeconn_cli.models import build as models
from modeconn_cli.symmetry.graph import trace
from modeconn_cli.tasks.base import Batch
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.training.device_only import DeviceOnly
from modeconn_cli.training.loop import Trainer
from modeconn_cli.training.precision import arithmetic
from modeconn_cli.training.recipe import Optimizer, Precision, Schedule, Training
from modeconn_cli.weights import FlatModule


def toy(device: torch.device) -> Data:
    generator = torch.Generator().manual_seed(0)

    def split(name: str, n: int) -> Split:
        x = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator)
        return Split(name, x, torch.randint(0, 10, (n,), generator=generator))

    mean, std = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25)
    return Data(split("train", 70), None, split("test", 20), 10, (3, 16, 16), mean, std, Augment(2, True), "toy").to(
        device
    )


def make_trainer(
    device: torch.device, recipe: Training, family: Family | None = None, trained: Sequence[int] = (1,)
) -> Trainer:
    torch.manual_seed(0)
    net = FlatModule(models.build("resnet", (3, 16, 16), 10, depth=8, width=0.5).to(device), channels_last=True)
    family = family or Bezier(2)
    rows = net.point.repeat(family.vertices, 1)
    generator = torch.Generator().manual_seed(1)
    for row in rows[1:]:
        for view in net.views(row):
            view += 0.01 * torch.randn(view.shape, generator=generator).to(device)
    return Trainer(net, family, rows, trained, Classify(toy(device)), recipe, seed=3)


def gradient(device: torch.device) -> dict[str, Any]:
    """A curve step's gradient in float64 against autograd through functional_call, on the device."""
    module = models.build("mlp", (6,), 4, width=16, depth=2).double().to(device)
    net = FlatModule(module)
    rows = torch.randn(3, len(net.point), dtype=torch.float64, device=device)
    x, y = torch.randn(9, 6, dtype=torch.float64, device=device), torch.randint(0, 4, (9,), device=device)
    c = [0.3, 0.5, 0.2]
    data = Data(Split("train", x, y), None, Split("test", x, y), 4, (6,), x[:1] * 0, x[:1] * 0 + 1, Augment(), "toy")
    recipe = Training(lr=1.0, momentum=0.0, weight_decay=0.1)
    leaf = rows.clone().requires_grad_()
    w = torch.tensor(c, dtype=torch.float64, device=device) @ leaf
    loss = F.cross_entropy(functional_call(module, net.named(w), (x,)), y) + 0.05 * (w * w).sum()
    wanted = torch.autograd.grad(loss, leaf)[0][1]
    before = rows[1].clone()
    trainer = Trainer(net, Bezier(2), rows, slice(1, 2), Classify(data), recipe, seed=0)
    trainer.descend(Batch(x, y), torch.tensor(c, dtype=torch.float64, device=device), _rate(device))
    error = float(((before - rows[1]) - wanted).norm() / wanted.norm())
    return {"relative_error": error, "holds": error < 1e-10}


def _rate(device: torch.device) -> torch.Tensor:
    """A learning rate of 1, as the fused kernels take it."""
    return torch.tensor(1.0, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)


def resume(device: torch.device) -> dict[str, Any]:
    """Training stopped after every few steps and resumed from its state ends in the same bits."""
    recipe = Training(epochs=3, batch_size=16, lr=0.05)
    whole = make_trainer(device, recipe)
    whole.run()

    class Stop(Exception):  # noqa: N818
        pass

    def stop(trainer: Trainer) -> None:
        if trainer.step % 4 == 0:
            raise Stop

    saved = io.BytesIO()
    while True:
        trainer = make_trainer(device, recipe)
        if saved.getbuffer().nbytes:
            saved.seek(0)
            trainer.load(torch.load(saved, map_location="cpu", weights_only=True))
        try:
            trainer.run(stop)
            break
        except Stop:
            saved = io.BytesIO()
            torch.save(trainer.state(), saved)
    same = torch.equal(whole.W_kp, trainer.W_kp) and whole.rows == trainer.rows
    return {"bit_identical": same, "holds": same}


def agrees_with_cpu(device: torch.device) -> dict[str, Any]:
    """Four steps of the same recipe on the CPU and on the device end near one another."""
    ends = []
    for place in (torch.device("cpu"), device):
        trainer = make_trainer(place, Training(epochs=1, batch_size=18, lr=0.01))
        trainer.run()
        named = trainer.net.named(trainer.W_kp[1])
        ends.append(torch.cat([v.reshape(-1).cpu() for v in named.values()]))
    error = float((ends[0] - ends[1]).norm() / ends[0].norm())
    return {"relative_difference": error, "holds": error < 1e-3}


def on_device(device: torch.device) -> dict[str, Any]:
    """No kind of step reads the device, moves a tensor, draws or has a result whose shape depends on values."""
    faults = {}
    for family, trained in ((Point(), [0]), (Bezier(2), [1]), (Bezier(3), [0, 1, 2, 3])):
        for optimizer in Optimizer:
            for precision in Precision:
                recipe = Training(batch_size=16, lr=0.01, optimizer=optimizer, precision=precision)
                trainer = make_trainer(device, recipe, family, trained)
                trainer.net.module.train()
                trainer.begin_epoch(0)
                trainer.take_step(16)  # cuDNN's and cuBLAS's own first steps
                try:
                    with DeviceOnly():
                        trainer.take_step(16)
                        trainer.take_step(16)
                except RuntimeError as fault:
                    faults[f"{family} {optimizer} {precision}"] = str(fault)
    return {"faults": faults, "holds": not faults}


# Network, depth; examples of an epoch; whether it is a curve, and precision.
GRAPHS = {
    f"graph_{name}_{kind}_{precision}": (family, depth, kind == "curve", precision)
    for name, family, depth in (("resnet20", "resnet", 20), ("vgg16", "vgg", 16), ("preresnet164", "preresnet", 164))
    for kind in ("curve", "endpoint")
    for precision in (Precision.tf32, Precision.bfloat16)
}


def images(n: int, device: torch.device) -> Data:
    generator = torch.Generator().manual_seed(0)

    def split(name: str, n: int) -> Split:
        y = torch.randint(0, 10, (n,), generator=generator)
        x = torch.randint(0, 200, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        x += 5 * y.view(-1, 1, 1, 1).byte()
        return Split(name, x, y)

    mean, std = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25)
    return Data(split("train", n), None, split("test", 20), 10, (3, 32, 32), mean, std, Augment(4, True), "made").to(
        device
    )


def graph(device: torch.device, smoke: bool, family: str, depth: int, curve: bool, kind: Precision) -> dict[str, Any]:
    """A whole epoch of one captured step against the same epoch, eagerly, from the same state; and the time of each.

    Kernels may be chosen otherwise and training amplifies it: the first step must agree to 2% of its own length, and
    the epoch's mean loss to 5%. Dropout is off, and PyTorch is free to take its quickest kernels.
    """
    if smoke:
        family, depth = "resnet", 8
    batch, steps = (8, 3) if smoke else (128, 100)
    data = images(batch * steps, device)
    recipe = Training(batch_size=batch, epochs=3, lr=0.02, precision=kind, schedule=Schedule.constant)

    def fresh() -> Trainer:
        torch.manual_seed(0)
        net = FlatModule(models.build(family, (3, 32, 32), 10, depth=depth).to(device), channels_last=True)
        for dropout in [m for m in net.module.modules() if isinstance(m, nn.Dropout)]:
            dropout.p = 0.0
        if not curve:
            return Trainer(net, Point(), net.point[None], [0], Classify(data), recipe, seed=3)
        return Trainer(net, Bezier(2), net.point.repeat(3, 1), [1], Classify(data), recipe, seed=3)

    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    with arithmetic(kind):
        found = {name: _epoch(fresh(), batch, steps, name == "graph", device) for name in ("eager", "graph")}
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    eager, replayed = found["eager"], found["graph"]
    first = float((eager["first"] - replayed["first"]).norm() / eager["moved"])
    loss = abs(eager["loss"] / replayed["loss"] - 1)
    times = {name: {"ms_per_step": 1e3 * f["seconds"] / steps, "mean_loss": f["loss"]} for name, f in found.items()}
    return {
        **times,
        "faster": eager["seconds"] / replayed["seconds"],
        "first_step_apart": first,
        "mean_loss_apart": loss,
        "holds": first < 0.02 and loss < 0.05,
    }


def _epoch(trainer: Trainer, batch: int, steps: int, captured: bool, device: torch.device) -> dict[str, Any]:
    """The second epoch, eagerly or by a graph; the first warms up."""
    trainer.net.module.train()
    row = trainer.W_kp[trainer.trained[0]]
    trainer.begin_epoch(0)
    trainer.step = 0
    state = copy.deepcopy(trainer.state())
    take = lambda: trainer.take_step(batch)  # noqa: E731
    if device.type == "cuda":
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                trainer.take_step(batch)
        torch.cuda.current_stream().wait_stream(side)
        if captured:
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded):
                trainer.take_step(batch)
            take = recorded.replay
    trainer.load(state)
    trainer.begin_epoch(1)
    before = row.clone()
    take()
    first = row.clone()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps - 1):
        take()
    synchronize(device)
    seconds = (time.perf_counter() - start) * steps / (steps - 1)
    return {"first": first, "moved": (first - before).norm(), "seconds": seconds, "loss": float(trainer._losses.mean())}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matching(device: torch.device) -> dict[str, Any]:
    """A planted permutation is found on the device, by weight matching and by training."""
    torch.manual_seed(0)
    module = models.build("resnet", (3, 16, 16), 10, depth=8, width=0.5).to(device)
    symmetry = trace(module, torch.randn(2, 3, 16, 16, device=device))
    planted = [torch.randperm(g.size) for g in symmetry.groups]
    state = dict(module.state_dict())
    names = [n for n, _ in module.named_parameters()]
    a, b = ({n: s[n] for n in names} for s in (state, symmetry.permute(state, planted)))

    def apart(p: Mapping[str, torch.Tensor]) -> float:
        return float(sum((p[n] - a[n]).square().sum() for n in names))

    found = {
        "weight": weight_matching(symmetry, a, b, names, restarts=0),
        "sinkhorn": sinkhorn_matching(symmetry, a, b, None, apart, 40, 0.5),
    }
    whole = {}
    for method, matched in found.items():
        back = symmetry.permute(b, matched.permutations)
        whole[method] = sum(float((back[n] == a[n]).double().mean()) for n in names) / len(names)
    return {"share_recovered": whole, "holds": min(whole.values()) == 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", help="these steps")
    parser.add_argument("--smoke", action="store_true", help="small steps, for trying the script on a CPU")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    torch.use_deterministic_algorithms(True, warn_only=True)

    def command(name: str, *words: str) -> dict[str, Any]:
        done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True, check=False)
        (args.out / f"{name}.txt").write_text(done.stdout)
        return {"command": list(words), "exit_code": done.returncode, "holds": done.returncode == 0}

    bench = ["scripts/bench_curve.py", "--device", args.device, "--rounds", "3" if args.smoke else "25"]
    bench += ["--only", "mlp 3x512"] if args.smoke else []
    experiment = ["-m", "modeconn_cli", "fit-curve", "--json", f"runtime.device={args.device}"]
    experiment += [f"runtime.output_dir={args.out / 'outputs'}"]
    rebasin = ["-m", "modeconn_cli", "rebasin", "--json", f"runtime.device={args.device}"]
    rebasin += [f"runtime.output_dir={args.out / 'outputs'}"]
    budgets = ["-m", "modeconn_cli", "budgets", "--json", f"runtime.device={args.device}"]
    budgets += [f"runtime.output_dir={args.out / 'outputs'}"]
    if args.smoke:
        budgets += [
            "endpoints.epochs=4",
            "budgets.most=2",
            "swag.rank=2",
            "swag.start=0.5",
            "swa.start=0.5",
            "fge.epochs=4",
        ]
        rebasin += ["endpoints.epochs=1", "interpolation=quick"]
        experiment += ["endpoints.epochs=1", "curve.epochs=1", "interpolation=quick"]
    else:
        rebasin += ["--multirun", "architecture.width=1,2,4", "seed=0,1,2", "dataset=fashion_mnist"]
        rebasin += ["architecture=resnet20", "dataset.pad_to=32", "dataset.flip=true", "dataset.crop_padding=4"]
        rebasin += ["endpoints.epochs=15", "endpoints.batch_size=256", "endpoints.schedule=cosine"]
        rebasin += ["endpoints.warmup_epochs=1", "endpoints.weight_decay=1e-4", "interpolation.search_max=0"]
        rebasin += ["interpolation.points=5", "interpolation.train_examples=10000"]
        experiment += ["--multirun", "seed=0,1,2", "dataset=fashion_mnist", "architecture=resnet20"]
        budgets += ["experiment=garipov_vgg16_cifar10", "endpoints.precision=bfloat16", "endpoints.epochs=20"]
        budgets += ["fge.epochs=4", "swag.rank=5", "budgets.most=2"]
        experiment += ["endpoints.epochs=30", "endpoints.lr=0.1", "curve.epochs=60", "curve.lr=0.05"]
    batch_norm = ["endpoints.lr=0.4"]
    layer_norm = ["endpoints.lr=0.1", *([] if args.smoke else ["architecture.norm=layer"])]
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "gradient": lambda: gradient(device),
        "on_device": lambda: on_device(device),
        **{name: partial(graph, device, args.smoke, *case) for name, case in GRAPHS.items()},
        "resume": lambda: resume(device),
        "agrees_with_cpu": lambda: agrees_with_cpu(device),
        "matching": lambda: matching(device),
        "bench": lambda: command("bench", *bench),
        "rebasin": lambda: command("rebasin", *rebasin, *batch_norm),
        "rebasin_layer_norm": lambda: command("rebasin_layer_norm", *rebasin, *layer_norm),
        "experiment": lambda: command("experiment", *experiment),
        "budgets": lambda: command("budgets", *budgets),
        "rebasin_lower_lr": lambda: command("rebasin_lower_lr", *rebasin, "endpoints.lr=0.1"),
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    failed = 0
    for step, run in steps.items():
        if args.only and step not in args.only:
            continue
        file = args.out / f"{step}.json"
        if file.exists():
            print(f"{step}: there already")
            continue
        started = time.time()
        found = {"device": name, "torch": torch.__version__, **run(), "seconds": round(time.time() - started, 1)}
        if found["holds"]:
            file.write_text(json.dumps(found, indent=1))
        failed += not found["holds"]
        print(step, json.dumps(found), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
