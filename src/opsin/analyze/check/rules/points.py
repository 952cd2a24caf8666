"""Points that lie outside of their object, or on the wrong side of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from opsin.analyze.check.findings import Finding, counted, verb
from opsin.analyze.check.objects import ObjectHead
from opsin.analyze.check.scan import Scan

NAMES = ("points",)

_MARGIN = 0.1  # of the box's side
_AGREED = 0.9
_LEAST = 20


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `point-outside-box` and `mirrored-points`."""
    for head in scan.object_heads:
        points = head.column.objects.points  # (M, K, 3)
        if head.spec.points is None or not points.size:
            continue
        labeled = (points[..., 2] > 0) & head.positive[:, None]
        sides = np.maximum(head.sides, 1e-9)[:, None]  # (M, 1, 2)
        low, high = head.boxes[:, None, :2] - points[..., :2], points[..., :2] - head.boxes[:, None, 2:]
        out = np.where(labeled, (np.maximum(low, high) / sides).max(-1), 0.0)  # (M, K), in sides of the box
        bad = np.flatnonzero((out > _MARGIN).any(1))
        if len(bad):
            worst = out[bad].argmax(1)
            yield head.finding(
                "point-outside-box", "warning",
                f"{counted(int((out > _MARGIN).sum()), 'labeled point')} of {counted(len(bad), 'object')} "
                f"{verb(int((out > _MARGIN).sum()), 'lies', 'lie')} outside of the box by more than {_MARGIN:.0%} of its side.",
                "Look whether box and points belong to one object; an unlabeled point must have visibility 0.",
                bad, out[bad].max(1),
                [f"{head.spec.points.names[k]}, {out[i, k]:.0%} of a side out" for i, k in zip(bad, worst)],
            )  # fmt: skip
        yield from _mirrored(head, points, labeled)


def _mirrored(head: ObjectHead, points: NDArray[np.float64], labeled: NDArray[np.bool_]) -> Iterator[Finding]:
    """Objects whose left and right points are the other way round, where nearly all objects agree on the way."""
    swaps = np.array(head.spec.points.swaps if head.spec.points else (), np.int64)
    pairs = [(k, int(twin)) for k, twin in enumerate(swaps) if k < twin]
    if not pairs:
        return
    left, right = np.array(pairs).T
    both = labeled[:, left] & labeled[:, right]  # (M, P)
    way = np.sign(points[:, left, 0] - points[:, right, 0]) * both
    usual = np.sign(way.sum(0))  # of each pair
    turned = (way * usual).sum(1)  # below 0: most pairs of the object are the other way round
    judged = both.any(1) & (turned != 0)
    bad = np.flatnonzero(judged & (turned < 0))
    if judged.sum() < _LEAST or not len(bad) or len(bad) > (1 - _AGREED) * judged.sum():
        return
    yield head.finding(
                "mirrored-points", "warning",
        f"{counted(len(bad), 'object')} {verb(len(bad), 'has', 'have')} left and right points the other way round than "
        f"{1 - len(bad) / judged.sum():.1%} of the objects.",
        "Look at them: points may have been named from the viewer's side, or the picture was mirrored without them. Seen from "
        "behind they are right as they are.",
        bad, -turned[bad], [f"{head.name(k)}, {int((way[k] * usual < 0).sum())} pairs" for k in bad],
    )  # fmt: skip
