"""What several networks answer together to each example, how unsure they are of it, and what that is worth."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from modeconn_cli.evaluation import ensembles
from modeconn_cli.families.base import Array
from modeconn_cli.tasks.base import Column
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.tasks.regress import Regress


class Answers:
    """What networks (M, n, ...) answer together to examples, and how unsure they are of each.

    unsure: total, aleatoric and epistemic, (n,). loss: (n,), what the risk is a mean of. networks: M.
    """

    columns: ClassVar[tuple[Column, ...]]
    unsure: ensembles.Uncertainty
    loss: Array
    networks: int
    scale = 1.0
    unit: str
    risk_heading: str

    def risk(self, by: str) -> tuple[Array, float]:
        """evaluation.ensembles.risk_coverage, in the unit of the risk."""
        curve, area = ensembles.risk_coverage(getattr(self.unsure, by), self.loss)
        return self.scale * curve, self.scale * area

    def figures(self) -> dict[str, float | None]:
        """By the names of ``columns``; one network alone has no epistemic uncertainty that could rank anything."""
        means = {f"mean_{k}": float(v.mean()) for k, v in vars(self.unsure).items()}
        ranks = {"aurc_epistemic": self.risk("epistemic")[1] if self.networks > 1 else None}
        return {"risk": self.scale * float(self.loss.mean()), "aurc_total": self.risk("total")[1], **ranks, **means}

    def rows(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _uncertain(self) -> list[dict[str, float]]:
        parts = vars(self.unsure)
        return [{k: float(v[i]) for k, v in parts.items()} for i in range(len(self.loss))]


class Classes(Answers):
    """Of class probabilities; uncertainty is entropy, in nats, and the risk the share of wrong answers."""

    scale, unit, risk_heading = 100.0, "nats", "error (%)"
    columns = (
        Column("risk", "error", "%", 2),
        Column("aurc_total", "AURC by total", "%", 3),
        Column("aurc_epistemic", "by epistemic", "%", 3),
        *(Column(f"mean_{k}", f"mean {k}", "nats") for k in ("total", "aleatoric", "epistemic")),
    )

    def __init__(self, task: Classify, L_mnc: Tensor, y: Tensor) -> None:
        self.networks = len(L_mnc)
        self.together = ensembles.averaged(L_mnc)
        self.unsure = ensembles.uncertainty(L_mnc)
        self.said, self.y = self.together.argmax(1), y
        self.loss = (self.said != y).double().numpy()
        self.flips = ensembles.flips(L_mnc.argmax(2))
        self.names = task.data.class_names

    def rows(self) -> list[dict[str, Any]]:
        confidence = self.together.max(1).values.exp().tolist()
        named = (lambda k: k) if self.names is None else self.names.__getitem__
        return [
            {
                "label": named(int(self.y[i])),
                "prediction": named(int(self.said[i])),
                "confidence": confidence[i],
                **unsure,
                "flips": int(self.flips[i]),
            }
            for i, unsure in enumerate(self._uncertain())
        ]


class Numbers(Answers):
    """Of numbers; uncertainty is variance and the risk the squared error, means over targets in the data's unit."""

    def __init__(self, task: Regress, U_mnd: Tensor, y: Tensor) -> None:
        self.networks = len(U_mnd)
        scale = task.scale
        wanted = scale.mean + scale.std * y.double().reshape(len(y), -1)
        self.mean, self.wanted = U_mnd[..., 0].double().mean(0), wanted
        self.unsure = ensembles.spread(U_mnd)
        self.loss = (self.mean - wanted).square().mean(1).numpy()
        unit = next(c.unit for c in task.columns if c.name == "absolute_error")
        self.unit = f"{unit}^2" if unit else ""
        self.risk_heading = Column("risk", "squared error", self.unit).heading
        self.columns = (  # type: ignore[misc]
            Column("risk", "squared error", self.unit),
            Column("aurc_total", "AURC by total", self.unit),
            Column("aurc_epistemic", "by epistemic", self.unit),
            *(Column(f"mean_{k}", f"mean {k}", self.unit) for k in ("total", "aleatoric", "epistemic")),
        )

    def rows(self) -> list[dict[str, Any]]:
        D = self.wanted.shape[1]
        suffixes = [""] if D == 1 else [f"_{d + 1}" for d in range(D)]
        return [
            {
                **{f"label{s}": float(self.wanted[i, d]) for d, s in enumerate(suffixes)},
                **{f"prediction{s}": float(self.mean[i, d]) for d, s in enumerate(suffixes)},
                "deviation": float(np.sqrt(unsure["total"])),
                **unsure,
            }
            for i, unsure in enumerate(self._uncertain())
        ]
