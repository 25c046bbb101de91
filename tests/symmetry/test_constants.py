"""Casts, moves and constants of a forward pass: what is everywhere alike has no order, and what has one is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from symmetric_networks import shuffled
from torch import Tensor, nn

from modeconn_cli.symmetry.graph import trace
from modeconn_cli.symmetry.groups import Symmetry


class Between(nn.Module):
    """Two linear maps and something that happens to the units between them."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(3, 6), nn.Linear(6, 2), act

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(F.relu(self.a(x))))


def traced(module: nn.Module, unmoved: float = 1e-5) -> Symmetry:
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    symmetry = trace(module.eval(), x)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    with torch.no_grad():
        wanted = module(x)
        module.load_state_dict(symmetry.permute(state, shuffled(symmetry, 1)))
        assert torch.allclose(module(x), wanted, atol=unmoved)
    return symmetry


def written(h: Tensor) -> Tensor:
    out = torch.zeros(len(h), 2, 6)
    out[:, 0] = h
    out[:, 1] = h.square()
    return out.sum(1)


def in_slices(h: Tensor) -> Tensor:
    out = torch.empty_like(h).fill_(0.5)
    out[:, 2:4] = h[:, 2:4]
    return out


FREE: dict[str, Callable[[Tensor], Tensor]] = {
    "casts": lambda h: h.double().float().to(torch.float32).type_as(h).to(h),
    "half": lambda h: h.half().float(),
    "moves": lambda h: h.cpu().to("cpu").to(h.device).contiguous(),
    "ones": lambda h: h + torch.ones(6) * torch.full((6,), 2.0) + torch.zeros(6),
    "like": lambda h: h + torch.zeros_like(h) + h.new_zeros(6) + h.new_full((6,), 3.0) + torch.full_like(h, 2.0),
    "filled": lambda h: h + torch.empty(6).fill_(2.0),
    "literal": lambda h: h * torch.tensor([2.0] * 6) + torch.tensor(1.0),
    "written": written,
}


@pytest.mark.parametrize("name", FREE)
def test_what_is_alike_along_a_dimension_pins_nothing(name: str) -> None:
    symmetry = traced(Between(FREE[name]), 1e-2 if name == "half" else 1e-5)
    assert [g.size for g in symmetry.groups] == [6]
    assert symmetry.pinned_by == {}


ORDERED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "arange": (lambda h: h + torch.arange(6), "arange"),
    "arithmetic": (lambda h: h * (torch.linspace(0, 1, 6) + 1), "arange"),
    "literal": (lambda h: h * torch.tensor([1.0, 2, 3, 4, 5, 6]), "the constant"),
    "sort": (lambda h: h.sort(1).values, "sort"),
    "index": (lambda h: h[:, torch.tensor([5, 4, 3, 2, 1, 0])], "index"),
}


@pytest.mark.parametrize("name", ORDERED)
def test_what_has_an_order_is_named(name: str) -> None:
    act, operation = ORDERED[name]
    symmetry = traced(Between(act))
    assert symmetry.groups == []
    (found,) = symmetry.pinned_by
    assert found.startswith(operation)
    assert {"a.weight[0]", "a.bias[0]"} <= set(symmetry.pinned_by[found])


def test_a_constant_does_not_tie_what_it_meets() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            one = torch.ones(6)
            return self.c(F.relu(self.a(x)) + one) + self.d(F.relu(self.b(x)) + one)

    assert [g.size for g in traced(Two()).groups] == [6, 6]


def test_slices_that_are_written_keep_their_order_among_each_other_only() -> None:
    # Rows of the units that are not read, and columns that read the same number, are their own.
    assert [g.size for g in traced(Between(in_slices)).groups] == [2] * 5


def test_a_buffer_is_named_and_holds() -> None:
    module = Between(lambda h: h)
    module.register_buffer("mask", torch.tensor([1.0, 0, 1, 1, 0, 1]))
    module.act = lambda h: h * module.mask
    assert traced(module).pinned_by.keys() == {"the buffer mask"}


def test_frozen_parameters_stay_where_they_are() -> None:
    module = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    assert [g.size for g in traced(module).groups] == [6, 5]
    module[0].requires_grad_(False)
    symmetry = traced(module)
    assert [g.size for g in symmetry.groups] == [5]
    assert symmetry.pinned_by == {"freezing": ["0.weight[0]", "0.bias[0]", "2.weight[1]"]}
    module.requires_grad_(False)  # as one that is only evaluated is
    assert [g.size for g in traced(module).groups] == [6, 5]


def test_numbers_read_as_another_type_hold_the_units_that_they_are_made_of() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 10), nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).float().view(torch.float64))

    assert {g.size for g in trace(Read(), torch.randn(4, 3)).groups} == set()
