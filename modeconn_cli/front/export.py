"""export: a network out of the laboratory, as an ordinary state_dict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modeconn_cli.errors import UserError

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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Write a network as a plain state_dict, which PyTorch loads without modeconn.

    A kept network is written as it is. BatchNorm statistics of a point of a path are re-estimated on its run's training
    data.
    """
    from modeconn_cli.front.session import print_json

    found = write_network(reference, output, output_dir, force, device)
    print_json({"command": "export", **found}) if as_json else print(output)


def write_network(
    reference: str, output: Path, root: Path, force: bool = False, device: str = "auto"
) -> dict[str, Any]:
    """Write the network that a reference names; what it is and where it comes from.

    Raises:
        UserError: there is no such network, the file is there already, or its name says no known format.
    """
    from modeconn_cli.networks import save_state
    from modeconn_cli.runs.directory import writable
    from modeconn_cli.stages.referenced import Machine, referenced
    from modeconn_cli.work.options import Runtime
    from modeconn_cli.work.reporting import Silent

    if output.suffix not in SUFFIXES:
        raise UserError(f"--output {output}: end it in {' or '.join(SUFFIXES[:2])}.")
    if output.is_dir() or (output.exists() and not force):
        raise UserError(f"{output} is there already; give another name, or --force to write over it.")
    network = referenced(reference, root)
    state = network.state(Machine(Runtime(device=device, output_dir=str(root)), Silent()))
    with writable(output, "--output FILE"):
        output.parent.mkdir(parents=True, exist_ok=True)
        save_state(state, output)
    return {
        "file": str(output),
        "reference": reference,
        "network": network.names[0],
        "what": network.what,
        "from": [str(folder) for folder in network.upstream],
        "tensors": len(state),
    }
