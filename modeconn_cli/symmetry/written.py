"""Permutation groups as a text: every tensor's dimensions by the names of their index sets.

    hidden.0.weight: [a, 784]
    hidden.0.bias: [a]
    head.weight: [10, a * 49]                    # every index of a covers 49 positions
    query.weight: [heads:3 * inner(heads), b]    # of each head an index set of its own

A name is an index set that may be permuted, a number is one that may not; ``*`` is a product, the first factor the
slowest, ``+`` a concatenation. ``name:12`` says how large, where the dimensions leave it open. A tensor that is
not listed stays as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from torch import Tensor

from modeconn_cli.errors import UserError
from modeconn_cli.symmetry.axes import Axes, Axis, Dependent, Leaf, Product, Sum, fixed, size
from modeconn_cli.symmetry.equations import concatenation, dependents, leaves, product, resolve, restrict
from modeconn_cli.symmetry.groups import Symmetry, symmetry_of
from modeconn_cli.symmetry.places import unplaced

NO_WORDS = "the groups of this network cannot be written as a text."
FACTOR = re.compile(r"(?P<number>\d+)|(?P<name>[A-Za-z_]\w*)(:(?P<size>\d+))?(\((?P<over>[A-Za-z_]\w*)\))?")


@dataclass(frozen=True)
class _Factor:
    name: str | None  # None: a number
    size: int | None
    over: str | None


Terms = list[list[_Factor]]  # a sum of products


def read_groups(text: str, state: Mapping[str, Tensor], where: str) -> Symmetry:
    """The groups that a text describes, for tensors of these shapes.

    Args:
        where: what the text is, for messages.

    Raises:
        UserError: it is no such text, or does not fit the tensors.
    """
    written = _read_terms(text, state, where)
    sizes = _sizes(written, state, where)
    sets: dict[str, Leaf] = {}
    inner: dict[tuple[str, str], list[Leaf]] = {}

    def axis(factor: _Factor) -> Axis:
        if factor.name is None:
            assert factor.size is not None
            return fixed(factor.size)
        n = sizes[factor.name]
        if factor.over is None:
            return sets.setdefault(factor.name, Leaf(n))
        over = sets.setdefault(factor.over, Leaf(sizes[factor.over]))
        members = inner.setdefault((factor.name, factor.over), [Leaf(n) for _ in range(over.size)])
        return Dependent(over, [*members])

    tensors: dict[str, Axes] = {}
    for name, value in state.items():
        if name not in written:
            tensors[name] = [fixed(n) for n in value.shape]
            continue
        tensors[name] = [
            concatenation([product([axis(f) for f in factors]) for factors in terms]) for terms in written[name]
        ]
        for dependent in unplaced(tensors[name]):
            over = next(k for k, leaf in sets.items() if leaf is resolve(dependent.over))
            raise UserError(
                f"{where}: {name} has an index set for each of {over}, and no one dimension of it runs along {over}."
            )
    return symmetry_of(tensors)


def _read_terms(text: str, state: Mapping[str, Tensor], where: str) -> dict[str, list[Terms]]:
    """What is written of every tensor's dimensions, each of a tensor that there is."""
    try:
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{where} is not YAML: {error.problem}{place}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"{where} names no tensor; give lines like `hidden.0.weight: [a, 784]`.")
    written: dict[str, list[Terms]] = {}
    for name, dims in content.items():
        if name not in state:
            more = ", ..." if len(state) > 6 else ""
            raise UserError(f"{where}: the network has no tensor {name!r}; it has {', '.join([*state][:6])}{more}.")
        shape = list(state[name].shape)
        if not isinstance(dims, list) or len(dims) != len(shape):
            raise UserError(f"{where}: {name} has the shape {shape}; give a list of {len(shape)}, not {dims}.")
        written[name] = [_parse(str(d), f"{where}: {name}[{i}]") for i, d in enumerate(dims)]
    return written


def _parse(text: str, where: str) -> Terms:
    terms: Terms = []
    for part in text.split("+"):
        factors = []
        for word in part.split("*"):
            match = FACTOR.fullmatch(word.replace(" ", ""))
            if match is None:
                raise UserError(
                    f"{where}: {text!r} is no dimension; write names and numbers, as `a`, `3 * a` or `a + b`."
                )
            number = match["number"] or match["size"]
            factors.append(_Factor(match["name"], int(number) if number else None, match["over"]))
        terms.append(factors)
    return terms


def _sizes(written: Mapping[str, Sequence[Terms]], state: Mapping[str, Tensor], where: str) -> dict[str, int]:
    """How large every named index set is."""
    known: dict[str, int] = {}
    every = [f for dims in written.values() for terms in dims for factors in terms for f in factors]
    for factor in every:
        if factor.name and factor.size and known.setdefault(factor.name, factor.size) != factor.size:
            raise UserError(
                f"{where}: {factor.name} is {known[factor.name]} and {factor.size}; these are two index sets, with "
                "two names."
            )
    while True:
        before = len(known)
        for name, dims in written.items():
            for d, terms in enumerate(dims):
                _solve(terms, state[name].shape[d], known, f"{where}: {name}[{d}]")
        if len(known) == before:
            break
    for factor in every:
        if factor.name and factor.name not in known:
            raise UserError(
                f"{where}: the dimensions leave the size of {factor.name} open; write it once, as {factor.name}:12."
            )
        if factor.over and factor.over not in known:
            raise UserError(f"{where}: no dimension runs along {factor.over}.")
    return known


def _solve(terms: Terms, n: int, known: dict[str, int], where: str) -> None:
    """Learn from one dimension what is left open in one of its products; n is its size."""

    def value(factor: _Factor) -> int | None:
        return known.get(factor.name) if factor.name else factor.size

    open_terms = [factors for factors in terms if any(value(f) is None for f in factors)]
    rest = n - sum(math.prod(value(f) or 1 for f in factors) for factors in terms if factors not in open_terms)
    if not open_terms:
        if rest:
            raise UserError(f"{where} has {n} indices, and what is written has {n - rest}.")
        return
    unknown = [f for f in open_terms[0] if value(f) is None]
    if len(open_terms) > 1 or len(unknown) > 1:
        return
    others = math.prod(value(f) or 1 for f in open_terms[0])
    if rest <= 0 or rest % others:
        raise UserError(f"{where} has {n} indices, and {rest} of them are no multiple of {others}.")
    assert unknown[0].name is not None
    known[unknown[0].name] = rest // others


def write_groups(symmetry: Symmetry, state: Mapping[str, Tensor]) -> str:
    """A text that :func:`read_groups` reads as these groups.

    Raises:
        UserError: it has no words for them, as for halves of channels that were shuffled.
    """
    names: dict[object, str] = {}
    sized: set[str] = set()

    def name(key: object, n: int, factor: bool = False) -> str:
        """Of an index set; with its size where it is first met as a factor, as products leave that open."""
        found = names.setdefault(key, f"g{len(names)}")
        if not factor or found in sized:
            return found
        sized.add(found)
        return f"{found}:{n}"

    def text(axis: Axis, factor: bool = False) -> str:
        axis = resolve(axis)
        if isinstance(axis, Leaf):
            return str(axis.size) if axis.pinned or axis.size == 1 else name(axis, axis.size, factor)
        if isinstance(axis, Sum):
            return " + ".join(text(p) for p in axis.parts)
        if isinstance(axis, Product):
            first, *others = map(resolve, axis.parts)
            if isinstance(first, Leaf) and first.pinned and any(resolve(d.over) is first for d in dependents(axis)):
                return " + ".join(text(product([restrict(p, first, i) for p in others])) for i in range(first.size))
            return " * ".join(text(p, factor=True) for p in axis.parts)
        if all(leaf.pinned for leaf in leaves(axis)):
            return str(size(axis))
        over = resolve(axis.over)
        if not all(isinstance(resolve(m), Leaf) for m in axis.members):
            raise UserError(NO_WORDS)
        return f"{name(tuple(leaves(axis)), size(axis), factor)}({name(over, size(over))})"

    lines = [f"{key}: [{', '.join(text(a) for a in symmetry.axes[key])}]" for key in state if symmetry.axes.get(key)]
    written = "\n".join(lines) + "\n"
    if not _says(written, symmetry, state):
        raise UserError(NO_WORDS)
    return written


def _says(written: str, symmetry: Symmetry, state: Mapping[str, Tensor]) -> bool:
    """Whether a text is read as these groups."""
    try:
        again = read_groups(written, state, "")
    except UserError:
        return False

    def runs(s: Symmetry, key: str) -> list[Any]:
        free = {g.leaf for g in s.groups}
        found: dict[Any, list[list[int]]] = {}
        for p in s.places.get(key, []):
            if p.leaf in free:
                within = tuple((d, tuple(at.tolist())) for d, at in p.within)
                rows = found.setdefault((p.leaf, p.dim, within), [[] for _ in range(p.leaf.size)])
                for row, at in zip(rows, p.at.tolist(), strict=True):
                    row += at
        return sorted((dim, within, [sorted(row) for row in rows]) for (_, dim, within), rows in found.items())

    return len(again.groups) == len(symmetry.groups) and all(runs(again, k) == runs(symmetry, k) for k in state)
