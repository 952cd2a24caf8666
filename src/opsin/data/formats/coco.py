"""COCO JSON: boxes, crowds and keypoints; also Roboflow's layout and camera traps (COCO Camera Traps).

One JSON file with its pictures, or a folder with one per part (annotations/instances_train2017.json,
train/_annotations.coco.json, ...). Boxes [x, y, width, height] are continuous pixels. Classes are in the order of their
ids, which may have holes. Where several kinds of annotations lie together, `instances` is read; `--columns
annotations=person_keypoints` reads another. `--columns label=category` reads the class of each whole picture, as
camera traps give it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from opsin.data.annotations import (
    LARGEST,
    PICTURE_FOLDERS,
    Annotations,
    Pictures,
    around,
    below_pictures,
    part_code,
    part_in,
    point_spec,
    stated_size,
)
from opsin.data.dataset import PARTS, Dataset, HeadSpec
from opsin.data.layout import ReadOptions, suffix
from opsin.data.objects import Objects
from opsin.data.places import NO, Place, Verdict
from opsin.data.targets import PointSpec, multi_head, single_head
from opsin.data.writing import file_names, new_folder, objects_of, part_folder, plain, put
from opsin.errors import ConfigError, DataError, UnknownName

NAMES = ("coco",)

LOSES: tuple[str, ...] = ()

_NOT_BOXES = ("captions", "panoptic", "stuff", "image_info")
_STANDARD = frozenset(["id", "file_name", "width", "height", "license", "flickr_url", "coco_url", "date_captured"])


def sniff(place: Place) -> Verdict:
    """A JSON object with a list of images, and annotations or categories."""
    names = [place.focus] if place.focus else [n for n in place.names if suffix(n) == ".json"][:20]
    for name in names:
        if suffix(name) != ".json":
            continue
        head = place.head(name, 1 << 16).lstrip(b"\xef\xbb\xbf \r\n\t")
        keys = [k for k in (b'"images"', b'"annotations"', b'"categories"', b'"info"', b'"licenses"') if k in head]
        large = b'"file_name"' in head or b'"bbox"' in head or b'"segmentation"' in head
        if head.startswith(b"{") and keys and (len(keys) > 1 or large):
            return Verdict(0.95, f"the COCO annotations {name}")
    return NO


@dataclass
class _File:
    """One JSON file: its name, the part that it says, and its lists."""

    name: str
    part: int
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: dict[Any, dict[str, Any]]
    bare: int  # objects without a box of their own, whose outlines give it


def read(place: Place, options: ReadOptions) -> Dataset:
    """Read COCO annotations.

    Raises:
        DataError: if JSON is broken, a picture is missing, an annotation names a picture or class that is not there, a
            box has no positive size, or keypoints do not fit their names; with file and annotation.
        ConfigError: if `columns` asks for anything but `annotations` and `label=category`.
    """
    extra = set(options.columns) - {"annotations", "label"}
    if extra or options.columns.get("label", "category") != "category":
        raise ConfigError(
            f"COCO knows --columns annotations=NAME (which JSON files) and label=category; given: {dict(options.columns)}."
        )
    names, others = _chosen(place, options.columns.get("annotations"))
    files = [_parsed(place, name) for name in names]
    pictures = Pictures(place)
    if not any(pictures.find(str(image.get("file_name", ""))) for file in files for image in file.images[:20]):
        wider = around(place)
        if wider is not place:
            prefix = f"{place.root.resolve().name}/"
            place, pictures = wider, Pictures(wider)
            for file in files:
                file.name = prefix + file.name
    if options.columns.get("label") or not any("bbox" in a for file in files for a in file.annotations):
        return _classes_of_pictures(place, pictures, files, options)
    found = Annotations(place, "coco", options, _points(place, files))
    if others:
        found.note(f"not read: {', '.join(others)} (name one with --columns annotations=NAME).", level="info")
    class_names = _class_names(found, files)
    counts: Counter[str] = Counter()
    for file in files:
        _read_file(found, pictures, file, counts)
    if counts["outlines"]:
        found.note(
            f"{counts['outlines']} objects have outlines; boxes and points are read, outlines are not.", level="info"
        )
    if bare := sum(file.bare for file in files):
        found.note(f"{bare} objects have no bbox; the box around the outline of each was taken.", level="info")
    if counts["crowds"]:
        found.note(
            f"{counts['crowds']} crowd regions (iscrowd) are read as boxes that neither count nor punish; their masks "
            "(RLE) are not read.",
            level="info",
        )
    if counts["unboxed"]:
        found.note(
            f"{counts['unboxed']} pictures have a class but no box for it; they were left out, because they are no "
            "pictures without objects. To read the classes of pictures: --columns label=category."
        )
    return found.dataset(class_names, class_ids=_class_ids(class_names, files))


def _chosen(place: Place, wanted: str | None) -> tuple[list[str], list[str]]:
    """The JSON files to read, and those of other kinds that lie there too."""
    if place.focus:
        return [place.focus], []
    names = [n for n in place.names if suffix(n) == ".json" and _looks_like_coco(place, n)]
    kinds: dict[str, list[str]] = {}
    for name in names:
        if not name.rpartition("/")[2].lower().startswith(_NOT_BOXES):
            kinds.setdefault(_kind(name), []).append(name)
    if not kinds:
        raise DataError(f"{place.title}: no COCO annotations with boxes, keypoints or classes (*.json) in it.")
    if wanted is not None:
        if wanted not in kinds:
            raise UnknownName("annotations", wanted, kinds, f"They lie in {place.title}.")
        kind = wanted
    elif len(kinds) == 1 or "instances" in kinds:
        kind = "instances" if "instances" in kinds else next(iter(kinds))
    else:
        raise DataError(
            f"{place.title}: several kinds of COCO annotations ({', '.join(kinds)}). Say which is meant: --columns "
            f"annotations={next(iter(kinds))}."
        )
    parts = [part_in(name) for name in kinds[kind]]
    if len(set(parts)) < len(parts):
        raise DataError(
            f"{place.title}: which of {', '.join(kinds[kind])}? They are for the same part. Give one of the files."
        )
    return kinds[kind], [n for other, group in kinds.items() if other != kind for n in group]


def _looks_like_coco(place: Place, name: str) -> bool:
    head = place.head(name, 1 << 16).lstrip(b"\xef\xbb\xbf \r\n\t")
    return head.startswith(b"{") and any(k in head for k in (b'"images"', b'"annotations"', b'"categories"', b'"info"'))


def _kind(name: str) -> str:
    """A file's name without the words for its part ("instances" for instances_train2017.json)."""
    words = re.split(r"([_.\- ])", name.rpartition("/")[2].rpartition(".")[0])
    kept = [word for word in words[::2] if word and part_code(word) < 0]
    return "_".join(kept) or "annotations"


def _parsed(place: Place, name: str) -> _File:
    where = place.where(name)
    try:
        values = json.loads(place.read(name))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}).") from error
    if not isinstance(values, dict) or not isinstance(values.get("images"), list):
        raise DataError(f"{where}: no COCO annotations; expected an object with the list 'images'.")
    images, annotations = values["images"], values.get("annotations") or []
    for what, entries in (
        ("images", images),
        ("annotations", annotations),
        ("categories", values.get("categories") or []),
    ):
        if not isinstance(entries, list):
            raise DataError(f"{where}: '{what}' is no list.")
        for k, entry in enumerate(entries):
            if not isinstance(entry, dict) or (what != "annotations" and "id" not in entry):
                raise DataError(
                    f"{where}, {what}[{k}]: expected an object{'' if what == 'annotations' else ' with an id'}."
                )
            for key in ("id", "image_id", "category_id"):
                if key in entry and not isinstance(entry[key], int | float | str):
                    raise DataError(f"{where}, {what}[{k}]: its {key} is {entry[key]!r}; expected a number.")
    if annotations and not values.get("categories"):
        raise DataError(
            f"{where}: no 'categories', so there are no classes (captions?). Give the file with boxes, e.g. instances_*.json."
        )
    categories: dict[Any, dict[str, Any]] = {}
    for category in values.get("categories") or []:
        other = categories.setdefault(category["id"], category)
        if other.get("name") != category.get("name"):
            raise DataError(
                f"{where}: two categories have the id {category['id']} ('{other.get('name')}' and "
                f"'{category.get('name')}'). Ids must be unique."
            )
    if nameless := [key for key, c in categories.items() if not str(c.get("name", "")).strip()]:
        raise DataError(f"{where}, category {nameless[0]}: it has no name.")
    if annotations and all("segments_info" in a for a in annotations[:10]):
        raise DataError(f"{where}: panoptic segments, not boxes. Give the file with boxes, e.g. instances_*.json.")
    bare = 0
    for entry in annotations:
        if not entry.get("bbox") and (box := _around(entry.get("segmentation"))):
            entry["bbox"] = box
            bare += 1
    return _File(name, part_in(name), images, annotations, categories, bare)


def _around(outlines: Any) -> list[float] | None:
    """[x, y, width, height] around the outlines [[x1, y1, x2, y2, ...], ...] of an object that has no box of its own."""
    try:
        numbers = [[float(v) for v in outline] for outline in outlines] if isinstance(outlines, list) else []
    except (TypeError, ValueError, OverflowError):
        return None
    if not numbers or any(len(outline) < 6 or len(outline) % 2 for outline in numbers):
        return None
    xs, ys = (np.concatenate([outline[axis::2] for outline in numbers]) for axis in (0, 1))
    return [float(xs.min()), float(ys.min()), float(np.ptp(xs)), float(np.ptp(ys))]


def _in_order(ids: Iterable[Any]) -> list[Any]:
    return sorted(ids, key=lambda key: (isinstance(key, str), key))


def _class_names(found: Annotations, files: list[_File]) -> list[str]:
    """Names in the order of ids, of all files; without Roboflow's class 0 that names the project only."""
    names: dict[str, None] = {}
    for file in files:
        used = {a.get("category_id") for a in file.annotations if "bbox" in a}
        for key in _in_order(file.categories):
            category = file.categories[key]
            name = str(category["name"]).strip()
            others = [c for k, c in file.categories.items() if k != key]
            project = key == 0 and others and all(c.get("supercategory") == name for c in others)
            empty = name.lower() == "empty" and any("bbox" not in a for a in file.annotations)
            if key not in used and (project or empty):
                why = "it names the project" if project else "it says that nothing is there"
                found.note(
                    f"the class '{name}' is left out: it has no box, {why}.", found.place.where(file.name), "info"
                )
            else:
                names[name] = None
        if len({str(c["name"]).strip() for c in file.categories.values()}) < len(file.categories):
            found.note("several category ids have the same name; they are one class.", found.place.where(file.name))
    listed = {tuple(str(c["name"]).strip() for c in file.categories.values()) for file in files}
    if len(listed) > 1:
        found.note("the files list different categories; the classes are those of all of them.")
    return list(names)


def _class_ids(class_names: list[str], files: list[_File]) -> list[int]:
    """The ids of the classes, if all files agree on one whole number for each; else none."""
    ids: dict[str, set[Any]] = {name: set() for name in class_names}
    for file in files:
        for key, category in file.categories.items():
            ids.get(str(category["name"]).strip(), set()).add(key)
    agreed = [next(iter(keys)) for keys in ids.values() if len(keys) == 1]
    return agreed if len(agreed) == len(class_names) and all(isinstance(key, int) for key in agreed) else []


def _points(place: Place, files: list[_File]) -> PointSpec | None:
    """The points of the categories that have some; all must have the same."""
    specs: dict[tuple[str, ...], tuple[tuple[int, int], ...]] = {}
    for file in files:
        for category in file.categories.values():
            if category.get("keypoints"):
                try:
                    pairs = tuple((int(a) - 1, int(b) - 1) for a, b in category.get("skeleton") or ())
                    said = tuple(category["keypoints"])
                except (TypeError, ValueError) as error:
                    raise DataError(
                        f"{place.where(file.name)}, category {category['id']}: expected keypoints as a list of names and "
                        f"skeleton as a list of pairs of numbers ({error})."
                    ) from error
                specs.setdefault(tuple(map(str, said)), pairs)
    if len(specs) > 1:
        raise DataError(
            f"{place.title}: categories with different keypoints ({' / '.join(n[0] + ', ...' for n in specs)}). "
            "One data set has one list of points; keep the categories in files of their own."
        )
    if not specs:
        return None
    ((names, skeleton),) = specs.items()
    spec = point_spec(names, skeleton)
    own: dict[str, Any] = next(c for f in files for c in f.categories.values() if c.get("keypoints"))
    swaps, sigmas = own.get("keypoint_swaps"), own.get("keypoint_sigmas")
    return PointSpec(
        names, spec.swaps if swaps is None else tuple(swaps), skeleton, spec.sigmas if sigmas is None else tuple(sigmas)
    )


def _attributes(image: dict[str, Any]) -> dict[str, str]:
    kept = {k: v for k, v in image.items() if k not in _STANDARD and isinstance(v, str | int | float)}
    return {"coco_image_id": str(image["id"]), **{k: str(v) for k, v in kept.items()}}


def _file_of(found: Pictures, file: _File, image: dict[str, Any]) -> str | None:
    return found.find(str(image.get("file_name", "")), file.name.rpartition("/")[0], file.part)


def _read_file(found: Annotations, pictures: Pictures, file: _File, counts: Counter[str]) -> None:
    place, rows = found.place, {}
    title = place.where(file.name)
    unboxed = _unboxed(file)
    dropped: set[Any] = set()
    for image in file.images:
        key = image["id"]
        if key in rows:
            raise DataError(f"{title}: two images have the id {key}. Ids must be unique.")
        if key in unboxed or key in dropped:
            counts["unboxed"] += key in unboxed
            dropped.add(key)
            continue
        name = _file_of(pictures, file, image)
        if name is None:
            said = f"its picture '{image.get('file_name')}' was not found in {place.root}."
            found.bad(f"{title}, image {key}", said, "pictures")
            dropped.add(key)
            continue
        height, width = image.get("height"), image.get("width")
        stated = stated_size(height, width)
        part, below = _placed(name, str(image["file_name"]), file.part)
        rows[key] = found.picture(name, part, below, _attributes(image), stated)
    numbers = len(found.points.names) if found.points else 0
    for k, entry in enumerate(file.annotations):
        key = entry.get("image_id")
        if key in dropped or ("bbox" not in entry and key in rows):
            continue

        def where(entry: Mapping[str, Any] = entry, k: int = k, key: Any = key) -> str:
            name = f" ({found.names[rows[key]].rpartition('/')[2]})" if key in rows else ""
            return f"{title}, annotation {entry.get('id', f'[{k}]')}{name}"

        if key not in rows:
            found.bad(where, f"its image_id {key!r} is not among the images.", "annotations")
            continue
        category = file.categories.get(entry.get("category_id"))
        if category is None:
            found.bad(
                where, f"its category_id {entry.get('category_id')!r} is not among the categories.", "annotations"
            )
            continue
        try:
            x, y, w, h = map(float, entry["bbox"] if isinstance(entry["bbox"], list) else ())
        except (TypeError, ValueError, OverflowError):
            found.bad(where, f"its bbox is {entry['bbox']!r}; expected [x, y, width, height].", "boxes")
            continue
        points = entry.get("keypoints") if numbers else None
        if points is not None and (not isinstance(points, list) or len(points) != 3 * numbers):
            found.bad(where, f"its keypoints are not 3 x {numbers} numbers (x, y, visibility).", "annotations")
            continue
        area, outline = entry.get("area"), entry.get("segmentation")
        counts["outlines"] += bool(outline) and isinstance(outline, list)
        counts["crowds"] += bool(entry.get("iscrowd"))
        found.add(
            rows[key],
            str(category["name"]).strip(),
            (x, y, x + w, y + h),
            where,
            crowd=bool(entry.get("iscrowd")),
            difficult=bool(entry.get("difficult")),
            area=float(area) if isinstance(area, int | float) and 0 < area <= LARGEST**2 else math.nan,
            points=points,
        )


def _placed(name: str, written: str, part: int) -> tuple[int, str]:
    """The part of a picture, and its path below the folder of pictures (then of the part).

    Where no folder is called images, that folder is where the path in the file begins.
    """
    path = written.replace("\\", "/").removeprefix("./")
    if not any(folder.lower() in PICTURE_FOLDERS for folder in name.split("/")[:-1]):
        name = path if f"/{name}".endswith(f"/{path}") else name
    if part < 0:
        below = below_pictures(name, -1)
        part = part_code(below.partition("/")[0]) if "/" in below else -1
    return part, below_pictures(name, part)


def _unboxed(file: _File) -> set[Any]:
    """Images with an annotation that has a class but no box, other than "empty"."""
    found = set()
    for entry in file.annotations:
        if "bbox" not in entry and "category_id" in entry:
            name = str(file.categories.get(entry["category_id"], {}).get("name", ""))
            if name.lower() != "empty":
                found.add(entry.get("image_id"))
    return found


def _classes_of_pictures(place: Place, pictures: Pictures, files: list[_File], options: ReadOptions) -> Dataset:
    """The classes that annotations give to whole pictures: one head, of several classes where a picture has several."""
    found = Annotations(place, "coco", options)
    words: list[list[str]] = []
    for file in files:
        by_image: dict[Any, dict[str, None]] = {}
        for entry in file.annotations:
            category = file.categories.get(entry.get("category_id"))
            if category is None:
                at = f"{place.where(file.name)}, annotation {entry.get('id')}"
                found.bad(
                    at, f"its category_id {entry.get('category_id')!r} is not among the categories.", "annotations"
                )
                continue
            by_image.setdefault(entry.get("image_id"), {})[str(category["name"]).strip()] = None
        for image in file.images:
            name = _file_of(pictures, file, image)
            if name is None:
                at = f"{place.where(file.name)}, image {image['id']}"
                found.bad(at, f"its picture '{image.get('file_name')}' was not found in {place.root}.", "pictures")
                continue
            part, below = _placed(name, str(image["file_name"]), file.part)
            found.picture(name, part, below, _attributes(image))
            words.append(list(by_image.get(image["id"], ())))
    class_names = list(
        dict.fromkeys(str(f.categories[k]["name"]).strip() for f in files for k in _in_order(f.categories))
    )
    several = any(len(one) > 1 for one in words)
    if several:
        head, values = multi_head("label", [one or None for one in words], class_names)
    else:
        head, values = single_head("label", ["".join(one) for one in words], class_names, place.title)  # type: ignore[assignment]
    found.note(
        "read as classes of whole pictures"
        + (" (a picture may have several)" if several else "")
        + f"; {sum(not one for one in words)} pictures have none.",
        level="info",
    )
    return found.labeled((head,), {"label": values})


def write(dataset: Dataset, to: str | os.PathLike[str]) -> list[str]:
    """Write `annotations/instances[_PART].json` and the pictures byte for byte under `images/[PART/]`.

    What COCO has no field for is kept in fields of our own, which other programs pass over: `difficult`, columns of text
    (in the images), and which points mirror each other (in the categories).

    Raises:
        DataError: if `to` exists, or the data set holds no boxes.
    """
    head, column = objects_of(dataset, "coco")
    names = file_names(dataset)
    image_ids = _image_ids(dataset)
    categories = [_category(head, k) for k in range(len(head.class_names))]
    number = 0
    with new_folder(to) as folder:
        for code in sorted({int(c) for c in dataset.given_split.tolist()}) or [-1]:
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for i in np.flatnonzero(dataset.given_split == code).tolist():
                put(folder, f"images/{part_folder(dataset, i)}{names[i]}", dataset.bytes_of(i)[0])
                height, width = dataset.size(i)
                entry = {"id": image_ids[i], "file_name": names[i], "width": width, "height": height}
                kept = {k: column[i] for k, column in dataset.attributes.items() if k not in _STANDARD}
                images.append(entry | {k: v for k, v in kept.items() if v and k != "coco_image_id"})
                for one in _entries(head, column[i]):
                    number += 1
                    annotations.append({"id": number, "image_id": image_ids[i], **one})
            values = {"images": images, "annotations": annotations, "categories": categories}
            file = f"annotations/instances{f'_{PARTS[code]}' if code >= 0 else ''}.json"
            put(folder, file, json.dumps(values, ensure_ascii=False) + "\n")
    return []


def _image_ids(dataset: Dataset) -> list[int] | list[str]:
    """The ids that the pictures had in COCO files, or numbers from 1."""
    known = list(dataset.attributes.get("coco_image_id", ()))
    if known and all(known) and len(set(known)) == len(known):
        return [int(one) for one in known] if all(map(str.isdigit, known)) else known
    return list(range(1, len(dataset) + 1))


def _id(head: HeadSpec, k: int) -> int:
    """The id of a class: the one it was read with, or its place from 1."""
    return head.class_ids[k] if head.class_ids else k + 1


def _category(head: HeadSpec, k: int) -> dict[str, Any]:
    category: dict[str, Any] = {"id": _id(head, k), "name": head.class_names[k], "supercategory": "none"}
    if head.points is not None:
        said = point_spec(head.points.names)
        category["keypoints"] = list(head.points.names)
        category["skeleton"] = [[a + 1, b + 1] for a, b in head.points.skeleton]
        if head.points.swaps != said.swaps:
            category["keypoint_swaps"] = list(head.points.swaps)
        if head.points.sigmas != said.sigmas:
            category["keypoint_sigmas"] = list(head.points.sigmas)
    return category


def _entries(head: HeadSpec, objects: Objects) -> list[dict[str, Any]]:
    entries = []
    for k in range(len(objects)):
        x1, y1, x2, y2 = objects.boxes_xyxy[k].tolist()
        area = float(objects.area[k])
        entry: dict[str, Any] = {
            "category_id": _id(head, int(objects.labels[k])),
            "bbox": [plain(x1), plain(y1), plain(x2 - x1), plain(y2 - y1)],
            "area": plain((x2 - x1) * (y2 - y1) if math.isnan(area) else area),
            "iscrowd": int(objects.crowd[k]),
        }
        if objects.difficult[k]:
            entry["difficult"] = 1
        if head.points is not None:
            points = objects.points[k]
            entry["keypoints"] = [plain(v) for v in points.reshape(-1).tolist()]
            entry["num_keypoints"] = int((points[:, 2] > 0).sum())
        entries.append(entry)
    return entries
