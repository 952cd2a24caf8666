"""Which detection is which object: the one routine behind mean AP, confusions, precision-recall curves and error analysis.

Rows hold a list of detections and of objects for each picture; here they are flat arrays with the picture of each, and
pairs of a detection and an object that overlap, so that all pictures, thresholds and size ranges are matched at once.

Shapes: N pictures, D detections, G objects, P pairs, T thresholds, A ranges of object size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from opsin.errors import DataError, ShapeError
from opsin.metrics import boxes as geometry
from opsin.metrics.inputs import FloatArray, IntArray
from opsin.results.rows import Rows

BoolArray = NDArray[np.bool_]

PAIRS_AT_ONCE = 2_000_000
NEEDED = (
    "found_boxes", "found_scores", "found_labels", "true_boxes", "true_labels", "true_crowd", "true_difficult", "true_area",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in all pictures, in the order of the rows.

    Args:
        picture: (D,) int64, position of the row.
        boxes: (D, 4) float64.
        scores: (D,), dtype as given.
        labels: (D,) int64.
        points: (D, K, 3) float64, None without keypoints.
    """

    picture: IntArray
    boxes: FloatArray
    scores: NDArray[Any]
    labels: IntArray
    points: FloatArray | None


@dataclass(frozen=True, eq=False)
class Truth:
    """The objects of all pictures, in the order of the rows.

    Args:
        picture: (G,) int64, position of the row.
        boxes: (G, 4) float64.
        labels: (G,) int64.
        crowd: (G,) bool.
        difficult: (G,) bool.
        area: (G,) float64, the box's where none was given.
        points: (G, K, 3) float64, None without keypoints.
    """

    picture: IntArray
    boxes: FloatArray
    labels: IntArray
    crowd: BoolArray
    difficult: BoolArray
    area: FloatArray
    points: FloatArray | None


@dataclass(frozen=True, eq=False)
class Scenes:
    """Rows of detection as flat arrays; N = `pictures`."""

    pictures: int
    found: Detections
    truth: Truth


class Pairs(NamedTuple):
    """Detections and objects that were compared and are alike enough, sorted by detection, then object."""

    found: IntArray  # (P,)
    true: IntArray  # (P,)
    overlap: FloatArray  # (P,)


@dataclass(frozen=True, eq=False)
class Matches:
    """The object of every detection, for each size range and threshold.

    Args:
        true: (A, T, D) int64, position of the object, -1 for none.
        ignored: (A, T, D) bool; detections that neither count nor punish.
        counted: (A, G) bool; objects that count.
        rank: (D,) int64, place of a detection by score within its group; matched are those below the limit.
        limit: detections of a group that were matched.
    """

    true: IntArray
    ignored: BoolArray
    counted: BoolArray
    rank: IntArray
    limit: int

    def hits(self, size: int, threshold: int) -> BoolArray:
        """True positives, (D,)."""
        found: BoolArray = (self.true[size, threshold] >= 0) & ~self.ignored[size, threshold]
        return found

    def alarms(self, size: int, threshold: int) -> BoolArray:
        """False positives, (D,)."""
        nothing = (self.true[size, threshold] < 0) & ~self.ignored[size, threshold]
        found: BoolArray = nothing & (self.rank < self.limit)
        return found


_SCENES: WeakKeyDictionary[Rows, Scenes] = WeakKeyDictionary()


def scenes(rows: Rows) -> Scenes:
    """The rows as flat arrays, made once for each table.

    Raises:
        ShapeError: a column is missing, or lists of a picture differ in length.
        DataError: a score that is nan.
    """
    if rows not in _SCENES:
        _SCENES[rows] = _flat(rows)
    return _SCENES[rows]


def _flat(rows: Rows) -> Scenes:
    missing = [name for name in NEEDED if name not in rows]
    if missing:
        raise ShapeError(f"Rows of detection need the columns {', '.join(missing)}; given: {', '.join(rows)}.")
    found_picture, found_lengths = _pictures(rows["found_scores"])
    true_picture, true_lengths = _pictures(rows["true_labels"])
    for name in rows:
        expected = found_lengths if name.startswith("found_") else true_lengths if name.startswith("true_") else None
        if expected is None:
            continue
        lengths = np.array([len(one) for one in rows[name]], np.int64)
        if (lengths != expected).any():
            at = int(np.flatnonzero(lengths != expected)[0])
            raise ShapeError(f"Picture {rows.ids[at]}: {name} has {lengths[at]} entries; expected {expected[at]}.")

    def column(name: str, dtype: Any, *shape: int) -> NDArray[Any]:
        parts = [np.asarray(one) for one in rows[name]]
        if not sum(map(len, parts)):
            return np.zeros((0, *shape), dtype or np.float64)
        joined = np.concatenate([one.reshape(len(one), *shape) for one in parts if len(one)])
        return joined if dtype is None else joined.astype(dtype)

    def points(name: str) -> FloatArray | None:
        if name not in rows or "true_points" not in rows:
            return None
        size = max((np.shape(one)[1] for one in rows["true_points"] if np.ndim(one) == 3), default=0)
        return column(name, np.float64, size, 3) if size else None

    scores = column("found_scores", None)
    if np.isnan(scores).any():
        at = found_picture[np.flatnonzero(np.isnan(scores))[0]]
        raise DataError(f"Picture {rows.ids[at]}: a score is nan; expected numbers. Did training diverge?")
    truth_boxes, area = column("true_boxes", np.float64, 4), column("true_area", np.float64)
    found = Detections(
        found_picture,
        column("found_boxes", np.float64, 4),
        scores,
        column("found_labels", np.int64),
        points("found_points"),
    )
    truth = Truth(
        true_picture,
        truth_boxes,
        column("true_labels", np.int64),
        column("true_crowd", np.bool_),
        column("true_difficult", np.bool_),
        np.where(np.isnan(area), geometry.area(truth_boxes), area),
        points("true_points"),
    )
    return Scenes(len(rows), found, truth)


def _pictures(column: NDArray[Any]) -> tuple[IntArray, IntArray]:
    lengths = np.array([len(one) for one in column], np.int64)
    return np.repeat(np.arange(len(lengths)), lengths), lengths


# Pairs -------------------------------------------------------------------------------------------------------------------


def pairs(
    found_group: IntArray, true_group: IntArray, overlap: Callable[[IntArray, IntArray], FloatArray], floor: float
) -> Pairs:
    """Every detection with every object of its group, where they overlap enough.

    Args:
        found_group: (D,) integers; a picture, or a picture and a class.
        true_group: (G,).
        overlap: takes positions of detections and of objects, (p,) each, and returns their overlap, (p,).
        floor: pairs below it are left out.
    """
    order = np.argsort(true_group, kind="stable")
    sorted_groups = true_group[order]
    starts = np.searchsorted(sorted_groups, found_group, "left")
    counts = np.searchsorted(sorted_groups, found_group, "right") - starts
    ends = np.cumsum(counts)
    parts = []
    first = 0
    while first < len(found_group):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + PAIRS_AT_ONCE, "right")))
        own = np.repeat(np.arange(first, last), counts[first:last])
        shift = np.repeat(starts[first:last] - (ends[first:last] - counts[first:last] - before), counts[first:last])
        other = order[np.arange(len(own)) + shift]
        alike = overlap(own, other)
        kept = np.flatnonzero(alike >= floor)
        parts.append((own[kept], other[kept], alike[kept]))
        first = last
    if not parts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*(np.concatenate(column) for column in zip(*parts)))


def box_overlap(given: Scenes) -> Callable[[IntArray, IntArray], FloatArray]:
    """IoU of detections and objects by position; with a crowd, the share of the detection that lies in it."""
    found, true, crowd = given.found.boxes, given.truth.boxes, given.truth.crowd

    def overlap(own: IntArray, other: IntArray) -> FloatArray:
        alike = geometry.iou(found[own], true[other])
        regions = np.flatnonzero(crowd[other])
        alike[regions] = geometry.crowd_iou(found[own[regions]], true[other[regions]])
        return alike

    return overlap


# Matching ----------------------------------------------------------------------------------------------------------------


def places(groups: IntArray, scores: NDArray[Any]) -> IntArray:
    """Place (D,) of each detection within its group by falling score, from 0; of equal scores the first comes first."""
    order = np.lexsort((-scores, groups))
    sorted_groups = groups[order]
    starts = np.flatnonzero(np.append(True, sorted_groups[1:] != sorted_groups[:-1])) if len(order) else order
    lengths = np.diff(np.append(starts, len(order)))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, lengths)
    return rank


def match(
    rank: IntArray,
    found: Pairs,
    thresholds: FloatArray,
    *,
    ignored: BoolArray,
    reusable: BoolArray,
    outside: BoolArray,
    limit: int = 100,
) -> Matches:
    """Match detections to objects as COCO does: by falling score, each takes the free object of its group that it overlaps most.

    Objects that count come before ignored ones; of equal overlaps the last object wins; a match needs an overlap of
    at least the threshold. A detection that takes an ignored object, or that takes none and is outside the size range, is
    ignored.

    Args:
        rank: (D,), `places` within the group that competes for the same objects.
        found: pairs within groups.
        thresholds: (T,) overlaps.
        ignored: (A, G), objects that do not count.
        reusable: (G,), objects that any number of detections may take: crowds.
        outside: (A, D), detections outside the size range.
        limit: detections of a group that take part.
    """
    sizes, d = outside.shape
    t, g = len(thresholds), ignored.shape[1]
    least = np.minimum(thresholds, 1 - 1e-10)
    result = np.full((d, sizes, t), -1, np.int64)
    kept = np.flatnonzero((rank[found.found] < limit) & (found.overlap >= least.min(initial=1)))
    own, other, alike = found.found[kept], found.true[kept], found.overlap[kept]
    # Ascending preference within a detection, so that the best pair is the last one that is possible
    order = np.lexsort((other, alike, own, rank[own]))
    own, other, alike = own[order], other[order], alike[order]
    high_enough = alike[:, None] >= least  # (P, T)
    counts = ~ignored[:, other].T  # (P, A)
    taken = np.zeros((g, sizes, t), np.bool_)
    preference = np.arange(1, len(own) + 1, dtype=np.int64)[:, None] + len(own) * counts  # (P, A)
    rounds = np.flatnonzero(np.append(True, np.diff(rank[own]) != 0)) if len(own) else np.zeros(0, np.int64)
    for start, stop in zip(rounds, np.append(rounds[1:], len(own))):
        mine, theirs = own[start:stop], other[start:stop]
        possible = high_enough[start:stop, None, :] & ~(taken[theirs] & ~reusable[theirs, None, None])
        value = np.where(possible, preference[start:stop, :, None], 0)
        first = np.flatnonzero(np.append(True, mine[1:] != mine[:-1]))
        best = np.maximum.reduceat(value, first, axis=0)  # (d, A, T)
        chosen = np.where(best > 0, other[(best - 1) % len(own)], -1)
        result[mine[first]] = chosen
        _, size, threshold = hit = np.nonzero(best)
        taken[chosen[hit], size, threshold] = True
    true = np.moveaxis(result, 0, -1)
    at = np.arange(sizes)[:, None, None]
    lost = ignored[at, np.maximum(true, 0)] if g else np.zeros(true.shape, np.bool_)
    return Matches(true, np.where(true >= 0, lost, outside[:, None, :]), ~ignored, rank, limit)


def match_first_choice(rank: IntArray, found: Pairs, threshold: float, *, ignored: BoolArray) -> Matches:
    """Match as PASCAL VOC does: a detection claims the object that it overlaps most, or none, even if that is taken.

    The best score of those who claim an object has it, the others are false; whoever claims an ignored object is ignored.

    Args:
        rank: (D,), `places` within the group.
        found: pairs within groups.
        threshold: the overlap must be at least this.
        ignored: (G,), objects that do not count: difficult ones.
    """
    order = np.lexsort((-found.true, found.overlap, found.found))
    own, other, alike = (column[order] for column in found)
    last = np.flatnonzero(np.append(own[1:] != own[:-1], True)) if len(own) else np.zeros(0, np.int64)
    last = last[alike[last] >= threshold]
    own, other = own[last], other[last]
    by_rank = np.argsort(rank[own], kind="stable")
    own, other = own[by_rank], other[by_rank]
    _, first = np.unique(other, return_index=True)
    wins = ignored[other]
    wins[first] = True
    true = np.full(len(rank), -1, np.int64)
    true[own[wins]] = other[wins]
    lost = (true >= 0) & (ignored[np.maximum(true, 0)] if len(ignored) else False)
    limit = int(rank.max(initial=-1)) + 1
    return Matches(true[None, None], lost[None, None], ~ignored[None], rank, limit)
