"""Weight matching beside a plain textbook coordinate descent: objectives and times, alternately in one process.

    python scripts/bench_rebasin.py [--only NAME] [--seeds N] [--json FILE]

The textbook's: groups in random order, every cost matrix formed anew from B permuted anew, until a sweep moves
nothing. Ours: the first start alone (restarts=0). Both start from the same pair of networks and use the same solver.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from modeconn_cli import models
from modeconn_cli.symmetry.axes import leaves, permuted, places
from modeconn_cli.symmetry.graph import trace
from modeconn_cli.symmetry.groups import Symmetry
from modeconn_cli.symmetry.matching import assign, weight_matching

NETWORKS: dict[str, tuple[str, tuple[int, ...], dict[str, object]]] = {
    "vgg16": ("vgg", (3, 32, 32), {"depth": 16}),
    "resnet20x8": ("resnet", (3, 32, 32), {"depth": 20, "width": 8}),
    "mlp 2048": ("mlp", (1, 28, 28), {"width": 2048}),
    "mlp 4096": ("mlp", (1, 28, 28), {"width": 4096, "depth": 2}),
}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = []
    print(f"torch {torch.__version__}, cpu, {torch.get_num_threads()} threads")
    for name in [args.only] if args.only else NETWORKS:
        family, shape, options = NETWORKS[name]
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            first, second = (models.build(family, shape, 10, **options) for _ in range(2))
            symmetry = trace(first, torch.randn(2, *shape))
            names = [n for n, _ in first.named_parameters()]
            a, b = dict(first.state_dict()), dict(second.state_dict())
            seconds, reached = [], []
            for ours in (True, False) if seed % 2 == 0 else (False, True):
                start = time.perf_counter()
                if ours:
                    found = weight_matching(symmetry, a, b, names, seed, restarts=0).permutations
                else:
                    found = textbook(symmetry, a, b, names, seed)
                took = time.perf_counter() - start
                moved = symmetry.permute(b, found)
                objective = sum(float((a[n].double() * moved[n].double()).sum()) for n in names)
                seconds.append((ours, took))
                reached.append((ours, objective))
            (_, plain), (_, mine) = sorted(seconds)
            (_, theirs), (_, best) = sorted(reached)
            rows.append({"network": name, "seed": seed, "time": mine / plain, "ours": best, "textbook": theirs})
            print(
                f"{name:12} seed {seed}: time {mine / plain:.3f} of the textbook's ({mine:.2f} s), objective "
                f"{best:.3f} against {theirs:.3f}",
                flush=True,
            )
    if args.json:
        with open(args.json, "w") as f:
            json.dump(rows, f, indent=1)


if __name__ == "__main__":
    main()
