"""Checkpoints of anyone's: what a file holds, read without running code from it, and the state_dict in that."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from modeconn_cli.errors import UserError, one_line
from modeconn_cli.states import EXTRA, Versioned, without_prefix
from modeconn_cli.unpacking import unbelievable

WRAPPERS = ("model_state", "state_dict", "model", "model_state_dict")  # looked under first, in this order
DEPTH = 4  # of dictionaries in dictionaries
KINDS = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
}


def read_state(file: Path, strip: str | None = None) -> dict[str, Any]:
    """The state_dict in a .safetensors or PyTorch file, plain or wrapped: tensors by name, and extra state.

    Args:
        strip: take what is under this, "model." or "ema.", of names and of dictionaries alike.

    Raises:
        UserError: the file is damaged, holds no tensors by name, or would run code on being read.
    """
    content = read_content(file)
    state = _found(content, strip)
    if state is None:
        parts = [k for k, v in content.items() if _is_state(v)] if isinstance(content, Mapping) else []
        if len(parts) > 1:
            named = one_line(", ".join(map(str, parts)))
            raise UserError(f"{file} holds several state_dicts, {named}: give endpoints.strip={named.split(',')[0]}.")
        raise UserError(
            f"{file} holds no state_dict: expected tensors by name, plain or under one of {', '.join(WRAPPERS)}."
        )
    if not state:
        starts = dict.fromkeys(k.partition(".")[0] for k in _flat(content))
        there = one_line(", ".join([*starts][:5])) or "nothing"
        raise UserError(f"endpoints.strip={strip}: no name in {file} begins so; there are {there}.")
    for name, value in state.items():
        if isinstance(value, Tensor):
            _require_plain(value, f"{file}: {one_line(name)}")
    return state


def _found(content: Any, strip: str | None) -> Versioned | None:
    """The state_dict in what a file holds; None where there is none, empty where nothing is to be stripped."""
    inner = content
    if isinstance(content, Mapping):
        inner = next((content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping)), content)
        if not _is_state(inner):
            parts = [v for v in content.values() if _is_state(v)]
            inner = parts[0] if len(parts) == 1 else inner
    state = without_prefix(inner, "") if _is_state(inner) else None
    if strip is None:
        return state
    prefix = strip.rstrip(".") + "."
    return without_prefix(state or {}, prefix) or without_prefix(_flat(content), prefix)


def read_content(file: Path) -> Any:
    """Whatever a file holds that needs no code to be read.

    Raises:
        UserError: it is damaged, would run code, or declares far more than it is.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about its own ways with old files
            if file.suffix == ".safetensors":
                return safetensors.torch.load_file(file)
            _require_as_written(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "weights_only" in str(error).lower() or "GLOBAL" in str(error):
            raise UserError(
                f"{file} holds more than tensors and would run code on being read, which is refused; save "
                "it as torch.save(model.state_dict(), path) or as safetensors."
            ) from None
        raise UserError(f"{file} is not a readable checkpoint; save it again.") from None
    except Exception as error:  # which PyTorch's reader of old files may be any, such as the KeyError of a byte
        what = f" ({one_line(str(error))[:100]})" if str(error) and not isinstance(error, KeyError) else ""
        raise UserError(f"{file} is not a readable checkpoint{what}; save it again.") from None


def _require_as_written(file: Path) -> None:
    """Refuse an archive that unpacks to far more than it is; torch.save compresses nothing."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        declared = sum(entry.file_size for entry in archive.infolist())
    if unbelievable(file.stat().st_size, declared):
        raise UserError(f"{file} declares {declared} bytes and has {file.stat().st_size}: no torch.save wrote that.")


def _require_plain(tensor: Tensor, what: str) -> None:
    """Refuse tensors whose numbers are not there as such."""
    reason = None
    if tensor.is_meta:
        reason = "is on the meta device, without values: save a network that has them"
    elif tensor.is_nested:
        reason = "is a nested tensor: save it as an ordinary one"
    elif tensor.layout is not torch.strided:
        reason = "is sparse: save its .to_dense()"
    elif tensor.is_quantized:
        reason = "is quantised: save its .dequantize(), or the network before that"
    elif tensor.dtype not in KINDS:
        kind = str(tensor.dtype).removeprefix("torch.")
        reason = f"is {kind}, whose scale lies elsewhere: save it as float32"
    elif unbelievable(tensor.untyped_storage().nbytes(), tensor.numel() * tensor.itemsize):
        reason = f"declares shape {tuple(tensor.shape)} and holds {tensor.untyped_storage().nbytes()} bytes"
    if reason is not None:
        raise UserError(f"{what} {reason}.")


def _is_state(value: Any) -> bool:
    """Whether this is a state_dict: tensors by name, but for what modules call their extra state."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(k, str) and (isinstance(v, Tensor) or k.endswith(EXTRA)) for k, v in value.items())
        and any(isinstance(v, Tensor) for v in value.values())
    )


def _flat(content: Any, depth: int = DEPTH) -> dict[str, Any]:
    """Every tensor in dictionaries of dictionaries, under names joined by dots."""
    found: dict[str, Any] = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Mapping) and depth:
            found |= {f"{key}.{k}": v for k, v in _flat(value, depth - 1).items()}
        elif isinstance(value, Tensor) or str(key).endswith(EXTRA):
            found[str(key)] = value
    return found
