"""doctor: versions, devices, and data sets found or how to get them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from modeconn_cli import __version__

PACKAGES = (
    "torch",
    "torchvision",
    "hydra-core",
    "omegaconf",
    "typer",
    "rich",
    "numpy",
    "scipy",
    "pandas",
    "safetensors",
    "matplotlib",
)


def examine(data_dir: str | None) -> dict[str, Any]:
    """Everything there is to know, as plain values."""
    import torch

    from modeconn_cli.data import dataset as data
    from modeconn_cli.settings import choices

    versions = {"modeconn": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    devices = [f"cuda:{i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    devices += [f"cpu: {torch.get_num_threads()} threads"]
    sets = []
    for source, options in choices("dataset").items():
        if options().reader().given:
            continue
        places = data.search(source, data_dir)
        found = [str(place) for place, there in places if there]
        sets.append(
            {
                "dataset": str(source),
                "found": found[0] if found else None,
                "how_to_get": None if found or not places else data.how_to_get(source),
                "looked_in": [str(place) for place, _ in places],
            }
        )
    return {"versions": versions, "devices": devices, "torchvision": _torchvision(), "datasets": sets}


def _torchvision() -> str:
    from modeconn_cli.torchvision_compat import import_torchvision

    try:
        import_torchvision()
    except Exception as error:  # whatever is wrong with it is what doctor is here to say
        return f"cannot be imported: {error}"
    return "works"


def show(found: dict[str, Any]) -> None:
    """Print what :func:`examine` found."""
    from modeconn_cli.front.console import Sheet, joined, out, styled

    versions = [joined(styled("bold", k), f" {v}") for k, v in found["versions"].items()]
    out.print(*versions, sep="  ")
    out.print(f"torchvision {found['torchvision']}")
    out.print(f"devices: {'; '.join(found['devices'])}\n")
    table = Sheet("dataset=", "found, or how to get it", title="Data sets")
    for row in found["datasets"]:
        place = row["found"] or ("embedded or generated" if not row["looked_in"] else None)
        table.add_row(row["dataset"], styled("green", place) if place else styled("yellow", row["how_to_get"]))
    out.print(table)
