"""Cells and numbers into targets: class positions, multi-hot rows or numbers, with missing ones kept as missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from opsin.data.columns import natural_key
from opsin.errors import DataError, unknown_name

MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", "?", "-"})
"""Cells (without case) that mean that a label is missing."""


@dataclass(frozen=True)
class PointSpec:
    """What the points of an object are.

    Args:
        names: of the K points, in order.
        swaps: (K,) where each point goes when the picture is mirrored; its own place where it has no twin.
        skeleton: pairs of positions that are joined by a line when drawn.
        sigmas: (K,) spread of annotators as a share of the object's size, for OKS; empty where unknown.
    """

    names: tuple[str, ...]
    swaps: tuple[int, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()


@dataclass(frozen=True)
class HeadSpec:
    """One question about a picture: exactly one class, any number of classes, a number (then no class names), or the
    objects in it (boxes with classes, with points if `points` is given).

    `class_ids` (K,) are the numbers that the classes have in the files they come from (COCO), empty where there are none;
    they change nothing but what is written, so heads that differ in them are equal.
    """

    name: str
    kind: Literal["single", "multi", "regression", "objects"]
    class_names: tuple[str, ...] = ()
    points: PointSpec | None = None
    class_ids: tuple[int, ...] = field(default=(), compare=False)

    def __repr__(self) -> str:
        own = f"name={self.name!r}, kind={self.kind!r}, class_names={self.class_names!r}"
        return f"HeadSpec({own})" if self.points is None else f"HeadSpec({own}, points={self.points.names!r})"


def count_classes(head: HeadSpec, values: Any) -> NDArray[np.int64]:
    """Samples (of objects: objects) of each class, (K,); values are a head's targets. Empty for a number."""
    if head.kind == "regression":
        return np.zeros(0, np.int64)
    if head.kind == "multi":
        return np.asarray(np.nansum(values, axis=0), np.int64)
    labels = values.objects.labels if head.kind == "objects" else values
    return np.bincount(labels[labels >= 0], minlength=len(head.class_names)).astype(np.int64)


def single_head(
    name: str, cells: Sequence[str], class_names: Sequence[str] | None, where: Sequence[str] | str
) -> tuple[HeadSpec, NDArray[np.int64]]:
    """Exclusive classes from words; "" is a missing label (-1). Classes are in natural order unless given.

    Raises:
        DataError: if a word is not among the given class names; the message names where.
    """
    names = tuple(class_names) if class_names is not None else tuple(sorted({c for c in cells if c}, key=natural_key))
    place = {word: k for k, word in enumerate(names)}
    values = np.fromiter((place.get(c, -2) if c else -1 for c in cells), np.int64, len(cells))
    if len(bad := np.flatnonzero(values == -2)):
        at = where if isinstance(where, str) else where[bad[0]]
        raise DataError(
            f"{at}: {unknown_name('class', cells[bad[0]], names)} {len(bad)} label(s) are not among the class names."
        )
    return HeadSpec(name, "single", names), values


def multi_head(
    name: str, cells: Sequence[Sequence[str] | None], class_names: Sequence[str] | None = None
) -> tuple[HeadSpec, NDArray[np.float32]]:
    """Any number of classes from lists of words; None is a missing label (a row of nan), [] says that none applies."""
    words = {word for cell in cells if cell for word in cell}
    names = tuple(class_names) if class_names is not None else tuple(sorted(words, key=natural_key))
    place = {word: k for k, word in enumerate(names)}
    values = np.zeros((len(cells), len(names)), np.float32)
    for i, cell in enumerate(cells):
        if cell is None:
            values[i] = np.nan
        for word in cell or ():
            if word not in place:
                raise DataError(f"Row {i}: {unknown_name('class', word, names)}")
            values[i, place[word]] = 1.0
    return HeadSpec(name, "multi", names), values


def head_from_values(
    name: str, labels: NDArray[Any] | Sequence[Any], class_names: Sequence[str] | None, where: str
) -> tuple[HeadSpec, NDArray[Any]]:
    """A head from labels in Python: numbers or words (N,), or multi-hot (N, K).

    Raises:
        DataError: if labels are of another shape or type, or outside the class names; the sample is named.
    """
    values = np.asarray(labels)
    if values.ndim == 2:
        names = tuple(class_names or map(str, range(values.shape[1])))
        multi = values.astype(np.float32)
        if len(names) != values.shape[1] or not np.isin(multi[~np.isnan(multi)], (0, 1)).all():
            raise DataError(
                f"{where}: labels of shape {values.shape} need {values.shape[1]} class names and only the values 0 "
                "and 1."
            )
        return HeadSpec(name, "multi", names), multi
    if values.ndim != 1:
        raise DataError(f"{where}: labels have shape {values.shape}. Expected (N,) or (N, K).")
    if values.dtype.kind in "US":
        return single_head(name, [str(v) for v in values], class_names, where)
    if values.dtype.kind == "f":
        return HeadSpec(name, "regression"), values.astype(np.float64)
    if values.dtype.kind not in "iub":
        raise DataError(f"{where}: labels are {values.dtype}. Expected whole numbers, words, or floats.")
    numbers = values.astype(np.int64)
    if class_names is None:
        present = sorted(set(numbers[numbers >= 0].tolist()))
        return single_head(name, ["" if v < 0 else str(v) for v in numbers.tolist()], [str(v) for v in present], where)
    if len(bad := np.flatnonzero((numbers >= len(class_names)) | (numbers < -1))):
        raise DataError(
            f"{where}#{bad[0]}: the label {numbers[bad[0]]} is outside 0..{len(class_names) - 1} ({len(class_names)} "
            "class names)."
        )
    return HeadSpec(name, "single", tuple(class_names)), numbers
