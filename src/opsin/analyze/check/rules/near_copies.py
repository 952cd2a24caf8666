"""Pictures that are nearly the same: saved again, scaled, slightly changed, or the next frame."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opsin.analyze.check.findings import Finding, counted, verb
from opsin.analyze.check.grouping import components_of
from opsin.analyze.check.rules.copies import cluster_finding, how_to_mend, leaked_text, parts_of
from opsin.analyze.check.scan import Scan

NAMES = ("near-copies",)


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `near-duplicate-across-splits`, `near-duplicate` and `near-duplicate-search-cut`."""
    clusters = [c for c in components_of(scan.alike) if len(np.unique(scan.exact[c])) > 1]
    options = scan.options
    how = f"hash distance <= {options.hash_distance} of 64 bits, thumbnails correlate >= {options.correlation:g}"
    data: dict[str, object] = {"hash_distance": options.hash_distance, "correlation": options.correlation}
    across = [c for c in clusters if len(parts_of(scan, c)) > 1]
    within = [c for c in clusters if len(parts_of(scan, c)) <= 1]
    otherwise = (
        "Look at them (--html FILE shows them). Give pictures of one scene, person or video one group (--group COLUMN), "
        "or delete copies."
    )
    if across:
        text = (
            f"{counted(len(across), 'cluster')} of nearly identical pictures "
            f"{verb(len(across), 'straddles', 'straddle')} parts: {leaked_text(scan, across)} "
            f"({how}). Scores on them are too good."
        )
        fix, more = how_to_mend(scan, across, otherwise)
        yield cluster_finding(scan, "near-duplicate-across-splits", "warning", text, across, fix, {**data, **more})
    if within:
        members = sum(len(c) for c in within)
        text = f"{counted(len(within), 'cluster')} of nearly identical pictures, {members:,} pictures in all ({how})"
        text += (
            "; none straddles parts." if scan.split_known else ". A random split would put many of them on both sides."
        )
        fix, more = how_to_mend(scan, within, otherwise)
        level = "info" if scan.split_known else "warning"
        yield cluster_finding(scan, "near-duplicate", level, text, within, fix, {**data, **more})
    if not scan.near.complete:
        yield Finding(
            "near-duplicate-search-cut",
            "info",
            f"Many pictures look alike: the search for near duplicates stopped after {len(scan.near.pairs):,} pairs.",
            fix="Use a stricter options.hash_distance or options.correlation, or check a part of the data.",
        )
