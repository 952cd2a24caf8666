"""Marks over a picture: what was found in colors, what is labeled in white dashes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw

from opsin.results.section import Mark

LEGEND = "Colored lines are what the model found, white dashes what is labeled."
SIDE = (192, 384)  # pixels between which the longer side of a marked picture lies
AROUND = 1.0  # of the longer side of a box that a gallery points at, shown on each side of it
LEAST = 48  # pixels of the original that are shown at least
# Okabe and Ito 2008, without those that are hard to see on dark or light pictures.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7")

Box = tuple[float, float, float, float]


def window_of(box: Box | None, size: tuple[int, int]) -> Box:
    """The part (x1, y1, x2, y2) of a picture of size (H, W) that shows a box with its surroundings; all of it for None."""
    height, width = size
    if box is None:
        return 0.0, 0.0, float(width), float(height)
    longer = max(box[2] - box[0], box[3] - box[1])
    half = max(longer * (0.5 + AROUND), LEAST / 2)
    ends = []
    for low, high, most in ((box[0], box[2], width), (box[1], box[3], height)):
        start = min(max((low + high) / 2 - half, 0.0), max(most - 2 * half, 0.0))
        ends.append((start, min(start + 2 * half, float(most))))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def marked(image: Image.Image, size: tuple[int, int], marks: Sequence[Mark], box: Box | None = None) -> Image.Image:
    """A picture, or the surroundings of one box in it, with marks.

    Args:
        image: the picture, maybe smaller than the original.
        size: (H, W) of the original, in whose pixels marks and box are.
        marks: what is drawn.
        box: what the picture is shown for, if it is not shown whole.
    """
    left, top, right, bottom = window_of(box, size)
    shrink = (image.width / size[1], image.height / size[0])
    part = image.convert("RGB").crop((
        round(left * shrink[0]), round(top * shrink[1]),
        max(round(right * shrink[0]), round(left * shrink[0]) + 1),
        max(round(bottom * shrink[1]), round(top * shrink[1]) + 1),
    ))  # fmt: skip
    longer = max(part.size)
    factor = -(-SIDE[0] // longer) if longer < SIDE[0] else min(1.0, SIDE[1] / longer)
    target = max(1, round(part.width * factor)), max(1, round(part.height * factor))
    canvas = part.resize(target, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)
    draw, scale = ImageDraw.Draw(canvas), (canvas.width / (right - left), canvas.height / (bottom - top))
    line = max(2, max(canvas.size) // 96)

    def at(x: float, y: float) -> tuple[float, float]:
        return (x - left) * scale[0], (y - top) * scale[1]

    for mark in sorted(marks, key=lambda one: one.true):  # dashes lie over the lines, so that both are seen
        color = "#FFFFFF" if mark.true else COLORS[mark.color % len(COLORS)]
        for start, end in _lines(mark):
            _stroke(draw, at(*start), at(*end), color, line, dashed=mark.true)
        for x, y in (at(*point) for point in mark.points):
            draw.ellipse([x - line, y - line, x + line, y + line], fill=color, outline="#000000")
    return canvas


def _lines(mark: Mark) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    if mark.box is not None:
        x1, y1, x2, y2 = mark.box
        corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
        yield from zip(corners, [*corners[1:], corners[0]])
    for a, b in mark.joined:
        yield mark.points[a], mark.points[b]


def _stroke(
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str,
    line: int,
    *,
    dashed: bool,
) -> None:
    if not dashed:
        draw.line([*start, *end], fill=color, width=line)
        return
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    count = max(1, round(length / (6 * line)))
    for k in range(count):
        ends = [s + (e - s) * share for share in (k / count, (k + 0.5) / count) for s, e in zip(start, end)]
        draw.line(ends, fill="#000000", width=line + 1)
        draw.line(ends, fill=color, width=max(1, line - 1))
