"""A task draws what is random about an epoch's examples, and training asks it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from modeconn_cli.data.augment import Augment
from modeconn_cli.families.point import Point
from modeconn_cli.tasks.base import Draw, draw_examples
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.training.loop import Trainer
from modeconn_cli.training.recipe import Schedule, Training
from modeconn_cli.weights import FlatModule


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (3, 7)])
def test_a_draw_is_of_its_two_numbers_alone(seed, epoch, make_data):
    data = replace(make_data(9, (1, 4, 4)), augment=Augment(2, True))
    words = np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint64)
    generator = torch.Generator().manual_seed(int(words[0]) // 2)
    order = torch.randperm(9, generator=generator)
    offsets = torch.randint(0, 5, (9, 2), generator=generator)
    flips = torch.randint(0, 2, (9,), generator=generator) == 1
    torch.manual_seed(1)
    found = Classify(data).draw(seed, epoch)
    assert torch.equal(found.order, order)
    assert torch.equal(found.augmentation.offsets, offsets)
    assert torch.equal(found.augmentation.flips, flips)


class InOrder(Classify):
    """Shows the first examples, and no others, as they are stored."""

    def draw(self, seed, epoch):
        drawn = draw_examples(self.data, seed, epoch)
        return Draw(torch.arange(len(drawn.order)), drawn.augmentation)


def test_training_sees_what_the_task_draws(make_data):
    data = make_data(8)
    seen = []
    net = nn.Linear(4, 3).double()
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    flat = FlatModule(net)
    recipe = Training(schedule=Schedule.constant, epochs=2, batch_size=4, lr=0.1)
    Trainer(flat, Point(), flat.point[None], slice(0, 1), InOrder(data), recipe, 5).run()
    wanted = (data.train.x - data.mean) / data.std
    assert torch.equal(torch.cat(seen), torch.cat([wanted, wanted]))
