"""One invocation of a pipeline command: its jobs checked, carried out here or elsewhere, and what they gave printed."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from modeconn_cli.errors import Interrupted, RunFailed, UserError
from modeconn_cli.failures import unforeseen
from modeconn_cli.front.streams import visible
from modeconn_cli.runs.directory import require_writable, writable

if TYPE_CHECKING:
    from modeconn_cli.front.compose import Job
    from modeconn_cli.work.plan import Plan


@dataclass
class Session:
    """One invocation of a pipeline command: what its jobs gave, and how to print it."""

    command: str
    dry_run: bool
    as_json: bool
    quiet: bool
    sweep: bool
    jobs: list[dict[str, Any]] = field(default_factory=list)
    code: int = 0
    train_examples: int = 0  # of the last job's data set
    prints: bool = True  # results, or leaves them to its caller
    arguments: dict[str, Any] = field(default_factory=dict)  # of the command's own
    several: bool = False  # pairs, whose means are shown

    def run(self, jobs: Sequence[Job], scatter: Callable[[Path], str | None] | None = None) -> None:
        """Check every job before the first one starts; then carry them out, in turn or by ``scatter``.

        A job that fails while it runs does not stop the others. ``scatter`` runs them all elsewhere, leaving a file
        for each under the directory that it is given.
        """
        self.jobs = [{"overrides": job.overrides} for job in jobs]
        if len(jobs) == 1 and not self.dry_run and scatter is None:  # making its plan is its check: once is enough
            self._attempt(self.jobs[0], jobs[0], self._carry_out)
            return
        for entry, job in zip(self.jobs, jobs, strict=True):
            self._attempt(entry, job, self._check)
        if self.code or self.dry_run:
            return
        if scatter is not None:
            self._scatter(jobs, scatter)
            return
        for entry, job in zip(self.jobs, jobs, strict=True):
            self._attempt(entry, job, self._carry_out)

    def _scatter(self, jobs: Sequence[Job], scatter: Callable[[Path], str | None]) -> None:
        """Have the jobs run elsewhere, then read what they found from their directories."""
        from modeconn_cli.front.compose import JOB_FILE
        from modeconn_cli.front.console import watching

        place = Path(jobs[0].config.runtime.output_dir) / "sweeps"
        with writable(place):
            place.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=place))
        with watching(folder, JOB_FILE, [j.overrides for j in jobs], self.quiet or self.as_json):
            complaint = scatter(folder)
        outcomes = {o["job"]: o for o in (json.loads(f.read_text()) for f in folder.rglob(JOB_FILE))}
        for number, (entry, job) in enumerate(zip(self.jobs, jobs, strict=True)):
            outcome = outcomes.get(number)
            if outcome is None:
                self.fail(entry, f"job {number + 1} ended without a word{f': {complaint}' if complaint else ''}.", 1)
            elif outcome["error"]:
                entry["stages"] = outcome["stages"]
                self.fail(entry, outcome["error"], outcome["code"])
            else:
                entry["stages"] = outcome["stages"]
                self._attempt(entry, job, self._read)
        if self.code:
            complain(f"what the launcher left is in {folder}.")
        else:
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):  # another sweep is at work
                place.rmdir()

    def _means(self) -> list[dict[str, Any]]:
        """Means over the seeds of a sweep, from the directories of its measured paths."""
        from modeconn_cli.report.gather import gather
        from modeconn_cli.runs.find import Found

        rows = [row for job in self.jobs for row in job.get("stages", [])]
        finished = {row["directory"] for row in rows if row["status"] not in ("failed", "skipped")}
        paths = [run for run in map(Found, map(Path, sorted(finished))) if run.kind == "path"]
        return gather(paths, [], [], []) if paths else []

    def _read(self, entry: dict[str, Any], plan: Plan) -> None:
        """What a plan's finished stages found."""
        entry |= plan.findings()
        if any(row["status"] in ("failed", "skipped") for row in entry["stages"]):
            self.code = 1

    def _check(self, entry: dict[str, Any], plan: Plan) -> None:
        from modeconn_cli.front.console import aside
        from modeconn_cli.front.terminal import show_plan

        if self.dry_run:
            with aside(), writable(plan.context.root):
                entry |= {"stages": plan.rows(), "parameters": plan.context.parameters}
            if any(row["status"] != "cached" for row in entry["stages"]):
                require_writable(plan.context.root)
            if not self.as_json:
                show_plan(entry["stages"], [s.doing for s in plan.stages], entry["parameters"])

    def _carry_out(self, entry: dict[str, Any], plan: Plan) -> None:
        from modeconn_cli.front.console import aside, err, joined, styled
        from modeconn_cli.front.terminal import show_remark, show_result, show_run

        if self.sweep and not (self.quiet or self.as_json):
            err.print(joined(styled("bold", f"job {self.jobs.index(entry) + 1}"), f" {' '.join(entry['overrides'])}"))
        entry["stages"] = []  # filled as they are done, so that an interruption can say how far it came
        with aside():
            plan.execute(entry["stages"])
            self._read(entry, plan)
        if self.prints and not self.as_json and not self.sweep:
            show_run(entry, self._means()) if plan.keep_going else show_result(entry)
            for remark in entry["remarks"]:
                show_remark(remark)

    def _attempt(self, entry: dict[str, Any], job: Job, act: Callable[[dict[str, Any], Plan], None]) -> None:
        """Make a job's plan and act on it; what goes wrong is said in one line and kept in its entry."""
        from modeconn_cli.front.console import TerminalReporter, aside
        from modeconn_cli.work.machine import keep_freed_memory
        from modeconn_cli.work.plan import make_plan

        reporter = TerminalReporter(self.quiet or self.as_json)
        try:
            with aside():
                plan = make_plan(self.command, job.config, reporter, **self.arguments)
                data = plan.context.data_on_host
            if plan.context.device.type == "cpu":
                keep_freed_memory()  # this process is the command's alone
            self.several = self.sweep or plan.keep_going
            self.train_examples = len(data.train)
            act(entry, plan)
        except (UserError, RunFailed) as error:
            reporter.close()
            self.fail(entry, str(error), 2 if isinstance(error, UserError) else 1)
        except Exception as error:
            reporter.close()
            self.fail(entry, str(unforeseen(error, Path(job.config.runtime.output_dir))), 1)
        finally:
            reporter.close()

    def guarded(self, work: Callable[[], None]) -> None:
        """Do the work; a refusal of the whole request, or a stop, becomes its line and its exit code."""
        try:
            work()
        except UserError as error:
            self.jobs = [{}]
            self.fail(self.jobs[0], str(error), 2)
        except KeyboardInterrupt as stop:
            signum = stop.signum if isinstance(stop, Interrupted) else 2
            how = "Ctrl-C" if signum == 2 else f"signal {signum}"
            kept = "what is finished is kept, training and matching as far as they got"
            complain(f"stopped by {how}; {kept}, and the same command goes on from there.")
            self.code = 128 + signum
            unfinished = next((job for job in self.jobs if "endpoints" not in job and "error" not in job), None)
            if unfinished is not None:
                unfinished["error"] = f"stopped by {how}"

    def fail(self, entry: dict[str, Any], message: str, code: int) -> None:
        entry["error"] = message
        self.code = 1 if 1 in (self.code, code) else code
        complain(message)

    def close(self) -> NoReturn:
        """Print what is left to print and exit."""
        if self.as_json:
            jobs = {"jobs": self.jobs} if self.sweep else (self.jobs[0] if self.jobs else {})
            several = (self.sweep or self.several) and not self.dry_run
            means = {"gathered": without_nan(self._means())} if several else {}
            print_json({"command": self.command, "exit_code": self.code, **jobs, **means})
        elif self.sweep and not self.dry_run and any("stages" in job for job in self.jobs):
            from modeconn_cli.front.terminal import show_remark, show_sweep

            show_sweep(self.jobs, self._means())
            for remark in dict.fromkeys(r for job in self.jobs for r in job.get("remarks", [])):
                show_remark(remark)
        sys.exit(self.code)


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def without_nan(value: Any) -> Any:
    """Numbers that are not there as null, which JSON has a word for."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and value != value else value


def complain(message: str) -> None:
    """One line on stderr."""
    print(f"modeconn: {visible(' '.join(message.split(chr(10))))}", file=sys.stderr)
