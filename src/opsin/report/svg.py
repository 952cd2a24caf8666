"""Small charts as inline SVG: lines with axes, and bars and intervals that stretch with the page.

Colors come from the page's style sheet by class, so that one drawing serves light, dark and print. All words
are escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from opsin.report.content import Line

WIDTH, HEIGHT = 400, 264
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 14, 40
TICKS = 5
Array = NDArray[np.float64]


def clean(value: object) -> str:
    """Text as HTML: escaped, without control characters or halves of surrogate pairs."""
    text = str(value).encode("utf-8", "replace").decode()
    text = "".join(
        c if c in "\t\n" or (ord(c) >= 32 and not 127 <= ord(c) < 160) else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return html.escape(text)


def nice_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten) that lie in a range."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= rough * 0.999), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in a range, thinned to about six."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / 6))
    return [10.0**k for k in range(first, last + 1, stride)]


def short(value: float) -> str:
    """A tick's number in few signs."""
    if value != 0 and not 1e-4 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}"


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_title: str,
    y_title: str = "",
    log: bool = False,
    diagonal: bool = False,
    mark: tuple[float, str] | None = None,
    unit_square: bool = False,
) -> str:
    """Lines over a grid; nan breaks a line.

    Args:
        lines: drawn in order, in the colors `line-0`, `line-1`, ... of the style sheet.
        title: what a screen reader says first; the values at both ends of each line follow.
        log: logarithmic y axis (all values positive).
        diagonal: draw the line from corner to corner.
        mark: x and words of a vertical line.
        unit_square: both axes from 0 to 1.
    """
    x_low, x_high, y_low, y_high = _ranges(lines, log, unit_square, mark)
    y_scale: Callable[[float], float] = math.log10 if log else float
    bottom, top = y_scale(y_low), y_scale(y_high)

    def px(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y_scale(y) - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    parts = _axes(x_low, x_high, y_low, y_high, log, px, py, x_title, y_title)
    if diagonal:
        parts.append(
            f"<line class='diagonal' x1='{px(x_low):.1f}' y1='{py(y_low):.1f}' "
            f"x2='{px(x_high):.1f}' y2='{py(y_high):.1f}'/>"
        )
    if mark is not None:
        at, right = px(mark[0]), mark[0] > (x_low + x_high) / 2
        side = f"text-anchor='end' x='{at - 5:.1f}'" if right else f"x='{at + 5:.1f}'"
        parts.append(f"<line class='mark' x1='{at:.1f}' x2='{at:.1f}' y1='{TOP}' y2='{HEIGHT - BOTTOM}'/>")
        parts.append(f"<text class='marked' {side} y='{HEIGHT - BOTTOM - 8}'>{clean(mark[1])}</text>")
    for color, line in zip(_colors(lines), lines):
        parts += _line(line, color, px, py, log)
    label = clean(". ".join([title, *(_spoken(line, x_title) for line in lines)]))
    start = f"<svg class='chart' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{label}'>"
    return f"{start}{''.join(parts)}</svg>{_legend(lines)}"


def _colors(lines: Sequence[Line]) -> list[int]:
    """One color per line; a faint one has the color of the line that it lies behind."""
    colors, used = [], 0
    for line in lines:
        colors.append(used % 6)
        used += not line.faint
    return colors


def _ranges(
    lines: Sequence[Line], log: bool, unit_square: bool, mark: tuple[float, str] | None
) -> tuple[float, float, float, float]:
    if unit_square:
        return 0.0, 1.0, 0.0, 1.0
    xs = np.concatenate([line.x for line in lines] + [np.array([mark[0]] if mark else [])])
    ys = np.concatenate([line.y for line in lines])
    ys = ys[np.isfinite(ys) & ((ys > 0) | (not log))]
    if not len(ys):
        ys = np.array([0.1, 1.0])
    x_low, x_high = (float(xs.min()), float(xs.max())) if len(xs) else (0.0, 1.0)
    x_low = min(x_low, 0.0)
    y_low, y_high = float(ys.min()), float(ys.max())
    if log:
        y_low, y_high = y_low / 1.3, y_high * 1.3
    else:
        pad = 0.06 * (y_high - y_low) or 0.05 * abs(y_high) or 0.05
        y_low = 0.0 if 0 <= y_low <= 0.35 * y_high else y_low - pad
        y_high = min(y_high + pad, 1.0) if 0.9 < y_high <= 1.0 else y_high + pad
    return x_low, x_high if x_high > x_low else x_low + 1.0, y_low, y_high if y_high > y_low else y_low + 1.0


def _axes(
    x_low: float, x_high: float, y_low: float, y_high: float, log: bool,
    px: Callable[[float], float], py: Callable[[float], float], x_title: str, y_title: str,
) -> list[str]:  # fmt: skip
    parts = []
    for tick in log_ticks(y_low, y_high) if log else nice_ticks(y_low, y_high):
        parts.append(f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{py(tick):.1f}' y2='{py(tick):.1f}'/>")
        parts.append(f"<text class='tick' text-anchor='end' x='{LEFT - 7}' y='{py(tick) + 4:.1f}'>{short(tick)}</text>")
    for tick in nice_ticks(x_low, x_high, 6):
        parts.append(
            f"<text class='tick' text-anchor='middle' x='{px(tick):.1f}' y='{HEIGHT - BOTTOM + 17}'>"
            f"{short(tick)}</text>"
        )
    parts.append(f"<line class='axis' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{HEIGHT - BOTTOM}' y2='{HEIGHT - BOTTOM}'/>")
    parts.append(f"<text class='title' text-anchor='end' x='{WIDTH - RIGHT}' y='{HEIGHT - 6}'>{clean(x_title)}</text>")
    if y_title:
        middle = (TOP + HEIGHT - BOTTOM) / 2
        parts.append(
            f"<text class='title' text-anchor='middle' transform='translate(12 {middle:.0f}) rotate(-90)'>"
            f"{clean(y_title)}</text>"
        )
    return parts


def _line(line: Line, color: int, px: Callable[[float], float], py: Callable[[float], float], log: bool) -> list[str]:
    kind = f"line line-{color}{' faint' if line.faint else ''}"
    pieces: list[list[str]] = [[]]
    for x, y in zip(line.x.tolist(), line.y.tolist()):
        if not math.isfinite(y) or (log and y <= 0):
            pieces.append([])
        else:
            pieces[-1].append(f"{px(x):.1f},{py(y):.1f}")
    drawn = [f"<polyline class='{kind}' points='{' '.join(piece)}'/>" for piece in pieces if len(piece) > 1]
    alone = [point for piece in pieces for point in piece if line.dots or len(piece) == 1]
    for point in alone:
        x, _, y = point.partition(",")
        drawn.append(f"<circle class='dot line-{color}' cx='{x}' cy='{y}' r='3'/>")
    return drawn


def _spoken(line: Line, x_title: str) -> str:
    finite = np.flatnonzero(np.isfinite(line.y))
    if not len(finite):
        return f"{line.name}: no values"
    first, last = finite[0], finite[-1]
    ends = (f"{line.y[i]:.4g} at {x_title} {line.x[i]:.4g}" for i in (first, last))
    return f"{line.name}: {', '.join(ends)}"


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    keys = "".join(
        f"<span class='key line-{color}{' faint' if line.faint else ''}'>{clean(line.name)}</span>"
        for color, line in zip(_colors(lines), lines)
    )
    return f"<p class='keys' aria-hidden='true'>{keys}</p>"


def interval_bar(
    value: float, low: float | None, high: float | None, least: float, most: float, *, strong: bool = False
) -> str:
    """A value with its interval, as wide as its cell."""
    span = (most - least) or 1.0

    def place(v: float) -> str:
        return f"{1.5 + 97 * min(max((v - least) / span, 0.0), 1.0):.2f}%"

    parts = ["<line class='rail' x1='1.5%' x2='98.5%' y1='12' y2='12'/>"]
    if low is not None and high is not None:
        parts.append(f"<line class='range' x1='{place(low)}' x2='{place(high)}' y1='12' y2='12'/>")
    parts.append(f"<line class='point' x1='{place(value)}' x2='{place(value)}' y1='4' y2='20'/>")
    kind = "interval strong" if strong else "interval"
    return f"<svg class='{kind}' width='100%' height='24' aria-hidden='true'>{''.join(parts)}</svg>"


def stacked_bar(counts: Sequence[int], kinds: Sequence[str], most: int) -> str:
    """Parts of a count side by side, as wide as its cell."""
    x, parts = 0.0, []
    for count, kind in zip(counts, kinds):
        width = 100 * count / max(most, 1)
        if count > 0:
            parts.append(f"<rect class='{kind}' x='{x:.3f}%' width='{width:.3f}%' y='3' height='12'/>")
        x += width
    return f"<svg class='stack' width='100%' height='18' aria-hidden='true'>{''.join(parts)}</svg>"
