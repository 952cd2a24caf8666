"""Predict a large picture in overlapping tiles, so that small objects keep their pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opsin.bundle import Bundle
from opsin.data.tiling import tiles, untile
from opsin.errors import ConfigError
from opsin.results.detection import Candidates, Detection
from opsin.task import Sample

BATCH = 16  # tiles per pass


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut: `size` (H, W) of a tile in pixels of the original, `overlap` of neighbors as a share of it.

    With `whole`, the picture as a whole is looked at too, for objects that are larger than a tile.
    """

    size: tuple[int, int]
    overlap: float = 0.2
    whole: bool = True

    def __post_init__(self) -> None:
        if min(self.size) < 32 or not 0 <= self.overlap < 0.9:
            raise ConfigError(
                f"Tiles of {self.size} with an overlap of {self.overlap}: expected 32 pixels and more, 0 to 0.9."
            )


def predict_tiled(bundle: Bundle, sample: Sample, tiling: Tiling, runner: Any = None) -> Detection:
    """What a detector sees of a picture in tiles, as one result in pixels of the picture.

    Args:
        sample: read in full size.
    """
    height, width = sample.image.shape[1:]
    corners = tiles(height, width, tiling.size, tiling.overlap).tolist()
    parts = [
        replace(sample, image=sample.image[:, top:bottom, left:right], original_size=None)
        for left, top, right, bottom in corners
    ]
    offsets = [(left, top) for left, top, _, _ in corners]
    if tiling.whole and len(parts) > 1:
        parts, offsets = [*parts, sample], [*offsets, (0, 0)]
    found: list[Detection] = []
    for start in range(0, len(parts), BATCH):
        found += bundle.predict_samples(parts[start : start + BATCH], runner)
    settings = bundle.task.settings
    return joined(sample.id, (height, width), found, offsets, settings.max_detections, settings.agnostic)


def joined(
    name: str, size: tuple[int, int], parts: list[Detection], offsets: list[tuple[int, int]], most: int,
    agnostic: bool = False,
) -> Detection:  # fmt: skip
    """Results of parts of a picture as one; `offsets` (x, y) are the parts' corners in it."""
    every = [part.candidates for part in parts]
    found = [(one.boxes_xyxy, one.scores, one.labels) for one in every]
    boxes, scores, labels, positions = untile(found, offsets, sure=parts[0].thresholds, agnostic=agnostic)
    shift = np.concatenate(
        [np.tile(np.array([*at, 0.0], np.float32), (len(one), 1)) for one, at in zip(every, offsets)]
    )
    points = np.concatenate([one.points for one in every]) + shift[:, None]
    best = Candidates(
        boxes[:most].astype(np.float32), scores[:most].astype(np.float32), labels[:most], points[positions[:most]]
    )
    return replace(parts[0], id=name, size=size, candidates=best)
