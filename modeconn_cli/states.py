"""A module's state by name: taken, set, and read from a checkpoint as the module itself reads one.

A state holds each parameter and persistent buffer under each of its names. What a module gives as its extra state need
be no tensor; here it is one, of bytes, so that whatever handles tensors by name need not know of it.
"""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from modeconn_cli.errors import UserError, listed, one_line

EXTRA = "_extra_state"  # the last part of its name, as PyTorch has it
_PACKED = torch.tensor([*b"modeconn's extra state\n"], dtype=torch.uint8)
AVERAGED = "n_averaged"  # what torch.optim.swa_utils.AveragedModel has beside the network
MOST = 100  # beginnings of names that are looked at for a network of this architecture


class MisfitError(UserError):
    """A state is not one of this module.

    name, found, wanted: of a tensor of another shape; empty for any other reason.
    """

    def __init__(self, message: str, name: str = "", found: tuple[int, ...] = (), wanted: tuple[int, ...] = ()) -> None:
        super().__init__(one_line(message))
        self.name, self.found, self.wanted = name, found, wanted


# ------------------------------------------------------------------------------------------------- taken and set


def named_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's own tensors by each of their names, in its order: not copied, but for extra state.

    Raises:
        UserError: extra state that could not be read back without running code.
    """
    found: dict[str, Tensor] = {}
    for place, part in module.named_modules(remove_duplicate=False):
        at = f"{place}." if place else ""
        passing = part._non_persistent_buffers_set
        buffers = (b for b in part.named_buffers(recurse=False, remove_duplicate=False) if b[0] not in passing)
        tensors = itertools.chain(part.named_parameters(recurse=False, remove_duplicate=False), buffers)
        found |= {at + name: tensor for name, tensor in tensors}
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            found[at + EXTRA] = pack(part.get_extra_state(), at + EXTRA)
    return found


@torch.no_grad()
def set_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set tensors, all or some, of a state as :func:`named_state` gives it."""
    own = named_state(module)
    for name, value in state.items():
        if not is_packed(value):
            own[name].copy_(value)
        elif not torch.equal(own[name], value.cpu()):
            part = module.get_submodule(name.removesuffix(EXTRA).removesuffix("."))
            if type(part).set_extra_state is not nn.Module.set_extra_state:  # else PyTorch has no way back either
                part.set_extra_state(unpack(value))


def pack(value: Any, name: str) -> Tensor:
    """Extra state as bytes.

    Raises:
        UserError: it holds what cannot be written, or read back without running code.
    """
    file = io.BytesIO()
    try:
        torch.save(value, file)
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    except Exception:
        raise UserError(
            f"{name}: get_extra_state() gives a {type(value).__name__} that cannot be kept and read back without "
            "running code; give tensors, numbers, text, and lists and dictionaries of them."
        ) from None
    return torch.cat([_PACKED, torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)])


def is_packed(value: Any) -> bool:
    """Whether this is extra state as :func:`pack` gives it."""
    n = len(_PACKED)
    return (
        isinstance(value, Tensor)
        and value.dtype == torch.uint8
        and value.dim() == 1
        and torch.equal(value[:n].cpu(), _PACKED)
    )


def unpack(value: Tensor) -> Any:
    """What :func:`pack` was given.

    Raises:
        UserError: the bytes are damaged.
    """
    try:
        return torch.load(io.BytesIO(bytes(value[len(_PACKED) :].tolist())), weights_only=True)
    except Exception:
        raise UserError("a module's extra state is damaged in the file that keeps it; make the file again.") from None


def unpacked(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state as PyTorch has it: extra state as the module gave it."""
    return {k: unpack(v) if is_packed(v) else v for k, v in state.items()}


# --------------------------------------------------------------------------------------------------------- read


def matching_state(module: nn.Module, state: Mapping[str, Any], where: str, own: bool = False) -> dict[str, Tensor]:
    """The state of a module after it has read a checkpoint, copied; the module is left so.

    The module's own ``load_state_dict`` reads it, older names and all. What a wrapper put before every name is taken
    off where only that makes it fit.

    Args:
        state: tensors by name, and extra state, as PyTorch or :func:`named_state` has it.
        where: what to call it.
        own: it was taken by :func:`named_state`, so that no hook for older files is to change it.

    Raises:
        MisfitError: it is not of this module; naming ``where`` and the missing, unexpected, wrongly shaped, typed or
            non-finite tensor, or tied tensors that differ.
    """
    if own or _renames(module):
        mine = named_state(module)
        if {*mine} == {*state} and all(is_packed(v) or v.shape == mine[k].shape for k, v in state.items()):
            set_state(module, state)
            return {k: v.detach().clone() for k, v in named_state(module).items()}
    try:
        return _read(module, state, where)
    except MisfitError as error:
        reason = error
    inner = inside(module)
    if inner is not module and _fits(matching_state, inner, state):
        return {k: v.detach().clone() for k, v in named_state(module).items()}
    others = [without_prefix(state, p) for p in prefixes([k for k in state if k != AVERAGED])]
    fitting = [other for other in others if _fits(_read, module, other)]
    if len(fitting) == 1:
        return _read(module, fitting[0], where)
    raise _advised(reason, module, state, others, where)


def inside(module: nn.Module) -> nn.Module:
    """The network in DataParallel and torch.compile; itself, where it is in neither."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module) and type(module).__name__ == "OptimizedModule":
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


def without_prefix(state: Mapping[str, Any], prefix: str) -> Versioned:
    """The part of a state whose names begin so, without that."""
    found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return Versioned.like(state, found, prefix)


def prefixes(names: Collection[str]) -> list[str]:
    """What all names begin with, up to each dot: ["module.", "module.net."]."""
    first, last = min(names), max(names)  # between which all others lie
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return [first[: i + 1] for i, letter in enumerate(first[:shared]) if letter == "."]


class Versioned(dict[str, Any]):
    """A state_dict with PyTorch's notes on the versions of its modules."""

    _metadata: Mapping[str, Any]

    @classmethod
    def like(cls, state: Mapping[str, Any], values: Mapping[str, Any], prefix: str = "") -> Versioned:
        """Values with the notes of a state, on what is under a prefix."""
        found = cls(values)
        notes = getattr(state, "_metadata", None)
        if isinstance(notes, Mapping):
            inside = {f"{k}.": v for k, v in notes.items() if k or not prefix}
            found._metadata = {
                k.removeprefix(prefix).removesuffix("."): v for k, v in inside.items() if k.startswith(prefix)
            }
        return found


def _read(module: nn.Module, state: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """:func:`matching_state` of a checkpoint under its own names."""
    before = {k: v.clone() for k, v in named_state(module).items() if _numbers(v) and not torch.isfinite(v).all()}
    # Files without PyTorch's notes are read as it reads them; a module that insists on notes gets its own.
    notes = [state] if hasattr(state, "_metadata") else [state, _own_state_dict(module)]
    reasons = []
    for noted in notes:
        given = Versioned.like(noted, unpacked(state))
        copies = _Copies(module, given, where)
        reason = _refused(module, given, copies)
        if reason is None:
            return _finite(module, before, copies, where)
        reasons.append(reason)
    raise reasons[0]


def _refused(module: nn.Module, given: Versioned, copies: _Copies) -> MisfitError | None:
    """Have a module read a state_dict; why it is not one of this module, where it is not."""
    where = copies.where
    try:
        with copies, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = module.load_state_dict(given, strict=False)
    except Exception as error:  # PyTorch's, or that of a module's own hook
        return copies.refused or _shapes_differ(module, given, where) or MisfitError(f"{where}: {_line(error)}")
    if copies.refused is not None:
        return copies.refused
    wanted = getattr(found, "missing_keys", [k for k in named_state(module) if not k.endswith(EXTRA)])
    missing = [k for k in wanted if k not in copies.written and not k.endswith("num_batches_tracked")]
    if missing:
        return MisfitError(f"{where} lacks {listed(missing)} that the network has: is it of this architecture?")
    extra = getattr(found, "unexpected_keys", [])
    if extra:
        return MisfitError(f"{where} holds {listed(extra)} that the network has not: is it of this architecture?")
    return None


class _Copies(TorchFunctionMode):
    """Sees what is copied from a state_dict into a module, and refuses what would change a number's kind.

    written: the names of the module's tensors that were written to, each name of a tied one.
    """

    def __init__(self, module: nn.Module, given: Mapping[str, Any], where: str) -> None:
        super().__init__()
        self.where = where
        self.refused: MisfitError | None = None
        self.names: dict[tuple[Any, ...], list[str]] = {}
        for name, tensor in named_state(module).items():
            if not is_packed(tensor):
                self.names.setdefault(_place(tensor), []).append(name)
        self.parameters = {_place(p) for p in module.parameters()}
        self.from_file = {v.untyped_storage().data_ptr() for v in given.values() if isinstance(v, Tensor)}
        self.written: dict[str, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = self.names.get(_place(args[0]), []) if func is Tensor.copy_ else []
        if not names or not isinstance(args[1], Tensor):
            return func(*args, **(kwargs or {}))
        target, source = args[:2]
        self._same_kind(names[0], target, source)
        tied = names[0] in self.written and source.untyped_storage().data_ptr() in self.from_file
        before = target.clone() if tied else None
        result = func(*args, **(kwargs or {}))
        if before is not None and not torch.equal(before, target):
            self.refused = self.refused or MisfitError(
                f"{self.where}: {' and '.join(names)} are one tensor in the network, and differ in the file: it is of "
                "a network in which they were not tied."
            )
        self.written |= dict.fromkeys(names, source)
        return result

    def _same_kind(self, name: str, target: Tensor, source: Tensor) -> None:
        lost = source.is_complex() and not target.is_complex()
        if _place(target) in self.parameters and _numbers(target):
            lost = lost or not _numbers(source)
        elif not lost and not _numbers(target) and target.dtype != source.dtype:
            lost = not torch.equal(source.to(target.dtype).to(source.dtype), source)
        if lost:
            kinds = [str(t.dtype).removeprefix("torch.") for t in (source, target)]
            self.refused = self.refused or MisfitError(
                f"{self.where}: {name} is {kinds[0]}, the network's {kinds[1]}, which cannot hold the same: is it of "
                "this architecture, and not quantised?"
            )


def _finite(module: nn.Module, before: Mapping[str, Tensor], copies: _Copies, where: str) -> dict[str, Tensor]:
    """A copy of the module's state, which is finite wherever it was when the module was made."""
    found = {k: v.detach().clone() for k, v in named_state(module).items()}
    for key, value in found.items():
        if not _numbers(value) or torch.isfinite(value).all():
            continue
        was = before.get(key)
        if was is not None and (torch.isfinite(value) | (value == was.to(value)) | (value.isnan() & was.isnan())).all():
            continue  # a mask
        source = copies.written.get(key)
        if source is not None and torch.isfinite(source).all():
            kind = str(value.dtype).removeprefix("torch.")
            raise MisfitError(f"{where}: {key} holds values beyond what {kind}, the network's type, can hold.")
        raise MisfitError(f"{where}: {key} holds NaN or infinite values; the training that made it diverged.")
    return found


def _renames(module: nn.Module) -> bool:
    """Whether state_dict() has other names than the parameters and buffers."""
    return {*_own_state_dict(module)} != {*named_state(module)}


def _own_state_dict(module: nn.Module) -> Mapping[str, Any]:
    try:
        return module.state_dict()
    except Exception:  # of a state_dict() of the module's own
        return {}


def _fits(read: Callable[..., Any], module: nn.Module, state: Mapping[str, Any]) -> bool:
    try:
        read(module, state, "")
    except MisfitError:
        return False
    return True


def _shapes_differ(module: nn.Module, state: Mapping[str, Any], where: str) -> MisfitError | None:
    own = named_state(module)
    for key, mine in own.items():
        value = state.get(key)
        if isinstance(value, Tensor) and value.shape != mine.shape and not is_packed(mine):
            found, wanted = tuple(value.shape), tuple(mine.shape)
            return MisfitError(f"{where}: {key} has shape {found}, the network's is {wanted}.", key, found, wanted)
    return None


def _advised(
    reason: MisfitError, module: nn.Module, state: Mapping[str, Any], others: Sequence[Mapping[str, Any]], where: str
) -> MisfitError:
    """The reason why a state does not fit, of the names that come nearest, and which part of it would."""
    own = {*named_state(module)}
    for other in others:
        if {*other} == own:
            try:
                _read(module, other, where)
            except MisfitError as nearer:
                return nearer
    starts = [*dict.fromkeys(k[: i + 1] for k in state for i, letter in enumerate(k) if letter == ".")]
    parts = [p for p in starts[:MOST] if {k.removeprefix(p) for k in state if k.startswith(p)} == own]
    if parts:
        fit = f"what is under {' or under '.join(parts)} is: give endpoints.strip={parts[0]}"
        return MisfitError(f"{where} as a whole is not of this network, but {fit}")
    every = prefixes([*state])
    if every and not any(k.startswith(every[0]) for k in own):
        return MisfitError(f"{reason} (In the file, every name begins with {every[0]})")
    return reason


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor's numbers lie, which tied ones and views of the whole have in common."""
    return tensor.data_ptr(), tensor.shape, tensor.dtype


def _numbers(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _line(error: Exception) -> str:
    """An exception in one line, without the heading that PyTorch gives a list of them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = lines[1:2] if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else lines
    return (" ".join(kept) or type(error).__name__)[:200]
