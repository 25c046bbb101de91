"""Networks as files and runs hold them. Nothing here unpickles code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from modeconn_cli.checkpoints import read_state as read_state
from modeconn_cli.errors import UserError
from modeconn_cli.runs.directory import Run
from modeconn_cli.states import named_state, unpacked

if TYPE_CHECKING:
    from modeconn_cli.weights import FlatModule

CHECKPOINT = "checkpoint.safetensors"  # what a stage made, in its run directory


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
        """Its state_dict, on the CPU: parameters, and buffers and extra state unless it is a control point.

        Raises:
            UserError: the file is not readable.
        """
        if self.held is not None:
            return unpacked(self.held)
        assert self.file is not None
        state = read_state(self.file)
        if self.row is None:
            return unpacked(state)
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


def save_state(state: Mapping[str, Any], file: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a plain state_dict, as safetensors or else as torch.save does; the file is whole or not there.

    metadata: kept in a safetensors file beside the tensors, where :func:`read_metadata` finds it.

    Raises:
        UserError: a module's extra state is no tensor, and the file is to be safetensors.
    """
    beside = file.with_name(f".{file.name}.tmp")
    plain = unpacked(state)
    tensors = untied({k: v for k, v in plain.items() if isinstance(v, Tensor)})
    other = {k: v for k, v in plain.items() if k not in tensors}
    if other and file.suffix == ".safetensors":
        raise UserError(f"{file}: safetensors holds tensors alone, and {next(iter(other))} is none; name it .pt.")
    try:
        if file.suffix == ".safetensors":
            said = {"modeconn": json.dumps(metadata, sort_keys=True)} if metadata else None
            safetensors.torch.save_file(tensors, beside, said)
        else:
            torch.save(tensors | other, beside)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def require_kept(module: nn.Module) -> None:
    """Raise UserError for a network that the files of runs cannot hold, before it is trained."""
    for name, tensor in named_state(module).items():
        if tensor.dtype == torch.complex128:
            raise UserError(f"{name} is complex128, which safetensors, the files of runs, have not: make it complex64.")


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
