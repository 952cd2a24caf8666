"""What writers of annotated pictures share: a folder that appears when complete, pictures byte for byte, losses said."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np

from opsin.data.annotations import point_spec
from opsin.data.dataset import PARTS, Dataset, HeadSpec
from opsin.data.layout import is_picture
from opsin.data.objects import ObjectColumn, Objects
from opsin.errors import DataError

LOSABLE = {
    "crowd": "crowd marks (iscrowd): such regions become ordinary objects",
    "difficult": "difficult marks: such objects become ordinary ones",
    "area": "areas that are not those of the boxes",
    "points": "labeled points",
    "visibility": "points that are hidden become visible ones",
    "layout": "lines between points, which point mirrors which, or sigmas, as names do not say them",
    "attributes": "columns of text",
}
"""What a format may be unable to hold; a module lists its own as `LOSES`."""


@contextmanager
def new_folder(to: object) -> Iterator[Path]:
    """A folder to fill, which takes its name when the block ends without an error and vanishes otherwise.

    Raises:
        DataError: if `to` exists.
    """
    target = Path(str(to))
    if target.exists():
        raise DataError(f"{target}: exists already. Give a new folder.")
    partial = target.with_name(target.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)  # of a run that was interrupted
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def objects_of(dataset: Dataset, format: str) -> tuple[HeadSpec, ObjectColumn]:
    """The head of boxes of a data set, and its targets.

    Raises:
        DataError: if there is not exactly one head, of objects.
    """
    if len(dataset.heads) != 1 or dataset.heads[0].kind != "objects":
        held = ", ".join(f"'{head.name}' ({head.kind})" for head in dataset.heads) or "no labels"
        raise DataError(
            f"{dataset.root}: '{format}' holds boxes, and this data set has {held}. Write it as csv instead."
        )
    return dataset.heads[0], dataset.targets[dataset.heads[0].name]


def file_names(dataset: Dataset) -> list[str]:
    """The path of every picture below the folder of pictures: its id, with the ending of its bytes."""
    names = []
    for i, name in enumerate(dataset.ids):
        pieces = [piece for piece in name.split("/") if piece not in ("", ".", "..")]
        last = pieces[-1] if is_picture(name) else dataset.bytes_of(i)[1]
        names.append("/".join([*pieces[:-1], last]))
    return names


def part_folder(dataset: Dataset, i: int) -> str:
    """ "train/", "val/" or "test/" where a part is given, else ""."""
    code = int(dataset.given_split[i])
    return f"{PARTS[code]}/" if code >= 0 else ""


def put(folder: Path, name: str, data: bytes | str) -> None:
    """Write one file below a folder, making the folders on the way."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def stems(names: Sequence[str], format: str) -> list[str]:
    """Paths without endings, for formats whose annotations are named like the pictures.

    Raises:
        DataError: if two pictures differ in their ending only.
    """
    found = [str(PurePosixPath(name).with_suffix("")) for name in names]
    if len(set(found)) < len(found):
        twice = next(stem for stem in found if found.count(stem) > 1)
        raise DataError(
            f"Two pictures are called '{twice}' and differ in their ending only; '{format}' has one annotation file "
            "for that name. Rename one of them, or write it as coco or csv."
        )
    return found


def losses(dataset: Dataset, lost: Sequence[str]) -> list[str]:
    """What of a data set a format that loses `lost` (keys of `LOSABLE`) cannot hold, counted, one sentence each."""
    said = []
    for head in dataset.heads:
        if head.kind != "objects":
            continue
        column = dataset.targets[head.name]
        for what in lost:
            count = _count(dataset, head, column, what)
            if count:
                said.append(f"lost: {count:,} x {LOSABLE[what]}")
    return said


def _count(dataset: Dataset, head: HeadSpec, column: ObjectColumn, what: str) -> int:
    every = column.objects
    if what == "attributes":
        return len(dataset.attributes)
    if what == "points":
        return int((every.points[..., 2] > 0).sum())
    if what == "visibility":
        return int((every.points[..., 2] == 1).sum())
    if what == "layout":
        return int(head.points is not None and head.points != point_spec(head.points.names))
    if what == "area":
        sides = every.boxes_xyxy[:, 2:] - every.boxes_xyxy[:, :2]
        return int((np.abs(every.area - sides.prod(axis=1)) > 1e-6).sum())
    return int(getattr(every, what).sum())


def plain(value: float) -> int | float:
    """A whole number as int, so that it is written without ".0"."""
    return int(value) if float(value).is_integer() else float(value)


def text(value: float) -> str:
    """A number with as many digits as bring it back exactly."""
    return str(plain(value))


def clipped(objects: Objects, size: tuple[int, int]) -> Objects:
    """Objects cut at the edges of a picture (H, W); those of which nothing is left are gone."""
    h, w = size
    boxes = np.clip(objects.boxes_xyxy, 0, [w, h, w, h])
    kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    every = objects.copy()
    every.boxes_xyxy[:] = boxes
    return every.take(kept)
