"""Boxes counted from 1 where 0 was expected, or the other way round."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opsin.analyze.check.findings import Finding
from opsin.analyze.check.scan import Scan

NAMES = ("one-based-boxes",)

_LEAST = 5
_EXACT = 1e-3


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `boxes-from-one`, `boxes-below-zero` and `boxes-end-early`; only whole numbers are judged.

    Boxes that touch the border tell how pixels were counted: with continuous coordinates they run from 0 to the picture's
    width. From 1 to the width means that the first pixel was called 1; from 0 to one less, that the last pixel was named
    instead of its end; a -1 comes from a file whose 0 was read as a 1-based number.
    """
    for head in scan.object_heads:
        usable = head.known & head.positive
        boxes, room = head.boxes[usable], head.room[usable]
        if not len(boxes) or (np.abs(boxes - np.rint(boxes)) > _EXACT).any(1).mean() > 0.1:
            continue
        first, last = boxes[:, :2].ravel(), (room - boxes[:, 2:]).ravel()
        zero, one, below = (int((np.abs(first - value) < _EXACT).sum()) for value in (0, 1, -1))
        end, early = (int((np.abs(last - value) < _EXACT).sum()) for value in (0, 1))
        data = {
            "head": head.spec.name,
            "at_0": zero,
            "at_1": one,
            "at_minus_1": below,
            "at_end": end,
            "one_short": early,
        }
        if below >= 1 and (first < -1 - _EXACT).sum() == 0:
            yield Finding(
                "boxes-below-zero", "warning",
                f"{below:,} box edges are at -1: the file holds 0 where its format counts from 1.",
                fix="Write the boxes from 1 (first pixel 1, last pixel the width), or convert the file as counting from 0.",
                data=data,
            )  # fmt: skip
        elif zero == 0 and one >= _LEAST and end >= _LEAST:
            yield Finding(
                "boxes-from-one", "warning",
                f"{one:,} box edges are at 1, none at 0, and {end:,} at the picture's end: the file seems to count pixels "
                "from 1, and every box is one pixel too small at its left and top.",
                fix="Subtract 1 from x1 and y1, or name the format that counts from 1 (--format voc).", data=data,
            )  # fmt: skip
        elif end == 0 and early >= _LEAST and zero >= _LEAST:
            yield Finding(
                "boxes-end-early", "info",
                f"{early:,} box edges end one pixel before the picture does, and none at its end: the file seems to name the "
                "last pixel instead of the end, and every box is one pixel too small at its right and bottom.",
                fix="Add 1 to x2 and y2 (or to width and height).", data=data,
            )  # fmt: skip
