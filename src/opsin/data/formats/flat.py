"""Pictures without labels: a folder, an archive, or one picture file; for `predict` and `data inspect`."""

from __future__ import annotations

import os
from pathlib import Path

from opsin.data.columns import StringColumn, normalized
from opsin.data.dataset import Dataset, FileSource
from opsin.data.layout import ReadOptions, is_picture, look, magic, stray_problems
from opsin.data.places import NO, Place, Verdict
from opsin.errors import DataError

NAMES = ("flat",)


def sniff(place: Place) -> Verdict:
    """Pictures that lie directly in the folder, or all in one folder below it; or a single picture file."""
    if place.focus:
        is_one = is_picture(place.focus) or magic(place.head(place.focus, 16)) is not None
        return Verdict(1.0, "one picture") if is_one else NO
    tree = look(place)
    loose = sum(tree.loose.values())
    folders = {name for part in tree.classes.values() for name in part}
    inside = sum(sum(part.values()) for part in tree.classes.values())
    if loose and not inside:
        return Verdict(0.7, f"{loose} pictures without labels")
    if loose and inside:
        return Verdict(0.6 if loose > inside else 0.3, f"{loose} pictures that lie in no class folder")
    if inside and len(folders) == 1:
        return Verdict(0.55, f"{inside} pictures in one folder, without labels")
    return NO


def read(place: Place, options: ReadOptions) -> Dataset:
    """Take every picture, however deep, without labels.

    Raises:
        DataError: if there is none.
    """
    del options
    names = [place.focus] if place.focus else [name for name in place.names if is_picture(name)]
    if not names:
        raise DataError(f"{place.title}: no pictures in it.")
    strays = [] if place.focus else [name for name in place.names if not is_picture(name)]
    source = FileSource(place, StringColumn(names))
    return Dataset(
        place.root.name, (normalized(n) for n in names), source, format="flat", problems=stray_problems(place, strays)
    )


def write(dataset: Dataset, to: str | os.PathLike[str]) -> None:
    """Write the pictures byte for byte under their ids into a new folder, which appears when complete.

    Raises:
        DataError: if `to` exists, or there are labels or given parts that would be lost.
    """
    target = Path(to)
    if target.exists():
        raise DataError(f"{target}: exists already. Give a new folder.")
    if dataset.heads:
        raise DataError(f"{dataset.root}: has labels, which a flat folder cannot hold. Write it as folder or csv.")
    if (dataset.given_split >= 0).any():
        raise DataError(f"{dataset.root}: has a given split, which a flat folder cannot hold. Write it as csv.")
    partial = target.with_name(target.name + ".partial")
    for i in range(len(dataset)):
        data, filename = dataset.bytes_of(i)
        path = partial / Path(dataset.id(i)).parent / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    partial.rename(target)
