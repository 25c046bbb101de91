"""Weight matching beside a plain textbook coordinate descent: objectives and times, alternately in one process.

    python scripts/bench_rebasin.py [--only NAME] [--seeds N] [--steps N] [--memory] [--json FILE]

The textbook's: groups in random order, every cost matrix formed anew from B permuted anew, until a sweep moves
nothing. Ours: the first start alone (restarts=0), and as many as are the default. All begin with the same pair of
networks and use the same solver.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modeconn_cli.data.digits import digits
from modeconn_cli.matching.assignment import assign
from modeconn_cli.matching.weight import weight_matching
from modeconn_cli.models import build as models
from modeconn_cli.symmetry.equations import leaves
from modeconn_cli.symmetry.graph import trace
from modeconn_cli.symmetry.groups import Symmetry
from modeconn_cli.symmetry.places import permuted, places

NETWORKS: dict[str, tuple[str, tuple[int, ...], dict[str, object]]] = {
    "vgg16": ("vgg", (3, 32, 32), {"depth": 16}),
    "resnet20x8": ("resnet", (1, 8, 8), {"depth": 20, "width": 8}),
    "mlp 2048": ("mlp", (1, 28, 28), {"width": 2048}),
    "mlp 4096": ("mlp", (1, 28, 28), {"width": 4096, "depth": 2}),
}
LR = {"vgg16": 0.05, "resnet20x8": 0.1, "mlp 2048": 0.05, "mlp 4096": 0.05}


def textbook(
    symmetry: Symmetry, a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: list[str], seed: int
) -> list[Tensor]:
    """Coordinate descent as Ainsworth et al. 2023 (arXiv:2209.04836), algorithm 1, describe it."""
    rng = np.random.default_rng(seed)
    found = symmetry.identity()
    while True:
        still = True
        for g in rng.permutation(len(symmetry.groups)).tolist():
            group = symmetry.groups[g]
            others = {h.leaf: p for k, (h, p) in enumerate(zip(symmetry.groups, found, strict=True)) if k != g}
            cost = torch.zeros(group.size, group.size)
            for name in names:
                axes = symmetry.axes[name]
                if not any(leaf is group.leaf for axis in axes for leaf in leaves(axis)):
                    continue
                moved = permuted(b[name], places(axes), others)
                for place in places(axes):
                    if place.leaf is group.leaf:
                        rows = [
                            t.index_select(place.dim, place.at.reshape(-1))
                            .movedim(place.dim, 0)
                            .reshape(group.size, -1)
                            for t in (a[name], moved)
                        ]
                        cost += rows[0] @ rows[1].T
            new = torch.from_numpy(assign(cost.double().numpy()))
            every = torch.arange(group.size)
            if float(cost[every, new].sum()) > float(cost[every, found[g]].sum()) + 1e-6 * float(cost.abs().max()):
                found[g], still = new, False
        if still:
            return found


def pair(name: str, seed: int, steps: int) -> tuple[Symmetry, list[str], dict[str, Tensor], dict[str, Tensor]]:
    """Two networks of one kind, trained for some steps on the digits, at the size of their inputs."""
    family, shape, options = NETWORKS[name]
    torch.manual_seed(seed)
    networks = [models.build(family, shape, 10, **options) for _ in range(2)]
    raw = digits()
    images, labels = F.interpolate(raw.x[:1000].float() / 120 - 1, shape[1:]), raw.y[:1000]
    for network in networks if steps else []:
        optimizer = torch.optim.SGD(network.parameters(), LR[name], momentum=0.9, nesterov=True)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = LR[name] * (1 - step / steps)
            drawn = torch.randint(0, len(labels), (64,))
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images[drawn].expand(-1, *shape)), labels[drawn])
            loss.backward()
            optimizer.step()
        print(f"{name} trained for {steps} steps: loss {float(loss):.3f}", flush=True)
    symmetry = trace(networks[0], torch.randn(2, *shape))
    a, b = ({k: v.detach() for k, v in network.state_dict().items()} for network in networks)
    return symmetry, [n for n, _ in networks[0].named_parameters()], a, b


def memory(name: str) -> dict[str, float]:
    """The most memory that matching takes, with both networks, and what it is measured against; in bytes."""
    symmetry, names, a, b = pair(name, 0, 0)
    assign(np.eye(2))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    weight_matching(symmetry, a, b, names, restarts=0)
    both = 2 * sum(v.numel() * v.element_size() for v in a.values())
    largest = 8 * max(g.size for g in symmetry.groups) ** 2
    return {"peak": both + _resident("VmHWM") - before, "both networks": both, "largest cost matrix": largest}


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def times(name: str, seed: int, steps: int) -> dict[str, Any]:
    """Both methods on one pair: seconds and objectives."""
    symmetry, names, a, b = pair(name, seed, steps)
    assign(np.eye(2))  # which imports scipy
    row: dict[str, Any] = {"network": name, "seed": seed, "steps": steps}

    def ours(restarts: int | None) -> list[Tensor]:
        return weight_matching(symmetry, a, b, names, seed, restarts=restarts).permutations

    ways = {
        "first": lambda: ours(0),
        "textbook": lambda: textbook(symmetry, a, b, names, seed),
        "all": lambda: ours(None),
    }
    for way in list(ways) if seed % 2 == 0 else list(ways)[::-1]:
        start = time.perf_counter()
        found = ways[way]()
        row[f"{way}_s"] = time.perf_counter() - start
        moved = symmetry.permute(b, found)
        row[way] = sum(float((a[n].double() * moved[n].double()).sum()) for n in names)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(NETWORKS), help="this network alone")
    parser.add_argument("--seeds", type=int, default=3, help="pairs of networks")
    parser.add_argument("--steps", type=int, default=0, help="train networks for so many steps first")
    parser.add_argument("--memory", action="store_true", help="measure memory instead (Linux); one network a process")
    parser.add_argument("--json", help="write the rows there")
    args = parser.parse_args()
    rows = []
    print(f"torch {torch.__version__}, cpu, {torch.get_num_threads()} threads")
    if args.memory:
        if not args.only:
            parser.error("--memory wants --only")
        rows = [memory(args.only)]
        limit = 3 * rows[0]["both networks"] + rows[0]["largest cost matrix"]
        print(f"{args.only}: {rows[0]} bytes, {rows[0]['peak'] / limit:.2f} of three times both and the largest matrix")
    for name in [] if args.memory else [args.only] if args.only else list(NETWORKS):
        for seed in range(args.seeds):
            rows.append(row := times(name, seed, args.steps))
            print(
                f"{name:12} seed {seed}: first start {row['first_s'] / row['textbook_s']:.3f} of the textbook's "
                f"{row['textbook_s']:.2f} s, all {row['all_s'] / row['textbook_s']:.3f}; objective "
                f"{row['first']:.3f}, {row['all']:.3f} against {row['textbook']:.3f}",
                flush=True,
            )
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
