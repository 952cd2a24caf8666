"""LabelMe: one JSON file per picture, beside it, with rectangles, outlines and points.

Rectangles are objects; of outlines and circles the box around them is taken. Points with the `group_id` of a rectangle are
that object's, named by their labels. Parts are given by folders (train, val, test). Classes are in natural order, or as a
`labels.txt` lists them, and points as a `points.txt`. The flags `crowd`, `difficult` and `hidden` of a shape are kept.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

from opsin.data.annotations import Annotations, Pictures, named_classes, part_in, point_spec, stated_size
from opsin.data.columns import natural_key
from opsin.data.dataset import Dataset, HeadSpec
from opsin.data.layout import ReadOptions, suffix
from opsin.data.objects import Objects
from opsin.data.places import NO, Place, Verdict
from opsin.data.writing import file_names, new_folder, objects_of, part_folder, plain, put, stems
from opsin.errors import ConfigError, DataError

NAMES = ("labelme",)
LOSES = ("area", "layout", "attributes")

_IGNORED = ("__ignore__", "_background_")  # what LabelMe's own labels.txt begins with


def sniff(place: Place) -> Verdict:
    """JSON files with `shapes` and `imagePath`."""
    names = [place.focus] if place.focus else [n for n in place.names if suffix(n) == ".json"][:5]
    fits = [n for n in names if suffix(n) == ".json" and _is_one(place, n)]
    return Verdict(0.95, f"LabelMe annotations, e.g. {fits[0]}") if fits else NO


def _is_one(place: Place, name: str) -> bool:
    head = place.head(name, 1 << 16)
    return head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") and b'"shapes"' in head and b'"annotations"' not in head


def read(place: Place, options: ReadOptions) -> Dataset:
    """Read LabelMe annotations.

    Raises:
        DataError: if JSON is broken, a picture is missing, or a shape has no label or no extent; with file and shape.
        ConfigError: if `columns` is given, which LabelMe does not have.
    """
    if options.columns:
        raise ConfigError(f"LabelMe knows no --columns; given: {dict(options.columns)}.")
    names = [place.focus] if place.focus else [n for n in place.names if suffix(n) == ".json" and _is_one(place, n)]
    if not names:
        raise DataError(f"{place.title}: no LabelMe annotations (JSON with shapes and imagePath) in it.")
    files = {name: _parsed(place, name) for name in names}
    points = named_classes(place, ("points.txt",)) or _point_names(files.values())
    found = Annotations(place, "labelme", options, point_spec(points) if points else None)
    pictures, counts = Pictures(place), Counter[str]()
    for name, values in files.items():
        folder, part = name.rpartition("/")[0], part_in(name.rpartition("/")[0] + "/")
        written = str(values.get("imagePath") or "")
        picture = pictures.find(written, folder, part) if written else None
        picture = picture or pictures.of_stem(name.rpartition(".")[0], part)
        if picture is None:
            found.bad(place.where(name), f"its picture '{written}' was not found.", "pictures")
            continue
        height, width = values.get("imageHeight"), values.get("imageWidth")
        row = found.picture(picture, part, stated=stated_size(height, width))
        _add_shapes(found, row, name, values["shapes"], counts)
    if counts["outlines"]:
        found.note(f"{counts['outlines']} shapes are outlines or circles; the box around each was taken.", level="info")
    if counts["single"]:
        found.note(f"{counts['single']} points belong to no rectangle (no common group_id) and were not read.")
    if counts["lines"]:
        found.note(f"{counts['lines']} shapes are lines or masks and were not read.")
    unused = len(pictures.names) - len(found)
    if unused > 0 and not place.focus:
        found.note(
            f"{unused} pictures have no JSON file and were not used: without one, nobody looked for objects in them."
        )
    listed = named_classes(place, ("labels.txt",))
    return found.dataset([name for name in listed if name not in _IGNORED] if listed else None)


def _parsed(place: Place, name: str) -> dict[str, Any]:
    try:
        values = json.loads(place.read(name).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place.where(name)}: not JSON ({error}).") from error
    if not isinstance(values, dict) or not isinstance(values.get("shapes"), list):
        raise DataError(f"{place.where(name)}: no LabelMe annotation; expected an object with the list 'shapes'.")
    for number, shape in enumerate(values["shapes"], 1):
        group, flags = (shape.get("group_id"), shape.get("flags")) if isinstance(shape, dict) else (None, None)
        if isinstance(group, list | dict) or not isinstance(flags or {}, dict):
            raise DataError(
                f"{place.where(name)}, shape {number}: expected a number as its group_id and an object as its flags."
            )
    return values


def _kind(shape: dict[str, Any]) -> str:
    return str(shape.get("shape_type") or "polygon")


def _point_names(files: Iterable[dict[str, Any]]) -> list[str]:
    """Labels of the points that share a group with a rectangle or outline, in natural order."""
    names = set()
    for values in files:
        shapes = [s for s in values["shapes"] if isinstance(s, dict) and s.get("group_id") is not None]
        groups = {s["group_id"] for s in shapes if _kind(s) != "point"}
        names |= {str(s.get("label")) for s in shapes if _kind(s) == "point" and s["group_id"] in groups}
    return sorted(names, key=natural_key)


def _add_shapes(found: Annotations, row: int, name: str, shapes: list[Any], counts: Counter[str]) -> None:
    grouped: dict[Any, dict[str, tuple[float, float, float]]] = {}
    spec = found.points
    bodies = {s.get("group_id") for s in shapes if isinstance(s, dict) and _kind(s) != "point"} - {None}
    objects = []
    for number, shape in enumerate(shapes, 1):
        at = f"{found.place.where(name)}, shape {number}"
        label = str(shape.get("label") or "").strip() if isinstance(shape, dict) else ""
        try:
            corners = [(float(x), float(y)) for x, y in shape["points"]]
        except (TypeError, ValueError, KeyError, OverflowError):
            found.bad(at, "its points are no list of [x, y].", "shapes")
            continue
        if not label or not corners:
            found.bad(at, "it has no label or no points.", "shapes")
            continue
        at += f" ({label})"
        kind, group = _kind(shape), shape.get("group_id")
        if kind == "point" and spec is not None and group in bodies and label in spec.names:
            hidden = bool((shape.get("flags") or {}).get("hidden"))
            grouped.setdefault(group, {})[label] = (*corners[0], 1.0 if hidden else 2.0)
        elif kind == "point":
            counts["single"] += 1
        elif kind in ("rectangle", "polygon", "circle"):
            counts["outlines"] += kind != "rectangle"
            objects.append((at, label, _box(kind, corners), group, shape.get("flags") or {}))
        else:
            counts["lines"] += 1
    for at, label, box, group, flags in objects:
        points = None
        if spec is not None and group in grouped:
            points = [v for point in spec.names for v in grouped[group].get(point, (0.0, 0.0, 0.0))]
        crowd, difficult = bool(flags.get("crowd")), bool(flags.get("difficult"))
        found.add(row, label, box, at, crowd=crowd, difficult=difficult, points=points)


def _box(kind: str, corners: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    """The box around a shape; a circle is its center and a point of its edge."""
    if kind == "circle" and len(corners) == 2:
        (x, y), radius = corners[0], math.dist(*corners)
        return x - radius, y - radius, x + radius, y + radius
    xs, ys = zip(*corners)
    return min(xs), min(ys), max(xs), max(ys)


def write(dataset: Dataset, to: str | os.PathLike[str]) -> list[str]:
    """Write pictures byte for byte under `images/[PART/]`, JSON files beside them, and `labels.txt` (and `points.txt`).

    Raises:
        DataError: if `to` exists, the data set holds no boxes, or two pictures differ in their ending only.
    """
    head, column = objects_of(dataset, "labelme")
    names = file_names(dataset)
    bare = stems(names, "labelme")
    with new_folder(to) as folder:
        for i, name in enumerate(names):
            height, width = dataset.size(i)
            values: dict[str, Any] = {
                "version": "5.0.1",
                "flags": {},
                "shapes": _shapes(head, column[i]),
                "imagePath": name.rpartition("/")[2],
                "imageData": None,
                "imageHeight": height,
                "imageWidth": width,
            }
            put(folder, f"images/{part_folder(dataset, i)}{name}", dataset.bytes_of(i)[0])
            written = json.dumps(values, ensure_ascii=False, indent=1) + "\n"
            put(folder, f"images/{part_folder(dataset, i)}{bare[i]}.json", written)
        put(folder, "labels.txt", "".join(f"{name}\n" for name in head.class_names))
        if head.points is not None:
            put(folder, "points.txt", "".join(f"{name}\n" for name in head.points.names))
    return []


def _shapes(head: HeadSpec, objects: Objects) -> list[dict[str, Any]]:
    shapes = []
    for k in range(len(objects)):
        x1, y1, x2, y2 = map(plain, objects.boxes_xyxy[k].tolist())
        group = k + 1 if head.points is not None and (objects.points[k, :, 2] > 0).any() else None
        flags = {mark: True for mark in ("crowd", "difficult") if getattr(objects, mark)[k]}
        shapes.append(_shape(head.class_names[objects.labels[k]], "rectangle", [[x1, y1], [x2, y2]], group, flags))
        for name, (x, y, seen) in zip(head.points.names if head.points else (), objects.points[k].tolist()):
            if seen > 0:
                shapes.append(
                    _shape(name, "point", [[plain(x), plain(y)]], group, {"hidden": True} if seen == 1 else {})
                )
    return shapes


def _shape(label: str, kind: str, points: list[list[Any]], group: int | None, flags: dict[str, bool]) -> dict[str, Any]:
    return {
        "label": label,
        "points": points,
        "group_id": group,
        "description": "",
        "shape_type": kind,
        "flags": flags,
    }
