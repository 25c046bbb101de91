"""rebasin of more than two networks: each permuted towards the others, and the mean of all of them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.evaluation.barriers import resampled_means
from modeconn_cli.evaluation.evaluator import Scores, metrics, require_same
from modeconn_cli.evaluation.measured import SPLITS, split_note
from modeconn_cli.matching.many import RESTARTS, cycle_consistent, cycle_error, merge_many, pairs_of
from modeconn_cli.matching.weight import weight_matching
from modeconn_cli.networks import write_state
from modeconn_cli.results import task_note
from modeconn_cli.runs.directory import Run
from modeconn_cli.settings import BatchNorm, Interpolation, Match, Renormalise
from modeconn_cli.stages.endpoints import CHECKPOINT, Endpoint
from modeconn_cli.stages.rebasin import Permuting
from modeconn_cli.symmetry.certificate import certify_all
from modeconn_cli.work.context import Context
from modeconn_cli.work.saving import Saver


class Merged(Permuting):
    """The mean of networks after each was permuted: checkpoint.safetensors, and beside it what it was made from.

    permutation-<k>.safetensors are those of Aligned, for every network but the first, whose order all are brought to.
    BatchNorm's statistics in checkpoint.safetensors are re-estimated. merge.csv and summary.json have the loss of the
    mean as the networks are, matched, and matched and renormalised.
    """

    makes = "merged"

    def __init__(self, context: Context, networks: list[Endpoint]) -> None:
        super().__init__(context, [*networks])
        self.networks = networks

    @property
    def label(self) -> str:
        names = [n.short_name.removeprefix("seed ") for n in self.networks]
        known = all(n.isdigit() for n in names)
        return (
            f"{self.context.label}-{'s' + '-'.join(names) if known else 'files'}-{self.context.config.rebasin.method}"
        )

    def compute(self, run: Run) -> None:
        options, context = self.context.config.rebasin, self.context
        module, symmetry, _ = self.traced
        states = [n.state() for n in self.networks]
        names = [n for n, _ in module.named_parameters()]
        here = [{k: v.to(context.device) for k, v in s.items()} for s in states]

        def watch(step: int, objective: float) -> None:
            context.reporter.progress(min(step + 1, options.sweeps), options.sweeps, f"objective {objective:.4f}")
            context.signals.check()

        method = merge_many if options.method is Match.merge_many else cycle_consistent
        restarts = RESTARTS if options.restarts is None else options.restarts
        permutations, objective = method(
            symmetry, here, names, options.sweeps, restarts, options.seed, watch, Saver(run, context)
        )
        aligned = [symmetry.permute(s, p) for s, p in zip(states, permutations, strict=True)]
        certificate = certify_all(module, symmetry, states, aligned, self.examples())
        for k, (state, found) in enumerate(zip(states, permutations, strict=True)):
            if k:
                write_state(run, f"permutation-{k + 1}.safetensors", symmetry.moves(state, found))
        pairs = itertools.combinations(range(len(states)), 2)
        apart = {(i, j): weight_matching(symmetry, here[j], here[i], names, restarts=0).permutations for i, j in pairs}
        rows = self._measure(run, states, aligned)
        write = {
            "networks": [n.short_name for n in self.networks],
            "method": str(options.method),
            "objective": objective,
            "objective_is": "sum over pairs of inner products",
            "cycle_error": {
                "this": cycle_error(symmetry, pairs_of(symmetry, permutations), len(states)),
                "every pair by weight matching": cycle_error(symmetry, apart, len(states)),
            },
            "groups": [
                {
                    "name": g.name,
                    "size": g.size,
                    "moved": [int((p[i] != torch.arange(g.size)).sum()) for p in permutations],
                }
                for i, g in enumerate(symmetry.groups)
            ],
            "pinned_by": symmetry.pinned_by,
            "certificate": certificate,
            "merged": rows,
        }
        summary = json.loads((run.folder / "summary.json").read_text())
        run.write_json("summary.json", {**summary, **write})

    def _measure(
        self, run: Run, states: list[dict[str, Tensor]], aligned: list[dict[str, Tensor]]
    ) -> list[dict[str, Any]]:
        """Scores of the ends and of their mean, in every way; writes the merged network and merge.csv."""
        net = self.context.net(0)
        coordinates = set(net.names)
        own = self.context.evaluator(net, Interpolation())
        ends = []
        for n, state in zip(self.networks, states, strict=True):
            with torch.no_grad():
                net.module.load_state_dict(state)
            ends.append(own.scores())
            require_same(n.metrics(), metrics(ends[-1]), n.short_name, self.context.task.columns)
        options = self.context.config.interpolation
        kinds = [("mean of the networks as they are", states, BatchNorm.mean, Renormalise.none)]
        kinds += [("mean of the matched", aligned, BatchNorm.mean, Renormalise.none)]
        if own.has_batch_norm:
            kinds += [("matched + reset", aligned, BatchNorm.reestimate, Renormalise.none)]
        kinds += [
            (f"matched + {r.name.upper()}", aligned, BatchNorm.reestimate, r)
            for r in (Renormalise.repair, Renormalise.rescale)
        ]
        rows = []
        for name, networks, batch_norm, renormalise in kinds:
            asked = Interpolation(
                **{**vars(options), "batch_norm": batch_norm, "renormalise": renormalise, "train_examples": None}
            )
            evaluator = self.context.evaluator(net, asked)
            points = torch.stack([net.flatten(s) for s in networks])
            buffers = [{k: v.to(net.point.device) for k, v in s.items() if k not in coordinates} for s in networks]
            scores = evaluator.centre(points, buffers)
            rows.append({"network": name, **_barriers(scores, ends, options)})
            if renormalise is Renormalise.none and networks is aligned:
                measured = metrics(scores)
                write_state(run, CHECKPOINT, net.state())
        run.write_rows(
            "merge.csv",
            [{k: v["value"] if isinstance(v, dict) else v for k, v in row.items()} for row in rows],
        )
        run.write_json(
            "summary.json",
            {
                "metrics": measured,
                "task": task_note(self.context.task),
                "ends": [metrics(e) for e in ends],
                "splits": {k: split_note(own, k) for k in SPLITS},
                "parameters": net.size,
            },
        )
        return rows

    def found(self, run: Run) -> dict[str, dict[str, Any]]:
        summary = json.loads((run.folder / "summary.json").read_text())
        keep = ("networks", "method", "ends", "merged", "cycle_error", "objective", "certificate")
        return {"merged": {k: summary[k] for k in keep}}


def _barriers(centre: dict[str, Scores], ends: list[dict[str, Scores]], options: Interpolation) -> dict[str, Any]:
    """Every metric of a mean, and how far it is above the mean of the ends', with bootstrap intervals."""
    row: dict[str, Any] = {}
    tails = [50 * (1 - options.confidence), 50 * (1 + options.confidence)]
    for split in SPLITS:
        for metric in centre[split].columns:
            scale = centre[split].scales[metric]
            values = [scale * s[split].columns[metric].double() for s in (centre, *ends)]
            above = values[0] - torch.stack(values[1:]).mean(0)
            low, high = np.percentile(resampled_means(above[None], options.bootstrap)[:, 0], tails)
            row[f"{split}_{metric}"] = float(values[0].mean())
            row[f"{split}_{metric}_above_mean"] = {"value": float(above.mean()), "low": float(low), "high": float(high)}
    return row
