"""Pictures without objects, and pictures with very many."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opsin.analyze.check.findings import Finding, names_text, of_all
from opsin.analyze.check.scan import Scan

NAMES = ("object-counts",)

_MOST = 0.5
_FAR = 3.0
_LEAST = 20


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `no-objects`, `picture-without-objects` and `object-count-outlier`."""
    for head in scan.object_heads:
        counts = head.column.counts
        empty = np.flatnonzero(counts == 0)
        if len(empty) == len(counts):
            yield Finding(
                "no-objects", "error", f"No picture has an object of '{head.spec.name}'.",
                fix="Look whether the label files lie where the format expects them, and belong to these pictures.",
            )  # fmt: skip
            continue
        if len(empty):
            share, names = len(empty) / len(counts), scan.ids(empty[: scan.options.listed])
            yield Finding(
                "picture-without-objects", "warning" if share > _MOST else "info",
                f"{of_all(len(empty), len(counts), 'picture', 'has', 'have')} no object ({share:.1%}): {names_text(names)}. "
                "They are used as background, on which nothing must be found.",
                tuple((name,) for name in names),
                "Look whether they were forgotten; delete those that hold objects without a box.",
                data={"head": head.spec.name, "count": len(empty), "groups": len(empty), "share": share},
            )  # fmt: skip
        low, high = np.percentile(counts, (25, 75))
        bar = max(high + _FAR * (high - low), 2 * high, _LEAST)
        many = np.flatnonzero(counts > bar)
        if len(many):
            many = many[np.argsort(-counts[many], kind="stable")]
            names = scan.ids(many[: scan.options.listed])
            yield Finding(
                "object-count-outlier", "info",
                f"{of_all(len(many), len(counts), 'picture', 'has', 'have')} more than {bar:.0f} objects (three in four "
                f"pictures have at most {high:.0f}): {names_text(names)}.",
                tuple((name,) for name in names),
                "Look whether they were boxed in the same way; the number of boxes that are kept must reach this high.",
                tuple(f"{counts[i]} objects" for i in many[: scan.options.listed]),
                {"head": head.spec.name, "count": len(many), "groups": len(many), "most": int(counts.max())},
            )  # fmt: skip
