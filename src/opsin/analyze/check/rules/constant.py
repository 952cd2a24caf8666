"""Pictures that show nothing, and pixels that are no numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opsin.analyze.check.findings import Finding, counted, names_text, of_all
from opsin.analyze.check.scan import Scan

NAMES = ("constant",)


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `constant-picture` and `nonfinite-values`."""
    flat = np.flatnonzero(scan.facts.flat & scan.facts.readable & (scan.facts.nonfinite == 0))
    if len(flat):
        names = scan.ids(flat[: scan.options.listed])
        yield Finding(
            "constant-picture",
            "warning",
            f"{of_all(len(flat), len(scan), 'picture', 'is', 'are')} one value everywhere: {names_text(names)}.",
            tuple((name,) for name in names),
            "They teach nothing, or that an empty picture is of their class. Delete them.",
            tuple(f"grey value {scan.facts.means[i]:.0f}" for i in flat[: scan.options.listed]),
            {"count": len(flat), "groups": len(flat)},
        )
    bad = np.flatnonzero(scan.facts.nonfinite)
    if len(bad):
        names = scan.ids(bad[: scan.options.listed])
        yield Finding(
            "nonfinite-values",
            "error",
            f"{of_all(len(bad), len(scan), 'picture', 'has', 'have')} NaN or infinite pixels: {names_text(names)}. "
            "One of them makes every weight of the network NaN.",
            tuple((name,) for name in names),
            "Replace these pixels by a number that means 'no data', or delete the pictures.",
            tuple(counted(int(scan.facts.nonfinite[i]), "such value") for i in bad[: scan.options.listed]),
            {"count": len(bad), "groups": len(bad)},
        )
