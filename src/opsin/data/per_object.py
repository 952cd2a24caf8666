"""A data set of pictures with objects as one of objects: every sample is one object of a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opsin.data.columns import StringColumn
from opsin.data.dataset import Dataset
from opsin.data.objects import ObjectColumn

PICTURE = "picture"
"""Attribute of every sample that names the picture it is from."""


def per_object(dataset: Dataset, head: str, chosen: NDArray[np.bool_]) -> Dataset:
    """One sample per chosen object; its picture, its part of a given split and its attributes are those of the picture.

    Args:
        dataset: N pictures.
        head: of the objects.
        chosen: which of all objects, in the order of the column.

    Returns:
        Samples `PICTURE#k`, k being the object's position in its picture, each with that one object as its target, and the
        attribute `picture`.
    """
    column: ObjectColumn = dataset.targets[head]
    kept = np.flatnonzero(chosen)
    pictures = column.pictures[kept]
    view = dataset.select(pictures)
    names = list(view.ids)
    view.ids = StringColumn(f"{name}#{k}" for name, k in zip(names, (kept - column.starts[pictures]).tolist()))
    view.targets[head] = ObjectColumn(column.objects.take(kept), np.arange(len(kept) + 1))
    view.attributes[PICTURE] = StringColumn(names)
    return view
