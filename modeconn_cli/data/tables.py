"""UCI's tables of numbers: one example a line, the target last."""

from __future__ import annotations

from modeconn_cli.data.files import Files, Kind, Layout
from modeconn_cli.data.formats import read_table
from modeconn_cli.data.options import Dataset

# What a table's file may be called.
FILES = {
    "yacht": ("yacht.data", "dold_yacht.data", "yacht_hydrodynamics.data"),
    "energy": ("energy.data", "dold_energy.data"),
    "concrete": ("concrete.data", "dold_concrete.data"),
    "airfoil": ("airfoil.data", "dold_airfoil.data", "airfoil_self_noise.dat"),
}


def table(options: Dataset) -> Files:
    """One of FILES."""
    names = FILES[str(options.source)]
    layouts = tuple(Layout((name,), read_table) for name in names)
    get = f"save it as uci/{names[0]} there, one example a line and the target last"
    return Files(options, Kind(layouts, "uci", get=get))
