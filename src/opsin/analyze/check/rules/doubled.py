"""One object that was boxed twice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opsin.analyze.check.findings import Finding, counted, verb
from opsin.analyze.check.scan import Scan
from opsin.metrics.boxes import iou as box_iou
from opsin.metrics.boxes import pairwise

NAMES = ("doubled-boxes",)

_SAME = 0.95


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `doubled-box` and `box-of-two-classes`."""
    for head in scan.object_heads:
        doubled: list[tuple[int, float]] = []
        differing: list[tuple[int, float]] = []
        starts = head.column.starts
        for i in np.flatnonzero(head.column.counts > 1):
            members = np.arange(starts[i], starts[i + 1])
            iou = np.triu(pairwise(box_iou, head.boxes[members], head.boxes[members]), 1)
            for one, other in np.argwhere(iou > _SAME).tolist():
                same = head.labels[members[one]] == head.labels[members[other]]
                (doubled if same else differing).append((int(members[other]), float(iou[one, other])))
        for code, pairs, words, fix in (
            (
                "doubled-box", doubled, "of the same class cover each other",
                "Delete one of each: a detector is punished for finding the object once.",
            ),
            (
                "box-of-two-classes", differing, "of two classes cover each other",
                "Keep the right class, unless objects really have several.",
            ),
        ):  # fmt: skip
            if pairs:
                chosen, iou = np.array([k for k, _ in pairs], np.int64), np.array([value for _, value in pairs])
                yield head.finding(
                code, "warning",
                    f"{counted(len(pairs), 'pair')} of boxes {words} (IoU above {_SAME}); "
                    f"{verb(len(pairs), 'it looks', 'they look')} like one object boxed twice.",
                    fix, chosen, iou, [f"{head.name(k)}, IoU {value:.2f}" for k, value in pairs],
                )  # fmt: skip
