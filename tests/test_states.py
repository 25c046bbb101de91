"""States by name, and checkpoints that modules read as their own load_state_dict reads them."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from modeconn_cli.errors import UserError
from modeconn_cli.states import matching_state, named_state, set_state, unpacked
from modeconn_cli.weights import FlatModule


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


class Wrapper(nn.Module):
    """A user's own, whose names all begin as DataParallel's do."""

    def __init__(self) -> None:
        super().__init__()
        self.module = small()

    def forward(self, x: Tensor) -> Any:
        return self.module(x / 2)


class Remembering(nn.Module):
    """Extra state beside the weights."""

    def __init__(self, version: int = 2) -> None:
        super().__init__()
        self.body = small()
        self.version = version

    def get_extra_state(self) -> Any:
        return {"version": self.version, "seen": [1.5, "x"]}

    def set_extra_state(self, state: Any) -> None:
        self.version = state["version"]

    def forward(self, x: Tensor) -> Any:
        return self.body(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
        self.register_buffer("passing", torch.zeros(5), persistent=False)
        self.register_buffer("count", torch.tensor(0))


class Renaming(nn.Module):
    """An older name, known to a hook; a newer format, to the version."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        if prefix + "kernel" in state_dict:
            state_dict[prefix + "weight"] = state_dict.pop(prefix + "kernel")
        if local_metadata.get("version", 2) < 2:
            state_dict[prefix + "weight"] = state_dict[prefix + "weight"].T
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class Delegating(nn.Module):
    """state_dict() and load_state_dict() of what is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return self.inner.load_state_dict(state_dict, *args, **kwargs)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return {*a} == {*b} and all(torch.equal(v, b[k]) for k, v in a.items())


def read_by_torch(make: Any, state: Any) -> dict[str, Tensor]:
    module = make()
    module.load_state_dict(state)
    return {k: v.clone() for k, v in named_state(module).items()}


# ---------------------------------------------------------------------------------------------- names and prefixes


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda m: torch.compile(m, backend="eager"),
        lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
        lambda m: nn.ModuleDict({"model": m}),
        lambda m: nn.ModuleDict({"net": nn.ModuleDict({"encoder": m})}),
        AveragedModel,
    ],
)
def test_what_a_wrapper_puts_before_every_name_is_taken_off(wrap: Any) -> None:
    source = small()
    assert same(matching_state(small(), wrap(source).state_dict(), "a.pt"), dict(source.state_dict()))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_a_wrapped_network_reads_its_own_and_the_plain_ones(wrap: Any) -> None:
    source = small()
    wanted = dict(wrap(source).state_dict())
    assert same(matching_state(wrap(small()), wanted, "a.pt"), wanted)
    assert same(matching_state(wrap(small()), source.state_dict(), "a.pt"), wanted)


def test_a_network_with_such_names_of_its_own_keeps_them() -> None:
    source = Wrapper()
    assert same(matching_state(Wrapper(), source.state_dict(), "a.pt"), dict(source.state_dict()))
    assert same(matching_state(Wrapper(), nn.DataParallel(source).state_dict(), "a.pt"), dict(source.state_dict()))
    with pytest.raises(UserError, match=r"a\.pt lacks module\.0\.weight"):
        matching_state(Wrapper(), source.module.state_dict(), "a.pt")


def test_a_part_that_fits_is_named_with_what_takes_it() -> None:
    state = {f"{p}.{k}": v for p in ("model", "ema") for k, v in small().state_dict().items()}
    with pytest.raises(UserError, match=r"under model\. or under ema\. is: give endpoints\.strip=model\."):
        matching_state(small(), state, "a.pt")


def test_the_reason_given_is_of_the_names_without_the_prefix() -> None:
    state = {
        f"model.{k}": v for k, v in nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5)).state_dict().items()
    }
    with pytest.raises(UserError, match=r"2\.weight has shape \(5, 4\), the network's is \(2, 4\)"):
        matching_state(small(), state, "a.pt")


# ------------------------------------------------------------------------------------- as load_state_dict reads them


def test_older_names_of_weight_norm_are_read_as_pytorch_reads_them() -> None:
    def make() -> nn.Module:
        return nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)))

    names = {"0.parametrizations.weight.original0": "0.weight_g", "0.parametrizations.weight.original1": "0.weight_v"}
    older = {names.get(k, k): v for k, v in make().state_dict().items()}
    assert same(matching_state(make(), older, "a.pt"), read_by_torch(make, older))
    assert same(matching_state(make(), {f"module.{k}": v for k, v in older.items()}, "a"), read_by_torch(make, older))


@pytest.mark.parametrize("noted", [True, False])
def test_hooks_see_older_names_and_versions(noted: bool) -> None:
    state = OrderedDict(kernel=torch.randn(3, 3))
    if noted:
        state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    wanted = read_by_torch(Renaming, copy.copy(state))
    assert torch.equal(wanted["weight"], state["kernel"].T if noted else state["kernel"])
    assert same(matching_state(Renaming(), state, "a.pt"), wanted)
    wrapped = OrderedDict({"module.kernel": state["kernel"]})
    if noted:
        wrapped._metadata = {"": {}, "module": {"version": 1}}  # type: ignore[attr-defined]
    assert same(matching_state(Renaming(), wrapped, "a.pt"), wanted)


def test_a_module_that_insists_on_its_version_reads_a_file_that_has_none() -> None:
    class Insisting(nn.Linear):
        _version = 3

        def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
            if local_metadata.get("version") != 3:
                raise ValueError("version should be 3")
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    source = Insisting(3, 2)
    assert same(matching_state(Insisting(3, 2), dict(source.state_dict()), "a.pt"), dict(source.state_dict()))


def test_a_module_with_a_state_dict_of_its_own_is_read_by_either_names() -> None:
    source = Delegating()
    wanted = {f"inner.{k}": v for k, v in source.state_dict().items()}
    assert same(named_state(source), wanted)
    assert same(matching_state(Delegating(), source.state_dict(), "a.pt"), wanted)
    assert same(matching_state(Delegating(), wanted, "a.pt"), wanted)


def test_what_a_hook_raises_is_one_line() -> None:
    class Failing(nn.Linear):
        def _load_from_state_dict(self, *_: Any) -> None:
            raise IndexError("no such\nblock \x1b[31m")

    with pytest.raises(UserError) as caught:
        matching_state(Failing(3, 2), nn.Linear(3, 2).state_dict(), "a.pt")
    assert str(caught.value) == "a.pt: no such block ?[31m"


# ------------------------------------------------------------------------------------------------------ extra state


def test_extra_state_is_read_and_given_back() -> None:
    source = Remembering(5)
    module = Remembering()
    found = matching_state(module, source.state_dict(), "a.pt")
    assert module.version == 5
    assert unpacked(found)["_extra_state"] == source.get_extra_state()
    again = Remembering()
    set_state(again, found)
    assert again.version == 5
    assert same(named_state(again), found)
    net = FlatModule(Remembering(7))
    assert unpacked(net.rest()) == {"_extra_state": {"version": 7, "seen": [1.5, "x"]}}
    net.load(found)
    assert net.module.version == 5
    assert same(net.state(), found)


def test_a_file_without_extra_state_is_refused_as_pytorch_refuses_it() -> None:
    with pytest.raises(UserError, match="lacks _extra_state"):
        matching_state(Remembering(), {k: v for k, v in Remembering().state_dict().items() if "extra" not in k}, "a.pt")


def test_extra_state_that_would_run_code_is_refused() -> None:
    module = Remembering()
    module.version = Remembering()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"_extra_state: get_extra_state\(\) gives a dict that cannot be kept"):
        named_state(module)


def test_damaged_extra_state_and_notes_are_one_line_or_ignored() -> None:
    found = matching_state(Remembering(), Remembering(5).state_dict(), "a.pt")
    with pytest.raises(UserError, match="extra state is damaged"):
        matching_state(Remembering(), found | {"_extra_state": found["_extra_state"][:40]}, "a.pt")
    state = small().state_dict()
    state._metadata = 3  # type: ignore[attr-defined]
    assert same(matching_state(small(), state, "a.pt"), dict(state))


def test_extra_state_that_a_module_cannot_take_back_is_left_out() -> None:
    class Telling(nn.Linear):
        def get_extra_state(self) -> Any:
            return self.weight.sum().item()

    source, module = Telling(3, 2), Telling(3, 2)
    set_state(module, named_state(source))
    assert torch.equal(module.weight, source.weight)


# --------------------------------------------------------------------------------------------------- ties and kinds


def test_tied_tensors_may_stand_under_one_name_and_must_not_differ() -> None:
    state = dict(Tied().state_dict())
    wanted = dict(state)
    for gone in ("a.weight", "b.weight"):
        one = {k: v for k, v in state.items() if k != gone}
        assert same(matching_state(Tied(), one, "a.safetensors"), wanted)
    with pytest.raises(UserError, match=r"a\.pt: a\.weight and b\.weight are one tensor in the network, and differ"):
        matching_state(Tied(), state | {"b.weight": state["a.weight"] + 1}, "a.pt")
    with pytest.raises(UserError, match=r"lacks a\.weight"):
        matching_state(Tied(), {k: v for k, v in state.items() if not k.endswith("weight")}, "a.pt")


@pytest.mark.parametrize("kind", [torch.complex64, torch.int8, torch.int64, torch.bool])
def test_numbers_that_a_weight_cannot_hold_are_refused(kind: torch.dtype) -> None:
    state = {k: v.to(kind) for k, v in small().state_dict().items()}
    with pytest.raises(UserError, match=rf"0\.weight is {str(kind)[6:]}, the network's float32"):
        matching_state(small(), state, "a.pt")


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_read_in_the_networks_own(kind: torch.dtype) -> None:
    state = {k: v.to(kind) for k, v in small().state_dict().items()}
    assert same(matching_state(small(), state, "a.pt"), {k: v.float() for k, v in state.items()})
    assert matching_state(small().double(), state, "a.pt")["0.weight"].dtype == torch.float64


def test_values_beyond_the_networks_precision_are_refused() -> None:
    state = {k: v.double() + 1e9 for k, v in small().state_dict().items()}
    with pytest.raises(UserError, match=r"0\.weight holds values beyond what float16"):
        matching_state(small().half(), state, "a.pt")


def test_real_weights_are_read_into_complex_ones() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, dtype=torch.cfloat))

    assert torch.equal(matching_state(Complex(), {"w": torch.arange(3.0)}, "a.pt")["w"], torch.arange(3.0) + 0j)
    with pytest.raises(UserError, match="w holds NaN"):
        matching_state(Complex(), {"w": torch.full((3,), complex(0, math.nan))}, "a.pt")


def test_a_mask_may_be_infinite_where_the_network_has_it_so() -> None:
    state = dict(Masked().state_dict())
    assert "passing" not in state
    assert same(matching_state(Masked(), state, "a.pt"), state)
    with pytest.raises(UserError, match="mask holds NaN or infinite"):
        matching_state(Masked(), state | {"mask": state["mask"].T.clone()}, "a.pt")


def test_a_count_is_not_rounded() -> None:
    state = dict(Masked().state_dict())
    assert matching_state(Masked(), state | {"count": torch.tensor(3.0)}, "a.pt")["count"] == 3
    with pytest.raises(UserError, match="count is float32, the network's int64"):
        matching_state(Masked(), state | {"count": torch.tensor(3.5)}, "a.pt")
