"""export: a network out of the laboratory, as an ordinary state_dict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modeconn_cli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from modeconn_cli.runs.find import Found
    from modeconn_cli.work.options import Runtime

CERTIFIED_ON = 64  # examples
SUFFIXES = (".safetensors", ".pt", ".pth")


def export(
    reference: Annotated[
        str,
        typer.Argument(metavar="REF", help="A checkpoint file, or RUN, RUN@epoch=20, RUN@step=100, RUN@t=0.3, RUN#2."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write: .safetensors or .pt.")],
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    device: Annotated[str, typer.Option(help="Where BatchNorm statistics are re-estimated.")] = "auto",
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Where runs are kept.")] = Path("outputs"),
    in_unit: Annotated[
        bool,
        typer.Option("--in-unit", help="Fold the scale of normalised targets into the last layer, which is certified."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Write a network as a plain state_dict, which PyTorch loads without modeconn.

    A kept network is written as it is. BatchNorm statistics of a point of a path are re-estimated on its run's training
    data. One that learnt numbers answers with them normalised; their mean and deviation are in the file's metadata, and
    --in-unit writes a network that answers in their unit.
    """
    from modeconn_cli.front.console import aside
    from modeconn_cli.front.session import complain, print_json
    from modeconn_cli.results import targets_line

    with aside():
        found = write_network(reference, output, output_dir, force, device, in_unit)
    print_json({"command": "export", **found}) if as_json else print(output)
    line = targets_line({"task": {"targets": found["targets"]}})
    if line and not in_unit and not as_json:
        complain(f"{output}: {line}; --in-unit writes a network that answers in the data's unit.")


def write_network(
    reference: str, output: Path, root: Path, force: bool = False, device: str = "auto", in_unit: bool = False
) -> dict[str, Any]:
    """Write the network that a reference names; what it is and where it comes from.

    in_unit: a network that learnt normalised numbers is rewritten to answer in their unit.

    Raises:
        UserError: there is no such network, the file is there already, or its name says no known format.
    """
    from modeconn_cli.networks import save_state
    from modeconn_cli.runs.directory import writable
    from modeconn_cli.runs.find import Found
    from modeconn_cli.stages.referenced import Machine, referenced
    from modeconn_cli.work.options import Runtime
    from modeconn_cli.work.reporting import Silent

    if output.suffix not in SUFFIXES:
        raise UserError(f"--output {output}: end it in {' or '.join(SUFFIXES[:2])}.")
    if output.is_dir() or (output.exists() and not force):
        raise UserError(f"{output} is there already; give another name, or --force to write over it.")
    network = referenced(reference, root)
    runtime = Runtime(device=device, output_dir=str(root))
    state = network.state(Machine(runtime, Silent()))
    run = Found(network.upstream[0]) if network.upstream else None
    targets: dict[str, Any] = run.read("summary.json").get("task", {}).get("targets", {}) if run else {}
    if in_unit:
        if run is None or not targets:
            raise UserError(f"--in-unit: {reference} says nothing of a unit: it is for runs that learnt numbers.")
        state, targets = answering_in_unit(run, state, targets, runtime), {}
    with writable(output, "--output FILE"):
        output.parent.mkdir(parents=True, exist_ok=True)
        save_state(state, output, {"targets": targets} if targets else None)
    return {
        "file": str(output),
        "reference": reference,
        "network": network.names[0],
        "what": network.what,
        "from": [str(folder) for folder in network.upstream],
        "tensors": len(state),
        "targets": targets,
        "in_unit": in_unit,
    }


def answering_in_unit(
    run: Found, state: Mapping[str, Tensor], targets: Mapping[str, Any], runtime: Runtime
) -> dict[str, Tensor]:
    """A run's network, rewritten to answer in the unit of its data; certified on examples of theirs.

    Raises:
        UserError: its architecture is not known by its settings, or does not end in a linear layer.
    """
    from modeconn_cli.tasks.unit import in_unit
    from modeconn_cli.work.context import Context
    from modeconn_cli.work.recorded import OBJECT, recorded_config
    from modeconn_cli.work.reporting import Silent

    config = recorded_config(run, runtime)
    if config.architecture.family == OBJECT:
        raise UserError(
            f"--in-unit: {run.folder} was made from a torch module, which no setting describes; use the mean and "
            "deviation in the file's metadata."
        )
    context = Context(config, Silent())
    data = context.data_on_host
    return in_unit(context.module(), state, targets, data.inputs(data.test, slice(0, CERTIFIED_ON)))
