"""connect: whether two checkpoints of a person's own are joined."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from modeconn_cli.errors import UserError
from modeconn_cli.front.flags import AsJson, ConfigDir, DryRun, Force, Overrides, OwnOutputDir, Quiet
from modeconn_cli.front.pipeline import placed
from modeconn_cli.front.session import Session, print_json


def connect(
    first: Annotated[str, typer.Argument(metavar="A", help="A checkpoint, .pt or .safetensors, or RUN, RUN@t=0.3 ...")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another, of the same architecture.")],
    model: Annotated[
        str, typer.Option("--model", help="file.py:Net, package.module:build, or an architecture's name.")
    ],
    data: Annotated[str, typer.Option("--data", help="A .npz or .safetensors file of arrays, or a data set's name.")],
    overrides: Overrides = None,
    curve: Annotated[
        bool | None,
        typer.Option(
            "--curve/--no-curve",
            help="Fit a curve, or do not. Neither: where no straight line joins them.",
            show_default=False,
        ),
    ] = None,
    config_dir: ConfigDir = None,
    output_dir: OwnOutputDir = None,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Are these two networks connected? By the straight line, or after alignment, or else by a curve.

    modeconn connect a.pt b.pt --model nets.py:Net --data data.npz. Arrays are taken as they are (bytes as 0 to 1);
    dataset.mean=null dataset.std=null normalises them. Weight decay is taken as 0, so the loss is plain cross-entropy;
    endpoints.weight_decay=... and curve.weight_decay=... say otherwise.
    """
    from modeconn_cli.front.terminal import show_remark, show_result
    from modeconn_cli.report.tables import connection
    from modeconn_cli.results import Metrics
    from modeconn_cli.stages.connect import NAME

    more = [*(overrides or []), *placed(output_dir, overrides or [])]
    given = settings_for(first, second, model, data, more, config_dir)
    if dry_run:
        show_what_would_run(given, curve, config_dir, as_json)
    if force:
        given.append("runtime.force=true")
    last, failed = measure(given, curve, as_json, quiet, config_dir)
    entry = last.jobs[0]
    if last.code:
        if as_json:
            print_json({"command": NAME, "exit_code": last.code, **entry})
        sys.exit(last.code)
    first, second = (str(e["from"]) for e in entry["endpoints"][:2])  # as they are told apart
    answer, sentence = connection(entry["verdicts"], first, second, Metrics.of(entry))
    if as_json:
        verdict = {"answer": answer, "sentence": sentence}
        print_json({"command": NAME, "exit_code": failed, "verdict": verdict, **entry})
    else:
        show_result(entry)
        print(f"\n{sentence}")
        for remark in entry["remarks"]:
            show_remark(remark)
    sys.exit(failed)


def show_what_would_run(given: Sequence[str], curve: bool | None, config_dir: str | None, as_json: bool) -> NoReturn:
    """The plan of everything that may be tried, and the end."""
    from modeconn_cli.front.compose import compose
    from modeconn_cli.stages.connect import NAME, epochs_of_a_first_answer

    tried = {"aligned": True, "curve": curve is not False}
    looked = Session(NAME, True, True, True, sweep=False)  # which finds how many examples there are
    looked.guarded(lambda: looked.run(compose(given, config_dir=config_dir)))
    planned = Session(NAME, True, as_json, True, sweep=False, arguments=tried)
    if looked.code:
        planned.jobs, planned.code = looked.jobs, looked.code
        planned.close()
    (job,) = compose(given, config_dir=config_dir)
    epochs = f"curve.epochs={epochs_of_a_first_answer(job.config.curve, looked.train_examples)}"
    planned.guarded(lambda: planned.run(compose([epochs, *given], config_dir=config_dir)))
    planned.close()


def settings_for(
    first: str, second: str, model: str, data: str, overrides: Sequence[str], config_dir: str | None = None
) -> list[str]:
    """The overrides behind a command line of connect.

    Raises:
        UserError: the model is neither an architecture nor the name of code.
    """
    from modeconn_cli.front.overrides import groups, quoted

    named = groups(config_dir)
    if model in named["architecture"]:
        net = [f"architecture={model}"]
    elif ":" in model:
        net = ["architecture=custom", f"architecture.target={quoted(model)}"]
    else:
        raise UserError(
            f"--model {model}: give file.py:Net, package.module:build, or one of {', '.join(named['architecture'])}."
        )
    if data in named["dataset"] and not Path(data).exists():
        examples = [f"dataset={data}"]
    else:
        # A file of arrays holds what its networks were fed, so nothing more is done to it.
        examples = ["dataset=arrays", f"dataset.path={quoted(data)}", "dataset.mean=[0]", "dataset.std=[1]"]
    ends = f"endpoints.from=[{quoted(first)},{quoted(second)}]"
    return [ends, *net, *examples, "endpoints.weight_decay=0", "curve.weight_decay=0", *overrides]


def measure(
    given: Sequence[str], curve: bool | None, as_json: bool, quiet: bool, config_dir: str | None = None
) -> tuple[Session, int]:
    """The straight line, after alignment where it does not join, and a curve where neither does or one is asked for.

    The session of the last plan that gave an answer, and the exit code of a curve that failed.
    """
    from modeconn_cli.front.compose import compose
    from modeconn_cli.stages.connect import NAME, epochs_of_a_first_answer

    def ask(*more: str, curved: Sequence[str] = ()) -> Session:
        wanted = dict.fromkeys(more, True)
        session = Session(NAME, False, as_json, quiet, sweep=False, prints=False, arguments=wanted)
        session.guarded(lambda: session.run(compose([*curved, *given], config_dir=config_dir)))
        return session

    def joined(session: Session) -> bool:
        return any(v["connected"] == "yes" for v in session.jobs[0]["verdicts"])

    last, failed = ask(), 0
    more: list[str] = []
    if last.code == 0 and not joined(last):
        aligned = ask("aligned")
        if aligned.code in (0, 130, 143):  # where it cannot be aligned its line has said so; a curve may join it still
            last, more = aligned, ["aligned"]
    if last.code == 0 and (curve or (curve is None and not joined(last))):
        (job,) = compose(given, config_dir=config_dir)
        epochs = epochs_of_a_first_answer(job.config.curve, last.train_examples)
        bent = ask(*more, "curve", curved=[f"curve.epochs={epochs}"])
        # A curve that fails has said so; what the straight lines gave is the answer still.
        last, failed = (last, bent.code) if bent.code == 1 else (bent, 0)
    return last, failed
