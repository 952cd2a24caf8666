"""Class numbers that begin too late: a label file and a class list that count differently."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opsin.analyze.check.findings import Finding, names_text
from opsin.analyze.check.scan import Scan

NAMES = ("class-ids",)


def build(scan: Scan) -> Iterator[Finding]:
    """Code `class-ids-shifted`: the first class has no object although the last one has."""
    for head in scan.object_heads:
        names = head.spec.class_names
        counts = np.bincount(head.labels, minlength=len(names))
        holes = [names[k] for k in np.flatnonzero(counts == 0)]
        if len(names) > 1 and counts[0] == 0 and counts[-1] > 0:
            yield Finding(
                "class-ids-shifted", "warning",
                f"The first class '{names[0]}' has no object, the last one '{names[-1]}' has {counts[-1]:,}. Class numbers "
                f"may be counted from 1 in the labels and from 0 in the list (without objects: {names_text(holes, 5)}).",
                fix="Look at a few pictures: if the names do not belong to the objects, shift the numbers or the list by one; "
                "a background class is not listed.",
                data={"head": head.spec.name, "empty": holes},
            )  # fmt: skip
