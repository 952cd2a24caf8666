"""Boxes in numpy: layouts, overlap and distance, pairwise and element by element.

A box is (x1, y1, x2, y2) unless its name says otherwise, in continuous coordinates (the right edge of pixel i is i + 1),
so its width is x2 - x1. A box without area overlaps with nothing: overlaps of disjoint or degenerate boxes are exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from opsin.errors import ShapeError
from opsin.metrics.inputs import FloatArray

Layout = Literal["xyxy", "xywh", "cxcywh"]
Overlap = Callable[[FloatArray, FloatArray], FloatArray]


def as_boxes(boxes: npt.ArrayLike, width: int = 4) -> FloatArray:
    """Boxes (..., 4) as float64; no boxes at all may be given as an empty list.

    Raises:
        ShapeError: another last axis.
    """
    array = np.asarray(boxes, np.float64)
    if array.size == 0 and array.ndim == 1:
        array = array.reshape(0, width)
    if array.ndim == 0 or array.shape[-1] != width:
        raise ShapeError(f"boxes have shape {array.shape}; expected (..., {width}).")
    return array


# Layouts -----------------------------------------------------------------------------------------------------------------


def xywh_to_xyxy(boxes: npt.ArrayLike) -> FloatArray:
    """Top left corner and size (..., 4) to two corners."""
    corner, size = np.split(as_boxes(boxes), 2, axis=-1)
    return np.concatenate([corner, corner + size], axis=-1)


def xyxy_to_xywh(boxes: npt.ArrayLike) -> FloatArray:
    """Two corners (..., 4) to top left corner and size."""
    low, high = np.split(as_boxes(boxes), 2, axis=-1)
    return np.concatenate([low, high - low], axis=-1)


def cxcywh_to_xyxy(boxes: npt.ArrayLike) -> FloatArray:
    """Center and size (..., 4) to two corners."""
    center, size = np.split(as_boxes(boxes), 2, axis=-1)
    return np.concatenate([center - size / 2, center + size / 2], axis=-1)


def xyxy_to_cxcywh(boxes: npt.ArrayLike) -> FloatArray:
    """Two corners (..., 4) to center and size."""
    low, high = np.split(as_boxes(boxes), 2, axis=-1)
    return np.concatenate([(low + high) / 2, high - low], axis=-1)


def normalized(boxes: npt.ArrayLike, size: tuple[int, int]) -> FloatArray:
    """Pixels to shares of the picture, in any layout of four numbers.

    Args:
        boxes: (..., 4).
        size: (H, W) of the picture.
    """
    height, width = size
    return as_boxes(boxes) / np.array([width, height, width, height], np.float64)


def absolute(boxes: npt.ArrayLike, size: tuple[int, int]) -> FloatArray:
    """Shares of the picture (H, W) to pixels; the inverse of `normalized`."""
    height, width = size
    return as_boxes(boxes) * np.array([width, height, width, height], np.float64)


def area(boxes: npt.ArrayLike) -> FloatArray:
    """Area of boxes (..., 4), 0 where a box has no positive width and height."""
    x1, y1, x2, y2 = np.moveaxis(as_boxes(boxes), -1, 0)
    return np.asarray(np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0))


# Overlap, element by element; shapes broadcast ---------------------------------------------------------------------------


def intersection(first: npt.ArrayLike, second: npt.ArrayLike) -> FloatArray:
    """Area that two boxes share, (...) of boxes (..., 4) that broadcast."""
    a, b = np.moveaxis(as_boxes(first), -1, 0), np.moveaxis(as_boxes(second), -1, 0)
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    return np.asarray(np.maximum(width, 0) * np.maximum(height, 0))


def iou(first: npt.ArrayLike, second: npt.ArrayLike) -> FloatArray:
    """Intersection over union, in [0, 1]; (...) of boxes (..., 4) that broadcast."""
    shared = intersection(first, second)
    return _share(shared, area(first) + area(second) - shared)


def crowd_iou(found: npt.ArrayLike, crowd: npt.ArrayLike) -> FloatArray:
    """Share of the found box that lies in the region of a crowd: COCO's overlap with `iscrowd`, in [0, 1]."""
    shared = intersection(found, crowd)
    return _share(shared, np.broadcast_to(area(found), shared.shape))


def giou(first: npt.ArrayLike, second: npt.ArrayLike) -> FloatArray:
    """IoU - (C - U) / C with C the area of the hull (Rezatofighi 2019), in [-1, 1]."""
    shared = intersection(first, second)
    union = area(first) + area(second) - shared
    hull = area(_hull(first, second))
    return _share(shared, union) - _share(hull - union, hull)


def diou(first: npt.ArrayLike, second: npt.ArrayLike) -> FloatArray:
    """IoU - squared distance of the centers / squared diagonal of the hull (Zheng 2020), in [-1, 1]."""
    hull = xyxy_to_cxcywh(_hull(first, second))
    apart = xyxy_to_cxcywh(first)[..., :2] - xyxy_to_cxcywh(second)[..., :2]
    return iou(first, second) - _share((apart**2).sum(-1), (hull[..., 2:] ** 2).sum(-1))


def ciou(first: npt.ArrayLike, second: npt.ArrayLike) -> FloatArray:
    """DIoU - a v, v = 4 / pi^2 (atan(w / h) - atan(w' / h'))^2, a = v / (1 - IoU + v) (Zheng 2020, eq. 8 to 11)."""
    a, b = xyxy_to_cxcywh(first), xyxy_to_cxcywh(second)
    v = 4 / np.pi**2 * (np.arctan2(a[..., 2], a[..., 3]) - np.arctan2(b[..., 2], b[..., 3])) ** 2
    return diou(first, second) - _share(v * v, 1 - iou(first, second) + v)


def wasserstein(first: npt.ArrayLike, second: npt.ArrayLike, constant: float = 12.8) -> FloatArray:
    """Normalized Gaussian Wasserstein distance, exp(-W / constant) in (0, 1] (Wang 2021): it does not vanish for tiny boxes apart.

    W^2 is the squared distance of (cx, cy, w / 2, h / 2).

    Args:
        first, second: boxes (..., 4) that broadcast.
        constant: pixels; the mean size of objects (12.8 in the paper's data set).
    """
    scale = np.array([1.0, 1.0, 0.5, 0.5])
    apart = (xyxy_to_cxcywh(first) - xyxy_to_cxcywh(second)) * scale
    return np.asarray(np.exp(-np.sqrt((apart**2).sum(-1)) / constant))


def pairwise(function: Overlap, first: npt.ArrayLike, second: npt.ArrayLike) -> FloatArray:
    """Any of the functions above for every pair: (N, 4) and (M, 4) to (N, M)."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    width = max(a.shape[-1], b.shape[-1], 4)
    return function(as_boxes(a, width)[:, None], as_boxes(b, width)[None, :])


def _hull(first: npt.ArrayLike, second: npt.ArrayLike) -> FloatArray:
    a, b = as_boxes(first), as_boxes(second)
    return np.concatenate([np.minimum(a[..., :2], b[..., :2]), np.maximum(a[..., 2:], b[..., 2:])], axis=-1)


def _share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> FloatArray:
    found: FloatArray = np.zeros(np.broadcast_shapes(part.shape, whole.shape))
    np.divide(part, whole, out=found, where=whole > 0)
    return found


# Rotated boxes -----------------------------------------------------------------------------------------------------------


def rotated_corners(boxes: npt.ArrayLike) -> FloatArray:
    """Corners (..., 4, 2) of rotated boxes (..., 5).

    Args:
        boxes: cx, cy, w, h in pixels and the angle in degrees, counter-clockwise as seen on the picture (y points down).
    """
    array = as_boxes(boxes, 5)
    turn = np.deg2rad(array[..., 4:5])
    x = array[..., 2:3] / 2 * np.array([-1.0, 1.0, 1.0, -1.0])
    y = array[..., 3:4] / 2 * np.array([-1.0, -1.0, 1.0, 1.0])
    cos, sin = np.cos(turn), np.sin(turn)
    return np.stack([x * cos + y * sin + array[..., 0:1], y * cos - x * sin + array[..., 1:2]], axis=-1)


def rotated_iou(first: npt.ArrayLike, second: npt.ArrayLike) -> FloatArray:
    """Intersection over union of rotated boxes, exact: one rectangle is clipped by the four sides of the other.

    Args:
        first, second: (..., 5) that broadcast, see `rotated_corners`.

    Returns:
        (...), in [0, 1].
    """
    a, b = np.broadcast_arrays(as_boxes(first, 5), as_boxes(second, 5))
    shape = a.shape[:-1]
    a, b = a.reshape(-1, 5), b.reshape(-1, 5)
    moved = np.concatenate([a[:, :2] - b[:, :2], a[:, 2:]], axis=1)
    turn = np.deg2rad(b[:, 4])
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    corners = rotated_corners(moved)  # (n, 4, 2) about the center of b
    x, y = corners[..., 0], corners[..., 1]
    polygon = np.stack([x * cos - y * sin, x * sin + y * cos], axis=-1)  # along the sides of b
    for axis in (0, 1):
        for sign in (1.0, -1.0):
            polygon = _clip(polygon, axis, sign, b[:, 2 + axis] / 2)
    x, y = polygon[..., 0], polygon[..., 1]
    shared = np.abs((x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1)) / 2
    areas = [np.maximum(one[:, 2], 0) * np.maximum(one[:, 3], 0) for one in (a, b)]
    shared = np.where((areas[0] > 0) & (areas[1] > 0), np.minimum(shared, np.minimum(*areas)), 0.0)
    return _share(shared, areas[0] + areas[1] - shared).reshape(shape)


def _clip(polygon: FloatArray, axis: int, sign: float, limit: FloatArray) -> FloatArray:
    """Part of convex polygons (n, m, 2) with sign * coordinate <= limit (n,), as (n, m + 1, 2); spare vertices repeat the first.

    Where nothing is left all vertices are 0.
    """
    n, m, _ = polygon.shape
    after = np.roll(polygon, -1, axis=1)
    beyond, beyond_after = sign * polygon[..., axis] - limit[:, None], sign * after[..., axis] - limit[:, None]
    inside, inside_after = beyond <= 0, beyond_after <= 0
    crosses = inside != inside_after
    part = np.where(crosses, beyond / np.where(crosses, beyond - beyond_after, 1.0), 0.0)
    crossing = polygon + part[..., None] * (after - polygon)
    every = np.stack([polygon, crossing], axis=2).reshape(n, 2 * m, 2)
    kept = np.stack([inside, crosses], axis=2).reshape(n, 2 * m)
    order = np.argsort(~kept, axis=1, kind="stable")[:, : m + 1]
    vertices = np.take_along_axis(every, order[..., None], axis=1)
    real = np.take_along_axis(kept, order, axis=1)
    first = np.where(real[:, :1, None], vertices[:, :1], 0.0)
    return np.where(real[..., None], vertices, first)
