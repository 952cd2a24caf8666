"""Pages with drawn shapes whose boxes are known, for tests of detectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from opsin.data.columns import StringColumn
from opsin.data.dataset import Dataset
from opsin.data.objects import ObjectColumn, Objects
from opsin.data.sources import ArraySource
from opsin.data.targets import HeadSpec

CLASSES = ("disc", "square")
COLORS = {"disc": (230, 60, 40), "square": (40, 90, 230), "bar": (40, 200, 80)}


def shapes(count: int = 24, side: int = 64, seed: int = 0, classes: Sequence[str] = CLASSES) -> Dataset:
    """Pictures (side, side) of noise, each with one or two shapes; every sixth is empty, every ninth has a crowd."""
    draws = np.random.default_rng(seed)
    pictures, objects = [], []
    for i in range(count):
        canvas = Image.fromarray(draws.integers(90, 130, (side, side, 3), np.uint8))
        pen, boxes, labels = ImageDraw.Draw(canvas), [], []
        for k in range(0 if i % 6 == 5 else 1 + i % 2):
            label, size = int(draws.integers(len(classes))), int(draws.integers(side // 4, side // 2 - 4))
            left, top = k * side // 2 + int(draws.integers(1, side // 2 - size)), int(draws.integers(1, side - size))
            name = classes[label]
            drawn = pen.ellipse if name == "disc" else pen.rectangle
            drawn([left, top, left + size - 1, top + size - 1], fill=COLORS[name])
            boxes.append([left, top, left + size, top + size])
            labels.append(label)
        crowd = [i % 9 == 8] * len(boxes)
        pictures.append(np.asarray(canvas).transpose(2, 0, 1))
        objects.append(Objects.of(boxes, labels, crowd=crowd))
    return Dataset(
        "shapes",
        StringColumn(f"s{i:03d}.png" for i in range(count)),
        ArraySource(np.stack(pictures)),
        heads=(HeadSpec("objects", "objects", tuple(classes)),),
        targets={"objects": ObjectColumn.collect(objects)},
    )
