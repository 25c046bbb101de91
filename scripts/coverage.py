"""How often a barrier's interval holds the true barrier, and what its verdict says, on paths whose barrier is known.

Examples are drawn, and scored along a path: an example's difficulty is its own and the same all along, what is left of
it is a smooth random function of t, so that neighbouring points agree on most examples and the two ends, far from each
other, are networks of one error rate with different errors. Their columns are errors (0 or 1), a skewed loss
(log-normal) or squared residuals. With --scores, examples are drawn from a run's kept scores instead: its own path is
then the true one, with the dependence of real networks.

    python scripts/coverage.py --examples 360 --trials 400
    python scripts/coverage.py --examples 100 --error 0.5
    python scripts/coverage.py --scores outputs/evaluate/.../v1/scores.safetensors --examples 360
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import norm

from modeconn_cli.evaluation.barriers import (
    CONVENTIONS,
    barrier_intervals,
    barriers,
    resampled_means,
    verdict,
    verdict_bounds,
)
from modeconn_cli.evaluation.rare import is_counted, with_counts
from modeconn_cli.families.base import Array

SHAPES: dict[str, Callable[[Array], Array]] = {  # points above the ends, by t
    "flat": lambda t: 0 * t,
    "plateau": lambda t: 2 * np.clip(np.minimum(t, 1 - t) / 0.15, 0, 1),
    "peak": lambda t: 6 * np.sin(np.pi * t) ** 2,
    "narrow peak": lambda t: 5 * np.exp(-(((t - 0.4) / 0.08) ** 2) / 2),
    "two peaks": lambda t: 4 * np.exp(-(((t - 0.25) / 0.08) ** 2) / 2) + 3.5 * np.exp(-(((t - 0.75) / 0.08) ** 2) / 2),
    "slope": lambda t: 2 * t,
}
COLUMNS = ("error", "loss", "squared")


def scores(rng: np.random.Generator, n: int, t: Array, L: Array, column: str, shared: float, length: float) -> Array:
    """Scores (T, n) of n examples whose means are L (T,), in percent."""
    rough = np.linalg.cholesky(np.exp(-((t[:, None] - t) ** 2) / (2 * length**2)) + 1e-6 * np.eye(len(t)))
    z = np.sqrt(shared) * rng.standard_normal(n) + np.sqrt(1 - shared) * rough @ rng.standard_normal((len(t), n))
    if column == "error":
        return 100.0 * (z > norm.isf(L / 100)[:, None])
    return L[:, None] * (np.exp(z - 0.5) if column == "loss" else z**2)


def tried(draw: Callable[[], Array], t: Array, truth: Array, options: argparse.Namespace) -> list[dict[str, object]]:
    """A row a convention, over trials that each ``draw`` examples' scores (T, n)."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONVENTIONS}
    for trial in range(options.trials):
        values = draw()
        resampled = resampled_means(torch.from_numpy(values), options.resamples, seed=trial)
        by_name = barrier_intervals(t, values.mean(1), resampled, options.confidence)
        counted = torch.from_numpy(values / 100)
        if is_counted(counted):
            by_name = with_counts(by_name, t, counted, 100.0, options.confidence)
        for name, interval in by_name.items():
            found[name].append(interval)
    true = {name: float(value) for name, value in barriers(t, truth).items()}
    rows = []
    for name, intervals in found.items():
        said = [verdict(verdict_bounds(i, options.odds), options.below) for i in intervals]
        by_key = {k: np.array([i[k] for i in intervals]) for k in ("value", "corrected", "low", "high")}
        rows.append(
            {
                "convention": name,
                "true": true[name],
                "value": float(by_key["value"].mean()),
                "corrected": float(by_key["corrected"].mean()),
                "too_low": float(np.mean(by_key["high"] < true[name] - 1e-9)),
                "too_high": float(np.mean(by_key["low"] > true[name] + 1e-9)),
                "width": float(np.mean(by_key["high"] - by_key["low"])),
                **{word: said.count(word) / len(said) for word in ("yes", "undecided", "no")},
            }
        )
        rows[-1]["covered"] = 1 - rows[-1]["too_low"] - rows[-1]["too_high"]
    return rows


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=360)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--points", type=int, default=61)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--below", type=float, default=2.0)
    parser.add_argument("--odds", type=float, default=1.5)
    parser.add_argument("--error", type=float, default=10.0, help="of the ends, in percent")
    parser.add_argument("--shared", type=float, default=0.85, help="variance that an example has all along the path")
    parser.add_argument("--length", type=float, default=0.2, help="of t, over which the rest changes")
    parser.add_argument("--shapes", nargs="+", default=[*SHAPES], choices=SHAPES)
    parser.add_argument("--columns", nargs="+", default=["error"], choices=COLUMNS)
    parser.add_argument("--conventions", nargs="+", default=["above_mean"], choices=CONVENTIONS)
    parser.add_argument("--scores", type=Path, help="a run's scores.safetensors; its test_error is drawn from")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, rows = np.random.default_rng(options.seed), []
    if options.scores:
        kept = load_file(options.scores)
        t, every = kept["t"].numpy(), 100 * kept["test.error"].double().numpy()
        found = tried(lambda: every[:, rng.integers(every.shape[1], size=options.examples)], t, every.mean(1), options)
        rows += [{"shape": str(options.scores), "column": "error", **row} for row in found]
    else:
        t = np.linspace(0, 1, options.points)
        for shape in options.shapes:
            L = options.error + SHAPES[shape](t)
            for column in options.columns:

                def draw(L: Array = L, column: str = column) -> Array:
                    return scores(rng, options.examples, t, L, column, options.shared, options.length)

                rows += [{"shape": shape, "column": column, **row} for row in tried(draw, t, L, options)]
    rows = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    kept_rows = [row for row in rows if row["convention"] in options.conventions]
    print(json.dumps({"options": {**vars(options), "scores": str(options.scores or "")}, "rows": kept_rows}, indent=1))


if __name__ == "__main__":
    main()
