"""Keypoints judged: OKS and its average precision as COCO computes them, PCK, PCKh, NME, failure rate and the CED curve.

A point is x, y and visibility: 0 not labeled, 1 hidden, 2 visible. Points that are not labeled count nowhere.

Shapes: N pictures, R weightings, G objects, K points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from opsin.errors import ConfigError, ShapeError
from opsin.metrics import boxes as geometry
from opsin.metrics.detection import (
    SIZE_RANGES,
    THRESHOLDS,
    Judged,
    judge,
    judged,
    mean_over_classes,
    size_range,
    weighed_stepwise,
)
from opsin.metrics.inputs import FloatArray, IntArray, Weights, over_replicates, ratio
from opsin.metrics.matching import BoolArray, Scenes, pairs, scenes
from opsin.results.rows import Rows

COCO_SIGMAS = np.array(
    [.26, .25, .25, .35, .35, .79, .79, .72, .72, .62, .62, 1.07, 1.07, .87, .87, .89, .89]
) / 10  # fmt: skip
"""Spread of COCO's 17 joints: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles."""
POSE_SIZES = (0, 2, 3)  # all, medium, large: COCO labels no points of small persons
POSE_LIMIT = 20  # detections per picture
FAILURE = 0.10  # NME from which on a face has failed
CED_END = 0.10  # where the area under the CED curve ends

Normalizer = Literal["interocular", "box", "area"]


# OKS and its average precision -------------------------------------------------------------------------------------------


def oks(
    found: npt.ArrayLike, true: npt.ArrayLike, boxes: npt.ArrayLike, area: npt.ArrayLike, sigmas: npt.ArrayLike
) -> FloatArray:
    """Object keypoint similarity of each pair, (n,) in [0, 1]: mean over labeled points of exp(-d^2 / (2 s^2 k^2)).

    s^2 is the object's area, k = 2 sigma. Of an object without labeled points, d is how far a point lies outside the box
    doubled in size (COCO's rule for crowds).

    Args:
        found, true: (n, K, 3) x, y, visibility; that of `found` is not looked at.
        boxes: (n, 4) of the objects.
        area: (n,) of the objects.
        sigmas: (K,).

    Raises:
        ShapeError: shapes that do not fit.
    """
    a, b = np.asarray(found, np.float64), np.asarray(true, np.float64)
    spread = np.asarray(sigmas, np.float64)
    if a.shape != b.shape or a.ndim != 3 or spread.shape != (a.shape[1],):
        raise ShapeError(f"points {a.shape} and {b.shape}, sigmas {spread.shape}; expected (n, K, 3) twice and (K,).")
    low, high = np.split(geometry.as_boxes(boxes), 2, axis=-1)
    seen: BoolArray = np.asarray(b[..., 2] > 0)
    apart = a[..., :2] - b[..., :2]
    low, side = low[:, None], (high - low)[:, None]
    beyond = np.maximum(low - side - a[..., :2], 0) + np.maximum(a[..., :2] - (low + 2 * side), 0)
    nothing: BoolArray = np.asarray(~seen.any(1))
    apart[nothing] = beyond[nothing]
    counted = seen | nothing[:, None]
    size = (np.asarray(area, np.float64) + np.spacing(1))[:, None]
    alike = np.where(counted, np.exp(-((apart**2).sum(-1) / (2 * spread) ** 2 / size / 2)), 0.0)
    return ratio(alike.sum(1), counted.sum(1))


_POSES: WeakKeyDictionary[Rows, dict[tuple[Any, ...], Judged]] = WeakKeyDictionary()


def judge_poses(rows: Rows, num_classes: int, sigmas: npt.ArrayLike) -> Judged:
    """Match poses as COCO does, by OKS instead of IoU; done once for each table and kept as long as it lives.

    Objects without labeled points do not count. A pose is as large as the box around its points.

    Raises:
        ShapeError: no points, or another number than there are sigmas.
    """
    spread = np.asarray(sigmas, np.float64)
    key = (num_classes, *spread.tolist())
    kept = _POSES.setdefault(rows, {})
    if key not in kept:
        given = scenes(rows)
        found, true = _points(given, len(spread))
        low, high = (found[..., :2].min(1), found[..., :2].max(1)) if len(found) else (np.zeros((0, 2)),) * 2
        truth = given.truth

        def alike(own: IntArray, other: IntArray) -> FloatArray:
            return oks(found[own], true[other], truth.boxes[other], truth.area[other], spread)

        group = given.found.picture * num_classes + given.found.labels
        near = pairs(group, truth.picture * num_classes + truth.labels, alike, float(THRESHOLDS[0]))
        unlabeled = ~(true[..., 2] > 0).any(1)
        kept[key] = judged(
            given, num_classes, near, (high - low).prod(-1), truth.crowd | unlabeled, SIZE_RANGES[list(POSE_SIZES)],
            POSE_LIMIT,
        )  # fmt: skip
    return kept[key]


def oks_metrics(
    rows: Rows, class_names: Sequence[str], weights: Weights = None, *, sigmas: npt.ArrayLike = COCO_SIGMAS
) -> dict[str, FloatArray]:
    """COCO's average precision and recall of poses: `oks_map`, `oks_map50`, `oks_map75`, `oks_map_medium`, `oks_map_large`, `oks_ar`.

    Args:
        rows: of the task `detect` with `found_points` and `true_points`.
        class_names: C names.
        weights: None, (N,) or (R, N); see `detection_metrics`.
        sigmas: (K,) spread of each point; COCO's 17 by default.

    Returns:
        Each () or (R,).
    """
    found = judge_poses(rows, len(class_names), sigmas)
    names = ("oks_map", "oks_map50", "oks_map75", "oks_map_medium", "oks_map_large", "oks_ar")

    def compute(chunk: FloatArray) -> FloatArray:
        precision, recall, objects = size_range(found, 0, chunk)
        means = [mean_over_classes(values, objects) for values in (precision, precision[:, 0], precision[:, 5])]
        for size in (1, 2):
            values, _, counted = size_range(found, size, chunk)
            means.append(mean_over_classes(values, counted))
        return np.stack([*means, mean_over_classes(recall, objects)], axis=1)

    table = weighed_stepwise(compute, found, weights)
    return {name: table[..., i] for i, name in enumerate(names)}


def _points(given: Scenes, count: int) -> tuple[FloatArray, FloatArray]:
    found, true = given.found.points, given.truth.points
    if found is None and not len(given.found.scores):
        found = np.zeros((0, count, 3))
    if true is None and not len(given.truth.labels):
        true = np.zeros((0, count, 3))
    if found is None or true is None:
        raise ShapeError("Rows hold no points; expected the columns found_points and true_points.")
    if len(true) and true.shape[1] != count:
        raise ShapeError(f"Rows hold {true.shape[1]} points of each object, sigmas are {count}; expected one for each.")
    return found, true


# Distances ---------------------------------------------------------------------------------------------------------------


def normalizers(
    how: Normalizer,
    true: npt.ArrayLike,
    boxes: npt.ArrayLike | None = None,
    eyes: tuple[Sequence[int], Sequence[int]] | None = None,
) -> FloatArray:
    """What distances of each object are divided by, (G,) pixels; nan where it is not known.

    Args:
        how: `interocular`: distance of the means of the points of each eye; `box`: sqrt(width * height) of the
            box; `area`: the diagonal of the box around the labeled points.
        true: (G, K, 3).
        boxes: (G, 4), for `box`.
        eyes: positions of the points of the left and of the right eye, for `interocular`.

    Raises:
        ConfigError: what `how` needs was not given.
    """
    points = np.asarray(true, np.float64)
    seen: BoolArray = np.asarray(points[..., 2] > 0)
    if how == "interocular":
        if eyes is None:
            raise ConfigError("normalizer 'interocular' needs the points of both eyes, such as eyes=([36], [45]).")
        left, right = (points[:, list(eye), :2].mean(1) for eye in eyes)
        known: BoolArray = np.asarray(seen[:, [*eyes[0], *eyes[1]]].all(1))
        size = np.sqrt(((left - right) ** 2).sum(-1))
    elif how == "box":
        if boxes is None:
            raise ConfigError("normalizer 'box' needs the boxes of the objects.")
        size = np.sqrt(geometry.area(boxes))
        known = size > 0
    else:
        low = np.where(seen[..., None], points[..., :2], np.inf).min(1)
        high = np.where(seen[..., None], points[..., :2], -np.inf).max(1)
        known = np.asarray(seen.any(1))
        size = np.sqrt((np.where(known[:, None], high - low, 0.0) ** 2).sum(-1))
    return np.where(known & (size > 0), size, np.nan)


def distances(found: npt.ArrayLike, true: npt.ArrayLike, normalizer: npt.ArrayLike = 1.0) -> FloatArray:
    """Distance of each point from its place over the object's normalizer, (G, K); nan where it is not labeled or not known.

    Args:
        found: (G, K, 2 or more).
        true: (G, K, 3).
        normalizer: (G,) pixels, or one number.

    Raises:
        ShapeError: shapes that do not fit.
    """
    a, b = np.asarray(found, np.float64), np.asarray(true, np.float64)
    if a.ndim != 3 or b.ndim != 3 or a.shape[:2] != b.shape[:2] or b.shape[2] != 3 or a.shape[2] < 2:
        raise ShapeError(f"points found {a.shape} and true {b.shape}; expected (G, K, 2 or 3) and (G, K, 3).")
    apart = np.sqrt(((a[..., :2] - b[..., :2]) ** 2).sum(-1))
    scale = np.broadcast_to(np.asarray(normalizer, np.float64), (len(b),))[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((b[..., 2] > 0) & (scale > 0), apart / scale, np.nan)


def nme(apart: npt.ArrayLike) -> FloatArray:
    """Normalized mean error of each object, (G,), from `distances` (G, K); nan without labeled points."""
    array = np.asarray(apart, np.float64)
    known = ~np.isnan(array)
    return ratio(np.where(known, array, 0).sum(-1), known.sum(-1))


def pck(apart: npt.ArrayLike, limit: float = 0.2) -> FloatArray:
    """Share of labeled points (K,) that are within `limit` of their place, over all objects; from `distances` (G, K).

    With the size of the box or torso as normalizer this is PCK (Yang 2013), with the head's and limit .5 PCKh (Andriluka 2014).
    """
    array = np.asarray(apart, np.float64)
    known = ~np.isnan(array)
    return ratio((known & (np.nan_to_num(array, nan=np.inf) <= limit)).sum(0), known.sum(0))


def head_sizes(points: npt.ArrayLike, head: tuple[int, int], scale: float = 0.6) -> FloatArray:
    """Head sizes (G,) for PCKh: the distance of two points (top of the head and neck), times `scale` (MPII: .6 of the box's diagonal)."""
    array = np.asarray(points, np.float64)
    apart = array[:, head[0], :2] - array[:, head[1], :2]
    size = scale * np.sqrt((apart**2).sum(-1))
    return np.where((array[:, list(head), 2] > 0).all(1) & (size > 0), size, np.nan)


def ced(errors: npt.ArrayLike, end: float = CED_END) -> tuple[FloatArray, FloatArray]:
    """Cumulative error distribution: errors (E,) from 0 to `end` and the share of objects (E,) with at most that error.

    Args:
        errors: (G,) of the objects, nan left out, infinite for those that were not found.
        end: last error.
    """
    known = _known(errors)
    inside = np.unique(known[known <= end])
    x = np.unique(np.concatenate([[0.0], inside, [end]]))
    return x, ratio(np.searchsorted(np.sort(known), x, "right"), np.full(len(x), len(known)))


def auc_ced(errors: npt.ArrayLike, end: float = CED_END) -> float:
    """Area under the steps of the CED curve up to `end`, over `end`, in [0, 1]; nan without errors."""
    known = _known(errors)
    return float(np.mean(np.maximum(end - known, 0)) / end) if len(known) else float("nan")


def failure_rate(errors: npt.ArrayLike, limit: float = FAILURE) -> float:
    """Share of objects whose error is above `limit`; nan without errors."""
    known = _known(errors)
    return float(np.mean(known > limit)) if len(known) else float("nan")


def _known(errors: npt.ArrayLike) -> FloatArray:
    array = np.asarray(errors, np.float64)
    known: FloatArray = array[~np.isnan(array)]
    return known


# Points of found objects -------------------------------------------------------------------------------------------------


def found_points(rows: Rows, class_names: Sequence[str]) -> FloatArray:
    """The points that are said of each object, (G, K, 3): those of the detection that its box is matched to at IoU .5.

    The only detection of a picture with one object belongs to it, wherever its box is. Points of objects that were not found
    are infinitely far.

    Raises:
        ShapeError: rows without points.
    """
    given = scenes(rows)
    found, truth = given.found, given.truth
    if truth.points is None or (found.points is None and len(found.labels)):
        raise ShapeError("Rows hold no points; expected the columns found_points and true_points.")
    detection = np.full(len(truth.labels), -1, np.int64)
    matched = judge(rows, len(class_names)).matches.true[0, 0]
    own = np.flatnonzero(matched >= 0)
    detection[matched[own]] = own
    alone = np.bincount(truth.picture, minlength=given.pictures) == 1
    alone &= np.bincount(found.picture, minlength=given.pictures) == 1
    detection[alone[truth.picture]] = np.flatnonzero(alone[found.picture])
    said = np.full(truth.points.shape, np.inf)
    if found.points is not None:
        said[detection >= 0] = found.points[detection[detection >= 0]]
    return said


def landmark_metrics(
    rows: Rows,
    class_names: Sequence[str],
    weights: Weights = None,
    *,
    how: Normalizer = "box",
    eyes: tuple[Sequence[int], Sequence[int]] | None = None,
    head: tuple[int, int] | None = None,
    limit: float = 0.2,
) -> dict[str, FloatArray]:
    """How far points are from their places; crowds and objects without labeled points do not count.

    `nme` is the mean over objects that were found. Objects that were not have failed: they raise `failure_rate` (NME above
    .1), have no part in `auc_ced` (up to .1), and all their points are wrong for `pck` and `pckh`.

    Args:
        rows: of the task `detect` with `found_points` and `true_points`.
        class_names: C names.
        weights: None, (N,) or (R, N).
        how, eyes: see `normalizers`.
        head: the two points between which the head is, for `pckh` (at half a head).
        limit: of `pck`, in normalizers.

    Returns:
        Each () or (R,).
    """
    given = scenes(rows)
    said, truth = found_points(rows, class_names), given.truth
    true = np.asarray(truth.points)
    apart = distances(said, true, normalizers(how, true, truth.boxes, eyes))
    apart[truth.crowd] = np.nan
    errors = nme(apart)
    known, reached = ~np.isnan(errors), np.isfinite(errors)
    parts: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        "nme": (np.where(reached, errors, 0), reached),
        "failure_rate": (known & ~(errors <= FAILURE), known),
        "auc_ced": (np.where(reached, np.maximum(CED_END - errors, 0) / CED_END, 0), known),
        "pck": ((apart <= limit).sum(1), (~np.isnan(apart)).sum(1)),
    }
    if head is not None:
        in_heads = distances(said, true, head_sizes(true, head))
        in_heads[truth.crowd] = np.nan
        parts["pckh"] = ((in_heads <= 0.5).sum(1), (~np.isnan(in_heads)).sum(1))
    sums = np.stack([_by_picture(values, given) for pair in parts.values() for values in pair], axis=1)

    def compute(chunk: FloatArray) -> FloatArray:
        totals = chunk @ sums
        return ratio(totals[:, ::2], totals[:, 1::2])

    table = over_replicates(compute, weights, given.pictures)
    return {name: table[..., i] for i, name in enumerate(parts)}


def _by_picture(values: NDArray[Any], given: Scenes) -> FloatArray:
    return np.bincount(given.truth.picture, np.asarray(values, np.float64), given.pictures).astype(np.float64)
