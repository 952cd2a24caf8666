"""TFRecord files of detection: `tf.train.Example` with image/encoded, image/object/bbox/xmin, image/object/class/text, ...

As the TensorFlow Object Detection API writes them, with a label map (*.pbtxt: class ids from 1, 0 is background). Corners are
shares of the picture, as 32-bit floats. Every CRC is checked when a file is opened; pictures are then read where they lie.
Part and shard stand in the file's name (train-00000-of-00010.tfrecord). Files that opsin writes hold the rest of each
number in a second list (image/object/bbox/xmin_rest), so that boxes come back exactly; other programs pass over it.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.data.annotations import Annotations, below_pictures, part_in, point_spec
from opsin.data.dataset import PARTS, Dataset, FileSource, HeadSpec
from opsin.data.layout import ReadOptions, is_picture, magic, suffix
from opsin.data.objects import Objects
from opsin.data.places import NO, FolderPlace, Place, Verdict
from opsin.data.records import Feature, RecordPlace, example, features, framed, records, starts_like_records
from opsin.data.writing import file_names, new_folder, objects_of
from opsin.errors import ConfigError, DataError

NAMES = ("tfrecord",)
LOSES = ("layout",)

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_BEYOND = 1.0  # shares may leave [0, 1] by so much; more means pixels
_ATTRIBUTE = "image/attribute/"


def sniff(place: Place) -> Verdict:
    """Files called *.tfrecord or *.record (with or without a shard) that begin with a length and its CRC."""
    files = _files(place)
    if files and starts_like_records(place.head(files[0], 12)):
        return Verdict(0.95, f"{len(files)} TFRecord files, e.g. {files[0]}")
    return NO


def _files(place: Place) -> list[str]:
    names = [place.focus] if place.focus else place.names
    return [
        n
        for n in names
        if re.search(r"\.tfrecords?\b|\.records?\b|-\d{5}-of-\d{5}$|tfrecord", n.rpartition("/")[2])
        and suffix(n) not in (".pbtxt", ".py", ".txt", ".json")
    ]


@dataclass
class _Picture:
    """One Example: its lists, and where it came from."""

    at: str
    data: bytes
    lists: dict[str, Feature]

    def words(self, name: str) -> list[str]:
        pieces = self.lists.get(name, _NOTHING).pieces
        return [self.data[a:b].decode("utf-8", "replace") for a, b in pieces]

    def numbers(self, name: str) -> list[float]:
        return list(self.lists.get(name, _NOTHING).numbers)


_NOTHING = Feature((), ())


@dataclass
class _Map:
    """A label map: names by id and by other spellings, and the names of points."""

    names: dict[int, str] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)
    points: list[str] = field(default_factory=list)


def read(place: Place, options: ReadOptions) -> Dataset:
    """Read TFRecord files of detection.

    Raises:
        DataError: if a file is damaged, a record is no Example with a picture, lists differ in length, or a class has no
            name; with file and record.
        ConfigError: if `columns` is given, which TFRecord does not have.
    """
    if options.columns:
        raise ConfigError(f"TFRecord knows no --columns; given: {dict(options.columns)}.")
    files = _files(place)
    if not files:
        raise DataError(f"{place.title}: no TFRecord files (*.tfrecord, *.record) in it.")
    members: dict[str, tuple[str, int, int]] = {}
    taken: list[tuple[str, int, _Picture]] = []
    for file in files:
        part = part_in(file)
        for record in records(_content(place, file), place.where(file)):
            one = _parsed(record.data, f"{place.where(file)}, record {record.number}")
            first, last = one.lists["image/encoded"].pieces[0]
            name = f"images/{PARTS[part] + '/' if part >= 0 else ''}{_name(one, file, record.number)}"
            if name in members:
                raise DataError(f"{one.at}: the picture '{name}' stands in another record too. Names must be unique.")
            members[name] = (file, record.offset + first, last - first)
            one.data = b"" if not one.lists else _without_picture(one)
            taken.append((name, part, one))
    if not any(key.startswith("image/object/") for _, _, one in taken for key in one.lists):
        raise DataError(f"{place.title}: the records hold no boxes (image/object/bbox/...).")
    labels = _label_map(place)
    names = labels.points or next((n for _, _, one in taken if (n := _point_names(one))), [])
    found = Annotations(RecordPlace(place, members), "tfrecord", options, point_spec(names) if names else None)
    for name, part, one in taken:
        prefix = len(_ATTRIBUTE)
        attributes = {k[prefix:]: "".join(one.words(k)) for k in one.lists if k.startswith(_ATTRIBUTE)}
        stated = [int(v) for key in ("image/height", "image/width") for v in one.numbers(key)[:1]]
        size = (stated[0], stated[1]) if len(stated) == 2 else None
        row = found.picture(name, part, below_pictures(name, part), attributes, size)
        _add_objects(found, row, one, labels)
    if not labels.names:
        found.note("no label map (*.pbtxt); classes are in natural order.", level="info")
    return found.dataset([labels.names[key] for key in sorted(labels.names)] or None)


def _content(place: Place, file: str) -> bytes | mmap.mmap:
    """A whole file; one in a folder is not loaded, but laid into memory page by page."""
    if not isinstance(place, FolderPlace) or not place.head(file, 1):
        return place.read(file)
    with (place.root / file).open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _parsed(data: bytes, at: str) -> _Picture:
    try:
        lists = features(data)
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{at}: not a tf.train.Example ({error}).") from error
    if len(lists.get("image/encoded", _NOTHING).pieces) != 1:
        raise DataError(
            f"{at}: no encoded picture in it (image/encoded). It has {', '.join(sorted(lists)[:8]) or 'nothing'}."
        )
    return _Picture(at, data, lists)


def _without_picture(one: _Picture) -> bytes:
    """The data with the picture cut out, so that a large set is not held in memory; positions are moved along."""
    first, last = one.lists["image/encoded"].pieces[0]
    cut = last - first
    one.lists = {
        key: Feature(value.numbers, [(a, b) if b <= first else (a - cut, b - cut) for a, b in value.pieces])
        for key, value in one.lists.items()
        if key != "image/encoded"
    }
    return one.data[:first] + one.data[last:]


def _name(one: _Picture, file: str, number: int) -> str:
    written = "".join(one.words("image/filename")[:1]) or "".join(one.words("image/source_id")[:1])
    pieces = [p for p in re.sub(r"^[A-Za-z]:", "", written).replace("\\", "/").split("/") if p not in ("", ".", "..")]
    name = "/".join(pieces) or f"{file.rpartition('/')[2].partition('.')[0]}-{number:06d}"
    if is_picture(name):
        return name
    first, _ = one.lists["image/encoded"].pieces[0]
    kind = magic(one.data[first : first + 16]) or "JPEG"
    return f"{name}.{ {'JPEG': 'jpg', 'TIFF': 'tif'}.get(kind, kind.lower()) }"


def _point_names(one: _Picture) -> list[str]:
    """Names of the points of the first object of a picture that has points."""
    words, counts = one.words("image/object/keypoint/text"), one.numbers("image/object/keypoint/num")
    count = len(one.numbers("image/object/keypoint/x"))
    objects = len(one.numbers("image/object/bbox/xmin"))
    each = int(counts[0]) if counts else count // objects if objects and count % objects == 0 else 0
    return words[:each] if len(words) >= each else [str(k) for k in range(each)]


def _label_map(place: Place) -> _Map:
    files = [n for n in place.names if suffix(n) == ".pbtxt"]
    if place.focus:
        folder = place.focus.rpartition("/")[0]
        files = [n for n in files if n.rpartition("/")[0] == folder]
    if len(files) > 1:
        files = [n for n in files if "label" in n.rpartition("/")[2]] or files
    if not files:
        return _Map()
    if len(files) > 1:
        raise DataError(f"{place.title}: several label maps ({', '.join(files)}). Leave the right one.")
    where = place.where(files[0])
    found = _Map()
    text = re.sub(r"^\s*#.*$", "", place.read(files[0]).decode("utf-8"), flags=re.MULTILINE)
    for number, block in enumerate(re.findall(r"item\s*:?\s*\{((?:[^{}]|\{[^{}]*\})*)\}", text), 1):
        points = re.findall(r"keypoints\s*:?\s*\{([^{}]*)\}", block)
        own = re.sub(r"keypoints\s*:?\s*\{[^{}]*\}", "", block)
        key, name = _value(own, "id"), _value(own, "name") or _value(own, "display_name")
        if key is None or not key.isdigit() or not name:
            raise DataError(f"{where}, item {number}: expected an id and a name.")
        if key == "0":
            if name.lower() != "background":
                raise DataError(f"{where}, item {number}: the id 0 is for the background; '{name}' needs one from 1.")
            continue
        if int(key) in found.names:
            raise DataError(f"{where}, item {number}: the id {key} stands there twice.")
        found.names[int(key)] = name
        found.spelled[_value(own, "display_name") or name] = name
        for point in points:
            label = _value(point, "label") or ""
            if label not in found.points:
                found.points.append(label)
    if not found.names:
        raise DataError(f"{where}: no item {{ id: 1 name: '...' }} in it.")
    return found


def _value(text: str, key: str) -> str | None:
    matched = re.search(rf"\b{key}\s*:\s*(?:\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'|(\d+))", text)
    if matched is None:
        return None
    value = next(group for group in matched.groups() if group is not None)
    return re.sub(r"\\(.)", r"\1", value)


def _add_objects(found: Annotations, row: int, one: _Picture, labels: _Map) -> None:
    prefix = "image/object/"
    corners = [_exact(one, f"{prefix}bbox/{corner}") for corner in _CORNERS]
    count = len(corners[0])
    if not count:
        return
    words, ids = one.words(f"{prefix}class/text"), one.numbers(f"{prefix}class/label")
    marks = {key: one.numbers(prefix + key) for key in ("difficult", "is_crowd")}
    marks["area"] = _exact(one, f"{prefix}area").tolist()
    spec = found.points
    xs, ys = (_exact(one, f"{prefix}keypoint/{axis}") for axis in "xy")
    seen = one.numbers(f"{prefix}keypoint/visibility")
    lengths = {corner: len(values) for corner, values in zip(_CORNERS, corners)}
    given: dict[str, Sequence[float] | Sequence[str]] = {"class/text": words, "class/label": ids, **marks}
    lengths |= {name: len(values) for name, values in given.items() if values}
    if len(set(lengths.values())) > 1 or not (words or ids):
        found.bad(one.at, f"its lists differ in length: {lengths or 'no class'}.", "records")
        return
    if (
        spec is not None
        and len(xs)
        and (len(xs) != count * len(spec.names) or len(ys) != len(xs) or len(seen) not in (0, len(xs)))
    ):
        found.bad(one.at, f"{len(xs)} points for {count} objects; expected {len(spec.names)} each.", "records")
        return
    height, width = FileSource(found.place, found.names).probe(row).size  # type: ignore[arg-type]
    for k in range(count):
        at = f"{one.at}, object {k + 1} ({found.names[row].rpartition('/')[2]})"
        shares = [values[k] for values in corners]
        if over := [v for v in shares if not -_BEYOND <= v <= 1 + _BEYOND]:
            found.bad(
                at, f"the value {over[0]:g} is no share of the picture (0 to 1). Expected shares, not pixels.", "boxes"
            )
            continue
        word = _class(found, words, ids, labels, k, at)
        if word is None:
            continue
        points = None
        if spec is not None and len(xs):
            each = range(k * len(spec.names), (k + 1) * len(spec.names))
            points = [v for i in each for v in _point(xs[i] * width, ys[i] * height, seen[i] if seen else 2.0)]
        found.add(
            row,
            word,
            (shares[0] * width, shares[1] * height, shares[2] * width, shares[3] * height),
            at,
            written=shares,
            difficult=bool(marks["difficult"] and marks["difficult"][k]),
            crowd=bool(marks["is_crowd"] and marks["is_crowd"][k]),
            area=marks["area"][k] if marks["area"] and marks["area"][k] > 0 else math.nan,
            points=points,
        )


def _point(x: float, y: float, seen: float) -> tuple[float, float, float]:
    return (x, y, float(seen)) if seen > 0 and math.isfinite(x + y) else (0.0, 0.0, 0.0)


def _exact(one: _Picture, name: str) -> NDArray[np.float64]:
    values, rest = np.array(one.numbers(name), np.float64), np.array(one.numbers(f"{name}_rest"), np.float64)
    return values + rest if len(rest) == len(values) else values


def _class(found: Annotations, words: list[str], ids: list[float], labels: _Map, k: int, at: str) -> str | None:
    by_id = labels.names.get(int(ids[k])) if ids else None
    if not words:
        if by_id is None and labels.names:
            found.bad(at, f"the class {int(ids[k])} is not in the label map.", "boxes")
            return None
        return by_id or str(int(ids[k]))
    word = labels.spelled.get(words[k], words[k])
    if labels.names and word not in labels.names.values():
        found.bad(at, f"the class '{word}' is not in the label map.", "boxes")
        return None
    if by_id is not None and by_id != word:
        found.bad(at, f"its class is '{word}' by name, but '{by_id}' by its number {int(ids[k])}.", "boxes")
        return None
    return word


def write(dataset: Dataset, to: str | os.PathLike[str]) -> list[str]:
    """Write one TFRecord file per part and `label_map.pbtxt`; the encoded pictures byte for byte.

    Raises:
        DataError: if `to` exists, or the data set holds no boxes.
    """
    head, _ = objects_of(dataset, "tfrecord")
    names = file_names(dataset)
    with new_folder(to) as folder:
        for code in sorted(set(dataset.given_split.tolist())):
            with Path(folder, f"{PARTS[code] if code >= 0 else 'data'}.tfrecord").open("wb") as file:
                for i in np.flatnonzero(dataset.given_split == code).tolist():
                    file.write(framed(_example(dataset, head, i, names[i])))
        (folder / "label_map.pbtxt").write_text(_written_map(head), encoding="utf-8")
    return []


def _written_map(head: HeadSpec) -> str:
    def quoted(name: str) -> str:
        return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'

    points = head.points.names if head.points is not None else ()
    listed = "".join(f"  keypoints {{ id: {k} label: {quoted(name)} }}\n" for k, name in enumerate(points))
    return "".join(
        f"item {{\n  id: {k}\n  name: {quoted(name)}\n{listed}}}\n" for k, name in enumerate(head.class_names, 1)
    )


def _example(dataset: Dataset, head: HeadSpec, i: int, name: str) -> bytes:
    data, _ = dataset.bytes_of(i)
    height, width = dataset.size(i)
    objects: Objects = dataset.targets[head.name][i]
    shares = objects.boxes_xyxy / np.array([width, height, width, height], np.float64)
    kind = (magic(data[:16]) or suffix(name).removeprefix(".")).lower()
    lists: dict[str, Sequence[bytes] | NDArray[Any]] = {
        "image/encoded": [data],
        "image/format": [kind.encode()],
        "image/filename": [name.encode()],
        "image/source_id": [name.encode()],
        "image/key/sha256": [hashlib.sha256(data).hexdigest().encode()],
        "image/height": np.array([height]),
        "image/width": np.array([width]),
        "image/object/class/text": [head.class_names[k].encode() for k in objects.labels],
        "image/object/class/label": objects.labels + 1,
        "image/object/difficult": objects.difficult.astype(np.int64),
        "image/object/is_crowd": objects.crowd.astype(np.int64),
        **_two("image/object/area", np.nan_to_num(objects.area, nan=0.0)),
    }
    for k, corner in enumerate(_CORNERS):
        lists |= _two(f"image/object/bbox/{corner}", shares[:, k])
    if head.points is not None:
        every = objects.points.reshape(-1, 3)
        lists |= _two("image/object/keypoint/x", every[:, 0] / width)
        lists |= _two("image/object/keypoint/y", every[:, 1] / height)
        lists["image/object/keypoint/visibility"] = every[:, 2].astype(np.int64)
        lists["image/object/keypoint/text"] = [n.encode() for n in head.points.names] * len(objects)
        lists["image/object/keypoint/num"] = np.full(len(objects), len(head.points.names))
    lists |= {f"{_ATTRIBUTE}{key}": [column[i].encode()] for key, column in dataset.attributes.items() if column[i]}
    return example(lists)


def _two(name: str, values: NDArray[np.float64]) -> dict[str, NDArray[np.float32]]:
    """Numbers as float32 and what is missing to them, again as float32: together as exact as float64."""
    near = values.astype(np.float32)
    return {name: near, f"{name}_rest": (values - near).astype(np.float32)}
