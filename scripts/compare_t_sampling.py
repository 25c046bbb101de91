"""Stratified against uniform t in curve fitting, paired over replicates: is stratified no worse?

    modeconn fit-curve -m seed=0,1,2,3 curve.t_sampling=stratified,uniform --json | python scripts/compare_t_sampling.py

Prints, for the mean and the maximum of train loss along the fitted curves, the paired difference
stratified - uniform with a 95% t interval over replicates.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from scipy import stats


def main() -> None:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for job in json.load(sys.stdin)["jobs"]:
        settings = dict(o.split("=", 1) for o in job["overrides"])
        folder = next(s["directory"] for s in job["stages"] if s["stage"] == "evaluate")
        summary = json.loads((Path(folder) / "summary.json").read_text())
        found.setdefault(settings["seed"], {})[settings["curve.t_sampling"]] = summary["columns"]["train_loss"]
    pairs = [v for v in found.values() if set(v) == {"stratified", "uniform"}]
    for what in ("mean", "max"):
        difference = np.array([p["stratified"][what] - p["uniform"][what] for p in pairs])
        level = np.mean([p["uniform"][what] for p in pairs])
        half = stats.t.ppf(0.975, len(pairs) - 1) * difference.std(ddof=1) / np.sqrt(len(pairs))
        print(
            f"{what:4} train loss: uniform {level:.4f}; stratified - uniform {difference.mean():+.5f} "
            f"[{difference.mean() - half:+.5f}, {difference.mean() + half:+.5f}], n = {len(pairs)}"
        )


if __name__ == "__main__":
    main()
