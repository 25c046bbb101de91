"""Two interleaved spirals, generated."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch

from modeconn_cli.data.arrays import Targets
from modeconn_cli.data.formats import Raw
from modeconn_cli.data.options import TwoSpirals
from modeconn_cli.data.reader import Reader


class Spirals(Reader[TwoSpirals]):
    """Makes :func:`two_spirals`."""

    def read(self, targets: Targets) -> tuple[Raw, str]:
        return two_spirals(self.options), self.checksum()

    def checksum(self) -> str:
        """Of the options that generate them."""
        o = self.options
        made = [o.examples, float(o.turns), float(o.noise), o.split_seed]
        return hashlib.sha256(json.dumps(["two_spirals", 1, *made]).encode()).hexdigest()


def random_state(seed: int, stream: int) -> np.random.RandomState:
    """An independent stream of a seed. RandomState is frozen for good: any numpy gives the same numbers."""
    words = [seed >> shift & 0xFFFFFFFF for shift in range(0, max(seed.bit_length(), 1), 32)]
    return np.random.RandomState([stream, *words])


def two_spirals(options: TwoSpirals) -> Raw:
    """Two interleaved arms from the origin to radius 1, half a turn apart; x (N, 2) float32."""
    random = random_state(options.split_seed, 0)
    points, arms = [], []
    for _ in ("train", "test"):
        arm = np.arange(options.examples) % 2
        radius = np.sqrt(random.random_sample(options.examples))  # spreads the points along the arm
        angle = 2 * np.pi * options.turns * radius + np.pi * arm
        clean = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        noisy = clean + options.noise * random.standard_normal((options.examples, 2))
        points.append(torch.from_numpy(noisy.astype(np.float32)))
        arms.append(torch.from_numpy(arm.astype(np.int64)))
    return Raw(points[0], arms[0], points[1], arms[1], 2)
