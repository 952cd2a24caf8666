"""Tables: one row per picture, with its path and any number of columns (.csv .tsv .jsonl .json).

Roles of columns (`--columns role=column ...`): `image` the path; `label` one class; `labels` several classes, in one
cell with a separator or as several columns of 0 and 1 (`labels=cat,dog,bird`); `group`, `split`, `time`; `separator`.
Any other role is a head of that name: `color=color shape=shape`. A column of numbers with decimals becomes a
regression head; `age=age:regression`, `code=code:classes` and `tags=tags:multi` decide it. Columns without a role are
kept as attributes (for `--group`, slices).

An empty cell is a missing label; in a column of several labels the bare separator says that no class applies. Paths are
looked for beside the table, then from the root of the data, then by file name anywhere in it when only one fits.
Classes are in natural order, or as a `NAME.heads.json` beside the table says (it is written with the table).

A table with columns of a box or of points has one row per object instead: see `opsin.data.box_tables`.
"""

from __future__ import annotations

import csv as stdlib_csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.data.annotations import Annotations
from opsin.data.box_tables import box_rows, described, plan_boxes, points_of, read_boxes
from opsin.data.columns import StringColumn, normalized
from opsin.data.dataset import PARTS, Dataset, FileSource, HeadSpec, Problem
from opsin.data.heads import Plan, heads_from_table, plan_columns
from opsin.data.layout import PART_FOLDERS, ReadOptions, is_picture, suffix
from opsin.data.places import NO, Place, Verdict
from opsin.data.tables import SUFFIXES, Table, parse_table
from opsin.data.writing import file_names, new_folder, objects_of, part_folder, put
from opsin.errors import DataError

NAMES = ("csv",)
LOSES: tuple[str, ...] = ()


def _tables(place: Place) -> list[str]:
    if place.focus:
        return [place.focus] if suffix(place.focus) in SUFFIXES else []
    names = [n for n in place.names if suffix(n) in SUFFIXES and not n.endswith(".heads.json")]
    if not names:
        return []
    least = min(n.count("/") for n in names)
    return [n for n in names if n.count("/") == least]


def sniff(place: Place) -> Verdict:
    """A table with a column of picture paths."""
    tables = _tables(place)[:8]
    folders = {n.rpartition("/")[0] for n in place.names if is_picture(n)} if not place.focus else set()
    for name in tables:
        head = place.head(name, 65536)
        if suffix(name) == ".json" and not head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"["):
            continue
        try:
            table = parse_table(head if len(head) < 65536 else head[: head.rfind(b"\n") + 1], name)
            image = plan_columns(table, {}, only_image=True).image
        except DataError:
            if place.focus and suffix(name) != ".json":
                return Verdict(0.9, f"the table {name}")
            continue
        if image and (place.focus or any(_found(place, name, cell) for cell in table.columns[image][:20])):
            written_by_us = f"{name.rpartition('.')[0]}.heads.json" in place.names
            return Verdict(
                1.0 if place.focus or written_by_us else 0.9 if len(folders) <= 1 else 0.8,
                f"the table {name} with picture paths in '{image}'",
            )
    return Verdict(0.8, f"the table {place.focus}") if place.focus and tables and suffix(place.focus) != ".json" else NO


def read(place: Place, options: ReadOptions) -> Dataset:
    """Read a table of pictures, or train/val/test tables that lie together.

    Raises:
        DataError: if pictures are missing, a path stands twice with different rows, a cell cannot be read, or it is not
            clear which column is the label; always with file and line.
        UnknownName: if a role names a column that is not there; with the nearest ones.
    """
    names = _tables(place)
    stems = {n: n.rpartition("/")[2].rpartition(".")[0].lower() for n in names}
    if len(names) > 1 and not all(stem in PART_FOLDERS for stem in stems.values()):
        raise DataError(
            f"{place.title}: several tables ({', '.join(names[:6])}). Give the one that is meant, e.g. --data "
            f"{place.root / names[0]}."
        )
    if not names:
        raise DataError(f"{place.title}: no table ({' '.join(SUFFIXES)}) in it.")
    tables = [parse_table(place.read(name), place.where(name)) for name in names]
    table = _joined(tables)
    if (boxes := _boxes(place, names, tables, table, options, stems)) is not None:
        return boxes
    stored = _stored_heads(place, names[0])
    plan = plan_columns(table, options.columns or (stored or {}).get("columns", {}), known=(stored or {}).get("heads"))
    given = np.concatenate(
        [np.full(len(t), PART_FOLDERS[stems[n]] if len(names) > 1 else -1, np.int8) for n, t in zip(names, tables)]
    )
    table, given, files, problems = _files(place, names[0], table, given, plan, options.skip_bad)
    if plan.split:
        given = _parts(table, plan.split)
    heads, targets, notes = heads_from_table(table, plan)
    attributes = {c: StringColumn(cells) for c, cells in table.columns.items() if c != plan.image}
    return Dataset(
        place.root.name,
        [normalized(_relative(place, f)) for f in files],
        FileSource(place, StringColumn(files)),
        format="csv",
        heads=heads,
        targets=targets,
        attributes=attributes,
        given_split=given,
        problems=problems + notes,
        roles=plan.roles,
    )


def _boxes(
    place: Place, names: list[str], tables: list[Table], table: Table, options: ReadOptions, stems: dict[str, str]
) -> Dataset | None:
    """The data set of a table of boxes or points; None if it is another table."""
    beside = names[0].rpartition(".")[0] + ".heads.json"
    stored = _parsed_json(place, beside) if place.has(beside) else {}
    if "heads" in stored:
        return None
    image = options.columns.get("image") or plan_columns(table, {}, only_image=True).image
    table.column(image)
    plan = plan_boxes(table, options.columns, image, stored)
    if plan is None:
        return None
    found = Annotations(place, "csv", options, points_of(plan, stored))
    by_name: dict[str, list[str]] = {}

    def file_of(cell: str) -> str | None:
        name = _found(place, names[0], cell)
        if name is None:
            by_name.update(by_name or _by_name(place))
            fits = by_name.get(cell.replace("\\", "/").rpartition("/")[2], [])
            name = fits[0] if len(fits) == 1 else None
        return name

    parts = [PART_FOLDERS[stems[n]] if len(names) > 1 else -1 for n, t in zip(names, tables) for _ in range(len(t))]
    read_boxes(found, table, plan, file_of, image, parts)
    return found.dataset(stored.get("objects"), plan.roles)


def _parsed_json(place: Place, name: str) -> dict[str, Any]:
    try:
        values = json.loads(place.read(name))
    except ValueError as error:
        raise DataError(f"{place.where(name)}: not JSON ({error}).") from error
    return values if isinstance(values, dict) else {}


def _stored_heads(place: Place, table: str) -> dict[str, Any] | None:
    name = table.rpartition(".")[0] + ".heads.json"
    if not place.has(name):
        return None
    try:
        values = json.loads(place.read(name))
        heads = {h["column"]: HeadSpec(h["name"], h["kind"], tuple(h["class_names"])) for h in values["heads"]}
        return {"columns": values["columns"], "heads": heads}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{place.where(name)}: not a description of heads ({error}). Delete it to have the columns inferred."
        ) from error


def _joined(tables: list[Table]) -> Table:
    if len({t.header for t in tables}) > 1:
        raise DataError(
            f"The tables {', '.join(t.title for t in tables)} have different columns. Expected the same header in each."
        )
    if len(tables) == 1:
        return tables[0]
    columns = {c: [cell for t in tables for cell in t.columns[c]] for c in tables[0].header}
    return Table(
        tables[0].title, tables[0].header, columns, [line for t in tables for line in t.lines], tables[0].headless
    )


def _found(place: Place, table: str, cell: str) -> str | None:
    """The member that a cell of the image column means: beside the table, or from the root."""
    folder = table.rpartition("/")[0]
    written = cell.replace("\\", "/").removeprefix("./")
    for name in dict.fromkeys((f"{folder}/{written}" if folder else written, written)):
        if written and place.has(name):
            return name
    return None


def _relative(place: Place, name: str) -> str:
    if name.startswith("/"):
        base = str(place.root.resolve()) + "/"
        return name.removeprefix(base) if name.startswith(base) else name.lstrip("/")
    return name


def _files(
    place: Place, title: str, table: Table, given: NDArray[np.int8], plan: Plan, skip_bad: bool
) -> tuple[Table, NDArray[np.int8], list[str], list[Problem]]:
    """Find the file of every row; drop (and report) rows without one if allowed, and rows that repeat another
    exactly."""
    by_name: dict[str, list[str]] | None = None
    files: list[str] = []
    kept: list[int] = []
    first: dict[str, int] = {}
    bad: list[Problem] = []
    repeated: list[Problem] = []
    for row, cell in enumerate(table.columns[plan.image]):
        name = _found(place, title, cell)
        if name is None and cell:
            if by_name is None:
                by_name = _by_name(place)
            fits = by_name.get(cell.replace("\\", "/").rpartition("/")[2], [])
            name = fits[0] if len(fits) == 1 else None
        if name is None:
            what = (
                f"the picture '{cell}' was not found in {place.root}"
                if cell
                else f"no picture in the column '{plan.image}'"
            )
            bad.append(Problem(table.where(row), f"{what}.", cell or None, "error"))
        elif name in first:
            before = first[name]
            same = all(cells[row] == cells[before] for cells in table.columns.values())
            values = "the same values" if same else "different values"
            said = f"the picture '{cell}' stands in line {table.lines[before]} too, with {values}"
            (repeated if same else bad).append(
                Problem(table.where(row), f"{said}.", cell, "warning" if same else "error")
            )
        else:
            first[name] = row
            files.append(name)
            kept.append(row)
    if bad and not skip_bad:
        more = f" ({len(bad)} such rows in all)" if len(bad) > 1 else ""
        raise DataError(
            f"{bad[0].where}: {bad[0].message}{more} Correct the table, or pass --skip-bad to leave such rows out and "
            "count them."
        )
    if not kept:
        raise DataError(
            f"{table.title}: no row names a picture that exists. The first: {bad[0].message if bad else 'none'}"
        )
    for problems, words in (
        (bad, "rows without a usable picture were left out"),
        (repeated, "repeated rows were left out"),
    ):
        if problems:
            bad_or_not = problems[0].level
            problems[20:] = []
            problems.append(
                Problem(table.title, f"{len(table) - len(kept)} rows in all were left out ({words}).", None, bad_or_not)
            )
    return table.keep(kept), given[kept], files, bad + repeated


def _by_name(place: Place) -> dict[str, list[str]]:
    """File name, and file name without its ending, to members."""
    places: dict[str, list[str]] = {}
    for name in place.names:
        if is_picture(name):
            last = name.rpartition("/")[2]
            places.setdefault(last, []).append(name)
            places.setdefault(last.rpartition(".")[0], []).append(name)
    return places


def _parts(table: Table, column: str) -> NDArray[np.int8]:
    cells = table.column(column)
    codes = [PART_FOLDERS.get(cell.lower(), -1) for cell in cells]
    for row, (cell, code) in enumerate(zip(cells, codes)):
        if code < 0 and cell:
            raise DataError(
                f"{table.where(row)}: '{cell}' in the column '{column}' is no part. Expected train, val or test."
            )
    return np.array(codes, np.int8)


def write(dataset: Dataset, to: str | os.PathLike[str]) -> None:
    """Write `labels.csv`, `labels.heads.json` and the pictures byte for byte under `images/`; the folder appears when
    complete.

    Raises:
        DataError: if `to` exists.
    """
    target = Path(to)
    if target.exists():
        raise DataError(f"{target}: exists already. Give a new folder.")
    if any(head.kind == "objects" for head in dataset.heads):
        _write_boxes(dataset, target)
        return
    partial = target.with_name(target.name + ".partial")
    (partial / "images").mkdir(parents=True)
    separator = next(s for s in "|;/\t\x1e" if not any(s in c for h in dataset.heads for c in h.class_names))
    names = []
    for i in range(len(dataset)):
        data, filename = dataset.bytes_of(i)
        relative = Path("images", *[p for p in Path(dataset.id(i)).parent.parts if p != ".."], filename)
        (partial / relative).parent.mkdir(parents=True, exist_ok=True)
        (partial / relative).write_bytes(data)
        names.append(relative.as_posix())
    columns: dict[str, Any] = {"image": names}
    for head in dataset.heads:
        columns[head.name] = [_written(head, dataset.targets[head.name][i], separator) for i in range(len(dataset))]
    if (dataset.given_split >= 0).any():
        columns["split"] = [PARTS[code] if code >= 0 else "" for code in dataset.given_split.tolist()]
    columns |= {name: list(column) for name, column in dataset.attributes.items() if name not in columns}
    text = io.StringIO()
    writer = stdlib_csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values()))
    (partial / "labels.csv").write_text(text.getvalue(), encoding="utf-8")
    (partial / "labels.heads.json").write_text(
        json.dumps(_described(dataset, columns, separator), ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
    partial.rename(target)


def _write_boxes(dataset: Dataset, target: Path) -> None:
    head, _ = objects_of(dataset, "csv")
    names = [f"images/{part_folder(dataset, i)}{name}" for i, name in enumerate(file_names(dataset))]
    header, rows = box_rows(dataset, head, names)
    with new_folder(target) as folder:
        for i, name in enumerate(names):
            put(folder, name, dataset.bytes_of(i)[0])
        text = io.StringIO()
        writer = stdlib_csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        put(folder, "labels.csv", text.getvalue())
        put(folder, "labels.heads.json", json.dumps(described(head), ensure_ascii=False, indent=2) + "\n")


def _described(dataset: Dataset, columns: dict[str, Any], separator: str) -> dict[str, Any]:
    roles = {"image": "image", **({"split": "split"} if "split" in columns else {}), "separator": separator}
    roles |= {role: column for role, column in dataset.roles.items() if column in columns}
    roles |= {head.name: head.name for head in dataset.heads}
    heads = [
        {"column": h.name, "name": h.name, "kind": h.kind, "class_names": list(h.class_names)} for h in dataset.heads
    ]
    return {"version": 1, "columns": roles, "heads": heads}


def _written(head: HeadSpec, value: Any, separator: str) -> str:
    if head.kind == "single":
        return head.class_names[value] if value >= 0 else ""
    if head.kind == "regression":
        return "" if np.isnan(value) else repr(float(value))
    if np.isnan(value).any():
        return ""
    return separator.join(name for name, on in zip(head.class_names, value) if on) or separator
