"""A data set described in a folder of one's own, as the documentation teaches it, is the one that is read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from modeconn_cli.data.dataset import load
from modeconn_cli.data.options import Arrays, CustomData, Dataset, TwoSpirals
from modeconn_cli.data.sources import checksum
from modeconn_cli.front.compose import compose

ROOT = Path(__file__).parents[2]
LINES = {
    "_arrays": ("path: {folder}/mine.npz", Arrays),
    "_custom": ("target: {folder}/mine.py:load", CustomData),
    "_two_spirals": ("examples: 40", TwoSpirals),
    "_dataset": ("source: yacht\ndata_dir: {folder}\ntest_size: 2", Dataset),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    x, y = np.arange(16.0).reshape(8, 2), np.arange(8) % 2
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "yacht.data").write_text("\n".join(f"{i} {i * i} {i / 3}" for i in range(8)))
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n\n\ndef load():\n    x = np.ones((4, 3))\n"
        "    return {'x_train': x, 'y_train': np.arange(4), 'x_test': x, 'y_test': np.arange(4)}\n"
    )
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("node", LINES)
def test_a_node_implies_its_source(node: str, folder: Path) -> None:
    lines, kind = LINES[node]
    (folder / "conf/dataset/mine.yaml").write_text(f"defaults: [{node}]\nname: mine\n{lines.format(folder=folder)}\n")
    (job,) = compose(["dataset=mine"], config_dir=str(folder / "conf"))
    found = job.config.dataset
    assert isinstance(found, kind)
    digits = checksum(Dataset(test_size=360))
    assert load(found, "auto").checksum == checksum(found) != digits
    shapes = {"_arrays": (2,), "_custom": (3,), "_two_spirals": (2,), "_dataset": (2,)}
    assert load(found, "auto").shape == shapes[node]


def test_every_node_that_the_documentation_teaches_is_tried_here() -> None:
    taught = {
        node
        for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        for group, node in re.findall(r"(\w+)/mine\.yaml[^\n]*?defaults: \[(\w+)\]", page.read_text(encoding="utf-8"))
        if group == "dataset"
    }
    assert taught
    assert taught <= set(LINES)
