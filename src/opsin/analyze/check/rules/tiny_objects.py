"""Objects that are too small to be seen at the size of the model's input."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opsin.analyze.check.findings import Finding
from opsin.analyze.check.scan import Scan

NAMES = ("tiny-objects",)

_MANY = 0.05


def build(scan: Scan) -> Iterator[Finding]:
    """Code `tiny-object`."""
    side, least = scan.options.train_side, scan.options.tiny_object
    for head in scan.object_heads:
        shorter = head.sides.min(1) * side / np.maximum(head.room.max(1), 1)
        tiny = np.flatnonzero(head.known & head.positive & (shorter < least))
        if len(tiny):
            share = len(tiny) / len(head)
            yield head.finding(
                "tiny-object", "warning" if share > _MANY else "info",
                f"{len(tiny):,} of {len(head):,} objects ({share:.1%}) have a side below {least:g} pixels when the picture's "
                f"longer side is {side}. Detectors miss most of these.",
                "Train at a larger task.image_size, or on tiles of the pictures.",
                tiny, -shorter[tiny], [f"{head.name(k)}, {shorter[k]:.1f} px" for k in tiny],
                {"share": share, "side": side},
            )  # fmt: skip
