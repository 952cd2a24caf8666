"""Boxes and points as the checks look at them: flat columns over all objects of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.analyze.check.findings import CheckOptions, Finding, Level
from opsin.data.dataset import Dataset
from opsin.data.objects import ObjectColumn
from opsin.data.targets import HeadSpec

Floats = NDArray[np.float64]


class ObjectHead:
    """The M objects of one head.

    Args:
        dataset: N pictures.
        spec: the head.
        sizes: (N, 2) height and width of the pictures; 0 where unknown.
        options: of the check.
    """

    def __init__(self, dataset: Dataset, spec: HeadSpec, sizes: NDArray[np.int32], options: CheckOptions) -> None:
        self.dataset, self.spec, self.options = dataset, spec, options
        column: ObjectColumn = dataset.targets[spec.name]
        self.column = column
        self.pictures = column.pictures  # (M,)
        self.boxes = column.objects.boxes_xyxy  # (M, 4)
        self.labels = column.objects.labels  # (M,)
        self.room: Floats = sizes[self.pictures][:, ::-1].astype(np.float64)  # (M, 2) width and height of the picture
        self.known = (self.room > 0).all(1)  # (M,)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def sides(self) -> Floats:
        """Width and height, (M, 2)."""
        return np.asarray(self.boxes[:, 2:] - self.boxes[:, :2])

    @cached_property
    def positive(self) -> NDArray[np.bool_]:
        """Whether both sides are positive, (M,)."""
        return np.asarray((self.sides > 0).all(axis=1))

    @cached_property
    def beyond(self) -> Floats:
        """How far each box reaches out of its picture, in pixels, (M,); 0 where the size is unknown."""
        low, high = -self.boxes[:, :2], self.boxes[:, 2:] - self.room
        return np.where(self.known, np.maximum(low, high).max(1, initial=0.0), 0.0)

    def text(self, i: int) -> str:
        """The objects of picture i in words."""
        counts = np.bincount(self.column[i].labels, minlength=len(self.spec.class_names))
        order = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
        words = [f"{counts[k]} {self.spec.class_names[k]}" for k in order[:3]]
        return ", ".join(words) + (", ..." if len(order) > 3 else "") if words else "no object"

    def finding(
        self,
        code: str,
        level: Level,
        text: str,
        fix: str,
        chosen: NDArray[np.int64],
        severity: Floats,
        captions: Sequence[str],
        data: dict[str, Any] | None = None,
    ) -> Finding:
        """A finding on objects, as one group per picture, worst picture first, with the objects marked.

        Args:
            code, level, text, fix: of the finding; several heads are told apart in the text.
            chosen: positions of the objects, (n,).
            severity: of each, (n,); the largest is shown first.
            captions: a few words on each, n.
            data: further numbers.
        """
        order = np.argsort(-severity, kind="stable")
        groups: dict[int, list[int]] = {}
        for k in order.tolist():
            groups.setdefault(int(self.pictures[chosen[k]]), []).append(k)
        listed = list(groups.items())[: self.options.listed]
        where = f"'{self.spec.name}': " if len(self.dataset.heads) > 1 else ""
        return Finding(
            code,
            level,
            where + text,
            tuple((self.dataset.id(i),) for i, _ in listed),
            fix,
            tuple(
                captions[members[0]] + (f" and {len(members) - 1} more" if len(members) > 1 else "")
                for _, members in listed
            ),
            {"head": self.spec.name, "count": len(chosen), "groups": len(groups), **(data or {})},
            tuple(tuple(int(chosen[k] - self.column.starts[i]) for k in members) for i, members in listed),
        )

    def name(self, k: int | np.integer) -> str:
        """Class of object k."""
        return str(self.spec.class_names[self.labels[k]])
