"""Networks as files and runs hold them. Nothing here unpickles code."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from modeconn_cli.errors import UserError
from modeconn_cli.runs.directory import Run

if TYPE_CHECKING:
    from modeconn_cli.weights import FlatModule

CHECKPOINT = "checkpoint.safetensors"  # what a stage made, in its run directory
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
WRAPPERS = ("model_state", "state_dict", "model", "model_state_dict")


@dataclass(frozen=True)
class Network:
    """One network of an artifact.

    name: what people call it ("endpoint", "epoch 20", "control point 2 of 3"). what: "endpoint", "kept", "control
    point", "aligned", "merged", "point of a path" or "file". held: its tensors, where they are in no file; else they
    are all of ``file``, or those of its ``row``.
    """

    name: str
    what: str
    file: Path | None = None
    row: int | None = None
    held: Mapping[str, Tensor] | None = None

    def state(self) -> dict[str, Tensor]:
        """Its tensors by name, on the CPU: parameters, and buffers unless it is a control point.

        Raises:
            UserError: the file is not readable.
        """
        if self.held is not None:
            return dict(self.held)
        assert self.file is not None
        state = read_state(self.file)
        if self.row is None:
            return state
        prefix = f"{self.row}."
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


@dataclass(frozen=True)
class Networks(Sequence[Network]):
    """An artifact: networks of one architecture, in the order that ``RUN#1``, ``RUN#2`` count them.

    family: of the path whose control points they are, by its name; None where they are separate networks.
    """

    networks: tuple[Network, ...]
    family: str | None = None

    def __getitem__(self, index: Any) -> Any:
        return self.networks[index]

    def __len__(self) -> int:
        return len(self.networks)

    def __iter__(self) -> Iterator[Network]:
        return iter(self.networks)

    @property
    def names(self) -> list[str]:
        return [n.name for n in self.networks]

    def points(self, net: FlatModule) -> Tensor:
        """W (K, P): every network's coordinates, as ``net`` has them and on its device."""
        return torch.stack([net.flatten(n.state()) for n in self.networks])


def write_control_points(run: Run, net: FlatModule, W_kp: Tensor, family: str) -> None:
    """Write the control points W (K, P) of a fitted family as ``<k>.<parameter>``; see :func:`read_networks`."""
    named = {f"{k}.{name}": value for k, row in enumerate(W_kp) for name, value in net.named(row).items()}
    write_state(run, CHECKPOINT, named, {"path": family, "control_points": len(W_kp)})


def read_networks(file: Path, what: str = "file") -> Networks:
    """The networks in a file: the control points of a family, where its metadata say so, or one network."""
    found = read_metadata(file)
    if "control_points" not in found:
        return Networks((Network(what, what, file),))
    k = int(found["control_points"])
    points = (Network(f"control point {i + 1} of {k}", "control point", file, i) for i in range(k))
    return Networks(tuple(points), str(found["path"]))


def open_networks(reference: str | Path, root: str | Path = "outputs") -> Networks:
    """The networks that a reference names.

    A run gives all that it holds: an endpoint and its kept epochs, the control points of a path, an aligned network
    and the midpoint. ``RUN@epoch=20``, ``RUN@t=0.3`` or ``RUN#2`` give the one, with its buffers.

    Args:
        reference: a checkpoint file, a run directory, or the beginning of a digest or name, then @ or #.
        root: where runs are looked for.

    Raises:
        UserError: nothing is called so, or it holds no such network.

    >>> open_networks("outputs/train-endpoints/.../v1").names                                   # doctest: +SKIP
    ['endpoint', 'epoch 20']
    """
    from modeconn_cli.stages.referenced import networks_of, referenced  # which know data and architectures

    text, root = str(reference), Path(root)
    networks = networks_of(text, root)
    if networks is not None:
        return networks
    one = referenced(text, root)
    return Networks((Network(one.names[0], one.what, held=one.state()),))


def write_state(run: Run, name: str, state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write tensors as safetensors, the same bytes for the same tensors; tied ones under each of their names."""
    with run.writing(name) as path:
        # One key for all metadata: safetensors writes several in no fixed order.
        safetensors.torch.save_file(
            untied(state), path, {"modeconn": json.dumps(metadata, sort_keys=True)} if metadata else None
        )


def save_state(state: Mapping[str, Tensor], file: Path) -> None:
    """Write a plain state_dict, as safetensors or else as torch.save does; the file is whole or not there."""
    beside = file.with_name(f".{file.name}.tmp")
    try:
        if file.suffix == ".safetensors":
            safetensors.torch.save_file(untied(state), beside)
        else:
            torch.save(untied(state), beside)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own, as safetensors wants them."""
    return {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}


def read_metadata(file: Path) -> dict[str, Any]:
    """The metadata that :func:`write_state` gave a safetensors file; empty for any other file."""
    try:
        with safetensors.safe_open(file, framework="pt") as f:
            found: dict[str, Any] = json.loads((f.metadata() or {}).get("modeconn", "{}"))
            return found
    except (safetensors.SafetensorError, ValueError, OSError):
        return {}


def read_state(file: Path) -> dict[str, Tensor]:
    """The state_dict in a .safetensors or PyTorch file, whether plain or wrapped, with or without PREFIXES.

    Raises:
        UserError: the file is damaged, holds no tensors by name, or would run code on being read.
    """
    try:
        content: Any = (
            safetensors.torch.load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "weights_only" in str(error).lower() or "GLOBAL" in str(error):
            raise UserError(
                f"{file} holds more than tensors and would run code on being read, which is refused; save "
                "it as torch.save(model.state_dict(), path) or as safetensors."
            ) from None
        raise UserError(f"{file} is not a readable checkpoint; save it again.") from None
    except KeyError:  # which has but the number of a byte that is no instruction
        raise UserError(f"{file} is not a readable checkpoint; save it again.") from None
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{file} is not a readable checkpoint ({_first_line(error)}); save it again.") from None
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(
            f"{file} holds no state_dict: expected tensors by name, plain or under one of {', '.join(WRAPPERS)}."
        )
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in content)), None):
        content = {k.removeprefix(prefix): v for k, v in content.items()}
    return dict(content)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]
