"""A sheet of pictures: rows with titles, each picture with its caption, as one picture to look at or to print."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from opsin.errors import ShapeError

_PAPER, _INK, _FAINT = "#ffffff", "#111827", "#6b7280"
_GAP, _FONT = 8, 13


@dataclass(frozen=True)
class Cell:
    """A picture and what is said of it; lines of a caption that are too long are cut."""

    picture: Image.Image
    caption: str = ""


@dataclass(frozen=True)
class Row:
    """Pictures side by side under a title."""

    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Sheet:
    """Rows of pictures.

    Args:
        rows: from top to bottom.
        note: what a reader must know, below the rows.
        side: pixels of a cell; small pictures are enlarged by a whole factor, pixel by pixel, large ones reduced.
        columns: where a row is broken; 0 for never.

    Raises:
        ShapeError: if there is no picture.
    """

    rows: tuple[Row, ...]
    note: str = ""
    side: int = 96
    columns: int = 0

    def __post_init__(self) -> None:
        if not any(row.cells for row in self.rows):
            raise ShapeError("A sheet without any picture; nothing was found to show.")

    def draw(self) -> Image.Image:
        """The sheet as one RGB picture."""
        font, lines = ImageFont.load_default(size=_FONT), self._lines()
        text = _FONT + 4
        captions = [
            max((len(cell.caption.split("\n")) for cell in row.cells if cell.caption), default=0) for row in lines
        ]
        width = _GAP + max(len(row.cells) for row in lines) * (self.side + _GAP)
        width = max(width, 360)
        notes = _wrapped(self.note, width - 2 * _GAP, font)
        heights = [
            (text + 2 if row.title else 0) + (self.side + count * text if row.cells else 0) + _GAP
            for row, count in zip(lines, captions)
        ]
        canvas = Image.new("RGB", (width, _GAP + sum(heights) + len(notes) * text + _GAP), _PAPER)
        draw, y = ImageDraw.Draw(canvas), _GAP
        for row, height in zip(lines, heights):
            top = y
            if row.title:
                draw.text((_GAP, top), _cut(row.title, width - 2 * _GAP, font), fill=_INK, font=font)
                top += text + 2
            for number, cell in enumerate(row.cells):
                x = _GAP + number * (self.side + _GAP)
                picture = _fitted(cell.picture, self.side)
                canvas.paste(picture, (x + (self.side - picture.width) // 2, top + (self.side - picture.height) // 2))
                for line, words in enumerate(cell.caption.split("\n")):
                    below = top + self.side + 1 + line * text
                    draw.text((x, below), _cut(words, self.side, font), fill=_FAINT, font=font)
            y += height
        for words in notes:
            draw.text((_GAP, y), words, fill=_FAINT, font=font)
            y += text
        return canvas

    def save(self, path: Path) -> Path:
        """Write the sheet as PNG; its folder is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.draw().save(path, "PNG")
        return path

    def _lines(self) -> list[Row]:
        found = []
        for row in self.rows:
            most = self.columns or len(row.cells)
            parts = [row.cells[i : i + most] for i in range(0, len(row.cells), max(most, 1))]
            found += [Row(row.title if not i else "", part) for i, part in enumerate(parts or [()])]
        return found


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    picture = picture.convert("RGB")
    longest = max(picture.size)
    if longest <= side:
        factor = side // longest
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    scale = side / longest
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))


Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def _cut(words: str, width: int, font: Font) -> str:
    while len(words) > 1 and font.getlength(words) > width:
        words = words[:-2].rstrip() + "…"
    return words


def _wrapped(words: str, width: int, font: Font) -> list[str]:
    lines: list[str] = []
    for word in words.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
