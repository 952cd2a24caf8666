"""Class folders: `[part/]class/.../picture`, the layout of ImageFolder and Keras.

The class of a picture is the topmost folder below the part (train, val/valid/validation/dev, test), as in torchvision
and Keras; `--columns label=path` takes the whole folder path instead ("Greek/character01"). Classes are in natural
order ("2" before "10", letters without case), and the order is saved with the data. A folder that wraps everything is
looked through. Class folders that are not the same in all parts are a problem that is shown.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from opsin.data.columns import StringColumn, natural_key, normalized
from opsin.data.dataset import PARTS, Dataset, FileSource, HeadSpec, Problem
from opsin.data.layout import ANNOTATION_FOLDERS, PART_FOLDERS, ReadOptions, Tree, is_picture, look, stray_problems
from opsin.data.places import NO, Place, Verdict
from opsin.errors import ConfigError, DataError

NAMES = ("folder",)


def sniff(place: Place) -> Verdict:
    """Two or more class folders with pictures, with or without train/val/test above them."""
    if place.focus:
        return NO
    tree = look(place)
    names = {name for part in tree.classes.values() for name in part}
    count = sum(sum(part.values()) for part in tree.classes.values())
    loose = sum(tree.loose.values())
    if not count or {n.lower() for n in names} <= ANNOTATION_FOLDERS:
        return NO
    if len(names) < 2:
        return Verdict(0.3, f"one class folder ('{next(iter(names))}')")
    shown = ", ".join(sorted(names, key=natural_key)[:4]) + (", ..." if len(names) > 4 else "")
    given = [part for part in tree.classes if part]
    why = f"{count} pictures in {len(names)} class folders ({shown}){f' in the parts {sorted(given)}' if given else ''}"
    return Verdict(0.7 if loose <= count else 0.4, why)


def read(place: Place, options: ReadOptions) -> Dataset:
    """Read class folders.

    Raises:
        DataError: if there is no class folder.
        ConfigError: if `columns` asks for anything but label=top or label=path.
    """
    whole = _label_is_path(options)
    tree = look(place)
    if not tree.classes:
        raise DataError(
            f"{place.title}: no class folders. Expected CLASS/picture.jpg or train/CLASS/picture.jpg with one folder "
            "per class."
        )
    ids: list[str] = []
    names: list[str] = []
    words: list[str] = []
    parts: list[int] = []
    unused: list[str] = []
    split = any(tree.classes) and "" not in tree.classes
    for name in place.names:
        if not is_picture(name):
            continue
        pieces = name[len(tree.inner) :].split("/")
        part = PART_FOLDERS[pieces.pop(0).lower()] if split and len(pieces) > 1 else -1
        if len(pieces) == 1:
            unused.append(name)
            continue
        ids.append(normalized(name))
        names.append(name)
        words.append(normalized("/".join(pieces[:-1]) if whole else pieces[0]))
        parts.append(part)
    class_names = tuple(sorted(set(words), key=natural_key))
    given = np.array(parts, np.int8)
    place_of = {word: k for k, word in enumerate(class_names)}
    labels = np.fromiter((place_of[word] for word in words), np.int64, len(words))
    return Dataset(
        place.root.name,
        ids,
        FileSource(place, StringColumn(names)),
        format="folder",
        heads=(HeadSpec("label", "single", class_names),),
        targets={"label": labels},
        given_split=given,
        problems=[*_class_problems(place, labels, given, class_names), *_problems(place, tree, unused, whole)],
    )


def _label_is_path(options: ReadOptions) -> bool:
    extra = {k: v for k, v in options.columns.items() if (k, v) not in (("label", "top"), ("label", "path"))}
    if extra:
        raise ConfigError(f"Class folders know only --columns label=top or label=path; given: {extra}.")
    return options.columns.get("label") == "path"


def _class_problems(place: Place, labels: np.ndarray, given: np.ndarray, class_names: tuple[str, ...]) -> list[Problem]:
    present = {
        code: {class_names[k] for k in np.unique(labels[given == code])}
        for code in np.unique(given).tolist()
        if code >= 0
    }
    if len(present) < 2 or len({frozenset(names) for names in present.values()}) == 1:
        return []
    every = set(class_names)
    lines = [
        f"{PARTS[code]} lacks {', '.join(map(repr, sorted(every - names, key=natural_key)[:10]))}"
        for code, names in present.items()
        if every - names
    ]
    return [
        Problem(
            place.title,
            f"the class folders differ between the parts: {'; '.join(lines)}. Rename or move folders (a spelling?), or "
            "remove the class from all parts.",
        )
    ]


def _problems(place: Place, tree: Tree, unused: list[str], whole: bool) -> list[Problem]:
    problems = stray_problems(place, tree.others)
    for name in unused[:20]:
        problems.append(
            Problem(place.where(name), "not used: the picture lies in no class folder, so it has no label.")
        )
    if len(unused) > 20:
        problems.append(Problem(place.title, f"{len(unused)} pictures in no class folder were not used in all."))
    if tree.deeper and not whole:
        problems.append(
            Problem(
                place.where(tree.deeper),
                "class folders contain folders; the topmost one was taken as the class. Pass --columns label=path to "
                "make every folder a class of its own.",
            )
        )
    return problems


def write(dataset: Dataset, to: str | os.PathLike[str]) -> None:
    """Write class folders with the files as they are, byte for byte: `[part/]class/name`; the folder appears when
    complete.

    Raises:
        DataError: if `to` exists, a label is missing, or the data set has not exactly one single-label head.
    """
    target = Path(to)
    if target.exists():
        raise DataError(f"{target}: exists already. Give a new folder.")
    if len(dataset.heads) != 1 or dataset.heads[0].kind != "single":
        raise DataError(f"{dataset.root}: class folders hold exactly one class per picture; write it as csv instead.")
    head = dataset.heads[0]
    if missing := dataset.missing(head.name):
        raise DataError(
            f"{dataset.root}: {missing} pictures have no label and would be lost in class folders. Write it as csv "
            "instead."
        )
    partial = target.with_name(target.name + ".partial")
    partial.mkdir(parents=True)
    used: set[str] = set()
    for i in range(len(dataset)):
        data, filename = dataset.bytes_of(i)
        code = int(dataset.given_split[i])
        folder = "/".join([*([PARTS[code]] if code >= 0 else []), head.class_names[dataset.targets[head.name][i]]])
        relative = f"{folder}/{filename}"
        if relative.casefold() in used:
            relative = f"{folder}/{i}-{filename}"
        used.add(relative.casefold())
        (partial / relative).parent.mkdir(parents=True, exist_ok=True)
        (partial / relative).write_bytes(data)
    partial.rename(target)
