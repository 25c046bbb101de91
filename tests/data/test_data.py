"""Data sets: every source on files in its own format, splits, normalisation, augmentation, every error."""

from __future__ import annotations

import dataclasses
import gzip
import io
import math
import os
import pickle
import struct
import sys
import tarfile
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.io import savemat

from modeconn_cli import settings
from modeconn_cli.data import digits
from modeconn_cli.data import images as published
from modeconn_cli.data.arrays import raw_of
from modeconn_cli.data.dataset import Augment, Data, checksum, how_to_get, load, prepare, search
from modeconn_cli.data.formats import Raw
from modeconn_cli.data.options import Arrays, Channels, CustomData, Dataset, DatasetBase, SplitBy, TwoSpirals
from modeconn_cli.errors import UserError
from modeconn_cli.settings import choices

Source = StrEnum("Source", {name: name for name in choices("dataset")})  # type: ignore[misc]
CONF = Path(__file__).parents[2] / "conf" / "dataset"
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
light = hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _only_the_files_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODECONN_DATA", raising=False)
    monkeypatch.setattr(published, "SYSTEM_FOLDERS", {})


def images(n: int, shape: tuple[int, ...], classes: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng([n, seed])
    return random.integers(0, 256, (n, *shape), np.uint8), np.arange(n) % classes


def error_of(call: Callable[[], Any]) -> str:
    """The message of the UserError a call raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def dataset(source: Source, **options: Any) -> Dataset:
    return Dataset(name=source.value, source=source, **options)


# ------------------------------------------------------------------------------------------ writing formats


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, zipped: bool = False, dotted: bool = False, seed: int = 0) -> tuple[np.ndarray, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    x, y = images(12, (5, 4), seed=seed)
    x_test, y_test = images(6, (5, 4), seed=seed)
    arrays = (x, y.astype(np.uint8), x_test, y_test.astype(np.uint8))
    for name, array in zip(IDX_FILES, arrays, strict=True):
        name = name.replace("-idx", ".idx") if dotted else name
        data = idx_bytes(array)
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    return arrays


def cifar_names(number: int) -> list[str]:
    return [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if number == 10 else ["train", "test"]


def cifar_data(number: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {name: images(4 + i, (3072,), number, seed=i) for i, name in enumerate(cifar_names(number))}


def cifar_pickles(number: int, protocol: int) -> dict[str, bytes]:
    key = b"labels" if number == 10 else b"fine_labels"
    return {
        name: pickle.dumps({b"data": x, key: y.tolist(), b"filenames": [b"a.png"]}, protocol)
        for name, (x, y) in cifar_data(number).items()
    }


def cifar_records(number: int) -> dict[str, bytes]:
    records = {}
    for name, (x, y) in cifar_data(number).items():
        header = [y] if number == 10 else [y // 5, y]
        records[name + ".bin"] = np.column_stack([*header, x]).astype(np.uint8).tobytes()
    return records


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"inside/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_npz(path: Path, **arrays: Any) -> Arrays:
    np.savez(path, **arrays)
    return Arrays(name="mine", source=Source.arrays, path=str(path))


def small(n: int = 6, shape: tuple[int, ...] = (3,)) -> dict[str, np.ndarray]:
    x = np.arange(n * math.prod(shape), dtype=np.float32).reshape(n, *shape)
    return {"x_train": x, "y_train": np.arange(n) % 2, "x_test": x[:4] + 1, "y_test": np.arange(4) % 2}


# ------------------------------------------------------------------------------------------------- sources


def test_a_source_from_outside_is_a_class_with_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.CHOICES, "dataset", {**choices("dataset")})

    @settings.choice("dataset", "rings")
    @dataclass
    class Rings(DatasetBase):
        examples: int = settings.option(20, "Points.", ge=2)

        def arrays(self) -> dict[str, Any]:
            angle = np.linspace(0, 6, self.examples)
            y = np.arange(self.examples) % 2
            x = (1 + y)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
            return {"x_train": x.astype(np.float32), "y_train": y}

    data = load(Rings(test_size=5))
    assert (len(data.train), len(data.test), data.classes, data.shape) == (15, 5, 2, (2,))
    assert data.checksum == checksum(Rings(train_size=3)) != checksum(Rings(examples=21))
    assert "its own options" in error_of(lambda: load(Dataset(source="rings")))
    named = settings.named_choice(Dataset(source="mnist", flip=True), "dataset")
    assert (type(named).__name__, named.source, named.flip) == ("IDX", "mnist", True)
    assert {"_dataset", "_two_spirals", "_arrays", "_custom", "_rings"} == {*settings.nodes_of("dataset")}


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    bundled = load_digits()
    raw = digits.digits()
    np.testing.assert_array_equal(raw.x[:, 0].numpy(), bundled.images * 15)
    np.testing.assert_array_equal(raw.y.numpy(), bundled.target)
    data = load(dataset(Source.digits, test_size=360))
    assert (len(data.train), len(data.test), data.shape, data.classes) == (1437, 360, (1, 8, 8), 10)
    assert data.test.name == "test"
    assert data.validation is None
    assert data.train.x.dtype == torch.uint8


def test_two_spirals_are_two_noisy_arms() -> None:
    options = TwoSpirals(name="spirals", source=Source.two_spirals, examples=400, noise=0.0, turns=1.5)
    data = load(options)
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((2,), 2, 400, 400)
    assert data.train.x.dtype == torch.float32
    assert torch.bincount(data.train.y).tolist() == [200, 200]
    radius = data.train.x.norm(dim=1)
    assert radius.max() <= 1 + 1e-6
    assert radius.max() > 0.95
    # Without noise a point's angle follows from its radius and its arm.
    angle = 2 * np.pi * 1.5 * radius.double() + np.pi * data.train.y
    torch.testing.assert_close(
        data.train.x.double(), radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1), atol=1e-5, rtol=0
    )
    assert not torch.equal(data.train.x, data.test.x)
    noisy = load(replace(options, noise=0.5)).train.x
    assert (noisy - data.train.x).std() > 0.1


@pytest.mark.parametrize("source", [Source.mnist, Source.kmnist, Source.fashion_mnist])
@pytest.mark.parametrize(("zipped", "dotted"), [(False, False), (True, False), (False, True), (True, True)])
def test_idx(source: Source, zipped: bool, dotted: bool, tmp_path: Path) -> None:
    x, y, x_test, y_test = write_idx(tmp_path / "there", zipped, dotted)
    data = load(dataset(source, data_dir=str(tmp_path / "there")))
    np.testing.assert_array_equal(data.train.x.numpy(), x[:, None])
    np.testing.assert_array_equal(data.train.y.numpy(), y)
    np.testing.assert_array_equal(data.test.x.numpy(), x_test[:, None])
    np.testing.assert_array_equal(data.test.y.numpy(), y_test)
    assert (data.shape, data.classes, data.train.y.dtype) == ((1, 5, 4), 10, torch.int64)


@pytest.mark.parametrize("source", [Source.cifar10, Source.cifar100])
@pytest.mark.parametrize("form", ["oldest", "python", "newest", "binary", "python.tar.gz", "binary.tar.gz"])
def test_cifar(source: Source, form: str, tmp_path: Path) -> None:
    number = 10 if source is Source.cifar10 else 100
    middle = "-batches" if number == 10 else ""
    if form.startswith("binary"):
        files, folder = cifar_records(number), f"cifar-{number}{middle}-{'bin' if number == 10 else 'binary'}"
    else:
        protocol = {"oldest": 0, "newest": pickle.HIGHEST_PROTOCOL}.get(form, 2)
        files, folder = (
            cifar_pickles(number, protocol),
            f"cifar-{number}{middle}-{'py' if number == 10 else 'python'}",
        )
    if form.endswith("tar.gz"):
        write_archive(tmp_path / f"cifar-{number}-{form}", files)
    else:
        write_folder(tmp_path / folder, files)
    data = load(dataset(source, data_dir=str(tmp_path)))
    *train, test = cifar_data(number).values()
    np.testing.assert_array_equal(data.train.x.flatten(1).numpy(), np.concatenate([x for x, _ in train]))
    np.testing.assert_array_equal(data.train.y.numpy(), np.concatenate([y for _, y in train]))
    np.testing.assert_array_equal(data.test.x.flatten(1).numpy(), test[0])
    np.testing.assert_array_equal(data.test.y.numpy(), test[1])
    assert (data.shape, data.classes) == ((3, 32, 32), number)
    if not form.endswith("tar.gz"):  # the batches' own folder may be given, too
        assert torch.equal(load(dataset(source, data_dir=str(tmp_path / folder))).train.x, data.train.x)


def python2_pickle(x: np.ndarray, y: list[int]) -> bytes:
    """A batch as Python 2 wrote it: byte strings for text and for the array's content, numpy's old names."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) * 2 + number(0) + b"tb"
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text(b"b") + b"tR"
    shape = b"(" + b"".join(map(number, x.shape)) + b"t"
    array = start + b"(" + number(1) + shape + dtype + b"\x89" + text(x.tobytes()) + b"tb"
    labels = b"(" + b"".join(map(number, y)) + b"l"
    return b"\x80\x02(" + text(b"data") + array + text(b"labels") + labels + b"d."


def test_cifar_as_python_2_pickled_it(tmp_path: Path) -> None:
    files = {name: python2_pickle(x, y.tolist()) for name, (x, y) in cifar_data(10).items()}
    write_folder(tmp_path / "cifar-10-batches-py", files)
    data = load(dataset(Source.cifar10, data_dir=str(tmp_path)))
    np.testing.assert_array_equal(data.test.x.flatten(1).numpy(), cifar_data(10)["test_batch"][0])


def test_svhn(tmp_path: Path) -> None:
    expected = {}
    for name, n in (("train", 21), ("test", 11)):
        x, y = images(n, (32, 32, 3))
        expected[name] = x, y
        savemat(
            tmp_path / f"{name}_32x32.mat",
            {"X": x.transpose(1, 2, 3, 0), "y": np.where(y == 0, 10, y)[:, None]},
        )
    data = load(dataset(Source.svhn, data_dir=str(tmp_path)))
    for split in (data.train, data.test):
        np.testing.assert_array_equal(split.x.numpy(), expected[split.name][0].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(split.y.numpy(), expected[split.name][1])
    assert (data.shape, data.classes) == ((3, 32, 32), 10)


def test_the_real_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    monkeypatch.setattr(published, "SYSTEM_FOLDERS", {"fashion_mnist": folder})
    data = load(dataset(Source.fashion_mnist))
    assert (len(data.train), len(data.test), data.shape) == (60000, 10000, (1, 28, 28))
    assert torch.bincount(data.train.y).tolist() == [6000] * 10
    assert data.mean.item() == pytest.approx(0.2860, abs=5e-5)  # the constants in common use
    assert data.std.item() == pytest.approx(0.3530, abs=5e-5)
    assert (folder, True) in search(Source.fashion_mnist)


# ------------------------------------------------------------------------------------- finding and fetching


def test_data_dir_then_environment_then_data_and_named_folders_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODECONN_DATA", str(tmp_path / "env"))
    given_dir = str(tmp_path / "given")
    places = [
        tmp_path / "data",
        tmp_path / "data" / "MNIST" / "raw",
        tmp_path / "data" / "mnist",
        tmp_path / "env" / "mnist",
        tmp_path / "given" / "mnist",
    ]
    (tmp_path / "given").mkdir()
    for seed, place in enumerate(places):  # each is preferred to those before it
        x, *_ = write_idx(place, seed=seed)
        np.testing.assert_array_equal(load(dataset(Source.mnist, data_dir=given_dir)).train.x[:, 0].numpy(), x)
    looked = search("mnist", given_dir)
    assert looked[0] == (tmp_path / "given" / "mnist", True)
    assert (tmp_path / "given", False) in looked
    assert len(looked) == 9
    assert search(Source.two_spirals) == search(Source.arrays) == []
    assert [found for _, found in search(Source.digits)] == [True]


def test_missing_files_say_which_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODECONN_DATA", "/nowhere")
    message = error_of(lambda: load(dataset(Source.fashion_mnist)))
    for part in (
        "train-images-idx3-ubyte not found",
        "/nowhere, data",
        "apt install dataset-fashion-mnist",
        "dataset.download=true",
        "dataset.data_dir",
    ):
        assert part in message
    write_idx(tmp_path / "data")
    (tmp_path / "data" / "t10k-labels-idx1-ubyte").unlink()
    assert "t10k-labels-idx1-ubyte is missing from data;" in error_of(lambda: checksum(dataset(Source.mnist)))
    assert "cifar-10-batches-py not found" in error_of(lambda: load(dataset(Source.cifar10)))
    assert "apt" not in how_to_get("mnist")
    assert "dataset.path" in how_to_get("arrays")
    assert "nothing to get" in how_to_get("digits")
    message = error_of(lambda: load(dataset(Source.mnist, data_dir="mistyped")))
    assert "dataset.data_dir=mistyped is not a folder" in message


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, **readers: Any) -> None:
    module = types.ModuleType("modeconn_cli.torchvision_compat")
    module.import_torchvision = lambda: types.SimpleNamespace(  # type: ignore[attr-defined]
        datasets=types.SimpleNamespace(**readers)
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_download_puts_the_files_where_they_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def reader(root: str, download: bool) -> None:
        calls.append((root, download))
        print("progress")
        write_idx(Path(root) / "MNIST" / "raw", zipped=True)

    fake_torchvision(monkeypatch, MNIST=reader)
    wanted = dataset(Source.mnist, data_dir=str(tmp_path / "new"), download=True)
    first = load(wanted)
    assert checksum(wanted) == first.checksum
    assert calls == [(str(tmp_path / "new"), True)]  # once: then the files are there
    assert capsys.readouterr().out == ""


def test_download_of_both_parts_of_svhn(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = []
    fake_torchvision(monkeypatch, SVHN=lambda root, split, download: splits.append((root, split, download)))
    assert "train_32x32.mat not found" in error_of(lambda: load(dataset(Source.svhn, download=True)))
    assert splits == [("data", "train", True), ("data", "test", True)]


def test_failing_download_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(root: str, download: bool) -> None:
        raise OSError("no route\nto host")

    fake_torchvision(monkeypatch, CIFAR10=reader)
    message = error_of(lambda: load(dataset(Source.cifar10, download=True)))
    assert "cifar10: download into data failed: no route to host" in message


# ----------------------------------------------------------------------------------------- damaged files


def test_damaged_idx(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    wanted = dataset(Source.mnist)

    def after(name: str, change: Callable[[bytes], bytes], zipped: bool = False) -> str:
        write_idx(folder, zipped)
        path = folder / (name + ".gz" * zipped)
        path.write_bytes(change(path.read_bytes()))
        message = error_of(lambda: load(wanted))
        assert str(path.relative_to(tmp_path)) in message
        for written in folder.iterdir():
            written.unlink()
        return message

    pixels, answers = IDX_FILES[:2]
    assert "truncated: 12x5x4 needs 256 bytes, found 255" in after(pixels, lambda b: b[:-1])
    assert "too long: 12x5x4 needs 256 bytes, found 257" in after(pixels, lambda b: b + b"x")
    assert "the header needs 16 bytes, found 9" in after(pixels, lambda b: b[:9])
    assert "should start 00000803, not 00000801" in after(pixels, lambda b: b[:3] + b"\1" + b[4:])
    assert "with nothing" in after(pixels, lambda b: b"")
    assert "labels run from 0 to 200" in after(answers, lambda b: b[:-1] + bytes([200]))
    assert "11 labels for 12 images" in after(answers, lambda b: idx_bytes(np.zeros(11, np.uint8)))
    assert "gzip file: its 40 bytes give only" in after(pixels, lambda b: b[:40], zipped=True)
    assert "gzip file" in after(pixels, lambda b: b[:60] + bytes(8) + b[68:], zipped=True)
    empty = idx_bytes(np.zeros((0, 5, 4), np.uint8)), idx_bytes(np.zeros(0, np.uint8))
    write_idx(folder)
    (folder / IDX_FILES[2]).write_bytes(empty[0])
    (folder / IDX_FILES[3]).write_bytes(empty[1])
    assert "its test split is empty" in error_of(lambda: load(wanted))


class Payload:
    """Unpickled naively, runs a command."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_malicious_pickle_does_not_run(tmp_path: Path, protocol: int) -> None:
    folder = tmp_path / "data" / "cifar-10-batches-py"
    write_folder(folder, cifar_pickles(10, 2))
    proof = tmp_path / "ran"
    x, y = cifar_data(10)["data_batch_1"]
    attacks = [
        Payload(os.system, f"touch {proof}"),
        Payload(eval, f"open({str(proof)!r}, 'w')"),
        Payload(exec, f"open({str(proof)!r}, 'w')"),
        np.array([Payload(os.system, f"touch {proof}")], dtype=object),
    ]
    for attack in attacks:
        data = pickle.dumps({"data": x, "labels": y.tolist(), "extra": attack}, protocol)
        (folder / "data_batch_1").write_bytes(data)
        message = error_of(lambda: load(dataset(Source.cifar10)))
        assert "data_batch_1: not a CIFAR batch" in message
        assert not proof.exists()
    pickle.loads(pickle.dumps(Payload(os.system, f"touch {proof}"), protocol))  # the attack is a real one
    assert proof.exists()


def test_damaged_cifar(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "cifar-10-batches-py"
    files = cifar_pickles(10, 2)
    write_folder(folder, files)

    def with_batch(data: bytes) -> str:
        (folder / "data_batch_2").write_bytes(data)
        message = error_of(lambda: load(dataset(Source.cifar10)))
        assert "data_batch_2: " in message
        return message

    whole = files["data_batch_2"]
    x, y = cifar_data(10)["data_batch_2"]
    assert f"truncated one, of {len(whole) - 50} bytes" in with_batch(whole[:-50])
    assert "it holds a list" in with_batch(pickle.dumps([1]))
    assert "no 'labels' in it, only data" in with_batch(pickle.dumps({"data": x}))
    assert "(N, 3072) bytes" in with_batch(pickle.dumps({"data": x[:, 1:], "labels": y.tolist()}))
    assert "(N, 3072) bytes" in with_batch(pickle.dumps({"data": x.tolist(), "labels": y.tolist()}))
    assert "an array of 'f8'" in with_batch(pickle.dumps({"data": x.astype(float), "labels": y.tolist()}))
    assert "4 labels for 5 images" in with_batch(pickle.dumps({"data": x, "labels": y.tolist()[:4]}))
    assert "not integers" in with_batch(pickle.dumps({"data": x, "labels": ["cat"] * 5}))
    assert "not a list of integers" in with_batch(pickle.dumps({"data": x, "labels": [1, [2, 3], 4, 5, 6]}))
    assert "labels run from 0 to 10" in with_batch(pickle.dumps({"data": x, "labels": [0, 1, 2, 3, 10]}))


def test_damaged_archive_and_records(tmp_path: Path) -> None:
    archive = tmp_path / "data" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    files = cifar_pickles(10, 2)
    write_archive(archive, files)
    archive.write_bytes(archive.read_bytes()[:-2000])
    assert "truncated or corrupt archive" in error_of(lambda: load(dataset(Source.cifar10)))
    files.pop("data_batch_3")
    write_archive(archive, files)
    assert "data_batch_3 is not in the archive" in error_of(lambda: load(dataset(Source.cifar10)))
    records = cifar_records(100)
    records["train.bin"] = records["train.bin"][:-1]
    write_folder(tmp_path / "data" / "cifar-100-binary", records)
    message = error_of(lambda: load(dataset(Source.cifar100)))
    assert "train.bin: truncated: expected a multiple of 3074 bytes, found 12295" in message


def test_damaged_svhn(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    train, test = (tmp_path / "data" / f"{name}_32x32.mat" for name in ("train", "test"))
    x, y = images(4, (32, 32, 3))
    savemat(test, {"X": x.transpose(1, 2, 3, 0), "y": y[:, None]})
    train.write_bytes(test.read_bytes()[:-5000])
    assert "train_32x32.mat: not SVHN's MATLAB file" in error_of(lambda: load(dataset(Source.svhn)))
    savemat(train, {"X": x, "y": y[:, None]})
    assert "not bytes of (32, 32, 3, N)" in error_of(lambda: load(dataset(Source.svhn)))


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Dataset]]:
    """One file of every format, in a folder of its own, and the data set it belongs to."""
    root = tmp_path_factory.mktemp("whole")
    write_idx(root / "idx")
    write_idx(root / "gz", zipped=True)
    write_folder(root / "py" / "cifar-100-python", cifar_pickles(100, 2))
    (root / "tar").mkdir()
    write_archive(root / "tar" / "cifar-100-python.tar.gz", cifar_pickles(100, 2))
    np.savez_compressed(root / "a.npz", **small())
    save_file({k: torch.from_numpy(v.copy()) for k, v in small().items()}, root / "a.safetensors")
    cifar = partial(dataset, Source.cifar100)
    return {
        "idx": (root / "idx" / IDX_FILES[0], dataset(Source.mnist, data_dir=str(root / "idx"))),
        "gz": (root / "gz" / (IDX_FILES[1] + ".gz"), dataset(Source.mnist, data_dir=str(root / "gz"))),
        "pickle": (root / "py" / "cifar-100-python" / "train", cifar(data_dir=str(root / "py"))),
        "tar": (root / "tar" / "cifar-100-python.tar.gz", cifar(data_dir=str(root / "tar"))),
        "npz": (root / "a.npz", Arrays(source=Source.arrays, path=str(root / "a.npz"))),
        "safetensors": (
            root / "a.safetensors",
            Arrays(source=Source.arrays, path=str(root / "a.safetensors")),
        ),
    }


@hypothesis_settings(light, max_examples=150)
@given(
    form=st.sampled_from(["idx", "gz", "pickle", "tar", "npz", "safetensors"]),
    where=st.floats(0, 1),
    flipped=st.integers(0, 255),
    near=st.sampled_from(["start", "end", "anywhere"]),
)
def test_any_damage_is_a_user_error_or_harmless(
    whole_files: dict[str, tuple[Path, Dataset]], form: str, where: float, flipped: int, near: str
) -> None:
    path, wanted = whole_files[form]
    whole = path.read_bytes()
    last = len(whole) - 1
    at = {"start": int(where * min(200, last)), "end": last - int(where * min(200, last))}.get(near, int(where * last))
    # Nothing flipped stands for a file that ends there.
    changed = whole[:at] + bytes([whole[at] ^ flipped]) + whole[at + 1 :] if flipped else whole[:at]
    path.write_bytes(changed)
    try:
        load(wanted)
    except UserError as error:
        assert str(path) in str(error) or "ships no test split" in str(error)  # noqa: PT017 - either is right
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert flipped or form == "tar"  # no file may be cut short unseen; tar's own padding may
    finally:
        path.write_bytes(whole)


# ------------------------------------------------------------------------------------------------- arrays

NUMBERS = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
    ">i4",
    ">f8",
]
LABELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "integers": lambda y: 7 * y - 3,
    "bytes": lambda y: y.astype(np.uint8),
    "floats": lambda y: y * 2.0 - 1,
    "text": lambda y: np.array(["ant", "bee", "cat"])[y],
    "column": lambda y: y[:, None],
    "one_hot": lambda y: np.eye(3, dtype=np.float32)[y],
    "one_hot_bool": lambda y: np.eye(3, dtype=bool)[y],
}


@light
@given(
    dtype=st.sampled_from(NUMBERS),
    labels=st.sampled_from(sorted(LABELS)),
    compress=st.booleans(),
    shape=st.sampled_from([(), (1,), (5,), (4, 3), (3, 4, 4), (5, 4, 3), (2, 4, 5), (1, 3, 4, 4)]),
    seed=st.integers(0, 9),
)
def test_arrays_of_any_type(
    tmp_path: Path, dtype: str, labels: str, compress: bool, shape: tuple[int, ...], seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = random.integers(0, 2 if dtype == "bool" else 100, (9, *shape)).astype(dtype)
    y = random.permutation(np.arange(9) % 3)
    path = tmp_path / "mine.npz"
    save = np.savez_compressed if compress else np.savez
    save(path, x_train=x[:5], y_train=LABELS[labels](y)[:5], x_test=x[5:], y_test=LABELS[labels](y)[5:])
    data = load(Arrays(name="mine", source=Source.arrays, path=str(path)))
    expected = x
    if len(shape) in (0, 2):
        expected = x[:, None]
    elif shape == (5, 4, 3):
        expected = x.transpose(0, 3, 1, 2)
    tokens = len(shape) == 1 and np.dtype(dtype).kind in "iu" and np.dtype(dtype).itemsize > 1
    assert data.train.x.dtype == (torch.int64 if tokens else torch.uint8 if dtype == "uint8" else torch.float32)
    data = data.continuous()
    assert data.train.x.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    np.testing.assert_array_equal(data.train.x.numpy(), expected[:5].astype("f8"))
    np.testing.assert_array_equal(data.test.x.numpy(), expected[5:].astype("f8"))
    np.testing.assert_array_equal(torch.cat([data.train.y, data.test.y]).numpy(), y)
    assert (data.classes, data.shape) == (3, expected.shape[1:])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.bfloat16, torch.float16, torch.float64])
def test_arrays_in_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "mine.safetensors"
    x = (torch.arange(8 * 5).view(8, 5) % 2).to(dtype)
    y = torch.arange(8) % 4
    tensors = {
        "x_train": x[:4].clone(),
        "y_train": y[:4].clone(),
        "x_test": x[4:].clone(),
        "y_test": y[4:].clone(),
        "unrelated": torch.ones(2),
    }
    save_file(tensors, path)
    data = load(Arrays(name="mine", source=Source.arrays, path=str(path)))
    torch.testing.assert_close(data.train.x.double(), x[:4].double(), rtol=0, atol=0)
    assert torch.equal(data.test.y, y[4:])
    path.write_bytes(path.read_bytes()[:-3])
    message = error_of(lambda: load(Arrays(source=Source.arrays, path=str(path))))
    assert "cannot be read as .safetensors" in message


def test_channels_of_arrays(tmp_path: Path) -> None:
    def shape(stored: tuple[int, ...], channels: Channels) -> tuple[int, ...]:
        return load(replace(write_npz(tmp_path / "a.npz", **small(6, stored)), channels=channels)).shape

    assert shape((3, 5, 3), Channels.auto) == (3, 5, 3)
    assert shape((5, 6, 1), Channels.auto) == (1, 5, 6)
    assert shape((5, 6, 2), Channels.auto) == (5, 6, 2)
    assert shape((5, 6, 2), Channels.last) == (2, 5, 6)
    assert shape((5, 6, 3), Channels.first) == (5, 6, 3)
    assert shape((2, 5, 6, 3), Channels.auto) == (3, 2, 5, 6)


def test_labels_only_in_the_test_part_count(tmp_path: Path) -> None:
    arrays = small() | {"y_train": np.array([4, 9] * 3), "y_test": np.array([4, 7, 9, 9])}
    data = load(write_npz(tmp_path / "a.npz", **arrays))
    assert data.classes == 3
    assert data.train.y.tolist() == [0, 2] * 3
    assert data.test.y.tolist() == [0, 1, 2, 2]
    one_hot = small() | {"y_train": np.eye(5)[[0, 1] * 3], "y_test": np.eye(5)[[0, 1, 4, 4]]}
    data = load(write_npz(tmp_path / "a.npz", **one_hot))
    assert data.classes == 5
    assert data.test.y.tolist() == [0, 1, 4, 4]


def test_arrays_without_a_test_part(tmp_path: Path) -> None:
    arrays = {k: v for k, v in small(20).items() if k.endswith("train")}
    options = write_npz(tmp_path / "a.npz", **arrays)
    drawn = load(replace(options, test_size=5))
    assert (len(drawn.train), len(drawn.test), drawn.test.name) == (15, 5, "test")
    held_out = load(replace(options, validation_size=4, use_test=False))
    assert (len(held_out.train), len(held_out.test), held_out.test.name) == (16, 4, "validation")
    assert "ships no test split; set dataset.test_size" in error_of(lambda: load(options))
    assert "ships no test split" in error_of(lambda: load(replace(options, validation_size=4)))


def as_object(y: np.ndarray) -> np.ndarray:
    return y.astype(object)


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "missing x": (
        {"x_train": None},
        "no x_train in it; wanted x_train, y_train, x_test, y_test (without a test split",
    ),
    "missing y_test": ({"y_test": None}, "no y_test in it"),
    "lengths": ({"y_train": np.arange(5)}, "x_train holds 6 examples, y_train 5"),
    "empty": ({"x_test": np.zeros((0, 3)), "y_test": np.zeros(0)}, "x_test (0, 3) or y_test (0,) is empty"),
    "no features": ({"x_train": np.zeros((6, 0))}, "x_train (6, 0) or y_train (6,) is empty"),
    "scalar": ({"x_train": np.float32(1)}, "x_train () or y_train (6,) is empty"),
    "one class": ({"y_train": np.ones(6), "y_test": np.ones(4)}, "every label is 1; a classifier needs two"),
    "one text class": (
        {"y_train": np.full(6, "a\nb"), "y_test": np.full(4, "a\nb")},
        "every label is a b; a classifier needs two",
    ),
    "fractions": ({"y_train": np.arange(6) / 2}, "y_train holds numbers that are not integers"),
    "nan labels": ({"y_train": np.full(6, np.nan)}, "y_train holds numbers that are not integers"),
    "huge labels": ({"y_train": np.full(6, 1e300)}, "y_train holds labels beyond 2^53"),
    "complex labels": ({"y_train": np.ones(6, complex)}, "y_train is complex128; labels are"),
    "soft labels": (
        {"y_train": np.full((6, 2), 0.5)},
        "y_train has shape (6, 2) but its rows are not one-hot",
    ),
    "two ones": ({"y_train": np.ones((6, 2))}, "rows are not one-hot"),
    "text rows": ({"y_train": np.full((6, 2), "a")}, "rows are not one-hot"),
    "cube of labels": (
        {"y_train": np.ones((6, 2, 2))},
        "y_train has shape (6, 2, 2); give one label an example",
    ),
    "mixed labels": ({"y_train": np.array(["a", "b"] * 3)}, "labels of different kinds"),
    "mixed one-hot": ({"y_train": np.eye(2)[[0, 1] * 3]}, "labels of different kinds"),
    "object labels": ({"y_train": as_object(np.arange(6))}, "Object arrays cannot be loaded"),
    "object inputs": ({"x_train": as_object(np.ones((6, 3)))}, "y.astype(str)"),
    "text inputs": ({"x_train": np.full((6, 3), "a")}, "x_train is <U1; numbers are read"),
    "complex inputs": ({"x_train": np.ones((6, 3), complex)}, "x_train is complex128; numbers are read"),
    "nan": ({"x_test": np.full((4, 3), np.nan)}, "x_test holds NaN or infinity"),
    "infinity": ({"x_train": np.full((6, 3), -np.inf)}, "x_train holds NaN or infinity"),
    "overflow": ({"x_train": np.full((6, 3), 1e39)}, "x_train holds float64 values too large for float32"),
    "shapes": ({"x_test": np.ones((4, 2), np.float32)}, "examples are (3,) in x_train, (2,) in x_test"),
    "types": ({"x_test": np.ones((4, 3), np.uint8)}, "x_train is float32 and x_test uint8"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(tmp_path: Path, case: str) -> None:
    change, expected = BAD_ARRAYS[case]
    arrays = {k: v for k, v in (small() | change).items() if v is not None}
    message = error_of(lambda: load(write_npz(tmp_path / "a.npz", **arrays)))
    assert expected in message
    assert str(tmp_path / "a.npz") in message


def test_bad_array_files(tmp_path: Path) -> None:
    def message(path: Path | str) -> str:
        return error_of(lambda: load(Arrays(source=Source.arrays, path=str(path))))

    assert "dataset.path is empty" in message("")
    assert "no such file" in message("gone.npz")
    assert ".npz and .safetensors files are read" in message("data.csv")
    broken = tmp_path / "broken.npz"
    write_npz(broken, **small())
    broken.write_bytes(broken.read_bytes()[:-30])
    assert "cannot be read as .npz" in message(broken)
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    assert "a single unnamed array" in message(tmp_path / "one.npz")
    assert "choose it with dataset=arrays" in error_of(lambda: load(dataset(Source.arrays)))
    assert "choose it with dataset=two_spirals" in error_of(lambda: checksum(dataset(Source.two_spirals)))


# ------------------------------------------------------------------------------------------------- splits


def numbered(tmp_path: Path, n: int = 60, test: bool = True) -> Arrays:
    """Examples that carry their own index, so that a split shows which it took."""
    x = np.arange(n, dtype=np.float32)
    arrays = {"x_train": x, "y_train": np.arange(n) % 2}
    if test:
        arrays |= {"x_test": x + 1000, "y_test": np.arange(n) % 2}
    return write_npz(tmp_path / "numbered.npz", **arrays)


def taken(data: Data) -> dict[str, list[int]]:
    splits = {split.name: split.x[:, 0].int().tolist() for split in (data.train, data.validation, data.test) if split}
    for split in (data.train, data.test):
        assert torch.equal(split.y, split.x[:, 0].long() % 2)
    return splits


@light
@given(
    test_size=st.integers(1, 15),
    validation_size=st.integers(0, 15),
    train_size=st.integers(1, 30),
    by=st.sampled_from(SplitBy),
    seed=st.sampled_from([0, 1, 2**32, 2**70 + 5]),
)
def test_splits_are_disjoint_and_reproducible(
    tmp_path: Path, test_size: int, validation_size: int, train_size: int, by: SplitBy, seed: int
) -> None:
    options = replace(
        numbered(tmp_path, test=False),
        test_size=test_size,
        validation_size=validation_size,
        validation_split=by,
        train_size=train_size,
        split_seed=seed,
    )
    splits = taken(load(options))
    assert taken(load(options)) == splits
    sizes = {"train": train_size, "test": test_size} | ({"validation": validation_size} if validation_size else {})
    assert {name: len(split) for name, split in splits.items()} == sizes
    together = [i for split in splits.values() for i in split]
    assert len(set(together)) == len(together)
    assert all(split == sorted(split) for split in splits.values())


def test_each_split_is_drawn_on_its_own(tmp_path: Path) -> None:
    options = replace(numbered(tmp_path, test=False), test_size=10)
    base = taken(load(options))
    assert taken(load(replace(options, validation_size=5)))["test"] == base["test"]
    assert taken(load(replace(options, split_seed=1)))["test"] != base["test"]
    few, more = (set(taken(load(replace(options, train_size=n)))["train"]) for n in (5, 20))
    assert few < more  # a smaller training set is part of a larger one
    shipped = numbered(tmp_path)
    drawn = replace(shipped, validation_size=20, validation_split=SplitBy.random)
    assert taken(load(drawn))["validation"] != taken(load(replace(drawn, split_seed=1)))["validation"]
    assert taken(load(drawn))["validation"] != list(range(40, 60))
    last = taken(load(replace(shipped, validation_size=20)))
    assert last["validation"] == list(range(40, 60))
    assert last["test"] == [1000 + i for i in range(60)]


def test_reporting_the_validation_split(tmp_path: Path) -> None:
    data = load(replace(numbered(tmp_path), validation_size=20, use_test=False))
    assert data.test is data.validation
    assert data.test.name == "validation"
    moved = data.to("cpu")
    assert moved.test is moved.validation
    apart = load(replace(numbered(tmp_path), validation_size=20)).to("cpu")
    assert apart.validation is not None
    assert (apart.validation.name, apart.test.name, len(apart.validation)) == ("validation", "test", 20)


def test_spirals_follow_the_seed() -> None:
    options = TwoSpirals(name="spirals", source=Source.two_spirals, examples=50)
    assert torch.equal(load(options).test.x, load(options).test.x)
    assert not torch.equal(load(options).test.x, load(replace(options, split_seed=1)).test.x)


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "shipped test": ({"test_size": 5}, "mine ships a test split (4 examples); set dataset.test_size=0"),
    "no validation": ({"use_test": False}, "dataset.validation_size=0; set it"),
    "validation": ({"validation_size": 6}, "dataset.validation_size=6 is too big: at most 5"),
    "train": ({"validation_size": 2, "train_size": 5}, "dataset.train_size=5 is too big: at most 4"),
    "crop": ({"crop_padding": 2}, "dataset.crop_padding is for images (C, H, W), the examples are (3,)"),
    "flip": ({"flip": True}, "dataset.flip is for images"),
    "shrink": ({"shrink": 2}, "dataset.shrink=2 is for images"),
    "pad": ({"pad_to": 9}, "dataset.pad_to=9 is for images"),
    "mean": ({"mean": [0.1, 0.2]}, "dataset.mean has 2 values, the data 3 channels (features); give 3, or 1"),
    "std": ({"std": [1.0] * 4}, "dataset.std has 4 values"),
    "zero std": ({"std": [1.0, 0.0, 1.0]}, "dataset.std=[1.0, 0.0, 1.0] must be greater than 0"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_options_that_do_not_fit_the_data(tmp_path: Path, case: str) -> None:
    options, expected = BAD_OPTIONS[case]
    arrays = write_npz(tmp_path / "a.npz", **small())
    assert expected in error_of(lambda: load(replace(arrays, **options)))


def test_sizes_that_do_not_fit_digits() -> None:
    assert "dataset.test_size=1797 is too big: at most 1796" in error_of(
        lambda: load(dataset(Source.digits, test_size=1797))
    )
    message = error_of(lambda: load(dataset(Source.digits, test_size=9, pad_to=7)))
    assert "dataset.pad_to=7 is smaller than the 8x8 images; set at least 8" in message
    message = error_of(lambda: load(dataset(Source.digits, test_size=9, shrink=3)))
    assert "dataset.shrink=3 does not divide the 8x8 images; set a divisor of both, or 1" in message


# -------------------------------------------------------------------------------- padding and normalisation


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_shrunk_images_are_means_of_squares_and_padded_afterwards(tmp_path: Path, dtype: type) -> None:
    x = np.random.default_rng(0).integers(0, 256, (6, 2, 4, 6)).astype(dtype)
    arrays = small() | {"x_train": x, "x_test": x[:4]}
    options = replace(write_npz(tmp_path / "a.npz", **arrays), channels=Channels.first, shrink=2)
    expected = x.astype(np.float64).reshape(6, 2, 2, 2, 3, 2).mean((3, 5))
    if dtype is np.uint8:
        expected = expected.round()  # halves to even
    data = load(options)
    assert data.shape == (2, 2, 3)
    np.testing.assert_array_equal(data.train.x.numpy(), expected.astype(dtype))
    np.testing.assert_array_equal(data.test.x.numpy(), expected[:4].astype(dtype))
    held = load(replace(options, validation_size=2, use_test=False, pad_to=4))
    assert held.test is held.validation
    assert held.shape == (2, 4, 4)
    np.testing.assert_array_equal(held.test.x.numpy()[:, :, 1:3, :3], expected[4:].astype(dtype))


def test_padding_is_centred_zeros(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(1, 256, (6, 2, 4, 6), np.uint8)
    arrays = small() | {"x_train": x, "x_test": x[:4]}
    options = replace(
        write_npz(tmp_path / "a.npz", **arrays),
        channels=Channels.first,
        pad_to=9,
        validation_size=2,
        use_test=False,
    )
    data = load(options)
    assert data.shape == (2, 9, 9)
    assert data.test is data.validation
    expected = np.zeros((6, 2, 9, 9), np.uint8)
    expected[:, :, 2:6, 1:7] = x  # what cannot be halved goes below and to the right
    np.testing.assert_array_equal(data.train.x.numpy(), expected[:4])
    np.testing.assert_array_equal(data.test.x.numpy(), expected[4:])
    assert data.mean.flatten().tolist() == pytest.approx(expected[:4].mean((0, 2, 3)) / 255)


@light
@given(
    n=st.integers(2, 12),
    shape=st.sampled_from([(4,), (1, 3, 2), (3, 4, 4), (2, 2, 3, 2)]),
    byte=st.booleans(),
    seed=st.integers(0, 99),
    chunk=st.integers(1, 5),
)
def test_measured_statistics_and_normalisation(
    tmp_path: Path, n: int, shape: tuple[int, ...], byte: bool, seed: int, chunk: int
) -> None:
    random = np.random.default_rng(seed)
    dtype = np.uint8 if byte else np.float32
    x = (random.integers(0, 256, (n + 3, *shape)) * (1 if byte else 0.37)).astype(dtype)
    y = np.arange(n + 3) % 2
    options = replace(
        write_npz(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y),
        validation_size=3,
        channels=Channels.first,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeconn_cli.data.dataset.CHUNK", chunk)
        data = load(options)
    exact = x[:n].astype("f8") / (255 if byte else 1)  # the held out examples take no part
    axes = (0, *range(2, exact.ndim))
    mean, std = exact.mean(axes, keepdims=True), exact.std(axes, keepdims=True)
    std[std <= 1e-9 * abs(mean)] = 1
    np.testing.assert_allclose(data.mean.numpy(), mean, rtol=1e-6)
    np.testing.assert_allclose(data.std.numpy(), std, rtol=1e-6)
    batch = data.inputs(data.train, slice(0, n))
    assert batch.dtype == torch.float32
    np.testing.assert_allclose(batch.numpy(), (exact - mean) / std, rtol=1e-5, atol=2e-5)
    order = torch.from_numpy(random.permutation(n))
    assert torch.equal(data.inputs(data.train, order), batch[order])


def test_constant_features_are_not_scaled(tmp_path: Path) -> None:
    x = np.full((6, 3), 0.1, np.float32)
    x[:, 1] = [1, 2, 3, 4, 5, 6]
    x[:, 2] = 0
    data = load(write_npz(tmp_path / "a.npz", **(small() | {"x_train": x})))
    assert data.std[0, 0] == 1
    assert data.std[0, 2] == 1
    assert data.std[0, 1].item() == pytest.approx(math.sqrt(35 / 12))


def test_a_large_mean_keeps_its_digits(tmp_path: Path) -> None:
    x = np.float32(2**20) + np.arange(6, dtype=np.float32)
    data = load(write_npz(tmp_path / "a.npz", **(small() | {"x_train": x, "x_test": x[:4]})))
    batch = data.inputs(data.train, slice(None))[:, 0]
    np.testing.assert_allclose(batch.numpy(), (np.arange(6) - 2.5) / np.arange(6).std(), rtol=1e-6)


def test_given_statistics(tmp_path: Path) -> None:
    x, y = images(6, (3, 4, 4))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    options = write_npz(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    data = load(replace(options, mean=mean, std=std))
    reference = (x.astype("f8") / 255 - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    np.testing.assert_allclose(data.inputs(data.test, slice(None)).numpy(), reference, rtol=1e-5, atol=1e-6)
    data = load(replace(options, mean=[0.5]))
    assert data.mean.flatten().tolist() == [0.5] * 3
    measured = (x.astype("f8") / 255).std((0, 2, 3))
    assert data.std.flatten().tolist() == pytest.approx(measured.tolist())


# --------------------------------------------------------------------------------------------- augmentation


@light
@given(
    n=st.integers(1, 9),
    channels=st.integers(1, 3),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    padding=st.integers(0, 4),
    flip=st.booleans(),
    byte=st.booleans(),
    seed=st.integers(0, 99),
)
def test_batched_augmentation_equals_one_image_at_a_time(
    n: int, channels: int, height: int, width: int, padding: int, flip: bool, byte: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(1, 256, (n, channels, height, width), generator=generator)
    x = x.to(torch.uint8) if byte else x * 0.3
    augment = Augment(padding, flip)
    draw = augment.draw(n, generator)
    expected = []
    for image, (top, left), flipped in zip(x, draw.offsets.tolist(), draw.flips.tolist(), strict=True):
        padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=x.dtype)
        padded[:, padding : padding + height, padding : padding + width] = image
        crop = padded[:, top : top + height, left : left + width]
        expected.append(torch.flip(crop, [-1]) if flipped else crop)
    out = augment.apply(x, draw)
    assert out.dtype == x.dtype
    assert torch.equal(out, torch.stack(expected))


@light
@given(
    n=st.integers(1, 6),
    channels=st.integers(1, 3),
    height=st.integers(2, 7),
    width=st.integers(2, 7),
    side=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_cutout_equals_one_image_at_a_time(
    n: int, channels: int, height: int, width: int, side: int, seed: int
) -> None:
    side = min(side, height, width)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, channels, height, width, generator=generator) + 1
    augment = Augment(cutout=side)
    draw = augment.draw(n, generator)
    expected = x.clone()
    for image, (down, across) in zip(expected, draw.cuts.tolist(), strict=True):
        top, left = int(down * (height - side + 1)), int(across * (width - side + 1))
        image[:, top : top + side, left : left + side] = 0
    out = augment.cut(augment.apply(x, draw), draw)
    assert torch.equal(out, expected)
    assert ((out == 0).sum((1, 2, 3)) == channels * side**2).all()  # wholly inside, every time


def test_cutout_reaches_every_place_and_leaves_the_other_draws_alone() -> None:
    draw = Augment(2, True, 3).draw(4000, torch.Generator().manual_seed(0))
    without = Augment(2, True).draw(4000, torch.Generator().manual_seed(0))
    assert torch.equal(draw.offsets, without.offsets)
    assert torch.equal(draw.flips, without.flips)
    images = Augment(cutout=3).cut(torch.ones(4000, 1, 6, 6), draw)[:, 0]
    corners = torch.stack([(images[:, i : i + 3, j : j + 3] == 0).all(-1).all(-1) for i in range(4) for j in range(4)])
    assert (corners.sum(0) == 1).all()
    assert (corners.sum(1) - 250).abs().max() < 93  # six standard deviations of a fair draw


def test_what_is_cut_out_is_the_mean(tmp_path: Path) -> None:
    x, y = images(8, (3, 6, 6))
    options = write_npz(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    data = load(replace(options, cutout=6))
    draw = data.augment.draw(8, torch.Generator().manual_seed(0))
    assert not data.inputs(data.train, slice(None), draw).any()
    with pytest.raises(UserError, match=r"dataset\.cutout=7 is larger than the 6x6 images; set at most 6, or 0"):
        load(replace(options, cutout=7))


def test_statistics_are_taken_on_one_augmented_draw_where_asked(tmp_path: Path) -> None:
    x, y = images(8, (3, 6, 6))
    options = write_npz(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    some = torch.tensor([1, 5])
    assert load(replace(options, crop_padding=2)).for_statistics(some) is None
    data = load(replace(options, crop_padding=2, flip=True, statistics="augmented"))
    draw = data.for_statistics(some)
    assert draw is not None
    again = load(replace(options, crop_padding=2, flip=True, statistics="augmented")).to("cpu").for_statistics(some)
    assert again is not None
    assert torch.equal(draw.offsets, again.offsets)
    assert not torch.equal(data.inputs(data.train, some, draw), data.inputs(data.train, some))
    with pytest.raises(UserError, match=r"nothing augments these examples: set dataset\.crop_padding"):
        load(replace(options, statistics="augmented"))


def test_draws_cover_what_they_may_and_nothing_else() -> None:
    draw = Augment(2, True).draw(4000, torch.Generator().manual_seed(0))
    for column in draw.offsets.T:
        counts = torch.bincount(column)
        assert len(counts) == 5
        assert (counts - 800).abs().max() < 150  # six standard deviations of a fair draw
    assert abs(int(draw.flips.sum()) - 2000) < 190
    together = torch.bincount(draw.offsets[:, 0] * 5 + draw.offsets[:, 1], minlength=25)
    assert (together - 160).abs().max() < 75


def test_draws_are_seeded_and_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    x, y = images(20, (3, 6, 6))
    options = write_npz(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    data = load(replace(options, crop_padding=2, flip=True))
    draw = data.augment.draw(20, torch.Generator().manual_seed(3))
    again = data.augment.draw(20, torch.Generator().manual_seed(3)).to("cpu")
    order = torch.randperm(20, generator=torch.Generator().manual_seed(4))
    whole = data.inputs(data.train, order, draw)
    assert torch.equal(whole, data.inputs(data.train, order, again))
    for size in (1, 7, 20):
        parts = [data.inputs(data.train, order[i : i + size], draw[i : i + size]) for i in range(0, 20, size)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=1e-6)
    assert torch.equal(draw[order].flips, draw.flips[order])
    plain = data.inputs(data.train, order)
    assert not torch.equal(whole, plain)
    black = ((0 - data.mean) / data.std).expand(1, 3, 1, 1)
    shifted = int((draw.offsets[:, 0] == 0).nonzero()[0])  # its two top rows are padding: black, then normalised
    torch.testing.assert_close(whole[shifted, :, :2], black[0].expand(3, 2, 6), rtol=1e-5, atol=1e-5)


def test_augmentation_that_is_off_changes_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    augment = Augment()
    draw = augment.draw(5, generator)
    assert torch.equal(generator.get_state(), before)
    vectors = torch.arange(10.0).view(5, 2)
    assert not augment.active
    assert torch.equal(augment.apply(vectors, draw), vectors)
    with pytest.raises(ValueError, match="5 examples cannot augment a batch of 4"):
        augment.apply(vectors[:4], draw)


# ------------------------------------------------------------------------------------------------ checksums


def test_checksum_is_of_the_content(tmp_path: Path) -> None:
    wanted = dataset(Source.mnist, data_dir=str(tmp_path))
    write_idx(tmp_path)
    plain = checksum(wanted)
    assert load(wanted).checksum == plain
    assert len(plain) == 64
    options = replace(wanted, validation_size=2, split_seed=5, flip=True, mean=[0.5], std=[0.5], name="other")
    assert checksum(options) == plain
    for name in IDX_FILES:
        path = tmp_path / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert checksum(wanted) != plain
        path.write_bytes(data)
    for name in IDX_FILES:
        (tmp_path / name).unlink()
    write_idx(tmp_path, zipped=True)
    assert checksum(wanted) == plain


def test_checksum_of_cifar_in_a_folder_and_in_an_archive(tmp_path: Path) -> None:
    files = cifar_pickles(100, 2)
    write_folder(tmp_path / "one" / "cifar-100-python", files)
    (tmp_path / "two").mkdir()
    write_archive(tmp_path / "two" / "cifar-100-python.tar.gz", files)
    one, two = (checksum(dataset(Source.cifar100, data_dir=str(tmp_path / name))) for name in ("one", "two"))
    assert one == two


def test_checksum_of_what_is_made_or_given(tmp_path: Path) -> None:
    options = TwoSpirals(name="spirals", source=Source.two_spirals)
    changed = [{"examples": 2002}, {"turns": 2.0}, {"noise": 0.05}, {"split_seed": 1}]
    sums = [checksum(options)] + [checksum(replace(options, **change)) for change in changed]
    assert len(set(sums)) == 5
    assert checksum(replace(options, validation_size=10, name="other")) == sums[0]
    assert load(options).checksum == sums[0]
    arrays = write_npz(tmp_path / "a.npz", **small())
    before = checksum(arrays)
    assert load(arrays).checksum == before
    write_npz(tmp_path / "a.npz", **(small() | {"y_test": np.array([1, 0, 1, 0])}))
    assert checksum(arrays) != before
    digits = dataset(Source.digits, test_size=9)
    assert checksum(digits) == load(digits).checksum == checksum(dataset(Source.digits))


# ---------------------------------------------------------------------------------------------- conf/dataset

NODES = {"_dataset": Dataset, "_two_spirals": TwoSpirals, "_arrays": Arrays, "_custom": CustomData}
CONFS = sorted(CONF.glob("*.yaml"))


def test_every_source_has_a_configuration() -> None:
    assert {yaml.safe_load(path.read_text())["source"] for path in CONFS} == {source.value for source in Source}


@pytest.mark.parametrize("path", CONFS, ids=lambda path: path.stem)
def test_configuration_names_itself_and_only_what_differs(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    values = yaml.safe_load(text)
    (node,) = values.pop("defaults")
    fields = {f.name: getattr(NODES[node](), f.name) for f in dataclasses.fields(NODES[node])}
    assert values.pop("name") == path.stem
    source = Source(values.pop("source"))
    assert set(values) <= set(fields)
    assert all(fields[name] != value for name, value in values.items())
    if source in (Source.digits, Source.two_spirals):
        data = load(NODES[node](name=path.stem, source=source, **values))
        assert len(data.test) > 0


# --------------------------------------------------------------------------------- classes without an example


def test_labels_keep_their_meaning_where_the_number_of_classes_is_said() -> None:
    found = {"x_train": np.zeros((4, 2)), "y_train": np.array([0, 1, 3, 3])}
    assert raw_of(found, "a.npz").y.tolist() == [0, 1, 2, 2]
    raw = raw_of(found, "a.npz", classes=4)
    assert (raw.y.tolist(), raw.classes, raw.class_names) == ([0, 1, 3, 3], 4, None)
    shifted = raw_of(found | {"y_train": np.array([1, 2, 3, 4])}, "a.npz", classes=4)
    assert (shifted.y.tolist(), shifted.classes) == ([0, 1, 2, 3], 4)
    for labels, said in (([1, 2, 4, 4], "from 0 to 3, and 3 run from 1 to 4"), (["a", "b", "c", "c"], "are text")):
        with pytest.raises(UserError, match=said):
            raw_of(found | {"y_train": np.array(labels)}, "a.npz", classes=4)


def test_every_source_may_have_more_classes_than_labels() -> None:
    assert load(Dataset(name="digits", source="digits", test_size=9, classes=12)).classes == 12
    assert load(TwoSpirals(examples=20, classes=3)).classes == 3
    with pytest.raises(UserError, match=r"dataset\.classes=9: the labels of digits count 10"):
        load(Dataset(name="digits", source="digits", test_size=9, classes=9))
    numbers = Raw(torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, 2), torch.zeros(4), None)
    with pytest.raises(UserError, match="are numbers, not labels"):
        prepare(numbers, "", Dataset(name="yacht", classes=3))
