"""Data sets with points for tests: drawn triangles, and the real ones as `Dataset`s."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from opsin.data.columns import StringColumn
from opsin.data.dataset import Dataset
from opsin.data.objects import ObjectColumn, Objects
from opsin.data.sources import ArraySource
from opsin.data.targets import HeadSpec, PointSpec

TRIANGLE = PointSpec(("left_foot", "right_foot", "top"), (1, 0, 2), ((0, 2), (1, 2)), (0.08, 0.08, 0.08))


def triangles(count: int = 24, most: int = 2, side: int = 64, seed: int = 0) -> Dataset:
    """Gray pictures with one or `most` triangles: a dark left and a bright right foot, a middle-gray top."""
    draws = np.random.default_rng(seed)
    pictures, objects = [], []
    for i in range(count):
        canvas = Image.new("L", (side, side), 20)
        pen, boxes, points = ImageDraw.Draw(canvas), [], []
        for k in range(1 + i % most):
            room = side // most
            width, height = draws.integers(room // 2, room - 4), draws.integers(side // 3, side - 8)
            x, y = k * room + draws.integers(1, room - width), draws.integers(2, side - height - 2)
            corners = np.array([[x, y + height], [x + width, y + height], [x + draws.integers(2, width), y]], float)
            pen.polygon([tuple(c) for c in corners.tolist()], fill=90)
            for (cx, cy), shade in zip(corners.tolist(), (0, 255, 180)):
                pen.ellipse([cx - 2, cy - 2, cx + 2, cy + 2], fill=shade)
            boxes.append([corners[:, 0].min(), corners[:, 1].min(), corners[:, 0].max(), corners[:, 1].max()])
            points.append(np.concatenate([corners + 0.5, np.full((3, 1), 2.0)], 1))
        pictures.append(np.asarray(canvas)[None])
        objects.append(Objects.of(boxes, [0] * len(boxes), points=np.stack(points)))
    head = HeadSpec("objects", "objects", ("triangle",), TRIANGLE)
    return Dataset(
        "triangles",
        StringColumn(f"p{i:03d}.png" for i in range(count)),
        ArraySource(np.stack(pictures)),
        heads=(head,),
        targets={"objects": ObjectColumn.collect(objects, 3)},
    )
