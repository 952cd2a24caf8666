"""Average precision of matched detections, for one weighting of the pictures or for many at once.

Only true positives raise recall, and between two of them precision only falls. So a curve is known from its points at the
true positives: how much weight of true and of false positives has come by then. The sums behind them are of whole numbers
when the weights are, so that weights of one give exactly the unweighted curve.

Shapes: N pictures, R weightings, D detections, H true positives, T thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opsin.metrics.inputs import FloatArray, IntArray
from opsin.metrics.matching import BoolArray

COCO_RECALLS = np.linspace(0.0, 1.0, 101)
VOC_RECALLS = np.arange(11) / 10


class Points(NamedTuple):
    """Precision and recall at the true positives, by falling score, for every weighting and threshold: (R, T, H) each.

    Thresholds with fewer true positives are filled up at the end: recall stays, precision is 0.
    """

    recall: FloatArray
    precision: FloatArray
    ceiling: FloatArray  # best precision at this recall or more


@dataclass(frozen=True, eq=False)
class Ranking:
    """The detections of one class by falling score, and what each of them is at T thresholds; N stands for no picture.

    Args:
        candidates: (C,) picture of each detection that is a false positive unless it is matched.
        hits: (T, H) picture of each true positive.
        before: (T, H) candidates up to and including each true positive.
        matched: (T, M) picture of each candidate that is matched, to an ignored object or another; None if those are the hits.
        matched_before: (T, H) of them, up to and including each true positive.
    """

    candidates: IntArray
    hits: IntArray
    before: IntArray
    matched: IntArray | None
    matched_before: IntArray

    @classmethod
    def of(cls, pictures: IntArray, inside: BoolArray, true: IntArray, ignored: BoolArray, nowhere: int) -> Ranking:
        """From detections by falling score.

        Args:
            pictures: (D,).
            inside: (D,), whether a detection is of the size range.
            true: (T, D), matched objects, -1 for none.
            ignored: (T, D).
            nowhere: N.
        """
        taken = true >= 0
        hits, used = taken & ~ignored, taken & inside
        at, filled = _filled(hits)
        found = np.where(filled, pictures[at], nowhere) if len(pictures) else at
        before: IntArray = np.cumsum(inside, dtype=np.int64)[at] if len(pictures) else at
        if np.array_equal(hits, used):
            through = np.broadcast_to(np.arange(1, at.shape[1] + 1), at.shape)
            return cls(pictures[inside], found, before, None, through)
        also, filled = _filled(used)
        through = np.take_along_axis(np.cumsum(used, axis=1), at, axis=1)
        return cls(pictures[inside], found, before, np.where(filled, pictures[also], nowhere), through)

    def points(self, weights: FloatArray, objects: FloatArray) -> Points:
        """Precision-recall points.

        Args:
            weights: (R, N + 1) of the pictures, and 0 for none.
            objects: (R,) weight of the objects that count.
        """
        true = running(weights, self.hits)
        used = true if self.matched is None else running(weights, self.matched)
        every = running(weights, self.candidates)
        columns = np.arange(len(self.hits))[:, None]
        false = every[:, self.before]
        false -= true[..., 1:] if self.matched is None else used[:, columns, self.matched_before]
        true = true[..., 1:]
        # The spacing keeps 0 / 0 at 0, where COCO's evaluator has it, and gives its numbers to the last bit
        precision = true / (false + true + np.spacing(1))
        precision[:, self.hits == weights.shape[1] - 1] = 0
        ceiling = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
        with np.errstate(invalid="ignore"):
            recall = true / objects[:, None, None]
        return Points(np.nan_to_num(recall, copy=False), precision, ceiling)


def _filled(chosen: BoolArray) -> tuple[IntArray, BoolArray]:
    """Positions of what is chosen in each row (T, D), filled up with 0 to the longest, (T, H), and which are real."""
    counts = chosen.sum(1)
    filled = np.arange(counts.max(initial=0)) < counts[:, None]
    at = np.zeros(filled.shape, np.int64)
    at[filled] = np.nonzero(chosen)[1]
    return at, filled


def running(weights: FloatArray, pictures: IntArray) -> FloatArray:
    """Weight of the first 0, 1, ... of the pictures (..., M): (R, ..., M + 1)."""
    sums = np.zeros((len(weights), *pictures.shape[:-1], pictures.shape[-1] + 1))
    np.cumsum(weights[:, pictures], axis=-1, out=sums[..., 1:])
    return sums


def at_recalls(points: Points, recalls: FloatArray) -> FloatArray:
    """Best precision at each recall (L,) or more, 0 beyond the curve: (R, T, L)."""
    shape = points.recall.shape
    times = np.empty((*shape[:-1], shape[-1] + 2), np.int64)
    times[..., 0], times[..., -1] = 0, len(recalls)
    times[..., 1:-1] = np.searchsorted(recalls, points.recall.ravel(), "right").reshape(shape)
    times = times[..., 1:] - times[..., :-1]
    values = np.zeros((*shape[:-1], shape[-1] + 1))
    values[..., :-1] = points.ceiling
    return np.repeat(values.ravel(), times.ravel()).reshape(*shape[:-1], len(recalls))


def area(points: Points) -> FloatArray:
    """Area under the steps of the best precision over recall, (R, T): PASCAL VOC from 2010 on."""
    steps = np.diff(points.recall, axis=-1, prepend=0)
    return np.asarray((steps * points.ceiling).sum(-1))


def by_falling_score(labels: IntArray, scores: NDArray[Any]) -> IntArray:
    """Positions (D,) class after class, each by falling score; of equal scores the first comes first."""
    return np.lexsort((-scores, labels))
