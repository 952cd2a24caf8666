"""Dealing samples out to parts: so many of each class as the shares say, chosen by hash keys, groups or time."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from opsin.errors import DataError
from opsin.seeding import key

if TYPE_CHECKING:
    from opsin.data.dataset import Dataset

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def id_keys(ids: Iterable[str], seed: int) -> NDArray[np.uint64]:
    """A 64-bit key for every id (N,), from the split seed and the id alone."""
    salt = key(seed, "split").to_bytes(8, "little")
    digests = b"".join(
        hashlib.blake2b(i.encode("utf-8", "surrogateescape"), digest_size=8, key=salt).digest() for i in ids
    )
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def strata_of(dataset: Dataset) -> Ints:
    """The class that each sample (N,) counts for when shares are kept.

    Of exclusive classes the class; of several labels, or of objects, the rarest one that is there; of numbers the tenth they fall into.
    Samples without a label are a stratum of their own. The first head decides.
    """
    if not dataset.heads:
        return np.zeros(len(dataset), np.int64)
    head = dataset.heads[0]
    values = dataset.targets[head.name]
    if head.kind == "single":
        return np.asarray(values + 1, np.int64)
    if head.kind in ("multi", "objects"):
        has = values.present(len(head.class_names)) if head.kind == "objects" else np.nan_to_num(values)
        known = np.asarray(has, np.float64)
        frequency = known.sum(axis=0)
        rarity = np.where(known > 0, frequency[None], np.inf)  # (N, K)
        rarest = np.argmin(rarity, axis=1) if known.shape[1] else np.zeros(len(values), np.int64)
        return np.where(known.any(axis=1), rarest + 1, 0).astype(np.int64)
    edges = np.nanquantile(values, np.linspace(0, 1, 11)[1:-1]) if (~np.isnan(values)).any() else np.zeros(0)
    return np.where(np.isnan(values), 0, np.searchsorted(edges, values) + 1).astype(np.int64)


def shares_of(counts: Ints, fractions: Floats, keep_first: bool = True) -> Ints:
    """How many of each class (S) go to each part (P): the largest-remainder rule, per class and over all classes.

    Every class gets the whole part of its share; what is left over goes to the parts that are furthest behind, counted
    over the classes before it, so that small classes do not all round the same way. A class with at least as many
    samples as there are parts gets one in each; with `keep_first`, a smaller class has at least one in the first part
    (train).

    Returns:
        (S, P) int64 whose rows add up to `counts`.
    """
    result = np.zeros((len(counts), len(fractions)), np.int64)
    behind = np.zeros(len(fractions))
    wanted = fractions > 0
    for s, count in enumerate(counts.tolist()):
        ideal = fractions * count
        row = np.floor(ideal + 1e-9).astype(np.int64)
        order = np.argsort(-np.where(wanted, ideal - row + behind, -np.inf), kind="stable")
        row[order[: count - int(row.sum())]] += 1
        if count >= int(wanted.sum()):
            for part in np.flatnonzero(wanted & (row == 0)):
                row[int(np.argmax(row))] -= 1
                row[part] += 1
        elif keep_first and count and row[0] == 0:
            row[int(np.argmax(row))] -= 1
            row[0] += 1
        behind += ideal - row
        result[s] = row
    return result


def deal(strata: Ints, keys: NDArray[np.uint64], fractions: Floats, keep_first: bool = True) -> NDArray[np.int8]:
    """Parts (N,) that keep the shares of every stratum exactly, by the order of keys.

    Within a stratum the last part takes the lowest keys, the first part the highest.
    """
    parts = np.zeros(len(strata), np.int8)
    present, codes = np.unique(strata, return_inverse=True)
    counts = shares_of(np.bincount(codes, minlength=len(present)), fractions, keep_first)
    order = np.lexsort((keys, codes))
    starts = np.searchsorted(codes[order], np.arange(len(present)))
    for s, start in enumerate(starts.tolist()):
        for part in range(len(fractions) - 1, -1, -1):
            parts[order[start : start + counts[s, part]]] = part
            start += int(counts[s, part])
    return parts


def deal_groups(
    groups: Ints,
    strata: Ints,
    keys: NDArray[np.uint64],
    fractions: Floats,
    standing: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:
    """Parts (N,) of whole groups, as close to the shares of every stratum as going through the groups once allows.

    The largest groups are dealt first. Each goes to a part that still has room for at least half of it, and among
    those to the one where it brings the counts of classes closest to what is wanted. Groups of equal size go in the
    order of the least key of their members. Groups that have a part already keep it and count for its share.

    Args:
        groups: (N,) group codes.
        strata: (N,) classes whose shares are kept.
        keys: (N,) keys of the samples.
        fractions: (P,) shares of the parts.
        standing: (N,) the part of samples that have one, -1 for the others; whole groups have one or none.

    Raises:
        DataError: if there are fewer groups than parts without any.
    """
    _, group_codes = np.unique(groups, return_inverse=True)
    present, strata_codes = np.unique(strata, return_inverse=True)
    number, wanted = int(group_codes.max()) + 1 if len(groups) else 0, np.flatnonzero(fractions > 0)
    fixed = np.full(len(groups), -1, np.int8) if standing is None else standing
    is_open = np.ones(number, bool)
    is_open[group_codes[fixed >= 0]] = False
    empty = ~np.isin(wanted, fixed)
    if is_open.sum() < empty.sum():
        raise DataError(
            f"There are {is_open.sum()} group(s) for {empty.sum()} parts, and groups are never torn apart. "
            f"Choose a finer --group, or add data from more groups."
        )
    table = np.zeros((number, len(present)))
    np.add.at(table, (group_codes, strata_codes), 1.0)
    least = np.full(number, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, group_codes, keys)
    scale = 1.0 / np.maximum(table.sum(axis=0), 1.0) ** 2  # every class weighs alike
    target = fractions[wanted, None] * table.sum(axis=0)  # (P, S)
    current, place = np.zeros_like(target), np.zeros(number, np.int8)
    for part, code in enumerate(wanted):
        current[part] = np.bincount(strata_codes[fixed == code], minlength=len(present))
    sizes = table.sum(axis=1)
    order = np.lexsort((least, -(table**2 * scale).sum(axis=1)))
    order = order[is_open[order]]
    for done, group in enumerate(order.tolist()):
        gap = target - current  # (P, S)
        room = gap.sum(axis=1)
        allowed = room >= sizes[group] / 2
        if not allowed.any():
            allowed = room == room.max()
        if len(order) - done <= int(empty.sum()):
            allowed = empty  # the last groups go to parts that have none yet
        change = (((gap - table[group]) ** 2 - gap**2) * scale).sum(axis=1)
        best = int(np.argmin(np.where(allowed, change, np.inf)))
        current[best] += table[group]
        empty[best] = False
        place[group] = wanted[best]
    return np.where(fixed >= 0, fixed, place[group_codes])


def deal_in_time(times: Floats, fractions: Floats, groups: Ints | None = None) -> NDArray[np.int8]:
    """Parts (N,) in the order of time: the oldest to the first part; samples of one moment (or group) stay together.

    Raises:
        DataError: if there are too few moments for the parts, or a group reaches over the border between two parts.
    """
    moment = times
    if groups is not None:
        _, codes = np.unique(groups, return_inverse=True)
        last = np.full(int(codes.max()) + 1, -np.inf)
        np.maximum.at(last, codes, times)
        moment = last[codes]
    levels, inverse, sizes = np.unique(moment, return_inverse=True, return_counts=True)
    wanted = np.flatnonzero(fractions > 0)
    if len(levels) < len(wanted):
        raise DataError(
            f"The samples are of {len(levels)} different time(s); {len(wanted)} parts in the order of time need at "
            "least as many."
        )
    ends = np.cumsum(sizes) / len(times)  # share of samples up to each level
    borders = [0]
    for k, share in enumerate(np.cumsum(fractions[wanted])[:-1].tolist()):
        nearest = int(np.argmin(np.abs(ends - share))) + 1
        borders.append(min(max(nearest, borders[-1] + 1), len(levels) - (len(wanted) - 1 - k)))
    borders.append(len(levels))
    part_of_level = np.zeros(len(levels), np.int8)
    for part, start, stop in zip(wanted.tolist(), borders, borders[1:]):
        part_of_level[start:stop] = part
    parts = part_of_level[inverse]
    for before, after in itertools.pairwise(wanted):
        if times[parts == before].max() >= times[parts == after].min():
            raise DataError(
                "A group reaches over the border in time between two parts. Choose a finer --group, or split without "
                "by=chronological."
            )
    return parts
