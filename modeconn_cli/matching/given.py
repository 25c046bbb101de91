"""What a matching method is given: networks, their symmetry, and the examples that they may be looked at with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from modeconn_cli.data.dataset import Data
from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.statistics import norm_layers
from modeconn_cli.forward import evaluating
from modeconn_cli.inputs import form_of, taken
from modeconn_cli.matching.midpoint import Check, Loss, Parameters
from modeconn_cli.matching.search import NO_MEMORY, Matching, Memory, computed, searched
from modeconn_cli.symmetry.groups import Symmetry
from modeconn_cli.tasks.base import Task


@dataclass(frozen=True, eq=False)
class Given:
    """Networks to be brought near one another, as a method is given them.

    symmetry: what may be permuted. module: the network, on the CPU, in evaluation mode; batch: how many examples its
    graph was traced with. states: of every network, on the CPU; of two, the second is to be matched to the first.
    task: with its data on the device to compute on; host: the data on the CPU. network: makes the network on that
    device. progress: told what is done, of how much, and a few words; check: called now and then, it may raise to stop.
    memory: where to leave what has been found, for a later process to go on from.
    """

    symmetry: Symmetry
    module: nn.Module
    batch: int
    states: Sequence[Mapping[str, Tensor]]
    task: Task
    host: Data
    device: torch.device
    network: Callable[[], nn.Module]
    progress: Callable[[int, int, str], None] = lambda done, total, note: None
    check: Callable[[], None] = lambda: None
    memory: Memory = NO_MEMORY

    @cached_property
    def names(self) -> list[str]:
        """Of the parameters; what else is in a state are buffers."""
        return [n for n, _ in self.module.named_parameters()]

    def parameters(self, network: int) -> dict[str, Tensor]:
        """Of the network with this number, on the device, as searches compare them."""
        return {n: searched(self.states[network][n].to(self.device)) for n in self.names}

    def matching(self, permutations: Sequence[Tensor]) -> Matching:
        """What was found, told by the inner product of the two networks' parameters before and after.

        permutations: (size,) for each group, where each new index comes from.

        Raises:
            UserError: they are no permutations of these groups.
        """
        found = [torch.as_tensor(p, dtype=torch.int64).cpu() for p in permutations]
        groups = self.symmetry.groups
        if len(found) != len(groups):
            raise UserError(
                f"{len(found)} permutations for {len(groups)} groups: give one for each of symmetry.groups."
            )
        for group, p in zip(groups, found, strict=True):
            if p.shape != (group.size,) or not torch.equal(p.sort().values, torch.arange(group.size)):
                raise UserError(f"what was found for {group.name} is no permutation of 0 to {group.size - 1}.")
        a, b = ({n: searched(self.states[i][n]) for n in self.names} for i in (0, 1))
        moved = self.symmetry.permute(dict(b), found)
        before, after = (sum(float((a[n].double() * to[n].double()).sum()) for n in self.names) for to in (b, moved))
        return Matching(found, [before, after], 0, before, after)

    def inputs(self, examples: int) -> tuple[int, Iterator[Tensor]]:
        """How many batches, and these: training inputs in an order of chance, as many at once as were traced."""
        data = self.host
        total = max(min(examples, len(data.train)) // self.batch, 1)

        def batches() -> Iterator[Tensor]:
            drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
            for part in drawn[: self.batch * total].split(self.batch):
                yield taken(self.module, data.inputs(data.train, part, data.for_statistics(part)))

        return total, batches()

    def losses(self, steps: int, batch_size: int, examples: int, seed: int) -> tuple[Loss, Check]:
        """The loss of a network with other parameters, on a step's batch and on examples that stay the same.

        BatchNorm normalises by the batch, as it would after its statistics were reset.
        """
        task, data = self.task, self.task.data
        module = evaluating(self.network())
        for layer in norm_layers(module):
            layer.training = True
        kinds = {n: p.dtype for n, p in module.named_parameters()}
        first = self.states[0]
        buffers = {n: first[n].to(self.device) for n, _ in module.named_buffers() if n in first}
        takes, _ = form_of(module, task.batch(data.train, slice(0, 2)).x)
        n = len(data.train)
        fixed = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:examples]

        def on(parameters: Parameters, chosen: Tensor) -> Tensor:
            chosen = chosen.to(data.train.x.device)
            own = {k: v.clone() for k, v in buffers.items()}
            own |= {n: computed(p, kinds[n]) for n, p in parameters.items()}
            batch = task.batch(data.train, chosen)
            return task.loss(functional_call(module, own, (takes(batch.x),)), batch)

        def loss(parameters: Parameters, step: int) -> Tensor:
            generator = torch.Generator().manual_seed(seed * steps + step)
            return on(parameters, torch.randint(n, (min(batch_size, n),), generator=generator))

        @torch.no_grad()
        def check(parameters: Parameters) -> float:
            return float(on(parameters, fixed))

        return loss, check
