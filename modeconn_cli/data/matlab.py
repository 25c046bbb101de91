"""Numeric arrays in MATLAB's files of version 5 (up to MATLAB 7.2), read without trusting what they declare.

The format is MathWorks' "MAT-File Format", R2006b: a header of 128 bytes, then elements, each a type, a size and so
many bytes, padded to 8; an array is an element of elements, and may stand compressed in another.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeconn_cli.unpacking import unbelievable

MATRIX, COMPRESSED = 14, 15  # types of elements
COMPLEX = 0x0800  # of an array's flags
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}


def read_matlab(data: bytes, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """The arrays of these names, each of its own type and shape, in a file's bytes.

    Raises:
        ValueError: it is no such file, is cut off, or declares more than it holds.
    """
    if len(data) < 128 or data[126:128] not in (b"IM", b"MI"):
        raise ValueError("it does not begin as MATLAB's files of version 5 do")
    order = "<" if data[126:128] == b"IM" else ">"
    found: dict[str, NDArray[Any]] = {}
    try:
        for kind, content in _elements(data[128:], order):
            if kind == COMPRESSED:
                (kind, content), *_ = _elements(_inflated(content, order), order)
            if kind == MATRIX:
                name, array = _array(content, order, names)
                if array is not None:
                    found[name] = array
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"no {missing[0]} in it")
    return found


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The type and the bytes of each element."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start, after = at + 8, at + 8 + size
        if kind >> 16:  # a small one, in the place of its own size
            kind, size = kind & 0xFFFF, kind >> 16
            start, after = at + 4, at + 8
        if size > len(data) - start:
            raise ValueError(f"an element declares {size} bytes, and {len(data) - start} are left")
        yield kind, data[start : start + size]
        at = after if kind == COMPRESSED else -(-after // 8) * 8


def _inflated(packed: bytes, order: str) -> bytes:
    """The one element that stands compressed in another."""
    stream = zlib.decompressobj()
    head = stream.decompress(packed, 8)
    _, size = struct.unpack(f"{order}II", head)
    if unbelievable(len(packed), size):
        raise ValueError(f"{len(packed)} compressed bytes declare {size}")
    body = stream.decompress(stream.unconsumed_tail, size) if size else b""
    if len(body) < size:
        raise ValueError(f"a compressed element declares {size} bytes and holds {len(body)}")
    return head + body


def _array(content: bytes, order: str, names: Collection[str]) -> tuple[str, NDArray[Any] | None]:
    """A matrix's name and, where it is one of these, its values."""
    parts = _elements(content, order)
    try:
        (_, flags), (_, sizes), (_, label) = next(parts), next(parts), next(parts)
        name = label.decode("latin1")
        if name not in names:
            return name, None
        (flag,) = struct.unpack_from(f"{order}I", flags)
        kind, values = next(parts)
    except StopIteration:
        raise ValueError("an array is cut off") from None
    if flag & 0xFF not in CLASSES or flag & COMPLEX or kind not in STORED:
        raise ValueError(f"{name} is no array of real numbers")
    shape = np.frombuffer(sizes, f"{order}i4").tolist()
    array = np.frombuffer(values, order + STORED[kind])
    if min(shape, default=0) < 0 or math.prod(shape) != array.size:
        raise ValueError(f"{name} declares {'x'.join(map(str, shape))} numbers and holds {array.size}")
    return name, array.astype(CLASSES[flag & 0xFF], copy=False).reshape(shape, order="F")
