"""What a data set is, in a few facts and with the next command."""

from __future__ import annotations

from typing import Any

import numpy as np

from opsin.data.classes import picture_sizes, spec_words
from opsin.data.dataset import PARTS, Dataset
from opsin.data.objects import ObjectColumn


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
        "classes": {head.name: _counts(data, head, parts) for head in data.heads if head.kind != "regression"},
        "objects": {head.name: _objects(data.targets[head.name]) for head in data.heads if head.kind == "objects"},
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


def _objects(column: ObjectColumn) -> dict[str, Any]:
    counts = column.counts
    return {
        "count": int(counts.sum()),
        "pictures_without": int((counts == 0).sum()),
        "most_in_a_picture": int(counts.max(initial=0)),
        "crowd": int(column.objects.crowd.sum()),
        "difficult": int(column.objects.difficult.sum()),
        "points": int(column.objects.points.shape[1]),
    }


def _next(data: Dataset) -> str:
    if not data.heads:
        return (
            "There are no labels. To train a classifier, sort the pictures into one folder per class, or write a table "
            "(file,label). To use a trained model on them: opsin predict RUN " + data.root
        )
    task = "detect" if data.heads[0].kind == "objects" else "classify"
    return f"Next: opsin data check {data.root}   then: opsin train {task} --data {data.root}"
