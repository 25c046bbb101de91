"""modeconn: are separately trained networks joined in weight space by paths of low loss?

From Python, ``import modeconn_cli as mc`` (quick: torch is imported by the first call):

    mc.connect(model_a, model_b, data)      are two networks connected?
    mc.fit_curve(model_a, model_b, data)    a low-loss curve between them
    mc.align(model_a, model_b, data)        the second permuted to lie near the first
    mc.run(command, overrides)              any command of the command line
    mc.load(RUN), mc.open_networks(REF)     what runs have computed

Failures are UserError, RunFailed and Interrupted, with the command line's words.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from modeconn_cli.errors import Interrupted, RunFailed, UserError

if TYPE_CHECKING:
    from modeconn_cli.interface.aligning import Alignment, align
    from modeconn_cli.interface.finished import FinishedRun, FinishedRuns, load, run
    from modeconn_cli.interface.joining import Connection, connect, fit_curve
    from modeconn_cli.interface.paths import ModePath
    from modeconn_cli.networks import Network, Networks, open_networks

__version__ = "0.1.0"
__all__ = [
    "Alignment",
    "Connection",
    "FinishedRun",
    "FinishedRuns",
    "Interrupted",
    "ModePath",
    "Network",
    "Networks",
    "RunFailed",
    "UserError",
    "__version__",
    "align",
    "connect",
    "fit_curve",
    "load",
    "open_networks",
    "run",
]

_WHERE = {
    "interface.aligning": ("Alignment", "align"),
    "interface.finished": ("FinishedRun", "FinishedRuns", "load", "run"),
    "interface.joining": ("Connection", "connect", "fit_curve"),
    "interface.paths": ("ModePath",),
    "networks": ("Network", "Networks", "open_networks"),
}


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
