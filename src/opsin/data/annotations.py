"""What readers of boxes and points share: pictures found by name, objects gathered and checked, one data set at the end.

A reader makes an `Annotations`, says `picture(...)` for every picture and `add(...)` for every object, and takes
`dataset(...)`. Ids, class names and checks are thereby the same in every format.
"""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from opsin.data.columns import StringColumn, natural_key, normalized
from opsin.data.dataset import PARTS, Dataset, FileSource, HeadSpec, Problem
from opsin.data.layout import ANNOTATION_FOLDERS, LISTED, PART_FOLDERS, ReadOptions, is_picture
from opsin.data.objects import ObjectColumn, Objects
from opsin.data.places import FolderPlace, Place
from opsin.data.targets import PointSpec
from opsin.errors import DataError, UnknownName

PICTURE_FOLDERS = frozenset(["images", "image", "imgs", "img", "jpegimages"])
"""Folder names below which the pictures lie; ids are paths from there."""

HEAD = "objects"
"""Name and kind of the head of boxes and points."""

SIGMAS = {
    "nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072,
    "wrist": 0.062, "hip": 0.107, "knee": 0.087, "ankle": 0.089,
}  # fmt: skip
"""Of COCO's 17 person keypoints, by name without left_ and right_ (https://cocodataset.org/#keypoints-eval)."""

COMPARED = 200
"""So many pictures, evenly spread, are compared with the size that the annotations state."""

LARGEST = 1e9
"""Pixels; a number beyond it is no coordinate of a picture."""

_PART_WORD = re.compile(r"(?P<word>[a-z]+?)[-_]?(?:19|20)?\d{0,4}", re.IGNORECASE)

_SIDE = re.compile("left|right", re.IGNORECASE)

Where = str | Callable[[], str]


def point_spec(names: Sequence[str], skeleton: Sequence[tuple[int, int]] = ()) -> PointSpec:
    """What names say of points: "left_x" and "right_x" mirror each other, and COCO's 17 have published sigmas."""
    position = {name: k for k, name in enumerate(names)}
    swaps = tuple(position.get(_SIDE.sub(_other_side, name), k) for k, name in enumerate(names))
    sigmas = tuple(SIGMAS.get(re.sub(r"^(left|right)_", "", name), math.nan) for name in names)
    known = len(names) == 17 and not any(map(math.isnan, sigmas))
    one_sided = any(_SIDE.search(name) for name in names)
    return PointSpec(tuple(names), swaps if one_sided else (), tuple(skeleton), sigmas if known else ())


def _other_side(found: re.Match[str]) -> str:
    swapped = {"left": "right", "right": "left"}[found[0].lower()]
    return swapped.capitalize() if found[0][0].isupper() else swapped


def stated_size(height: Any, width: Any) -> tuple[int, int] | None:
    """(H, W) as annotations state it; None where that is no size, so that there is nothing to compare."""
    try:
        size = int(float(height)), int(float(width))
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def xml_root(place: Place, name: str) -> ElementTree.Element:
    """The root of an XML file.

    Raises:
        DataError: if it is broken, in an encoding that is not read, or defines entities.
    """
    data = place.read(name)
    if b"<!ENTITY" in data.replace(b"\0", b""):
        raise DataError(f"{place.where(name)}: defines XML entities, which annotations do not need. Remove them.")
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise DataError(f"{place.where(name)}: broken XML ({error}).") from error
    except (ValueError, LookupError) as error:
        raise DataError(f"{place.where(name)}: its encoding is not read ({error}). Save it as UTF-8.") from error


def part_code(word: str) -> int:
    """Position in `PARTS` of a folder or file name that says a part ("valid", "train2017"), -1 for any other."""
    matched = _PART_WORD.fullmatch(word)
    return PART_FOLDERS.get(matched["word"].lower(), -1) if matched else -1


def part_in(name: str) -> int:
    """The part that a path says: by a folder, or by a word of the file's own name ("instances_val2017.json")."""
    *folders, last = name.split("/")
    for folder in reversed(folders):
        if (code := part_code(folder)) >= 0:
            return code
    for word in re.split(r"[_.\- ]", last.rpartition(".")[0] or last):
        if (code := part_code(word)) >= 0:
            return code
    return -1


def below_pictures(name: str, part: int) -> str:
    """A picture's path below the folder of pictures, without the folder of its own part."""
    pieces = name.split("/")
    for k, piece in enumerate(pieces[:-1]):
        if piece.lower() in PICTURE_FOLDERS:
            pieces = pieces[k + 1 :]
            break
    if len(pieces) > 1 and part >= 0 and part_code(pieces[0]) == part:
        pieces = pieces[1:]
    return "/".join(pieces)


def around(place: Place) -> Place:
    """The place one folder up where annotations lie beside a folder of pictures; else the place itself."""
    if not isinstance(place, FolderPlace):
        return place
    root = Path(place.root).resolve()
    beside = any((root.parent / name).is_dir() for name in ("images", "JPEGImages"))
    if not beside and root.name.lower() not in ANNOTATION_FOLDERS:
        return place
    return FolderPlace(root.parent, f"{root.name}/{place.focus}" if place.focus else None)


class Pictures:
    """The pictures of a place, found by what annotations call them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.names = [name for name in place.names if is_picture(name)]
        self._known = set(self.names)
        self._by_last: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for name in self.names:
            last = name.rpartition("/")[2]
            self._by_last.setdefault(normalized(last), []).append(name)
            self._by_stem.setdefault(normalized(last.rpartition(".")[0]), []).append(name)

    def find(self, written: str, beside: str = "", part: int = -1) -> str | None:
        """The picture that a path in a file means: beside that file, from the root, or where only one fits.

        Args:
            written: path as it stands in the annotations, with any slashes.
            beside: folder of the annotation file.
            part: among several that fit, one in this part's folder is meant.
        """
        path = written.replace("\\", "/").removeprefix("./")
        for name in dict.fromkeys((f"{beside}/{path}" if beside else path, path)):
            if name in self._known:
                return name
        fits = self._by_last.get(normalized(path.rpartition("/")[2]), [])
        if not fits and not is_picture(path):
            fits = self._by_stem.get(normalized(path.rpartition("/")[2]), [])
        return self._chosen(fits, path, part)

    def of_stem(self, stem: str, part: int = -1) -> str | None:
        """The picture with this path without its ending, from the root or where only one fits."""
        fits = self._by_stem.get(normalized(stem.rpartition("/")[2]), [])
        exact = [name for name in fits if name.rpartition(".")[0] == stem]
        return exact[0] if len(exact) == 1 else self._chosen(fits, stem, part)

    @staticmethod
    def _chosen(fits: list[str], path: str, part: int) -> str | None:
        exact = [name for name in fits if below_pictures(name, part).rpartition(".")[0] == path.rpartition(".")[0]]
        fits = exact if len(fits) > 1 and exact else fits
        if len(fits) > 1 and "/" in path:
            ends = [name for name in fits if f"/{name.rpartition('.')[0]}".endswith(f"/{path.rpartition('.')[0]}")]
            fits = ends or fits
        if len(fits) > 1 and part >= 0:
            fits = [name for name in fits if part_in(name) == part] or fits
        return fits[0] if len(fits) == 1 else None


class Annotations:
    """Pictures and their objects as a reader finds them.

    Args:
        place: where the pictures are.
        format: name of the format.
        options: what the person said; with `skip_bad`, what cannot be used is left out and counted.
        points: what the points of an object are, if there are any.
    """

    def __init__(self, place: Place, format: str, options: ReadOptions, points: PointSpec | None = None) -> None:
        self.place, self.format, self.options, self.points = place, format, options, points
        self.names: list[str] = []
        self.problems: list[Problem] = []
        self._below: list[str] = []
        self._parts: list[int] = []
        self._row: dict[str, int] = {}
        self._attributes: list[dict[str, str]] = []
        self._stated: dict[int, tuple[int, int]] = {}
        self._owners, self._labels = array("q"), array("q")
        self._boxes, self._areas = array("d"), array("d")
        self._crowd, self._difficult = bytearray(), bytearray()
        self._words: dict[str, int] = {}
        self._points: dict[int, Sequence[float]] = {}
        self._bad: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.names)

    def picture(
        self,
        name: str,
        part: int = -1,
        below: str | None = None,
        attributes: Mapping[str, str] | None = None,
        stated: tuple[int, int] | None = None,
    ) -> int:
        """A picture of the data set, with or without objects; its row.

        Args:
            name: of the file in the place.
            part: position in `PARTS`, -1 if none is given.
            below: path below the folder of pictures (then of the part); from the name if not given.
            attributes: further columns of text.
            stated: (H, W) by the annotations, to be compared with the file's.

        Raises:
            DataError: if the picture is there already.
        """
        if name in self._row:
            raise DataError(
                f"{self.place.where(name)}: this picture is annotated twice. Join or remove one of the two."
            )
        row = self._row[name] = len(self.names)
        self.names.append(name)
        self._below.append(normalized(below if below is not None else below_pictures(name, part)))
        self._parts.append(part)
        self._attributes.append(dict(attributes or {}))
        if stated is not None:
            self._stated[row] = stated
        return row

    def row(self, name: str) -> int | None:
        """The row of a picture that was said."""
        return self._row.get(name)

    def add(
        self,
        row: int,
        word: str,
        box_xyxy: Sequence[float],
        where: Where,
        *,
        written: Sequence[float] | None = None,
        crowd: bool = False,
        difficult: bool = False,
        area: float = math.nan,
        points: Sequence[float] | None = None,
    ) -> None:
        """An object of a picture.

        Args:
            row: of the picture.
            word: the class.
            box_xyxy: in pixels, continuous.
            where: file and object, for messages.
            written: the box as it stands in the file, for messages.
            points: 3 K numbers x, y, visibility.

        Raises:
            DataError: if the box has no positive size, or a number is not finite or beyond `LARGEST` (with `skip_bad` it is
                counted).
        """
        x1, y1, x2, y2 = box_xyxy
        if not (x2 > x1 and y2 > y1 and math.isfinite(x1 + y1 + x2 + y2)):
            shown = ", ".join(f"{v:g}" for v in (written if written is not None else box_xyxy))
            fault = "x2 <= x1" if x2 <= x1 else "y2 <= y1" if y2 <= y1 else "a value that is no number"
            self.bad(where, f"box [{shown}] has {fault}. Expected positive width and height.", "boxes")
            return
        if max(map(abs, box_xyxy)) > LARGEST:
            self.bad(where, f"the value {max(map(abs, box_xyxy)):g} is no coordinate of a picture.", "boxes")
            return
        if points is not None and not all(isinstance(v, int | float) and abs(v) <= LARGEST for v in points):
            self.bad(where, "a point is no number, or no coordinate of a picture.", "boxes")
            return
        if points is not None:
            self._points[len(self._owners)] = points
        self._owners.append(row)
        self._labels.append(self._words.setdefault(word, len(self._words)))
        self._boxes.extend((x1, y1, x2, y2))
        self._areas.append(area)
        self._crowd.append(crowd)
        self._difficult.append(difficult)

    def bad(self, where: Where, message: str, what: str) -> None:
        """Something cannot be used: an error, or with `skip_bad` counted among the bad `what`.

        Raises:
            DataError: without `skip_bad`.
        """
        at = where if isinstance(where, str) else where()
        if not self.options.skip_bad:
            raise DataError(f"{at}: {message} Fix the file, or pass --skip-bad to drop and count such {what}.")
        self._bad[what] += 1
        if self._bad[what] <= LISTED:
            self.problems.append(Problem(at, f"dropped: {message}", None, "error"))

    def note(self, message: str, where: str | None = None, level: str = "warning") -> None:
        """Something that the person should know."""
        title = self.place.title if where is None else where
        self.problems.append(Problem(title, message, None, "info" if level == "info" else "warning"))

    def dataset(
        self,
        class_names: Sequence[str] | None = None,
        roles: Mapping[str, str] | None = None,
        class_ids: Sequence[int] = (),
    ) -> Dataset:
        """The data set: one head of objects, ids below the folder of pictures.

        Args:
            class_names: in order, where the format says it; otherwise the classes that occur, in natural order.
            roles: which attribute is group or time.
            class_ids: number of each class in the files, where the format has such.

        Raises:
            DataError: if there is no picture, or a class name stands twice.
        """
        names = tuple(sorted(self._words, key=natural_key)) if class_names is None else tuple(class_names)
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(
                f"{self.place.title}: the class '{twice}' is listed twice. Give each class a name of its own."
            )
        if unknown := [word for word in self._words if word not in set(names)]:
            raise UnknownName("class", unknown[0], names, f"It stands in the annotations of {self.place.title}.")
        self._compare_sizes()
        head = HeadSpec(HEAD, "objects", names, self.points, tuple(class_ids))
        return self.labeled((head,), {HEAD: self._column(names)}, roles)

    def labeled(
        self, heads: Sequence[HeadSpec], targets: Mapping[str, Any], roles: Mapping[str, str] | None = None
    ) -> Dataset:
        """The pictures with other targets than objects.

        Raises:
            DataError: if there is no picture.
        """
        if not self.names:
            raise DataError(f"{self.place.title}: no annotated picture was found.")
        for what, count in self._bad.items():
            self.problems.append(Problem(self.place.title, f"{count} {what} were dropped in all.", None, "error"))
        used = {key: None for row in self._attributes for key in row}
        return Dataset(
            self.place.root.name,
            self._ids(),
            FileSource(self.place, StringColumn(self.names)),
            format=self.format,
            heads=heads,
            targets=targets,
            attributes={key: StringColumn(row.get(key, "") for row in self._attributes) for key in used},
            given_split=np.array(self._parts, np.int8),
            problems=self.problems,
            roles=roles,
        )

    def _ids(self) -> list[str]:
        ids = self._below
        if len(set(ids)) < len(ids):
            ids = [f"{PARTS[code]}/{name}" if code >= 0 else name for name, code in zip(ids, self._parts)]
        return ids if len(set(ids)) == len(ids) else [normalized(name) for name in self.names]

    def _column(self, names: tuple[str, ...]) -> ObjectColumn:
        owners = np.frombuffer(self._owners, np.int64) if self._owners else np.zeros(0, np.int64)
        order = np.argsort(owners, kind="stable")
        place_of = {name: k for k, name in enumerate(names)}
        lookup = np.array([place_of[word] for word in self._words], np.int64)
        count, labels = len(owners), np.array(self._labels, np.int64)
        points = np.zeros((count, len(self.points.names) if self.points else 0, 3))
        for k, values in self._points.items():
            points[k] = np.asarray(values, np.float64).reshape(-1, 3)
        objects = Objects(
            np.array(self._boxes, np.float64).reshape(-1, 4)[order],
            lookup[labels][order] if count else labels,
            np.array(self._crowd, np.bool_)[order],
            np.array(self._difficult, np.bool_)[order],
            np.array(self._areas, np.float64)[order],
            points[order],
        )
        starts = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(self.names)))])
        return ObjectColumn(objects, starts.astype(np.int64))

    def _compare_sizes(self) -> None:
        """Say where pictures do not have the size that their annotations state."""
        rows = list(self._stated)
        chosen = np.unique(np.linspace(0, len(rows) - 1, min(COMPARED, len(rows))).astype(int)) if rows else ()
        source = FileSource(self.place, StringColumn(self.names))
        other: list[tuple[str, tuple[int, int], tuple[int, int]]] = []
        for k in chosen:
            row = rows[int(k)]
            try:
                size = source.probe(row).size
            except DataError:  # verified, and said, before training
                continue
            if size != self._stated[row]:
                other.append((self.names[row], size, self._stated[row]))
        if other:
            name, (h, w), (stated_h, stated_w) = other[0]
            self.note(
                f"{len(other)} of {len(chosen)} pictures compared have another size than their annotations state: "
                f"{self.place.where(name)} is {w} x {h} (its EXIF orientation applied), annotated as {stated_w} x "
                f"{stated_h}. If the boxes were drawn on pictures of that size, they do not fit."
            )


def named_classes(place: Place, names: Iterable[str] = ("labels.txt", "classes.txt")) -> tuple[str, ...] | None:
    """Class names listed one per line in a file at the root of a place, None without such a file."""
    for name in names:
        fits = [one for one in place.names if one == name] or [one for one in place.names if one.endswith(f"/{name}")]
        if len(fits) == 1:
            text = place.read(fits[0]).decode("utf-8-sig")
            return tuple(line.strip() for line in text.splitlines() if line.strip())
    return None
