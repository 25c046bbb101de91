"""Learning rates over a training run, as multiples of the recipe's peak."""

from __future__ import annotations

import math

from modeconn_cli.training.recipe import Every, Schedule, Training


def learning_rate(recipe: Training, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a gradient step (0-based).

    The schedule spans what warm-up leaves. Moved every epoch, Garipov's takes an epoch's place by its end, as
    his code counts epochs from 1; the others take it by its start.
    """
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    total = recipe.epochs * steps_per_epoch
    if recipe.schedule_every is Every.epoch:
        step = step // steps_per_epoch * steps_per_epoch
        if recipe.schedule is Schedule.garipov:
            step += steps_per_epoch
    done = max(step - warmup, 0) / (total - warmup)
    return recipe.lr * _factor(recipe, done)


def _factor(recipe: Training, done: float) -> float:
    """The multiple of the peak at a fraction of training done."""
    match recipe.schedule:
        case Schedule.constant:
            return 1.0
        case Schedule.garipov:
            return 1 - 0.99 * min(max((done - 0.5) / 0.4, 0), 1)
        case Schedule.cosine:
            return (1 + math.cos(math.pi * done)) / 2
        case Schedule.linear:
            return 1 - done
        case Schedule.multistep:
            return recipe.gamma ** sum(done >= m for m in recipe.milestones)
