"""What a report says, without drawing it: `html` and `markdown` draw the same `Page`.

The blocks are the sections that tasks return (`opsin.results.section`) and a few more that only a report needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opsin.results.section import Section


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values, e.g. of the model card; values are printed as they stand."""

    title: str
    pairs: tuple[tuple[str, str], ...]
    note: str = ""


@dataclass(frozen=True)
class Commands:
    """Lines to type into a terminal."""

    title: str
    lines: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One line of a chart; `faint` for the noisy measurements behind a smoother one, `dots` to mark its points."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over training; `mark` is a vertical line at x with its words."""

    title: str
    x_title: str
    lines: tuple[Line, ...]
    log: bool = False
    mark: tuple[float, str] | None = None
    note: str = ""


@dataclass(frozen=True)
class Interval:
    """A named value with its interval; `strong` for the one the others are compared with."""

    name: str
    value: float
    low: float | None
    high: float | None
    strong: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Intervals:
    """Values with intervals on one axis from `least` to `most`."""

    title: str
    rows: tuple[Interval, ...]
    least: float
    most: float
    shares: bool
    detail_title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Counts:
    """Pictures per class and part, drawn as bars."""

    title: str
    parts: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    note: str = ""


Block = Section | Text | Facts | Commands | Chart | Intervals | Counts


@dataclass(frozen=True)
class Chapter:
    """Blocks under one heading; `anchor` is its address within the page."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Headline:
    """The number at the top: as printed, what it is of; value and interval to be drawn when it is a share."""

    number: str
    label: str
    share: tuple[float, float, float] | None = None  # value, low, high
    remark: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report: the verdict, tiles of single facts, chapters, and a last line."""

    title: str
    subtitle: str
    verdict: str
    sentences: tuple[str, ...]
    headline: Headline | None
    tiles: tuple[tuple[str, str], ...]
    chapters: tuple[Chapter, ...]
    footer: str
