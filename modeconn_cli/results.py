"""What a finished run found, read from its directory."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modeconn_cli.evaluation.measured import Question

SCORES = "scores.safetensors"


def read_summary(folder: Path, question: Question | None = None) -> dict[str, Any]:
    """A finished run's summary.json; of a measured path, with the intervals and the verdict that are asked for.

    Without a question they are those that the run itself was asked for. Where another is asked, they are made from the
    scores that were kept, without a forward pass: a network's scores do not depend on what is asked of them. Where none
    were kept the intervals stay, and ``intervals`` says which they are.
    """
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    if question is None or "barriers" not in summary:
        return summary
    from modeconn_cli.evaluation.measured import judged

    if not question.same_intervals(summary["intervals"]) and (folder / SCORES).exists():
        summary["barriers"] = _barriers(folder, summary, question)
        summary["intervals"] |= {"resamples": question.resamples, "confidence": question.confidence}
    summary["verdict"] = judged(summary["barriers"], question.criterion)
    return summary


def _barriers(folder: Path, summary: dict[str, Any], question: Question) -> dict[str, Any]:
    import numpy as np

    from modeconn_cli.evaluation.measured import Measured, unpack
    from modeconn_cli.networks import read_state
    from modeconn_cli.tasks.base import Column

    kept = read_state(folder / SCORES)
    columns = [Column(**c) for c in summary["task"]["columns"]]
    with open(folder / "path.csv", newline="", encoding="utf-8") as f:
        l2 = np.array([float(row["l2"]) for row in csv.DictReader(f)])
    measured = Measured(kept["t"].numpy(), l2, unpack(kept), columns, summary["weight_decay"])
    return measured.barriers(question)
