"""Pictures that are much smaller, larger or longer than what one expects."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from opsin.analyze.check.findings import Finding, Level, names_text, of_all
from opsin.analyze.check.scan import Scan

NAMES = ("sizes",)


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `tiny-picture`, `enormous-picture`, `size-outlier` and `odd-shape`."""
    sizes, options = scan.facts.sizes.astype(np.int64), scan.options
    known = sizes.min(1) > 0
    if not known.any():
        return
    short, long = sizes.min(1), sizes.max(1)
    middle = float(np.median(short[known]))
    tiny = known & (short < options.small_side) & (middle >= options.small_side)
    large = known & (short * long > options.large_pixels)
    outlier = known & ~tiny & ~large & ((short < middle / 8) | (short > middle * 8))
    typical = float(np.median(long[known] / short[known]))
    odd = known & (long > options.aspect * short) & (long > 2 * typical * short)
    yield from _finding(
        scan, "tiny-picture", "warning", tiny, ("has", "have"), f"a side below {options.small_side} pixels",
        "Look at them: thumbnails and failed downloads are of this size. Delete them if they show nothing.",
    )  # fmt: skip
    yield from _finding(
        scan, "enormous-picture", "warning", large, ("has", "have"),
        f"more than {options.large_pixels / 1e6:.0f} megapixels",
        "Shrink or tile them: decoding them will hold up training, and small objects vanish when they are resized.",
    )  # fmt: skip
    yield from _finding(
        scan, "size-outlier", "info", outlier, ("is", "are"),
        f"8 times smaller or larger than usual (short side, median {middle:.0f})",
        "Look whether they belong to the data.",
    )  # fmt: skip
    yield from _finding(
        scan, "odd-shape", "info", odd, ("is", "are"), f"more than {options.aspect:g} times as long as wide",
        "Resizing to a square distorts them and a center crop shows a small piece: pad or cut them.",
    )  # fmt: skip


def _finding(
    scan: Scan, code: str, level: Level, mask: NDArray[np.bool_], verbs: tuple[str, str], words: str, fix: str
) -> Iterator[Finding]:
    members = np.flatnonzero(mask)
    if len(members):
        names = scan.ids(members[: scan.options.listed])
        yield Finding(
            code,
            level,
            f"{of_all(len(members), len(scan), 'picture', *verbs)} {words}: {names_text(names)}.",
            tuple((name,) for name in names),
            fix,
            tuple(f"{h} x {w} (height x width)" for h, w in scan.facts.sizes[members[: scan.options.listed]].tolist()),
            {"count": len(members), "groups": len(members)},
        )
