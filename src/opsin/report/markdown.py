"""A page as Markdown: the words and numbers, without pictures and charts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from opsin.report.content import Block, Chart, Commands, Counts, Facts, Intervals, Page, Text
from opsin.report.words import number, percent
from opsin.results.section import Curve, Gallery, Matrix, Note, Table

MARK = "<!-- opsin report -->"
ROWS = 40
PICTURES = 12
SMALL = 12  # classes up to which a matrix is printed
LONGEST = 200


def page_markdown(page: Page) -> str:
    """The page as text."""
    lines = [MARK, f"# {_text(page.title)}", "", _text(page.subtitle), "", f"**{_text(page.verdict, 1000)}**", ""]
    for sentence in page.sentences:
        lines += [_text(sentence, 1000), ""]
    lines += [" · ".join(f"{_text(value)} {_text(name)}" for value, name in page.tiles), ""]
    for chapter in page.chapters:
        lines += [f"## {_text(chapter.title)}", ""]
        for block in chapter.blocks:
            lines += [*_block(block), ""]
    return "\n".join([*lines, _text(page.footer), ""])


def _text(value: object, most: int = LONGEST) -> str:
    """Text in which nothing is markup, on one line."""
    text = " ".join(str(value).encode("utf-8", "replace").decode().split())
    text = text if len(text) <= most else text[: most - 1] + "…"
    for sign in "\\`*_[]|#<>":
        text = text.replace(sign, {"<": "&lt;", ">": "&gt;"}.get(sign, "\\" + sign))
    return text


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Note):
        yield f"- {block.level} `{_code(block.code)}`: {_text(block.text, 400)}"
    elif isinstance(block, Text):
        yield _text(block.text)
    elif isinstance(block, Commands):
        yield from [f"### {_text(block.title)}", "", *(f"    {_code(line)}" for line in block.lines)]
    elif isinstance(block, Facts):
        yield from _table(block.title, ("what", "value"), block.pairs)
    elif isinstance(block, Table):
        yield from _table(block.title, block.columns, block.rows, block.note)
    elif isinstance(block, Counts):
        yield from _table(
            block.title, ("class", *block.parts), [(name, *counts) for name, counts in block.rows], block.note
        )
    elif isinstance(block, Intervals):
        show = percent if block.shares else number
        rows = [
            (r.name, show(r.value), f"{show(r.low)} to {show(r.high)}" if r.low is not None else "none", r.detail)
            for r in block.rows
        ]
        yield from _table(block.title, ("method", "value", "95 % interval", block.detail_title), rows, block.note)
    elif isinstance(block, Matrix) and max(block.values.shape) <= SMALL:
        corner = f"{block.row_title} / {block.column_title}"
        lines = [
            (name, *(percent(v) if v else "" for v in row.tolist())) for name, row in zip(block.rows, block.values)
        ]
        yield from _table(block.title, (corner, *block.columns), lines, block.note)
    elif isinstance(block, Gallery):
        shown = block.pictures[:PICTURES]
        yield from [
            f"### {_text(block.title)}",
            "",
            *(f"- `{_code(p.id)}`: {_text(p.caption)} {_text(p.detail)}" for p in shown),
        ]
    elif isinstance(block, Chart | Curve):
        yield from _lines(block)


def _code(value: object) -> str:
    return " ".join(str(value).encode("utf-8", "replace").decode().replace("`", "'").split())


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> Iterator[str]:
    yield from [f"### {_text(title)}", ""]
    if rows:
        yield f"| {' | '.join(_text(name) for name in columns)} |"
        yield f"|{'---|' * len(columns)}"
        for row in rows[:ROWS]:
            yield f"| {' | '.join(_cell(cell) for cell in row)} |"
    more = f"{len(rows) - ROWS:,} more rows in report.html." if len(rows) > ROWS else ""
    if note or more:
        yield from ["", _text(" ".join(filter(None, [note, more])))]


def _cell(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.4f}" if isinstance(cell, float) else _text(cell)


def _lines(block: Chart | Curve) -> Iterator[str]:
    yield from [f"### {_text(block.title)}", ""]
    lines = {line.name: (line.x, line.y) for line in block.lines} if isinstance(block, Chart) else block.lines
    for name, (x, y) in lines.items():
        finite = np.flatnonzero(np.isfinite(y))
        if len(finite):
            first, last = finite[0], finite[-1]
            ends = ", ".join(f"{y[i]:.4g} at {x[i]:.4g}" for i in (first, last))
            yield f"- {_text(name)}: {ends} ({_text(block.x_title)})"
