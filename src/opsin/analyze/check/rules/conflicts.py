"""One picture, two labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from opsin.analyze.check.findings import Finding, counted, verb
from opsin.analyze.check.rules.copies import cluster_finding
from opsin.analyze.check.scan import Scan

NAMES = ("conflicts",)


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `duplicate-with-different-labels` and `near-duplicate-with-different-labels`."""
    exact = [c for c in scan.exact_clusters if _disagree(scan, c)]
    if exact:
        text = (
            f"{counted(len(exact), 'picture')} {verb(len(exact), 'occurs', 'occur')} several times with different "
            "labels. At least one label of each is wrong, or more than one class applies."
        )
        fix = "Look at them (--html FILE shows them), delete the wrong copy, or give them several labels (--columns labels=COLUMN)."
        yield cluster_finding(scan, "duplicate-with-different-labels", "error", text, exact, fix, {})
    pairs = [p for p in scan.near.pairs[:100_000] if scan.exact[p[0]] != scan.exact[p[1]] and _disagree(scan, p)]
    if pairs:
        has = verb(len(pairs), "has", "have")
        text = f"{counted(len(pairs), 'pair')} of nearly identical pictures {has} different labels."
        fix = "Look at them (--html FILE shows them): mend the wrong label, or leave them if the small difference is what decides."
        yield cluster_finding(scan, "near-duplicate-with-different-labels", "warning", text, pairs, fix, {})


def _disagree(scan: Scan, members: NDArray[np.int64]) -> bool:
    for head in scan.dataset.heads:
        values = scan.dataset.targets[head.name][members]
        if head.kind == "objects":
            counts = [np.bincount(one.labels, minlength=len(head.class_names)) for one in values]
            if len(np.unique(counts, axis=0)) > 1:
                return True
            continue
        known = (
            values[values >= 0] if head.kind == "single" else values[~np.isnan(values).reshape(len(values), -1).any(1)]
        )
        if head.kind != "regression" and len(np.unique(known, axis=0)) > 1:
            return True
    return False
