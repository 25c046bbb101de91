"""Exceptions of a user's own code: one line that names the place, and the traceback in a log."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_helpers import QUICK, call
from torch import nn

import modeconn_cli as mc
from modeconn_cli.errors import CodeFailed, UserError
from modeconn_cli.failures import said, unforeseen
from modeconn_cli.weights import combine

NETS = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))

    def forward(self, x):
        return super().forward(x)

class Trained(Net):
    def forward(self, x):
        if self.training:
            raise KeyError("no such\\nthing")
        return super().forward(x)

class Always(Net):
    def forward(self, x):
        raise ValueError("never")

class Misfit(Net):
    def forward(self, x):
        return super().forward(x[:, :, 1:])

def build():
    return nowhere
"""


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("Trained", 1, 15),
        ("Always", 1, 20),
        ("build", 1, 27),
        ("Misfit", 2, 10),  # shapes do not suit each other: another request may
    ],
)
def test_an_exception_is_one_line_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int, line: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    words = ["architecture=custom", f"architecture.target=nets.py:{name}", "dataset.train_size=50", *QUICK]
    answer = call("train-endpoints", "--json", "endpoints.seeds=[0]", *words)
    assert answer.code == code
    assert f"Error in nets.py:{line}: " in answer.line
    assert answer.json["exit_code"] == code
    assert answer.json["error"] in answer.line
    if name == "Trained":
        (log,) = Path("outputs").glob("train-endpoints/*/v1/log.txt")
        assert str(log) in answer.line
        assert 'raise KeyError("no such\\nthing")' in log.read_text()


def test_from_python_it_is_an_exception_with_its_cause() -> None:
    class Stops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 2:
                raise LookupError("more than two")
            return self.linear(x)

    x, y = torch.randn(12, 3), torch.arange(12) % 2
    with pytest.raises(CodeFailed, match=r"LookupError in .*test_user_code.py:\d+: more than two") as caught:
        mc.connect(Stops(), Stops(), (x, y), curve=False)
    assert isinstance(caught.value.__cause__, LookupError)


def test_a_fault_of_our_own_is_called_that_and_logged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not enough values") as caught:
        combine([0.0], torch.zeros(1, 2), torch.zeros(2))
    error = caught.value
    assert error.__traceback__ is not None
    ours = error.with_traceback(error.__traceback__.tb_next)  # without this test's own line
    found = unforeseen(ours, tmp_path)
    assert not isinstance(found, CodeFailed | UserError)
    assert "fault of modeconn's (modeconn_cli/weights.py:" in str(found)
    assert "ValueError" in (tmp_path / "log.txt").read_text()
    assert said(ours).startswith("ValueError: ")
