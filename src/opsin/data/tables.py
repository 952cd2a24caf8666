"""Tables of text: CSV, TSV, JSON lines and JSON lists of objects, with the line of every row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from opsin.data.layout import is_picture, suffix
from opsin.errors import DataError, UnknownName

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
"""Endings of table files."""

LIST_SEPARATOR = "\x1f"
"""Joins the entries of a JSON list inside a cell; a cell with nothing but it is an empty list."""


@dataclass
class Table:
    """Rows of text by column name; every cell is stripped, a missing one is "".

    Args:
        title: file name, for messages.
        header: column names.
        columns: name to cells.
        lines: 1-based line (or entry) number of every row.
        headless: whether the first line was data, so that columns are called column1, column2, ...
    """

    title: str
    header: tuple[str, ...]
    columns: dict[str, list[str]]
    lines: list[int]
    headless: bool = False

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """File and line of a row."""
        return f"{self.title}, line {self.lines[row]}"

    def column(self, name: str) -> list[str]:
        """Cells of a column.

        Raises:
            UnknownName: if there is none of that name; with the nearest ones.
        """
        if name not in self.columns:
            raise UnknownName("column", name, self.header, f"{self.title} has the columns {', '.join(self.header)}.")
        return self.columns[name]

    def keep(self, rows: Iterable[int]) -> Table:
        """The table with some rows only."""
        kept = list(rows)
        columns = {name: [cells[i] for i in kept] for name, cells in self.columns.items()}
        return Table(self.title, self.header, columns, [self.lines[i] for i in kept], self.headless)


def parse_table(data: bytes, title: str) -> Table:
    """Read a table; the ending of `title` says which kind.

    Raises:
        DataError: if the text is not UTF-8, a row has too many or too few cells, or JSON is broken; with the line.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{title}, line {line}: not UTF-8 text (byte {data[error.start]:#04x}). Save the table as UTF-8."
        ) from error
    ending = suffix(title)
    if ending in (".jsonl", ".ndjson"):
        return _from_objects(title, _json_lines(text, title))
    if ending == ".json":
        try:
            values = json.loads(text)
        except ValueError as error:
            raise DataError(f"{title}: not JSON ({error}).") from error
        if not isinstance(values, list):
            raise DataError(
                f'{title}: expected a list of objects, one per picture, like [{{"image": "a.jpg", "label": "cat"}}].'
            )
        return _from_objects(title, list(enumerate(values, 1)))
    return _from_lines(title, text, "\t" if ending == ".tsv" else None)


def _from_lines(title: str, text: str, delimiter: str | None) -> Table:
    first = next((line for line in text.splitlines() if line.strip()), "")
    if delimiter is None:
        delimiter = max(",;\t|", key=first.count)
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{title}, line {reader.line_num}: broken quoting ({error}).") from error
    if not rows:
        raise DataError(f"{title}: the table is empty.")
    headless = any(is_picture(cell) for cell in rows[0])
    header = tuple(f"column{i + 1}" for i in range(len(rows[0]))) if headless else tuple(rows[0])
    if len(set(header)) < len(header) or "" in header:
        twice = sorted({name or "(empty)" for name in header if header.count(name) > 1 or not name})
        raise DataError(f"{title}, line {lines[0]}: column names must be given and differ; see {', '.join(twice)}.")
    body, body_lines = (rows, lines) if headless else (rows[1:], lines[1:])
    for row, line in zip(body, body_lines):
        if len(row) != len(header):
            raise DataError(
                f"{title}, line {line}: {len(row)} cells, but there are {len(header)} columns "
                f"({', '.join(header[:8])}). "
                f"Put cells that contain '{delimiter}' into double quotes."
            )
    columns = {name: [row[k] for row in body] for k, name in enumerate(header)}
    return Table(title, header, columns, body_lines, headless)


def _json_lines(text: str, title: str) -> list[tuple[int, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except ValueError as error:
                raise DataError(f"{title}, line {number}: not JSON ({error}).") from error
    return rows


def _from_objects(title: str, rows: list[tuple[int, Any]]) -> Table:
    if not rows:
        raise DataError(f"{title}: the table is empty.")
    header: dict[str, None] = {}
    for number, row in rows:
        if not isinstance(row, dict):
            raise DataError(
                f"{title}, line {number}: expected an object like {{'image': 'a.jpg', 'label': 'cat'}}, "
                f"got {str(row)[:40]}."
            )
        header.update(dict.fromkeys(row))
    columns = {name: [_cell(row.get(name), title, number) for number, row in rows] for name in header}
    return Table(title, tuple(header), columns, [number for number, _ in rows])


def _cell(value: Any, title: str, number: int) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and all(isinstance(entry, str | int | float) for entry in value):
        return LIST_SEPARATOR.join(map(str, value)) + LIST_SEPARATOR
    if isinstance(value, str | int | float):
        return str(value).strip()
    raise DataError(
        f"{title}, line {number}: a value is {type(value).__name__}; expected text, a number, or a list of them."
    )
