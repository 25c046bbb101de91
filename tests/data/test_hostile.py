"""Data files that are not what they say: one line each, and no more memory than they are worth."""

from __future__ import annotations

import gzip
import io
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from modeconn_cli import unpacking
from modeconn_cli.data import arrays
from modeconn_cli.data.convert import array_of
from modeconn_cli.data.files import Layout, _archived
from modeconn_cli.data.formats import IDX_FILES, Content, gunzip, idx, read_idx, read_table, unpickle
from modeconn_cli.data.matlab import read_matlab
from modeconn_cli.data.options import Arrays
from modeconn_cli.errors import UserError


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "SMALL", 1 << 16)


def written_by_scipy(arrays: dict[str, Any], compressed: bool = False) -> bytes:
    file = io.BytesIO()
    savemat(file, arrays, do_compression=compressed)
    return file.getvalue()


# ---------------------------------------------------------------------------------------------------- MATLAB


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i2", "i8", "f4", "f8", "u8"])
def test_matlab_arrays_are_as_scipy_wrote_them(kind: str, compressed: bool) -> None:
    x = np.arange(24).astype(kind).reshape(2, 3, 4)
    found = read_matlab(written_by_scipy({"X": x, "other": ["text"], "y": x[0, :1]}, compressed), ("X", "y"))
    assert {*found} == {"X", "y"}
    assert found["X"].dtype == x.dtype
    assert np.array_equal(found["X"], x)
    assert np.array_equal(found["y"], x[0, :1])


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_matlab_file_is_an_error_and_no_crash(compressed: bool) -> None:
    whole = written_by_scipy({"X": np.arange(60, dtype="u1").reshape(3, 20), "y": np.ones((4, 1))}, compressed)
    rng = random.Random(0)
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            content[rng.randrange(120, len(content))] = rng.randrange(256)
        try:
            read_matlab(bytes(content[: rng.choice([len(content), rng.randrange(len(content))])]), ("X", "y"))
        except ValueError:
            continue


def test_what_a_matlab_file_declares_is_checked_before_it_is_unpacked() -> None:
    head = b" " * 124 + struct.pack("<H", 0x0100) + b"IM"
    packed = zlib.compress(struct.pack("<II", 14, 3 << 30) + bytes(4000))
    with pytest.raises(ValueError, match="compressed bytes declare 3221225472"):
        read_matlab(head + struct.pack("<II", 15, len(packed)) + packed, ("X",))
    for content, said in (
        (head + struct.pack("<II", 14, 1 << 31), "declares 2147483648 bytes, and 0 are left"),
        (head, "no X in it"),
        (b"MATLAB 7.3 MAT-file" + bytes(200), "does not begin"),
        (written_by_scipy({"X": np.ones(3) + 1j}), "no array of real numbers"),
        (written_by_scipy({"X": [{"a": 1}]}), "no array of real numbers"),
    ):
        with pytest.raises(ValueError, match=said):
            read_matlab(content, ("X",))


# ------------------------------------------------------------------------------------------------------- IDX


def idx_file(*shape: int) -> Content:
    return Content("file", struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(int(np.prod(shape))))


@pytest.mark.parametrize("shape", [(3, 0, 28), (3, 28, 0)])
def test_idx_files_of_empty_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="there is nothing in it"):
        idx(idx_file(*shape), 3)


def test_idx_files_may_be_of_another_size_and_must_be_of_one() -> None:
    files = dict(zip(IDX_FILES, (idx_file(3, 20, 30), idx_file(3), idx_file(2, 20, 30), idx_file(2)), strict=True))
    assert read_idx(files, 10).x.shape == (3, 1, 20, 30)
    with pytest.raises(UserError, match="its images are 28x28, those to train on 20x30"):
        read_idx(files | {IDX_FILES[2]: idx_file(2, 28, 28)}, 10)


# ---------------------------------------------------------------------------------- more than there can be


def test_gzip_is_not_unpacked_beyond_belief() -> None:
    packed = gzip.compress(bytes(3 << 20), compresslevel=1)
    with pytest.raises(UserError, match="unpack to more than"):
        gunzip(Content("file", packed))


def test_an_archives_member_is_not_read_beyond_belief(tmp_path: Path) -> None:
    file = tmp_path / "cifar.tar.gz"
    member = tarfile.TarInfo("batch")
    member.size = 3 << 30
    file.write_bytes(gzip.compress(member.tobuf() + bytes(1024)))
    with pytest.raises(UserError, match="it declares 3221225472 bytes of batch"):
        _archived(Layout(("batch",), read_idx, "cifar.tar.gz"), file)  # type: ignore[arg-type]


def test_a_pickle_does_not_make_room_for_what_it_cannot_hold() -> None:
    with pytest.raises(UserError, match="numbers an object 1073741824"):
        unpickle(Content("file", b"\x80\x02}r" + struct.pack("<I", 1 << 30) + b"."))
    assert unpickle(Content("file", pickle.dumps({"data": 1}, 2))) == {"data": 1}


@pytest.mark.parametrize("row", ["1e300 1", "1 nan", "1 x", "1"])
def test_tables_of_other_than_numbers_that_fit_are_refused(row: str) -> None:
    with pytest.raises(UserError, match="table"):
        read_table({"t": Content("t", f"1 2\n3 4\n{row}\n".encode())})
    assert len(read_table({"t": Content("t", b"1 2\n3 4\n")}).x) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(3, device="meta"),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.ones(3).to(torch.float8_e5m2),
    ],
)
def test_tensors_that_are_no_arrays_are_one_line(make: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(UserError, match="cannot be read as an array") as caught:
        array_of(make())
    assert "\n" not in str(caught.value)


def npz(folder: Path, name: str, content: bytes) -> str:
    file = folder / "data.npz"
    np.savez(file, x_test=np.ones((2, 2)), y_train=np.array([0, 1]), y_test=np.array([0, 1]))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", content)
    with pytest.raises(UserError) as caught:
        arrays.read(Arrays(path=str(file)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_arrays_that_declare_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 2)})
    assert "declares 1099511627776x2 of float64 in 128 bytes" in npz(tmp_path, "x_train", file.getvalue())
    assert "unpack to 3145728" in npz(tmp_path, "x_train", bytes(3 << 20))
    assert "cannot be read as .npz" in npz(tmp_path, "x_train", b"not numpy's")
