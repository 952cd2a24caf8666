"""Sections: what a task wants shown in a report, said without drawing it.

A task returns sections; `report` draws them. So a new task needs no change in the report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Table:
    """A table: `columns` are the headings, every row has as many cells (str, int, float or None)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Matrix:
    """A matrix with named rows and columns, drawn as a heat map; `values` is (len(rows), len(columns))."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: NDArray[np.float64]
    row_title: str = ""
    column_title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Lines in one plot: name to (x, y), each (P,); `diagonal` draws the line of chance or of perfect calibration."""

    title: str
    x_title: str
    y_title: str
    lines: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    diagonal: bool = False
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """One picture of the data by its sample id, with the words to print below it.

    `box` (x1, y1, x2, y2), in pixels of the original, is what it is shown for, if that is a part of it only.
    """

    id: str
    caption: str
    detail: str = ""
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Mark:
    """What is drawn over a picture, in pixels of the original.

    Args:
        box: (x1, y1, x2, y2).
        points: each (x, y).
        joined: pairs of positions in `points` with a line between them.
        true: whether it is a label; else it was found.
        color: of what was found, e.g. the number of its class.
    """

    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    joined: tuple[tuple[int, int], ...] = ()
    true: bool = False
    color: int = 0


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side, e.g. the worst errors."""

    title: str
    pictures: tuple[Picture, ...]
    note: str = ""


@dataclass(frozen=True)
class Note:
    """A warning or remark in plain words; `level` is "info", "warning" or "error", `code` is stable for machines."""

    code: str
    text: str
    level: str = "warning"
    data: dict[str, Any] = field(default_factory=dict)


Section = Table | Matrix | Curve | Gallery | Note
