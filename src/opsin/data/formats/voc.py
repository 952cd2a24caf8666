"""Pascal VOC: one XML file per picture, in Annotations/ beside JPEGImages/ and ImageSets/Main/, or beside the pictures.

VOC counts pixels from 1 and its corners lie inside the box, so a box is (xmin - 1, ymin - 1, xmax, ymax) in continuous
pixels. Files that count from 0 give their corners as they are: they are known by a coordinate of 0, or said to be so by
`--columns origin=0` (and `origin=1` says the other). A box whose two corners are one point is an error, as are
corners in the wrong order. Classes are in natural order, or as a `labels.txt` lists them. `difficult` is kept.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from opsin.data.annotations import (
    Annotations,
    Pictures,
    below_pictures,
    named_classes,
    part_code,
    stated_size,
    xml_root,
)
from opsin.data.dataset import PARTS, Dataset
from opsin.data.layout import PART_FOLDERS, ReadOptions, suffix
from opsin.data.objects import Objects
from opsin.data.places import NO, Place, Verdict
from opsin.data.writing import file_names, new_folder, objects_of, put, stems, text
from opsin.errors import ConfigError, DataError

NAMES = ("voc",)
LOSES = ("crowd", "area", "points", "attributes")

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def sniff(place: Place) -> Verdict:
    """XML files that hold an `annotation`."""
    if place.focus:
        return NO
    files = [n for n in place.names if suffix(n) == ".xml"]
    if any(_is_one(place, name) for name in files[:5]):
        return Verdict(0.95, f"{len(files)} Pascal VOC annotations, e.g. {files[0]}")
    return NO


def _is_one(place: Place, name: str) -> bool:
    return re.search(rb"<annotation[\s>]", place.head(name, 4096)) is not None


@dataclass
class _Object:
    """An object as its file writes it; `number` counts from 1 within the file."""

    number: int
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


def read(place: Place, options: ReadOptions) -> Dataset:
    """Read Pascal VOC.

    Raises:
        DataError: if XML is broken, a picture is missing, or an object has no name or no box of positive size; with file
            and object.
        ConfigError: if `columns` asks for anything but `origin=0` or `origin=1`.
    """
    origin = options.columns.get("origin")
    if set(options.columns) - {"origin"} or origin not in (None, "0", "1"):
        raise ConfigError(f"Pascal VOC knows --columns origin=0 or origin=1; given: {dict(options.columns)}.")
    files = [n for n in place.names if suffix(n) == ".xml" and _is_one(place, n)]
    if not files:
        raise DataError(f"{place.title}: no Pascal VOC annotations (XML with <annotation>) in it.")
    found, pictures, parts = Annotations(place, "voc", options), Pictures(place), _image_sets(place)
    counts: Counter[str] = Counter()
    taken: list[tuple[int, str, list[_Object]]] = []
    zeros: list[str] = []
    marked = True
    for name in files:
        root = xml_root(place, name)
        part = _part(name, parts)
        if parts and _inside(name) not in parts:
            counts["unlisted"] += 1
            continue
        picture = pictures.of_stem(_picture_stem(name), part) or pictures.find(
            root.findtext("filename", "").strip(), name.rpartition("/")[0], part
        )
        if picture is None:
            found.bad(place.where(name), "its picture (the same name, or <filename>) was not found.", "pictures")
            continue
        row = found.picture(
            picture,
            part,
            _below(picture, part, bool(parts)),
            stated=stated_size(root.findtext("size/height"), root.findtext("size/width")),
        )
        ours = root.findtext("origin") == "1"
        nodes = enumerate(root.iter("object"), 1)
        objects = [one for k, node in nodes if (one := _object(found, name, k, node, ours, counts))]
        taken.append((row, name, objects))
        zeros += [f"{place.where(name)}, object {o.number}" for o in objects if 0 in o.corners]
        marked = marked and ours
    shift = 0.0 if origin == "0" or (origin is None and zeros and not marked) else 1.0
    if shift == 0.0 and origin is None:
        found.note(
            f"{len(zeros)} boxes have a coordinate of 0 (first: {zeros[0]}), so these files count from 0 and corners are "
            "taken as they are. If they count from 1 nevertheless, pass --columns origin=1."
        )
    for row, name, objects in taken:
        for one in objects:
            _add(found, row, name, one, shift)
    if counts["unlisted"]:
        found.note(f"{counts['unlisted']} annotated pictures stand in no list of ImageSets/Main and were not used.")
    unused = len(pictures.names) - len(found) - counts["unlisted"]
    if unused > 0:
        found.note(
            f"{unused} pictures have no XML file and were not used: without one, nobody looked for objects in them."
        )
    if counts["truncated"]:
        found.note(f"{counts['truncated']} objects are marked as truncated, which is not kept.", level="info")
    return found.dataset(named_classes(place, ("labels.txt",)))


def _image_sets(place: Place) -> dict[str, int]:
    """Picture (its path without ending) to part, from ImageSets/Main; trainval is train where there is no train list, and
    "default" (of CVAT, and ours) is no part."""
    lists = {
        n.rpartition("/")[2].rpartition(".")[0]: n for n in place.names if "ImageSets/Main/" in n and n.endswith(".txt")
    }
    parts: dict[str, int] = {}
    for word, code in {**PART_FOLDERS, **({} if "train" in lists else {"trainval": 0}), "default": -1}.items():
        if word not in lists:
            continue
        for number, line in enumerate(place.read(lists[word]).decode("utf-8-sig").splitlines(), 1):
            stem = line.strip()
            if stem and parts.setdefault(stem, code) != code:
                raise DataError(
                    f"{place.where(lists[word])}, line {number}: '{stem}' stands in the list of another part too. "
                    "Remove it from one of them."
                )
    return parts


def _inside(name: str) -> str:
    """The path of an XML file below its Annotations folder, without its ending."""
    stem = f"/{name.rpartition('.')[0]}"
    return stem.partition("/Annotations/")[2] or stem.removeprefix("/")


def _part(name: str, parts: dict[str, int]) -> int:
    inside = _inside(name)
    if parts:
        return parts.get(inside, -1)
    return next((code for folder in name.split("/")[:-1] if (code := part_code(folder)) >= 0), -1)


def _picture_stem(name: str) -> str:
    stem = name.rpartition(".")[0]
    before, mark, after = f"/{stem}".partition("/Annotations/")
    return f"{before}/JPEGImages/{after}".removeprefix("/") if mark else stem


def _below(picture: str, part: int, listed: bool) -> str:
    """Below JPEGImages as it is where lists give the parts, because then no folder does; elsewhere without the part's."""
    before, mark, after = f"/{picture}".partition("/JPEGImages/")
    del before
    return after if mark and listed else below_pictures(picture, part)


def _object(
    found: Annotations, name: str, number: int, node: ElementTree.Element, ours: bool, counts: Counter[str]
) -> _Object | None:
    at = f"{found.place.where(name)}, object {number}"
    word = node.findtext("name", "").strip()
    if not word:
        found.bad(at, "it has no name.", "objects")
        return None
    at += f" ({word})"
    texts = [node.findtext(f"bndbox/{corner}", "").strip() for corner in _CORNERS]
    try:
        x1, y1, x2, y2 = map(float, texts)
    except ValueError:
        found.bad(at, f"its bndbox is {dict(zip(_CORNERS, texts))}; expected four numbers.", "boxes")
        return None
    if x1 == x2 and y1 == y2 and not ours:
        found.bad(at, f"box [{', '.join(texts)}] is a single point. Expected positive width and height.", "boxes")
        return None
    counts["truncated"] += node.findtext("truncated", "0").strip() == "1"
    return _Object(number, word, (x1, y1, x2, y2), node.findtext("difficult", "0").strip() == "1")


def _add(found: Annotations, row: int, name: str, one: _Object, shift: float) -> None:
    x1, y1, x2, y2 = one.corners
    at = f"{found.place.where(name)}, object {one.number} ({one.name})"
    found.add(row, one.name, (x1 - shift, y1 - shift, x2, y2), at, written=one.corners, difficult=one.difficult)


def write(dataset: Dataset, to: str | os.PathLike[str]) -> list[str]:
    """Write JPEGImages/, Annotations/, ImageSets/Main/ and `labels.txt`; pictures byte for byte.

    Raises:
        DataError: if `to` exists, the data set holds no boxes, or two pictures differ in their ending only.
    """
    head, column = objects_of(dataset, "voc")
    names = file_names(dataset)
    bare = stems(names, "voc")
    with new_folder(to) as folder:
        for i, name in enumerate(names):
            put(folder, f"JPEGImages/{name}", dataset.bytes_of(i)[0])
            tree = _annotation(name, dataset.size(i), dataset.spec.channels, column[i], head.class_names)
            ElementTree.indent(tree)
            put(folder, f"Annotations/{bare[i]}.xml", ElementTree.tostring(tree, "unicode") + "\n")
        for code in sorted(set(dataset.given_split.tolist())):
            listed = "".join(f"{bare[i]}\n" for i in np.flatnonzero(dataset.given_split == code))
            put(folder, f"ImageSets/Main/{PARTS[code] if code >= 0 else 'default'}.txt", listed)
        put(folder, "labels.txt", "".join(f"{name}\n" for name in head.class_names))
    return []


def _annotation(
    name: str, size: tuple[int, int], channels: int, objects: Objects, class_names: tuple[str, ...]
) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    before, _, last = name.rpartition("/")
    for tag, value in (("folder", before or "JPEGImages"), ("filename", last), ("origin", "1"), ("segmented", "0")):
        ElementTree.SubElement(root, tag).text = value
    stated = ElementTree.SubElement(root, "size")
    for tag, number in (("width", size[1]), ("height", size[0]), ("depth", channels)):
        ElementTree.SubElement(stated, tag).text = str(number)
    for k in range(len(objects)):
        node = ElementTree.SubElement(root, "object")
        marks = {"pose": "Unspecified", "truncated": "0", "difficult": str(int(objects.difficult[k]))}
        for tag, value in {"name": class_names[objects.labels[k]], **marks}.items():
            ElementTree.SubElement(node, tag).text = value
        box = ElementTree.SubElement(node, "bndbox")
        for corner, value in zip(_CORNERS, (objects.boxes_xyxy[k] + [1, 1, 0, 0]).tolist()):
            ElementTree.SubElement(box, corner).text = text(value)
    return root
