"""Experiment trackers: TensorBoard, Weights & Biases and MLflow are sent what metrics.csv and path.csv hold.

They get copies on threads of their own: a tracker that is slow or fails neither delays a run nor ends it, and no
result depends on one. What a resumed run had sent before is sent again, and each tracker keeps one of the two.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar, Protocol

from modeconn_cli.errors import Interrupted, UserError
from modeconn_cli.runs.directory import Run
from modeconn_cli.runs.find import Found
from modeconn_cli.work.options import TrackerName

PATIENCE, HURRIED = 30.0, 5.0  # seconds that a finished, or a stopped, command waits for what is still being sent
Values = Mapping[str, Any]


class Tracker(Protocol):
    """Where runs are followed, one after another; made, and then called, on one thread of its own."""

    packages: ClassVar[tuple[str, ...]]

    def __init__(self, folder: Path) -> None:
        """``folder``: where to keep files, unless the tracker's environment variables say otherwise."""

    def begin(self, name: str, key: str, resumed: bool, config: Values) -> None:
        """A run starts or, with the same key as before, goes on."""

    def metrics(self, step: int, values: Values) -> None:
        """Numbers of one epoch or one point; a resumed run gives those again that it gave before."""

    def figure(self, name: str, file: Path) -> None:
        """A picture, as PNG."""

    def summary(self, values: Values) -> None:
        """What was found in the end: numbers and words."""

    def end(self, status: str) -> None:
        """The run is "finished", "stopped" by a signal, or "failed"."""


class TensorBoard:
    packages: ClassVar[tuple[str, ...]] = ("tensorboard",)

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorboard"

    def begin(self, name: str, key: str, resumed: bool, config: Values) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # From step 0 on, this file replaces those that an earlier process left.
        self.writer = SummaryWriter(str(self.folder / name), purge_step=0)
        for part in hparams(dict(config), {}):
            self.writer.file_writer.add_summary(part)  # type: ignore[attr-defined]

    def metrics(self, step: int, values: Values) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def figure(self, name: str, file: Path) -> None:
        from matplotlib.image import imread

        self.writer.add_image(name, imread(file), dataformats="HWC")

    def summary(self, values: Values) -> None:
        for key, value in values.items():
            if isinstance(value, str):
                self.writer.add_text(f"summary/{key}", value)
            else:
                self.writer.add_scalar(f"summary/{key}", value, 0)

    def end(self, status: str) -> None:
        self.writer.close()


class WandB:
    packages: ClassVar[tuple[str, ...]] = ("wandb",)

    def __init__(self, folder: Path) -> None:
        import wandb

        self.wandb, self.folder = wandb, os.environ.get("WANDB_DIR") or folder
        wandb.setup(wandb.Settings(silent=True))
        # Without a login it would ask for one at the terminal.
        logged_in = "WANDB_MODE" in os.environ or wandb.login(prompt=False, verify=False)
        self.mode = None if logged_in else "offline"

    def begin(self, name: str, key: str, resumed: bool, config: Values) -> None:
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "modeconn",
            id=key,
            name=name,
            job_type=name.partition("/")[0],
            resume="allow" if resumed else None,
            dir=self.folder,
            mode=self.mode,
            config=dict(config),
            settings=self.wandb.Settings(
                silent=True, console="off", init_timeout=PATIENCE / 2, finish_timeout=PATIENCE / 2
            ),
        )

    def metrics(self, step: int, values: Values) -> None:
        self.run.log(dict(values), step=step)  # a step that it has already is left out there

    def figure(self, name: str, file: Path) -> None:
        self.run.log({name: self.wandb.Image(str(file))})

    def summary(self, values: Values) -> None:
        self.run.summary.update(dict(values))

    def end(self, status: str) -> None:
        self.run.finish(exit_code=int(status != "finished"))


class MLflow:
    packages: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy", "alembic")

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        logging.getLogger("alembic").setLevel(logging.ERROR)
        place = (folder / "mlflow").resolve()
        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not uri:
            place.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{place / 'mlflow.db'}", (place / "artifacts").as_uri()
        self.client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "modeconn"
        found = self.client.get_experiment_by_name(name)
        try:
            self.experiment = found.experiment_id if found else self.client.create_experiment(name, artifacts)
        except MlflowException:  # another process was quicker
            self.experiment = self.client.get_experiment_by_name(name).experiment_id

    def begin(self, name: str, key: str, resumed: bool, config: Values) -> None:
        from mlflow.entities import Param

        wanted = f"tags.`modeconn.key` = '{key}'"
        newest = ["attributes.start_time DESC"]
        found = self.client.search_runs([self.experiment], wanted, order_by=newest, max_results=1) if resumed else []
        self.sent: set[int] | None = None if found else set()
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, "RUNNING")
            return
        self.id = self.client.create_run(self.experiment, run_name=name, tags={"modeconn.key": key}).info.run_id
        params = [Param(k, str(v)) for k, v in config.items()]
        for i in range(0, len(params), 100):  # as many as a request may hold
            self.client.log_batch(self.id, params=params[i : i + 100])

    def metrics(self, step: int, values: Values) -> None:
        from mlflow.entities import Metric

        if self.sent is None:
            self.sent = {m.step for m in self.client.get_metric_history(self.id, next(iter(values)))}
        if step not in self.sent:
            now = int(time.time() * 1000)
            self.client.log_batch(self.id, metrics=[Metric(k, v, now, step) for k, v in values.items()])

    def figure(self, name: str, file: Path) -> None:
        self.client.log_artifact(self.id, str(file))

    def summary(self, values: Values) -> None:
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        numbers = [Metric(k, v, now, 0) for k, v in values.items() if not isinstance(v, str)]
        self.client.log_batch(self.id, numbers, tags=[RunTag(k, v) for k, v in values.items() if isinstance(v, str)])

    def end(self, status: str) -> None:
        self.client.set_terminated(self.id, {"finished": "FINISHED", "stopped": "KILLED"}.get(status, "FAILED"))


TRACKERS: dict[TrackerName, type[Tracker]] = {
    TrackerName.tensorboard: TensorBoard,
    TrackerName.wandb: WandB,
    TrackerName.mlflow: MLflow,
}


class Feed(threading.Thread):
    """Makes a tracker and hands it calls in turn, until it fails or there are no more."""

    def __init__(self, name: TrackerName, folder: Path, say: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self.tracker, self.folder, self.say, self.left = name, folder, say, False
        self.calls: SimpleQueue[tuple[str, tuple[Any, ...]] | None] = SimpleQueue()

    def run(self) -> None:
        try:
            tracker = TRACKERS[self.tracker](self.folder)
            for method, values in iter(self.calls.get, None):
                getattr(tracker, method)(*values)
        except Exception as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            if not self.left:
                self.say(f"tracker {self.tracker} failed ({said}); going on without it")


class Trackers:
    """Every tracker of a request, following one run at a time.

    Raises:
        UserError: one's package is not installed.
    """

    def __init__(self, names: Sequence[TrackerName], root: Path, say: Callable[[str], None]) -> None:
        self.names, self.folder, self.say = list(dict.fromkeys(names)), root.absolute() / ".tracking", say
        self.feeds: list[Feed] = []
        self.sent, self.patience = 0, PATIENCE
        for name in self.names:
            missing = [p for p in TRACKERS[name].packages if not installed(p)]
            if missing:
                raise UserError(f"runtime.trackers={name} needs {missing[0]}: pip install 'modeconn[{name}]'.")

    @contextmanager
    def following(self, run: Run, config: Values) -> Iterator[None]:
        """Follow a run that is about to be computed until the block ends."""
        if not self.feeds:
            self.feeds = [Feed(name, self.folder, self.say) for name in self.names]
            for feed in self.feeds:
                feed.start()
        place = hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:6]  # no two places share a key
        found, self.sent = Found(run.folder), 0
        key = f"{found.digest}-{found.version}-{place}"
        name = f"{found.stage}/{found.name}/{found.version}"
        self._tell("begin", name, key, run.status == "resume", flat(config))
        try:
            yield
        except Interrupted:
            self.patience = HURRIED
            self._tell("end", "stopped")
            raise
        except Exception:
            self._tell("end", "failed")
            raise
        self._tell("end", "finished")

    def rows(self, rows: Sequence[Values]) -> None:
        """Send those rows of a growing table that have not been sent; a row's step is its own or its index."""
        for i, row in enumerate(rows[self.sent :], self.sent):
            self._tell("metrics", int(row.get("step", i)), {k: v for k, v in row.items() if k != "step"})
        self.sent = len(rows)

    def figure(self, name: str, file: Path) -> None:
        self._tell("figure", name, file)

    def summary(self, values: Values) -> None:
        self._tell("summary", flat(values))

    def close(self) -> None:
        """Wait until everything is sent, but not for long."""
        until = time.monotonic() + self.patience
        for feed in self.feeds:
            feed.calls.put(None)
        for feed in self.feeds:
            feed.join(max(until - time.monotonic(), 0))
            if feed.is_alive():
                feed.left = True
                self.say(f"tracker {feed.tracker} is still sending; not waiting for it")
        self.feeds = []

    def _tell(self, method: str, *values: Any) -> None:
        for feed in self.feeds:
            feed.calls.put((method, values))


def installed(package: str) -> bool:
    """Whether a package can be imported; a mere folder of its name is none."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def flat(values: Values, prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted keys, as numbers and words."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return out
