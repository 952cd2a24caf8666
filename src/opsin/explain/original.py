"""From the model's input back to the original picture, with the Geometry of the preparation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opsin.task import Geometry

Box = tuple[float, float, float, float]


def to_original(values: NDArray[np.float32], geometry: Geometry, size: tuple[int, int]) -> NDArray[np.float32]:
    """A map over the input as a map over the original picture, bilinear; 0 where the model did not see it.

    Args:
        values: (h, w) over the input.
        geometry: of the preparation.
        size: (H, W) of the result: the original picture, which may have been decoded at a fraction of its size.
    """
    rows, row_seen = _weights(values.shape[0], *_axis(geometry, size, 1))
    columns, column_seen = _weights(values.shape[1], *_axis(geometry, size, 0))
    found = _along(_along(values, rows).T, columns).T  # (H, w), then (H, W)
    return np.asarray(found * row_seen[:, None] * column_seen[None, :], np.float32)


def seen_box(geometry: Geometry, size: tuple[int, int]) -> Box:
    """What the model saw of the picture: left, top, right, bottom in pixels of the original."""
    sides = []
    for axis in (0, 1):
        count, scale, offset = _axis(geometry, size, axis)
        cells = geometry.input_size[1 - axis]
        sides.append((min(max(offset, 0.0), count), min(max(offset + scale * cells, 0.0), count)))
    (left, right), (top, bottom) = sides
    return float(left), float(top), float(right), float(bottom)


def _axis(geometry: Geometry, size: tuple[int, int], axis: int) -> tuple[int, float, float]:
    """Pixels of the original, and scale and offset that lead there, along x (0) or y (1)."""
    enlarged = size[1 - axis] / geometry.original_size[1 - axis]
    return size[1 - axis], geometry.scale[axis] * enlarged, geometry.offset[axis] * enlarged


def _weights(
    cells: int, count: int, scale: float, offset: float
) -> tuple[tuple[NDArray[np.int64], NDArray[np.float32]], NDArray[np.bool_]]:
    """For each original pixel the cell at or before its center and the share of the next; and whether it was seen."""
    center = (np.arange(count) + 0.5 - offset) / scale  # in the input, where cell i has its center at i + 0.5
    place = np.clip(center - 0.5, 0, cells - 1)
    first = np.minimum(place.astype(np.int64), max(cells - 2, 0))
    return (first, (place - first).astype(np.float32)), (center >= 0) & (center <= cells)


def _along(values: NDArray[np.float32], weights: tuple[NDArray[np.int64], NDArray[np.float32]]) -> NDArray[np.float32]:
    first, share = weights
    after = np.minimum(first + 1, len(values) - 1)
    found: NDArray[np.float32] = values[first] * (1 - share)[:, None] + values[after] * share[:, None]
    return found
