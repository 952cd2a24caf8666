"""Boxes without area."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opsin.analyze.check.findings import Finding
from opsin.analyze.check.scan import Scan

NAMES = ("degenerate-boxes",)


def build(scan: Scan) -> Iterator[Finding]:
    """Code `degenerate-box`."""
    for head in scan.object_heads:
        bad = np.flatnonzero(~head.positive | ~np.isfinite(head.boxes).all(1))
        if len(bad):
            sides = np.nan_to_num(head.sides[bad])
            yield head.finding(
                "degenerate-box", "error",
                f"{len(bad):,} of {len(head):,} boxes have no positive width and height. Nothing can be learned from them.",
                "Delete them or exchange the corners (x1 < x2, y1 < y2).",
                bad, -sides.min(1), [f"{head.name(k)}, {w:.4g} x {h:.4g}" for k, (w, h) in zip(bad, sides)],
            )  # fmt: skip
