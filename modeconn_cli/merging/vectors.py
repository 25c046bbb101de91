"""Arithmetic of task vectors: what training changed of a parent, tau_i = w_i - w_0, merged into one vector; and SLERP.

Vectors are rows T (N, P), or single ones (P,), of any real type. What they hold beyond a network's coordinates are
zeros (weights.FlatModule), which none of these makes anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Parts = Callable[[Tensor], Sequence[Tensor]]  # a (P,) vector's tensors, as views into it
STRAIGHT = 1e-6  # an angle's sine, below which a great circle is a straight line or anyone's


def wide(v: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (v.cpu() if v.device.type == "mps" else v).double()


def added(T_np: Tensor) -> Tensor:
    """The sum of task vectors, (P,): task arithmetic (Ilharco et al. 2023, arXiv:2212.04089)."""
    return T_np.sum(0)


def trimmed(T_np: Tensor, keep: float, size: int) -> Tensor:
    """Each vector with its ``keep`` share of ``size`` entries, those largest in magnitude, and zeros elsewhere.

    Entries as large as the smallest that stays all stay.
    """
    count = max(1, math.ceil(round(keep * size, 6)))
    magnitude = T_np.abs()
    least = magnitude.kthvalue(T_np.shape[1] - count + 1, dim=1, keepdim=True).values
    return torch.where(magnitude >= least, T_np, 0)


def elected(T_np: Tensor) -> Tensor:
    """The disjoint mean, (P,): at each entry, that of the values of the sign which has more mass in all.

    Zeros count for nothing. Where both signs have the same mass none is elected, and the entry is zero.
    """
    sign = T_np.sum(0).sign()
    agree = (T_np.sign() == sign) & (T_np != 0)
    return torch.where(agree, T_np, 0).sum(0) / agree.sum(0).clamp(min=1)


def ties(T_np: Tensor, keep: float, size: int) -> Tensor:
    """TIES-merging (Yadav et al. 2023, arXiv:2306.01708): trim, elect signs, disjoint mean."""
    return elected(trimmed(T_np, keep, size))


def dropped(T_np: Tensor, p: float, seed: int, parts: Parts) -> Tensor:
    """Each vector with every entry dropped by chance p, and what stays over 1 - p: DARE (Yu et al. 2024).

    arXiv:2311.03099. The mean over draws is the vector itself. Drawn on the CPU, tensor by tensor, so that every
    device draws alike; a complex number is dropped whole.
    """
    found = T_np.clone()
    for i, row in enumerate(found):
        state = np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        for part in parts(row):
            stays = torch.rand(part.shape, generator=generator, dtype=torch.float64) >= p
            part.mul_(stays.to(part.device)).div_(1 - p)
    return found


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The point at t on the great arc from a to b, tensors of one shape (Shoemake 1985).

        sin((1 - t) W) / sin W * a + sin(t W) / sin W * b,  W the angle between them

    Of two norms it keeps either only where they are the same. Where there is no one arc, between parallel or opposite
    vectors or from zero, it is the straight line's (1 - t) a + t b.
    """
    x, y = (wide(torch.view_as_real(v) if v.is_complex() else v).reshape(-1) for v in (a, b))
    norms = x.norm() * y.norm()
    angle = math.acos(min(1.0, max(-1.0, float(x @ y / norms)))) if norms > 0 else 0.0
    if math.sin(angle) < STRAIGHT:
        return torch.lerp(a, b, t)
    shares = [math.sin(s * angle) / math.sin(angle) for s in (1 - t, t)]
    return shares[0] * a + shares[1] * b


def slerp_by_parts(a: Tensor, b: Tensor, t: float, parts: Parts) -> Tensor:
    """:func:`slerp` of vectors (P,) tensor by tensor, each with an angle of its own."""
    found = torch.zeros_like(a)
    for into, first, second in zip(parts(found), parts(a), parts(b), strict=True):
        into.copy_(slerp(first, second, t))
    return found
