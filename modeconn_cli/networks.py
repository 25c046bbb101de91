"""Reading and writing weights. Nothing here unpickles code."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from modeconn_cli.errors import UserError
from modeconn_cli.runs.directory import Run

PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
WRAPPERS = ("model_state", "state_dict", "model", "model_state_dict")


def write_state(run: Run, name: str, state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write tensors as safetensors, the same bytes for the same tensors; tied ones under each of their names."""
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    with run.writing(name) as path:
        # One key for all metadata: safetensors writes several in no fixed order.
        safetensors.torch.save_file(
            whole, path, {"modeconn": json.dumps(metadata, sort_keys=True)} if metadata else None
        )


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
