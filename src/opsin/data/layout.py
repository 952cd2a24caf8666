"""How files are laid out in a place: pictures, split folders, strays; what several formats ask about."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from opsin.data.dataset import Problem
from opsin.data.image import PICTURE_SUFFIXES
from opsin.data.places import Place

PART_FOLDERS = {
    "train": 0, "training": 0,
    "val": 1, "valid": 1, "validation": 1, "dev": 1,
    "test": 2, "testing": 2,
}  # fmt: skip
"""Folder (and cell) names that name a part of a split, to positions in `PARTS`."""

ANNOTATION_FOLDERS = frozenset(
    [
        "images",
        "image",
        "imgs",
        "img",
        "labels",
        "label",
        "annotations",
        "annotation",
        "masks",
        "mask",
        "jpegimages",
        "segmentationclass",
        "segmentationobject",
        "imagesets",
        "gt",
    ]
)
"""Folder names that hold pictures or annotations of another task, and are no class names."""

LISTED = 20
"""So many problems of one kind are listed one by one; the rest are counted."""


@dataclass(frozen=True)
class ReadOptions:
    """What a person says about how to read.

    Args:
        columns: roles to columns, for formats that have columns or several readings.
        skip_bad: leave out and count rows that cannot be used, instead of raising.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    skip_bad: bool = False


def suffix(name: str) -> str:
    """The ending of a file name in lower case, with its dot; "" if it has none."""
    last = name.rpartition("/")[2]
    return "." + last.rpartition(".")[2].lower() if "." in last else ""


def is_picture(name: str) -> bool:
    """Whether a file name ends like that of a picture."""
    return suffix(name) in PICTURE_SUFFIXES


def inner_root(names: Iterable[str]) -> str:
    """The folder chain ("a/b/" or "") that wraps everything, as archives often have; it stops at the names of parts."""
    prefix = ""
    remaining = [name for name in names if is_picture(name)]
    while remaining:
        tops = {name[len(prefix) :].partition("/")[0] for name in remaining}
        top = next(iter(tops))
        if len(tops) > 1 or any("/" not in name[len(prefix) :] for name in remaining):
            break
        inside = {name[len(prefix) + len(top) + 1 :] for name in remaining}
        if top.lower() in PART_FOLDERS or any("/" not in name for name in inside):
            break
        prefix += top + "/"
    return prefix


@dataclass
class Tree:
    """Pictures of a place sorted into part and class folders (`inner` is the wrapping folder that all share)."""

    inner: str
    classes: dict[str, Counter[str]]  # part folder ("" for none) -> class -> pictures
    loose: Counter[str]  # part folder -> pictures that lie directly in it
    deeper: str | None  # a picture below a class folder's own folder, if any
    others: list[str]  # files that are no pictures


def look(place: Place) -> Tree:
    """Sort the names of a place into the tree of part and class folders."""
    inner = inner_root(place.names)
    tops = {
        name[len(inner) :].partition("/")[0] for name in place.names if is_picture(name) and "/" in name[len(inner) :]
    }
    split = bool(tops) and all(top.lower() in PART_FOLDERS for top in tops)
    tree = Tree(inner, defaultdict(Counter), Counter(), None, [])
    for name in place.names:
        if not is_picture(name):
            tree.others.append(name)
            continue
        parts = name[len(inner) :].split("/")
        part = parts.pop(0) if split and len(parts) > 1 else ""
        if len(parts) == 1:
            tree.loose[part] += 1
            continue
        tree.classes[part][parts[0]] += 1
        tree.deeper = tree.deeper or (name if len(parts) > 2 else None)
    return tree


def stray_problems(place: Place, names: Iterable[str]) -> list[Problem]:
    """Say which files were not used, and which of them are pictures under a wrong name."""
    names, problems = list(names), []
    for name in names[:LISTED]:
        kind = magic(place.head(name, 16))
        if kind:
            ending = suffix(name) or "nothing"
            message = f"not used: it looks like a {kind} picture, but its name ends in '{ending}'. Rename it to use it."
            problems.append(Problem(place.where(name), message))
        else:
            problems.append(Problem(place.where(name), "not used: it is not a picture.", level="info"))
    if len(names) > LISTED:
        endings = Counter(suffix(name) or "no ending" for name in names).most_common(5)
        shown = ", ".join(f"{count} {ending}" for ending, count in endings)
        problems.append(
            Problem(place.title, f"{len(names)} files that are not pictures were not used in all ({shown}).")
        )
    return problems


def magic(head: bytes) -> str | None:
    """Which picture format the first bytes of a file belong to, None if to none that is common."""
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    marks = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
    return next((kind for mark, kind in marks.items() if head.startswith(mark)), None)


def found(place: Place) -> str:
    """What a place holds, in a few words, for messages."""
    if not place.names:
        return "nothing (hidden files not counted)"
    endings = Counter(suffix(name) or "no ending" for name in place.names).most_common(6)
    folders = Counter(name.partition("/")[0] for name in place.names if "/" in name)
    shown = ", ".join(f"{count} {ending}" for ending, count in endings)
    tops = ", ".join(sorted(folders)[:6]) + (", ..." if len(folders) > 6 else "")
    return f"{len(place.names)} files ({shown}){f' in folders {tops}' if folders else ''}"
