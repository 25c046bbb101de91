"""Data sets in files of a published form: where these are looked for, how they are fetched, and their checksum."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from modeconn_cli.data.arrays import Targets
from modeconn_cli.data.formats import Content, Contents, Raw, damaged, gunzip
from modeconn_cli.data.options import Dataset
from modeconn_cli.data.reader import Reader, unless_changed
from modeconn_cli.errors import UserError
from modeconn_cli.unpacking import LARGEST, unbelievable


@dataclass(frozen=True)
class Layout:
    """One shape a source comes in: its files, in the folder itself or in a sub-folder or archive of it."""

    files: tuple[str, ...]
    read: Callable[[Contents], Raw]
    container: str = ""

    @property
    def archive(self) -> bool:
        return self.container.endswith(".tar.gz")


@dataclass(frozen=True)
class Located:
    """The files of a layout, found: by name in a folder, or all in an archive."""

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


@dataclass(frozen=True)
class Kind:
    """One published data set: the layouts that it comes in, the first the usual one.

    folder: of a root, where it may lie besides in one of its name. torchvision: its class there, which can download
    it, and lists the splits by which it is asked for. system: a folder of the operating system's. get: how it is got,
    besides by download and by naming its folder.
    """

    layouts: tuple[Layout, ...]
    folder: str
    torchvision: str = ""
    splits: tuple[str, ...] = ()
    system: Path | None = None
    get: str = ""


class Files(Reader[Dataset]):
    """Reads the files of one kind; the first folder that has them all is taken."""

    def __init__(self, options: Dataset, kind: Kind) -> None:
        super().__init__(options)
        self.kind = kind

    def read(self, targets: Targets) -> tuple[Raw, str]:
        found = self._located()
        contents = _contents(found)
        return found.layout.read(contents), _digest(contents)

    def checksum(self) -> str:
        """Of the uncompressed content, so the same files gzipped, plain or inside their archive agree."""
        found = self._located()
        paths = found.paths.values() or [found.place]
        return unless_changed(paths, lambda: _digest(_contents(found)))

    def places(self) -> list[tuple[Path, bool]]:
        return [(folder, self._find(folder) is not None) for folder in self._folders()]

    def how_to_get(self) -> str:
        if not self.kind.torchvision:
            return f"{self.kind.get}, or set dataset.data_dir to the folder that holds it"
        before = f"{self.kind.get}, or " if self.kind.get else ""
        return f"{before}add dataset.download=true, or set dataset.data_dir to the folder that holds the files"

    def _roots(self) -> list[Path]:
        given = [self.options.data_dir, os.environ.get("MODECONN_DATA"), "data"]
        return list(dict.fromkeys(Path(root).expanduser() for root in given if root))

    @property
    def _parts(self) -> list[str]:
        """Sub-folders of a root that may hold the files."""
        return [self.source, self.kind.folder]

    def _folders(self) -> list[Path]:
        folders = []
        for root in self._roots():
            # The folders that carry the source's name come first: MNIST's relatives all use the same file names.
            folders += [root / part for part in self._parts] + [root]
        return [*folders, *([self.kind.system] if self.kind.system else [])]

    def _find(self, folder: Path) -> Located | None:
        for layout in self.kind.layouts:
            if layout.archive:
                if (folder / layout.container).is_file():
                    return Located(layout, folder / layout.container, {})
                continue
            place, paths = _inside(layout, folder)
            if len(paths) == len(layout.files):
                return Located(layout, place, paths)
        return None

    def _located(self) -> Located:
        data_dir, download = self.options.data_dir, self.options.download
        if data_dir and not download and not Path(data_dir).expanduser().is_dir():
            raise UserError(f"dataset.data_dir={data_dir} is not a folder; give one that holds {self.source}")
        found = self._find_anywhere()
        if found is None and download:
            self._download()
            found = self._find_anywhere()
        if found is None:
            raise self._missing()
        return found

    def _find_anywhere(self) -> Located | None:
        hits = (self._find(folder) for folder in self._folders())
        return next((hit for hit in hits if hit), None)

    def _missing(self) -> UserError:
        """Names the first file that is not there: of the folder that lacks fewest, if any holds some."""
        partly = [
            (place, layout, paths)
            for folder in self._folders()
            for layout in self.kind.layouts
            if not layout.archive
            for place, paths in [_inside(layout, folder)]
            if paths
        ]
        roots = ", ".join(str(root) for root in self._roots())
        where = f"looked in {roots} (and {', '.join(f'{part}/' for part in self._parts)} there)"
        if self.kind.system:
            where += f" and {self.kind.system}"
        if not partly:
            first = self.kind.layouts[0]
            wanted = first.container or first.files[0]
            return UserError(f"{self.source}: {wanted} not found; {where}; {self.how_to_get()}")
        place, layout, paths = min(partly, key=lambda part: len(part[1].files) - len(part[2]))
        absent = next(name for name in layout.files if name not in paths)
        return UserError(f"{self.source}: {absent} is missing from {place}; {where}; {self.how_to_get()}")

    def _download(self) -> None:
        from modeconn_cli.torchvision_compat import import_torchvision

        if not self.kind.torchvision:
            raise UserError(f"{self.source}: there is no download of it; {self.how_to_get()}")
        root = Path(self.options.data_dir or "data").expanduser()
        try:
            fetch = getattr(import_torchvision().datasets, self.kind.torchvision)
            root.mkdir(parents=True, exist_ok=True)
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for data
                for split in self.kind.splits:
                    fetch(str(root), split=split, download=True)
                if not self.kind.splits:
                    fetch(str(root), download=True)
        except Exception as error:  # the network, the disk and torchvision's own checks fail in many ways
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{self.source}: download into {root} failed: {reason}; check the network, or copy the files "
                "here and set dataset.data_dir to their folder"
            ) from error


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
