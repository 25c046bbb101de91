"""What is printed: names as they are, streams that are closed or full, terminals that are narrow."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import call, no_pictures
from rich.text import Text

from modeconn_cli.front import console
from modeconn_cli.front.console import Sheet, Terminal, joined, styled
from modeconn_cli.front.streams import Outlet, outlets, unwritten, visible

HOSTILE = ["[red]a[/]", "[/]", "\\[x", "a\\", ":smile:", "[link=file:///x]y[/link]", "$x$", "<b>", "a\x1b[2Jb\u202ec"]


def shown(*objects: Any, width: int = 200) -> str:
    terminal = Terminal()
    terminal.file, terminal.width = io.StringIO(), width
    terminal.print(*objects)
    return terminal.file.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_is_shown_as_it_is(text: str) -> None:
    wanted = text.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert shown(text).rstrip("\n") == wanted
    assert shown(joined("a ", styled("bold", text), " b")).rstrip("\n") == f"a {wanted} b"
    sheet = Sheet(text, title=text)
    sheet.add_row(text)
    sheet.add_row(styled("red", text))
    assert [line.strip() for line in shown(sheet).splitlines()] == [wanted] * 4


def test_no_figure_is_cut_at_forty_columns() -> None:
    sheet = Sheet("", "segment", "Bezier curve, 1 bend", title="Barriers")
    sheet.add_row("above_line", Text("0.8939 [0.8754, 0.9117]"), "0.0000 [0.0000, 0.0010]")
    said = shown(sheet, width=40)
    assert max(map(len, said.splitlines())) <= 40
    assert "…" not in said
    assert all(figure in said for figure in ("0.8939", "0.9117]", "0.0010]"))


def test_what_acts_on_a_terminal_is_made_visible() -> None:
    assert visible("a b\n\tñ 漢") == "a b\n\tñ 漢"
    assert visible("\x00\x1b\x7f\x9b\u200b\u2028\udc80") == "\\x00\\x1b\\x7f\\x9b\\u200b\\u2028\\udc80"


class Full(io.StringIO):
    """A stream with room for a few characters."""

    def write(self, text: str) -> int:
        if len(self.getvalue()) + len(text) > 9:
            raise OSError(28, "No space left on device")
        return super().write(text)


class Narrow(io.StringIO):
    """A stream that knows ASCII alone."""

    def write(self, text: str) -> int:
        text.encode("ascii")
        return super().write(text)


def test_a_stream_that_fails_stops_nothing_and_is_said() -> None:
    full = Full()
    out = Outlet(full)
    assert [out.write(t) for t in ("four", "more than five", "x")] == [4, 14, 1]
    out.flush()
    assert full.getvalue() == "four"
    assert "No space left on device" in unwritten(out)
    closed = Outlet(io.StringIO())
    closed.stream.close()
    closed.write("a")
    assert "closed" in unwritten(closed)
    assert unwritten(Outlet(io.StringIO())) == ""
    narrow = Outlet(Narrow())
    narrow.write("±\udc80")
    assert narrow.stream.getvalue() == "\\xb1\\udc80"  # type: ignore[attr-defined]


def test_the_streams_are_as_before_afterwards() -> None:
    before = sys.stdout, sys.stderr
    with outlets() as (out, err):
        assert (sys.stdout, sys.stderr) == (out, err)
    assert (sys.stdout, sys.stderr) == before


SAYS = "import sys; from modeconn_cli import cli\nsys.argv = ['modeconn', 'completion', 'bash']\ncli.main()"


def says(shell: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, with its streams as a shell's redirections have them."""
    return subprocess.run(["bash", "-c", shell, "bash", sys.executable, SAYS], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        ('"$1" -c "$2" >&-', 0, ""),
        ('"$1" -c "$2" >&- 2>&- <&-', 0, ""),
        ('"$1" -c "$2" > /dev/full', 1, "modeconn: standard output cannot be written (No space left on device)"),
        ('"$1" -c "$2" > /dev/full 2> /dev/full', 1, ""),
        ('"$1" -c "$2" | true; exit ${PIPESTATUS[0]}', 0, ""),
    ],
)
def test_closed_and_full_outputs_end_quietly(redirected: str, code: int, said: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    answer = says(redirected)
    assert answer.returncode == code
    assert answer.stderr.startswith(said)
    assert len(answer.stderr.splitlines()) == bool(said)


def test_a_result_that_nobody_reads_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reporter, the results and the complaints all go to streams that fail from the first word on."""
    monkeypatch.chdir(tmp_path)

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "argv", ["modeconn", "interpolate", "dataset=two_spirals", "dataset.examples=60",
                        "architecture.width=2", "endpoints.epochs=1", "interpolation.points=2",
                        "interpolation.search_max=0", "interpolation.bootstrap=20"])  # fmt: skip
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", Gone())
    no_pictures(monkeypatch)
    from modeconn_cli import cli

    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert len(list(Path("outputs").glob("*/*/v1/DONE"))) == 4


def test_a_plot_of_names_with_dollars_and_letters_that_no_font_has_is_drawn(tmp_path: Path) -> None:
    import pandas as pd

    from modeconn_cli.report.plots import PathResult, save

    names = [f"{s}_{m}" for s in ("train", "test") for m in ("loss", "nll", "error")]
    table = pd.DataFrame({"t": [0.0, 0.5, 1.0], **{c: [1.0, 2.0, 1.0] for n in names for c in (n, f"{n}_se")}})
    for title in ("$x^", "a $\\frac$ b", "漢字 \U0001f600"):
        save([PathResult(title, table, {})], f"mlp on {title}", {"svg": tmp_path / "a.svg"})
        assert title in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_a_message_is_one_line_whatever_is_named_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    from modeconn_cli.front.session import complain

    complain("no file a\nb\x1b[2J")
    assert capsys.readouterr().err == "modeconn: no file a b\\x1b[2J\n"
    assert call("runs", "path", "a\nb\x1b").line.startswith("modeconn: no run 'a\\nb\\x1b'")


def test_the_consoles_take_no_markup() -> None:
    assert console.out.render_str("[bold]a[/]").plain == "[bold]a[/]"
    assert os.linesep in shown("a")


def test_ctrl_c_while_the_command_line_is_imported_is_one_line() -> None:
    script = (
        "import builtins, runpy\nown = builtins.__import__\n"
        "def interrupted(name, *rest, **more):\n"
        "    if name == 'modeconn_cli.cli': raise KeyboardInterrupt\n"
        "    return own(name, *rest, **more)\n"
        "builtins.__import__ = interrupted\nrunpy.run_module('modeconn_cli', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "modeconn: stopped by Ctrl-C before anything was begun.\n"
