"""Where each source's files are looked for, how to get them, their checksum, and their content as tensors."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from modeconn_cli.data import arrays, custom
from modeconn_cli.data.formats import (
    IDX_FILES,
    Content,
    Contents,
    Raw,
    damaged,
    gunzip,
    read_cifar,
    read_cifar_binary,
    read_idx,
    read_svhn,
    read_table,
)
from modeconn_cli.data.options import Arrays, CustomData, Dataset, Source, TwoSpirals
from modeconn_cli.errors import UserError
from modeconn_cli.unpacking import LARGEST, unbelievable

SYSTEM_FOLDERS = {Source.fashion_mnist: Path("/usr/share/datasets/fashion-mnist")}
TORCHVISION = {
    Source.fashion_mnist: "FashionMNIST",
    Source.mnist: "MNIST",
    Source.kmnist: "KMNIST",
    Source.cifar10: "CIFAR10",
    Source.cifar100: "CIFAR100",
    Source.svhn: "SVHN",
}
DIGITS = Path(__file__).with_name("digits.npz")
_digests: dict[tuple[object, ...], str] = {}


@dataclass(frozen=True)
class Layout:
    """One shape a source comes in: its files, in the folder itself or in a sub-folder or archive of it."""

    files: tuple[str, ...]
    read: Callable[[Contents], Raw]
    container: str = ""

    @property
    def archive(self) -> bool:
        return self.container.endswith(".tar.gz")


def _cifar_layouts(number: int, train: tuple[str, ...], test: str, key: str) -> tuple[Layout, ...]:
    names = (*train, test)
    binary = tuple(f"{name}.bin" for name in names)
    python = partial(read_cifar, train=train, test=test, key=key, classes=number)
    records = partial(read_cifar_binary, train=binary[:-1], test=binary[-1], classes=number)
    folder = f"cifar-{number}-batches" if number == 10 else f"cifar-{number}"
    return (
        Layout(names, python, f"{folder}-py" if number == 10 else f"{folder}-python"),
        Layout(binary, records, f"{folder}-bin" if number == 10 else f"{folder}-binary"),
        Layout(names, python, f"cifar-{number}-python.tar.gz"),
        Layout(binary, records, f"cifar-{number}-binary.tar.gz"),
    )


_IDX = (Layout(IDX_FILES, partial(read_idx, classes=10)),)
LAYOUTS: Mapping[Source, tuple[Layout, ...]] = {
    Source.fashion_mnist: _IDX,
    Source.mnist: _IDX,
    Source.kmnist: _IDX,
    Source.cifar10: _cifar_layouts(10, tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "labels"),
    Source.cifar100: _cifar_layouts(100, ("train",), "test", "fine_labels"),
    Source.svhn: (Layout(("train_32x32.mat", "test_32x32.mat"), partial(read_svhn, classes=10)),),
    **{
        source: tuple(Layout((name,), read_table) for name in names)
        for source, names in {
            Source.yacht: ("yacht.data", "dold_yacht.data", "yacht_hydrodynamics.data"),
            Source.energy: ("energy.data", "dold_energy.data"),
            Source.concrete: ("concrete.data", "dold_concrete.data"),
            Source.airfoil: ("airfoil.data", "dold_airfoil.data", "airfoil_self_noise.dat"),
        }.items()
    },
}


# ----------------------------------------------------------------------------------------------- finding


def how_to_get(source: Source | str) -> str:
    """One line that says where a source's files come from."""
    source = Source(source)
    if source in (Source.digits, Source.two_spirals):
        return "nothing to get: it comes with this package"
    if source is Source.custom:
        return "set dataset.target to a function that returns the data, as path/to/file.py:load"
    if source in LAYOUTS and source not in TORCHVISION:
        return (
            f"save it as uci/{LAYOUTS[source][0].files[0]} there, one example a line and the target last, or set "
            "dataset.data_dir to the folder that holds it"
        )
    if source is Source.arrays:
        return f"set dataset.path to a .npz or .safetensors file with {', '.join(arrays.KEYS)}"
    apt = "apt install dataset-fashion-mnist, or " if source is Source.fashion_mnist else ""
    return f"{apt}add dataset.download=true, or set dataset.data_dir to the folder that holds the files"


def search(source: Source | str, data_dir: str | None = None) -> list[tuple[Path, bool]]:
    """Every folder a source is looked for in, and whether all its files are there; the first hit is read.

    Empty for sources that are made or given rather than looked for (two_spirals, arrays).
    """
    source = Source(source)
    if source is Source.digits:
        return [(DIGITS, DIGITS.is_file())]
    return [(folder, _find(source, folder) is not None) for folder in _folders(source, data_dir)]


def _roots(data_dir: str | None) -> list[Path]:
    given = [data_dir, os.environ.get("MODECONN_DATA"), "data"]
    return list(dict.fromkeys(Path(root).expanduser() for root in given if root))


def _folders(source: Source, data_dir: str | None) -> list[Path]:
    if source not in LAYOUTS:
        return []
    folders = []
    for root in _roots(data_dir):
        # The folders that carry the source's name come first: MNIST's relatives all use the same file names.
        folders += [root / part for part in _parts(source)] + [root]
    return [*folders, *([SYSTEM_FOLDERS[source]] if source in SYSTEM_FOLDERS else [])]


def _parts(source: Source) -> list[str]:
    """Sub-folders of a root that may hold a source's files."""
    return [source.value, f"{TORCHVISION[source]}/raw" if source in TORCHVISION else "uci"]


@dataclass(frozen=True)
class Located:
    layout: Layout
    place: Path  # the folder or archive
    paths: Mapping[str, Path]  # empty for an archive


def _spellings(name: str) -> list[str]:
    plain = dict.fromkeys([name, name.replace("-idx", ".idx")])
    return [spelling + end for spelling in plain for end in ("", ".gz")]


def _inside(layout: Layout, folder: Path) -> tuple[Path, dict[str, Path]]:
    place = folder if folder.name == layout.container else folder / layout.container
    there = {name: [place / s for s in _spellings(name) if (place / s).is_file()] for name in layout.files}
    return place, {name: paths[0] for name, paths in there.items() if paths}


def _find(source: Source, folder: Path) -> Located | None:
    for layout in LAYOUTS[source]:
        if layout.archive:
            if (folder / layout.container).is_file():
                return Located(layout, folder / layout.container, {})
            continue
        place, paths = _inside(layout, folder)
        if len(paths) == len(layout.files):
            return Located(layout, place, paths)
    return None


def _find_anywhere(source: Source, data_dir: str | None) -> Located | None:
    hits = (_find(source, folder) for folder in _folders(source, data_dir))
    return next((hit for hit in hits if hit), None)


def _missing(source: Source, data_dir: str | None) -> UserError:
    """Names the first file that is not there: of the folder that lacks fewest, if any holds some."""
    partly = [
        (place, layout, paths)
        for folder in _folders(source, data_dir)
        for layout in LAYOUTS[source]
        if not layout.archive
        for place, paths in [_inside(layout, folder)]
        if paths
    ]
    roots = ", ".join(str(root) for root in _roots(data_dir))
    where = f"looked in {roots} (and {', '.join(f'{part}/' for part in _parts(source))} there)"
    if source in SYSTEM_FOLDERS:
        where += f" and {SYSTEM_FOLDERS[source]}"
    if not partly:
        first = LAYOUTS[source][0]
        wanted = first.container or first.files[0]
        return UserError(f"{source.value}: {wanted} not found; {where}; {how_to_get(source)}")
    place, layout, paths = min(partly, key=lambda part: len(part[1].files) - len(part[2]))
    absent = next(name for name in layout.files if name not in paths)
    return UserError(f"{source.value}: {absent} is missing from {place}; {where}; {how_to_get(source)}")


def _download(source: Source, data_dir: str | None) -> None:
    from modeconn_cli.torchvision_compat import import_torchvision

    if source not in TORCHVISION:
        raise UserError(f"{source.value}: there is no download of it; {how_to_get(source)}")
    root = Path(data_dir or "data").expanduser()
    try:
        reader = getattr(import_torchvision().datasets, TORCHVISION[source])
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for data
            if source is Source.svhn:
                for split in ("train", "test"):
                    reader(str(root), split=split, download=True)
            else:
                reader(str(root), download=True)
    except Exception as error:  # the network, the disk and torchvision's own checks fail in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{source.value}: download into {root} failed: {reason}; check the network, or copy the files "
            "here and set dataset.data_dir to their folder"
        ) from error


def _located(dataset: Dataset) -> Located:
    source, data_dir = Source(dataset.source), dataset.data_dir
    if data_dir and not dataset.download and not Path(data_dir).expanduser().is_dir():
        raise UserError(f"dataset.data_dir={data_dir} is not a folder; give one that holds {source.value}")
    found = _find_anywhere(source, data_dir)
    if found is None and dataset.download:
        _download(source, data_dir)
        found = _find_anywhere(source, data_dir)
    if found is None:
        raise _missing(source, data_dir)
    return found


# ----------------------------------------------------------------------------------------------- reading


def _contents(found: Located) -> dict[str, Content]:
    """The uncompressed content of every file of a source, under the file's canonical name."""
    if found.layout.archive:
        return _archived(found.layout, found.place)
    contents = {}
    for name, path in found.paths.items():
        try:
            if path.stat().st_size > LARGEST:
                raise damaged(path, f"{path.stat().st_size} bytes, and no file of these sources has as many")
            contents[name] = gunzip(Content(str(path), path.read_bytes()))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error
    return contents


def _archived(layout: Layout, path: Path) -> dict[str, Content]:
    contents = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = Path(member.name).name
                stream = archive.extractfile(member) if member.isfile() and name in layout.files else None
                if stream:
                    if unbelievable(path.stat().st_size, member.size):
                        raise damaged(path, f"it declares {member.size} bytes of {name}")
                    contents[name] = Content(f"{path}:{member.name}", stream.read())
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        size = path.stat().st_size
        raise damaged(path, f"truncated or corrupt archive of {size} bytes: {error}") from error
    if absent := [name for name in layout.files if name not in contents]:
        raise damaged(path, f"{absent[0]} is not in the archive")
    return contents


def _digest(contents: Contents) -> str:
    total = hashlib.sha256()
    for name in sorted(contents):
        total.update(f"{name} {hashlib.sha256(contents[name].data).hexdigest()}\n".encode())
    return total.hexdigest()


def _unless_changed(paths: Iterable[Path], digest: Callable[[], str]) -> str:
    """The digest of files, made again only where one of them is another than when this process last asked."""
    stamps = [(path, (s := path.stat()).st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path in paths]
    key = tuple(stamps)
    if key not in _digests:
        _digests[key] = digest()
    return _digests[key]


def checksum(dataset: Dataset) -> str:
    """SHA-256 of the raw data, 64 hex digits; for two_spirals, of the options that generate it.

    It is taken of the uncompressed content, so the same files gzipped, plain or inside their archive agree.

    Raises UserError when the files are missing or cannot be read.
    """
    match Source(dataset.source):
        case Source.two_spirals:
            spirals = _two_spirals_options(dataset)
            made = [spirals.examples, float(spirals.turns), float(spirals.noise), spirals.split_seed]
            return hashlib.sha256(json.dumps(["two_spirals", 1, *made]).encode()).hexdigest()
        case Source.arrays:
            path = arrays.find(_arrays_options(dataset))
            return _unless_changed([path], lambda: _file_digest(path))
        case Source.custom:
            return custom.checksum(_custom_options(dataset))
        case Source.digits:
            return _file_digest(DIGITS)
        case _:
            found = _located(dataset)
            paths = found.paths.values() or [found.place]
            return _unless_changed(paths, lambda: _digest(_contents(found)))


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error


def read(dataset: Dataset, targets: arrays.Targets = "classes") -> tuple[Raw, str]:
    """A source's data before splitting, and its checksum. Raises UserError naming the file and its fault."""
    match Source(dataset.source):
        case Source.two_spirals:
            return two_spirals(_two_spirals_options(dataset)), checksum(dataset)
        case Source.arrays:
            return arrays.read(_arrays_options(dataset), targets), checksum(dataset)
        case Source.custom:
            return custom.read(_custom_options(dataset), targets), checksum(dataset)
        case Source.digits:
            return digits(), checksum(dataset)
        case _:
            found = _located(dataset)
            contents = _contents(found)
            return found.layout.read(contents), _digest(contents)


def _two_spirals_options(dataset: Dataset) -> TwoSpirals:
    if not isinstance(dataset, TwoSpirals):
        raise UserError("dataset.source=two_spirals has its own options; choose it with dataset=two_spirals")
    return dataset


def _arrays_options(dataset: Dataset) -> Arrays:
    if not isinstance(dataset, Arrays):
        raise UserError("dataset.source=arrays has its own options; choose it with dataset=arrays")
    return dataset


def _custom_options(dataset: Dataset) -> CustomData:
    if not isinstance(dataset, CustomData):
        raise UserError("dataset.source=custom has its own options; choose it with dataset=custom")
    return dataset


# ------------------------------------------------------------------------------------- embedded and made


def digits() -> Raw:
    """The 1797 handwritten digits of 8 x 8 pixels that scikit-learn bundles; no test split.

    They are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI
    Machine Learning Repository, 1998, doi:10.24432/C50P49), licensed CC BY 4.0. ``digits.npz`` keeps the
    published pixel values, 0 to 16; they are read times 15, so that ink takes 0 to 240 of a byte's 0 to 255.
    """
    with np.load(io.BytesIO(DIGITS.read_bytes()), allow_pickle=False) as archive:
        x = torch.from_numpy(archive["x"][:, None] * np.uint8(15))
        y = torch.from_numpy(archive["y"].astype(np.int64))
    return Raw(x, y, None, None, 10)


def random_state(seed: int, stream: int) -> np.random.RandomState:
    """An independent stream of a seed. RandomState is frozen for good: any numpy gives the same numbers."""
    words = [seed >> shift & 0xFFFFFFFF for shift in range(0, max(seed.bit_length(), 1), 32)]
    return np.random.RandomState([stream, *words])


def two_spirals(options: TwoSpirals) -> Raw:
    """Two interleaved arms from the origin to radius 1, half a turn apart; x (N, 2) float32."""
    random = random_state(options.split_seed, 0)
    points, arms = [], []
    for _ in ("train", "test"):
        arm = np.arange(options.examples) % 2
        radius = np.sqrt(random.random_sample(options.examples))  # spreads the points along the arm
        angle = 2 * np.pi * options.turns * radius + np.pi * arm
        clean = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        noisy = clean + options.noise * random.standard_normal((options.examples, 2))
        points.append(torch.from_numpy(noisy.astype(np.float32)))
        arms.append(torch.from_numpy(arm.astype(np.int64)))
    return Raw(points[0], arms[0], points[1], arms[1], 2)
