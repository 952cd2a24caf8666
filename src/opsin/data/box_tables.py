"""Tables of boxes and points: one row per object, a row without a box for a picture without objects.

Boxes are four columns: xmin ymin xmax ymax (or x1 y1 x2 y2, left top right bottom) or x y width height, in pixels, or in shares
of the picture where all numbers lie in 0 to 1 (`--columns units=pixels` or `units=shares` decides it). Points are pairs of columns
(x0 y0, part_0_x part_0_y, nose_x nose_y) with a visibility (v0, nose_v) where they have one. A table with points and without
boxes has one object per row: its box is the whole picture, or with `--columns box=hull` the one around its points.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opsin.data.annotations import Annotations, point_spec
from opsin.data.columns import StringColumn
from opsin.data.dataset import Dataset, FileSource, HeadSpec
from opsin.data.layout import PART_FOLDERS
from opsin.data.tables import Table
from opsin.data.targets import PointSpec
from opsin.data.writing import part_folder, text
from opsin.errors import ConfigError, UnknownName

CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
    ("bbox_xmin", "bbox_ymin", "bbox_xmax", "bbox_ymax"),
    ("xtl", "ytl", "xbr", "ybr"),
)
EXTENTS = (
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"),
    ("bbox_x", "bbox_y", "bbox_w", "bbox_h"),
    ("left", "top", "width", "height"),
)
CLASSES = ("class", "label", "class_name", "name", "category", "label_name", "object")
ROLES = frozenset(
    ["image", "class", "box", "units", "split", "group", "time", "crowd", "difficult", "area", *CORNERS[0], *EXTENTS[0]]
)
"""What `--columns` may name in a table of boxes."""

UNNAMED = "object"
"""The class of objects in a table without a column of classes."""

# iBUG's 68 points of a face (https://ibug.doc.ic.ac.uk/resources/300-W/): where each goes in a mirror
_FACE_68 = {
    **{k: 16 - k for k in range(17)}, **{k: 43 - k for k in range(17, 27)}, **{k: 66 - k for k in range(31, 36)},
    36: 45, 37: 44, 38: 43, 39: 42, 40: 47, 41: 46, 45: 36, 44: 37, 43: 38, 42: 39, 47: 40, 46: 41,
    **{k: 102 - k for k in range(48, 55)}, **{k: 114 - k for k in range(55, 60)},
    **{k: 124 - k for k in range(60, 65)}, **{k: 132 - k for k in range(65, 68)},
}  # fmt: skip


@dataclass(frozen=True)
class BoxPlan:
    """Which column is what.

    Args:
        box: four columns, or none.
        extents: whether the last two are width and height.
        points: point name to its columns (x, y, visibility or None).
        label: of the class.
        marks: crowd, difficult and area, where they are.
        attributes: columns that are kept as text.
    """

    box: tuple[str, ...] = ()
    extents: bool = False
    points: Mapping[str, tuple[str, str, str | None]] = field(default_factory=dict)
    label: str | None = None
    marks: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    hull: bool = False
    units: str | None = None
    attributes: tuple[str, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)


def plan_boxes(
    table: Table, columns: Mapping[str, str], image: str, stored: Mapping[str, Any] | None
) -> BoxPlan | None:
    """What a table holds of boxes and points, None if neither (or if roles of classification are asked for).

    Args:
        stored: what is written beside the table, with the names of its points.

    Raises:
        ConfigError: if `box` or `units` says what they cannot.
        UnknownName: if a role names a column that is not there.
    """
    if set(columns) - ROLES:
        return None
    box, extents = _box_columns(table, columns, image)
    used = {image, *box}
    points = _point_columns(table, used, (stored or {}).get("points"))
    if not box and len(points) < 3:
        return None
    if columns.get("box", "picture") not in ("picture", "hull"):
        raise ConfigError(f"--columns box={columns['box']}: expected picture or hull.")
    if columns.get("units", "pixels") not in ("pixels", "shares"):
        raise ConfigError(f"--columns units={columns['units']}: expected pixels or shares.")
    lower = {name.lower(): name for name in table.header if name not in used}
    label = columns.get("class") or next((lower[name] for name in CLASSES if name in lower), None)
    if label is None and table.headless and len(table.header) == 6:
        label = table.header[5]
    split = columns.get("split") or lower.get("split")
    marks = {m: columns.get(m) or lower[m] for m in ("crowd", "difficult", "area") if columns.get(m) or m in lower}
    for name in filter(None, (label, split, *marks.values(), columns.get("group"), columns.get("time"))):
        table.column(name)
    used |= {c for three in points.values() for c in three if c} | {*filter(None, (label, split)), *marks.values()}
    used |= {name for name in table.header if extents is False and name.lower() in ("width", "height")}
    roles = {role: columns[role] for role in ("group", "time") if role in columns}
    rest = tuple(name for name in table.header if name not in used)
    hull = columns.get("box") == "hull"
    units = columns.get("units")
    return BoxPlan(box, extents, points, label, marks, split, hull, units, rest, roles)


def _box_columns(table: Table, columns: Mapping[str, str], image: str) -> tuple[tuple[str, ...], bool]:
    for roles, extents in ((CORNERS[0], False), (EXTENTS[0], True)):
        named = [columns[role] for role in roles if role in columns]
        if len(named) == 4:
            for name in named:
                table.column(name)
            return tuple(named), extents
        if named and any(role in columns for role in roles if role not in ("x", "y")):
            missing = next(role for role in roles if role not in columns)
            raise UnknownName("role", missing, columns, f"A box needs the columns {', '.join(roles)}.")
    lower = {name.lower(): name for name in table.header}
    for groups, extents in ((CORNERS, False), (EXTENTS, True)):
        for group in groups:
            if all(name in lower for name in group) and f"{group[0][0]}3" not in lower:
                return tuple(lower[name] for name in group), extents
    if table.headless and len(table.header) == 6 and table.header[0] == image:
        four = table.header[1:5]
        cells = [cell for name in four for cell in table.columns[name][:50] if cell]
        if cells and all(_number(cell) is not None for cell in cells):
            return four, False
    return (), False


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _point_columns(table: Table, used: set[str], stored: list[str] | None) -> dict[str, tuple[str, str, str | None]]:
    """Pairs of columns that differ in x and y only, in the order of the table."""
    if stored:
        return {name: (f"{name}_x", f"{name}_y", f"{name}_v") for name in stored}
    found: dict[str, tuple[str, str, str | None]] = {}
    header = set(table.header)
    for column in table.header:
        matched = re.fullmatch(r"(?P<stem>.+)_x|x_?(?P<number>\d+)", column, re.IGNORECASE)
        if matched is None or column in used:
            continue
        at = matched.end("stem") + 1 if matched["stem"] else 0
        twins = [column[:at] + (letter if column[at] == "x" else letter.upper()) + column[at + 1 :] for letter in "yv"]
        if twins[0] in header and twins[0] not in used:
            name = matched["stem"] or matched["number"]
            found[name] = (column, twins[0], twins[1] if twins[1] in header else None)
    return found


def points_of(plan: BoxPlan, stored: Mapping[str, Any] | None) -> PointSpec | None:
    """What the points are: as stored beside the table, or as their names say."""
    if not plan.points:
        return None
    if stored and stored.get("points"):
        pairs = tuple((int(a), int(b)) for a, b in stored.get("skeleton", ()))
        swaps = tuple(int(k) for k in stored.get("swaps", ()))
        return PointSpec(tuple(stored["points"]), swaps, pairs, tuple(float(v) for v in stored.get("sigmas", ())))
    names = tuple(plan.points)
    spec = point_spec(names)
    if len(names) == 68 and not spec.swaps:
        return PointSpec(names, tuple(_FACE_68.get(k, k) for k in range(68)))
    return spec


def read_boxes(
    found: Annotations, table: Table, plan: BoxPlan, file_of: Callable[[str], str | None], image: str, parts: list[int]
) -> None:
    """Every row of a table as an object.

    Args:
        file_of: the picture that a cell means, if there is one.
        parts: of every row, -1 without.

    Raises:
        DataError: if a picture is missing or a cell is no number; with file and line.
    """
    shares = plan.units == "shares" or (plan.units is None and _are_shares(table, plan))
    if shares and plan.units is None:
        found.note(
            "all coordinates lie in 0 to 1, so they are read as shares of the pictures (units=pixels says otherwise)."
        )
    boxless = 0
    for row, cell in enumerate(table.columns[image]):
        at = table.where(row)
        name = file_of(cell) if cell else None
        if name is None:
            found.bad(at, f"the picture '{cell}' was not found in {found.place.root}.", "rows")
            continue
        part = _part(table, plan, row, parts[row])
        picture = found.row(name)
        if picture is None:
            kept = {c: table.columns[c][row] for c in plan.attributes if table.columns[c][row]}
            picture = found.picture(name, part, attributes=kept)
        cells = [table.columns[c][row] for c in plan.box]
        if plan.box and not any(cells):
            boxless += 1
            continue
        _add_row(found, table, plan, row, picture, f"{at} ({name.rpartition('/')[2]})", shares)
    if boxless:
        found.note(
            f"{boxless} rows have no box; their pictures count as pictures without objects, unless others have one.",
            level="info",
        )


def _are_shares(table: Table, plan: BoxPlan) -> bool:
    columns = plan.box or [c for x, y, _ in plan.points.values() for c in (x, y)]
    values = [float(cell) for c in columns for cell in table.columns[c] if _number(cell) is not None]
    return bool(values) and all(0 <= v <= 1 for v in values) and any(not v.is_integer() for v in values)


def _part(table: Table, plan: BoxPlan, row: int, otherwise: int) -> int:
    return PART_FOLDERS.get(table.columns[plan.split][row].lower(), -1) if plan.split else otherwise


def _add_row(found: Annotations, table: Table, plan: BoxPlan, row: int, picture: int, at: str, shares: bool) -> None:
    def number(column: str) -> float | None:
        return _number(table.columns[column][row])

    source = FileSource(found.place, found.names)  # type: ignore[arg-type]
    size = source.probe(picture).size if shares or not plan.box else (1, 1)
    width, height = (size[1], size[0]) if shares else (1, 1)
    points: list[float] = []
    for x_column, y_column, v_column in plan.points.values():
        x, y = number(x_column), number(y_column)
        for column, value in ((x_column, x), (y_column, y)):
            if value is None and (written := table.columns[column][row]):
                found.bad(at, f"'{written}' in the column '{column}' is not a number.", "rows")
                return
        seen = number(v_column) if v_column else 2.0
        points += [x * width, y * height, seen] if x is not None and y is not None and seen else [0.0, 0.0, 0.0]
    if plan.box:
        values = [number(c) for c in plan.box]
        for column, value in zip(plan.box, values):
            if value is None:
                found.bad(at, f"'{table.columns[column][row]}' in the column '{column}' is not a number.", "rows")
                return
        a, b, c, d = (v for v in values if v is not None)
        box = (a, b, a + c, b + d) if plan.extents else (a, b, c, d)
        box = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    elif plan.hull:
        seen_points = [points[k : k + 2] for k in range(0, len(points), 3) if points[k + 2]]
        xs, ys = zip(*seen_points) if seen_points else ((0.0,), (0.0,))
        box = (min(xs), min(ys), max(xs), max(ys))
    else:
        box = (0.0, 0.0, float(size[1]), float(size[0]))
    word = table.columns[plan.label][row] if plan.label else UNNAMED
    if not word:
        found.bad(at, f"it has a box, but no class in the column '{plan.label}'.", "rows")
        return
    marks = {
        m: table.columns[c][row].lower() in ("1", "1.0", "true", "yes") for m, c in plan.marks.items() if m != "area"
    }
    area = number(plan.marks["area"]) if "area" in plan.marks else None
    found.add(
        picture,
        word,
        box,
        at,
        crowd=marks.get("crowd", False),
        difficult=marks.get("difficult", False),
        area=math.nan if area is None else area,
        points=points or None,
    )


def box_rows(dataset: Dataset, head: HeadSpec, names: list[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table with everything that a data set of boxes holds.

    Args:
        names: of the pictures' files.
    """
    column = dataset.targets[head.name]
    every = column.objects
    marks = [mark for mark in ("crowd", "difficult") if getattr(every, mark).any()]
    area = bool(np.isfinite(every.area).any())
    points = head.points.names if head.points is not None else ()
    split = bool((dataset.given_split >= 0).any())
    taken = {"image", *CORNERS[0], "class", "split", "crowd", "difficult", "area"}
    attributes: dict[str, StringColumn] = {k: v for k, v in dataset.attributes.items() if k not in taken}
    header = ["image", *CORNERS[0], "class", *marks, *(["area"] if area else [])]
    header += [f"{name}_{axis}" for name in points for axis in "xyv"]
    header += [*(["split"] if split else []), *attributes]
    rows = []
    for i, name in enumerate(names):
        objects = column[i]
        last = [*([part_folder(dataset, i).rstrip("/")] if split else []), *(c[i] for c in attributes.values())]
        blank = len(header) - 1 - len(last)
        if not len(objects):
            rows.append([name, *[""] * blank, *last])
        for k in range(len(objects)):
            cells = [text(v) for v in objects.boxes_xyxy[k].tolist()] + [head.class_names[objects.labels[k]]]
            cells += [str(int(getattr(objects, mark)[k])) for mark in marks]
            cells += ["" if math.isnan(objects.area[k]) else text(float(objects.area[k]))] if area else []
            cells += [text(v) for v in objects.points[k].reshape(-1).tolist()]
            rows.append([name, *cells, *last])
    return header, rows


def described(head: HeadSpec) -> dict[str, Any]:
    """What is written beside a table of boxes: the order of classes and what the points are."""
    values: dict[str, Any] = {"version": 1, "objects": list(head.class_names)}
    if head.points is not None:
        values |= {"points": list(head.points.names), "swaps": list(head.points.swaps)}
        values |= {"skeleton": [list(pair) for pair in head.points.skeleton], "sigmas": list(head.points.sigmas)}
    return values
