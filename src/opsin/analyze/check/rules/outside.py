"""Boxes that reach out of their picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opsin.analyze.check.findings import Finding, of_all
from opsin.analyze.check.scan import Scan

NAMES = ("outside-boxes",)

_SLACK = 0.5  # pixels of rounding


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `box-without-picture` and `box-outside-picture`."""
    for head in scan.object_heads:
        inner = np.clip(head.boxes, 0, np.tile(head.room, 2))
        cut = np.prod(inner[:, 2:] - inner[:, :2], axis=1)
        area = head.sides.prod(1)
        lost = 1 - np.divide(cut, area, out=np.ones_like(area), where=area > 0)  # share clipped
        out = head.known & head.positive & (head.beyond > _SLACK)
        gone = np.flatnonzero(out & (lost >= 1))
        if len(gone):
            yield head.finding(
                "box-without-picture", "error",
                f"{of_all(len(gone), len(head), 'box', 'lies', 'lie')} wholly outside of the picture.",
                "The boxes belong to another picture or to one of another size: mend or delete them.",
                gone, head.beyond[gone], [f"{head.name(k)}, {head.beyond[k]:.0f} px out" for k in gone],
            )  # fmt: skip
        some = np.flatnonzero(out & (lost < 1))
        if len(some):
            yield head.finding(
                "box-outside-picture", "warning",
                f"{of_all(len(some), len(head), 'box', 'reaches', 'reach')} out of the picture; on average "
                f"{lost[some].mean():.1%} of such a box is outside, at most {lost[some].max():.1%}. They are cut off at the "
                "border in training.",
                "Nothing to do for a few pixels; otherwise look whether the pictures were cut or resized after the boxes "
                "were drawn.",
                some, lost[some], [f"{head.name(k)}, {lost[k]:.0%} outside" for k in some],
                {"clipped_share": float(lost[some].mean()), "most": float(lost[some].max())},
            )  # fmt: skip
