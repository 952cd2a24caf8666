"""Data sets from what a program already has: arrays in memory, or a list of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.data.columns import StringColumn, normalized
from opsin.data.dataset import Dataset
from opsin.data.places import FolderPlace
from opsin.data.sources import ArraySource, FileSource
from opsin.data.targets import HeadSpec, head_from_values
from opsin.errors import DataError


def from_arrays(
    images: NDArray[Any],
    labels: NDArray[Any] | Sequence[Any] | None = None,
    class_names: Sequence[str] | None = None,
    *,
    layout: str | None = None,
    name: str = "arrays",
    given_split: NDArray[np.int8] | None = None,
) -> Dataset:
    """A data set from arrays in memory.

    Args:
        images: uint8, uint16 or float32, laid out as `layout`.
        labels: (N,) class positions, (N,) class names, (N, K) of 0 and 1, or (N,) floats to be predicted.
        class_names: K names; by default the numbers or words that occur, in natural order.
        layout: "NHW", "NHWC" or "NCHW"; may be left out where only one fits.

    Raises:
        DataError: if shapes, types or labels do not fit; a label outside the class names is named with its sample.
    """
    array = _channels_first(np.asarray(images), layout)
    ids = StringColumn(f"{name}#{i}" for i in range(len(array)))
    heads: tuple[HeadSpec, ...] = ()
    targets: dict[str, NDArray[Any]] = {}
    if labels is not None:
        head, values = head_from_values("label", labels, class_names, name)
        heads, targets = (head,), {"label": values}
    return Dataset(name, ids, ArraySource(array), heads=heads, targets=targets, given_split=given_split)


def _channels_first(images: NDArray[Any], layout: str | None) -> NDArray[Any]:
    if images.dtype.name == "float64":
        raise DataError("The images are float64. Give uint8, uint16 or float32, e.g. images.astype('float32').")
    if images.dtype.name not in ("uint8", "uint16", "float32"):
        raise DataError(f"The images are {images.dtype}. Expected uint8, uint16 or float32.")
    if layout is None:
        if images.ndim == 3:
            layout = "NHW"
        elif images.ndim == 4 and (images.shape[1] in (1, 2, 3, 4)) != (images.shape[3] in (1, 2, 3, 4)):
            layout = "NCHW" if images.shape[1] in (1, 2, 3, 4) else "NHWC"
    if layout not in ("NHW", "NHWC", "NCHW") or images.ndim != len(layout):
        raise DataError(f"Images of shape {images.shape}: say layout='NHW', 'NHWC' or 'NCHW'.")
    if layout == "NHW":
        return images[:, None]  # (N, H, W) -> (N, 1, H, W)
    return images if layout == "NCHW" else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def from_files(
    paths: Sequence[str | Path],
    labels: Sequence[Any] | None = None,
    class_names: Sequence[str] | None = None,
    *,
    root: str | Path = ".",
    name: str = "files",
) -> Dataset:
    """A data set from picture files: `paths` relative to `root` (they become the ids) or below it.

    Raises:
        DataError: if a file lies outside `root`, or labels do not fit.
    """
    base = Path(root)
    try:
        names = [(Path(p).relative_to(base) if Path(p).is_absolute() else Path(p)).as_posix() for p in paths]
    except ValueError as error:
        raise DataError(f"{error}. Give root=, a folder that holds all the files.") from error
    heads: tuple[HeadSpec, ...] = ()
    targets: dict[str, NDArray[Any]] = {}
    if labels is not None:
        head, values = head_from_values("label", labels, class_names, name)
        heads, targets = (head,), {"label": values}
    source = FileSource(FolderPlace(base), StringColumn(names))
    return Dataset(
        name, (normalized(n) for n in names), source, format="files", root=str(base), heads=heads, targets=targets
    )
