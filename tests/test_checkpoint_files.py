"""Files as strangers write them: wrapped, old, damaged, hostile."""

from __future__ import annotations

import argparse
import io
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modeconn_cli import unpacking
from modeconn_cli.checkpoints import read_state
from modeconn_cli.errors import UserError
from modeconn_cli.unpacking import unbelievable

STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}


def written(folder: Path, content: Any, **kwargs: Any) -> Path:
    file = folder / "a.pt"
    torch.save(content, file, **kwargs)
    return file


def refused(file: Path, strip: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read_state(file, strip)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", ["model_state", "state_dict", "model", "model_state_dict", "net", "weights"])
def test_a_wrapped_state_is_found(key: str, tmp_path: Path) -> None:
    assert {*read_state(written(tmp_path, {key: STATE, "epoch": 3, "optimizer": {"state": {0: {}}}}))} == {*STATE}


def test_names_are_as_they_stand(tmp_path: Path) -> None:
    state = {f"module.{k}": v for k, v in STATE.items()}
    assert {*read_state(written(tmp_path, state))} == {*state}


def test_one_of_several_is_asked_for_by_where_it_stands(tmp_path: Path) -> None:
    other = {k: v + 1 for k, v in STATE.items()}
    file = written(tmp_path, {"student": STATE, "teacher": {"net": other}, "ema": STATE})
    assert refused(file).endswith("holds several state_dicts, student, ema: give endpoints.strip=student.")
    for strip in ("teacher.net.", "teacher.net"):
        assert torch.equal(read_state(file, strip)["a.bias"], other["a.bias"])
    file = written(tmp_path, {"state_dict": {f"model.{k}": v for k, v in STATE.items()} | {"loss.w": torch.ones(1)}})
    assert {*read_state(file, "model.")} == {*STATE}
    assert "no name in" in refused(file, "net.")


def test_what_pytorch_notes_of_versions_is_kept(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    notes = read_state(written(tmp_path, {"state_dict": net.state_dict()}))._metadata  # type: ignore[attr-defined]
    assert notes["0"] == {"version": 2}


HOSTILE = {
    "meta": lambda: torch.empty(3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "declares": lambda: torch.ones(1).expand(10**12),
}


@pytest.mark.parametrize("word", [*HOSTILE])
def test_tensors_without_plain_numbers_are_refused(word: str, tmp_path: Path) -> None:
    said = refused(written(tmp_path, STATE | {"odd\nname": HOSTILE[word]()}))
    assert "odd name" in said
    assert word in said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("word", ["quantised", "nested"])
def test_tensors_of_other_kinds_are_refused(word: str, tmp_path: Path) -> None:
    made = {
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    }
    assert word in refused(written(tmp_path, STATE | {"odd": made[word]()}))


@pytest.mark.parametrize("content", [{}, [STATE], {"a": 1}, {1: torch.ones(1)}, {"a": {"b": 2}}, torch.ones(2), None])
def test_what_is_no_state_is_refused(content: Any, tmp_path: Path) -> None:
    assert "holds no state_dict" in refused(written(tmp_path, content))


def test_what_would_run_code_is_refused(tmp_path: Path) -> None:
    for old in (True, False):
        file = written(
            tmp_path, {"state_dict": STATE, "args": argparse.Namespace(x=1)}, _use_new_zipfile_serialization=not old
        )
        assert "would run code" in refused(file)


def test_an_archive_that_unpacks_to_far_more_than_it_is_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unbelievable(14 << 20, 3 << 30)
    assert not unbelievable(1 << 10, 100 << 20)
    assert not unbelievable(1 << 30, 3 << 30)
    monkeypatch.setattr(unpacking, "SMALL", 1 << 16)
    file = written(tmp_path, STATE)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data/9", "w") as entry:
        for _ in range(3):
            entry.write(bytes(1 << 20))
    assert "declares 314" in refused(file)


@pytest.mark.parametrize("old", [True, False])
def test_damaged_files_are_one_line_each(old: bool, tmp_path: Path) -> None:
    """Bytes flipped, cut and put in: a state or one line, never another exception."""
    whole = written(tmp_path, STATE, _use_new_zipfile_serialization=not old).read_bytes()
    rng = random.Random(0)
    file = tmp_path / "damaged.pt"
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        file.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
        said = ""
        try:
            read_state(file)
        except UserError as error:
            said = str(error)
        assert "\n" not in said


def test_pickles_that_declare_too_much_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    for content in (
        b"",
        b"\x80\x02" + b"(" * 100_000,
        b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little"),
        pickle.dumps({"a": 1}),
        b"PK\x03\x04" + bytes(40),
    ):
        file.write_bytes(content)
        refused(file)
    file = tmp_path / "a.safetensors"
    file.write_bytes((1 << 50).to_bytes(8, "little") + b"{}")
    refused(file)
    save_file(STATE, file)
    file.write_bytes(file.read_bytes()[:-4])
    refused(file)


def test_the_reader_takes_what_a_stream_of_torch_save_is(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save(STATE, stream, _use_new_zipfile_serialization=False)
    (tmp_path / "old.bin").write_bytes(stream.getvalue())
    assert torch.equal(read_state(tmp_path / "old.bin")["a.weight"], STATE["a.weight"])
