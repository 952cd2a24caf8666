"""The same picture more than once: within a part, and in several parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from opsin.analyze.check.findings import Finding, counted, verb
from opsin.analyze.check.grouping import how_to_group
from opsin.analyze.check.scan import Scan
from opsin.data.dataset import PARTS

NAMES = ("copies",)


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `exact-duplicate-across-splits` and `exact-duplicate`."""
    across = [c for c in scan.exact_clusters if len(parts_of(scan, c)) > 1]
    within = [c for c in scan.exact_clusters if len(parts_of(scan, c)) <= 1]
    if across:
        text = (
            f"{counted(len(across), 'picture')} {verb(len(across), 'lies', 'lie')} in more than one part, as identical "
            f"copies: {leaked_text(scan, across)}. A model knows them by heart, so its scores there are too good."
        )
        fix, data = how_to_mend(scan, across, "Delete the copies outside the test part; --json lists all ids.")
        yield cluster_finding(scan, "exact-duplicate-across-splits", "error", text, across, fix, data)
    if within:
        extra = sum(len(c) - 1 for c in within)
        text = (
            f"{counted(len(within), 'picture')} {verb(len(within), 'occurs', 'occur')} several times "
            f"({counted(extra, 'extra copy', 'extra copies')}, {extra / max(len(scan), 1):.1%} of the data), "
            "with the same bytes or pixels"
        )
        text += (
            ". They weigh more than others." if scan.split_known else ". A random split would put them on both sides."
        )
        fix, data = how_to_mend(scan, within, "Keep one of each; --json lists all ids.")
        yield cluster_finding(scan, "exact-duplicate", "warning", text, within, fix, data)


def how_to_mend(scan: Scan, clusters: Sequence[NDArray[np.int64]], otherwise: str) -> tuple[str, dict[str, object]]:
    """The `--group` that keeps clusters whole, where opsin makes the split; else what to do by hand."""
    if (scan.dataset.given_split >= 0).all():
        return otherwise, {}
    return how_to_group(scan.dataset, clusters, otherwise, scan.times_known)


def parts_of(scan: Scan, cluster: NDArray[np.int64]) -> set[int]:
    """Parts that the members of a cluster lie in (samples in no part left out)."""
    return {part for part in scan.parts[cluster].tolist() if part >= 0}


def leaked_text(scan: Scan, clusters: Sequence[NDArray[np.int64]]) -> str:
    """How many pictures of a part come again in train, or in another part."""
    words = []
    for part, other in ((2, 0), (1, 0), (2, 1)):
        members = [scan.parts[c] for c in clusters]
        hit = sum(int((p == part).sum()) for p in members if (p == other).any())
        if hit:
            whole = int((scan.parts == part).sum())
            words.append(f"{hit:,} of {whole:,} {PARTS[part]} pictures ({hit / whole:.1%}) are also in {PARTS[other]}")
    return ", ".join(words)


def cluster_finding(
    scan: Scan,
    code: str,
    level: str,
    text: str,
    clusters: Sequence[NDArray[np.int64]],
    fix: str,
    data: dict[str, object],
) -> Finding:
    """A finding over clusters of samples, with the labels and parts of their members as captions."""
    listed = [c[:12] for c in clusters[: scan.options.listed]]
    return Finding(
        code,
        level,  # type: ignore[arg-type]
        text,
        tuple(scan.ids(c) for c in listed),
        fix,
        tuple(" | ".join(scan.caption(int(i)) for i in c) for c in listed),
        {"count": sum(len(c) for c in clusters), "groups": len(clusters), **data},
    )
