"""Task vectors merged, beside sums written out entry by entry; SLERP beside its geometry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from modeconn_cli.merging import vectors as V
from modeconn_cli.weights import FlatModule

NUMBERS = st.floats(-4, 4).map(lambda x: round(x, 3))


def vectors(least=1, most=4):
    sizes = st.tuples(st.integers(least, most), st.integers(1, 9))
    return sizes.flatmap(
        lambda nm: st.lists(st.lists(NUMBERS, min_size=nm[1], max_size=nm[1]), min_size=nm[0], max_size=nm[0])
    ).map(lambda rows: torch.tensor(rows, dtype=torch.float64))


def ties_written_out(rows: list[list[float]], keep: float) -> list[float]:
    """Entry by entry, from the paper's three steps."""
    kept = []
    for row in rows:
        count = max(1, math.ceil(round(keep * len(row), 6)))
        least = sorted(map(abs, row), reverse=True)[count - 1]
        kept.append([x if abs(x) >= least else 0.0 for x in row])
    found = []
    for entry in zip(*kept, strict=True):
        plus, minus = sum(x for x in entry if x > 0), -sum(x for x in entry if x < 0)
        agreeing = [x for x in entry if (x > 0 if plus > minus else x < 0)]
        same = math.isclose(plus, minus, rel_tol=1e-12, abs_tol=1e-12)
        found.append(0.0 if same or not agreeing else sum(agreeing) / len(agreeing))
    return found


@given(vectors(), st.sampled_from([0.1, 0.2, 0.5, 0.75, 1.0]))
def test_ties_is_trim_elect_and_disjoint_mean(T, keep):
    mass = V.trimmed(T, keep, T.shape[1]).sum(0).abs()
    assume(((mass == 0) | (mass > 1e-9)).all())  # no sign is decided by rounding
    torch.testing.assert_close(V.ties(T, keep, T.shape[1]).tolist(), ties_written_out(T.tolist(), keep))


def test_ties_as_in_a_small_example():
    T = torch.tensor([[3.0, -1.0, 0.5, 2.0], [1.0, 2.0, -4.0, -2.0], [-1.0, 0.1, -1.0, 0.0]])
    assert V.ties(T, 1.0, 4).tolist() == pytest.approx([2.0, 1.05, -2.5, 0.0])  # the last: no sign has more mass
    assert V.trimmed(T, 0.5, 4).tolist() == [[3.0, 0, 0, 2.0], [0, 2.0, -4.0, -2.0], [-1.0, 0, -1.0, 0]]


@given(vectors(1, 1))
def test_ties_of_one_whole_vector_is_task_arithmetic(T):
    assert torch.equal(V.ties(T, 1.0, T.shape[1]), V.added(T))


def test_zeros_between_tensors_do_not_count_among_what_is_kept():
    T = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    padded = torch.tensor([[1.0, 2.0, 0, 0, 0, 0, 3.0, 4.0]], dtype=torch.float64)
    assert V.trimmed(T, 0.5, 4)[0].tolist() == [0, 0, 3.0, 4.0]
    assert V.trimmed(padded, 0.5, 4)[0].tolist() == [0, 0, 0, 0, 0, 0, 3.0, 4.0]


def halves(v):
    return [v[:3], v[3:]]


def test_nothing_dropped_is_task_arithmetic():
    T = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(V.dropped(T, 0.0, 0, halves), T)


@pytest.mark.parametrize("p", [0.3, 0.9])
def test_what_stays_is_rescaled_so_that_the_mean_over_draws_is_the_vector(p):
    T = torch.tensor([[1.0, -2.0, 3.0, 0.0, 5.0], [2.0, 1.0, -1.0, 4.0, -3.0]], dtype=torch.float64)
    draws = torch.stack([V.dropped(T, p, seed, halves) for seed in range(4000)])
    values = torch.where(draws == 0, 0, draws / T)  # 0 or 1 / (1 - p)
    assert (
        torch.isclose(values, torch.zeros(()).double())
        .logical_or(torch.isclose(values, torch.tensor(1 / (1 - p)).double()))
        .all()
    )
    error = T.abs() * math.sqrt(p / (1 - p) / 4000)
    assert ((draws.mean(0) - T).abs() <= 4 * error + 1e-12).all()
    share = (draws[:, 0, [0, 1, 2, 4]] == 0).double().mean(0)
    assert ((share - p).abs() < 4 * math.sqrt(p * (1 - p) / 4000)).all()
    # Entries and vectors are dropped each by itself.
    gone = (draws[..., [0, 4]] == 0).double().reshape(4000, -1)
    assert np.abs(np.corrcoef(gone.T) - np.eye(4)).max() < 0.07
    assert torch.equal(draws[7], V.dropped(T, p, 7, halves))


PAIRS = st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=2, max_size=6)


@given(PAIRS, st.floats(0, 1))
def test_on_a_sphere_slerp_stays_there_and_goes_the_same_way_at_all_times(pairs, t):
    a, b = torch.tensor(pairs, dtype=torch.float64).T
    assume(a.norm() > 0.1 and b.norm() > 0.1)
    a, b = a / a.norm(), b / b.norm()
    angle = math.acos(max(-1.0, min(1.0, float(a @ b))))
    assume(0.01 < angle < math.pi - 0.01)
    found = V.slerp(a, b, t)
    assert float(found.norm()) == pytest.approx(1, abs=1e-9)
    assert math.acos(max(-1.0, min(1.0, float(a @ found)))) == pytest.approx(t * angle, abs=1e-6)
    off = found - (found @ a) * a  # in the plane of the two
    across = b - (b @ a) * a
    assert float((off - (off @ across) / (across @ across) * across).norm()) < 1e-9


@given(PAIRS)
def test_slerps_ends_are_the_ends(pairs):
    a, b = torch.tensor(pairs, dtype=torch.float64).T
    torch.testing.assert_close(V.slerp(a, b, 0.0), a, rtol=0, atol=0)
    torch.testing.assert_close(V.slerp(a, b, 1.0), b, rtol=0, atol=0)


def test_slerp_where_there_is_no_arc_is_the_straight_line():
    a = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert V.slerp(a, 3 * a, 0.25).tolist() == pytest.approx([1.5, 3.0])
    assert V.slerp(a, -a, 0.25).tolist() == pytest.approx([0.5, 1.0])
    assert V.slerp(a, 0 * a, 0.25).tolist() == pytest.approx([0.75, 1.5])
    quarter = V.slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 1 / 3)
    assert quarter.tolist() == pytest.approx([math.cos(math.pi / 6), math.sin(math.pi / 6)])


def test_every_tensor_may_have_an_arc_of_its_own():
    a = torch.tensor([1.0, 0.0, 0.0, 2.0, 0.0], dtype=torch.float64)
    b = torch.tensor([0.0, 1.0, 0.0, -2.0, 2.0], dtype=torch.float64)
    found = V.slerp_by_parts(a, b, 0.5, halves)
    assert torch.equal(found[:3], V.slerp(a[:3], b[:3], 0.5))
    assert torch.equal(found[3:], V.slerp(a[3:], b[3:], 0.5))
    assert not torch.allclose(found, V.slerp(a, b, 0.5))


def test_complex_numbers_are_their_real_and_imaginary_parts():
    a, b = torch.tensor([1 + 2j, 3 - 1j]), torch.tensor([0 + 1j, -2 + 1j])
    flat = V.slerp(torch.view_as_real(a).flatten(), torch.view_as_real(b).flatten(), 0.3)
    torch.testing.assert_close(torch.view_as_real(V.slerp(a, b, 0.3)).flatten(), flat)


WAYS = {
    "ties": lambda T, flat: V.ties(T, 0.3, flat.size),
    "dare": lambda T, flat: V.added(V.dropped(T, 0.5, 3, flat.views)),
    "dare and signs": lambda T, flat: V.elected(V.dropped(T, 0.5, 3, flat.views)),
    "slerp": lambda T, flat: V.slerp(T[0], T[1], 0.3),
    "slerp by tensor": lambda T, flat: V.slerp_by_parts(T[0], T[1], 0.3, flat.views),
}


@pytest.mark.parametrize("way", WAYS)
def test_how_a_device_lays_out_weights_changes_nothing(way):
    """As on a GPU: tensors begin at multiples of 128, convolutions lie channels-last."""

    def merged(**layout):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 4)).double()
        flat = FlatModule(module, **layout)
        generator = torch.Generator().manual_seed(1)
        states = [
            {
                n: torch.randn(s, generator=generator, dtype=torch.float64)
                for n, s in zip(flat.names, flat.shapes, strict=True)
            }
            for _ in range(3)
        ]
        found = WAYS[way](torch.stack([flat.flatten(s) for s in states]), flat)
        return flat.named(found), float(found.abs().sum())

    (plain, total), (padded, padded_total) = merged(alignment=1), merged(alignment=128, channels_last=True)
    for name, value in plain.items():
        torch.testing.assert_close(padded[name], value)
    assert padded_total == pytest.approx(total)  # nothing between the tensors
