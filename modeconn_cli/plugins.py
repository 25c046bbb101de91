"""What comes from outside: installed packages and folders that bring choices and stages of their own.

A package names a module under the entry-point group ``modeconn``; importing it registers what it has. A folder in
``$MODECONN_PLUGINS`` (several are joined as in $PATH) has its ``*.py`` files imported. Configuration files are looked
for in ``conf/`` beside that module or in that folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from contextlib import redirect_stdout
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from modeconn_cli.errors import UserError
from modeconn_cli.work.command import read_declarations

VARIABLE = "MODECONN_PLUGINS"


@cache
def load_plugins(folders: str) -> tuple[Path, ...]:
    """Import everything from outside, once; the directories of configuration files that came with it.

    Raises:
        UserError: naming what cannot be imported and why.
    """
    found = []
    for point in entry_points(group="modeconn"):
        try:
            module = point.load()
        except Exception as error:
            raise _cannot(f"the installed plugin {point.name} ({point.value})", error) from error
        origin = module.__file__ if isinstance(module, ModuleType) else sys.modules[point.module].__file__
        found.append(Path(origin or "").resolve().parent / "conf")
    for folder in filter(None, folders.split(os.pathsep)):
        place = Path(folder).expanduser().resolve()
        if not place.is_dir():
            raise UserError(f"{VARIABLE}={folder} is not a directory; give folders that hold .py files.")
        for file in sorted(place.glob("*.py")):
            _import_file(file)
        found.append(place / "conf")
    return tuple(dict.fromkeys(p for p in found if p.is_dir()))


def conf_directories() -> tuple[Path, ...]:
    """Directories of configuration files that plugins brought, after importing them."""
    return load_plugins(os.environ.get(VARIABLE, ""))


@cache
def _read_stages() -> None:
    read_declarations("modeconn_cli.stages", Path(__file__).parent / "stages")


def load() -> None:
    """The commands of this package's stages, and everything that comes from outside; what that prints is no result."""
    _read_stages()
    with redirect_stdout(sys.stderr):
        conf_directories()


def _import_file(file: Path) -> None:
    if file.stem in sys.modules and getattr(sys.modules[file.stem], "__file__", None) == str(file):
        return
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        importlib.import_module(file.stem)
    except Exception as error:
        raise _cannot(str(file), error) from error
    if getattr(sys.modules[file.stem], "__file__", None) != str(file):
        raise UserError(f"{file} has the name of another module ({file.stem}); rename it.")


def _cannot(what: str, error: Exception) -> UserError:
    line = next(iter(str(error).splitlines()), "")
    return UserError(f"{what} cannot be imported ({type(error).__name__}: {line}); mend it, or leave it out.")
