"""Two networks whose weights are to be matched: the cost matrix of each group, kept up to date while groups move."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.matching.assignment import assign
from modeconn_cli.matching.layout import Inner, Layout
from modeconn_cli.symmetry.axes import Leaf
from modeconn_cli.symmetry.groups import Symmetry
from modeconn_cli.symmetry.places import averaged, permuted, sources


@dataclass
class _Term:
    """Part of a group's cost matrix (size, size), as it was at ``since``.

    orders: for every occurrence that it is from, the order that the tensor had then along every dimension across.
    """

    since: int
    value: Tensor
    orders: list[list[Tensor]]


class WeightProblem:
    """A and B on one device, B moving; the objective is their inner product.

    The terms of a group's cost matrix are kept, and where its neighbours move only what moved is multiplied again.
    Beyond A and B it holds a copy of B, one of what in A is not contiguous along an occurrence, and kept terms as large
    as A and B at most.

    a, b: the tensors that groups run through, in the order of ``layout.names``, in float32; b as it is now.
    permutations: of each group, from B as it was given. clock: how many moves there were; moved: each group's last.

    Args:
        a, b: state_dicts of the traced module.
        names: of the tensors that count; or a layout of them, where one was made before.
        begin: permutations that B has to begin with; None: as it is.
    """

    def __init__(
        self,
        symmetry: Symmetry,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        names: Sequence[str] | Layout,
        begin: Sequence[Tensor] | None = None,
    ) -> None:
        self.symmetry = symmetry
        self.groups = symmetry.groups
        self.layout = names if isinstance(names, Layout) else Layout(symmetry, a, names)
        still = set(self.layout.counting) - set(self.layout.names)
        self.constant = float(sum((a[n].double() * b[n].double()).sum() for n in sorted(still)))
        self.a = [a[n].detach().float() for n in self.layout.names]
        self.b = [b[n].detach().float().clone() for n in self.layout.names]
        self.permutations = symmetry.identity() if begin is None else [p.clone() for p in begin]
        if begin is not None:
            by_leaf = dict(zip(symmetry.leaves, begin, strict=True))
            self.b = [permuted(x, along, by_leaf) for x, along in zip(self.b, self.layout.places, strict=True)]
        self.clock = 0
        self.moved = [0] * len(self.groups)
        self.order = [[torch.arange(n) for n in x.shape] for x in self.a]  # along every dimension of B, since the start
        self.prices: dict[int, np.ndarray] = {}  # of each group's columns, when it was last assigned
        self._terms: dict[tuple[int, ...], _Term] = {}
        self._largest_kept = sum(x.numel() for x in (*self.a, *self.b))
        self._rows_of_a: dict[tuple[int, int], Tensor] = {}

    def retarget(self, a: Mapping[str, Tensor]) -> None:
        """Match to other weights from here on; B stays where it is."""
        self.a = [a[n].detach().float() for n in self.layout.names]
        self._terms.clear()
        self._rows_of_a.clear()

    def current(self) -> dict[str, Tensor]:
        """B's tensors that may move, as they are now."""
        return dict(zip(self.layout.names, self.b, strict=True))

    def objective(self) -> float:
        """The inner product of A with B as it is now."""
        moving = zip(self.a, self.b, strict=True)
        return self.constant + sum(float(torch.dot(x.reshape(-1), y.reshape(-1))) for x, y in moving)

    def gain(self, group: int, relative: Tensor) -> float:
        """By how much the objective would rise if a group moved."""
        touched = sorted({r.tensor for r in self.layout.occurrences[group]})
        leaf = {self.groups[group].leaf: relative}
        total = 0.0
        for t in touched:
            there = permuted(self.b[t], self.layout.places[t], leaf)
            total += float(torch.dot(self.a[t].reshape(-1), (there - self.b[t]).reshape(-1)))
        return total

    # ---------------------------------------------------------------------------------------------- cost matrices

    def cost(self, group: int, chosen: Sequence[int], unsettled: Collection[int] = ()) -> tuple[np.ndarray, float]:
        """The group's cost matrix (size, size), from some of its occurrences, and what these are worth as they are.

        Where the group has others inside it, every pair of its indices counts with those at their best.

        Args:
            unsettled: groups over whose permutations the occurrences that are not chosen count on average.
        """
        n = self.groups[group].size
        total = np.zeros((n, n))
        for runs in self.layout.alike[group]:
            here = tuple(r for r in runs if r in chosen)
            if here:
                total += self.term(group, here).cpu().numpy()
        for r in set(range(len(self.layout.occurrences[group]))) - set(chosen) if unsettled else ():
            total += self.average(group, r, unsettled).cpu().numpy()
        worth = float(np.trace(total))
        inner: dict[tuple[int, ...], list[Inner]] = {}
        for part in (part for r in chosen for part in self.layout.nested[group].get(r, [])):
            inner.setdefault(tuple(g for g, _ in part), []).append(part)
        for parts in inner.values():
            pairs = sum(self._pairs(part) for part in parts).double().cpu().numpy()  # type: ignore[union-attr]
            for i, j in np.ndindex(n, n):
                total[i, j] += pairs[i, :, j][np.arange(pairs.shape[1]), assign(pairs[i, :, j])].sum()
            worth += float(np.einsum("iaia->", pairs))
        return total, worth

    def term(self, group: int, chosen: tuple[int, ...]) -> Tensor:
        """Some occurrences' part of a group's cost matrix (size, size): rows of A against rows of B as it is now."""
        key = (group, *chosen)
        kept = self._terms.get(key)
        if kept is not None and self._renew(group, chosen, kept):
            return kept.value
        total = None
        for r in chosen:
            run = self.layout.occurrences[group][r]
            a, b = self._row_of_a(group, r), run.rows(self.b[run.tensor])
            total = a @ b.T if total is None else total.addmm_(a, b.T)
        assert total is not None
        others = sum(term.value.numel() for k, term in self._terms.items() if k != key)
        if others + total.numel() <= self._largest_kept:
            self._terms[key] = _Term(self.clock, total, self._orders(group, chosen))
        return total

    def _orders(self, group: int, chosen: tuple[int, ...]) -> list[list[Tensor]]:
        runs, across = self.layout.occurrences[group], self.layout.across[group]
        return [[self.order[runs[r].tensor][d] for d in across[r] or []] for r in chosen]

    def _renew(self, group: int, chosen: tuple[int, ...], term: _Term) -> bool:
        """Bring a term up to date where that takes less than forming it anew; whether it is."""
        if self.layout.quadratic[group]:
            return False
        if term.since >= max((self.moved[g] for g in self.layout.neighbours[group][chosen[0]]), default=0):
            return True
        now = self._orders(group, chosen)
        changes = []
        for r, before, after in zip(chosen, term.orders, now, strict=True):
            across = self.layout.across[group][r]
            if across is None:
                return False
            dims = zip(across, before, after, strict=True)
            moved = [(d, x, y, (x != y).nonzero()[:, 0]) for d, x, y in dims if x is not y and not torch.equal(x, y)]
            # Two dimensions that moved, or one by half, are no less work than all of it.
            if len(moved) > 1 or any(2 * len(at) > len(x) for _, x, _, at in moved):
                return False
            changes += [(self.layout.occurrences[group][r], d, at, torch.argsort(y)[x[at]]) for d, x, y, at in moved]
        for run, d, at, was in changes:
            b, here = self.b[run.tensor], at.to(term.value.device)
            change = b.index_select(d, here) - b.index_select(d, was.to(here.device))
            term.value.addmm_(run.rows(self.a[run.tensor].index_select(d, here)), run.rows(change).T)
        term.since, term.orders = self.clock, now
        return True

    def _row_of_a(self, group: int, r: int) -> Tensor:
        """A along an occurrence (size, everything else)."""
        if (group, r) not in self._rows_of_a:
            run = self.layout.occurrences[group][r]
            self._rows_of_a[group, r] = run.rows(self.a[run.tensor])
        return self._rows_of_a[group, r]

    def average(self, group: int, r: int, unsettled: Collection[int]) -> Tensor:
        """An occurrence's part of the cost matrix (size, size), on average over all permutations of unsettled groups.

        Exact, but where one of these moves the same elements along two dimensions, which counts as two would.
        """
        layout = self.layout
        run = layout.occurrences[group][r]
        a, b = self.a[run.tensor], self.b[run.tensor]
        overlaps = layout.overlaps[run.tensor]
        met = [g for g in unsettled if g in layout.neighbours[group][r]]
        found = [x for g in met for x in layout.occurrences[g] if x.tensor == run.tensor]
        along = sorted((x for x in found if overlaps[run.number, x.number]), key=lambda x: x.number)
        pairs = itertools.combinations([run, *along], 2)
        shared = any(x.dim == y.dim and overlaps[x.number, y.number] for x, y in pairs)
        if shared or run.place.within or any(x.place.within for x in along):
            for x in along:
                b = averaged(b, x.place)
            return run.rows(a) @ run.rows(b).T
        # Units that may stand anywhere can be summed over first, and there is less to multiply.
        for dim in sorted({x.dim for x in along}):
            here = [x.place.at for x in along if x.dim == dim]
            rest = torch.ones(a.shape[dim], dtype=torch.bool)
            rest[torch.cat([at.reshape(-1) for at in here])] = False
            others = rest.nonzero()[:, 0].to(a.device)
            a = torch.cat([a.index_select(dim, others), *(_at(a, dim, at).sum(dim) for at in here)], dim)
            b = torch.cat([b.index_select(dim, others), *(_at(b, dim, at).mean(dim) for at in here)], dim)
        return run.rows(a) @ run.rows(b).T

    def _pairs(self, inner: Inner) -> Tensor:
        """Rows of A inside each index of a group against rows of B inside each (n, d, n, d)."""
        runs = [self.layout.occurrences[g][k] for g, k in inner]
        a = torch.stack([self._row_of_a(g, k) for g, k in inner])
        b = torch.stack([run.rows(self.b[run.tensor]) for run in runs])
        n, d = a.shape[:2]
        return (a.flatten(0, 1) @ b.flatten(0, 1).T).view(n, d, n, d)

    # ------------------------------------------------------------------------------------------------------ moving

    def move(self, group: int, relative: Tensor) -> None:
        """Permute a group of B, from what it is now."""
        self.clock += 1
        self.moved[group] = self.clock
        self.symmetry.permute_group(self.permutations, group, relative)
        for t in {r.tensor for r in self.layout.occurrences[group]}:
            self._permute_tensor(t, self.groups[group].leaf, relative)
        here = relative.to(self.b[0].device)
        for key, term in self._terms.items():
            if key[0] == group:
                term.value = term.value[:, here]
        if group in self.prices:
            self.prices[group] = self.prices[group][relative.numpy()]

    def _permute_tensor(self, tensor: int, leaf: Leaf, relative: Tensor) -> None:
        b, along = self.b[tensor], [p for p in self.layout.places[tensor] if p.leaf is leaf]
        if any(p.within for p in along):
            self.b[tensor] = permuted(b, along, {leaf: relative})
            return
        for place in along:
            source = sources(place, relative, b.shape[place.dim])
            moved = (source != torch.arange(len(source))).nonzero()[:, 0]
            if 2 * len(moved) > len(source):
                b = self.b[tensor] = b.index_select(place.dim, source.to(b.device))
            else:
                there, here = source[moved].to(b.device), moved.to(b.device)
                b.index_copy_(place.dim, here, b.index_select(place.dim, there))
            self.order[tensor][place.dim] = self.order[tensor][place.dim][source]

    def rewind(self, clock: int, moved: list[int]) -> None:
        """Be as at an earlier clock, once B is as it was then.

        Args:
            moved: what ``moved`` was then.
        """
        self.clock, self.moved = clock, moved
        self._terms = {k: term for k, term in self._terms.items() if term.since <= clock}


def _at(tensor: Tensor, dim: int, at: Tensor) -> Tensor:
    """A tensor's positions along a dimension (n, m), as two dimensions there."""
    flat = at.reshape(-1)
    first, n = int(flat[0]), len(flat)
    if torch.equal(flat, torch.arange(first, first + n)):
        return tensor.narrow(dim, first, n).unflatten(dim, at.shape)
    return tensor.index_select(dim, flat.to(tensor.device)).unflatten(dim, at.shape)
