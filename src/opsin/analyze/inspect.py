"""What a data set is, in a few facts and with the next command."""

from __future__ import annotations

from typing import Any

import numpy as np

from opsin.data.classes import picture_sizes, spec_words
from opsin.data.dataset import PARTS, Dataset
from opsin.data.targets import count_classes


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
    values = data.targets[head.name]
    for part, code in parts.items():
        chosen = values if code is None else values[data.given_split == code]
        for name, count in zip(head.class_names, count_classes(head, chosen)):
            found[name][part] = int(count)
    return found


def _next(data: Dataset) -> str:
    if not data.heads:
        return (
            "There are no labels. To train a classifier, sort the pictures into one folder per class, or write a table "
            "(file,label). To use a trained model on them: opsin predict RUN " + data.root
        )
    task = "detect" if any(head.kind == "objects" for head in data.heads) else "classify"
    return f"Next: opsin data check {data.root}   then: opsin train {task} --data {data.root}"
