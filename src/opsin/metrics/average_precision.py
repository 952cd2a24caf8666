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

from opsin.metrics.inputs import FloatArray, IntArray, ratio
from opsin.metrics.matching import BoolArray

COCO_RECALLS = np.linspace(0.0, 1.0, 101)
VOC_RECALLS = np.arange(11) / 10


class Points(NamedTuple):
    """Precision and recall at the true positives, by falling score, for every weighting: (R, H) each."""

    recall: FloatArray
    precision: FloatArray
    ceiling: FloatArray  # best precision at this recall or more


@dataclass(frozen=True, eq=False)
class Ranking:
    """The detections of one class by falling score, and what each of them is at T thresholds.

    Args:
        candidates: (C,) picture of each detection that is a false positive unless it is matched.
        hits: T arrays (H,), picture of each true positive.
        before: T arrays (H,), candidates up to and including each true positive.
        matched: T arrays (M,), picture of each candidate that is matched, to an ignored object or another.
        matched_before: T arrays (H,), of them, up to and including each true positive.
    """

    candidates: IntArray
    hits: tuple[IntArray, ...]
    before: tuple[IntArray, ...]
    matched: tuple[IntArray, ...]
    matched_before: tuple[IntArray, ...]

    @classmethod
    def of(cls, pictures: IntArray, inside: BoolArray, true: IntArray, ignored: BoolArray) -> Ranking:
        """From detections by falling score.

        Args:
            pictures: (D,).
            inside: (D,), whether a detection is of the size range.
            true: (T, D), matched objects, -1 for none.
            ignored: (T, D).
        """
        places = np.cumsum(inside)
        hits, before, matched, matched_before = [], [], [], []
        for objects, lost in zip(true, ignored):
            at = np.flatnonzero((objects >= 0) & ~lost)
            used = np.flatnonzero((objects >= 0) & inside)
            hits.append(pictures[at])
            before.append(places[at])
            matched.append(pictures[used])
            matched_before.append(np.searchsorted(used, at, "right"))
        return cls(pictures[inside], tuple(hits), tuple(before), tuple(matched), tuple(matched_before))

    def points(self, weights: FloatArray, objects: FloatArray) -> list[Points]:
        """Precision-recall points at each threshold.

        Args:
            weights: (R, N) of the pictures.
            objects: (R,) weight of the objects that count.
        """
        every = _running(weights, self.candidates)
        found = []
        for hits, before, matched, matched_before in zip(self.hits, self.before, self.matched, self.matched_before):
            true = _running(weights, hits)
            used = true if matched is hits else _running(weights, matched)
            false = every[:, before] - used[:, matched_before]
            true = true[:, 1:]
            # The spacing keeps 0 / 0 at 0, where COCO's evaluator has it, and gives its numbers to the last bit
            precision = true / (false + true + np.spacing(1))
            ceiling = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            found.append(Points(ratio(true, objects[:, None]), precision, ceiling))
        return found


def _running(weights: FloatArray, pictures: IntArray) -> FloatArray:
    """Weight of the first 0, 1, ... of the pictures, (R, M + 1)."""
    sums = np.zeros((len(weights), len(pictures) + 1))
    np.cumsum(weights[:, pictures], axis=1, out=sums[:, 1:])
    return sums


def at_recalls(points: Points, recalls: FloatArray) -> FloatArray:
    """Best precision at each recall (L,) or more, 0 beyond the curve: (R, L)."""
    rows = len(points.recall)
    reached = np.searchsorted(recalls, np.nan_to_num(points.recall).ravel(), "right").reshape(points.recall.shape)
    times = np.diff(reached, axis=1, prepend=0, append=len(recalls))
    values = np.concatenate([points.ceiling, np.zeros((rows, 1))], axis=1)
    return np.repeat(values.ravel(), times.ravel()).reshape(rows, len(recalls))


def area(points: Points) -> FloatArray:
    """Area under the steps of the best precision over recall, (R,): PASCAL VOC from 2010 on."""
    steps = np.diff(points.recall, axis=1, prepend=0)
    return np.asarray((steps * points.ceiling).sum(1))


def by_falling_score(labels: IntArray, scores: NDArray[Any]) -> IntArray:
    """Positions (D,) class after class, each by falling score; of equal scores the first comes first."""
    return np.lexsort((-scores, labels))
