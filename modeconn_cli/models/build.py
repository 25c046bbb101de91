"""Architectures: plain modules from a float batch (N, *in_shape) to logits (N, classes)."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from modeconn_cli.errors import UserError
from modeconn_cli.models.external import check_answers
from modeconn_cli.nearest import nearest_words
from modeconn_cli.settings import choices
from modeconn_cli.targets import Target


def source_checksum(target: str) -> str:
    """SHA-256, in hex, of the source file of a network of one's own; the file is not run."""
    return Target(target, "architecture").checksum


def build(
    family: str,
    in_shape: tuple[int, ...],
    classes: int,
    answers: tuple[tuple[int, ...], ...] | None = None,
    largest: int | None = None,
    labels: bool = False,
    **options: Any,
) -> nn.Module:
    """A freshly initialised network; only torch's global random generator decides its weights.

    Args:
        family: the name of a registered choice of architecture.
        in_shape: (channels, height, width) of the images or (features,) of the vectors.
        classes: number of outputs an example: logits, or the values of a regression.
        answers: shapes that a network from elsewhere may answer one example with; empty: any; None: (classes,).
        largest: of inputs that are integers, the largest; None: inputs are real numbers.
        labels: whether ``classes`` counts those of labels.
        options: that choice's fields, other than name and family.

    Raises:
        UserError: no such family or option, or the options do not suit each other or the data.
    """
    known: dict[str, Any] = choices("architecture")
    if family not in known:
        hint = _hint(family, known)
        raise UserError(f"there is no architecture family {family!r}{hint}: use {', '.join(known)}")
    builder, tried = known[family].builder(), known[family].tried
    allowed = {
        name: None
        for name, parameter in inspect.signature(builder).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for option in options:
        if option not in allowed:
            raise UserError(
                f"{family} has no option {option!r}{_hint(option, allowed)}: "
                + (f"use {', '.join(allowed)}" if allowed else "it takes none")
            )
    if largest is not None and not tried:
        raise UserError(
            f"{family} computes with real numbers, and this data set's inputs are integers (token ids): use "
            "architecture=custom with an embedding, or dataset.inputs=continuous"
        )
    net = builder(tuple(in_shape), classes, **options)
    if tried:
        theirs = f"torchvision's {options.get('model', 'resnet18')}"
        label = theirs if family == "torchvision" else str(options.get("target") or family)
        wanted, counted = ((classes,),) if answers is None else answers, classes if labels else None
        check_answers(net, label, tuple(in_shape), wanted, largest, classes=counted)
    return net


def _hint(word: str, known: dict[str, Any]) -> str:
    close = nearest_words(word, known)
    return f" (did you mean {close[0]}?)" if close else ""
