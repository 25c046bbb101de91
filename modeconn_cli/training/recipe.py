"""How networks are trained: the recipe, and what endpoints have besides."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modeconn_cli.errors import UserError
from modeconn_cli.settings import LARGEST_SEED, Name, choice, fields_off_default, keyword_option, option

if TYPE_CHECKING:
    from modeconn_cli.settings import Config


class Optimizer(Name):
    """SGD with momentum; Adam (Kingma and Ba 2015, arXiv:1412.6980), decay in the gradient; or AdamW (Loshchilov
    and Hutter 2019, arXiv:1711.05101), decay beside it.
    """

    sgd = "sgd"
    adam = "adam"
    adamw = "adamw"


class Schedule(Name):
    """The learning rate over training, as training/schedules.py computes it: Garipov et al. 2018's
    (arXiv:1802.10026), half a cosine without restarts (Loshchilov and Hutter 2017, arXiv:1608.03983), steps (He et
    al. 2016, arXiv:1512.03385), a line to 0, or none.
    """

    constant = "constant"
    garipov = "garipov"
    cosine = "cosine"
    multistep = "multistep"
    linear = "linear"


class Every(Name):
    """Whether the learning rate moves with every gradient step or with every epoch."""

    step = "step"
    epoch = "epoch"


class Precision(Name):
    """What float32 matrices are multiplied in; weights and their updates keep their own type."""

    float32 = "float32"
    tf32 = "tf32"
    bfloat16 = "bfloat16"


@dataclass
class Training:
    """How a point, or the trained rows of a path, is fitted by minibatches.

    ``epochs``, ``warmup_epochs``: passes over the training split, the latter not only whole ones; ``batch_size``:
    examples; ``milestones``: fractions of training in (0, 1); ``lr``: the peak, a step's length over its
    direction's. With a batch of B examples and the point w of a step, (P,), the gradient is of the task's mean loss
    over the batch + ``weight_decay``/2 |w|^2 (AdamW: without, and ``lr`` * weight_decay * w is taken off besides).

    The lengths are sized for the embedded digits. batch_size, momentum, lr, weight_decay and schedule are those of
    the VGG16 endpoints of Garipov et al. 2018 (arXiv:1802.10026, and its code); betas and eps Adam's own
    (arXiv:1412.6980). Recipes of papers are files: conf/endpoints, conf/curve and conf/experiment name each one's
    source. Label smoothing is that of Szegedy et al. 2016 (arXiv:1512.00567), linear warm-up of Goyal et al. 2017
    (arXiv:1706.02677).
    """

    epochs: int = option(60, "Passes over the training split.", ge=1)
    batch_size: int = option(128, "Examples of a step; the last short batch of an epoch is used too.", ge=1)
    optimizer: Optimizer = option(Optimizer.sgd, "sgd, adam or adamw.")
    lr: float = option(0.05, "Peak learning rate.", gt=0)
    momentum: float = option(0.9, "SGD's momentum.", ge=0, lt=1)
    nesterov: bool = option(False, "Nesterov momentum (SGD).")
    betas: list[float] = option([0.9, 0.999], "Adam's and AdamW's two decay rates.", ge=0, lt=1)
    eps: float = option(1e-8, "Adam's and AdamW's denominator term.", gt=0)
    weight_decay: float = option(
        5e-4, "wd in wd/2 |w|^2 (decoupled for AdamW), at the point where the loss is taken.", ge=0
    )
    schedule: Schedule = option(
        Schedule.garipov, "garipov: constant to 50%, linear to 1% at 90%; or constant, cosine, multistep, linear."
    )
    schedule_every: Every = option(Every.epoch, "Move the learning rate every epoch (Garipov) or every step.")
    warmup_epochs: float = option(0.0, "Linear warm-up from 0, moved every step, before the schedule.", ge=0)
    milestones: list[float] = option(
        [0.5, 0.75], "multistep: fractions of training after which lr is multiplied by gamma.", gt=0, lt=1
    )
    gamma: float = option(0.1, "multistep: the factor.", gt=0, le=1)
    label_smoothing: float = option(
        0.0, "Smoothing of the training targets; so is metrics.csv; evaluations never are.", ge=0, lt=1
    )
    precision: Precision = option(
        Precision.float32, "float32, tf32 (CUDA matmuls and convolutions) or bfloat16 (autocast)."
    )

    def check_together(self, group: str, config: Config) -> None:
        """Raise UserError for what one field cannot say."""
        if self.nesterov and (self.optimizer is not Optimizer.sgd or self.momentum == 0):
            raise UserError(f"{group}.nesterov=true needs {group}.optimizer=sgd and {group}.momentum above 0.")
        if len(self.betas) != 2:
            raise UserError(f"{group}.betas={self.betas} must be two numbers, as [0.9,0.999].")
        if self.milestones != sorted(self.milestones):
            raise UserError(f"{group}.milestones={self.milestones} must rise.")
        if self.warmup_epochs >= self.epochs:
            raise UserError(
                f"{group}.warmup_epochs={self.warmup_epochs:g} leaves nothing of {group}.epochs={self.epochs}."
            )


@choice("endpoints", "endpoints")
@dataclass
@keyword_option(
    "from",
    "list[str] | None",
    None,
    "Take the endpoints from these and train none: a file, or RUN, RUN@epoch=20, RUN@step=100, RUN@t=0.3, RUN#2, or "
    "RUN#* for each that a run holds.",
)
class Endpoints(Training):
    """What endpoints have besides a recipe: their seeds, what is kept of them, and where they come from, if not
    from training.

    ``seeds``, ``init_seed``, ``data_seed``: whole numbers below 2^31; ``keep_epochs``, ``keep_steps``: counted from
    0, which is initialisation. Initialisation and data order are told apart as Frankle et al. 2020
    (arXiv:1912.05671) do: one ``init_seed`` and many data orders is their instability analysis at step 0.
    """

    seeds: list[int] | None = option(
        None, "Seeds of the endpoints; null: 2*seed and 2*seed+1, a pair no other seed shares.", ge=0, le=LARGEST_SEED
    )
    init_seed: int | None = option(
        None, "One initialisation for every endpoint; null: each endpoint's own seed.", ge=0, le=LARGEST_SEED
    )
    data_seed: int | None = option(
        None, "One order and augmentation for every endpoint; null: its own seed.", ge=0, le=LARGEST_SEED
    )
    keep_epochs: list[int] = option([], "Also keep the weights after these epochs (0 is initialisation).", ge=0)
    keep_steps: list[int] = option([], "Also keep the weights after these gradient steps.", ge=0)
    checkpoints: list[str] | None = option(
        None, "Take the endpoints from these files (.pt, .safetensors) and train none."
    )
    strip: str | None = option(
        None, "Of files: take the tensors under this prefix, as model. or ema., and leave out the rest.", identity=False
    )  # what it leaves is identity, as a network's content
    init_from: str | None = option(
        None, "Train on from this network, every endpoint with its own order: a file, or RUN, RUN@epoch=20, RUN@t=0.3."
    )
    fuse: bool = option(
        False,
        "Fold every BatchNorm into the linear map or convolution before it, once trained or read: paths are then "
        "between the networks without norms that compute the same.",
    )

    def having(self, **changes: Any) -> Endpoints:
        """A copy with other options, endpoints.from too, which dataclasses.replace would forget."""
        changed = copy.copy(self)
        for name, value in changes.items():
            setattr(changed, name, value)
        return changed

    @property
    def references(self) -> list[str] | None:
        """endpoints.from."""
        found: list[str] | None = getattr(self, "from")
        return found

    def check_together(self, group: str, config: Config) -> None:
        super().check_together(group, config)
        late = [e for e in self.keep_epochs if e > self.epochs]
        if late:
            raise UserError(f"{group}.keep_epochs={late} lies after the last epoch, {group}.epochs={self.epochs}.")


def recipe(node: Any) -> dict[str, Any]:
    """:func:`fields_off_default` of the training fields alone, of the Training or a class made from it."""
    names = {f.name for f in dataclasses.fields(Training)}
    return {k: v for k, v in fields_off_default(node).items() if k in names}
