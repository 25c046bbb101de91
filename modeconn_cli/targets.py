"""What a configuration names by target: "package.module:name" or "path/to/file.py:name"."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.failures import refused, said
from modeconn_cli.nearest import nearest_words


@dataclass(frozen=True)
class Target:
    """An object in a module or a file, relative to the working directory.

    text: what is configured; group: whose ``<group>.target`` it is.
    """

    text: str
    group: str

    @property
    def checksum(self) -> str:
        """SHA-256, in hex, of the source file; it is not run.

        Raises:
            UserError: there is no such file or module.
        """
        return hashlib.sha256(self._source_file().read_bytes()).hexdigest()

    def load(self) -> Any:
        """The object itself; its module is run.

        Raises:
            UserError: it cannot be imported, or has no such name.
        """
        source, name = self._split()
        module = self._module()
        found = getattr(module, name, None)
        if found is None:
            public = [n for n in vars(module) if not n.startswith("_")]
            close = nearest_words(name, public)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(f"custom {self.group}'s {source} has no {name}{hint}: correct {self.group}.target")
        return found

    def call(self, make: Callable[..., Any], offered: dict[str, Any], kwargs: dict[str, Any]) -> Any:
        """The object called with ``kwargs``, and with what is offered where its signature names it and they do not.

        Raises:
            UserError: its signature takes others, or it fails.
        """
        signature = _signature(make)
        if signature is not None:
            by_name = {
                name
                for name, parameter in signature.parameters.items()
                if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            }
            kwargs = {name: value for name, value in offered.items() if name in by_name} | kwargs
            try:
                signature.bind(**kwargs)
            except TypeError as error:
                raise UserError(
                    f"{self.text}{signature} cannot be called with {', '.join(kwargs) or 'no arguments'} "
                    f"({error}): correct {self.group}.kwargs"
                ) from error
        try:
            return make(**kwargs)
        except Exception as error:
            line = f"{self.text} failed ({said(error)}): correct it or {self.group}.kwargs"
            raise refused(error, line) from error

    def _split(self) -> tuple[str, str]:
        source, _, name = self.text.rpartition(":")
        if not source or not name:
            raise UserError(
                f"custom {self.group} has no usable target {self.text!r}: set {self.group}.target to "
                "package.module:name or path/to/file.py:name"
            )
        return source, name

    def _source_file(self) -> Path:
        source, _ = self._split()
        if source.endswith(".py"):
            return self._existing(source)
        try:
            with working_directory_importable():
                spec = importlib.util.find_spec(source)
        except Exception as error:
            raise self._cannot_import(source, error) from error
        if spec is None or not spec.has_location or spec.origin is None:
            raise UserError(f"custom {self.group}'s {source} has no source file: correct {self.group}.target")
        return Path(spec.origin)

    def _existing(self, source: str) -> Path:
        path = Path(source).resolve()
        if not path.is_file():
            raise UserError(f"custom {self.group}'s file {path} does not exist: correct {self.group}.target")
        return path

    def _module(self) -> ModuleType:
        source, _ = self._split()
        try:
            with working_directory_importable():
                return _run(self._existing(source)) if source.endswith(".py") else importlib.import_module(source)
        except (UserError, RunFailed):
            raise
        except Exception as error:
            raise self._cannot_import(source, error) from error

    def _cannot_import(self, source: str, error: Exception) -> UserError:
        # Whatever it is in it, a syntax error, a package that is not there: nothing has been computed, or can be.
        line = f"custom {self.group}'s {source} cannot be imported ({said(error)}): correct it or {self.group}.target"
        return UserError(line)


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """The working directory is on the import path meanwhile."""
    directory = str(Path.cwd())
    sys.path.insert(0, directory)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(directory)


def _run(path: Path) -> ModuleType:
    name = f"modeconn_custom_{hashlib.sha256(str(path).encode()).hexdigest()[:10]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while they are made
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _signature(make: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(make)
    except (TypeError, ValueError):  # some compiled callables have none
        return None


def first_line(error: Exception) -> str:
    """What an error says, without its further lines."""
    return next(iter(str(error).splitlines()), "")
