"""rebasin of more than two networks: each permuted towards the others, and the mean of all of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.evaluation.barriers import resampled_means
from modeconn_cli.evaluation.evaluator import Scores, metrics, require_same
from modeconn_cli.evaluation.measured import SPLITS, Question, split_note
from modeconn_cli.evaluation.options import BatchNorm, Interpolation, Renormalise
from modeconn_cli.evaluation.rare import are_few, is_counted, widened
from modeconn_cli.matching.many import cycle_error, pairs_of
from modeconn_cli.matching.options import Together
from modeconn_cli.matching.search import searched
from modeconn_cli.matching.weight import weight_matching
from modeconn_cli.networks import read_state, write_state
from modeconn_cli.results import SCORES, Result, read_summary, task_note
from modeconn_cli.runs.directory import Run
from modeconn_cli.stages.endpoints import CHECKPOINT, Endpoint
from modeconn_cli.stages.rebasin import Permuting
from modeconn_cli.symmetry.certificate import certify_all
from modeconn_cli.symmetry.groups import moved
from modeconn_cli.tasks.base import Column
from modeconn_cli.work.context import Context
from modeconn_cli.work.measuring import keep_scores, question_of, stacked_scores


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
        known = all(n.isdecimal() for n in names)
        return (
            f"{self.context.label}-{'s' + '-'.join(names) if known else 'files'}-{self.context.config.rebasin.method}"
        )

    def matched_states(self) -> list[dict[str, Tensor]]:
        """The networks as they were permuted."""
        states = [n.state() for n in self.networks]
        files = [None, *(self.result.folder / permutation_file(k) for k in range(1, len(states)))]
        return [s if f is None else moved(s, read_state(f)) for s, f in zip(states, files, strict=True)]

    def compute(self, run: Run) -> Result:
        context = self.context
        module, symmetry, _ = self.traced
        states = [n.state() for n in self.networks]
        names = [n for n, _ in module.named_parameters()]
        here = [{n: searched(s[n].to(context.device)) for n in names} for s in states]
        assert isinstance(self.method, Together)
        matched = self.method.match_all(self.given(states, run))
        permutations = matched.permutations
        aligned = [symmetry.permute(s, p) for s, p in zip(states, permutations, strict=True)]
        certificate = certify_all(module, symmetry, states, aligned, self.examples())
        for k, (state, found) in enumerate(zip(states, permutations, strict=True)):
            if k:
                write_state(run, permutation_file(k), symmetry.moves(state, found))
        pairs = itertools.combinations(range(len(states)), 2)
        apart = {(i, j): weight_matching(symmetry, here[j], here[i], names, restarts=0).permutations for i, j in pairs}
        measured, more = self._measure(run, states, aligned)
        more |= {
            "networks": [n.short_name for n in self.networks],
            "method": str(self.method.method),
            "objective": matched.objective,
            "objective_is": matched.measure,
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
        }
        return Result(f"mean of {len(states)} networks", measured, networks=[CHECKPOINT], more=more)

    def _measure(
        self, run: Run, states: list[dict[str, Tensor]], aligned: list[dict[str, Tensor]]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """The merged network's metrics, and what the summary says of the ends and of their mean in every way.

        The merged network, merge.csv and the scores are written.
        """
        net = self.context.net(0)
        coordinates = set(net.names)
        own = self.context.evaluator(net, Interpolation())
        ends = []
        for n, state in zip(self.networks, states, strict=True):
            net.load(state)
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
        centres: list[dict[str, Scores]] = []
        for _, networks, batch_norm, renormalise in kinds:
            asked = Interpolation(
                **{**vars(options), "batch_norm": batch_norm, "renormalise": renormalise, "train_examples": None}
            )
            evaluator = self.context.evaluator(net, asked)
            points = torch.stack([net.flatten(s) for s in networks])
            buffers = [{k: v.to(net.point.device) for k, v in s.items() if k not in coordinates} for s in networks]
            for note in evaluator.notes(buffers) if not centres else ():
                self.context.reporter.say(note)
            scores = evaluator.centre(points, buffers)
            centres.append(scores)
            if renormalise is Renormalise.none and networks is aligned:
                measured = metrics(scores)
                write_state(run, CHECKPOINT, net.state())
        kept = {**_packed("mean", centres), **_packed("ends", ends)}
        task, question = self.context.task, question_of(self.context)
        rows = _rows([name for name, *_ in kinds], kept, task.columns, question)
        run.write_rows(
            "merge.csv",
            [{k: v["value"] if isinstance(v, dict) else v for k, v in row.items()} for row in rows],
        )
        return measured, {
            "task": task_note(task),
            "ends": [metrics(e) for e in ends],
            "splits": {k: split_note(own, k) for k in SPLITS},
            "parameters": net.size,
            "merged": rows,
            "intervals": {"resamples": question.resamples, "confidence": question.confidence},
            "scores": keep_scores(run, kept),
        }

    def found(self, run: Run) -> dict[str, dict[str, Any]]:
        summary = read_summary(run.folder)
        file, asked = run.folder / SCORES, question_of(self.context)
        if file.exists() and not asked.same_intervals(summary["intervals"]):
            names = [row["network"] for row in summary["merged"]]
            summary["merged"] = _rows(names, read_state(file), self.context.task.columns, asked)
        keep = ("networks", "method", "ends", "merged", "cycle_error", "objective", "certificate")
        return {"merged": {k: summary[k] for k in keep}}


def permutation_file(k: int) -> str:
    """Of the network with this number, from 0."""
    return f"permutation-{k + 1}.safetensors"


def _packed(whose: str, scores: Sequence[dict[str, Scores]]) -> dict[str, Tensor]:
    """Scores of R networks, (R, n) by ``<whose>.<split>.<column>``."""
    return {f"{whose}.{s}.{k}": v for s in SPLITS for k, v in stacked_scores([by[s] for by in scores]).items()}


def _rows(
    names: Sequence[str], kept: Mapping[str, Tensor], columns: Sequence[Column], asked: Question
) -> list[dict[str, Any]]:
    """Every metric of every mean, and how far it is above the mean of the ends', with bootstrap intervals."""
    rows: list[dict[str, Any]] = [{"network": name} for name in names]
    tails = [50 * (1 - asked.confidence), 50 * (1 + asked.confidence)]
    for split in SPLITS:
        for c in columns:
            means, ends = (c.scale * kept[f"{whose}.{split}.{c.name}"].double() for whose in ("mean", "ends"))
            counted = c is not columns[0] and is_counted(kept[f"mean.{split}.{c.name}"])
            for row, own in zip(rows, means, strict=True):
                above = own - ends.mean(0)
                low, high = np.percentile(resampled_means(above[None], asked.resamples)[:, 0], tails)
                interval = {"value": float(above.mean()), "low": float(low), "high": float(high)}
                if counted:
                    kinds, counts = (v.numpy() for v in (above / c.scale).unique(return_counts=True))
                    if are_few(counts):
                        interval = widened(interval, kinds[:, None], counts, c.scale, asked.confidence)
                row |= {f"{split}_{c.name}": float(own.mean()), f"{split}_{c.name}_above_mean": interval}
    return rows
