"""Spectral norms divide a weight by its largest singular value, and keep the singular vectors as buffers.

In training one power iteration a pass follows the weight as it moves (Miyato et al. 2018, arXiv:1802.05957). At a point
that no training led to there is nothing to follow: the vectors are computed from the weight there.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm


def vector_names(module: nn.Module) -> Iterator[str]:
    """The names of singular vectors in the module's state."""
    for name, part in module.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if isinstance(part, _SpectralNorm) and hasattr(part, "_u"):  # a vector has no directions, and needs none
            yield from (f"{prefix}_u", f"{prefix}_v")
        for hook in _hooks(part):
            yield from (f"{prefix}{hook.name}_u", f"{prefix}{hook.name}_v")


@torch.no_grad()
def settle(module: nn.Module) -> None:
    """Make the singular vectors those of the largest singular value of the weights as they are."""
    for part in module.modules():
        for hook in _hooks(part):
            matrix = hook.reshape_weight_to_matrix(getattr(part, f"{hook.name}_orig"))
            _set(matrix, getattr(part, f"{hook.name}_u"), getattr(part, f"{hook.name}_v"))
        if isinstance(part, ParametrizationList) and any(isinstance(p, _SpectralNorm) for p in part):
            _settle_parametrizations(part)


def has_spectral_norms(module: nn.Module) -> bool:
    return next(vector_names(module), None) is not None


def _settle_parametrizations(chain: ParametrizationList) -> None:
    """Each spectral norm of a chain by what those before it make of the weight."""

    def see(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _SpectralNorm)
        if hasattr(norm, "_u"):
            _set(norm._reshape_weight_to_matrix(inputs[0]), norm._u, norm._v)

    norms = [p for p in chain if isinstance(p, _SpectralNorm)]
    modes = [norm.training for norm in norms]
    handles = [norm.register_forward_pre_hook(see) for norm in norms]
    try:
        for norm in norms:
            norm.training = False  # in which a pass moves no vectors
        chain()
    finally:
        for norm, mode, handle in zip(norms, modes, handles, strict=True):
            norm.training = mode
            handle.remove()


def _hooks(part: nn.Module) -> list[SpectralNorm]:
    """Of torch.nn.utils.spectral_norm."""
    return [h for h in part._forward_pre_hooks.values() if isinstance(h, SpectralNorm)]


def _set(matrix: Tensor, u: Tensor, v: Tensor) -> None:
    """Write a matrix's (m, n) leading singular vectors into u (m,) and v (n,), found in float64."""
    if not torch.isfinite(matrix).all():
        return  # the loss says so
    wide = matrix.to("cpu" if matrix.device.type == "mps" else matrix.device, torch.float64)
    if wide.shape[0] <= wide.shape[1]:
        left = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -1]
        right = torch.nn.functional.normalize(wide.T @ left, dim=0)
    else:
        right = torch.linalg.eigh(wide.T @ wide).eigenvectors[:, -1]
        left = torch.nn.functional.normalize(wide @ right, dim=0)
    u.copy_(left)
    v.copy_(right)
