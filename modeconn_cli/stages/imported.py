"""Endpoints that are not trained here: networks from files and from other runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.options import Interpolation
from modeconn_cli.results import Result
from modeconn_cli.runs.directory import Run
from modeconn_cli.runs.references import parse, told_apart
from modeconn_cli.stages.endpoints import Endpoint, fitted, load, named_by
from modeconn_cli.stages.referenced import Referenced, StoredPath, networks_in, path_of
from modeconn_cli.work.context import Context

SAME = (
    "the same network, so there is no path between them: give two different endpoints.seeds, endpoints.checkpoints or "
    "endpoints.from."
)


class ImportedEndpoint(Endpoint):
    """A network from a file or a run, as it is there: weights and buffers."""

    def __init__(self, context: Context, network: Referenced, short_name: str) -> None:
        super().__init__(context)
        self.network, self.short_name = network, short_name

    @property
    def label(self) -> str:
        return f"{self.context.label}-file"  # the same for the same content, whatever the file is called

    @property
    def doing(self) -> str:
        return f"reading {self.short_name}"

    def fields(self) -> dict[str, Any]:
        return {**self.context.task_fields(), "file": self.network.content}

    def made_from(self) -> Sequence[Path]:
        return self.network.upstream

    def check(self) -> dict[str, Tensor]:
        """The network's weights; UserError now, before anything is written, where they do not fit."""
        return fitted(self.context.module(), self.network, self.network.outline(), self.context)

    def compute(self, run: Run) -> Result:
        net = self.context.net(0)
        load(net, self.network, self.context)
        more = {"file": self.network.text, "name": self.short_name}
        return self.measured(run, self.context.evaluator(net, Interpolation()), net, more)


def imported_endpoints(context: Context) -> list[ImportedEndpoint] | None:
    """The endpoints that endpoints.from or endpoints.checkpoints name, called so that they are told apart.

    None where neither is given.

    Raises:
        UserError: two of the settings are given, nothing is called so, it does not fit, or two are the same network.
    """
    options = context.config.endpoints
    given = {"checkpoints": options.checkpoints, "from": options.references, "seeds": options.seeds}
    keys = [f"endpoints.{k}" for k, v in given.items() if v is not None]
    if keys in ([], ["endpoints.seeds"]):
        return None
    if len(keys) > 1:
        raise UserError(
            f"{keys[0]} and {keys[1]} are both given: endpoints come from files, from other runs or from training; "
            "drop one."
        )
    (key,) = keys
    texts = options.checkpoints if options.references is None else options.references
    if options.init_from is not None:
        raise UserError(f"endpoints.init_from is where training starts, and {key} trains nothing: drop one.")
    if not texts:
        raise UserError(f"{key}=[] names no file; give two, as [a.pt,b.safetensors].")
    if options.checkpoints is not None:
        for file in texts:
            if not Path(file).is_file():
                raise UserError(
                    f"{key}: no file {file}; give paths of .pt or .safetensors files, or endpoints.from for runs."
                )
    try:
        each = one_by_one(texts, context.root)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    networks = [named_by(key, text, context) for text in each]
    names = told_apart([n.names for n in networks])
    imported = [ImportedEndpoint(context, n, name) for n, name in zip(networks, names, strict=True)]
    states = [endpoint.check() for endpoint in imported]
    for (a, first), (b, second) in combinations(zip(networks, states, strict=True), 2):
        if all(torch.equal(v, second[k]) for k, v in first.items()):
            raise UserError(f"{a.text} and {b.text} hold {SAME}")
    return imported


def one_by_one(texts: Sequence[str], root: Path) -> list[str]:
    """References with ``RUN#*``, every network of a run, written out as RUN#1, RUN#2, ...

    Raises:
        UserError: there is no such run, or no network in it.
    """
    found: list[str] = []
    for text in texts:
        reference = parse(text)
        count = len(networks_in(reference.run(root))) if reference.every else 0
        found += [f"{reference.place}#{k + 1}" for k in range(count)] if reference.every else [text]
    return found


def whole_path(text: str, context: Context) -> StoredPath | None:
    """The path that a reference names as a whole; None for one network or a file.

    Raises:
        UserError: there is no such run, or several.
    """
    reference = parse(text)
    if reference.selects or reference.file is not None:
        return None
    return path_of(reference.run(context.root))
