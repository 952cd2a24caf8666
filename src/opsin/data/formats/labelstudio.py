"""Label Studio's JSON export: a list of tasks with rectangles and points in percent of the picture.

Pictures are found by the path in a task, without the prefix that an upload gets (`1f3a5b7c-name.jpg`). Points belong to the
rectangle that is their parent (or whose id begins theirs). Of outlines and rotated rectangles the upright box around them is
taken. Where a task was annotated several times, the first annotation that was not cancelled is read. Further texts of a task become
columns, `split` its part. The order of classes and points is that of a labeling configuration (`config.xml`), if there is one.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree

from opsin.data.annotations import Annotations, Pictures, below_pictures, part_code, point_spec, xml_root
from opsin.data.columns import natural_key
from opsin.data.dataset import PARTS, Dataset, FileSource, HeadSpec
from opsin.data.layout import ReadOptions, is_picture, suffix
from opsin.data.objects import Objects
from opsin.data.places import NO, Place, Verdict
from opsin.data.writing import file_names, new_folder, objects_of, part_folder, put
from opsin.errors import ConfigError, DataError

NAMES = ("labelstudio",)
LOSES = ("area", "layout")

_UPLOADED = re.compile(r"^[0-9a-f]{8}-")
_BOXES = ("rectanglelabels", "polygonlabels", "ellipselabels")


def sniff(place: Place) -> Verdict:
    """A JSON list of objects with `data` and `annotations`."""
    files = _files(place)
    return Verdict(0.95, f"the Label Studio tasks {files[0]}") if files else NO


def _files(place: Place) -> list[str]:
    names = [place.focus] if place.focus else [n for n in place.names if suffix(n) == ".json"][:20]
    heads = {n: place.head(n, 1 << 16).lstrip(b"\xef\xbb\xbf \r\n\t") for n in names if suffix(n) == ".json"}
    return [n for n, head in heads.items() if head[:1] == b"[" and b'"annotations"' in head and (b'"result"' in head)]


def read(place: Place, options: ReadOptions) -> Dataset:
    """Read a Label Studio export.

    Raises:
        DataError: if JSON is broken, a picture is missing, or a result has no label or no extent; with file and task.
        ConfigError: if `columns` is given, which Label Studio does not have.
    """
    if options.columns:
        raise ConfigError(f"Label Studio knows no --columns; given: {dict(options.columns)}.")
    files = _files(place)
    if len(files) != 1:
        held = (
            f"several Label Studio exports ({', '.join(files)}); give one" if files else "no Label Studio export in it"
        )
        raise DataError(f"{place.title}: {held}.")
    where = place.where(files[0])
    try:
        tasks = json.loads(place.read(files[0]).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}).") from error
    classes, points = _configured(place)
    points = points or _point_names(tasks)
    found = Annotations(place, "labelstudio", options, point_spec(points) if points else None)
    pictures, counts = Pictures(place), Counter[str]()
    for number, task in enumerate(tasks, 1):
        at = f"{where}, task {task.get('id', number) if isinstance(task, dict) else number}"
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            found.bad(at, "it has no data.", "tasks")
            continue
        if not _lists(task):
            found.bad(at, "its annotations are no list of objects, each with a list of results.", "tasks")
            continue
        texts = {k: str(v) for k, v in task["data"].items() if isinstance(v, str | int | float)}
        part = part_code(texts.get("split", ""))
        key, name = _picture(pictures, texts, part)
        if name is None:
            found.bad(at, f"its picture '{texts.get(key, '')}' was not found.", "pictures")
            continue
        kept = {k: v for k, v in texts.items() if k != key and not (k == "split" and part >= 0)}
        row = found.picture(name, part, below_pictures(name, part), kept)
        given = [a for a in task.get("annotations") or () if not a.get("was_cancelled")]
        counts["several"] += len(given) > 1
        counts["unlabeled"] += not given
        if given:
            _add_results(found, row, given[0].get("result") or [], f"{at} ({name.rpartition('/')[2]})", counts)
    for what, words in (
        ("outlines", "results are outlines or ellipses; the box around each was taken"),
        ("rotated", "rectangles are rotated; the upright box around each was taken"),
        ("several", "tasks have several annotations; the first was read"),
    ):
        if counts[what]:
            found.note(f"{counts[what]} {words}.", level="info")
    if counts["unlabeled"]:
        found.note(f"{counts['unlabeled']} tasks have no annotation; they count as pictures without objects.")
    if counts["unread"]:
        found.note(f"{counts['unread']} results are neither boxes nor points of one and were not read.")
    return found.dataset(classes or None)


def _lists(task: dict[str, Any]) -> bool:
    """Whether annotations and their results are lists of objects."""

    def objects(entries: Any) -> bool:
        return isinstance(entries, list) and all(isinstance(one, dict) for one in entries)

    given = task.get("annotations") or []
    return objects(given) and all(objects(one.get("result") or []) for one in given)


def _picture(pictures: Pictures, texts: dict[str, str], part: int) -> tuple[str, str | None]:
    """The entry of a task's data that names its picture, and the file."""
    last = ""
    for key, written in texts.items():
        parts = urlsplit(written)
        path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0].lstrip("/")
        if not is_picture(path):
            continue
        last = key
        folder, _, file = path.rpartition("/")
        for name in dict.fromkeys((path, f"{folder}/{_UPLOADED.sub('', file)}", file, _UPLOADED.sub("", file))):
            if (fits := pictures.find(name, "", part)) is not None:
                return key, fits
    return last, None


def _configured(place: Place) -> tuple[list[str], list[str]]:
    """Classes and points in the order of the labeling configuration."""
    files = [n for n in place.names if n.rpartition("/")[2] == "config.xml" and b"<View" in place.head(n, 4096)]
    if len(files) != 1:
        return [], []
    root = xml_root(place, files[0])
    tags = ("RectangleLabels", "PolygonLabels", "EllipseLabels")
    classes = [label.get("value", "") for tag in tags for group in root.iter(tag) for label in group.iter("Label")]
    points = [label.get("value", "") for group in root.iter("KeyPointLabels") for label in group.iter("Label")]
    return list(dict.fromkeys(classes)), list(dict.fromkeys(points))


def _point_names(tasks: Any) -> list[str]:
    words = {
        word
        for task in tasks
        if isinstance(task, dict) and _lists(task)
        for one in task.get("annotations") or ()
        for result in one.get("result") or ()
        if result.get("parentID")
        for word in (result.get("value") or {}).get("keypointlabels") or ()
    }
    return sorted(words, key=natural_key)


def _add_results(found: Annotations, row: int, results: list[Any], at: str, counts: Counter[str]) -> None:
    height, width = FileSource(found.place, found.names).probe(row).size  # type: ignore[arg-type]
    points: dict[str, dict[str, tuple[float, float, float]]] = {}
    objects = []
    for number, result in enumerate(results, 1):
        where = f"{at}, result {number}"
        value, kind = result.get("value") or {}, result.get("type", "")
        labels = value.get(kind) if kind in (*_BOXES, "keypointlabels") else None
        if not labels:
            counts["unread"] += 1
            continue
        marks = _marks(result)
        try:
            if kind == "keypointlabels":
                if found.points is None or labels[0] not in found.points.names or not result.get("parentID"):
                    counts["unread"] += 1
                    continue
                at_point = (float(value["x"]) / 100 * width, float(value["y"]) / 100 * height)
                points.setdefault(result["parentID"], {})[labels[0]] = (*at_point, 1.0 if "hidden" in marks else 2.0)
                continue
            box = _box(value, kind, width, height, counts)
        except (KeyError, TypeError, ValueError, OverflowError):
            found.bad(where, "its value has no readable coordinates.", "results")
            continue
        objects.append((where, str(labels[0]), box, str(result.get("id", "")), marks))
    for where, label, box, key, marks in objects:
        flat = None
        if found.points is not None and key in points:
            flat = [v for name in found.points.names for v in points[key].get(name, (0.0, 0.0, 0.0))]
        found.add(
            row, label, box, f"{where} ({label})", crowd="crowd" in marks, difficult="difficult" in marks, points=flat
        )


def _marks(result: dict[str, Any]) -> list[str]:
    written = (result.get("meta") or {}).get("text") or []
    return [written] if isinstance(written, str) else [str(word) for word in written]


def _box(
    value: dict[str, Any], kind: str, width: int, height: int, counts: Counter[str]
) -> tuple[float, float, float, float]:
    """The upright box around a shape, from percent to pixels; a rectangle turns about its upper left corner."""
    if kind == "polygonlabels":
        counts["outlines"] += 1
        corners = [(float(x) / 100 * width, float(y) / 100 * height) for x, y in value["points"]]
    elif kind == "ellipselabels":
        counts["outlines"] += 1
        cx, cy = float(value["x"]) / 100 * width, float(value["y"]) / 100 * height
        rx, ry = float(value["radiusX"]) / 100 * width, float(value["radiusY"]) / 100 * height
        corners = [(cx - rx, cy - ry), (cx + rx, cy + ry)]
    else:
        x, y = float(value["x"]) / 100 * width, float(value["y"]) / 100 * height
        w, h = float(value["width"]) / 100 * width, float(value["height"]) / 100 * height
        angle = math.radians(float(value.get("rotation") or 0))
        if angle == 0:
            return x, y, x + w, y + h
        counts["rotated"] += 1
        c, s = math.cos(angle), math.sin(angle)
        corners = [(x + a * c - b * s, y + a * s + b * c) for a, b in ((0, 0), (w, 0), (w, h), (0, h))]
    xs, ys = zip(*corners)
    return min(xs), min(ys), max(xs), max(ys)


def write(dataset: Dataset, to: str | os.PathLike[str]) -> list[str]:
    """Write `tasks.json`, `config.xml` and the pictures byte for byte under `images/[PART/]`.

    Paths are those of Label Studio's local files (`/data/local-files/?d=images/...`).

    Raises:
        DataError: if `to` exists, or the data set holds no boxes.
    """
    head, column = objects_of(dataset, "labelstudio")
    tasks = []
    with new_folder(to) as folder:
        for i, name in enumerate(file_names(dataset)):
            path = f"images/{part_folder(dataset, i)}{name}"
            put(folder, path, dataset.bytes_of(i)[0])
            data = {"image": f"/data/local-files/?d={quote(path)}"}
            if (code := int(dataset.given_split[i])) >= 0:
                data["split"] = PARTS[code]
            data |= {k: column_[i] for k, column_ in dataset.attributes.items() if column_[i] and k not in data}
            results = _results(head, column[i], dataset.size(i))
            annotation = {"id": i + 1, "was_cancelled": False, "result": results}
            tasks.append({"id": i + 1, "data": data, "annotations": [annotation]})
        put(folder, "tasks.json", json.dumps(tasks, ensure_ascii=False) + "\n")
        put(folder, "config.xml", _configuration(head))
    return []


def _results(head: HeadSpec, objects: Objects, size: tuple[int, int]) -> list[dict[str, Any]]:
    height, width = size
    results = []
    for k in range(len(objects)):
        x1, y1, x2, y2 = objects.boxes_xyxy[k].tolist()
        place = {"x": 100 * x1 / width, "y": 100 * y1 / height}
        extent = {"width": 100 * (x2 - x1) / width, "height": 100 * (y2 - y1) / height, "rotation": 0}
        value = {**place, **extent, "rectanglelabels": [head.class_names[objects.labels[k]]]}
        marks = [mark for mark in ("crowd", "difficult") if getattr(objects, mark)[k]]
        results.append(_result(f"box-{k}", "rectanglelabels", "label", value, size, marks))
        for name, (x, y, seen) in zip(head.points.names if head.points else (), objects.points[k].tolist()):
            if seen > 0:
                value = {"x": 100 * x / width, "y": 100 * y / height, "width": 0.5, "keypointlabels": [name]}
                one = _result(
                    f"point-{k}-{name}", "keypointlabels", "point", value, size, ["hidden"] if seen == 1 else []
                )
                results.append(one | {"parentID": f"box-{k}"})
    return results


def _result(
    key: str, kind: str, source: str, value: dict[str, Any], size: tuple[int, int], marks: list[str]
) -> dict[str, Any]:
    result: dict[str, Any] = {"id": key, "type": kind, "from_name": source, "to_name": "image", "value": value}
    result |= {"original_height": size[0], "original_width": size[1], "image_rotation": 0}
    return result | ({"meta": {"text": marks}} if marks else {})


def _configuration(head: HeadSpec) -> str:
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    boxes = ElementTree.SubElement(view, "RectangleLabels", name="label", toName="image")
    for name in head.class_names:
        ElementTree.SubElement(boxes, "Label", value=name)
    if head.points is not None:
        group = ElementTree.SubElement(view, "KeyPointLabels", name="point", toName="image")
        for name in head.points.names:
            ElementTree.SubElement(group, "Label", value=name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, "unicode") + "\n"
