"""What the laboratory costs over bare PyTorch, as ratios of times taken alternately in one process.

    python scripts/bench_curve.py [--only NAME] [--rounds N] [--device DEVICE] [--json FILE]

For every network, at batch 128:
    curve/bare       a curve step (quadratic Bezier) over a hand-written training step: same module, batch, layout
    layout           the bare step in contiguous over channels-last layout (above 1: channels-last is faster)
    malloc           passing 1000 examples forward with glibc's own thresholds over keeping freed memory (CPU only)
    data/fixed       speed of the training loop fed by the data set over the same loop fed one fixed batch
    eval/bare        evaluating points of the curve over the bare forward passes that this needs
Each is the median over rounds of one pair's ratio, with the first and third quartile.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeconn_cli.data.dataset import Augment, Data, Split
from modeconn_cli.evaluation.evaluator import Evaluator
from modeconn_cli.evaluation.options import Interpolation
from modeconn_cli.evaluation.statistics import norm_layers
from modeconn_cli.families.bezier import Bezier
from modeconn_cli.models import build as models
from modeconn_cli.tasks.base import Batch
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.training.loop import Trainer
from modeconn_cli.training.recipe import Training
from modeconn_cli.weights import FlatModule
from modeconn_cli.work.machine import MMAP_THRESHOLD, TRIM_THRESHOLD, keep_freed_memory

BATCH = 128
# Family, input, options, and the examples of an evaluated batch (the default is 1000).
NETWORKS: dict[str, tuple[str, tuple[int, ...], dict[str, object], int]] = {
    "mlp 3x512": ("mlp", (1, 28, 28), {"width": 512, "depth": 3}, 1000),
    "convfc": ("convfc", (3, 32, 32), {}, 1000),
    "vgg16": ("vgg", (3, 32, 32), {"depth": 16}, 128),
    "preresnet110": ("preresnet", (3, 32, 32), {"depth": 110}, 128),
}


def synthetic(shape: tuple[int, ...], examples: int, device: torch.device) -> Data:
    generator = torch.Generator().manual_seed(0)

    def split(name: str, n: int) -> Split:
        x = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)
        return Split(name, x, torch.randint(0, 10, (n,), generator=generator))

    channels = (1, shape[0], 1, 1)
    augment = Augment(crop_padding=4 if shape[0] == 3 else 0, flip=shape[0] == 3)
    mean, std = torch.full(channels, 0.5), torch.full(channels, 0.25)
    train, test = split("train", examples), split("test", BATCH)
    return Data(train, None, test, 10, shape, mean, std, augment, "synthetic").to(device)


def paired(first: Callable[[], object], second: Callable[[], object], rounds: int, device: torch.device) -> list[float]:
    """Times of first over times of second, taken in turn; the order within a pair alternates."""

    def timed(f: Callable[[], object]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        f()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for f in (first, second):
        f()
    ratios = []
    for i in range(rounds):
        a, b = (timed(first), timed(second)) if i % 2 == 0 else (timed(second), timed(first))[::-1]
        ratios.append(a / b)
    return ratios


def bare_step(module: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(module.parameters(), 1e-9, momentum=0.9, weight_decay=5e-4)
    module.train()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()

    return step


def bench(name: str, rounds: int, device: torch.device) -> Iterator[tuple[str, list[float]]]:
    """Each ratio's name and values, as it is measured."""
    family, shape, options, evaluated = NETWORKS[name]
    data = synthetic(shape, 4 * BATCH, device)
    x, y = data.inputs(data.train, slice(0, BATCH)), data.train.y[:BATCH]

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return models.build(family, shape, 10, **options).to(device)

    convolutional = any(isinstance(m, nn.Conv2d) for m in fresh().modules())
    x_ours = x.contiguous(memory_format=torch.channels_last) if convolutional else x
    # Enough steps in a timing for the clock, and as many for each side.
    quick = bare_step(fresh(), x_ours, y)
    quick()
    start = time.perf_counter()
    quick()
    repeats = max(1, int(0.2 / (time.perf_counter() - start)))

    def times(f: Callable[[], object]) -> Callable[[], None]:
        def repeated() -> None:
            for _ in range(repeats):
                f()

        return repeated

    net = FlatModule(fresh(), channels_last=convolutional)
    W_kp = net.point.repeat(3, 1)
    recipe = Training(batch_size=BATCH, lr=1e-9)
    trainer = Trainer(net, Bezier(2), W_kp, slice(1, 2), Classify(data), recipe, 0)
    net.module.train()
    trainer.begin_epoch(0)
    c, lr = torch.tensor([0.25, 0.5, 0.25], device=device), torch.tensor(recipe.lr, device=device)
    batch = Batch(x_ours, y)

    def fixed_batch() -> None:
        for step in range(trainer.steps_per_epoch):
            trainer._log[:, step] = trainer.descend(batch, c, lr)

    def from_data() -> None:
        trainer.begin_epoch(0)
        for _ in range(trainer.steps_per_epoch):
            trainer.take_step(BATCH)

    ours, bare = lambda: trainer.descend(batch, c, lr), bare_step(fresh(), x_ours, y)
    yield "curve/bare", paired(times(ours), times(bare), rounds, device)
    if convolutional:
        yield "layout", paired(times(bare_step(fresh(), x, y)), times(bare), rounds, device)
    if device.type == "cpu":
        yield "malloc", bench_allocation(fresh(), x_ours, rounds)
    yield "data/fixed", paired(fixed_batch, from_data, rounds, device)
    examples = synthetic(shape, 4 * evaluated, device)
    yield "eval/bare", bench_evaluation(fresh(), examples, convolutional, evaluated, rounds, device)


def bench_allocation(module: nn.Module, x: Tensor, rounds: int) -> list[float]:
    libc = ctypes.CDLL(None)
    many = torch.cat([x] * 8)[:1000]

    @torch.no_grad()
    def kept() -> None:
        keep_freed_memory()
        module(many)

    @torch.no_grad()
    def given_back() -> None:
        libc.mallopt(TRIM_THRESHOLD, 2**26)  # what glibc's own adjustment ends at
        libc.mallopt(MMAP_THRESHOLD, 2**25)
        module(many)

    return paired(given_back, kept, rounds, torch.device("cpu"))


def bench_evaluation(
    module: nn.Module, data: Data, channels_last: bool, batch: int, rounds: int, device: torch.device
) -> list[float]:
    net = FlatModule(module, channels_last)
    evaluator = Evaluator(net, Classify(data), Interpolation(batch_size=batch))
    W_kp = net.point.repeat(3, 1)
    net.bind(W_kp[0].clone())
    buffers = [net.rest(), net.rest()]
    points = Bezier(2).coefficients(np.linspace(0.1, 0.9, 3))
    layers = norm_layers(module)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    batches = [
        [data.inputs(s, slice(i, i + batch)).contiguous(memory_format=layout) for i in range(0, len(s), batch)]
        for s in (data.train, data.test)
    ]

    def ours() -> None:
        for point in points:
            evaluator.at(W_kp, point, buffers)

    @torch.no_grad()
    def bare() -> None:
        module.eval()
        for _ in points:
            if layers:
                for layer in layers:
                    layer.train()
                for x in batches[0]:
                    module(x)
                module.eval()
            for split in batches:
                for x in split:
                    module(x)

    return paired(ours, bare, rounds, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(NETWORKS), help="one network")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="also write every ratio here")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cpu":
        keep_freed_memory()  # as every command does
    results: dict[str, dict[str, list[float]]] = {}
    name_of_device = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    )
    print(f"torch {torch.__version__}, {name_of_device}, {args.rounds} rounds")
    for name in [args.only] if args.only else NETWORKS:
        results[name] = {}
        for what, ratios in bench(name, args.rounds, device):
            results[name][what] = ratios
            low, middle, high = np.percentile(ratios, [25, 50, 75])
            print(f"{name:13} {what:11} {middle:6.3f}  [{low:.3f}, {high:.3f}]", flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"torch": torch.__version__, "device": name_of_device, "ratios": results}, f, indent=1)


if __name__ == "__main__":
    main()
