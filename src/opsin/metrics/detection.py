"""Detections judged: COCO's and PASCAL VOC's mean AP, recall, FROC, precision at an operating score, localization.

The input is the rows of the task `detect`, one per picture. They are matched once; every weighting of the pictures reuses
the matches, so that intervals by picture bootstrap cost sums, not matching.

Differences to what others compute: none to COCO's evaluator (order of pictures = order of rows); sizes and classes without
an object are nan and not -1. `true_difficult` matters for PASCAL VOC's metrics alone, `true_crowd` is ignored by all.

Shapes: N pictures, R weightings, K classes, T = 10 IoU thresholds, A = 4 size ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from opsin.errors import DataError, ShapeError
from opsin.metrics import boxes as geometry
from opsin.metrics.average_precision import (
    COCO_RECALLS,
    VOC_RECALLS,
    Points,
    Ranking,
    area,
    at_recalls,
    by_falling_score,
    running,
)
from opsin.metrics.inputs import FloatArray, IntArray, Weights, mean_of_defined, over_replicates, ratio
from opsin.metrics.matching import (
    BoolArray,
    Matches,
    Pairs,
    Scenes,
    box_overlap,
    match,
    match_first_choice,
    pairs,
    places,
    scenes,
)
from opsin.results.rows import Rows

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # IoU
SIZES = ("all", "small", "medium", "large")
SIZE_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # pixels of area, both ends included
LIMITS = (1, 10, 100)  # detections per picture and class
FALSE_PER_PICTURE = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
CELLS = 4_000_000  # numbers of one array held at once: 32 MB
SCORE = 0.5  # operating score before one is chosen


@dataclass(frozen=True, eq=False)
class Judged:
    """Matched detections of one table of rows, ready for any weighting.

    Args:
        given: the rows as flat arrays.
        num_classes: K.
        pairs: detections and objects of the same picture and class, as far as they overlap by .5.
        matches: COCO's, at `thresholds` and `ranges`.
        order: (D,) detections class after class by falling score, those beyond the limit per picture left out.
        starts: (K + 1,) where each class begins in `order`.
        outside: (A, D) detections outside the size range.
        thresholds: (T,).
    """

    given: Scenes
    num_classes: int
    pairs: Pairs
    matches: Matches
    order: IntArray
    starts: IntArray
    outside: BoolArray
    thresholds: FloatArray

    def ranking(self, size: int, label: int, matches: Matches | None = None) -> Ranking:
        """The detections of a class in a size range."""
        used = self.matches if matches is None else matches
        at = self.order[self.starts[label] : self.starts[label + 1]]
        pictures = self.given.found.picture[at]
        return Ranking.of(
            pictures, ~self.outside[size, at], used.true[size][:, at], used.ignored[size][:, at], self.given.pictures
        )

    @cached_property
    def rankings(self) -> list[list[Ranking]]:
        """Of each size range and class."""
        return [[self.ranking(a, k) for k in range(self.num_classes)] for a in range(len(self.outside))]

    @cached_property
    def objects(self) -> list[csr_matrix]:
        """Objects that count of each class in each picture, (K, N) for each size range."""
        return [self.count_objects(counted) for counted in self.matches.counted]

    def count_objects(self, counted: BoolArray) -> csr_matrix:
        """Objects (G,) that count of each class in each picture, (K, N)."""
        truth = self.given.truth
        return _counts(
            truth.labels[counted], truth.picture[counted], np.ones(int(counted.sum())), self.num_classes,
            self.given.pictures,
        )  # fmt: skip

    def count_found(self, chosen: BoolArray) -> csr_matrix:
        """Detections (D,) that are chosen, of each class in each picture, (K, N)."""
        found = self.given.found
        ones = np.ones(int(chosen.sum()))
        return _counts(found.labels[chosen], found.picture[chosen], ones, self.num_classes, self.given.pictures)

    def said(self, operating: npt.ArrayLike) -> BoolArray:
        """Detections (D,) whose score is at least that of their class (K,), both as exact as the scores are."""
        found = self.given.found
        limits = np.asarray(operating).astype(found.scores.dtype)
        said: BoolArray = found.scores >= limits[found.labels]
        return said

    @cached_property
    def hits_within(self) -> list[csr_matrix]:
        """True positives of each threshold and class in each picture, (T * K, N), among the best 1 and 10 detections."""
        found, many = self.given.found, len(self.thresholds) * self.num_classes
        made = []
        for limit in LIMITS[:-1]:
            hits = (self.matches.true[0] >= 0) & ~self.matches.ignored[0] & (self.matches.rank < limit)
            t, at = np.nonzero(hits)
            cells = t * self.num_classes + found.labels[at]
            made.append(_counts(cells, found.picture[at], np.ones(len(at)), many, self.given.pictures))
        return made

    @cached_property
    def together(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """All classes at IoU .5 by falling score: pictures of the false and of the true positives, and at each score with
        true positives how many false and true ones have come (that score included)."""
        hits, alarms = self.matches.hits(0, 0), self.matches.alarms(0, 0)
        order = np.argsort(-self.given.found.scores, kind="stable")
        order = order[(hits | alarms)[order]]
        scores, right, pictures = self.given.found.scores[order], hits[order], self.given.found.picture[order]
        last = np.searchsorted(-scores, np.unique(-scores[right]), "right")
        true = np.concatenate([[0], np.cumsum(right)])[last]
        return pictures[~right], pictures[right], last - true, true

    @cached_property
    def voc(self) -> tuple[list[Ranking], csr_matrix]:
        """PASCAL VOC's rankings at IoU .5, and the objects that are not difficult (K, N)."""
        found, truth = self.given.found, self.given.truth
        groups = found.picture * self.num_classes + found.labels
        ignored = truth.difficult | truth.crowd
        matches = match_first_choice(places(groups, found.scores), self.pairs, 0.5, ignored=ignored)
        order = by_falling_score(found.labels, found.scores)
        starts = np.searchsorted(found.labels[order], np.arange(self.num_classes + 1))
        rankings = []
        for start, stop in pairwise(starts.tolist()):
            at = order[start:stop]
            true, lost = matches.true[0][:, at], matches.ignored[0][:, at]
            rankings.append(Ranking.of(found.picture[at], np.ones(len(at), np.bool_), true, lost, self.given.pictures))
        return rankings, self.count_objects(~ignored)


_JUDGED: WeakKeyDictionary[Rows, dict[int, Judged]] = WeakKeyDictionary()


def judge(rows: Rows, num_classes: int) -> Judged:
    """Match the rows as COCO does; done once for each table and kept as long as it lives.

    Raises:
        ShapeError: columns are missing or do not fit.
        DataError: a label outside the classes, a score that is nan.
    """
    kept = _JUDGED.setdefault(rows, {})
    if num_classes not in kept:
        kept[num_classes] = _judge(rows, num_classes)
    return kept[num_classes]


def _judge(rows: Rows, num_classes: int) -> Judged:
    given = scenes(rows)
    found, truth = given.found, given.truth
    for labels, pictures, word in ((found.labels, found.picture, "found"), (truth.labels, truth.picture, "true")):
        wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if len(wrong):
            raise DataError(
                f"Picture {rows.ids[pictures[wrong[0]]]}: a {word} label is {labels[wrong[0]]}; expected a position in "
                f"the {num_classes} class names."
            )
    found_group = found.picture * num_classes + found.labels
    near = pairs(found_group, truth.picture * num_classes + truth.labels, box_overlap(given), float(THRESHOLDS[0]))
    areas = (found.boxes[:, 2] - found.boxes[:, 0]) * (found.boxes[:, 3] - found.boxes[:, 1])
    return judged(given, num_classes, near, areas, truth.crowd, SIZE_RANGES, LIMITS[-1])


def judged(
    given: Scenes,
    num_classes: int,
    near: Pairs,
    areas: FloatArray,
    uncounted: BoolArray,
    ranges: FloatArray,
    limit: int,
) -> Judged:
    """Match pairs of any likeness (of boxes, of keypoints) in several size ranges.

    Args:
        given: detections and objects.
        num_classes: K.
        near: pairs within a picture and a class.
        areas: (D,) of the detections.
        uncounted: (G,), objects that count in no range.
        ranges: (A, 2) of areas.
        limit: detections per picture and class.
    """
    found, truth = given.found, given.truth
    rank = places(found.picture * num_classes + found.labels, found.scores)
    low, high = ranges[:, :1], ranges[:, 1:]
    outside = (areas < low) | (areas > high)
    ignored = uncounted | (truth.area < low) | (truth.area > high)
    matches = match(rank, near, THRESHOLDS, ignored=ignored, reusable=truth.crowd, outside=outside, limit=limit)
    order = by_falling_score(found.labels, found.scores)
    order = order[rank[order] < limit]
    starts = np.searchsorted(found.labels[order], np.arange(num_classes + 1))
    return Judged(given, num_classes, near, matches, order, starts, outside, THRESHOLDS)


def _counts(rows: IntArray, columns: IntArray, values: FloatArray, height: int, width: int) -> csr_matrix:
    return csr_matrix((values, (rows, columns)), shape=(height, width))


def _weighed(counts: csr_matrix, weights: FloatArray) -> FloatArray:
    """Weighted sums (R, rows) of counts (rows, N) under weights (R, N)."""
    found: FloatArray = np.ascontiguousarray((counts @ weights.T).T)
    return found


# Metrics -----------------------------------------------------------------------------------------------------------------


def detection_metrics(
    rows: Rows,
    class_names: Sequence[str],
    weights: Weights = None,
    *,
    operating: Sequence[float] | None = None,
) -> dict[str, FloatArray]:
    """Every metric of detection, each () or (R,): see the table of metric names.

    Args:
        rows: of the task `detect`.
        class_names: K names.
        weights: None, (N,) or (R, N) weights of the pictures; an integer weight is the picture that many times (where
            detections of a picture and class have different scores).
        operating: (K,) scores at and above which a detection is said, for precision, recall and F1; .5 by default.

    Raises:
        ShapeError: columns or weights that do not fit.
        DataError: a label outside the classes, a nan.
    """
    found = judge(rows, len(class_names))
    scores = operating_or_default(operating, len(class_names))
    names = metric_names()

    def compute(chunk: FloatArray) -> FloatArray:
        values = {**coco(found, chunk), **voc(found, chunk), "froc": froc(found, chunk).mean(1)}
        values |= at_operating_scores(found, scores, chunk)
        return np.stack([values[name] for name in names], axis=1)

    table = weighed_stepwise(compute, found, weights)
    return {name: table[..., i] for i, name in enumerate(names)}


def metric_names() -> tuple[str, ...]:
    """Names of what `detection_metrics` returns."""
    sizes = [f"map_{size}" for size in SIZES[1:]]
    recalls = [*(f"ar{limit}" for limit in LIMITS), *(f"ar_{size}" for size in SIZES[1:])]
    return ("map", "map50", "map75", *sizes, *recalls, "voc07", "voc", "froc", "precision", "recall", "f1")


def weighed_stepwise(compute: Callable[[FloatArray], FloatArray], found: Judged, weights: Weights) -> FloatArray:
    """`compute` (takes (r, N), returns (r, ...)) over as many weightings at a time as memory is for.

    Raises:
        ShapeError: weights that are not (N,) or (R, N).
        DataError: weights that are negative or not finite.
    """
    each = [max(len(one.candidates), one.hits.size) for one in found.rankings[0]]
    table = len(found.thresholds) * len(COCO_RECALLS) * found.num_classes
    step = max(1, CELLS // max(1, table, *each))

    def stepwise(chunk: FloatArray) -> FloatArray:
        return np.concatenate([compute(chunk[i : i + step]) for i in range(0, len(chunk), step)])

    return over_replicates(stepwise, weights, found.given.pictures)


def operating_or_default(given: Sequence[float] | None, num_classes: int) -> FloatArray:
    """Operating scores (K,), .5 where none are given.

    Raises:
        ShapeError: another number than there are classes.
    """
    scores = np.full(num_classes, SCORE) if given is None else np.asarray(given, np.float64)
    if scores.shape != (num_classes,):
        raise ShapeError(f"{scores.size} operating scores for {num_classes} classes; expected one for each.")
    return scores


def size_range(found: Judged, size: int, weights: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """COCO's table of one size range: precision (R, T, 101, K), recall (R, T, K), and the objects' weight (R, K)."""
    rows, t, k = len(weights), len(found.thresholds), found.num_classes
    objects = _weighed(found.objects[size], weights)
    precision, recall = np.zeros((rows, t, len(COCO_RECALLS), k)), np.zeros((rows, t, k))
    extended = _extended(weights)
    for label, ranking in enumerate(found.rankings[size]):
        if ranking.hits.shape[1]:
            points = ranking.points(extended, objects[:, label])
            precision[..., label] = at_recalls(points, COCO_RECALLS)
            recall[..., label] = points.recall[..., -1]
    return precision, recall, objects


def _extended(weights: FloatArray) -> FloatArray:
    """Weights (R, N + 1) with 0 for no picture."""
    return np.concatenate([weights, np.zeros((len(weights), 1))], axis=1)


def mean_over_classes(values: NDArray[Any], objects: FloatArray) -> FloatArray:
    """Means (R,) of values (R, ..., K) over classes with objects (R, K), in the order of COCO's sum; nan where none has."""
    known = objects > 0
    chosen = (one if which.all() else np.compress(which, one, axis=-1) for one, which in zip(values, known))
    return np.array([np.mean(one.ravel()) if one.size else np.nan for one in chosen])


def coco(found: Judged, weights: FloatArray) -> dict[str, FloatArray]:
    """COCO's twelve numbers, (R,) each, under weights (R, N)."""
    values: dict[str, FloatArray] = {}
    for size, name in enumerate(SIZES):
        precision, recall, objects = size_range(found, size, weights)
        if name == "all":
            values |= {"map": mean_over_classes(precision, objects), "ar100": mean_over_classes(recall, objects)}
            values |= {
                "map50": mean_over_classes(precision[:, 0], objects),
                "map75": mean_over_classes(precision[:, 5], objects),
            }
            for limit, counts in zip(LIMITS, found.hits_within):
                hits = _weighed(counts, weights).reshape(recall.shape)
                values[f"ar{limit}"] = mean_over_classes(ratio(hits, objects[:, None]), objects)
        else:
            values |= {
                f"map_{name}": mean_over_classes(precision, objects),
                f"ar_{name}": mean_over_classes(recall, objects),
            }
    return values


def class_ap(found: Judged, weights: Weights = None, threshold: int | None = None) -> FloatArray:
    """COCO's AP of each class, nan without objects: mean over IoU thresholds, or at the one with this position.

    Args:
        found: of `judge`.
        weights: None, (N,) or (R, N).

    Returns:
        (K,) or (R, K).
    """

    def compute(chunk: FloatArray) -> FloatArray:
        precision, _, objects = size_range(found, 0, chunk)
        values = precision.mean((1, 2)) if threshold is None else precision[:, threshold].mean(1)
        return np.where(objects > 0, values, np.nan)

    return weighed_stepwise(compute, found, weights)


def voc(found: Judged, weights: FloatArray) -> dict[str, FloatArray]:
    """PASCAL VOC's mean AP at IoU .5, (R,) each: by 11 points (to 2009) and by area (from 2010 on)."""
    rankings, counts = found.voc
    objects = _weighed(counts, weights)
    eleven, whole = np.zeros(objects.shape), np.zeros(objects.shape)
    extended = _extended(weights)
    for label, ranking in enumerate(rankings):
        points = ranking.points(extended, objects[:, label])
        eleven[:, label] = at_recalls(points, VOC_RECALLS)[:, 0].mean(1)
        whole[:, label] = area(points)[:, 0]
    absent = objects <= 0
    return {
        "voc07": mean_of_defined(np.where(absent, np.nan, eleven)),
        "voc": mean_of_defined(np.where(absent, np.nan, whole)),
    }


def froc(found: Judged, weights: FloatArray) -> FloatArray:
    """Sensitivity at 1/8, 1/4, ... 8 false positives per picture, (R, 7), at IoU .5 and all classes together.

    The highest share of objects that is found by any score limit with at most so many false positives. nan without objects.
    """
    candidates, hits, alarms_before, hits_before = found.together
    objects = _weighed(found.objects[0], weights).sum(1)
    total = weights.sum(1)
    sensitivity = np.zeros((len(weights), len(FALSE_PER_PICTURE)))
    step = max(1, CELLS // max(1, len(candidates)))
    for start in range(0, len(weights), step):
        own = weights[start : start + step]
        true = running(own, hits)[:, hits_before]
        false = running(own, candidates)[:, alarms_before]
        for i, limit in enumerate(FALSE_PER_PICTURE):
            allowed = false <= limit * total[start : start + step, None]
            sensitivity[start : start + step, i] = np.max(true, axis=1, where=allowed, initial=0)
    return ratio(sensitivity, objects[:, None])


def at_operating_scores(found: Judged, operating: FloatArray, weights: FloatArray) -> dict[str, FloatArray]:
    """Precision, recall and F1, means over classes, (R,) each, of detections with at least the class's score (K,); IoU .5."""
    said = found.said(operating)
    true = _weighed(found.count_found(said & found.matches.hits(0, 0)), weights)
    false = _weighed(found.count_found(said & found.matches.alarms(0, 0)), weights)
    objects = _weighed(found.objects[0], weights)
    return {
        "precision": mean_of_defined(ratio(true, true + false)),
        "recall": mean_of_defined(ratio(true, objects)),
        "f1": mean_of_defined(ratio(2 * true, true + false + objects)),
    }


# Curves and operating scores ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sweep:
    """Precision, recall and F1 of one class at every score that occurs, falling; IoU .5.

    Args:
        score: (S,), dtype as given.
        true: (S,) true positives at this score or a higher one.
        false: (S,) false positives.
        objects: that count.
    """

    score: NDArray[Any]
    true: FloatArray
    false: FloatArray
    objects: int

    @property
    def precision(self) -> FloatArray:
        """(S,)."""
        return ratio(self.true, self.true + self.false)

    @property
    def recall(self) -> FloatArray:
        """(S,), nan without objects."""
        return ratio(self.true, np.full(len(self.true), self.objects))

    @property
    def f1(self) -> FloatArray:
        """(S,)."""
        return ratio(2 * self.true, self.true + self.false + self.objects)


def sweep(found: Judged, label: int, threshold: int = 0) -> Sweep:
    """How one class does as the score limit falls, at the IoU threshold with this position."""
    at = found.order[found.starts[label] : found.starts[label + 1]]
    hits, alarms = found.matches.hits(0, threshold)[at], found.matches.alarms(0, threshold)[at]
    scores = found.given.found.scores[at]
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(at) else at
    return Sweep(
        scores[ends], np.cumsum(hits, dtype=np.float64)[ends], np.cumsum(alarms, dtype=np.float64)[ends],
        int(found.objects[0][label].sum()),
    )  # fmt: skip


def operating_scores(rows: Rows, class_names: Sequence[str]) -> tuple[float, ...]:
    """The score limit of each class with the best F1 at IoU .5, to be chosen on the validation part.

    Halfway to the next lower score, so that rounding does not decide; .5 for classes without objects or hits.
    """
    found = judge(rows, len(class_names))
    limits = []
    for label in range(len(class_names)):
        curve = sweep(found, label)
        if not curve.objects or not curve.true.any():
            limits.append(SCORE)
            continue
        best = int(np.argmax(curve.f1))
        below = curve.score[best + 1] if best + 1 < len(curve.score) else min(curve.score[best], 0.0)
        limits.append((float(curve.score[best]) + float(below)) / 2)
    return tuple(limits)


def curve(found: Judged, label: int, threshold: int = 0) -> Points:
    """Precision-recall points of one class at the IoU threshold with this position, unweighted, (1, 1, H) each."""
    ones = np.ones((1, found.given.pictures))
    objects = _weighed(found.objects[0], ones)[:, label]
    every = found.rankings[0][label].points(_extended(ones), objects)
    real = found.rankings[0][label].hits[threshold] < found.given.pictures
    return Points(*(part[:, threshold : threshold + 1][..., real] for part in every))


# Localization ------------------------------------------------------------------------------------------------------------


def localization_metrics(rows: Rows, weights: Weights = None, *, top: int = 5) -> dict[str, FloatArray]:
    """How well the one object (or any of them) of a picture is said and placed; each () or (R,).

    * `localization_error`: share of pictures with objects of which none of the `top` best detections has the class of
      an object and an IoU of at least .5 with it (ILSVRC's localization error); `localization_error1`: of the best one;
    * `mean_iou`: IoU of the best detection with the object that it overlaps most, whatever their classes; 0 if nothing is
      found; mean over pictures with objects.

    Args:
        rows: of the task `detect`.
        weights: None, (N,) or (R, N).
        top: detections per picture.
    """
    given = scenes(rows)
    found, truth = given.found, given.truth
    rank = places(found.picture, found.scores)
    near = pairs(found.picture, truth.picture, lambda own, other: geometry.iou(found.boxes[own], truth.boxes[other]), 0)
    right = (near.overlap >= 0.5) & (found.labels[near.found] == truth.labels[near.true])
    counts = ~truth.crowd[near.true]
    has = np.bincount(truth.picture[~truth.crowd], minlength=given.pictures) > 0
    placed = np.zeros(given.pictures)
    first = (rank[near.found] == 0) & counts
    np.maximum.at(placed, found.picture[near.found[first]], near.overlap[first])

    def missed(limit: int) -> FloatArray:
        hit = np.zeros(given.pictures)
        hit[found.picture[near.found[right & counts & (rank[near.found] < limit)]]] = 1
        return 1 - hit

    each = np.stack([missed(top), missed(1), placed]) * has

    def compute(chunk: FloatArray) -> FloatArray:
        return ratio(chunk @ each.T, (chunk @ has)[:, None])

    table = over_replicates(compute, weights, given.pictures)
    return {name: table[..., i] for i, name in enumerate(("localization_error", "localization_error1", "mean_iou"))}
