"""Networks from elsewhere: torchvision's classifiers, and the user's own code."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from modeconn_cli.errors import UserError
from modeconn_cli.models.common import require_images
from modeconn_cli.tasks.outputs import tensor_of
from modeconn_cli.torchvision_compat import import_torchvision

# These two otherwise return their auxiliary heads' logits too while training, and warn about their
# initialisation, which is the slow truncated normal either way.
PLAIN_LOGITS: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}


def build_torchvision(
    in_shape: tuple[int, ...], classes: int, *, model: str = "resnet18", kwargs: Mapping[str, Any] | None = None
) -> nn.Module:
    """torchvision's classifier of that name, untrained: (N, 3, H, W) -> (N, classes).

    Raises:
        UserError: the name is unknown, ``kwargs`` do not suit it, or it cannot take the data set's images.
    """
    models = import_torchvision().models
    names = models.list_models(module=models)
    if model not in names:
        close = difflib.get_close_matches(model, names, n=3) or ["resnet18", "mobilenet_v2", "vit_b_16"]
        raise UserError(
            f"torchvision has no classifier {model!r}: set architecture.model to {', '.join(close)} or "
            "another name of torchvision.models"
        )
    channels, _, _ = require_images(f"torchvision's {model}", in_shape)
    if channels != 3:
        raise UserError(
            f"torchvision's {model} takes images of 3 channels, this data set's have {channels}: use another "
            "data set, or an architecture that follows the data's channels, such as architecture=resnet20"
        )
    given = dict(kwargs or {})
    reserved = {"weights", "num_classes"} & given.keys()
    if given.get("aux_logits"):
        reserved.add("aux_logits")
    if reserved:
        raise UserError(
            f"torchvision's {model} is made untrained, for the data set's classes and with one output: "
            f"remove {', '.join(sorted(reserved))} from architecture.kwargs"
        )
    options = PLAIN_LOGITS.get(model, {}) | given
    try:
        net = models.get_model(model, weights=None, num_classes=classes, **options)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"torchvision's {model} refuses architecture.kwargs {given} ({_first_line(error)}): correct them"
        ) from error
    return net


def build_custom(
    in_shape: tuple[int, ...], classes: int, *, target: str = "", kwargs: Mapping[str, Any] | None = None
) -> nn.Module:
    """The module that ``target`` makes: (N, *in_shape) -> (N, classes).

    ``target`` is "package.module:name" or "path/to/file.py:name", relative to the working directory, which is
    on the import path meanwhile. It is called with ``kwargs`` and with those of in_shape or input_shape,
    classes or num_classes, and in_channels that its signature names and ``kwargs`` do not give.

    Raises:
        UserError: the target cannot be imported or called, or makes something other than such a module.
    """
    with _working_directory_importable():
        module = _import_source(target)
        net = _call(target, _attribute(module, target), in_shape, classes, dict(kwargs or {}))
    if not isinstance(net, nn.Module):
        raise UserError(
            f"{target} returned {type(net).__name__}, not a torch.nn.Module: point architecture.target to "
            "a module's class or to a function that returns one"
        )
    return net


def source_checksum(target: str) -> str:
    """SHA-256, in hex, of the source file that ``target`` names; the file is not run.

    Raises:
        UserError: there is no such file or module.
    """
    return hashlib.sha256(_source_file(target).read_bytes()).hexdigest()


def _split(target: str) -> tuple[str, str]:
    source, _, name = target.rpartition(":")
    if not source or not name:
        raise UserError(
            f"custom architecture has no usable target {target!r}: set architecture.target to "
            "package.module:name or path/to/file.py:name"
        )
    return source, name


def _is_file(source: str) -> bool:
    return source.endswith(".py")


def _existing_file(source: str) -> Path:
    path = Path(source).resolve()
    if not path.is_file():
        raise UserError(f"custom architecture's file {path} does not exist: correct architecture.target")
    return path


def _source_file(target: str) -> Path:
    source, _ = _split(target)
    if _is_file(source):
        return _existing_file(source)
    try:
        with _working_directory_importable():
            spec = importlib.util.find_spec(source)
    except Exception as error:
        raise _cannot_import(source, error) from error
    if spec is None or not spec.has_location or spec.origin is None:
        raise UserError(f"custom architecture's {source} has no source file: correct architecture.target")
    return Path(spec.origin)


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    directory = str(Path.cwd())
    sys.path.insert(0, directory)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(directory)


def _import_source(target: str) -> ModuleType:
    source, _ = _split(target)
    try:
        return _run_file(_existing_file(source)) if _is_file(source) else importlib.import_module(source)
    except UserError:
        raise
    except Exception as error:
        raise _cannot_import(source, error) from error


def _cannot_import(source: str, error: Exception) -> UserError:
    return UserError(
        f"custom architecture's {source} cannot be imported ({type(error).__name__}: {_first_line(error)}): "
        "correct it or architecture.target"
    )


def _run_file(path: Path) -> ModuleType:
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


def _attribute(module: ModuleType, target: str) -> Callable[..., Any]:
    source, name = _split(target)
    found = getattr(module, name, None)
    if found is None:
        public = [n for n in vars(module) if not n.startswith("_")]
        close = difflib.get_close_matches(name, public, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"custom architecture's {source} has no {name}{hint}: correct architecture.target")
    if isinstance(found, nn.Module) or not callable(found):
        raise UserError(
            f"{target} is a {type(found).__name__} object, not something that makes a network: point "
            "architecture.target to a module's class or to a function that returns one"
        )
    return found


def _call(
    target: str, make: Callable[..., Any], in_shape: tuple[int, ...], classes: int, kwargs: dict[str, Any]
) -> Any:
    offered = {
        "in_shape": in_shape,
        "input_shape": in_shape,
        "in_channels": in_shape[0],
        "classes": classes,
        "num_classes": classes,
    }
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
                f"{target}{signature} cannot be called with {', '.join(kwargs) or 'no arguments'} "
                f"({error}): correct architecture.kwargs"
            ) from error
    try:
        return make(**kwargs)
    except Exception as error:
        raise UserError(
            f"{target} failed ({type(error).__name__}: {_first_line(error)}): correct it or architecture.kwargs"
        ) from error


def _signature(make: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(make)
    except (TypeError, ValueError):  # some compiled callables have none
        return None


def check_answers(
    net: nn.Module,
    label: str,
    in_shape: tuple[int, ...],
    answers: tuple[tuple[int, ...], ...],
    largest: int | None = None,
) -> None:
    """Try two examples, blank or of the largest integer, to refuse an unfit network before any training.

    Raises:
        UserError: it cannot take them, or answers with none of these shapes an example.
    """
    modes = [(module, module.training) for module in net.modules()]
    like = next(net.parameters(), torch.empty(0))
    x = torch.zeros(2, *in_shape, dtype=like.dtype, device=like.device)
    if largest is not None:
        x = torch.full((2, *in_shape), largest, dtype=torch.int64, device=like.device)
    net.eval()
    try:
        with torch.no_grad():
            output = net(x)
    except Exception as error:
        integers = "" if largest is None else f" of integers up to {largest}"
        mend = "dataset.pad_to" if largest is None else "the network"
        raise UserError(
            f"{label} cannot take this data set's examples of shape {in_shape}{integers} ({type(error).__name__}: "
            f"{_first_line(error)}): change architecture.kwargs or {mend}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    try:
        found = tuple(tensor_of(output).shape)
    except UserError as error:
        raise UserError(f"{label}: {error}") from None
    wanted = [str((2, *shape)) for shape in answers]
    if wanted and str(found) not in wanted:
        raise UserError(
            f"{label} answers two examples of shape {in_shape} with {found}, not logits of shape "
            f"{' or '.join(wanted)}: change it or architecture.kwargs"
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
