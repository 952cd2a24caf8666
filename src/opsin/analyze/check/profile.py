"""The profile of a data set: what it holds, in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from opsin.analyze.check.explorer import explore
from opsin.analyze.check.rules.balance import class_counts, effective_number
from opsin.analyze.check.scan import Scan
from opsin.data.dataset import PARTS


def profile(scan: Scan) -> dict[str, Any]:
    """Counts, parts, classes, sizes, formats and brightness; JSON-safe."""
    facts, dataset = scan.facts, scan.dataset
    known = facts.sizes.min(1) > 0
    usable = facts.readable
    return {
        "name": dataset.name,
        "root": dataset.root,
        "format": dataset.format,
        "samples": len(scan),
        "readable": int(usable.sum()),
        "bytes": int(facts.file_bytes.sum()),
        "parts": {part: int((scan.parts == code).sum()) for code, part in enumerate(PARTS)},
        "split_known": scan.split_known,
        "image": {"channels": dataset.spec.channels, "dtype": dataset.spec.dtype, "range": list(dataset.spec.range)},
        "file_formats": _counted(facts.formats[facts.formats != ""]),
        "modes": _counted(facts.modes[usable]),
        "height": _spread(facts.sizes[known, 0]),
        "width": _spread(facts.sizes[known, 1]),
        "aspect": _spread(facts.sizes[known, 1] / facts.sizes[known, 0]),
        "size_counts": _counted(np.array([f"{w} x {h}" for h, w in facts.sizes[known].tolist()]), 8),
        "brightness": _spread(facts.means[usable]),
        "contrast": _spread(facts.stds[usable]),
        "duplicates": {
            "identical": int(sum(len(c) - 1 for c in scan.exact_clusters)),
            "near_pairs": len(scan.near.pairs),
        },
        "objects": [explore(head) for head in scan.object_heads],
        "heads": [_head(scan, name, *table) for name, table in class_counts(scan).items()],
        "taken": _taken(facts.taken),
    }


def _head(scan: Scan, name: str, classes: tuple[str, ...], table: Any) -> dict[str, Any]:
    present = table[3][table[3] > 0]
    return {
        "name": name,
        "noun": "object" if scan.dataset.head(name).kind == "objects" else "sample",
        "missing": scan.dataset.missing(name),
        "ratio": float(present.max() / present.min()) if len(present) else None,
        "effective_classes": round(effective_number(present), 2) if len(present) else None,
        "classes": [
            {"name": c, "total": int(table[3, k]), **{part: int(table[row, k]) for row, part in enumerate(PARTS)}}
            for k, c in enumerate(classes)
        ],
    }


def _counted(values: Any, most: int = 20) -> dict[str, int]:
    names, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    kept = {str(names[k]): int(counts[k]) for k in order[:most]}
    if len(order) > most:
        kept["other"] = int(counts[order[most:]].sum())
    return kept


def _spread(values: Any) -> dict[str, float] | None:
    if not len(values):
        return None
    low, quarter, middle, three, high = (float(v) for v in np.percentile(values, (0, 25, 50, 75, 100)))
    return {"min": low, "q1": quarter, "median": middle, "q3": three, "max": high}


def _taken(taken: dict[int, str]) -> dict[str, Any] | None:
    if not taken:
        return None
    times = sorted(taken.values())
    return {"count": len(times), "first": times[0], "last": times[-1]}
