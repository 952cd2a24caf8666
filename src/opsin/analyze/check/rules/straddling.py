"""Groups (a person, a patient, a video) with samples in more than one part."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opsin.analyze.check.findings import Finding, counted, verb
from opsin.analyze.check.grouping import components_of
from opsin.analyze.check.rules.copies import cluster_finding, leaked_text, parts_of
from opsin.analyze.check.scan import Scan

NAMES = ("group-leaks",)


def build(scan: Scan) -> Iterator[Finding]:
    """Code `group-leak`; for the group that was asked about, or the table's group column."""
    spec = scan.options.group or ("group" if "group" in scan.dataset.roles else None)
    if spec is None or not scan.split_known:
        return
    groups = scan.dataset.groups(spec)
    torn = [c for c in components_of(groups) if len(parts_of(scan, c)) > 1]
    if torn:
        text = (
            f"{counted(len(torn), 'group')} of {len(np.unique(groups)):,} by '{spec}' "
            f"{verb(len(torn), 'has', 'have')} samples in more than one part: {leaked_text(scan, torn)}. "
            "The scores say how well the model knows these groups, not new ones."
        )
        fix = f"Split with --group {spec}"
        fix += (
            ", without the given parts (the folders or the column that assign them)."
            if (scan.dataset.given_split >= 0).any()
            else "."
        )
        yield cluster_finding(scan, "group-leak", "error", text, torn, fix, {"group": spec})
