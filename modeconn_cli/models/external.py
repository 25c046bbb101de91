"""Networks from elsewhere: torchvision's classifiers, and the user's own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from modeconn_cli.errors import UserError
from modeconn_cli.failures import refused, said
from modeconn_cli.forward import evaluating, generators, modes_kept, require_repeatable, rest_kept
from modeconn_cli.inputs import taken
from modeconn_cli.models.common import require_images
from modeconn_cli.nearest import nearest_words
from modeconn_cli.targets import Target, first_line, working_directory_importable
from modeconn_cli.tasks.outputs import tensor_of
from modeconn_cli.torchvision_compat import import_torchvision

# These two otherwise return their auxiliary heads' logits too while training, and warn about their
# initialisation, which is the slow truncated normal either way.
PLAIN_LOGITS: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}


def build_torchvision(
    in_shape: tuple[int, ...], classes: int, *, model: str = "resnet18", kwargs: Mapping[str, Any] | None = None
) -> nn.Module:
    """torchvision's classifier of that name, untrained: (N, 3, H, W) -> (N, classes).

    Raises:
        UserError: the name is unknown, ``kwargs`` do not suit it, or it cannot take the data set's images.
    """
    models = import_torchvision().models
    names = models.list_models(module=models)
    if model not in names:
        close = nearest_words(model, names, n=3) or ["resnet18", "mobilenet_v2", "vit_b_16"]
        raise UserError(
            f"torchvision has no classifier {model!r}: set architecture.model to {', '.join(close)} or "
            "another name of torchvision.models"
        )
    channels, _, _ = require_images(f"torchvision's {model}", in_shape)
    if channels != 3:
        raise UserError(
            f"torchvision's {model} takes images of 3 channels, this data set's have {channels}: use another "
            "data set, or an architecture that follows the data's channels, such as architecture=resnet20"
        )
    given = dict(kwargs or {})
    reserved = {"weights", "num_classes"} & given.keys()
    if given.get("aux_logits"):
        reserved.add("aux_logits")
    if reserved:
        raise UserError(
            f"torchvision's {model} is made untrained, for the data set's classes and with one output: "
            f"remove {', '.join(sorted(reserved))} from architecture.kwargs"
        )
    options = PLAIN_LOGITS.get(model, {}) | given
    try:
        net = models.get_model(model, weights=None, num_classes=classes, **options)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"torchvision's {model} refuses architecture.kwargs {given} ({first_line(error)}): correct them"
        ) from error
    return net


def build_custom(
    in_shape: tuple[int, ...], classes: int, *, target: str = "", kwargs: Mapping[str, Any] | None = None
) -> nn.Module:
    """The module that ``target`` makes: (N, *in_shape) -> (N, classes).

    ``target`` is "package.module:name" or "path/to/file.py:name", relative to the working directory, which is
    on the import path meanwhile. It is called with ``kwargs`` and with those of in_shape or input_shape,
    classes or num_classes, and in_channels that its signature names and ``kwargs`` do not give.

    Raises:
        UserError: the target cannot be imported or called, or makes something other than such a module.
    """
    found = Target(target, "architecture")
    with working_directory_importable():
        make = found.load()
        if isinstance(make, nn.Module) or not callable(make):
            raise UserError(
                f"{target} is a {type(make).__name__} object, not something that makes a network: point "
                "architecture.target to a module's class or to a function that returns one"
            )
        net = _call(found, make, in_shape, classes, dict(kwargs or {}))
    if not isinstance(net, nn.Module):
        raise UserError(
            f"{target} returned {type(net).__name__}, not a torch.nn.Module: point architecture.target to "
            "a module's class or to a function that returns one"
        )
    return net


def _call(
    target: Target, make: Callable[..., Any], in_shape: tuple[int, ...], classes: int, kwargs: dict[str, Any]
) -> Any:
    offered = {
        "in_shape": in_shape,
        "input_shape": in_shape,
        "in_channels": in_shape[0],
        "classes": classes,
        "num_classes": classes,
    }
    return target.call(make, offered, kwargs)


def check_answers(
    net: nn.Module,
    label: str,
    in_shape: tuple[int, ...],
    answers: tuple[tuple[int, ...], ...],
    largest: int | None = None,
    advice: str | None = None,
    classes: int | None = None,
) -> None:
    """Try two examples, blank or of the largest integer, to refuse an unfit network before any training.

    ``advice``: what to do about it; None: what the command line can do. ``classes``: of labels, how many.

    Raises:
        UserError: it cannot take them, answers with none of these shapes an example, or at random.
    """
    like = next(net.parameters(), torch.empty(0))
    x = torch.zeros(2, *in_shape, device=like.device)
    if largest is not None:
        x = torch.full((2, *in_shape), largest, dtype=torch.int64, device=like.device)
    x = taken(net, x)
    try:
        with torch.no_grad(), modes_kept(net), rest_kept(net):
            before = generators(x.device)
            output = evaluating(net)(x.clone())
            if generators(x.device) != before:
                require_repeatable(net, net, torch.randn_like(x) if largest is None else x)
    except UserError as error:
        raise UserError(f"{label}: {error}") from None
    except Exception as error:
        integers = "" if largest is None else f" of integers up to {largest}"
        mend = f"change architecture.kwargs or {'dataset.pad_to' if largest is None else 'the network'}"
        raise refused(
            error,
            f"{label} cannot take this data set's examples of shape {in_shape}{integers} ({said(error)}): "
            f"{advice or mend}",
        ) from error
    try:
        found = tuple(tensor_of(output).shape)
    except UserError as error:
        raise UserError(f"{label}: {error}") from None
    wanted = [str((2, *shape)) for shape in answers]
    if advice is None and classes is not None and len(found) == 2 and found[1] > classes:
        advice = (
            f"the data have {classes} classes; where {found[1]} are told apart, give dataset.classes={found[1]}, or "
            "change the network or architecture.kwargs"
        )
    if wanted and str(found) not in wanted:
        raise UserError(
            f"{label} answers two examples of shape {in_shape} with {found}, not logits of shape "
            f"{' or '.join(wanted)}: {advice or 'change it or architecture.kwargs'}"
        )
