"""Calling modeconn as a user does: inside this process, in processes of its own, and on tiny problems."""

from __future__ import annotations

import atexit
import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modeconn_cli import cli, settings
from modeconn_cli.front import compose as launch

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

QUICK = [
    "endpoints.epochs=1",
    "curve.epochs=1",
    "interpolation.points=3",
    "interpolation.search_max=0",
    "interpolation.bootstrap=20",
]
SPIRALS = ["dataset=two_spirals", "dataset.examples=200", "architecture.width=8", *QUICK]
DIGITS = ["dataset.train_size=200", "architecture.width=8", *QUICK]


@dataclass
class Answer:
    """What one command gave: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout; fails where there is anything else."""
        content = json.loads(self.out)
        assert isinstance(content, dict)
        return content

    @property
    def line(self) -> str:
        """The one line on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, f"{len(lines)} lines on stderr:\n{self.err}"
        return lines[0]


def call(*words: str) -> Answer:
    """Run ``modeconn WORDS`` in this process, up to its exit; an exception that escapes is a failure."""
    before, sys.argv = sys.argv, ["modeconn", *words]
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = before
    assert isinstance(code, int), f"exit code {code!r}"
    return Answer(code, out.getvalue(), err.getvalue())


def ok(*words: str) -> Answer:
    """:func:`call`, which must succeed."""
    answer = call(*words)
    assert answer.code == 0, answer.err
    return answer


def refused(*words: str, code: int = 2) -> str:
    """The message of a command that must be refused: one line on stderr, nothing on stdout."""
    answer = call(*words)
    assert answer.code == code, answer
    assert answer.out == ""
    line = answer.line
    assert line.startswith("modeconn: ")
    return line.removeprefix("modeconn: ")


def compose(*overrides: str, config_dir: str | None = None) -> settings.Config:
    """The configuration that overrides make, through the same bridge as the commands."""
    (job,) = launch.compose(overrides, config_dir=config_dir)
    return job.config


def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, for tests that make many runs and look at none of their pictures."""
    monkeypatch.setattr("modeconn_cli.stages.plot.write_figure", draw_nothing)
    monkeypatch.setattr("modeconn_cli.stages.kept.draw", lambda file, *about: file.write_bytes(b"none"))


def draw_nothing(folders: Sequence[Path], files: Mapping[str, Path]) -> None:
    """In place of the picture of paths."""
    for file in files.values():
        file.write_bytes(b"none")


def folders(answer: Answer) -> dict[str, Path]:
    """The directories of a --json answer by stage; of several, the last."""
    return {row["stage"]: Path(row["directory"]) for row in answer.json["stages"]}


def statuses(answer: Answer) -> list[tuple[str, str]]:
    """Stage and status of every row of a --json answer."""
    return [(row["stage"], row["status"]) for row in answer.json["stages"]]


def tree(root: Path) -> dict[str, bytes | None]:
    """Every file's content and every directory (None) under a place, by relative path; but what Python compiles."""
    found = [p for p in sorted(root.rglob("*")) if "__pycache__" not in p.parts]
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in found}


RESULTS = ("path.csv", "summary.json", "metrics.csv", "plot.png")


def results(root: Path) -> dict[str, bytes]:
    """The bytes of every result and every checkpoint under an output directory, by relative path."""
    wanted = [p for p in sorted(root.rglob("*")) if p.name in RESULTS or p.suffix == ".safetensors"]
    return {str(p.relative_to(root)): p.read_bytes() for p in wanted}


def versions(root: Path) -> list[Path]:
    """Every run directory under an output directory."""
    return [p for p in sorted(root.glob("*/*/v*")) if re.fullmatch(r"v\d+", p.name)]


def unfinished(root: Path) -> list[Path]:
    """Run directories without DONE."""
    return [p for p in versions(root) if not (p / "DONE").exists()]


def leftovers(root: Path) -> list[Path]:
    """Half-written files."""
    return sorted(root.rglob("*.tmp"))


def write_images(file: Path, n: int = 20, side: int = 32, classes: int = 3) -> Path:
    """A data set of n noisy colour images a split, whose class shows in their brightness."""
    random = np.random.default_rng(0)
    labels = np.arange(n) % classes
    images = [
        (random.integers(0, 120, (n, 3, side, side)) + 60 * labels[:, None, None, None]).astype(np.uint8)
        for _ in range(2)
    ]
    np.savez(file, x_train=images[0], y_train=labels, x_test=images[1], y_test=labels)
    return file


# ------------------------------------------------------------------------------------ processes of their own

_SERVER = """
import contextlib, io, json, os, sys, traceback
import hydra, matplotlib.backends.backend_agg, matplotlib.backends.backend_svg, scipy.optimize
import modeconn_cli.front.compose, modeconn_cli.work.plan, modeconn_cli.front.terminal, modeconn_cli.stages.plot
from modeconn_cli import cli
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):  # Hydra's first call is its slowest
    sys.argv = ["modeconn", "fit-curve", "dataset=two_spirals", "--dry-run"]
    cli.main()
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    code = 70
    try:
        os.chdir(job["cwd"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for fd, name in ((1, job["out"]), (2, job["err"])):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
        if job["file_limit"]:
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit"], job["file_limit"]))
        sys.argv = ["modeconn", *job["words"]]
        if not job["pictures"]:
            modeconn_cli.stages.plot.write_figure = lambda _, files: [f.write_bytes(b"none") for f in files.values()]
        if job["env"]:
            os.environ.update(job["env"])
            cli.app = cli.make_app()  # which reads what the environment brings
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
"""


@dataclass
class Process:
    """One modeconn that runs beside the test."""

    pid: int
    server: Processes
    out: Path
    err: Path

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @property
    def running(self) -> bool:
        """Whether it has not ended; an ended one is a zombie until it is waited for."""
        return "State:\tZ" not in Path(f"/proc/{self.pid}/status").read_text()

    def wait(self) -> Answer:
        """Its end; the code of a killed process is minus the signal's number."""
        code = self.server.ask({"wait": self.pid})
        return Answer(code, self.out.read_text(), self.err.read_text())


class Processes:
    """Starts modeconn in real processes, forked from one that has done the slow imports already."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def ask(self, job: Mapping[str, Any]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(job), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def start(
        self,
        words: Sequence[str],
        cwd: Path,
        file_limit: int = 0,
        env: Mapping[str, str] | None = None,
        pictures: bool = False,
    ) -> Process:
        """``modeconn WORDS`` in a directory.

        Args:
            file_limit: bytes that no file may grow beyond.
            env: what is added to the environment.
            pictures: whether paths are drawn; most tests look at none.
        """
        self.count += 1
        out, err = (self.folder / f"{self.count}.{name}" for name in ("out", "err"))
        job = {
            "words": list(words),
            "cwd": str(cwd),
            "out": str(out),
            "err": str(err),
            "file_limit": file_limit,
            "env": dict(env or {}),
            "pictures": pictures,
        }
        return Process(self.ask(job), self, out, err)

    def run(self, words: Sequence[str], cwd: Path, **how: Any) -> Answer:
        """:meth:`start`, and its end."""
        return self.start(words, cwd, **how).wait()

    def close(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


@functools.cache
def processes() -> Processes:
    """The one server of this test process."""
    folder = tempfile.TemporaryDirectory()
    server = Processes(Path(folder.name))

    def close() -> None:
        server.close()
        folder.cleanup()

    atexit.register(close)
    return server
