"""A stranger's module in one file outside the package goes through every verb by its name; nothing of opsin is edited."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NET = '''
from torch import nn


class Stranger(nn.Module):
    """Knows nothing of opsin: two branches, concatenated."""

    def __init__(self, num_classes, in_channels=3, width=8):
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(in_channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(in_channels, width, 5, 2, 2), nn.GELU())
        self.mix = nn.Conv2d(2 * width, 16, 3, padding=1)
        self.answer = nn.Linear(16, num_classes)

    def forward(self, x):
        import torch

        y = torch.cat([self.left(x), self.right(x)], 1)
        return self.answer(torch.relu(self.mix(y)).mean((2, 3)))
'''


def _opsin(folder: Path, *words: str, wrong: bool = False) -> dict[str, Any]:
    environment = {**os.environ, "OPSIN_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "opsin", *words, "--json"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode == 0) is not wrong, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright left or bright right, and the stranger's file."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    for i in range(60):
        array = rng.integers(0, 80, (32, 32, 3), np.uint8)
        side = "left" if i % 2 else "right"
        array[:, :16] += 150 if side == "left" else 0
        array[:, 16:] += 150 if side == "right" else 0
        (folder / "data" / side).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / "data" / side / f"{i}.png")
    return folder


def test_every_verb(place: Path) -> None:
    trained = _opsin(
        place, "train", "classify", "--data", "data", "--model", "net.py:Stranger", "--epochs", "12", "--batch-size", "8",
        "--out", "run", "task.flip=false", "optimizer.name=adamw", "optimizer.lr=0.01",
    )  # fmt: skip
    assert trained["status"] == "done"
    found = _opsin(place, "evaluate", "run")
    assert found["metrics"]["accuracy"]["value"] > 0.8
    picture = next((place / "data" / "left").iterdir())
    assert _opsin(place, "predict", "run", str(picture))["predictions"][0]["class"] == "left"
    for method in ("grad-cam", "integrated-gradients"):
        _opsin(place, "explain", "run", str(picture), "--method", method, "--save", f"maps-{method}")
        assert list((place / f"maps-{method}").rglob("*.png"))
    shown = _opsin(place, "models", "show", "run")
    # closed form: two stems with one norm, the mixing convolution, the answer
    assert shown["parameters"] == (3 * 8 * 9 + 8 + 16) + (3 * 8 * 25 + 8) + (16 * 16 * 9 + 16) + (16 * 2 + 2)
    features = _opsin(place, "features", "run", "data", "--layer", "mix", "--out", "f.npz")
    assert features["shape"] == [16]
    exported = _opsin(place, "export", "run", "--to", "onnx", "--out", "exported")
    assert exported["passed"]
    moved = _opsin(
        place, "train", "classify", "--data", "data", "--model", "net.py:Stranger", "--weights", "run", "--transfer",
        "head", "--out", "moved",
    )  # fmt: skip
    assert moved["status"] == "done"


def test_the_contract_check_takes_it(place: Path) -> None:
    from opsin.testing import check_model

    check_model(f"{place}/net.py:Stranger", in_channels=(3,), image_sizes=((16, 16), (20, 16)))
