"""Import torchvision where its compiled extension cannot load.

A torchvision wheel built against another torch (a CUDA wheel beside a CPU torch, say) fails to load its
extension. torchvision tolerates that until it describes two of the extension's operators, nms and qnms, to
torch; these then do not exist and ``import torchvision`` fails. Both serve object detection only: declaring
them, without an implementation, makes datasets, transforms and classifiers work.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_SCHEMAS = {name: f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")}

# torch forgets the operators of a Library that is garbage collected.
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """The torchvision module. Whatever makes its import fail, other than the missing operators, is raised."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if not any(f"operator torchvision::{name} does not exist" in str(error) for name in _SCHEMAS):
            raise
    _forget_partial_import()
    _declare_missing_operators()
    return importlib.import_module("torchvision")


def _forget_partial_import() -> None:
    """Python drops only the package that failed, not its submodules that had succeeded by then."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def _declare_missing_operators() -> None:
    missing = [schema for name, schema in _SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in missing:
            library.define(schema)
        _declared.append(library)
