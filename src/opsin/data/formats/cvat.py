"""CVAT for images 1.1: one annotations.xml with the boxes, outlines, skeletons and tags of all pictures.

Of outlines and ellipses the box around them is taken. A skeleton's points belong to the box of the same class and group_id; one
without such a box gets the box around its points. `subset` of a picture is its part. Classes and points are in the order of the
file's list of labels. The attributes `crowd` and `difficult` of a shape are kept, and tags become a column of text.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from xml.etree import ElementTree

import numpy as np

from opsin.data.annotations import Annotations, Pictures, below_pictures, part_code, point_spec, stated_size, xml_root
from opsin.data.dataset import PARTS, Dataset, HeadSpec
from opsin.data.layout import ReadOptions, suffix
from opsin.data.objects import Objects
from opsin.data.places import NO, Place, Verdict
from opsin.data.targets import PointSpec
from opsin.data.writing import file_names, new_folder, objects_of, part_folder, put, text
from opsin.errors import ConfigError, DataError

NAMES = ("cvat",)
LOSES = ("area", "layout", "attributes")

Box = tuple[float, float, float, float]


def sniff(place: Place) -> Verdict:
    """An XML file that begins with `annotations`."""
    files = _files(place)
    return Verdict(0.95, f"the CVAT annotations {files[0]}") if files else NO


def _files(place: Place) -> list[str]:
    names = [place.focus] if place.focus else [n for n in place.names if suffix(n) == ".xml"][:20]
    return [n for n in names if suffix(n) == ".xml" and b"<annotations" in place.head(n, 4096)]


def read(place: Place, options: ReadOptions) -> Dataset:
    """Read CVAT's XML.

    Raises:
        DataError: if XML is broken or of a video, a picture is missing, or a shape has no label or no extent; with file,
            picture and shape.
        ConfigError: if `columns` is given, which CVAT does not have.
    """
    if options.columns:
        raise ConfigError(f"CVAT knows no --columns; given: {dict(options.columns)}.")
    files = _files(place)
    if len(files) != 1:
        held = f"several CVAT files ({', '.join(files)}); give one" if files else "no CVAT annotations (XML) in it"
        raise DataError(f"{place.title}: {held}.")
    where = place.where(files[0])
    root = xml_root(place, files[0])
    if root.find("track") is not None:
        raise DataError(f"{where}: tracks of a video. Export the task as 'CVAT for images 1.1'.")
    classes, spec = _labels(root)
    found, pictures, counts = Annotations(place, "cvat", options, spec), Pictures(place), Counter[str]()
    for image in root.iter("image"):
        written = image.get("name", "")
        part = part_code(image.get("subset", ""))
        name = pictures.find(f"images/{image.get('subset')}/{written}", "", part) if part >= 0 else None
        name = name or pictures.find(written, files[0].rpartition("/")[0], part)
        if name is None:
            found.bad(f"{where}, image {image.get('id')}", f"its picture '{written}' was not found.", "pictures")
            continue
        tags = {"tags": "|".join(tag.get("label", "") for tag in image.iter("tag"))}
        below = below_pictures(name, part)
        row = found.picture(
            name, part, below, tags if tags["tags"] else None, stated_size(image.get("height"), image.get("width"))
        )
        _add_shapes(found, row, image, f"{where}, image {image.get('id')} ({written})", counts)
    for what, words in (
        ("outlines", "shapes are outlines or ellipses; the box around each was taken"),
        ("rotated", "boxes are rotated; the upright box around each was taken"),
        ("occluded", "shapes are marked as occluded, which is not kept"),
    ):
        if counts[what]:
            found.note(f"{counts[what]} {words}.", level="info")
    if counts["unread"]:
        found.note(f"{counts['unread']} shapes are lines, masks, cuboids or single points and were not read.")
    return found.dataset(classes or None)


def _labels(root: ElementTree.Element) -> tuple[list[str], PointSpec | None]:
    """Classes and points, in the order of the list of labels; points also from the skeletons, if they are not listed."""
    classes: list[str] = []
    points: list[str] = []
    for label in root.iterfind("meta//labels/label"):
        name = (label.findtext("name") or "").strip()
        kind = points if (label.findtext("parent") or "").strip() else classes
        if name and name not in kind:
            kind.append(name)
    if not points:
        points = list(dict.fromkeys(p.get("label", "") for p in root.iterfind("image/skeleton/points")))
    return classes, point_spec(points) if points else None


@dataclass
class _Shape:
    """What becomes an object: a box, points, or both."""

    at: str
    label: str
    box: Box | None
    crowd: bool = False
    difficult: bool = False
    points: dict[str, tuple[float, float, float]] = field(default_factory=dict)


def _add_shapes(found: Annotations, row: int, image: ElementTree.Element, at: str, counts: Counter[str]) -> None:
    shapes: list[_Shape] = []
    bodies: dict[tuple[str, str], _Shape] = {}
    skeletons: list[tuple[_Shape, str]] = []
    for number, node in enumerate((n for n in image if n.tag != "tag"), 1):
        where = f"{at}, shape {number} ({node.get('label', '')})"
        label, group = node.get("label", "").strip(), node.get("group_id", "")
        try:
            box, points = _geometry(node, counts)
        except (TypeError, ValueError, IndexError):
            found.bad(where, f"its coordinates cannot be read ({dict(node.attrib)}).", "shapes")
            continue
        if box is None and not points:
            counts["unread"] += 1
            continue
        if not label:
            found.bad(where, "it has no label.", "shapes")
            continue
        counts["occluded"] += node.get("occluded") == "1" and node.tag != "skeleton"
        one = _Shape(where, label, box, *_marks(node), points)
        if points:
            skeletons.append((one, group))
        else:
            shapes.append(one)
            if group:
                bodies[label, group] = one
    for one, group in skeletons:
        body = bodies.get((one.label, group)) if group else None
        if body is not None:
            body.points = one.points
        else:
            seen = [(x, y) for x, y, v in one.points.values() if v > 0]
            xs, ys = zip(*seen) if seen else ((0.0,), (0.0,))
            one.box = (min(xs), min(ys), max(xs), max(ys))
            shapes.append(one)
    names = found.points.names if found.points is not None else ()
    for one in shapes:
        flat = [v for name in names for v in one.points.get(name, (0.0, 0.0, 0.0))] if one.points else None
        box = one.box or (0.0, 0.0, 0.0, 0.0)
        found.add(row, one.label, box, one.at, points=flat, crowd=one.crowd, difficult=one.difficult)


def _marks(node: ElementTree.Element) -> tuple[bool, bool]:
    """Whether a shape has the attribute crowd, and difficult."""
    said = {a.get("name", ""): (a.text or "").strip().lower() for a in node.iterfind("attribute")}
    yes = ("true", "1", "yes")
    return said.get("crowd") in yes, said.get("difficult") in yes


def _geometry(
    node: ElementTree.Element, counts: Counter[str]
) -> tuple[Box | None, dict[str, tuple[float, float, float]]]:
    """The box of a shape, or the points of a skeleton."""
    if node.tag == "box":
        x1, y1, x2, y2 = (float(node.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        angle = math.radians(float(node.get("rotation", 0)))
        if angle == 0:
            return (x1, y1, x2, y2), {}
        counts["rotated"] += 1
        w, h, c, s = (x2 - x1) / 2, (y2 - y1) / 2, abs(math.cos(angle)), abs(math.sin(angle))
        half_w, half_h, cx, cy = w * c + h * s, w * s + h * c, (x1 + x2) / 2, (y1 + y2) / 2
        return (cx - half_w, cy - half_h, cx + half_w, cy + half_h), {}
    if node.tag == "polygon":
        counts["outlines"] += 1
        xs, ys = zip(*_pairs(node.attrib["points"]))
        return (min(xs), min(ys), max(xs), max(ys)), {}
    if node.tag == "ellipse":
        counts["outlines"] += 1
        cx, cy, rx, ry = (float(node.attrib[key]) for key in ("cx", "cy", "rx", "ry"))
        return (cx - rx, cy - ry, cx + rx, cy + ry), {}
    if node.tag == "skeleton":
        points = {}
        for point in node.iterfind("points"):
            x, y = _pairs(point.attrib["points"])[0]
            seen = 0.0 if point.get("outside") == "1" else 1.0 if point.get("occluded") == "1" else 2.0
            points[point.get("label", "")] = (x, y, seen) if seen else (0.0, 0.0, 0.0)
        return None, points
    return None, {}


def _pairs(written: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in written.split(";") if pair)]


def write(dataset: Dataset, to: str | os.PathLike[str]) -> list[str]:
    """Write `annotations.xml` and the pictures byte for byte under `images/[PART/]`.

    Raises:
        DataError: if `to` exists, or the data set holds no boxes.
    """
    head, column = objects_of(dataset, "cvat")
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    _write_labels(ElementTree.SubElement(task, "labels"), head)
    with new_folder(to) as folder:
        for i, name in enumerate(file_names(dataset)):
            put(folder, f"images/{part_folder(dataset, i)}{name}", dataset.bytes_of(i)[0])
            height, width = dataset.size(i)
            image = ElementTree.SubElement(root, "image", id=str(i), name=name)
            if (code := int(dataset.given_split[i])) >= 0:
                image.set("subset", PARTS[code])
            image.set("width", str(width))
            image.set("height", str(height))
            _write_shapes(image, head, column[i])
        ElementTree.indent(root)
        put(folder, "annotations.xml", ElementTree.tostring(root, "unicode") + "\n")
    return []


def _write_labels(labels: ElementTree.Element, head: HeadSpec) -> None:
    def label(name: str, kind: str, parent: str = "") -> None:
        node = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(node, "name").text = name
        ElementTree.SubElement(node, "type").text = kind
        attributes = ElementTree.SubElement(node, "attributes")
        for mark in () if parent else ("crowd", "difficult"):
            attribute = ElementTree.SubElement(attributes, "attribute")
            said = (("name", mark), ("mutable", "False"), ("input_type", "checkbox"), ("default_value", "false"))
            for tag, value in (*said, ("values", "")):
                ElementTree.SubElement(attribute, tag).text = value
        if parent:
            ElementTree.SubElement(node, "parent").text = parent

    for name in head.class_names:
        label(name, "any" if head.points is None else "skeleton")
        for point in head.points.names if head.points is not None else ():
            label(point, "points", name)


def _write_shapes(image: ElementTree.Element, head: HeadSpec, objects: Objects) -> None:
    for k in range(len(objects)):
        name = head.class_names[objects.labels[k]]
        corners = dict(zip(("xtl", "ytl", "xbr", "ybr"), map(text, objects.boxes_xyxy[k].tolist())))
        said = {"label": name, "source": "manual", "occluded": "0", **corners, "z_order": "0"}
        box = ElementTree.SubElement(image, "box", said)
        for mark in ("crowd", "difficult"):
            if getattr(objects, mark)[k]:
                ElementTree.SubElement(box, "attribute", name=mark).text = "true"
        if head.points is None or not (objects.points[k, :, 2] > 0).any():
            continue
        box.set("group_id", str(k + 1))
        skeleton = ElementTree.SubElement(
            image, "skeleton", label=name, source="manual", z_order="0", group_id=str(k + 1)
        )
        for point, (x, y, seen) in zip(head.points.names, np.asarray(objects.points[k]).tolist()):
            said = {"label": point, "source": "manual", "outside": str(int(seen == 0)), "occluded": str(int(seen == 1))}
            ElementTree.SubElement(skeleton, "points", said | {"points": f"{text(x)},{text(y)}"})
