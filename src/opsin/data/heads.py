"""From the columns of a table to heads: which column is what, and of which kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.data.dataset import HeadSpec, Problem
from opsin.data.layout import PART_FOLDERS, is_picture
from opsin.data.tables import LIST_SEPARATOR, Table
from opsin.data.targets import MISSING, multi_head, single_head
from opsin.errors import DataError, UnknownName

IMAGE_COLUMNS = (
    "image",
    "path",
    "file",
    "filename",
    "file_name",
    "image_path",
    "img",
    "filepath",
    "file_path",
    "image_name",
    "image_id",
    "name",
    "id",
)
LABEL_COLUMNS = ("label", "class", "target", "category", "diagnosis", "dx", "y", "class_name", "label_name")
SEVERAL_COLUMNS = ("labels", "tags", "classes", "categories")
SPLIT_COLUMNS = ("split", "subset", "partition")
KINDS = {"regression": "regression", "classes": "single", "multi": "multi"}


@dataclass(frozen=True)
class Plan:
    """Which column is what: `heads` is head name to (columns, kind or None to infer, known class names or None)."""

    image: str
    heads: Mapping[str, tuple[tuple[str, ...], str | None, tuple[str, ...] | None]] = field(default_factory=dict)
    split: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    separator: str | None = None


def plan_columns(
    table: Table, columns: Mapping[str, str], only_image: bool = False, known: Mapping[str, HeadSpec] | None = None
) -> Plan:
    """Decide what every column is, from what was asked for and from names and cells.

    Args:
        columns: roles to columns as given.
        only_image: stop after the image column (for recognizing a table).
        known: column to head, as stored beside the table.

    Raises:
        DataError: if no column holds picture paths, or it is not clear which one is the label.
        UnknownName: if a role names a column that is not there.
    """
    roles = dict(columns)
    image = roles.pop("image", None) or _image_column(table)
    table.column(image)
    if only_image:
        return Plan(image)
    separator = roles.pop("separator", None)
    split = roles.pop("split", None) or _split_column(table)
    kept: dict[str, str] = {role: roles.pop(role) for role in ("group", "time") if role in roles}
    for column in (*kept.values(), *([split] if split else [])):
        table.column(column)
    if not roles:
        taken = {image, split, *kept.values()}
        roles = _label_role(table, [c for c in table.header if c not in taken])
    heads = {role: _head_plan(table, role, text, known or {}) for role, text in roles.items()}
    return Plan(image, heads, split, kept, separator)


def _image_column(table: Table) -> str:
    lower = {c.lower().replace(" ", "_"): c for c in reversed(table.header)}
    likely = [lower[name] for name in IMAGE_COLUMNS if name in lower]
    for column in dict.fromkeys([*likely, *table.header]):
        cells = [cell for cell in table.columns[column][:50] if cell]
        if cells and sum(map(is_picture, cells)) >= 0.9 * len(cells):
            return column
    named = [c for c in likely if c.lower() not in ("name", "id")]
    if named and not any("://" in cell for cell in table.columns[named[0]][:5]):
        return named[0]
    raise DataError(
        f"{table.title}: no column holds paths of picture files (columns: {', '.join(table.header[:12])}). Say which "
        "one does: --columns image=COLUMN."
    )


def _split_column(table: Table) -> str | None:
    for column in table.header:
        if column.lower() in SPLIT_COLUMNS and all(
            cell.lower() in PART_FOLDERS or not cell for cell in table.columns[column]
        ):
            return column
    return None


def _label_role(table: Table, columns: list[str]) -> dict[str, str]:
    for names, role in ((LABEL_COLUMNS, "label"), (SEVERAL_COLUMNS, "labels")):
        for name in names:
            if fit := [c for c in columns if c.lower() == name]:
                return {role: fit[0]}
    if len(columns) == 1:
        return {"label": columns[0]}
    if not columns:
        return {}
    raise DataError(
        f"{table.title}: which column is the label? It has "
        f"{', '.join(columns[:12])}{', ...' if len(columns) > 12 else ''}. "
        f"Say: --columns label=COLUMN (one class), labels=COLUMN (several), or NAME=COLUMN for each of several heads."
    )


def _head_plan(
    table: Table, role: str, text: str, known: Mapping[str, HeadSpec]
) -> tuple[tuple[str, ...], str | None, tuple[str, ...] | None]:
    column, _, kind = text.rpartition(":")
    if not column or kind not in KINDS or text in table.columns:
        column, kind = text, ""
    chosen = KINDS.get(kind)
    if column in table.columns:
        if column in known:
            return (column,), known[column].kind, known[column].class_names
        return (column,), chosen or ("multi" if role == "labels" else None), None
    several = tuple(part.strip() for part in column.split(","))
    if len(several) > 1:
        for part in several:
            table.column(part)
        return several, "multi", several
    raise UnknownName(
        "column",
        column,
        table.header,
        f"{table.title} has the columns {', '.join(table.header[:20])}; the role was '{role}'.",
    )


def heads_from_table(table: Table, plan: Plan) -> tuple[tuple[HeadSpec, ...], dict[str, NDArray[Any]], list[Problem]]:
    """Heads, targets (by head name) and what was noticed on the way.

    Raises:
        DataError: if a cell does not fit the kind of its head; with file and line.
    """
    heads: list[HeadSpec] = []
    targets: dict[str, NDArray[Any]] = {}
    problems: list[Problem] = []
    for name, (columns, kind, classes) in plan.heads.items():
        head_name = "label" if name == "labels" else name
        if len(columns) > 1:
            head, values = HeadSpec(head_name, "multi", columns), _flags(table, columns)
        else:
            head, values = _from_column(table, head_name, columns[0], kind, classes, plan.separator)
        heads.append(head)
        targets[head_name] = values
        problems += _noticed(table, head, values)
    return tuple(heads), targets, problems


def _from_column(
    table: Table, name: str, column: str, kind: str | None, classes: tuple[str, ...] | None, separator: str | None
) -> tuple[HeadSpec, NDArray[Any]]:
    cells = table.column(column)
    if kind is None and any(LIST_SEPARATOR in cell for cell in cells):
        kind = "multi"
    if kind == "regression" or (kind is None and _decimals(cells)):
        return HeadSpec(name, "regression"), _numbers(table, column)
    if kind == "multi":
        return multi_head(name, _lists(cells, separator), classes)
    return single_head(
        name, cells, classes, [table.where(row) for row in range(len(table))] if classes else table.title
    )


def _decimals(cells: list[str]) -> bool:
    """Whether every cell is a number or missing, and some number has decimals."""
    some = False
    for cell in cells:
        if cell.lower() in MISSING:
            continue
        try:
            value = float(cell)
        except ValueError:
            return False
        some = some or not value.is_integer()
    return some


def _numbers(table: Table, column: str) -> NDArray[np.float64]:
    values = np.full(len(table), np.nan)
    for row, cell in enumerate(table.columns[column]):
        if cell.lower() in MISSING:
            continue
        try:
            values[row] = float(cell)
        except ValueError as error:
            raise DataError(f"{table.where(row)}: '{cell}' in the column '{column}' is not a number.") from error
    return values


def _lists(cells: list[str], separator: str | None) -> list[list[str] | None]:
    if any(LIST_SEPARATOR in cell for cell in cells):
        separator = LIST_SEPARATOR
    elif separator is None:
        separator = next((s for s in "|;, " if any(s in cell for cell in cells)), "|")
    return [[w.strip() for w in cell.split(separator) if w.strip()] if cell else None for cell in cells]


def _flags(table: Table, columns: tuple[str, ...]) -> NDArray[np.float32]:
    words = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0, "no": 0.0, "yes": 1.0}
    values = np.full((len(table), len(columns)), np.nan, np.float32)
    for k, column in enumerate(columns):
        for row, cell in enumerate(table.columns[column]):
            if cell.lower() in MISSING:
                continue
            if cell.lower() not in words:
                raise DataError(
                    f"{table.where(row)}: '{cell}' in the column '{column}'. Expected 0 or 1 (or an empty cell where "
                    "it is unknown)."
                )
            values[row, k] = words[cell.lower()]
    return values


def _noticed(table: Table, head: HeadSpec, values: NDArray[Any]) -> list[Problem]:
    problems = []
    missing = (
        int((values < 0).sum())
        if values.dtype.kind == "i"
        else int(np.isnan(values).reshape(len(values), -1).any(axis=1).sum())
    )
    if missing:
        problems.append(
            Problem(
                table.title,
                f"{missing} of {len(table)} rows have no value for '{head.name}'; they do not count in its loss and "
                "metrics.",
            )
        )
    by_case: dict[str, list[str]] = {}
    for name in head.class_names:
        by_case.setdefault(name.casefold(), []).append(name)
    for names in by_case.values():
        if len(names) > 1:
            problems.append(
                Problem(
                    table.title,
                    f"The classes {', '.join(map(repr, names))} of '{head.name}' differ in letter case only. Are they "
                    "one?",
                )
            )
    if looks_missing := [name for name in head.class_names if name.lower() in MISSING]:
        shown = ", ".join(map(repr, looks_missing))
        problems.append(
            Problem(
                table.title,
                f"'{head.name}' has the class {shown}. If that means a missing label, leave the cell empty.",
            )
        )
    if head.kind == "single" and len(head.class_names) > 50 and 2 * len(head.class_names) > len(table):
        hint = f"If it is a number to predict, pass --columns {head.name}=COLUMN:regression."
        problems.append(
            Problem(table.title, f"'{head.name}' has {len(head.class_names)} classes for {len(table)} rows. {hint}")
        )
    return problems
