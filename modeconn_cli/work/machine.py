"""The device and the process that a run has."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from functools import cache

import torch

from modeconn_cli.errors import UserError

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's names for them, in glibc's malloc.h


@cache
def default_threads() -> int:
    """PyTorch's own choice, asked before anything changes it."""
    return torch.get_num_threads()


def keep_freed_memory() -> None:
    """Have the C library keep what a training step frees for the next one, where it is glibc.

    It returns large blocks to the system otherwise, which hands them out again page by page, zeroed: half of the time
    that PreResNet110 takes to pass 1000 examples forward (scripts/bench_curve.py).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        for what in (TRIM_THRESHOLD, MMAP_THRESHOLD):
            libc.mallopt(what, 2**30)


def deterministic_kernels(mode: bool, warn_only: bool) -> None:
    """``torch.use_deterministic_algorithms`` without importing Inductor, which takes a third of a command's start.

    A module that compiles itself imports Inductor later and finds the same in the environment.
    """
    if "torch._inductor" in sys.modules or (warn_only and not mode):
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        return
    torch.set_deterministic_debug_mode(("warn" if warn_only else "error") if mode else "default")
    if mode:
        os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"


def room(device: torch.device) -> int | None:
    """Bytes of memory that the device has in all; None where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "spread":
        devices = torch.cuda.device_count()
        job = int(os.environ.get("MODECONN_JOB", "0"))
        return torch.device("cuda", job % devices) if devices else torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
    except RuntimeError:
        raise UserError(f"runtime.device={name} is not a device: use auto, spread, cpu, cuda, cuda:1 or mps.") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(
            f"runtime.device={name} is not here: PyTorch sees {torch.cuda.device_count()} CUDA devices. "
            "`modeconn doctor` shows what there is; runtime.device=auto takes the best."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("runtime.device=mps is not here: runtime.device=auto takes the best there is.")
    return device
