"""What Hydra refuses, and what would take more than there is, is said in one line with the thing and the right one."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import compose
from hydra.core.override_parser.overrides_parser import OverridesParser

from modeconn_cli import cli, settings
from modeconn_cli.errors import UserError
from modeconn_cli.front.compose import compose as jobs_of
from modeconn_cli.front.explain import MOST_JOBS, check_sweep
from modeconn_cli.front.pipeline import placed
from modeconn_cli.settings import check
from modeconn_cli.work import plan
from modeconn_cli.work.plan import make_plan
from modeconn_cli.work.reporting import Silent


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("~seed", r"~seed: settings are changed and not removed; write seed=VALUE"),
        ("~curve.bends", r"~curve.bends: settings are changed and not removed"),
        ("+seed=1", r"\+seed=1: seed is there already; write seed=1\."),
        ("+curve.bends=2", r"curve.bends is there already; write curve.bends=2"),
        ("=1", r"'=1' is not an override"),
        (
            "runtime.output_dir=${oc.env:NOWHERE_AT_ALL}",
            r"^runtime.output_dir=.*: .Environment variable 'NO",
        ),
        ("seed=${seed}", r"^seed=\$\{seed\}: Recursive interpolation"),
        ("curve.bends=${nope}", r"^curve.bends=\$\{nope\}: .*'nope' not found"),
        ("interpolation=-1e300", r"^interpolation=-1e300: no such interpolation"),
        ("architecture=resnet18", r"torchvision has one: architecture=torchvision architecture.model=resnet18"),
        ("architecture=resnet21", r"did you mean architecture=resnet20\?"),
        ("dataset=FashionMNIST", r"did you mean dataset=fashion_mnist"),
        ("dataset=fashionmnist", r"did you mean dataset=fashion_mnist"),
    ],
)  # fmt: skip
def test_an_override_that_cannot_be_is_one_line(override: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        compose("curve.lr=0.1", override)
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


def test_what_the_environment_says_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", "/tmp/there")
    assert compose("runtime.output_dir=${oc.env:SOMEWHERE}").runtime.output_dir == "/tmp/there"
    assert compose("curve.bends=${seed}", "seed=3").curve.bends == 3  # type: ignore[attr-defined]


TOP = "# @package _global_\n"
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x]\n" + "".join(f"a{k}: &a{k} [{','.join([f'*a{k - 1}'] * 8)}]\n" for k in range(1, 9))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (TOP + "curve:\n  bnds: 3\n", r"one.yaml: curve.bnds: no such key; did you mean bends\?"),
        (TOP + "cruve:\n  bends: 3\n", r"one.yaml: cruve: no such key; did you mean curve\?"),
        (TOP + "curve:\n  bends: many\n", r"one.yaml: curve.bends: many: not a whole number"),
        (TOP + "defaults:\n  - override /dataset: fashionmnist\n", r"such dataset; did you mean fashion_mnist"),
        (TOP + "defaults:\n  - override /datset: digits\n", r"one.yaml: .*no group datset; did you mean dataset"),
        (TOP + "curve: [1,\n", r"one.yaml, line 3"),
        (TOP + "curve: &a\n  bends: *a\n", r"one.yaml: an anchor refers to itself"),
        (TOP + BOMB, r"one.yaml: its anchors repeat more than"),
        ("defaults:\n  - override /dataset: digits\ncurve:\n  bends: 3\n", r"begin it with the line `# @package"),
        ("curve:\n  bends: 3\n", r"one.yaml: begin it with the line `# @package"),
        ("- 1\n", r"one.yaml: holds no settings"),
        (bytes(range(256)), r"one.yaml is no text in UTF-8"),
        ("# é\n".encode("latin-1"), r"one.yaml is no text in UTF-8"),
        (b"# " + b"x" * 2**20, r"one.yaml has 1,048,578 bytes"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_taken_is_named_with_its_key(
    content: str | bytes, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "experiment" / "one.yaml"
    file.parent.mkdir()
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said) as refusal:
        compose("experiment=one", config_dir=str(tmp_path))
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


def test_experiments_and_anchors_that_are_right_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "experiment" / "one.yaml"
    file.parent.mkdir()
    file.write_text(
        TOP + "defaults:\n  - override /dataset: two_spirals\ncurve:\n  bends: &n 3\n"
        "architecture:\n  depth: *n\ndataset:\n  examples: 80\n"
    )
    made = compose("experiment=one", config_dir=str(tmp_path))
    assert (made.curve.bends, made.architecture.depth, made.dataset.examples) == (3, 3, 80)  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", ["endpoints.weight_decay", "dataset.noise", "endpoints.lr", "runtime.save_every"])
def test_a_number_that_no_network_holds_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"^{key}=1e\\+300 is more than"):
        check(compose("dataset=two_spirals", f"{key}=1e300"))


@pytest.mark.parametrize(
    "override",
    [
        "interpolation.points=10000000",
        "interpolation.search_max=1000000",
        "interpolation.bootstrap=1000000000",
        "curve.bends=100000",
        "runtime.threads=100000",
        "architecture.depth=1000000",
    ],
)
def test_what_would_take_hours_or_all_memory_is_out_of_range(override: str) -> None:
    with pytest.raises(UserError, match=f"^{override} is out of range: it must be .*at most"):
        check(compose(override))


def test_what_a_machine_cannot_hold_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"mlp would hold [0-9,]+ GB at once, and this machine has"):
        make_plan("fit-curve", compose("dataset=two_spirals", "architecture.width=100000000"), Silent())
    small = compose("dataset=two_spirals", "dataset.examples=60", "architecture.width=100", "curve.bends=900")
    monkeypatch.setattr(plan, "room", lambda device: 200_000_000)
    with pytest.raises(UserError, match=r"fit-curve two_spirals-mlp-s0-1-bezier900 would hold"):
        make_plan("fit-curve", small, Silent())
    monkeypatch.setattr(plan, "room", lambda device: None)
    assert make_plan("fit-curve", small, Silent()).stages
    settings.check(small)


def test_output_dir_and_runtime_output_dir_are_one_word() -> None:
    assert cli.as_flags(["runs", "list", "runtime.output_dir=a=b"]) == ["runs", "list", "--output-dir", "a=b"]
    assert cli.as_flags(["report", "x", "runtime.output_dir=a"]) == ["report", "x", "--output-dir", "a"]
    as_they_are = ["fit-curve", "runtime.output_dir=a"], ["doctor", "runtime.output_dir=a"], ["nothing"], []
    assert all(cli.as_flags(words) == words for words in as_they_are)
    assert placed("a b", []) == ["runtime.output_dir='a b'"]
    assert compose(*placed("a b=c", [])).runtime.output_dir == "a b=c"
    assert placed(None, []) == []
    with pytest.raises(UserError, match="one setting; drop one"):
        placed("a", ["runtime.output_dir=b"])


def test_a_sweep_of_more_jobs_than_anybody_waits_for_is_refused() -> None:
    parse = OverridesParser.create().parse_overrides
    check_sweep(parse(["seed=0,1,2", "curve.bends=range(1,4)", "curve.lr=0.1"]))
    for many in (["seed=range(0,10000000)"], ["seed=range(0,1000)", "curve.bends=range(1,1000)"]):
        with pytest.raises(UserError, match=rf"jobs, and at most {MOST_JOBS:,}"):
            check_sweep(parse(many))
    assert len(jobs_of(["seed=range(0,3)"], ["--multirun"])) == 3
