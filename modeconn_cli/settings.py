"""What can be configured: how an option is declared, the registry of choices, ranges, the whole.

A group of options is a dataclass. A group with choices, such as ``architecture``, has a dataclass for each, registered
in the file that implements it:

    @choice("curve", "bezier")
    @dataclass
    class Bezier(Curve):
        bends: int = option(1, "Control points between the ends.", ge=1)

``conf/<group>/<name>.yaml`` names it as ``_<name>`` and Hydra composes that file over it, so a value of the wrong type
is refused where it is given; :func:`check` then holds each value to its range and the fields to one another.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from modeconn_cli.errors import UserError

if TYPE_CHECKING:
    from modeconn_cli.families.options import Curve

T = TypeVar("T")


def option(
    default: Any,
    doc: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    identity: bool = True,
    names: str | None = None,
) -> Any:
    """A documented field with an optional range; lists and dictionaries hold it for each of their items.

    identity: whether the result depends on it. Labels, places and what only asks about a finished result do not take
    part in a digest. names: the group whose choices are its values.
    """
    limits = {k: v for k, v in {"ge": ge, "gt": gt, "le": le, "lt": lt}.items() if v is not None}
    metadata = {"doc": doc, "limits": limits, "identity": identity, "names": names}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# ------------------------------------------------------------------------------------------- groups and choices

# Packages whose modules register the choices of a group.
ROOMS = {"curve": "modeconn_cli.families"}
# The field of a group that names its choice; a class registered by @choice has its own name there.
NAMED_BY = {"dataset": "source", "architecture": "family", "curve": "kind", "rebasin": "method", "task": "kind"}
CHOICES: dict[str, dict[str, type]] = {}


def choice(group: str, *names: str) -> Callable[[type[T]], type[T]]:
    """Register a dataclass as a choice of a group, under one name or several.

    The first name becomes the default of the field that names the group's choice, so that choosing a class is enough.
    """

    def register(cls: type[T]) -> type[T]:
        key = NAMED_BY.get(group)
        if key is not None:
            named = field(default=names[0], metadata=cls.__dataclass_fields__[key].metadata)  # type: ignore[attr-defined]
            like = {k: getattr(cls, k) for k in ("__module__", "__qualname__", "__doc__")}
            cls = dataclass(type(cls.__name__, (cls,), {**like, "__annotations__": {key: "str"}, key: named}))
        CHOICES.setdefault(group, {}).update(dict.fromkeys(names, cls))
        return cls

    return register


def choices(group: str) -> dict[str, type]:
    """The registered choices of a group, those of this package imported first."""
    if group in ROOMS:
        package = importlib.import_module(ROOMS[group])
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return CHOICES.get(group, {})


def named_choice(node: Any, group: str) -> Any:
    """A group's options as the class that they name: ``curve.kind=chain`` makes a Chain of any curve's options.

    Raises:
        UserError: the name is not registered, or an option that was set is none of that class's.
    """
    key = NAMED_BY.get(group)
    if key is None or not choices(group):
        return node
    name = str(getattr(node, key))
    if name not in CHOICES[group]:
        there_are = f"here are {', '.join(CHOICES[group])}."
        near = difflib.get_close_matches(name, list(CHOICES[group]), n=1, cutoff=0.5)
        offer = f"did you mean {group}.{key}={near[0]}? T{there_are}" if near else f"t{there_are}"
        raise UserError(f"{group}.{key}={name}: no such choice; {offer}")
    cls = CHOICES[group][name]
    if isinstance(node, cls) and type(node) is cls:
        return node
    known = {f.name for f in dataclasses.fields(cls)}
    given = {f.name: getattr(node, f.name) for f in dataclasses.fields(node) if getattr(node, f.name) != _default(f)}
    foreign = [k for k in given if k not in known]
    if foreign:
        raise UserError(f"{group}.{foreign[0]}: {group}.{key}={name} has no such field.")
    return cls(**{**given, key: name})


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def keyword_option(name: str, kind: str, default: Any, doc: str) -> Callable[[type[T]], type[T]]:
    """A class with an option whose name is a keyword of Python, which no field can be declared by; before @dataclass.

    It is set and read with setattr and getattr, and left out of what a dataclass writes in Python for its fields.
    """

    def add(cls: type[T]) -> type[T]:
        metadata = option(default, doc).metadata
        cls.__annotations__ = {**inspect.get_annotations(cls), name: kind}
        setattr(cls, name, field(default=default, init=False, repr=False, compare=False, metadata=metadata))
        return cls

    return add


LARGEST_SEED = 2**31 - 1


class Name(StrEnum):
    """An enumeration whose members print as they are typed."""


# ---------------------------------------------------------------------------------------------- datasets


class Source(Name):
    """Sources whose files are embedded, looked for or generated."""

    digits = "digits"
    two_spirals = "two_spirals"
    fashion_mnist = "fashion_mnist"
    mnist = "mnist"
    kmnist = "kmnist"
    cifar10 = "cifar10"
    cifar100 = "cifar100"
    svhn = "svhn"
    arrays = "arrays"
    custom = "custom"
    yacht = "yacht"
    energy = "energy"
    concrete = "concrete"
    airfoil = "airfoil"


class SplitBy(Name):
    last = "last"
    random = "random"


class Channels(Name):
    auto = "auto"
    first = "first"
    last = "last"


class Inputs(Name):
    auto = "auto"
    continuous = "continuous"
    integers = "integers"


INPUTS = (
    "integers: whole numbers reach the network as they are (token ids); continuous: as real numbers, normalised; auto: "
    "integers where rows of whole numbers from 0 are stored and the network takes them."
)


@dataclass
class DatasetBase:
    name: str = option("digits", "Label used in directory names.", identity=False)
    source: str = option("digits", "Which reader finds and reads the files.", names="dataset")
    test_size: int = option(0, "Examples drawn (by split_seed) as the test split, for sources that ship none.", ge=0)
    validation_size: int = option(0, "Training examples held out as the validation split.", ge=0)
    validation_split: SplitBy = option(SplitBy.last, "Hold out the last examples (Garipov) or a seeded random draw.")
    split_seed: int = option(0, "Seed of every random split.", ge=0, le=LARGEST_SEED)
    use_test: bool = option(True, "Report the test split; false reports the validation split in its place.")
    train_size: int | None = option(None, "Keep only this many training examples (seeded draw); null keeps all.", ge=1)
    mean: list[float] | None = option(
        None, "Per-channel mean on the 0..1 scale; null measures it on the training split."
    )
    std: list[float] | None = option(None, "Per-channel standard deviation; null measures it.", gt=0)
    shrink: int = option(1, "Make images smaller: the mean of every square of so many pixels on a side; 1: off.", ge=1)
    pad_to: int | None = option(None, "Zero-pad images (shrunk ones) to this height and width; null leaves them.", ge=1)
    crop_padding: int = option(0, "Augmentation: random crop after zero padding by this many pixels; 0 is off.", ge=0)
    flip: bool = option(False, "Augmentation: horizontal flip with probability one half.")
    data_dir: str | None = option(
        None, "Where the files are; null looks in $MODECONN_DATA, ./data and system folders.", identity=False
    )
    download: bool = option(False, "Let torchvision download missing files.", identity=False)


@choice(
    "dataset", "digits", "fashion_mnist", "mnist", "kmnist", "cifar10", "cifar100", "svhn",
    "yacht", "energy", "concrete", "airfoil",
)  # fmt: skip
@dataclass
class Dataset(DatasetBase):
    """A data set that is embedded or looked for: images with labels, or UCI's tables of numbers."""


@choice("dataset", "two_spirals")
@dataclass
class TwoSpirals(Dataset):
    examples: int = option(2000, "Training points, both spirals together; as many again are the test split.", ge=4)
    turns: float = option(1.75, "Turns of each arm.", gt=0)
    noise: float = option(0.04, "Standard deviation of the noise, in units of the outer radius.", ge=0)


@choice("dataset", "arrays")
@dataclass
class Arrays(Dataset):
    path: str = option("", "A .npz or .safetensors file with x_train, y_train, x_test, y_test.", identity=False)
    channels: Channels = option(Channels.auto, "Where images keep their channels: first (NCHW), last (NHWC) or auto.")
    inputs: Inputs = option(Inputs.auto, INPUTS)


@choice("dataset", "custom")
@dataclass
class CustomData(Dataset):
    target: str = option(
        "",
        "my_package.my_module:load or path/to/file.py:load, called for x_train, y_train, x_test, y_test by name, or "
        "for a pair (train, test) of torch data sets.",
    )
    kwargs: dict[str, Any] = option({}, "Arguments of that call.")
    channels: Channels = option(Channels.auto, "Where images keep their channels: first (NCHW), last (NHWC) or auto.")
    inputs: Inputs = option(Inputs.auto, INPUTS)


# ------------------------------------------------------------------------------------------------- tasks


class Convention(Name):
    above_line = "above_line"
    above_mean = "above_mean"
    above_max = "above_max"
    midpoint = "midpoint"


class Likelihood(Name):
    squared = "squared"
    gaussian = "gaussian"
    huber = "huber"


@dataclass
class TaskBase:
    kind: str = option("auto", "What is learnt from the data's targets.", names="task")
    verdict_column: str | None = option(
        None, "Column whose barrier on the test split decides whether a path connects; null: the task's own.",
        identity=False,
    )  # fmt: skip
    verdict_convention: Convention | None = option(
        None, "Convention of that barrier; null: the task's own, above_mean.", identity=False
    )
    verdict_below: float | None = option(
        None, "Connected when that barrier is below this, in the column's unit; null: the task's own.", gt=0,
        identity=False,
    )  # fmt: skip


@choice("task", "auto", "classify")
@dataclass
class Classification(TaskBase):
    """Labels are classes; auto: where targets are numbers and not labels, what Regression does by default."""


@choice("task", "regress")
@dataclass
class Regression(TaskBase):
    likelihood: Likelihood = option(
        Likelihood.squared,
        "squared: mean squared error; gaussian: the network gives mean and log-variance, two outputs a target; huber.",
    )
    delta: float = option(1.0, "huber: residual at which the loss turns from square to linear, on its own scale.", gt=0)
    normalise: bool = option(
        True, "Learn targets of mean 0 and deviation 1, as measured on the training split; false: as they are."
    )
    unit: str = option("", "Unit of the targets, for tables and axes.", identity=False)


@choice("task", "custom")
@dataclass
class CustomTask(TaskBase):
    target: str = option(
        "",
        "my_package.my_module:name or path/to/file.py:name of a function of output and target, or of a class that "
        "makes one or has loss(output, batch), scores(output, batch) and columns.",
    )
    kwargs: dict[str, Any] = option({}, "Arguments that a class is made with.")
    outputs: int | None = option(None, "Numbers a network gives an example; null: one a target, or one a class.", ge=1)
    normalise: bool = option(False, "Targets of mean 0 and deviation 1, as measured on the training split.")


# ------------------------------------------------------------------------------------------ architectures


class Norm(Name):
    batch = "batch"
    layer = "layer"
    none = "none"


class Activation(Name):
    relu = "relu"
    gelu = "gelu"
    tanh = "tanh"


@dataclass
class Architecture:
    name: str = option("mlp", "Label used in directory names.", identity=False)
    family: str = option("mlp", "Which builder makes the network.", names="architecture")


@choice("architecture", "mlp")
@dataclass
class MLP(Architecture):
    width: int = option(128, "Units of every hidden layer.", ge=1)
    depth: int = option(3, "Hidden layers; a network of n linear layers has n - 1.", ge=0)
    activation: Activation = option(Activation.relu, "Non-linearity after every hidden layer.")


@choice("architecture", "convfc")
@dataclass
class ConvFC(Architecture):
    pass


@choice("architecture", "vgg")
@dataclass
class VGG(Architecture):
    depth: int = option(16, "11, 13, 16 or 19.")
    batch_norm: bool = option(False, "BatchNorm after every convolution.")
    width: float = option(1.0, "Multiplier of every convolution's channels.", gt=0)


@choice("architecture", "resnet")
@dataclass
class ResNet(Architecture):
    depth: int = option(20, "6n + 2: 20, 32, 44, 56 or 110.", ge=8)
    width: float = option(1.0, "Multiplier of the 16, 32, 64 channels.", gt=0)
    norm: Norm = option(Norm.batch, "Normalisation after every convolution: batch, layer or none.")


@choice("architecture", "preresnet")
@dataclass
class PreResNet(Architecture):
    depth: int = option(110, "110 or 164 (bottlenecks, 9n + 2); below 44 basic blocks, 6n + 2.", ge=8)


@choice("architecture", "wrn")
@dataclass
class WRN(Architecture):
    depth: int = option(28, "6n + 4.", ge=10)
    widen: int = option(10, "Widening factor.", ge=1)
    dropout: float = option(0.0, "Dropout inside every block.", ge=0, lt=1)


@choice("architecture", "vit")
@dataclass
class ViT(Architecture):
    patch: int = option(4, "Side of a patch in pixels; it must divide the image's.", ge=1)
    dim: int = option(192, "Width of the token embeddings; heads must divide it.", ge=1)
    depth: int = option(6, "Transformer blocks.", ge=1)
    heads: int = option(3, "Attention heads.", ge=1)
    mlp_ratio: float = option(2.0, "Hidden width of each block's MLP over dim.", gt=0)
    dropout: float = option(0.0, "Dropout in attention output and MLP.", ge=0, lt=1)


@choice("architecture", "torchvision")
@dataclass
class Torchvision(Architecture):
    model: str = option("resnet18", "Any classifier of torchvision.models, by its name.")
    kwargs: dict[str, Any] = option({}, "Further arguments of that model's builder.")


@choice("architecture", "custom")
@dataclass
class Custom(Architecture):
    target: str = option("", "my_package.my_module:build or path/to/file.py:Net, called to make the module.")
    kwargs: dict[str, Any] = option({}, "Arguments of that call; in_shape and classes are passed where it takes them.")


# --------------------------------------------------------------------------------------- training, curves


class Optimizer(Name):
    sgd = "sgd"
    adam = "adam"
    adamw = "adamw"


class Schedule(Name):
    constant = "constant"
    garipov = "garipov"
    cosine = "cosine"
    multistep = "multistep"
    linear = "linear"


class Every(Name):
    step = "step"
    epoch = "epoch"


class Precision(Name):
    float32 = "float32"
    tf32 = "tf32"
    bfloat16 = "bfloat16"


@dataclass
class Training:
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


@dataclass
@keyword_option(
    "from",
    "list[str] | None",
    None,
    "Take the endpoints from these and train none: a file, or RUN, RUN@epoch=20, RUN@step=100, RUN@t=0.3, RUN#2.",
)
class Endpoints(Training):
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
    init_from: str | None = option(
        None, "Train on from this network, every endpoint with its own order: a file, or RUN, RUN@epoch=20, RUN@t=0.3."
    )

    @property
    def references(self) -> list[str] | None:
        """endpoints.from."""
        found: list[str] | None = getattr(self, "from")
        return found


# ------------------------------------------------------------------------------------- evaluation, running


class BatchNorm(Name):
    reestimate = "reestimate"
    mean = "mean"


class Renormalise(Name):
    none = "none"
    repair = "repair"
    rescale = "rescale"


class PathOf(Name):
    curve = "curve"
    segment = "segment"


@dataclass
class Interpolation:
    points: int = option(61, "Evenly spaced values of t, both ends included.", ge=2)
    search_max: int = option(
        8, "Further evaluations that search for the highest train loss between grid points; 0: none.", ge=0
    )
    batch_size: int = option(1000, "Examples of a forward pass; changes rounding only.", ge=1, identity=False)
    batch_norm: BatchNorm = option(
        BatchNorm.reestimate,
        "At inner points: reestimate on training data, or the coefficient mean of the ends' statistics.",
    )
    renormalise: Renormalise = option(
        Renormalise.none,
        "At inner points: repair sets every layer's statistics to those between the ends' (REPAIR), rescale only its "
        "deviations.",
    )
    bn_examples: int | None = option(None, "Training examples of a re-estimation (a fixed draw); null: all.", ge=2)
    train_examples: int | None = option(
        None, "Training examples that train_* columns are measured on (a fixed draw); null: all.", ge=2
    )
    bootstrap: int = option(1000, "Bootstrap resamples of the examples behind every interval.", ge=20, identity=False)
    confidence: float = option(0.95, "Coverage of the intervals.", gt=0, lt=1, identity=False)
    connected_below: float = option(
        2.0,
        "Verdict: connected when the test-error barrier (above_mean) is under this many points (Frankle 2020).",
        gt=0,
        identity=False,
    )
    path: PathOf = option(PathOf.curve, "evaluate: which path to evaluate, curve or segment.", identity=False)


class Match(Name):
    none = "none"
    weight = "weight"
    activation = "activation"
    straight_through = "straight_through"
    sinkhorn = "sinkhorn"
    merge_many = "merge_many"
    c2m3 = "c2m3"


_TRAINED = ("steps", "lr", "batch_size", "examples", "seed")
_SEARCHED = ("restarts", "sweeps", "seed")
USED_BY: dict[Match, frozenset[str]] = {  # the fields of Rebasin that a method depends on
    Match.none: frozenset({"method"}),
    **{
        method: frozenset({"method", "groups", *fields})
        for method, fields in {
            Match.weight: _SEARCHED,
            Match.activation: ("examples", "similarity"),
            Match.straight_through: _TRAINED,
            Match.sinkhorn: (*_TRAINED, "between", "temperature", "unrolled"),
            Match.merge_many: _SEARCHED,
            Match.c2m3: _SEARCHED,
        }.items()
    },
}


class Between(Name):
    l2 = "l2"
    midpoint = "midpoint"
    random = "random"


class Similarity(Name):
    correlation = "correlation"
    least_squares = "least_squares"


@dataclass
class Rebasin:
    method: Match = option(
        Match.none,
        "Permute the second endpoint first: by weight, by activation, by straight_through or sinkhorn (trained), or "
        "not at all; merge_many and c2m3 permute any number of endpoints at once.",
    )
    groups: str | None = option(
        None, "A file of permutation groups, for networks that cannot be traced; see modeconn symmetries --output."
    )
    restarts: int | None = option(
        None,
        "weight, merge_many, c2m3: starts after the first; null: 8 for weight (1 where a layer is wider than 1024), "
        "else 3.",
        ge=0,
    )
    sweeps: int = option(100, "weight, merge_many, c2m3: most sweeps over the groups of one start.", ge=1)
    seed: int = option(0, "Of random starts, orders and batches.", ge=0, le=LARGEST_SEED)
    examples: int = option(
        2000, "activation: training examples that units are compared on; trained methods: that midpoints are.", ge=2
    )
    similarity: Similarity = option(
        Similarity.correlation, "activation: compare units by correlation or by least squares."
    )
    steps: int = option(300, "straight_through, sinkhorn: gradient steps.", ge=1)
    lr: float | None = option(None, "straight_through, sinkhorn: Adam's learning rate; null: 1e-3 and 0.1.", gt=0)
    batch_size: int = option(250, "straight_through, sinkhorn: training examples of a step.", ge=2)
    between: Between = option(
        Between.midpoint, "sinkhorn: train on the loss at the midpoint, at random points, or on the distance (l2)."
    )
    temperature: float = option(1.0, "sinkhorn: lower is nearer to permutations.", gt=0)
    unrolled: int | None = option(
        None, "sinkhorn: differentiate through so many rounds of normalisation; null: implicitly.", ge=1
    )


class Pairing(Name):
    consecutive = "consecutive"
    all = "all"


@dataclass
class Pipeline:
    replicates: list[int] | None = option(
        None,
        "run: the replicates, each a pair of endpoints of its own (see seed); null: seed alone.",
        ge=0,
        le=LARGEST_SEED // 2,
    )
    pairs: Pairing = option(
        Pairing.consecutive,
        "run, where endpoints.seeds, .checkpoints or .from name more than two: consecutive (first and second, third "
        "and fourth) or all.",
    )
    paths: list[PathOf] = option([PathOf.segment, PathOf.curve], "run: what to measure between each pair.")


class ChannelsLast(Name):
    auto = "auto"
    on = "on"
    off = "off"


class TrackerName(Name):
    tensorboard = "tensorboard"
    wandb = "wandb"
    mlflow = "mlflow"


@dataclass
class Runtime:
    device: str = option(
        "auto",
        "auto (CUDA when there is one), cpu, cuda, cuda:1, mps, or spread: the jobs of a parallel sweep over the CUDA "
        "devices in turn.",
    )
    threads: int = option(
        0, "CPU threads of this process; 0: PyTorch's choice, and one for small fully connected networks.", ge=0
    )
    channels_last: ChannelsLast = option(
        ChannelsLast.auto, "Memory layout of image batches; auto: where measured faster."
    )
    deterministic: bool = option(True, "Ask PyTorch for deterministic kernels (on CUDA some are slower).")
    save_every: float = option(
        20.0, "Seconds between saved states; a killed run loses at most this much of its training.", gt=0
    )
    output_dir: str = option("outputs", "Where run directories go.")
    trackers: list[TrackerName] = option([], "Experiment trackers that are sent the same as the CSV files hold.")
    force: bool = option(False, "Compute the command's own stages again, into their next version (--force).")
    dry_run: bool = option(False, "Show the plan and stop (--dry-run).")


@dataclass
class Config:
    """A whole composed configuration. `seed` is the replicate: see Endpoints.seeds."""

    seed: int = option(
        0, "Replicate: endpoints 2*seed and 2*seed+1, and the curve's own randomness.", ge=0, le=LARGEST_SEED // 2
    )
    dataset: Dataset = field(default_factory=Dataset, metadata={"doc": "What the networks learn."})
    architecture: Architecture = field(default_factory=lambda: MLP(), metadata={"doc": "The network."})
    task: TaskBase = field(
        default_factory=lambda: Classification(), metadata={"doc": "What is learnt, and when a path connects."}
    )
    endpoints: Endpoints = field(
        default_factory=Endpoints, metadata={"doc": "How endpoints are trained, or where they come from."}
    )
    curve: Curve = field(
        default_factory=lambda: choices("curve")["bezier"](),
        metadata={"doc": "The curve between them and how it is trained."},
    )
    interpolation: Interpolation = field(default_factory=Interpolation, metadata={"doc": "How a path is evaluated."})
    rebasin: Rebasin = field(
        default_factory=Rebasin, metadata={"doc": "Whether and how the second endpoint is permuted first."}
    )
    pipeline: Pipeline = field(default_factory=Pipeline, metadata={"doc": "What `modeconn run` runs it over."})
    runtime: Runtime = field(
        default_factory=Runtime, metadata={"doc": "Where and how it runs; never changes a run's identity."}
    )


def nodes_of(group: str) -> dict[str, type]:
    """Hydra nodes of a group with choices: a class of one name is called by it, a class of several by the group."""
    names: dict[type, list[str]] = {}
    for name, cls in choices(group).items():
        names.setdefault(cls, []).append(name)
    return {f"_{several[0] if len(several) == 1 else group}": cls for cls, several in names.items()}


SINGLE: dict[str, type] = {  # groups without choices
    "endpoints": Endpoints,
    "interpolation": Interpolation,
    "rebasin": Rebasin,
    "pipeline": Pipeline,
    "runtime": Runtime,
}


def nodes() -> dict[str, dict[str, type]]:
    """The Hydra nodes of every group, which its YAML files name in their defaults list."""
    own = [f.name for f in dataclasses.fields(Config) if f.name != "seed"]
    groups = [*own, *outside_groups()]
    return {g: {f"_{g}": SINGLE[g]} if g in SINGLE else nodes_of(g) for g in groups}


def outside_groups() -> list[str]:
    """Groups of settings that came from outside this package, with a stage of their own."""
    own = {f.name for f in dataclasses.fields(Config)}
    return [g for g in CHOICES if g not in own]


def make_config(seed: int, groups: dict[str, Any]) -> Config:
    """A Config of these groups; those from outside this package are fields of it too."""
    outside = [(g, type(groups[g]), field(metadata={"doc": "Settings from outside."})) for g in outside_groups()]
    whole = dataclasses.make_dataclass("Config", outside, bases=(Config,), kw_only=True) if outside else Config
    return whole(seed=seed, **{g: named_choice(node, g) for g, node in groups.items()})


def not_identifying() -> set[str]:
    """The keys (``group.field``) that change no result's identity, names among them."""
    return {
        f"{group}.{f.name}"
        for group, named in nodes().items()
        for node in named.values()
        for f in dataclasses.fields(node)
        if not f.metadata["identity"]
    }


def fields_off_default(node: Any) -> dict[str, Any]:
    """The identifying fields of a config dataclass that differ from its defaults, as plain JSON values.

    Leaving defaults out keeps every digest as it was when a later version adds a field.
    """
    found = {}
    for f in dataclasses.fields(node):
        value = getattr(node, f.name)
        if f.metadata["identity"] and value != _default(f):
            found[f.name] = str(value) if isinstance(value, Enum) else value
    return found


def recipe(node: Any) -> dict[str, Any]:
    """:func:`fields_off_default` of the training fields alone, of the Training or a class made from it."""
    names = {f.name for f in dataclasses.fields(Training)}
    return {k: v for k, v in fields_off_default(node).items() if k in names}


def check(node: Any, prefix: str = "") -> None:
    """Hold every field to its range, and the whole to what one field cannot say.

    Raises UserError naming the key, its value and what is allowed.
    """
    for f in dataclasses.fields(node):
        value, key = getattr(node, f.name), f"{prefix}{f.name}"
        if dataclasses.is_dataclass(value):
            check(value, f"{key}.")
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, float) and not math.isfinite(item):
                raise UserError(f"{key}={item} is not a number to work with; give a finite one.")
            if isinstance(item, int | float) and not isinstance(item, bool):
                _check_range(key, item, f.metadata["limits"])
    if isinstance(node, Config):
        _check_together(node)


_RANGES = {
    "ge": ("at least", lambda v, b: v >= b),
    "gt": ("more than", lambda v, b: v > b),
    "le": ("at most", lambda v, b: v <= b),
    "lt": ("less than", lambda v, b: v < b),
}


def _check_range(key: str, value: float, limits: dict[str, float]) -> None:
    if all(_RANGES[k][1](value, bound) for k, bound in limits.items()):
        return
    allowed = " and ".join(
        f"{_RANGES[k][0]} {bound if isinstance(bound, int) else format(bound, 'g')}" for k, bound in limits.items()
    )
    raise UserError(f"{key}={value} is out of range: it must be {allowed}.")


def _check_together(config: Config) -> None:
    for name in ("endpoints", "curve"):
        training: Training = getattr(config, name)
        if training.nesterov and (training.optimizer is not Optimizer.sgd or training.momentum == 0):
            raise UserError(f"{name}.nesterov=true needs {name}.optimizer=sgd and {name}.momentum above 0.")
        if len(training.betas) != 2:
            raise UserError(f"{name}.betas={training.betas} must be two numbers, as [0.9,0.999].")
        if training.milestones != sorted(training.milestones):
            raise UserError(f"{name}.milestones={training.milestones} must rise.")
        if training.warmup_epochs >= training.epochs:
            raise UserError(
                f"{name}.warmup_epochs={training.warmup_epochs:g} leaves nothing of {name}.epochs={training.epochs}."
            )
    pipeline = config.pipeline
    if not pipeline.paths or len(set(pipeline.paths)) < len(pipeline.paths):
        raise UserError("pipeline.paths must name each of segment and curve at most once, and one of them.")
    if pipeline.replicates is not None:
        if not pipeline.replicates or len(set(pipeline.replicates)) < len(pipeline.replicates):
            raise UserError(f"pipeline.replicates={pipeline.replicates} must be different seeds, as [0,1,2].")
        if config.seed:
            raise UserError(
                f"pipeline.replicates={pipeline.replicates} names the replicates, and seed={config.seed} another: drop "
                "one of the two."
            )
        given = [k for k in ("seeds", "checkpoints", "from") if getattr(config.endpoints, k) is not None]
        if given:
            raise UserError(
                f"pipeline.replicates makes endpoints of its own, and endpoints.{given[0]} names others: drop one of "
                "the two."
            )
    late = [e for e in config.endpoints.keep_epochs if e > config.endpoints.epochs]
    if late:
        raise UserError(
            f"endpoints.keep_epochs={late} lies after the last epoch, endpoints.epochs={config.endpoints.epochs}."
        )


def describe(node: type, key: str) -> str | None:
    """The documentation of one field of a config class, or None where it has no such field."""
    for f in dataclasses.fields(node):
        if f.name == key:
            allowed = allowed_values(node, key) or allowed_items(node, key)
            return f.metadata.get("doc", "") + (f" [{', '.join(allowed)}]" if allowed else "")
    return None


def allowed_values(node: type, key: str) -> list[str]:
    """What an enumerated or boolean field may be, for completion and for errors; empty for any other."""
    named = next((f.metadata["names"] for f in dataclasses.fields(node) if f.name == key), None)
    if named is not None:
        return [*choices(named)]
    kind = get_type_hints(node).get(key, str)
    kinds = getattr(kind, "__args__", (kind,)) if getattr(kind, "__origin__", None) is Union else (kind,)
    for k in kinds:
        if isinstance(k, type) and issubclass(k, Enum):
            return [m.name for m in k]
        if k is bool:
            return ["true", "false"]
    return []


def allowed_items(node: type, key: str) -> list[str]:
    """What a list of enumerated values may hold; empty for any other field."""
    kind = get_type_hints(node).get(key)
    item = get_args(kind)[0] if get_origin(kind) is list else None
    return [m.name for m in item] if isinstance(item, type) and issubclass(item, Enum) else []


def plain(node: Any) -> Any:
    """A config dataclass as dictionaries, lists, strings and numbers, ready for YAML or JSON."""
    if dataclasses.is_dataclass(node):
        return {f.name: plain(getattr(node, f.name)) for f in dataclasses.fields(node)}
    if isinstance(node, Enum):
        return str(node)
    if isinstance(node, dict):
        return {k: plain(v) for k, v in node.items()}
    return [plain(v) for v in node] if isinstance(node, list | tuple) else node


def kind_of(node: type, key: str) -> str:
    """What a field holds, in words."""
    kind = str(get_type_hints(node)[key])
    for part, words in (
        ("dict", "a dictionary"),
        ("list", "a list, as [0,1]"),
        ("bool", "true or false"),
        ("float", "a number"),
        ("int", "a whole number"),
        ("str'", "text"),
    ):
        if part in kind:
            return words
    return "one of its values"
