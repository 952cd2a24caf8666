"""Coordinates in another order than they are read in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opsin.analyze.check.findings import Finding
from opsin.analyze.check.scan import Scan

NAMES = ("swapped-coordinates",)

_SLACK = 0.5
_LEAST, _SHARE = 3, 0.8


def build(scan: Scan) -> Iterator[Finding]:
    """Code `swapped-coordinates`: boxes that do not fit their pictures, and would if x and y, or w and h, changed places."""
    for head in scan.object_heads:
        bad = np.flatnonzero(head.known & (head.beyond > _SLACK))
        if len(bad) < _LEAST:
            continue
        boxes, (width, height) = head.boxes[bad], head.room[bad].T
        corner, sides = boxes[:, :2], head.sides[bad]
        readings = {
            "x and y": boxes[:, [1, 0, 3, 2]],
            "width and height": np.concatenate([corner, corner + sides[:, ::-1]], axis=1),
            "the far corner and the size": np.concatenate([corner, sides], axis=1),
        }
        limits = np.stack([width, height, width, height], axis=1) + _SLACK
        fits = {
            what: (read >= -_SLACK).all(1) & (read <= limits).all(1) & (read[:, 2:] > read[:, :2]).all(1)
            for what, read in readings.items()
        }
        what = max(fits, key=lambda name: int(fits[name].sum()))
        mended = int(fits[what].sum())
        if mended >= max(_LEAST, _SHARE * len(bad)):
            chosen = bad[fits[what]]
            yield head.finding(
                "swapped-coordinates", "error",
                f"{mended:,} of the {len(bad):,} boxes that reach out of their picture would fit if {what} were exchanged.",
                "Look at the order in which the file holds its numbers, and at how it was written.",
                chosen, head.beyond[chosen], [f"{head.name(k)}, {head.beyond[k]:.0f} px out" for k in chosen],
                {"exchanged": what, "outside": len(bad)},
            )  # fmt: skip
