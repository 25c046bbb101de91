"""The form in which a network takes its inputs: asked of the network."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeconn_cli.inputs import InputForm, form_of, taken
from modeconn_cli.weights import FlatModule


class Flattened(nn.Module):
    """A convolution whose maps are flattened by view, in training or always."""

    def __init__(self, only_in_training: bool = False) -> None:
        super().__init__()
        self.conv, self.head, self.only = nn.Conv2d(3, 4, 3), nn.Linear(4 * 9, 2), only_in_training

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv(F.dropout(x, 0.1, self.training)))
        return self.head(h.reshape(len(h), -1) if self.only and not self.training else h.view(len(h), -1))


X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("only_in_training", [False, True])
def test_images_enter_as_a_network_takes_them(only_in_training: bool) -> None:
    module = Flattened(only_in_training)
    random = torch.get_rng_state()
    form, refusal = form_of(module, X, channels_last=True)
    assert torch.equal(torch.get_rng_state(), random)
    assert not form.channels_last
    assert "view size is not compatible" in str(refusal)
    assert torch.equal(FlatModule(module.eval(), takes=form)(X), module(X))


def test_a_network_that_takes_channels_last_is_given_it_and_left_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2)).train()
    before = copy.deepcopy(module.state_dict())
    form, refusal = form_of(module, X, channels_last=True)
    assert form == InputForm(torch.float32, True)
    assert refusal is None
    assert form(X).is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert module.training


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float32])
def test_inputs_are_of_the_parameters_type(dtype: torch.dtype) -> None:
    module = nn.Linear(3, 2).to(dtype)
    x = torch.randn(4, 3)
    assert taken(module, x).dtype is dtype
    assert torch.equal(FlatModule(module)(x), module(x.to(dtype)))
    integers = torch.arange(4)
    assert taken(nn.Embedding(4, 2).to(dtype), integers) is integers


def test_a_network_that_names_a_type_is_given_that() -> None:
    class Half(nn.Module):
        """Its weights are stored in half precision and computed with in another."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 3, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight.float())

    assert taken(Half(), torch.randn(4, 3)).dtype is torch.float32


def test_what_no_form_suits_is_left_to_whoever_runs_it() -> None:
    form, refusal = form_of(nn.Linear(7, 2).double(), X, channels_last=True)
    assert form == InputForm(torch.float64)
    assert refusal is None
