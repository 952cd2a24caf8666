"""What the boxes of a data set are like, in numbers: how many, how large, of which shape, with whom, and which anchors fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.analyze.anchors import cluster_sizes
from opsin.analyze.check.objects import ObjectHead

_BINS = 20
_CLASSES = 20
_ANCHORS = (3, 6, 9)
_SMALL, _LARGE = 32.0**2, 96.0**2  # COCO's bounds of area


def explore(head: ObjectHead) -> dict[str, Any]:
    """Numbers of one head of objects; JSON-safe.

    Sizes are shares of the picture (side: root of the box's area over the picture's), aspect is width over height.
    `truncated` counts boxes that touch the border of the picture, `outside` those that reach over it by more than half a
    pixel. Anchors are shares of the picture's longer side.
    """
    counts = head.column.counts
    usable = head.positive & head.known
    sides, room = head.sides[usable], head.room[usable]
    area = sides.prod(1)
    given = head.column.objects.area[usable]
    judged = np.where(np.isnan(given), area, given)
    edges = head.boxes[usable]
    touching = (edges[:, :2] <= 0.5).any(1) | (edges[:, 2:] >= room - 0.5).any(1)
    aspect = sides[:, 0] / np.maximum(sides[:, 1], 1e-9)
    return {
        "name": head.spec.name,
        "count": len(head),
        "pictures": int((counts > 0).sum()),
        "empty": int((counts == 0).sum()),
        "crowd": int(head.column.objects.crowd.sum()),
        "difficult": int(head.column.objects.difficult.sum()),
        "per_picture": _histogram(counts.astype(np.float64), np.arange(int(counts.max(initial=0)) + 2), whole=True),
        "side": _histogram(np.sqrt(area / room.prod(1)), np.linspace(0, 1, _BINS + 1)),
        "aspect": _histogram(aspect, np.exp(np.linspace(np.log(1 / 8), np.log(8), _BINS + 1))),
        "sizes": {
            "small": int((judged < _SMALL).sum()),
            "medium": int(((judged >= _SMALL) & (judged <= _LARGE)).sum()),
            "large": int((judged > _LARGE).sum()),
        },
        "truncated": int(touching.sum()),
        "outside": int((head.beyond > 0.5).sum()),
        "anchors": _anchors(sides / room.max(1, keepdims=True)),
        "together": _together(head),
        "points": _points(head),
    }


def _histogram(values: NDArray[np.float64], edges: NDArray[Any], whole: bool = False) -> dict[str, Any] | None:
    """Counts between edges; what lies outside is counted in the first and last bin. Whole numbers have bins of one."""
    if not len(values):
        return None
    if whole and len(edges) > _BINS + 1:
        edges = np.unique(np.linspace(0, edges[-1], _BINS + 1).astype(np.int64))
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    low, middle, high = (float(v) for v in np.percentile(values, (5, 50, 95)))
    return {
        "edges": [round(float(edge), 4) for edge in edges],
        "counts": counts.tolist(),
        "mean": float(values.mean()),
        "p5": low,
        "median": middle,
        "p95": high,
        "most": float(values.max()),
    }


def _anchors(shares: NDArray[np.float64]) -> list[dict[str, Any]]:
    different = len(np.unique(shares, axis=0)) if len(shares) else 0
    found = []
    for count in _ANCHORS:
        if count <= different:
            fit = cluster_sizes(shares, count)
            found.append(
                {
                    "anchors": count,
                    "sizes": fit.sizes.round(4).tolist(),
                    "share": fit.share.round(4).tolist(),
                    "mean_iou": round(fit.mean_iou, 4),
                    "recall": {str(bar): round(value, 4) for bar, value in fit.recall.items()},
                }
            )
    return found


def _together(head: ObjectHead) -> dict[str, Any]:
    """For the most frequent classes: in how many pictures class a and class b both are."""
    present = head.column.present(len(head.spec.class_names))
    order = np.argsort(-present.sum(0), kind="stable")[:_CLASSES]
    order = order[present[:, order].any(0)]
    chosen = present[:, order].astype(np.int64)
    return {"classes": [head.spec.class_names[k] for k in order], "pictures": (chosen.T @ chosen).tolist()}


def _points(head: ObjectHead) -> list[dict[str, Any]]:
    if head.spec.points is None or not len(head):
        return []
    visibility = head.column.objects.points[..., 2]  # (M, K)
    return [
        {
            "name": name,
            "labeled": int((visibility[:, k] > 0).sum()),
            "visible": int((visibility[:, k] == 2).sum()),
        }
        for k, name in enumerate(head.spec.points.names)
    ]
