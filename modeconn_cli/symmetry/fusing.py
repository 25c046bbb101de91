"""BatchNorm folded into the linear map or convolution before it: fewer tensors, the same function in evaluation mode.

A norm with running mean m and variance v, scale s and shift b, after a layer W x + c, makes what the layer with weights
g W and bias b + g (c - m) makes by itself, where g = s / sqrt(v + eps).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from modeconn_cli.errors import RunFailed, listed
from modeconn_cli.forward import evaluating
from modeconn_cli.inputs import taken
from modeconn_cli.symmetry.certificate import CLEAR, TOLERANCES, Computed
from modeconn_cli.symmetry.graph import export
from modeconn_cli.tasks.outputs import tensor_of

OF_THE_INPUT = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, _InstanceNorm)
LAYERS = (nn.Linear, _ConvNd)
MAPS = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


@dataclass(frozen=True)
class Fusion:
    """What can be folded into what, by the names of submodules.

    pairs: (layer, norm) each. left: the norms that stay, with the reason.
    """

    pairs: tuple[tuple[str, str], ...]
    left: dict[str, str]

    @property
    def remark(self) -> str:
        """One line about the norms that stay; empty where none does."""
        by_reason: dict[str, list[str]] = {}
        for norm, why in self.left.items():
            by_reason.setdefault(why, []).append(norm)
        return "; ".join(f"{listed(norms)}: {why}" for why, norms in by_reason.items())


def find_fusion(module: nn.Module, example: Tensor) -> Fusion:
    """Which norms of a module directly follow a linear map or a convolution that nothing else reads.

    Args:
        example: a batch of two inputs; what is in them does not matter.

    Raises:
        CannotTrace: torch.export does not get through the module.
    """
    program = export(module, example)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    held = Counter(id(p) for m in module.modules() for p in m.parameters(recurse=False))
    modules = dict(module.named_modules(remove_duplicate=False))
    left = {n: "its statistics are those of its input" for n, m in modules.items() if isinstance(m, OF_THE_INPUT)}
    left |= {
        n: "it keeps no running statistics"
        for n, m in modules.items()
        if isinstance(m, _BatchNorm) and m.running_mean is None
    }
    pairs = []
    for node in program.graph.nodes:
        if node.op != "call_function" or _operation(node) != "batch_norm" or node.args[3] is None:
            continue
        norm = _owner(node.args[3], names)
        if norm is None or not isinstance(modules.get(norm), _BatchNorm):
            left[norm or node.name] = "it is computed without a BatchNorm module"
            continue
        layer, why = _layer_before(node, names, modules, held)
        if node.args[5]:
            why = "it normalises by its batch in evaluation mode too"
        elif any(isinstance(a, Node) and len(a.users) > 1 for a in node.args[1:5]):
            why = "it is used more than once"
        if why:
            left[norm] = why
        else:
            pairs.append((layer, norm))
    return Fusion(tuple(pairs), left)


def _layer_before(
    norm: Node, names: Mapping[str, str], modules: Mapping[str, nn.Module], held: Mapping[int, int]
) -> tuple[str, str]:
    """The layer whose output a norm takes, and why it cannot be folded into that; "" where it can."""
    before = norm.args[0]
    if not isinstance(before, Node) or _operation(before) not in MAPS or before.op != "call_function":
        return "", f"what is before it is {_called(before)}, not a linear map or a convolution"
    layer = _owner(before.args[1], names)
    made = modules.get(layer) if layer is not None else None
    if layer is None or not isinstance(made, LAYERS):
        return "", "the weights of the layer before it belong to no Linear or Conv module as they are"
    if isinstance(made, nn.Linear) and before.meta["val"].dim() != 2:
        return layer, f"its channels are not the units of {layer}"
    if len(before.users) > 1:
        return layer, f"the output of {layer} is used elsewhere too"
    shared = held[id(made.weight)] > 1 or len(before.args[1].users) > 1  # type: ignore[union-attr]
    shared = shared or (made.bias is not None and held[id(made.bias)] > 1)
    if shared:
        return layer, f"the weights of {layer} are used elsewhere too"
    bias = before.args[2] if len(before.args) > 2 else None
    own = (bias is None) == (made.bias is None) and (bias is None or _owner(bias, names) == layer)
    return layer, "" if own else f"the bias that is added is not that of {layer}"


@torch.no_grad()
def fused(module: nn.Module, fusion: Fusion) -> nn.Module:
    """A copy of a module with its norms folded in and nn.Identity in their place; layers have the biases they need.

    It computes the same in evaluation mode, but for rounding in the module's own precision.
    """
    made = copy.deepcopy(module)
    for layer_name, norm_name in fusion.pairs:
        layer: Any = made.get_submodule(layer_name)
        norm: Any = made.get_submodule(norm_name)
        gain = (norm.running_var.double() + norm.eps).rsqrt()
        gain = gain if norm.weight is None else gain * norm.weight.double()
        shift = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
        bias = gain * shift if norm.bias is None else gain * shift + norm.bias.double()
        trained = layer.weight.requires_grad
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=trained)
        layer.weight.copy_(_scaled(layer, gain))
        for place in [n for n, m in made.named_modules(remove_duplicate=False) if m is norm]:  # under every name
            parent, _, name = place.rpartition(".")
            setattr(made.get_submodule(parent), name, nn.Identity())
    return made


def _scaled(layer: Any, gain: Tensor) -> Tensor:
    """The layer's weights, every output channel multiplied by its gain."""
    weight = layer.weight.double()
    if not isinstance(layer, _ConvTransposeNd):
        return weight * gain.view(-1, *[1] * (weight.dim() - 1))
    by_group = weight.unflatten(0, (layer.groups, -1))  # (groups, in, out of the group, ...)
    return (by_group * gain.view(layer.groups, 1, -1, *[1] * (weight.dim() - 2))).flatten(0, 1)


@torch.no_grad()
def certify_fusion(module: nn.Module, fusion: Fusion, x: Tensor) -> dict[str, Any]:
    """How far the fused module's outputs are from the module's, on real inputs.

    ``difference``: as exactly as the module can be computed, the largest over outputs, relative to the largest output;
    ``dtype`` says in what, ``tolerance`` is for that. ``control``: the same with the bias of one layer left as it was,
    which shows that a wrong rewrite would be seen. ``rounded``: in the module's own precision.

    Raises:
        RunFailed: the fused module is not the same function.
    """
    network = Computed(module, module.state_dict(), x)
    rewritten, tolerance = fused(network.module, fusion), TOLERANCES[network.dtype]
    scale = float(network.outputs.abs().max()) or 1.0

    def apart(other: Any) -> float:
        return float((tensor_of(other).double() - network.outputs.double()).abs().max()) / scale

    difference = apart(rewritten(network.x.clone()))
    if not difference <= tolerance:
        raise RunFailed(
            f"the network without its norms is not the same function: outputs differ by {difference:.1e} of the "
            "largest. Please report the network; endpoints.fuse=false leaves it as it is."
        )
    control = 0.0
    for layer_name, _ in reversed(fusion.pairs):
        layer: Any = rewritten.get_submodule(layer_name)
        before: Any = network.module.get_submodule(layer_name).bias
        right = layer.bias.clone()
        layer.bias.copy_(torch.zeros_like(right) if before is None else before)
        control = max(control, apart(rewritten(network.x.clone())))
        layer.bias.copy_(right)
        if control > CLEAR[network.dtype]:
            break
    return {
        "difference": difference,
        "control": control,
        "rounded": apart(evaluating(fused(module, fusion))(taken(module, x.clone()))),
        "examples": len(x),
        "dtype": str(network.dtype).removeprefix("torch."),
        "tolerance": tolerance,
    }


def _operation(node: Node) -> str:
    return getattr(getattr(node.target, "overloadpacket", None), "__name__", "")


def _called(value: Any) -> str:
    if not isinstance(value, Node) or value.op == "placeholder":
        return "the network's input"
    return _operation(value) or value.name


def _owner(value: Any, names: Mapping[str, str]) -> str | None:
    """The submodule that a graph's input belongs to, where it is one of a module's own tensors as it is."""
    name = names.get(value.name) if isinstance(value, Node) else None
    return None if name is None else name.rpartition(".")[0]
