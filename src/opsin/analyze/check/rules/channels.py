"""Grey, color, transparent and deep pictures in one data set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opsin.analyze.check.findings import Finding, Level, of_all
from opsin.analyze.check.scan import Scan

NAMES = ("channels",)

_KINDS = {
    "1": "grey", "L": "grey", "I": "grey", "F": "grey", "LA": "grey with alpha", "La": "grey with alpha",
    "RGB": "color", "P": "color", "CMYK": "color", "YCbCr": "color", "LAB": "color", "HSV": "color",
    "RGBA": "color with alpha", "RGBa": "color with alpha", "PA": "color with alpha",
}  # fmt: skip


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `mixed-depth`, `mixed-channels` and `cmyk-picture`."""
    modes = scan.facts.modes
    kinds: dict[str, list[str]] = {}
    depths: dict[str, list[str]] = {}
    for mode in np.unique(modes[scan.facts.readable]).tolist():
        base = mode.split(";")[0]
        kinds.setdefault(_KINDS.get(base, base), []).append(mode)
        depth = "16 bits" if ";16" in mode else "32 bits" if mode in ("I", "F") else "8 bits"
        depths.setdefault(depth, []).append(mode)
    want = scan.dataset.spec
    read_as = f"All are read as {want.channels} channel(s) of {want.dtype}."
    yield from _mixed(
        scan, "mixed-depth", "warning", depths,
        f"{read_as} A class that comes from one camera alone can be told by its depth.",
        "Convert all pictures to one depth, on purpose: the training set and the pictures to predict must agree.",
    )  # fmt: skip
    yield from _mixed(
        scan, "mixed-channels", "info", kinds, read_as,
        "Nothing to do if that is meant; otherwise convert all pictures to one kind.",
    )  # fmt: skip
    inks = np.flatnonzero(modes == "CMYK")
    if len(inks):
        names = scan.ids(inks[: scan.options.listed])
        yield Finding(
            "cmyk-picture",
            "warning",
            f"{of_all(len(inks), len(scan), 'picture', 'is', 'are')} in CMYK. Read as RGB, their colors shift.",
            tuple((name,) for name in names),
            "Save them again as sRGB.",
            data={"count": len(inks), "groups": len(inks)},
        )


def _mixed(
    scan: Scan, code: str, level: Level, found: dict[str, list[str]], effect: str, fix: str
) -> Iterator[Finding]:
    if len(found) < 2:
        return
    members = {
        what: np.flatnonzero(np.isin(scan.facts.modes, modes) & scan.facts.readable) for what, modes in found.items()
    }
    counts = {what: len(rows) for what, rows in sorted(members.items(), key=lambda pair: -len(pair[1]))}
    common = next(iter(counts))
    rare = [(int(i), what) for what, rows in members.items() if what != common for i in rows][: scan.options.listed]
    yield Finding(
        code,
        level,
        f"Pictures differ in kind: {', '.join(f'{n:,} {what}' for what, n in counts.items())}. {effect}",
        tuple((scan.dataset.id(i),) for i, _ in rare),
        fix,
        tuple(what for _, what in rare),
        {"counts": counts, "groups": len(scan) - counts[common]},
    )
