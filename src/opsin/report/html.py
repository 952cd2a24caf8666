"""A page as one HTML file that needs nothing else: no network, no scripts, pictures inside."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from opsin.report import svg
from opsin.report.content import Block, Chapter, Chart, Commands, Counts, Facts, Headline, Intervals, Line, Page, Text
from opsin.report.inputs import no_picture
from opsin.report.svg import clean
from opsin.report.thumbnails import Thumbnails
from opsin.report.words import known, number, percent
from opsin.results.section import Curve, Gallery, Matrix, Note, Picture, Table

LIMIT = 3_800_000  # bytes of the whole file
WORDS = 2_000_000  # bytes of all tables, matrices and captions together
ROWS = 400  # of one table
OPEN_ROWS = 30  # of a table that are seen without unfolding it
NOTE = 1500  # characters of a warning
LONGEST = 400  # characters of a cell or caption
NUMBERED = 16  # classes up to which a matrix prints its numbers
MARK = "<meta name='generator' content='opsin report'>"
SHORT = 60  # characters of a class name in a matrix
STRONG = 0.55  # strength of a color from which on the number on it is light
LONG_WORD = 26  # characters from which on a word may be broken anywhere
_NUMERIC = re.compile(r"[+\N{MINUS SIGN}-]?[\d,]+\.\d+( to [+\N{MINUS SIGN}-]?[\d,]+\.\d+)?")
_LEVELS = {"error": "Error", "warning": "Warning", "info": "Note"}
_PARTS = {"train": "training", "val": "validation", "test": "test"}


def page_html(page: Page, picture: Callable[[Picture], Image.Image | None], limit: int = LIMIT) -> str:
    """The page as text of at most about `limit` bytes: pictures take what words and numbers leave."""
    bare = _draw(page, Thumbnails(no_picture, 0))
    return _draw(page, Thumbnails(picture, limit - len(bare.encode())))


def _draw(page: Page, thumbnails: Thumbnails) -> str:
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    canvas = _Canvas(thumbnails)
    contents = "".join(f"<li><a href='#{c.anchor}'>{clean(c.title)}</a></li>" for c in page.chapters)
    tiles = "".join(f"<li><b>{clean(v)}</b><span>{clean(k)}</span></li>" for v, k in page.tiles)
    sentences = "".join(f"<p>{_rich(s)}</p>" for s in page.sentences)
    body = (
        f"<header><p class='brand'>opsin report</p><h1>{clean(page.title)}</h1>"
        f"<p class='muted path'>{clean(page.subtitle)}</p><div class='hero'>{_headline(page.headline)}"
        f"<div class='said'><p class='verdict'>{clean(page.verdict)}</p>{sentences}</div></div>"
        f"<ul class='tiles'>{tiles}</ul></header>"
        f"<nav aria-label='Contents'><ol>{contents}</ol></nav>"
        f"<main>{''.join(canvas.chapter(c) for c in page.chapters)}</main>"
        f"<footer class='muted'>{clean(page.footer)}</footer>"
    )
    head = (
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"{MARK}<meta name='color-scheme' content='light dark'>"
        f"<title>{clean(page.title)}: {clean(page.verdict)}</title><style>{style}</style>"
    )
    return f"<!doctype html>\n<html lang='en'><head>{head}</head><body>{body}</body></html>\n"


def _headline(one: Headline | None) -> str:
    if one is None:
        return ""
    bar = ""
    if one.share is not None:
        value, low, high = one.share
        least, most = _window(low, high)
        ends = "".join(
            f"<span>{100 * v:g}{' %' if v == most else ''}</span>" for v in (least, (least + most) / 2, most)
        )
        bar = (
            svg.interval_bar(value, low, high, least, most, strong=True)
            + f"<p class='scale' aria-hidden='true'>{ends}</p>"
        )
    remark = f"<p class='sealed'>{clean(one.remark)}</p>" if one.remark else ""
    number = f"<p class='number'>{clean(one.number)}</p><p class='of'>{clean(one.label)}</p>"
    return f"<div class='headline'>{number}{bar}{remark}</div>"


def _window(low: float, high: float) -> tuple[float, float]:
    """The shortest round piece of the axis from 0 to 1 in which an interval fills at most half."""
    for width in (0.1, 0.2, 0.5):
        start = math.floor(low / width + 1e-9) * width
        if high - low <= width / 2 and high <= start + width + 1e-9:
            return round(start, 6), round(start + width, 6)
    return 0.0, 1.0


class _Canvas:
    """Draws blocks; counts their bytes, so that no data set can make the page too large."""

    def __init__(self, thumbnails: Thumbnails) -> None:
        self.thumbnails, self.left = thumbnails, WORDS

    def take(self, pieces: Iterable[str]) -> list[str]:
        """Pieces (rows, figures) as long as there is room for them."""
        found = []
        for piece in pieces:
            size = len(piece.encode())
            if size > self.left:
                break
            self.left -= size
            found.append(piece)
        return found

    def chapter(self, chapter: Chapter) -> str:
        blocks = "".join(self.block(block) for block in chapter.blocks)
        title = f"<h2>{clean(chapter.title)}</h2>"
        return f"<section id='{chapter.anchor}'>{title}<div class='blocks'>{blocks}</div></section>"

    def block(self, block: Block) -> str:
        """One block by its kind."""
        draw: dict[type, Callable[[Any], str]] = {
            Note: _note, Text: _paragraph, Facts: _facts, Commands: _commands, Chart: _chart, Curve: _curve,
            Intervals: _intervals, Counts: self.counts, Table: self.table, Matrix: self.matrix, Gallery: self.gallery,
        }  # fmt: skip
        return draw[type(block)](block)

    def table(self, table: Table) -> str:
        rows = table.rows[:ROWS]
        kinds = ["t", *(_column_kind([row[k] for row in rows]) for k in range(1, len(table.columns)))]
        head = "".join(f"<th scope='col'{_class(kind)}>{_cut(name)}</th>" for name, kind in zip(table.columns, kinds))
        lines = self.take(_row(row, kinds, table.columns) for row in rows)
        long = any(len(str(cell)) > 60 for row in rows for cell in row)
        wide = " wide" if len(table.columns) > 5 or kinds.count("t") > 3 or long else ""
        return _folded(table.title, f"<tr>{head}</tr>", lines, len(table.rows), table.note, f"table{wide}")

    def counts(self, counts: Counts) -> str:
        most = max((sum(numbers) for _, numbers in counts.rows), default=0)
        head = "".join(
            f"<th scope='col' class='n'><span class='key {part}'>{_PARTS[part]}</span></th>" for part in counts.parts
        )
        lines = self.take(
            f"<tr><th scope='row'{_class(_long(name))}>{_cut(name)}</th>"
            f"{''.join(f'<td class=n>{n:,}</td>' for n in numbers)}"
            f"<td class='bar'>{svg.stacked_bar(numbers, counts.parts, most)}</td></tr>"
            for name, numbers in counts.rows[:ROWS]
        )
        top = f"<tr><th scope='col'>class</th>{head}<td class='bar'></td></tr>"
        return _folded(counts.title, top, lines, len(counts.rows), counts.note, "table counts")

    def matrix(self, matrix: Matrix) -> str:
        size, columns = max(len(matrix.rows), len(matrix.columns)), [_cut(name, SHORT) for name in matrix.columns]
        same, numbered = matrix.rows == matrix.columns, size <= NUMBERED
        turned = max((len(name) for name in matrix.columns), default=0) > (4 if numbered else 1)
        head = "".join(
            f"<th scope='col'{' class=turned' if turned else ''}><span>{name}</span></th>" for name in columns
        )
        sides = f"<span>{clean(matrix.row_title)} ↓</span> <span>{clean(matrix.column_title)} →</span>"
        corner = f"<th class='corner'>{sides}</th>"
        lines = []
        for i, name in enumerate(_cut(name, SHORT) for name in matrix.rows):
            values = matrix.values[i].tolist()
            cells = "".join(_heat(v, f"{name} → {columns[j]}", same, i == j, numbered) for j, v in enumerate(values))
            lines.append(f"<tr><th scope='row'><span>{name}</span></th>{cells}</tr>")
        kind = "heat" + ("" if numbered else " dense")
        body = _scroll(
            f"<table class='{kind}'><thead><tr>{corner}{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        )
        drawn = _box(matrix.title, body, matrix.note, "matrix" + ("" if numbered else " wide"))
        return "".join(self.take([drawn])) or _box(matrix.title, "", "Not drawn, to keep this page small.", "matrix")

    def gallery(self, gallery: Gallery) -> str:
        captions = self.take(_caption(picture) for picture in gallery.pictures)
        alts = (f"{p.caption} {p.detail}, {p.id}" for p in gallery.pictures)
        figures = "".join(
            f"<figure>{self.thumbnails(picture, _short(alt))}{caption}</figure>"
            for picture, alt, caption in zip(gallery.pictures, alts, captions)
        )
        dropped = len(gallery.pictures) - len(captions)
        note = " ".join(filter(None, [gallery.note, f"{dropped:,} more are not shown." if dropped else ""]))
        return _box(gallery.title, f"<div class='gallery'>{figures}</div>" if figures else "", note, "wide")


def _caption(picture: Picture) -> str:
    detail = f"<span class='detail'>{_cut(picture.detail)}</span>" if picture.detail else ""
    name = f"<span class='name' title='{_cut(picture.id)}'><bdi>{_cut(picture.id)}</bdi></span>"
    return f"<figcaption><span class='caption'>{_cut(picture.caption)}</span>{detail}{name}</figcaption>"


def _folded(title: str, head: str, lines: Sequence[str], total: int, note: str, kind: str) -> str:
    """A table of which a long tail is folded away; says how many rows are left out."""

    def table(some: Sequence[str]) -> str:
        return _scroll(f"<table><thead>{head}</thead><tbody>{''.join(some)}</tbody></table>")

    body = table(lines[:OPEN_ROWS]) if lines else ""
    if lines[OPEN_ROWS:]:
        body += f"<details><summary>{len(lines) - OPEN_ROWS:,} more rows</summary>{table(lines[OPEN_ROWS:])}</details>"
    dropped = f"{total - len(lines):,} more rows are not shown." if total > len(lines) else ""
    return _box(title, body, " ".join(filter(None, [note, dropped])), kind)


def _box(title: str, body: str, note: str = "", kind: str = "") -> str:
    caption = f"<p class='muted'>{clean(note)}</p>" if note else ""
    return f"<article class='{kind}'><h3>{clean(title)}</h3>{body}{caption}</article>"


def _scroll(table: str) -> str:
    return f"<div class='scroll' tabindex='0'>{table}</div>"


def _short(text: str, most: int = LONGEST) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _rich(text: str) -> str:
    """Text in which what stands between backticks is code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", clean(text))


def _cut(value: object, most: int = LONGEST) -> str:
    return clean(_short(str(value), most))


def _long(text: object) -> str:
    """The class of cells that hold a word which must be broken somewhere."""
    return " long" if isinstance(text, str) and any(len(word) >= LONG_WORD for word in text.split()) else ""


def _class(kind: str) -> str:
    return f" class='{kind.strip()}'" if kind else ""


def _is_number(cell: Any) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))


def _column_kind(cells: Sequence[Any]) -> str:
    """`share`: all floats in [0, 1], drawn with a bar; `n`: numbers; `t`: words."""
    if not cells or not all(_is_number(cell) or _looks_numeric(cell) for cell in cells):
        return "t"
    floats = [cell for cell in cells if cell is not None]
    if len(floats) > 1 and all(isinstance(cell, float) and 0 <= cell <= 1 for cell in floats):
        return "n share"
    return "n"


def _looks_numeric(cell: Any) -> bool:
    """A number that is already text: with decimals, a sign or two ends; a class that is called 7 is none."""
    return isinstance(cell, str) and (_NUMERIC.fullmatch(cell) is not None or cell in ("", "none", "undefined"))


def _row(row: Sequence[Any], kinds: Sequence[str], columns: Sequence[str]) -> str:
    cells = [f"<th scope='row'{_class(_long(row[0]))}>{_cell(row[0])}</th>"]
    for cell, kind, column in zip(row[1:], kinds[1:], columns[1:]):
        start = f"<td{_class(kind + _long(cell))} data-of='{_cut(column)}'>"
        bar = f"<i style='--v:{cell:.3f}'></i>" if kind == "n share" and cell is not None else ""
        cells.append(f"{start}{bar}<span>{_cell(cell)}</span></td>" if bar else f"{start}{_cell(cell)}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _cell(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    if isinstance(cell, float):
        return f"{cell:.4f}" if abs(cell) < 1000 else f"{cell:,.0f}"
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else _cut(cell)


def _heat(value: float, where: str, same: bool, diagonal: bool, numbered: bool) -> str:
    """A cell of a matrix: what lies off the diagonal of a square one has another color, and is drawn stronger."""
    if not math.isfinite(value):
        return "<td></td>"
    share, wrong = 0 <= value <= 1, same and not diagonal
    strength = min(max(value, 0.0), 1.0)
    strength = math.sqrt(strength) if wrong else strength
    shown = (f"{100 * value:.0f}" if value >= 0.0095 else f"{100 * value:.1g}") if share else number(value)
    inner = f"<span>{shown}</span>" if numbered and value != 0 else ""
    strong = " s" if strength > STRONG else ""
    style = f" style='--v:{strength:.2f}'" if strength > 0 else ""
    said = percent(value) if share else number(value)
    return f"<td class='{'o' if wrong else 'd'}{strong}'{style} title='{where}: {said}'>{inner}</td>"


def _note(note: Note) -> str:
    level = note.level if note.level in _LEVELS else "info"
    title = f"<span class='badge {level}'>{_LEVELS[level]}</span> <code>{clean(note.code)}</code>"
    return f"<article class='note {level}'><h3>{title}</h3><p>{_rich(_short(note.text, NOTE))}</p></article>"


def _paragraph(block: Text) -> str:
    return f"<p class='wide'>{clean(block.text)}</p>"


def _facts(facts: Facts) -> str:
    pairs = "".join(f"<div><dt>{_cut(name)}</dt><dd>{_cut(value)}</dd></div>" for name, value in facts.pairs)
    return _box(facts.title, f"<dl>{pairs}</dl>", facts.note, "facts")


def _commands(commands: Commands) -> str:
    lines = "\n".join(clean(line) for line in commands.lines)
    return _box(commands.title, f"<pre tabindex='0'><code>{lines}</code></pre>", commands.note, "commands")


def _chart(chart: Chart) -> str:
    drawn = svg.line_chart(chart.lines, title=chart.title, x_title=chart.x_title, log=chart.log, mark=chart.mark)
    return _box(chart.title, drawn, chart.note, "chart")


def _curve(curve: Curve) -> str:
    lines = [Line(name, x, y, dots=len(x) <= 20) for name, (x, y) in curve.lines.items()]
    ends = [v for line in lines for v in (*line.x.tolist(), *line.y.tolist()) if known(v)]
    unit = curve.diagonal and bool(ends) and min(ends) >= 0 and max(ends) <= 1
    drawn = svg.line_chart(
        lines,
        title=curve.title,
        x_title=curve.x_title,
        y_title=curve.y_title,
        diagonal=curve.diagonal,
        unit_square=unit,
    )
    return _box(curve.title, drawn, curve.note, "chart")


def _intervals(block: Intervals) -> str:
    lines = []
    for one in block.rows:
        value = percent(one.value) if block.shares else number(one.value)
        bar = svg.interval_bar(one.value, one.low, one.high, block.least, block.most, strong=one.strong)
        lines.append(
            f"<tr{' class=strong' if one.strong else ''}><th scope='row'>{_cut(one.name)}</th>"
            f"<td class='bar'>{bar}</td><td class='n'>{value}</td><td class='t'>{_cut(one.detail)}</td></tr>"
        )
    axis = (
        "<tr><th scope='col'>method</th><td class='bar'></td><th scope='col' class='n'>value</th>"
        f"<th scope='col' class='t'>{clean(block.detail_title)}</th></tr>"
    )
    return _box(
        block.title,
        _scroll(f"<table class='intervals'><thead>{axis}</thead><tbody>{''.join(lines)}</tbody></table>"),
        block.note,
        "wide",
    )
