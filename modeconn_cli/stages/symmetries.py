"""symmetries: an architecture's permutation groups, for people and as a file that rebasin.groups reads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from modeconn_cli.errors import UserError
from modeconn_cli.forward import evaluating
from modeconn_cli.inputs import taken
from modeconn_cli.runs.directory import writable
from modeconn_cli.settings import Config, check, rechosen
from modeconn_cli.symmetry.axes import Axes, fixed
from modeconn_cli.symmetry.certificate import refuse_wrong
from modeconn_cli.symmetry.equations import leaves
from modeconn_cli.symmetry.graph import CannotTrace, trace
from modeconn_cli.symmetry.groups import Symmetry, held, symmetry_of
from modeconn_cli.symmetry.written import read_groups, write_groups
from modeconn_cli.work.context import Context
from modeconn_cli.work.reporting import Silent


def groups_of(
    config: Config, output: Path | None = None, task: tuple[tuple[int, ...], int] | None = None
) -> dict[str, Any]:
    """A configured architecture's permutation groups, the axes that each runs along, and what stays in place.

    Args:
        output: also written there, as rebasin.groups reads it. A network that cannot be traced is written there with
            every dimension in its place, and ``not_traced`` says why.
        task: shape of one input, and classes, in place of the data set's.

    Raises:
        UserError: it cannot be traced and there is no output, the groups are not the network's, or the file is there.
    """
    if output is not None and output.exists():
        raise UserError(f"{output} is there already; give another name.")
    check(config)
    context = Context(config, Silent())
    if task is None:
        data = context.data_on_host
        examples = data.inputs(data.train, slice(0, 2))
    else:
        examples = torch.randn(2, *task[0], generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    module = evaluating(context.module(task))
    not_traced = None
    groups = rechosen(config.rebasin, "rebasin", "weight").groups  # set under any method, none too
    try:
        if groups is not None:
            symmetry = held(read_groups(groups_text(groups), module.state_dict(), groups), module)
            refuse_wrong(module, symmetry, examples, groups)
        else:
            symmetry = trace(module, taken(module, examples))
    except CannotTrace as error:
        if output is None:
            raise UserError(f"{error}. To write its groups by hand, begin with --output groups.yaml.") from None
        still: dict[str, Axes] = {k: [fixed(n) for n in v.shape] for k, v in module.state_dict().items()}
        symmetry, not_traced = symmetry_of(still), str(error)
    if output is not None:
        with writable(output, "--output FILE"):
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(write_groups(symmetry, module.state_dict()), encoding="utf-8")
    along, in_place = _dimensions(symmetry)
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "groups": [{"size": g.size, "along": a} for g, a in zip(symmetry.groups, along, strict=True)],
        "in_place": in_place,
        "pinned_by": symmetry.pinned_by,
        "not_traced": not_traced,
        "log10_symmetries": sum(math.lgamma(g.size + 1) for g in symmetry.groups) / math.log(10),
    }


def _dimensions(symmetry: Symmetry) -> tuple[list[list[str]], list[str]]:
    """For each group the dimensions of tensors that it runs along, and the tensors that stay in place."""
    number = {leaf: i for i, leaf in enumerate(symmetry.leaves)}
    along: list[list[str]] = [[] for _ in symmetry.groups]
    in_place = []
    for name, axes in symmetry.axes.items():
        of_dim = [{number[leaf] for leaf in leaves(axis) if leaf in number} for axis in axes]
        for dim, groups in enumerate(of_dim):
            for i in groups:
                along[i].append(f"{name}[{dim}]")
        if axes and not any(of_dim):
            in_place.append(name)
    return along, in_place


def groups_text(file: str) -> str:
    """The text of rebasin.groups; raises UserError where there is no such file."""
    if not Path(file).is_file():
        why = "is a directory" if Path(file).is_dir() else "is not there"
        raise UserError(
            f"rebasin.groups={file} {why}: give a file that modeconn symmetries --output groups.yaml began."
        )
    return Path(file).read_text(encoding="utf-8")
