"""Formats of data sets, one per file, and `load_data`, which recognizes them.

A format module has a literal `NAMES`, `sniff(place) -> Verdict` and `read(place, options) -> Dataset`; `write(dataset,
to)` where that makes sense. A format of boxes says in a literal `LOSES` what it cannot hold (keys of
`opsin.data.writing.LOSABLE`), and its `write` returns what had to be changed, in sentences. A module with `REFUSAL`
instead of `read` recognizes data of tasks that are not here yet, so that they are not taken for something else.
Optional: `describe(place) -> str` for messages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from opsin.data.dataset import Dataset
from opsin.data.layout import ReadOptions, found
from opsin.data.places import ARCHIVES, Place, Verdict, open_place
from opsin.errors import DataError, UnknownName
from opsin.registry import Registry

formats = Registry("format", "opsin.data.formats")

ENOUGH = 0.5
"""A verdict below this score is no candidate."""
MARGIN = 0.2
"""Candidates within this distance of the best one make a place ambiguous."""


def format_module(name: str) -> Any:
    """The module of a format (or what a plugin or `pkg.module:object` gives, with the same functions).

    Raises:
        UnknownName: if there is no such format.
    """
    if ":" in name or name not in formats:
        return formats.get(name)
    try:
        return formats.module(name)
    except UnknownName:
        return formats.get(name)


def readable() -> list[str]:
    """Names of the formats that can be read."""
    return [name for name in formats if hasattr(format_module(name), "read")]


def sniff(place: Place) -> list[tuple[str, Verdict]]:
    """All candidates for a place, the best first."""
    verdicts = [(name, format_module(name).sniff(place)) for name in formats]
    return sorted(((n, v) for n, v in verdicts if v.score >= ENOUGH), key=lambda pair: (-pair[1].score, pair[0]))


def load_data(
    path: str | os.PathLike[str],
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    name: str | None = None,
) -> Dataset:
    """Read a data set: any folder, file or archive whose format is recognized, or named.

    Args:
        path: a folder, a table, an IDX or CIFAR file, or an archive (.zip .tar .tar.gz .tgz .tar.xz .tar.bz2).
        format: a registered name, when the format is not recognized or several fit.
        columns: for tables, roles to columns: image, label (one class), labels (several), group, split, time,
            separator; any other role is a head of its own. For class folders, `label` is `top` (the default) or `path`.
            What formats of boxes know is in docs/data-formats.md (COCO's annotations, VOC's origin, tables' box and units).
        skip_bad: leave out and report rows that cannot be used, instead of raising.
        name: of the data set; by default that of the folder or file.

    Raises:
        DataError: if nothing is there, the format is unknown or ambiguous, or a file or line is wrong.
        UnknownName: if a format, column or role is unknown.
    """
    place = open_place(path)
    module = format_module(format or _recognized(place))
    if not hasattr(module, "read"):
        raise DataError(f"{place.title}: {module.REFUSAL}")
    dataset: Dataset = module.read(place, ReadOptions(dict(columns or {}), skip_bad))
    dataset.name = name or _short_name(place)
    dataset.root = place.title
    options = {"path": str(path), "format": format, "columns": dict(columns or {}), "skip_bad": skip_bad}
    dataset.opened = {key: value for key, value in options.items() if value}
    place.forget()
    _ = dataset.spec
    return dataset


def _recognized(place: Place) -> str:
    candidates = sniff(place)
    if not candidates:
        packed = [name for name in place.names if name.lower().endswith(ARCHIVES)] if not place.focus else []
        hint = f"Give the archive itself: {place.root / packed[0]}. " if packed else ""
        held = f"Found: {found(place)}. " if not place.focus else ""
        raise DataError(
            f"{place.title}: not recognized as a data set. {held}{hint}Expected class folders with pictures, "
            "pictures in one folder, a table (.csv .tsv .jsonl .json) with a column of picture paths, boxes (COCO, VOC, "
            "YOLO, TFRecord, ...) with their pictures, IDX or CIFAR files, or an archive "
            f"of one of these. Formats that can be named with --format: {', '.join(readable())}."
        )
    best = candidates[0][1].score
    close = [(n, v) for n, v in candidates if best - v.score < MARGIN]
    if len(close) > 1 and any(hasattr(format_module(n), "read") for n, _ in close):
        listed = "".join(f"\n  --format {n}: {v.why}" for n, v in close)
        raise DataError(f"{place.title}: more than one format fits. Say which is meant:{listed}")
    return candidates[0][0]


def _short_name(place: Place) -> str:
    base = place.focus or place.root.resolve().name
    for ending in (".tar.gz", ".tar.xz", ".tar.bz2", ".gz"):
        base = base.removesuffix(ending)
    stem, dot, ending = base.rpartition(".")
    return (
        stem
        if (dot and stem and len(ending) <= 5 and not place.root.is_dir()) or (place.focus and dot and stem)
        else base
    )


__all__ = ["ENOUGH", "MARGIN", "format_module", "formats", "load_data", "readable", "sniff"]
