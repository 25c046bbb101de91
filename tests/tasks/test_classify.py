"""Classification against formulas written out, for every way in which a network may wrap its answer."""

from __future__ import annotations

import math
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modeconn_cli.errors import UserError
from modeconn_cli.models.build import build
from modeconn_cli.tasks.base import Batch
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.tasks.outputs import tensor_of

WRAPPINGS = {
    "tensor": lambda z: z,
    "logits": lambda z: SimpleNamespace(logits=z, hidden=z + 1),
    "dictionary with logits": lambda z: {"hidden": z + 1, "logits": z},
    "only tensor": lambda z: OrderedDict(loss=None, scores=z),
    "first of a tuple": lambda z: (z, z + 1),
    "nested": lambda z: [{"logits": z}],
}
ROWS = st.lists(st.tuples(st.floats(-30, 30), st.booleans()), min_size=1, max_size=8)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_wrapped_logits_are_the_same_as_bare_ones(wrapping, smoothing, make_data):
    torch.manual_seed(0)
    logits, y = torch.randn(9, 3, dtype=torch.float64), torch.randint(3, (9,))
    task, batch = Classify(make_data(), smoothing), Batch(torch.empty(9, 4), y)
    wrapped = WRAPPINGS[wrapping](logits)
    nll, spread = [], []
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        normaliser = math.log(sum(math.exp(v) for v in row))
        nll.append(normaliser - row[label])
        spread.append(sum(normaliser - v for v in row) / 3)
    smoothed = [(1 - smoothing) * a + smoothing * b for a, b in zip(nll, spread, strict=True)]
    assert float(task.loss(wrapped, batch)) == pytest.approx(sum(smoothed) / 9, rel=1e-12)
    scores = task.scores(wrapped, batch)
    torch.testing.assert_close(scores["nll"], torch.tensor(nll, dtype=torch.float64), rtol=1e-12, atol=0)
    assert scores["error"].tolist() == [max(r) != r[k] for r, k in zip(logits.tolist(), y.tolist(), strict=True)]


@given(rows=ROWS, column=st.booleans())
def test_one_logit_is_binary_cross_entropy_and_its_sign(make_data, rows, column):
    z = torch.tensor([v for v, _ in rows], dtype=torch.float64)
    y = torch.tensor([int(label) for _, label in rows])
    task, batch = Classify(make_data(classes=2)), Batch(torch.empty(len(z), 4), y)
    scores = task.scores(z[:, None] if column else z, batch)
    for value, label, nll, wrong in zip(z.tolist(), y.tolist(), *(scores[k].tolist() for k in scores), strict=True):
        margin = value if label else -value
        assert nll == pytest.approx(max(-margin, 0) + math.log1p(math.exp(-abs(margin))), rel=1e-9, abs=1e-12)
        assert wrong == ((value > 0) != bool(label))
    assert float(task.loss(z, batch)) == pytest.approx(float(scores["nll"].mean()), rel=1e-12)


def test_smoothing_of_one_logit_moves_the_target(make_data):
    """Binary cross-entropy with the target (1 - s) y + s / 2."""
    z, y = torch.tensor([-1.5, 0.3, 2.0], dtype=torch.float64), torch.tensor([0, 1, 0])
    task = Classify(make_data(classes=2), label_smoothing=0.2)
    target = 0.8 * y.double() + 0.1
    p = 1 / (1 + torch.exp(-z))
    wanted = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    torch.testing.assert_close(task.loss(z, Batch(z, y)), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("output", [{"a": torch.ones(2), "b": torch.ones(2)}, {}, (), "text", None])
def test_what_holds_no_answer_is_refused(output):
    with pytest.raises(UserError, match="the network returns"):
        tensor_of(output)


def test_half_precision_is_scored_in_single():
    assert tensor_of(torch.ones(2, dtype=torch.bfloat16)).dtype is torch.float32
    assert tensor_of({"logits": torch.ones(2, dtype=torch.float64)}).dtype is torch.float64


NETS = """
from torch import nn
from types import SimpleNamespace

class Flat(nn.Module):
    def __init__(self, in_shape, classes, outputs=None):
        super().__init__()
        self.layer = nn.Linear(in_shape[0], classes if outputs is None else outputs)

    def forward(self, x):
        return self.layer(x)

class Squeezed(Flat):
    def forward(self, x):
        return self.layer(x)[:, 0]

class Wrapped(Flat):
    def forward(self, x):
        return SimpleNamespace(logits=self.layer(x), hidden=x)
"""


@pytest.mark.parametrize(
    ("name", "classes", "outputs", "fits"),
    [
        ("Flat", 2, 2, True),
        ("Flat", 2, 1, True),
        ("Squeezed", 2, 1, True),
        ("Wrapped", 3, None, True),
        ("Flat", 2, 3, False),
        ("Flat", 3, 1, False),
        ("Squeezed", 3, 1, False),
    ],
)
def test_custom_networks_may_answer_so(name, classes, outputs, fits, tmp_path, make_data):
    (tmp_path / "nets.py").write_text(NETS)
    task = Classify(make_data(classes=classes))
    options = {"target": f"{tmp_path}/nets.py:{name}", "kwargs": {"outputs": outputs}}
    if fits:
        assert isinstance(build("custom", (4,), task.outputs, task.answers, **options), nn.Module)
    else:
        with pytest.raises(UserError, match=r"answers two examples of shape \(4,\) with \(2"):
            build("custom", (4,), task.outputs, task.answers, **options)
