"""What a data set is, in a few facts and with the next command."""

from __future__ import annotations

from typing import Any

import numpy as np

from opsin.data.classes import picture_sizes, spec_words
from opsin.data.dataset import PARTS, Dataset, HeadSpec


def inspect_data(data: Dataset) -> dict[str, Any]:
    """Format, pictures, sizes, classes by part, and what to do next, as JSON values."""
    sizes = picture_sizes(data, np.arange(len(data), dtype=np.int64)) if len(data) else np.zeros((0, 2), np.int64)
    parts: dict[str, int | None] = {part: code for code, part in enumerate(PARTS) if (data.given_split == code).any()}
    parts = parts or {"all": None}
    return {
        "name": data.name,
        "format": data.format,
        "samples": len(data),
        "pictures": spec_words(data.spec),
        "spec": data.spec._asdict(),
        "sizes": _sizes(sizes),
        "conversions": data.conversions,
        "parts": {
            part: int(len(data) if code is None else (data.given_split == code).sum()) for part, code in parts.items()
        },
        "objects": {head.name: _objects(data, head) for head in data.heads if head.kind == "objects"},
        "classes": {head.name: _counts(data, head, parts) for head in data.heads if head.kind != "regression"},
        "problems": [str(problem) for problem in data.problems],
        "next": _next(data),
    }


def _sizes(sizes: Any) -> str:
    if not len(sizes):
        return ""
    low, high = sizes.min(0), sizes.max(0)
    if (low == high).all():
        return f"{low[0]} x {low[1]}"
    middle = np.median(sizes, axis=0).astype(int)
    return f"{low[0]} x {low[1]} to {high[0]} x {high[1]}, median {middle[0]} x {middle[1]}"


def _counts(data: Dataset, head: Any, parts: dict[str, int | None]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {name: {} for name in head.class_names}
    for part, code in parts.items():
        chosen = data if code is None else data.select(data.given_split == code)
        for name, count in chosen.counts(head.name).items():
            found[name][part] = count
    return found


def _objects(data: Dataset, head: HeadSpec) -> dict[str, Any]:
    """How many objects there are, in all and per picture, and of which sides."""
    column = data.targets[head.name]
    every, counts = column.objects, column.counts
    sides = every.boxes_xyxy[:, 2:] - every.boxes_xyxy[:, :2]
    found: dict[str, Any] = {
        "objects": len(every),
        "empty_pictures": int((counts == 0).sum()),
        "crowd": int(every.crowd.sum()),
        "difficult": int(every.difficult.sum()),
    }
    if len(counts):
        found["per_picture"] = {
            "least": int(counts.min()),
            "median": float(np.median(counts)),
            "most": int(counts.max()),
        }
    if len(every):
        side = np.sqrt(np.maximum(sides, 0).prod(axis=1))
        found["side"] = {"least": float(side.min()), "median": float(np.median(side)), "most": float(side.max())}
    if head.points is not None:
        found["points"] = list(head.points.names)
        found["labeled_points"] = int((every.points[..., 2] > 0).sum())
    return found


def _next(data: Dataset) -> str:
    if not data.heads:
        return (
            "There are no labels. To train a classifier, sort the pictures into one folder per class, or write a table "
            "(file,label). To use a trained model on them: opsin predict RUN " + data.root
        )
    task = "detect" if data.heads[0].kind == "objects" else "classify"
    return f"Next: opsin data check {data.root}   then: opsin train {task} --data {data.root}"
