"""Recurrent layers: one permutation of a layer's units, the same in every gate and at every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from symmetric_networks import differs, shuffled
from torch import Tensor, nn

from modeconn_cli.matching.activation import activation_matching
from modeconn_cli.symmetry.graph import trace
from modeconn_cli.symmetry.groups import Symmetry


class Sequences(nn.Module):
    """A recurrent layer and what reads it: the last output, the last states, or all outputs."""

    def __init__(self, kind: type[nn.RNNBase], reads: str, **options: Any) -> None:
        super().__init__()
        self.rnn, self.reads = kind(3, 5, **options), reads
        found = self._read(torch.zeros(2, 4, 3))
        self.head = nn.Linear(found.shape[1], 2)

    def _read(self, x: Tensor) -> Tensor:
        out, last = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        last = last[0] if isinstance(last, tuple) else last
        if self.reads == "top":
            return last[-1]
        if self.reads == "states":
            return last.transpose(0, 1).flatten(1)
        return out[:, -1] if self.rnn.batch_first else out.mean(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self._read(x))


def freely(module: nn.Module, x: Tensor) -> Symmetry:
    """The groups, a random permutation of which leaves the function alone."""
    module.eval()
    symmetry = trace(module, x)
    state = {k: v.clone() for k, v in module.double().state_dict().items()}
    assert differs(module, symmetry.permute(state, shuffled(symmetry, 1)), x) < 1e-12
    return symmetry


ONE_DNN = "ignore:LSTM with projections is not supported with oneDNN"
CASES = {
    "lstm": ((nn.LSTM, "out", {"batch_first": True}), [5]),
    "gru": ((nn.GRU, "out", {}), [5]),
    "relu": ((nn.RNN, "top", {"nonlinearity": "relu", "num_layers": 2, "bias": False}), [5, 5]),
    "bidirectional": ((nn.LSTM, "out", {"batch_first": True, "num_layers": 2, "bidirectional": True}), [5] * 4),
    "states": ((nn.GRU, "states", {"num_layers": 2, "bidirectional": True}), [5] * 4),
    "projection": ((nn.LSTM, "top", {"proj_size": 4, "num_layers": 2}), [5, 4, 5, 4]),
}


@pytest.mark.filterwarnings(ONE_DNN)
@pytest.mark.parametrize("name", CASES)
def test_every_layer_and_direction_has_its_units(name: str) -> None:
    torch.manual_seed(0)
    (kind, reads, options), sizes = CASES[name]
    symmetry = freely(Sequences(kind, reads, **options), torch.randn(2, 4, 3))
    assert sorted(g.size for g in symmetry.groups) == sorted(sizes)
    assert symmetry.pinned_by == {}


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_cell_that_begins_at_zeros_has_one_group(kind: Any) -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = kind(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            state: Any = x.new_zeros(len(x), 5)
            state = (state, state) if kind is nn.LSTMCell else state
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
            return self.head(state[0] if isinstance(state, tuple) else state)

    torch.manual_seed(0)
    assert [g.size for g in freely(Cell(), torch.randn(2, 3, 3)).groups] == [5]


def test_the_permutation_is_of_gates_alike_and_of_no_gate_alone() -> None:
    torch.manual_seed(0)
    module = Sequences(nn.LSTM, "out", batch_first=True).double().eval()
    x = torch.randn(2, 4, 3)
    symmetry = trace(module.float(), x)
    state = {k: v.clone() for k, v in module.double().state_dict().items()}
    p = torch.tensor([2, 0, 1, 4, 3])
    moved = symmetry.permute(state, [p])
    rows = torch.cat([p + 5 * gate for gate in range(4)])
    for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
        assert torch.equal(moved[f"rnn.{name}"], state[f"rnn.{name}"][rows])
    assert torch.equal(moved["rnn.weight_hh_l0"], state["rnn.weight_hh_l0"][rows][:, p])
    alone = torch.cat([p, torch.arange(5, 20)])
    assert differs(module, {**state, "rnn.weight_ih_l0": state["rnn.weight_ih_l0"][alone]}, x) > 1e-4


@pytest.mark.filterwarnings(ONE_DNN)
def test_units_of_inner_layers_are_matched_by_what_they_do() -> None:
    torch.manual_seed(0)
    module = Sequences(nn.LSTM, "top", batch_first=True, num_layers=2, proj_size=4).eval()
    x = torch.randn(20, 4, 3)
    symmetry = trace(module, x)
    a = {k: v.clone() for k, v in module.state_dict().items()}
    wanted = shuffled(symmetry, 2)
    found = activation_matching(symmetry, a, symmetry.permute(a, wanted), [x])
    assert all(torch.equal(p[q], torch.arange(len(p))) for p, q in zip(wanted, found.permutations, strict=True))
