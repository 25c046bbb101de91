# long: eight kinds of trials in one file, so that one command runs them
"""What strangers, disks and signals do to modeconn, again and again; everything that is wrong afterwards is printed.

    python scripts/torture.py                      # all of it, in 5 to 8 minutes on two cores
    python scripts/torture.py --only damage reads  # some of it
    python scripts/torture.py --kills 40 --inputs 1000 --reads 10000

Wrong is: a traceback; a result of other bytes than those of an undisturbed run; damage that goes unnoticed; a refusal
of more than one line; a half-written file that stays; a name that acts in a page. The last line has the figures, and
the exit code is 1 where anything was wrong. It runs before a release and not in the gate.
"""

from __future__ import annotations

import argparse
import contextlib
import html.parser
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))

JOB = [
    "fit-curve", "dataset=two_spirals", "dataset.examples=300", "architecture.width=8", "endpoints.epochs=20",
    "curve.epochs=20", "interpolation.points=7", "interpolation.search_max=2", "interpolation.bootstrap=50",
    "runtime.save_every=0.05", "-q",
]  # fmt: skip
FAULT = "This is a fault of modeconn's"  # in the line of an exception that nobody foresaw
RESULTS = ("path.csv", "summary.json", "metrics.csv")


class Ledger:
    """What was tried, and what was wrong with it."""

    def __init__(self) -> None:
        self.tried: dict[str, int] = {}
        self.wrong: list[str] = []

    def tell(self, kind: str, fault: str | None) -> None:
        """Count one trial; ``fault``: what was wrong, if anything."""
        self.tried[kind] = self.tried.get(kind, 0) + 1
        if fault:
            self.wrong.append(f"{kind}: {fault}")
            print(f"WRONG  {kind}: {fault}", flush=True)


def results(root: Path) -> dict[str, bytes]:
    """Every result's bytes, by place."""
    wanted = [p for p in root.rglob("*") if p.name in RESULTS or p.name.endswith("checkpoint.safetensors")]
    return {str(p.relative_to(root)): p.read_bytes() for p in wanted}


def differing(found: dict[str, bytes], whole: dict[str, bytes]) -> str | None:
    """The first result that is not as it is undisturbed."""
    names = sorted({*found} ^ {*whole}) or [n for n in whole if found[n] != whole[n]]
    return f"{names[0]} is not as in an undisturbed run" if names else None


def call(*words: str) -> tuple[int, str, str]:
    """``modeconn WORDS`` in this process: exit code, stdout, stderr; a traceback is code 70."""
    from cli_helpers import call as run

    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        try:
            answer = run(*words)
        except BaseException as error:  # whatever escapes is what is looked for
            return 70, "", f"{type(error).__name__}: {error}"
    return answer.code, answer.out, answer.err


def refusal(words: list[str], code: int, err: str) -> str | None:
    """What is wrong with how a command ended that may be refused or done."""
    said = f"modeconn {' '.join(words)[:150]!r}"
    if code not in (0, 1, 2) or FAULT in err:
        return f"{said} ended with {code}: {err[:200]}"
    lines = [line for line in err.splitlines() if line.startswith("modeconn: ")]
    if code and (len(lines) != 1 or "Traceback" in err):
        return f"{said} was refused with {len(lines)} lines: {err[:200]}"
    return None


@contextlib.contextmanager
def elsewhere(place: Path) -> Iterator[None]:
    before = Path.cwd()
    place.mkdir(parents=True, exist_ok=True)
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)


# ------------------------------------------------------------------------------------------------ kills and disks


def kills(ledger: Ledger, draws: random.Random, times: int, place: Path, whole: dict[str, bytes]) -> None:
    """kill -9 at a random change of the output directory, until the run gets through; then the results are the same."""
    from cli_helpers import processes

    place.mkdir()
    done, rounds = 0, 0
    while done < times:
        rounds += 1
        root = place / f"round{rounds}"
        root.mkdir()
        for _ in range(times - done):
            process = processes().start(JOB, root)
            left = draws.randrange(1, 60)
            before: set[tuple[str, int]] = set()
            while process.running and left:
                now = _stamps(root)
                left -= now != before
                before = now
                time.sleep(0.002)
            if not process.running:
                process.wait()
                break
            process.send(signal.SIGKILL)
            process.wait()
            done += 1
            ledger.tell("kill -9", None)
        answer = processes().run(JOB, root)
        fault = differing(results(root / "outputs"), whole) if answer.code == 0 else answer.err[:200]
        ledger.tell("results after kills", fault or _leftovers(root))


def _stamps(root: Path) -> set[tuple[str, int]]:
    found = set()
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):
            found.add((str(path), path.stat().st_mtime_ns))
    return found


def _leftovers(root: Path) -> str | None:
    left = [*root.rglob(".*.tmp"), *root.rglob(".in-use/*")]
    # What a killed process left stays until another one works there, which has ended by now.
    return f"{left[0]} is left" if [p for p in left if p.suffix == ".tmp"] else None


def disks(ledger: Ledger, draws: random.Random, times: int, place: Path, whole: dict[str, bytes]) -> None:
    """A disk that is full at some file, by the kernel's own limit: one line, and with room again the same results."""
    from cli_helpers import processes

    place.mkdir()
    for number in range(times):
        root = place / str(number)
        root.mkdir()
        answer = processes().run(JOB, root, file_limit=int(10 ** draws.uniform(1.5, 4.5)))
        fault = refusal(JOB, answer.code, answer.err)
        if answer.code and "cannot write" not in answer.err:
            fault = f"a full disk was said as {answer.err[:200]!r}"
        ledger.tell("full disk", fault or _leftovers(root))
    answer = processes().run(JOB, root)
    fault = differing(results(root / "outputs"), whole) if answer.code == 0 else answer.err[:200]
    ledger.tell("results with room again", fault)


def outputs(ledger: Ledger, place: Path) -> None:
    """stdout and stderr that are closed, full, or read by somebody who leaves."""
    place.mkdir()
    command = f"{sys.executable} -m modeconn_cli {' '.join(JOB[:-1])} runtime.output_dir="
    shapes = {">&-": 0, ">&- 2>&-": 0, ">/dev/full": 1, ">/dev/full 2>/dev/full": 1, "2>&1 | head -c 1": 0, "| true": 0}
    for number, (how, code) in enumerate(shapes.items()):
        line = f"{command}{place / str(number)} {how}"
        line += "; exit ${PIPESTATUS[0]}" if "|" in how else ""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, check=False)
        fault = None
        if ended.returncode != code or "Traceback" in ended.stderr or "Exception ignored" in ended.stderr:
            fault = f"{how} ended with {ended.returncode}: {ended.stderr[:200]}"
        elif len([*(place / str(number)).glob("*/*/v1/DONE")]) != 6:
            fault = f"{how} stopped the work"
        ledger.tell("closed or full output", fault)


# ---------------------------------------------------------------------------------------------------------- damage


def harmed(content: bytes, draws: random.Random) -> bytes:
    """A file's content after something happened to it."""
    half = draws.randrange(len(content)) if content else 0
    kind = draws.choice(["bit", "bit", "cut", "zeros", "garbage", "empty", "list", "longer"])
    if kind == "bit" and content:
        return content[:half] + bytes([content[half] ^ (1 << draws.randrange(8))]) + content[half + 1 :]
    if kind == "zeros" and content:
        return bytes(len(content))
    return {
        "cut": content[:half],
        "garbage": draws.randbytes(len(content) + 1),
        "list": b"[]",
        "longer": content + b"x",
    }.get(kind, b"")


def damage(ledger: Ledger, draws: random.Random, times: int, place: Path, whole: Path) -> None:
    """Harm to every file of finished runs: found by the request that builds on it, and by every command that looks."""
    files = sorted(p for p in (whole / "outputs").rglob("*") if p.is_file() and p.name not in ("log.txt", ".lock"))
    for number in range(times):
        root = place / str(number)
        shutil.copytree(whole, root)
        file = root / files[number % len(files)].relative_to(whole)
        before = file.read_bytes()
        after = harmed(before, draws)
        file.write_bytes(after)
        harmless = after == before or file.name == "DONE"  # whose date may be another
        what = f"{file.parent.parent.parent.name}/{file.name} ({len(before)} to {len(after)} bytes)"
        with elsewhere(root):
            code, out, err = call(*JOB, "--dry-run", "--json")
            noticed = code == 0 and '"status": "run"' in out
            ledger.tell("damage", None if noticed or harmless else f"{what} was not noticed")
            for words in (
                ["runs", "list"],
                ["runs", "gc", "--dry-run"],
                ["gather"],
                ["report"],
                ["runs", "show", str(file.parent)],
            ):
                code, _, err = call(*words)
                bad = code == 70 or FAULT in err or "Traceback" in err or (code and words[0] == "runs")
                ledger.tell("looking at damage", f"{words} with {what}: {code} {err[:200]}" if bad else None)
        shutil.rmtree(root)


def states(ledger: Ledger, draws: random.Random, times: int, place: Path) -> None:
    """Flipped bits in a saved state: begun again, or harmless."""
    import torch

    from modeconn_cli.runs.directory import Run
    from modeconn_cli.settings import Config
    from modeconn_cli.work.context import Context
    from modeconn_cli.work.options import Runtime
    from modeconn_cli.work.reporting import Silent
    from modeconn_cli.work.saving import Saver

    place.mkdir()
    saver = Saver(Run(place, "run", ""), Context(Config(runtime=Runtime(output_dir=str(place))), Silent()))
    tensors = {"trained": [torch.randn(300)], "rest": {"a": torch.randn(20)}, "step": 7, "log": torch.randn(4, 5)}
    saver.save(tensors)
    content = (place / "state.pt").read_bytes()
    for _ in range(times):
        (place / "state.pt").write_bytes(harmed(content, draws))
        try:
            found = saver.begun()
        except BaseException as error:
            ledger.tell("damaged state", f"{type(error).__name__}: {error}")
            continue
        same = found is None or all(_equal(found[k], v) for k, v in tensors.items())
        ledger.tell("damaged state", None if same else "was taken")


def _equal(a: Any, b: Any) -> bool:
    import torch

    if isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(b, dict):
        return all(_equal(a[k], v) for k, v in b.items())
    return all(_equal(x, y) for x, y in zip(a, b, strict=True)) if isinstance(b, list) else bool(a == b)


def reads(ledger: Ledger, draws: random.Random, times: int, place: Path, whole: Path) -> None:
    """Files that people give, after something happened to them: read, or one line."""
    import numpy as np
    import torch
    import yaml
    from safetensors.torch import save_file

    from modeconn_cli.errors import UserError
    from modeconn_cli.front.files import _read
    from modeconn_cli.networks import read_metadata, read_state
    from modeconn_cli.runs.directory import damage_of, read_json

    place.mkdir()
    state = {"a.weight": torch.randn(4, 3), "a.bias": torch.randn(4)}
    save_file(state, place / "a.safetensors")
    torch.save(state, place / "a.pt")
    torch.save({"state_dict": state, "epoch": 3}, place / "b.pt", _use_new_zipfile_serialization=False)
    (place / "c.yaml").write_text(
        yaml.safe_dump({"curve": {"bends": 3}, "defaults": [{"override /dataset": "digits"}]})
    )
    (place / "d.json").write_text('{"a": [1, 2, {"b": null}]}')
    np.savez(place / "e.npz", x_train=np.ones((6, 2)), y_train=np.arange(6) % 2, x_test=np.ones((2, 2)), y_test=[0, 1])
    finished = next(iter((whole / "outputs").glob("interpolate/*/v1")))
    readers: dict[str, Callable[[Path], Any]] = {
        "a.safetensors": lambda f: (read_metadata(f), read_state(f)),
        "a.pt": read_state,
        "b.pt": read_state,
        "c.yaml": _read,
        "d.json": read_json,
    }
    contents = {name: (place / name).read_bytes() for name in readers}
    for number in range(times):
        name = sorted(readers)[number % len(readers)]
        (place / name).write_bytes(harmed(contents[name], draws))
        fault = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                readers[name](place / name)
        except UserError as error:
            fault = None if "\n" not in str(error) else f"{name}: more than a line: {error}"
        except BaseException as error:
            fault = f"{name}: {type(error).__name__}: {str(error)[:200]}"
        ledger.tell("fuzzed read", fault)
    ledger.tell("fuzzed read", None if damage_of(finished) == "" else "a whole run became damaged")


# ------------------------------------------------------------------------------------------------- inputs and names

VALUES = [
    "", "null", "-1", "0", "1e300", "-1e300", "nan", "inf", "1e-300", "[]", "[1,2,3]", "{}", "{a:1}", "true", "x", "''",
    "'", "[", "${nope}", "${oc.env:NOWHERE}", "10000000000000", "1.5", "a=b", "\u202e", "\x1b[2J", "/dev/null", "..",
    "%s", "$x",
]  # fmt: skip


def inputs(ledger: Ledger, draws: random.Random, times: int, place: Path) -> None:
    """Overrides and arguments that nobody means: done or refused in one line."""
    from modeconn_cli.front.overrides import all_keys

    keys = [k for k in all_keys([]) if k != "experiment"]
    with elsewhere(place):
        for number in range(times):
            if number % 10 == 0:
                words = [draws.choice(["runs", "gather", "export", "report", "connect", "plot", "x"])]
                words += draws.sample(
                    ["show", "gc", "--keep", "a@t=2", "a#0", "-o", "x.txt", "--by", "[/]", "--", "\x1b", "v²"], 3
                )
            else:
                key = draws.choice(keys)
                key = draws.choice([key, key, key, key[:-1], f"~{key}", f"+{key}", f"++{key}", key.upper(), f"{key}@x"])
                words = [
                    "fit-curve",
                    "dataset=two_spirals",
                    "dataset.examples=60",
                    "--dry-run",
                    f"{key}={draws.choice(VALUES)}",
                ]
            code, _, err = call(*words)
            ledger.tell("bad input", refusal(words, code, err))


class Page(html.parser.HTMLParser):
    """What of a page acts: elements and attributes that none of modeconn's has but by a name that was not escaped."""

    def __init__(self) -> None:
        super().__init__()
        self.acting: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("img", "iframe", "object", "marquee") or any(k.startswith("on") for k, _ in attrs):
            self.acting.append(f"<{tag} {attrs}>")


NAMES = [
    "<img src=x onerror=alert(1)>", "\"><marquee>x</marquee>", "</script><marquee>",
    "$x^", "$\\frac$", "[red]a[/]", "[/]", "a|b", "=1+1",
    "&lt;b&gt;", "\\", "{}", "%s", "\u202eabc", "漢字", "\U0001f600", "a\tb", "'; --", "a" * 150, "\x1b[2J",
]  # fmt: skip


def names(ledger: Ledger, place: Path, browser: str | None) -> None:
    """Hostile names of data sets and architectures, in pages, pictures, tables and terminals."""
    with elsewhere(place):
        small = ["dataset=two_spirals", "dataset.examples=60", "architecture.width=2", "endpoints.epochs=1"]
        quick = ["interpolate", *small, "interpolation.points=2", "interpolation.search_max=0", "-q"]
        for number, name in enumerate(NAMES):
            quoted = "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"
            words = [*quick, f"dataset.name={quoted}", f"architecture.name={quoted}", f"seed={number}"]
            code, out, err = call(*words)
            acts = "\x1b" in out + err or "\u202e" in out + err
            ledger.tell(
                "hostile name", f"{name!r}: {err[:200]}" if code else f"{name!r} acts on a terminal" if acts else None
            )
        formats = [["gather", "--format", form] for form in ("table", "csv", "latex", "markdown")]
        for words in (["report"], ["runs", "list"], *formats):
            code, out, err = call(*words)
            ledger.tell("hostile names together", f"{words}: {err[:200]}" if code else None)
        page = Path("outputs/report.html").read_text(encoding="utf-8")
        parser = Page()
        parser.feed(page)
        ledger.tell("page, by a parser", f"{parser.acting[0]} in the page" if parser.acting else None)
        if browser:
            dumped = subprocess.run(
                [browser, "--headless", "--no-sandbox", "--dump-dom", str(Path("outputs/report.html").resolve())],
                capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            parser = Page()
            parser.feed(dumped.stdout)
            ledger.tell("page, in a browser", f"{parser.acting[0]} in the page" if parser.acting else None)


# ------------------------------------------------------------------------------------------------------------ whole

KINDS = ("kills", "disks", "outputs", "damage", "states", "reads", "inputs", "names")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    sizes = {"kills": 15, "disks": 12, "damage": 60, "states": 500, "reads": 2000, "inputs": 300}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from cli_helpers import processes

    ledger, started = Ledger(), time.monotonic()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        place, whole = Path(scratch), Path(scratch) / "whole"
        if {"kills", "disks", "damage", "reads"} & {*asked.only}:
            whole.mkdir()
            assert processes().run(JOB, whole).code == 0
        undisturbed = results(whole / "outputs")
        trials: dict[str, Callable[[random.Random], None]] = {
            "kills": lambda d: kills(ledger, d, asked.kills, place / "kills", undisturbed),
            "disks": lambda d: disks(ledger, d, asked.disks, place / "disks", undisturbed),
            "outputs": lambda d: outputs(ledger, place / "outputs"),
            "damage": lambda d: damage(ledger, d, asked.damage, place / "damage", whole),
            "states": lambda d: states(ledger, d, asked.states, place / "states"),
            "reads": lambda d: reads(ledger, d, asked.reads, place / "reads", whole),
            "inputs": lambda d: inputs(ledger, d, asked.inputs, place / "inputs"),
            "names": lambda d: names(ledger, place / "names", browser),
        }
        for kind in asked.only:
            begun = time.monotonic()
            with contextlib.redirect_stderr(io.StringIO()):  # warnings of libraries
                trials[kind](random.Random(f"{asked.seed} {kind}"))
            print(f"{kind}: {time.monotonic() - begun:.0f} s", flush=True)
    said = ", ".join(f"{n} {kind}" for kind, n in ledger.tried.items())
    page = "" if browser or "names" not in asked.only else "; no browser here, so the page was read by an HTML parser"
    print(f"{said}: {len(ledger.wrong)} wrong ({time.monotonic() - started:.0f} s{page})")
    return bool(ledger.wrong)


if __name__ == "__main__":
    sys.exit(main())
