"""Anchor boxes from the boxes of a data set, and how well given anchors fit it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from opsin.errors import DataError
from opsin.seeding import numpy_generator

Sizes = NDArray[np.float64]

_RESTARTS = 5
_ROUNDS = 300
_MOST = 50_000  # boxes that are clustered; more are thinned out evenly
BARS = (0.5, 0.75)


class Anchors(NamedTuple):
    """Anchors and how well they fit N boxes when both lie on the same center.

    `sizes` (K, 2) are widths and heights, by area; `share` (K,) is the share of boxes that each fits best; `mean_iou` is
    the mean over boxes of the best IoU; `recall` says which share of boxes the best IoU reaches 0.5 and 0.75.
    """

    sizes: Sizes
    share: NDArray[np.float64]
    mean_iou: float
    recall: dict[float, float]


def size_iou(sizes: Sizes, anchors: Sizes) -> NDArray[np.float64]:
    """IoU of boxes (N, 2) of width and height with anchors (K, 2) on the same center, (N, K)."""
    inner = np.minimum(sizes[:, None], anchors[None]).prod(-1)
    return np.asarray(inner / (sizes.prod(-1)[:, None] + anchors.prod(-1)[None] - inner))


def judge(sizes: Sizes, anchors: Sizes) -> Anchors:
    """How well anchors (K, 2) fit boxes (N, 2).

    Raises:
        DataError: if a width or height is not positive, or there are none.
    """
    sizes, anchors = _checked(sizes), _checked(anchors)
    anchors = anchors[np.argsort(anchors.prod(1), kind="stable")]
    iou = size_iou(sizes, anchors)
    best = iou.max(1)
    share = np.bincount(iou.argmax(1), minlength=len(anchors)) / len(sizes)
    return Anchors(anchors, share, float(best.mean()), {bar: float((best >= bar).mean()) for bar in BARS})


def cluster_sizes(sizes: Sizes, count: int, seed: int = 0) -> Anchors:
    """Anchors by k-means with the distance 1 - IoU (Redmon and Farhadi, "YOLO9000", 2017, section 2).

    A center moves to the mean of its boxes while the mean IoU grows. Five k-means++ starts; the best mean IoU wins.

    Args:
        sizes: (N, 2) widths and heights, in pixels of the model's input or any other unit.
        count: number of anchors K; no more than there are different sizes.
        seed: of the starts.

    Raises:
        DataError: if a width or height is not positive, or there are fewer different sizes than anchors.
    """
    every = _checked(sizes)
    if len(different := np.unique(every, axis=0)) < count or count < 1:
        raise DataError(f"{count} anchors need as many different box sizes; there are {len(different)}.")
    thinned = every if len(every) <= _MOST else every[np.linspace(0, len(every) - 1, _MOST).astype(np.int64)]
    found = [_one_run(thinned, count, numpy_generator(seed, "anchors", start)) for start in range(_RESTARTS)]
    return judge(every, max(found, key=lambda centers: float(size_iou(thinned, centers).max(1).mean())))


def _one_run(sizes: Sizes, count: int, generator: np.random.Generator) -> Sizes:
    centers = sizes[[int(generator.integers(len(sizes)))]]
    while len(centers) < count:
        distance = (1 - size_iou(sizes, centers).max(1)) ** 2
        total = distance.sum()
        chosen = generator.choice(len(sizes), p=distance / total) if total > 0 else generator.integers(len(sizes))
        centers = np.concatenate([centers, sizes[[int(chosen)]]])
    best, before = centers, -1.0
    for _ in range(_ROUNDS):
        iou = size_iou(sizes, centers)
        mean = float(iou.max(1).mean())
        if mean <= before + 1e-9:
            break
        best, before = centers, mean
        nearest = iou.argmax(1)
        counts = np.bincount(nearest, minlength=count)
        sums = np.stack([np.bincount(nearest, sizes[:, axis], count) for axis in (0, 1)], axis=1)
        centers = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centers)
    return best


def _checked(sizes: Sizes) -> Sizes:
    values = np.asarray(sizes, np.float64).reshape(-1, 2)
    if not len(values) or not (values > 0).all() or not np.isfinite(values).all():
        raise DataError("Anchors are found from boxes of positive width and height; there are none, or some are not.")
    return values
