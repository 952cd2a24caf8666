"""Predict files and folders: a table, drawn pictures, pictures sorted into folders by class, pictures to look at again."""

from __future__ import annotations

import csv
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from opsin.bundle import Bundle
from opsin.data.classes import spec_words
from opsin.data.dataset import Dataset
from opsin.data.formats import load_data
from opsin.errors import ConfigError, DataError
from opsin.results.classification import Classification
from opsin.task import Sample

BATCH = 32
REVIEW = "review"


@dataclass
class Predictions:
    """What came of a `predict`.

    Args:
        results: (path or id, result, EXIF time) in order.
        failed: name to reason, of pictures that could not be read.
        converted: conversion in words to number of pictures.
        table: where predictions.csv is.
        seconds: for reading and predicting.
    """

    results: list[tuple[str, Any, str]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    converted: dict[str, int] = field(default_factory=dict)
    review: list[str] = field(default_factory=list)
    table: Path | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "predictions": [
                {"file": name, **_without_id(result.to_dict()), "time": taken or None}
                for name, result, taken in self.results
            ],
            "failed": self.failed,
            "converted": self.converted,
            "review": self.review,
            "table": None if self.table is None else str(self.table),
            "images_per_second": len(self.results) / max(self.seconds, 1e-9),
        }


def predict_files(
    bundle: Bundle,
    inputs: Sequence[str | Path],
    *,
    save: Path | None = None,
    sort_into: Path | None = None,
    review_below: float | None = None,
    table: Path | None = None,
    write_table: bool = True,
    runner: Any = None,
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """Predict every picture among files, folders and archives.

    Args:
        bundle: the model.
        inputs: files, folders (with all below) or archives.
        save: draw each result into this folder.
        sort_into: copy each picture into a folder per class here; with several labels, into each of them.
        review_below: pictures whose score is lower are listed (and, with `sort_into`, go to the folder `review`).
        table: where to write the table; by default `predictions.csv` in `save`, or here when a folder was given.
        write_table: False writes none, whatever was given.
        runner: another runtime of the same model.
        progress: called with the number of pictures done.

    Raises:
        ConfigError: if there is nothing at an input, or no picture in any.
    """
    if table is not None and table.exists():
        raise ConfigError(f"--table {table} exists already; give another name, or remove it.")
    started, found = time.monotonic(), Predictions()
    sources = [pictures_at(Path(one)) for one in inputs]
    if sum(len(source) for source in sources) == 0:
        raise ConfigError(f"No picture found in {', '.join(map(str, inputs))}.")
    reduce_to = bundle.task.reduce_to
    for source in sources:
        reader = _read_ahead(source, reduce_to)
        while chunk := list(islice(reader, BATCH)):
            _predict_chunk(bundle, source, chunk, found, runner, save, sort_into, review_below)
            if progress is not None:
                progress(len(found.results) + len(found.failed))
    found.seconds = time.monotonic() - started
    folder = any(not Path(one).is_file() or len(source) > 1 for one, source in zip(inputs, sources))
    if write_table and (table is not None or save is not None or folder):
        found.table = table or free_path((save or Path()) / "predictions.csv")
        _write_table(found)
    return found


def pictures_at(path: Path) -> Dataset:
    """The pictures of a file, of a folder with all below it, or of a data set.

    Raises:
        ConfigError: if there is nothing.
    """
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder.")
    if path.is_dir():
        files = [
            p
            for p in sorted(path.rglob("*"))
            if p.is_file() and p.suffix.lower() in PICTURES and not p.name.startswith(".")
        ]
        from opsin.data.build import from_files

        return from_files([p.relative_to(path) for p in files], root=path, name=path.name)
    if path.suffix.lower() in PICTURES:
        from opsin.data.build import from_files

        return from_files([path.resolve()], root=path.resolve().parent, name=path.name)
    return load_data(path)


PICTURES = frozenset(Image.registered_extensions()) | {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
    ".ppm",
    ".pgm",
}


@dataclass
class _Read:
    index: int
    name: str
    sample: Sample | None
    reason: str = ""
    taken: str = ""
    words: str | None = None


def _read_ahead(source: Dataset, reduce_to: int | None) -> Iterator[_Read]:
    """Decode pictures in threads, a little ahead of the model."""
    from opsin.data.image import probe, read_original

    def read(i: int) -> _Read:
        name = source.id(i)
        try:
            if source.arrays is not None:
                return _Read(i, name, source.read(i))
            data, _ = source.bytes_of(i)
            image, spec, size = read_original(data, reduce_to=reduce_to, name=name)
            sample = Sample(name, image, original_size=size)
            return _Read(i, name, sample, taken=probe(data, name=name).taken or "", words=spec_words(spec))
        except DataError as error:
            return _Read(i, name, None, str(error))

    with ThreadPoolExecutor(4) as pool:
        pending = []
        for i in range(len(source)):
            pending.append(pool.submit(read, i))
            if len(pending) > 2 * BATCH:
                yield pending.pop(0).result()
        for one in pending:
            yield one.result()


def _predict_chunk(
    bundle: Bundle, source: Dataset, chunk: Sequence[_Read], found: Predictions, runner: Any,
    save: Path | None, sort_into: Path | None, review_below: float | None,
) -> None:  # fmt: skip
    good = [one for one in chunk if one.sample is not None]
    found.failed.update({one.name: one.reason for one in chunk if one.sample is None})
    if not good:
        return
    results = bundle.predict_samples([one.sample for one in good if one.sample is not None], runner)
    want = bundle.input_words
    for one, result in zip(good, results):
        found.results.append((one.name, result, one.taken))
        if one.words is not None and one.words != want:
            words = f"{one.words} to {want}"
            found.converted[words] = found.converted.get(words, 0) + 1
        unsure = review_below is not None and result.score < review_below
        if unsure:
            found.review.append(one.name)
        if save is not None:
            _draw(source, one, result, save)
        if sort_into is not None:
            _sort(source, one, [REVIEW] if unsure else _labels(result), sort_into)


def _labels(result: Any) -> list[str]:
    if isinstance(result, Classification):
        return list(result.heads[0].labels) or ["none"]
    return [str(result.label)]


def _draw(source: Dataset, one: _Read, result: Any, save: Path) -> None:
    import io

    data, _ = source.bytes_of(one.index)
    with Image.open(io.BytesIO(data)) as image:
        drawn = result.draw(ImageOps.exif_transpose(image))
    target = save / Path(safe_path(one.name)).with_suffix(".png")
    target.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(free_path(target))


def _sort(source: Dataset, one: _Read, labels: Sequence[str], folder: Path) -> None:
    data, name = source.bytes_of(one.index)
    for label in labels:
        target = folder / _safe(label) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        free_path(target).write_bytes(data)


def _safe(word: str) -> str:
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", word).strip(". ") or "_"


def safe_path(name: str) -> str:
    """A sample id as a relative path that every operating system takes."""
    return "/".join(_safe(part) for part in name.split("/"))


def free_path(path: Path) -> Path:
    """The path, or one with a number behind its stem, so that no file is written over."""
    if not path.exists():
        return path
    number = 2
    while (other := path.with_stem(f"{path.stem}-{number}")).exists():
        number += 1
    return other


def _write_table(found: Predictions) -> None:
    if found.table is None:
        return
    found.table.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"file": name, **result.columns(), "time": taken, "error": ""} for name, result, taken in found.results]
    keys = list(lines[0]) if lines else ["file", "class", "score", "top5", "time", "error"]
    lines += [{"file": name, "error": reason} for name, reason in found.failed.items()]
    aside = found.table.with_name(f".{found.table.name}.partial")
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys, restval="")
        writer.writeheader()
        writer.writerows(lines)
    shutil.move(aside, found.table)


def _without_id(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "id"}
