"""Your own network: any `nn.Module` in one file, trained and used like the built-in ones.

    python examples/own_model.py                                                        all of it, from Python
    opsin train classify --data digits --model examples/own_model.py:build              the same from the command line

The builder is a function (or the class itself). It is handed those of `num_classes`, `in_channels` and `image_size`
that it takes; further keyword arguments come from `model.kwargs.NAME=VALUE`. The module returns logits (B, num_classes)
as a plain tensor. Pixels arrive normalized as float32; random augmentation, loss, metrics and export are not its concern.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

import opsin


class TwoLayers(nn.Module):
    """Two convolutions, the mean over the picture, one linear layer."""

    def __init__(self, num_classes: int, in_channels: int, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)  # (B, 2 * width, H/2, W/2)
        return self.head(x.mean((2, 3)))  # (B, K)


def build(num_classes: int, in_channels: int, width: int = 32) -> TwoLayers:
    """The builder that `--model examples/own_model.py:build` names."""
    return TwoLayers(num_classes, in_channels, width)


def write_digits(folder: Path) -> Path:
    """600 real handwritten digits, 16 x 16, one folder per class."""
    data = load_digits()
    for i in range(600):
        place = folder / str(data.target[i]) / f"{i:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.round(data.images[i] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC).save(place)
    return folder


def main() -> None:
    """Train, judge, predict."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        digits = write_digits(place / "digits")
        run = opsin.train(
            "classify", data=digits, model=build, out=place / "run", quiet=True,
            epochs=15, batch_size=32, optimizer={"name": "adamw", "lr": 3e-3},
        )  # fmt: skip
        accuracy = run.state["validation"]["accuracy"]
        print(
            f"validation accuracy {accuracy['value']:.3f} (95 % interval {accuracy['low']:.3f} to {accuracy['high']:.3f})"
        )
        picture = next((digits / "7").iterdir())
        print(f"a seven is called {opsin.load(run.path).predict(picture).label}")


if __name__ == "__main__":
    main()
