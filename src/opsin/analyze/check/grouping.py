"""Clusters of samples, and the `--group` that would keep each of them in one part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from opsin.data.dataset import Dataset
from opsin.errors import OpsinError

Codes = NDArray[np.int64]

_PATTERNS = (
    r"regex:^(.*)[_\-. ][^_\-. /]*$",  # all but the last word of the name: person_7_frame_003 -> person_7_frame
    r"regex:([^/_\-. ]+)[_\-. ][^/]*$",  # the first word of the file name: p07_left_2 -> p07
    r"regex:([^/_\-. ]+[_\-. ][^/_\-. ]+)[_\-. ][^/]*$",  # its first two words
    r"regex:([^/]*?)\d+[^/\d]*$",  # the file name up to its last number
    r"regex:(\d+)[^/]*$",  # the first number in the file name
    r"regex:([^/]+)\.[^/.]+$",  # the file name without its ending: the same name in two folders or formats
)
"""Candidates besides `parent` and the columns of the table."""


@dataclass(frozen=True)
class Proposal:
    """A group specification that explains clusters.

    Args:
        spec: what to pass to `--group`.
        explained: share of the clusters that would no longer be torn.
        groups: how many groups it makes.
    """

    spec: str
    explained: float
    groups: int


def components_of(codes: Codes) -> list[Codes]:
    """Members of every code that occurs at least twice (-1 is left out), largest first, then in order of members."""
    order = np.argsort(codes, kind="stable")
    order = order[codes[order] >= 0]
    if not len(order):
        return []
    cuts = np.flatnonzero(np.diff(codes[order])) + 1
    clusters = [part for part in np.split(order, cuts) if len(part) > 1]
    return sorted(clusters, key=lambda part: (-len(part), int(part[0])))


def join(codes: Codes, pairs: Codes) -> Codes:
    """Codes (N,) after joining the clusters of each pair (M, 2) of samples; -1 stays -1."""
    if not len(pairs):
        return codes
    nodes = int(codes.max()) + 1
    left, right = codes[pairs[:, 0]], codes[pairs[:, 1]]
    graph = coo_array((np.ones(len(left), np.bool_), (left, right)), shape=(nodes, nodes))
    merged = connected_components(graph, directed=False)[1].astype(np.int64)
    return np.where(codes >= 0, merged[np.maximum(codes, 0)], -1)


def propose(dataset: Dataset, clusters: Sequence[Codes], times: bool = False) -> Proposal | None:
    """The `--group` that keeps most clusters whole, if one explains at least nine in ten.

    Every column of the table, the folder and some patterns of file names are tried. A grouping counts only if it
    leaves something to divide (at least 10 groups, none with more than a third of the samples, and 3 in the typical
    class: folders that are the classes do not help) and if its fit is no accident: two samples taken at random share
    a group in less than one case in ten. With `times`, photographs taken within minutes are tried too.
    """
    if not clusters:
        return None
    best: Proposal | None = None
    columns = [name for name in (*dataset.attributes, *dataset.targets) if name not in {"image", "path"}]
    for spec in ("parent", *columns, *_PATTERNS, *(("time:1min", "time:10min") if times else ())):
        try:
            groups = dataset.groups(spec)
        except (OpsinError, re.error):
            continue
        sizes = np.bincount(groups)
        shares = sizes / len(groups)
        if (
            len(sizes) < 10
            or shares.max() > 1 / 3
            or float((shares**2).sum()) > 0.1
            or not _divides_classes(dataset, groups)
        ):
            continue
        explained = sum(len(np.unique(groups[cluster])) == 1 for cluster in clusters) / len(clusters)
        if explained >= 0.9 and (best is None or (explained, len(sizes)) > (best.explained, best.groups)):
            best = Proposal(spec, explained, len(sizes))
    return best


def _divides_classes(dataset: Dataset, groups: Codes) -> bool:
    """Whether the typical class (of a given part) has at least three groups, so that each part can get one."""
    for head in dataset.heads:
        if head.kind == "single":
            labels = dataset.targets[head.name]
            cells = labels * 4 + dataset.given_split
            met = np.unique(np.stack([cells, groups])[:, labels >= 0], axis=1)[0]
            if len(met) and np.median(np.unique(met, return_counts=True)[1]) < 3:
                return False
    return True


def how_to_group(
    dataset: Dataset, clusters: Sequence[Codes], otherwise: str, times: bool
) -> tuple[str, dict[str, object]]:
    """The sentence that proposes a `--group`, or `otherwise`, and the same for machines."""
    found = propose(dataset, clusters, times)
    if found is None:
        return otherwise, {}
    flag = found.spec if re.fullmatch(r"[\w./:]+", found.spec) else f"'{found.spec}'"
    text = (
        f"Split with --group {flag}: {found.groups:,} groups that keep {found.explained:.0%} of these clusters whole."
    )
    return text, {"group": found.spec, "explained": round(found.explained, 4)}
