"""Boxes and points of a data set as one column: ragged over pictures, flat in memory.

A picture's objects are an `Objects`; a data set's target column is an `ObjectColumn`, which is indexed and selected like an
array whose rows are `Objects`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import overload

import numpy as np
from numpy.typing import NDArray

from opsin.errors import ShapeError

ROUNDING = 0.01  # pixels: boxes and points that differ by less are the same in a fingerprint
OFFSET = 0.3183  # keeps decimals, as files hold them, away from the edges of rounding, where a last bit would decide


@dataclass(frozen=True, eq=False)
class Objects:
    """The M objects of one picture, in continuous coordinates: the left edge of pixel i is i, its right edge i + 1.

    Args:
        boxes_xyxy: (M, 4) float64, absolute pixels of the picture as read.
        labels: (M,) int64, positions in the head's class names.
        crowd: (M,) bool; regions with uncountable objects, which neither count nor punish (COCO's `iscrowd`).
        difficult: (M,) bool; left out of VOC's metrics.
        area: (M,) float64, what sizes are judged by; nan where it is the box's (COCO: of the segment).
        points: (M, K, 3) float64 of x, y and visibility (0 not labeled, 1 hidden, 2 visible); K = 0 without points.

    Raises:
        ShapeError: if shapes do not fit.
    """

    boxes_xyxy: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    area: NDArray[np.float64]
    points: NDArray[np.float64]

    def __post_init__(self) -> None:
        m = len(self.labels)
        shapes = {f.name: getattr(self, f.name).shape for f in fields(self)}
        right = shapes["boxes_xyxy"] == (m, 4) and len(shapes["points"]) == 3 and shapes["points"][::2] == (m, 3)
        if not right or any(shapes[name] != (m,) for name in ("labels", "crowd", "difficult", "area")):
            raise ShapeError(
                f"Objects of one picture need boxes (M, 4), points (M, K, 3) and M of all else; got {shapes}."
            )

    @classmethod
    def of(
        cls,
        boxes_xyxy: Sequence[Sequence[float]] | NDArray[np.floating] = (),
        labels: Sequence[int] | NDArray[np.integer] = (),
        *,
        crowd: Sequence[bool] | NDArray[np.bool_] | None = None,
        difficult: Sequence[bool] | NDArray[np.bool_] | None = None,
        area: Sequence[float] | NDArray[np.floating] | None = None,
        points: NDArray[np.floating] | None = None,
        num_points: int = 0,
    ) -> Objects:
        """Objects from whatever is at hand; what is left out is no crowd, not difficult, of its box's area, without points."""
        classes = np.asarray(labels, np.int64).reshape(-1)
        m = len(classes)
        return cls(
            np.asarray(boxes_xyxy, np.float64).reshape(m, 4),
            classes,
            np.zeros(m, np.bool_) if crowd is None else np.asarray(crowd, np.bool_),
            np.zeros(m, np.bool_) if difficult is None else np.asarray(difficult, np.bool_),
            np.full(m, np.nan) if area is None else np.asarray(area, np.float64),
            np.zeros((m, num_points, 3)) if points is None else np.asarray(points, np.float64),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: NDArray[np.integer] | NDArray[np.bool_]) -> Objects:
        """The objects at positions, or where a mask (M,) is true."""
        return Objects(**{f.name: getattr(self, f.name)[which] for f in fields(self)})

    def copy(self) -> Objects:
        """The same with arrays of its own."""
        return Objects(**{f.name: getattr(self, f.name).copy() for f in fields(self)})

    def tobytes(self) -> bytes:
        """What counts in a fingerprint: all but the area, in pixels rounded to 0.01, in an order of its own."""
        if not len(self):
            return b""
        boxes, points = (np.rint(values / ROUNDING + OFFSET) for values in (self.boxes_xyxy, self.points))
        parts = (self.labels, self.crowd, self.difficult, boxes, points)
        table = np.concatenate([part.reshape(len(self), -1).astype(np.int64) for part in parts], axis=1)
        return table[np.lexsort(table.T[::-1])].tobytes()


class ObjectColumn:
    """The objects of N pictures; `column[i]` is picture i's `Objects`, `column[array]` a column of the chosen ones.

    Args:
        objects: all objects, picture after picture.
        starts: (N + 1,) int64; picture i has the objects from `starts[i]` to `starts[i + 1]`.
    """

    ndim = 2  # a row is no single number

    def __init__(self, objects: Objects, starts: NDArray[np.int64]) -> None:
        self.objects, self.starts = objects, np.asarray(starts, np.int64)

    @classmethod
    def collect(cls, pictures: Iterable[Objects], num_points: int = 0) -> ObjectColumn:
        """One column of all pictures' objects; `num_points` counts only if there is no picture at all."""
        every = list(pictures)
        starts = np.concatenate([[0], np.cumsum([len(one) for one in every], dtype=np.int64)])
        if not every:
            return cls(Objects.of(num_points=num_points), starts)
        joined = {f.name: np.concatenate([getattr(one, f.name) for one in every]) for f in fields(Objects)}
        return cls(Objects(**joined), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[Objects]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, which: int | np.integer) -> Objects: ...
    @overload
    def __getitem__(self, which: NDArray[np.integer] | NDArray[np.bool_]) -> ObjectColumn: ...
    def __getitem__(self, which: int | np.integer | NDArray[np.integer] | NDArray[np.bool_]) -> Objects | ObjectColumn:
        if isinstance(which, int | np.integer):
            i = int(which) % len(self)
            return self.objects.take(np.arange(self.starts[i], self.starts[i + 1]))
        chosen = np.flatnonzero(which) if which.dtype == np.bool_ else which
        counts = self.counts[chosen]
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        shift = np.repeat(self.starts[chosen] - starts[:-1], counts)
        return ObjectColumn(self.objects.take(np.arange(starts[-1]) + shift), starts)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Objects per picture, (N,)."""
        return np.diff(self.starts)

    @property
    def pictures(self) -> NDArray[np.int64]:
        """The picture of every object, (sum of M,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    def present(self, num_classes: int) -> NDArray[np.bool_]:
        """Whether picture i has an object of class k, (N, K)."""
        found = np.zeros((len(self), num_classes), np.bool_)
        found[self.pictures, self.objects.labels] = True
        return found
