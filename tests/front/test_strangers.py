"""Commands on modules that print and whose train() and eval() return nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import DIGITS, ok

NET = """
import torch
from torch import nn

print("imported")


class Net(nn.Module):
    def __init__(self, in_shape, classes):
        super().__init__()
        print("made")
        self.flat, self.first, self.norm = nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8)
        self.act, self.last = nn.ReLU(inplace=True), nn.Linear(8, classes)

    def train(self, mode=True):
        print("train", mode)
        super().train(mode)

    def eval(self):
        print("eval")
        self.train(False)

    def forward(self, x):
        x -= 0.5
        print(len(x))
        return self.last(self.act(self.norm(input=self.first(self.flat(x)))))
"""


@pytest.mark.parametrize("command", ["fit-curve", "rebasin", "symmetries"])
def test_json_is_one_object_whatever_a_module_prints(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    common = [w for w in DIGITS if not w.startswith("architecture")]
    if command == "symmetries":
        common = common[:1]
    answer = ok(command, *common, "architecture=custom", "architecture.target=net.py:Net", "--json")
    assert answer.json["command"] == command
    assert "made" in answer.err
