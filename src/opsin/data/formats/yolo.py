"""YOLO text labels: `images/` beside `labels/*.txt`, with a data.yaml (classes, parts) or a classes.txt.

A row is `class cx cy width height` in shares of the picture; rows of a pose have the points after the box, rows of an
outline (class x1 y1 x2 y2 ...) give the box around it. A picture without a label file has no objects, and such
pictures are counted. Where data.yaml gives the same pictures for train and val, no part is given. Class ids may have holes.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

from opsin.data.annotations import Annotations, Pictures, around, below_pictures, part_in, point_spec
from opsin.data.dataset import PARTS, Dataset, FileSource
from opsin.data.layout import ReadOptions, is_picture, suffix
from opsin.data.objects import Objects
from opsin.data.places import NO, Place, Verdict
from opsin.data.targets import PointSpec
from opsin.data.writing import clipped, file_names, new_folder, objects_of, put, stems, text
from opsin.errors import ConfigError, DataError

NAMES = ("yolo",)
LOSES = ("crowd", "difficult", "area", "attributes")

_DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_LISTS = ("classes.txt", "labels.txt", "obj.names", "predefined_classes.txt")
_OVER = 1e-6  # shares may leave [0, 1] by so much, from rounding


def sniff(place: Place) -> Verdict:
    """A folder called labels that holds text files, rows of numbers beside pictures, or a data.yaml with names."""
    if place.focus:
        described = suffix(place.focus) in (".yaml", ".yml") and b"names" in place.head(place.focus)
        return Verdict(0.95, f"the YOLO description {place.focus}") if described else NO
    texts = [n for n in place.names if suffix(n) == ".txt" and "labels" in n.lower().split("/")[:-1]]
    if texts:
        return Verdict(0.95, f"{len(texts)} YOLO label files, e.g. {texts[0]}")
    if description := _description(place):
        return Verdict(0.95, f"the YOLO description {description}")
    stems = {n.rpartition(".")[0] for n in place.names if is_picture(n)}
    beside = [n for n in place.names if suffix(n) == ".txt" and n.rpartition(".")[0] in stems]
    if any(_is_row(place.head(name, 400)) for name in beside[:10]):
        return Verdict(0.9, f"{len(beside)} YOLO label files beside pictures, e.g. {beside[0]}")
    return NO


def _is_row(head: bytes) -> bool:
    cells = head.split(b"\n", 1)[0].split()
    try:
        return len(cells) >= 5 and int(cells[0]) >= 0 and all(-0.01 <= float(c) <= 1.01 for c in cells[1:5])
    except ValueError:
        return False


def _description(place: Place) -> str | None:
    """The YAML file that describes the data: data.yaml, or another one with names and a part."""
    if place.focus:
        return place.focus if suffix(place.focus) in (".yaml", ".yml") else None
    files = sorted((n for n in place.names if suffix(n) in (".yaml", ".yml")), key=lambda n: (n.count("/"), n))
    named = [n for n in files if n.rpartition("/")[2] in _DESCRIPTIONS and b"names" in place.head(n)]
    other = [n for n in files if all(word in place.head(n) for word in (b"names", b"train", b"val"))]
    return next(iter([*named, *other]), None)


@dataclass
class _Plan:
    """What is read: class names by id, pictures with their part, and points."""

    classes: dict[int, str]
    pictures: dict[str, int]
    base: str = ""
    points: PointSpec | None = None
    dims: int = 3
    notes: list[str] = field(default_factory=list)


def read(place: Place, options: ReadOptions) -> Dataset:
    """Read YOLO labels.

    Raises:
        DataError: if the description is broken, no picture is found, or a row has another number of values than a box,
            outline or pose, an unknown class, or a share outside [0, 1]; with file and line.
        ConfigError: if `columns` is given, which YOLO does not have.
    """
    if options.columns:
        raise ConfigError(f"YOLO labels know no --columns; given: {dict(options.columns)}.")
    pictures = Pictures(place)
    if not pictures.names and (wider := around(place)) is not place:
        inner = f"{place.root.resolve().name}/"
        described = _description(place)
        place, pictures = wider, Pictures(wider)
        plan = _planned(place, inner + described if described and not wider.focus else described and wider.focus, inner)
    else:
        plan = _planned(place, _description(place), "")
    found = Annotations(place, "yolo", options, plan.points)
    for note in plan.notes:
        found.note(note)
    counts: Counter[str] = Counter()
    labels = {n for n in place.names if suffix(n) == ".txt"}
    for name in sorted(plan.pictures):
        part = plan.pictures[name]
        row = found.picture(name, part, below_pictures(name, part))
        file = next((n for n in _label_names(name, plan.base) if n in labels), None)
        if file is None:
            counts["unlabeled"] += 1
        else:
            counts["labeled"] += 1
            _read_rows(found, plan, row, file, counts)
    if not counts["labeled"]:
        raise DataError(
            f"{place.title}: none of the {len(found)} pictures has a label file. Expected labels/NAME.txt beside "
            "images/NAME.jpg."
        )
    if counts["unlabeled"]:
        found.note(
            f"{counts['unlabeled']} of {len(found)} pictures have no label file; they count as pictures without objects."
        )
    if counts["outlines"]:
        found.note(f"{counts['outlines']} rows are outlines; the box around each was taken.", level="info")
    return found.dataset([plan.classes[key] for key in sorted(plan.classes)])


def _label_names(picture: str, base: str) -> list[str]:
    """Where the labels of a picture may be: labels/ in place of images/, below the description, or beside it."""
    stem = picture.rpartition(".")[0]
    before, mark, after = f"/{stem}".rpartition("/images/")
    names = [f"{before}/labels/{after}.txt".removeprefix("/"), f"{base}labels/{after}.txt"] if mark else []
    return [*names, f"{stem}.txt", f"{base}labels/{stem}.txt"]


def _planned(place: Place, described: str | None, inner: str) -> _Plan:
    if described is None:
        return _undescribed(place, inner)
    where = place.where(described)
    try:
        values = yaml.safe_load(place.read(described))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: not YAML ({error}).") from error
    if not isinstance(values, dict):
        raise DataError(f"{where}: expected keys such as names, train and val.")
    folder = described.rpartition("/")[0]
    plan = _Plan(_classes(values, where), {}, f"{folder}/" if folder else "")
    plan.points, plan.dims = _points(values, where)
    known = [n for n in place.names if is_picture(n)]
    bases = _bases(values, folder)
    listed: dict[str, set[str]] = {}
    for part in PARTS:
        value = values.get(part) or (values.get("valid") if part == "val" else None)
        entries = value if isinstance(value, list) else [value] if value else []
        chosen: set[str] = set()
        for entry in entries:
            chosen |= _listed(place, str(entry), bases, known, plan, f"{where}, {part}")
        if chosen:
            listed[part] = chosen
    if not listed:
        missing = ", ".join(f"{part}: {values[part]}" for part in PARTS if values.get(part)) or "neither train nor val"
        raise DataError(
            f"{where}: no pictures where it says ({missing}). Expected folders or lists below {place.root}."
        )
    if len(listed) > 1 and listed.get("train") == listed.get("val"):
        del listed["val"]
        if "test" not in listed:
            plan.pictures = dict.fromkeys(listed["train"], -1)
            return plan
    for part, chosen in listed.items():
        for name in chosen:
            if name in plan.pictures:
                raise DataError(
                    f"{where}: the picture {name} is in {PARTS[plan.pictures[name]]} and in {part}. A picture belongs to "
                    "one part."
                )
            plan.pictures[name] = PARTS.index(part)
    return plan


def _undescribed(place: Place, inner: str) -> _Plan:
    """Pictures and labels without a description: parts by folder, names from a list if there is one."""
    lists = [n for n in place.names if n.rpartition("/")[2] in _LISTS]
    names = [n for n in place.names if is_picture(n)]
    folders = [n for n in names if "images" in n.lower().split("/")[:-1]] or names
    plan = _Plan({}, {n: part_in(n.rpartition("/")[0] + "/") for n in folders}, inner)
    if lists:
        lines = place.read(min(lists, key=lambda n: (n.count("/"), n))).decode("utf-8-sig").splitlines()
        plan.classes = dict(enumerate(line.strip() for line in lines if line.strip()))
        return plan
    ids: set[int] = set()
    for name in place.names:
        if suffix(name) == ".txt" and _is_row(place.head(name, 400)):
            ids |= {
                int(line.split()[0]) for line in place.read(name).split(b"\n") if line.split()[:1] and _is_row(line)
            }
    plan.classes = {key: str(key) for key in sorted(ids)}
    plan.notes.append("no data.yaml or classes.txt names the classes; they are called by their numbers.")
    return plan


def _classes(values: Mapping[str, Any], where: str) -> dict[int, str]:
    names = values.get("names")
    entries = names.values() if isinstance(names, dict) else names if isinstance(names, list) else ()
    if any(isinstance(name, list | dict) for name in entries):
        raise DataError(f"{where}: names holds a list or mapping in place of a class name.")
    if isinstance(names, dict):
        try:
            classes = {int(key): str(name).strip() for key, name in names.items()}
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: names must map class numbers to names ({error}).") from error
    elif isinstance(names, list):
        classes = {k: str(name).strip() for k, name in enumerate(names)}
    else:
        raise DataError(f"{where}: 'names' must be a list of class names, or a mapping of numbers to names.")
    count = values.get("nc")
    if count is not None and count != len(classes):
        raise DataError(f"{where}: nc is {count}, but {len(classes)} names are given. Correct one of them.")
    return classes


def _points(values: Mapping[str, Any], where: str) -> tuple[PointSpec | None, int]:
    shape = values.get("kpt_shape")
    if shape is None:
        return None, 3
    if not (
        isinstance(shape, list) and len(shape) == 2 and all(isinstance(v, int) for v in shape) and shape[1] in (2, 3)
    ):
        raise DataError(f"{where}: kpt_shape is {shape!r}; expected [number of points, 2 or 3].")
    count, dims = shape
    try:
        return _described_points(values, count, where), dims
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: expected kpt_names as a list of names, flip_idx and kpt_sigmas as lists of numbers, and skeleton as a "
            f"list of pairs ({error})."
        ) from error


def _described_points(values: Mapping[str, Any], count: int, where: str) -> PointSpec:
    swaps = tuple(values.get("flip_idx") or ())
    if swaps and (sorted(swaps) != list(range(count))):
        raise DataError(f"{where}: flip_idx must hold each of 0 to {count - 1} once; it is {list(swaps)}.")
    names = values.get("kpt_names") or [str(k) for k in range(count)]
    names = next(iter(names.values()), []) if isinstance(names, dict) else names
    if len(names) != count:
        raise DataError(f"{where}: kpt_names has {len(names)} names for {count} points.")
    skeleton = tuple((int(a), int(b)) for a, b in values.get("skeleton") or ())
    sigmas = tuple(float(v) for v in values.get("kpt_sigmas") or ())
    said = point_spec(tuple(map(str, names)), skeleton)
    return PointSpec(said.names, swaps or said.swaps, skeleton, sigmas or said.sigmas)


def _bases(values: Mapping[str, Any], folder: str) -> list[str]:
    """Folders that paths in the description may start from: `path`, the description's own, and the root."""
    path = str(values.get("path") or "").replace("\\", "/").rstrip("/")
    last = path.rpartition("/")[2]
    return list(
        dict.fromkeys(_joined(a, b) for a, b in ((folder, path), (folder, ""), ("", path), ("", last), ("", "")))
    )


def _joined(folder: str, path: str) -> str:
    """A path from a folder, with . and .. resolved; leading .. that leave the place are dropped."""
    pieces: list[str] = []
    for piece in [*folder.split("/"), *path.replace("\\", "/").split("/")]:
        if piece == "..":
            pieces = pieces[:-1]
        elif piece not in ("", "."):
            pieces.append(piece)
    return "/".join(pieces)


def _listed(place: Place, entry: str, bases: list[str], known: list[str], plan: _Plan, where: str) -> set[str]:
    """The pictures of one entry of a part: a folder, or a text file with one path per line."""
    for base in bases:
        path = _joined(base, entry)
        if path.endswith(".txt") and place.has(path):
            return _from_list(place, path, [path.rpartition("/")[0], *bases], set(known))
        prefix = f"{path}/" if path else ""
        if chosen := {name for name in known if name.startswith(prefix)}:
            return chosen
    plan.notes.append(f"{where}: '{entry}' was not found below {place.root}; this part is left out.")
    return set()


def _from_list(place: Place, path: str, bases: list[str], known: set[str]) -> set[str]:
    chosen = set()
    for number, line in enumerate(place.read(path).decode("utf-8-sig").splitlines(), 1):
        if not (entry := line.strip()):
            continue
        tries = [_joined(base, entry) for base in bases]
        tries += [_joined("", entry[at:]) for at in [f"/{entry}".rfind("/images/")] if at >= 0]
        name = next((n for n in tries if n in known), None)
        if name is None:
            raise DataError(f"{place.where(path)}, line {number}: the picture '{entry}' was not found in {place.root}.")
        chosen.add(name)
    return chosen


def _read_rows(found: Annotations, plan: _Plan, row: int, file: str, counts: Counter[str]) -> None:
    try:
        text = found.place.read(file).decode("utf-8-sig")
    except UnicodeDecodeError:
        found.bad(found.place.where(file), "it is not text (UTF-8).", "label files")
        return
    if not text.strip():
        return
    source = FileSource(found.place, found.names)  # type: ignore[arg-type]
    height, width = source.probe(row).size
    pose = 5 + len(plan.points.names) * plan.dims if plan.points else None
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.split()
        if not cells:
            continue
        at = f"{found.place.where(file)}, line {number}"
        try:
            key = int(cells[0]) if cells[0].lstrip("-").isdigit() else int(float(cells[0]))
            values = [float(cell) for cell in cells[1:]]
            if key != float(cells[0]):
                raise ValueError(cells[0])
        except (ValueError, OverflowError):
            found.bad(at, f"'{line.strip()[:60]}' is not a row of numbers.", "rows")
            continue
        if key not in plan.classes:
            known = f"{min(plan.classes)} to {max(plan.classes)}" if plan.classes else "none"
            found.bad(at, f"the class {key} has no name ({len(plan.classes)} are given: {known}).", "rows")
            continue
        outline = pose is None and len(values) >= 6 and len(values) % 2 == 0
        if len(values) != 4 and len(cells) != pose and not outline:
            expected = f"or {pose} of a box with points" if pose else "7 or more of an outline"
            found.bad(
                at,
                f"{len(cells)} values; expected 5 (class cx cy width height), {expected}.",
                "rows",
            )
            continue
        shares = values if outline else values[:4]
        if over := [v for v in shares if not -_OVER <= v <= 1 + _OVER]:
            found.bad(
                at, f"the value {over[0]:g} lies outside 0 to 1. Expected shares of the picture, not pixels.", "rows"
            )
            continue
        points = None
        if outline:
            counts["outlines"] += 1
            xs, ys = values[::2], values[1::2]
            box = (min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height)
        else:
            cx, cy, w, h = values[:4]
            box = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
            points = _scaled(values[4:], plan.dims, width, height) if plan.points and len(cells) == pose else None
        found.add(row, plan.classes[key], box, at, written=shares, points=points)


def _scaled(values: list[float], dims: int, width: int, height: int) -> list[float]:
    """x, y, visibility in pixels; a point at (0, 0) without visibility is not labeled."""
    points: list[float] = []
    for k in range(0, len(values), dims):
        x, y = values[k], values[k + 1]
        seen = values[k + 2] if dims == 3 else (0.0 if x == 0 and y == 0 else 2.0)
        points += [x * width, y * height, seen] if seen > 0 and math.isfinite(x + y) else [0.0, 0.0, 0.0]
    return points


def write(dataset: Dataset, to: str | os.PathLike[str]) -> list[str]:
    """Write `data.yaml`, `labels/[PART/]*.txt` and the pictures byte for byte under `images/[PART/]`.

    Without given parts, train and val are both all pictures, which reading takes for no part. Pictures without a part in
    a data set where others have one go to train.

    Returns:
        What had to be changed, counted: boxes that reach so far beyond the picture that shares cannot say it are clipped.

    Raises:
        DataError: if `to` exists, the data set holds no boxes, or two pictures differ in their ending only.
    """
    head, column = objects_of(dataset, "yolo")
    names = file_names(dataset)
    bare = stems(names, "yolo")
    given = dataset.given_split
    some = bool((given >= 0).any())
    counts: Counter[str] = Counter(parts=int((given < 0).sum()) if some else 0)
    with new_folder(to) as folder:
        for i, name in enumerate(names):
            part = f"{PARTS[max(int(given[i]), 0)]}/" if some else ""
            put(folder, f"images/{part}{name}", dataset.bytes_of(i)[0])
            put(folder, f"labels/{part}{bare[i]}.txt", _rows(column[i], dataset.size(i), counts))
        codes = {max(int(code), 0) for code in given.tolist()} if some else set()
        listed = {PARTS[code]: f"images/{PARTS[code]}" for code in sorted(codes)} or {
            "train": "images",
            "val": "images",
        }
        values: dict[str, Any] = {"path": ".", **listed, "nc": len(head.class_names)}
        values["names"] = dict(enumerate(head.class_names))
        put(folder, "data.yaml", yaml.safe_dump(values | _described(head.points), allow_unicode=True, sort_keys=False))
    notes = []
    if counts["parts"]:
        notes.append(f"changed: {counts['parts']:,} pictures without a part go to train")
    if counts["clipped"]:
        notes.append(
            f"changed: {counts['clipped']:,} boxes that reach far beyond their picture are clipped at its edges"
        )
    if counts["outside"]:
        notes.append(f"lost: {counts['outside']:,} boxes that lie outside their picture")
    return notes


def _described(points: PointSpec | None) -> dict[str, Any]:
    if points is None:
        return {}
    values: dict[str, Any] = {"kpt_shape": [len(points.names), 3], "kpt_names": {0: list(points.names)}}
    values |= {"flip_idx": list(points.swaps)} if points.swaps else {}
    values |= {"skeleton": [list(pair) for pair in points.skeleton]} if points.skeleton else {}
    return values | ({"kpt_sigmas": list(points.sigmas)} if points.sigmas else {})


def _rows(objects: Objects, size: tuple[int, int], counts: Counter[str]) -> str:
    """Rows of one picture (H, W), in shares with all digits."""
    height, width = size
    scale = np.array([width, height, width, height], np.float64)
    boxes = objects.boxes_xyxy
    shares = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1) / scale
    fits = ((shares >= 0) & (shares <= 1)).all(axis=1)
    if not fits.all():
        cut = clipped(objects.take(np.flatnonzero(~fits)), size)
        counts["clipped"] += len(cut)
        counts["outside"] += int((~fits).sum()) - len(cut)
        return _rows(objects.take(np.flatnonzero(fits)), size, counts) + _rows(cut, size, counts)
    points = objects.points / [width, height, 1] if objects.points.size else objects.points
    lines = []
    for k in range(len(objects)):
        numbers = [*shares[k].tolist(), *points[k].reshape(-1).tolist()]
        lines.append(" ".join([str(int(objects.labels[k])), *map(text, numbers)]) + "\n")
    return "".join(lines)
