"""What runs over what, and on which machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.options import PathOf
from modeconn_cli.settings import LARGEST_SEED, Name, choice, option

if TYPE_CHECKING:
    from modeconn_cli.settings import Config


class Pairing(Name):
    consecutive = "consecutive"
    all = "all"


@choice("pipeline", "pipeline")
@dataclass
class Pipeline:
    """What `run` runs over."""

    replicates: list[int] | None = option(
        None,
        "run: the replicates, each a pair of endpoints of its own (see seed); null: seed alone.",
        ge=0,
        le=LARGEST_SEED // 2,
    )
    pairs: Pairing = option(
        Pairing.consecutive,
        "run, where endpoints.seeds, .checkpoints or .from name more than two: consecutive (first and second, third "
        "and fourth) or all.",
    )
    paths: list[PathOf] = option([PathOf.segment, PathOf.curve], "run: what to measure between each pair.")

    def check_together(self, group: str, config: Config) -> None:
        """Raise UserError for what one field cannot say."""
        if not self.paths or len(set(self.paths)) < len(self.paths):
            raise UserError("pipeline.paths must name each of segment and curve at most once, and one of them.")
        if self.replicates is None:
            return
        if not self.replicates or len(set(self.replicates)) < len(self.replicates):
            raise UserError(f"pipeline.replicates={self.replicates} must be different seeds, as [0,1,2].")
        if config.seed:
            raise UserError(
                f"pipeline.replicates={self.replicates} names the replicates, and seed={config.seed} another: drop "
                "one of the two."
            )
        given = [k for k in ("seeds", "checkpoints", "from") if getattr(config.endpoints, k) is not None]
        if given:
            raise UserError(
                f"pipeline.replicates makes endpoints of its own, and endpoints.{given[0]} names others: drop one of "
                "the two."
            )


class ChannelsLast(Name):
    auto = "auto"
    on = "on"
    off = "off"


class TrackerName(Name):
    tensorboard = "tensorboard"
    wandb = "wandb"
    mlflow = "mlflow"


@choice("runtime", "runtime")
@dataclass
class Runtime:
    """Where and how a request runs; none of it changes a result."""

    device: str = option(
        "auto",
        "auto (CUDA when there is one), cpu, cuda, cuda:1, mps, or spread: the jobs of a parallel sweep over the CUDA "
        "devices in turn.",
    )
    threads: int = option(
        0,
        "CPU threads of this process; 0: PyTorch's choice, and one for small fully connected networks.",
        ge=0,
        le=1024,
    )
    channels_last: ChannelsLast = option(
        ChannelsLast.auto, "Memory layout of image batches; auto: where measured faster."
    )
    deterministic: bool = option(True, "Ask PyTorch for deterministic kernels (on CUDA some are slower).")
    save_every: float = option(
        20.0, "Seconds between saved states; a killed run loses at most this much of its training.", gt=0
    )
    output_dir: str = option("outputs", "Where run directories go.")
    trackers: list[TrackerName] = option([], "Experiment trackers that are sent the same as the CSV files hold.")
    force: bool = option(False, "Compute the command's own stages again, into their next version (--force).")
    dry_run: bool = option(False, "Show the plan and stop (--dry-run).")
