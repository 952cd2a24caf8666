"""Predict files, folders and videos: a table, drawn pictures, crops, pictures sorted into folders by class."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from opsin.bundle import Bundle
from opsin.data.classes import spec_words
from opsin.data.dataset import Dataset
from opsin.data.formats import load_data
from opsin.data.video import CAMERA, Frame, VideoReader, VideoWriter, is_video
from opsin.durable import write_durably
from opsin.errors import ConfigError, DataError, MissingExtra
from opsin.results.detection import Detection
from opsin.run.tiling import Tiling, predict_tiled
from opsin.task import Sample

BATCH = 32
VIDEO_BATCH = 8  # frames; more would keep a camera waiting
REVIEW = "review"


@dataclass
class Predictions:
    """What came of a `predict`.

    Args:
        results: (path or id, result, EXIF time) in order.
        failed: name to reason, of pictures that could not be read.
        converted: conversion in words to number of pictures.
        table: where predictions.csv is.
        videos: input to the drawn video.
        crops: how many objects were cut out.
        seconds: for reading and predicting.
    """

    results: list[tuple[str, Any, str]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    converted: dict[str, int] = field(default_factory=dict)
    review: list[str] = field(default_factory=list)
    table: Path | None = None
    videos: dict[str, str] = field(default_factory=dict)
    crops: int = 0
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
            "videos": self.videos,
            "crops": self.crops,
            "images_per_second": len(self.results) / max(self.seconds, 1e-9),
        }


@dataclass
class Wanted:
    """What is done with every result besides listing it.

    Args:
        save: draw each result into this folder; a video becomes a video.
        sort_into: copy each picture into a folder per class here; with several classes, into each of them.
        crops: cut each object found out of its picture, into a folder per class here.
        review_below: pictures whose score is lower are listed (and, with `sort_into`, go to the folder `review`).
        score: show objects from this score on, instead of the model's own thresholds.
        tiling: see large pictures in overlapping tiles.
        every: of a video, every n-th frame.
        frames: of a video, at most so many frames.
        unsure: of videos, keep candidates that are not shown too, for COCO results.
    """

    save: Path | None = None
    sort_into: Path | None = None
    crops: Path | None = None
    review_below: float | None = None
    score: float | None = None
    tiling: Tiling | None = None
    every: int = 1
    frames: int | None = None
    unsure: bool = False


def predict_files(
    bundle: Bundle,
    inputs: Sequence[str | Path],
    *,
    save: Path | None = None,
    sort_into: Path | None = None,
    crops: Path | None = None,
    review_below: float | None = None,
    score: float | None = None,
    tiling: Tiling | None = None,
    every: int = 1,
    frames: int | None = None,
    coco: Path | None = None,
    table: Path | None = None,
    write_table: bool = True,
    runner: Any = None,
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """Predict every picture among files, folders, archives, videos and cameras.

    A video that turns out to be damaged is listed as failed, with what was seen before kept. A camera without `frames` is
    watched until an interrupt (Ctrl-C), and what was seen till then is kept.

    Args:
        bundle: the model.
        inputs: files, folders (with all below), archives, videos, or cameras (`camera:0`).
        save, sort_into, crops, review_below, score, tiling, every, frames: see `Wanted`.
        coco: write all boxes as a COCO results file here; pictures and classes that come with COCO ids keep them.
        table: where to write the table; by default `predictions.csv` in `save`, or here when a folder was given.
        write_table: False writes none, whatever was given.
        runner: another runtime of the same model.
        progress: called with the number of pictures done.

    Raises:
        ConfigError: if there is nothing at an input, no picture in any, or the model has no boxes where they are needed.
    """
    for flag, path in (("--table", table), ("--coco", coco)):
        if path is not None and path.exists():
            raise ConfigError(f"{flag} {path} exists already; give another name, or remove it.")
    wanted = Wanted(save, sort_into, crops, review_below, score, tiling, every, frames, coco is not None)
    _need_boxes(bundle, {"--crops": crops, "--coco": coco, "--score": score, "--tile": tiling})
    started, found = time.monotonic(), Predictions()
    videos = _videos_at(inputs)
    sources = [pictures_at(Path(one)) for one in inputs if not is_video(one)]
    if sum(len(source) for source in sources) == 0 and not videos:
        raise ConfigError(f"No picture found in {', '.join(map(str, inputs))}.")
    reduce_to = None if tiling is not None else bundle.task.reduce_to
    for source in sources:
        reader = _read_ahead(source, reduce_to)
        while chunk := list(islice(reader, BATCH)):
            _predict_chunk(bundle, source, chunk, found, runner, wanted)
            if progress is not None:
                progress(len(found.results) + len(found.failed))
    for video, name in videos.items():
        try:
            _predict_video(bundle, video, name, found, runner, wanted, progress)
        except DataError as error:
            found.failed[video] = str(error)
        except MissingExtra as error:
            if video in map(str, inputs):
                raise
            found.failed[video] = str(error)
    found.seconds = time.monotonic() - started
    folder = any(len(source) != 1 for source in sources) or any(Path(one).is_dir() for one in inputs) or bool(videos)
    if write_table and (table is not None or save is not None or folder):
        found.table = table or free_path((save or Path()) / "predictions.csv")
        _write_table(found)
    if coco is not None:
        _write_coco(found, sources, coco, next(iter(bundle.task.classes.values())))
    return found


def _videos_at(inputs: Sequence[str | Path]) -> dict[str, str]:
    """Cameras, videos, and those in folders, each with the name that its frames get."""
    found: dict[str, str] = {}
    for one in inputs:
        if is_video(one):
            found[str(one)] = safe_path(Path(str(one).replace(":", "-")).name)
        elif (folder := Path(one)).is_dir():
            inside = [
                p for p in sorted(folder.rglob("*")) if p.is_file() and is_video(p) and not p.name.startswith(".")
            ]
            found |= {str(p): safe_path(p.relative_to(folder).as_posix()) for p in inside}
    return found


def _need_boxes(bundle: Bundle, flags: dict[str, Any]) -> None:
    given = [flag for flag, value in flags.items() if value is not None]
    if given and bundle.task.model_facts.get("answer") != "detected":
        raise ConfigError(f"{given[0]} is for detectors; this model says no boxes (its task is {bundle.task_name}).")


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
    bundle: Bundle, source: Dataset, chunk: Sequence[_Read], found: Predictions, runner: Any, wanted: Wanted
) -> None:
    good = [one for one in chunk if one.sample is not None]
    found.failed.update({one.name: one.reason for one in chunk if one.sample is None})
    if not good:
        return
    results = _results(bundle, [one.sample for one in good if one.sample is not None], runner, wanted)
    want = bundle.input_words
    for one, result in zip(good, results):
        found.results.append((one.name, result, one.taken))
        if one.words is not None and one.words != want:
            words = f"{one.words} to {want}"
            found.converted[words] = found.converted.get(words, 0) + 1
        unsure = wanted.review_below is not None and result.score < wanted.review_below
        if unsure:
            found.review.append(one.name)
        if wanted.save is not None or wanted.crops is not None:
            data, _ = source.bytes_of(one.index)
            with Image.open(io.BytesIO(data)) as image:
                _pictures_of(one.name, result, ImageOps.exif_transpose(image), found, wanted, wanted.save)
        if wanted.sort_into is not None:
            _sort(source, one, [REVIEW] if unsure else list(result.classes) or ["none"], wanted.sort_into)


def _results(bundle: Bundle, samples: Sequence[Sample], runner: Any, wanted: Wanted) -> list[Any]:
    if wanted.tiling is None:
        results = bundle.predict_samples(samples, runner)
    else:
        results = [predict_tiled(bundle, sample, wanted.tiling, runner) for sample in samples]
    return results if wanted.score is None else [result.at(wanted.score) for result in results]


def _pictures_of(
    name: str, result: Any, image: Image.Image, found: Predictions, wanted: Wanted, save: Path | None
) -> None:
    """Write the drawn picture and the crops of one result."""
    if save is not None:
        target = save / Path(safe_path(name)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        result.draw(image).save(free_path(target))
    if wanted.crops is not None:
        for number, (label, cut) in enumerate(result.crops(image)):
            stem = safe_path(name).replace("/", "-").rpartition(".")[0] or safe_path(name)
            target = wanted.crops / _safe(label) / f"{stem}-{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            cut.save(free_path(target))
            found.crops += 1


def _predict_video(
    bundle: Bundle, source: str, name: str, found: Predictions, runner: Any, wanted: Wanted,
    progress: Callable[[int], None] | None,
) -> None:  # fmt: skip
    """Frame by frame, keeping what is shown of each; ids are `clip.mp4#frame`, times are seconds of the video."""
    drawn = None
    if wanted.save is not None:
        drawn = free_path(wanted.save / Path(name).with_suffix(".mp4"))
        drawn.parent.mkdir(parents=True, exist_ok=True)
    with VideoReader(source, every=wanted.every) as reader, _Drawn(drawn, reader.facts.rate) as film:
        frames = islice(reader, wanted.frames)
        try:
            while chunk := list(islice(frames, VIDEO_BATCH)):
                samples = [Sample(f"{name}#{frame.number}", frame.image) for frame in chunk]
                results = _results(bundle, samples, runner, wanted)
                for frame, sample, result in zip(chunk, samples, results):
                    _frame_done(frame, sample, result, found, wanted, film)
                if progress is not None:
                    progress(len(found.results) + len(found.failed))
        except DataError as error:
            found.failed[source] = str(error)
        except KeyboardInterrupt:
            if not source.startswith(CAMERA):
                raise
    if drawn is not None and drawn.exists():
        found.videos[source] = str(drawn)


class _Drawn(ExitStack):
    """The drawn video: as large as its first drawn frame, which may be larger than the video's; nothing without a path."""

    def __init__(self, path: Path | None, rate: Fraction) -> None:
        super().__init__()
        self.path, self.rate = path, rate
        self._writer: VideoWriter | None = None

    def add(self, picture: Image.Image) -> None:
        if self.path is None:
            raise ValueError("There is no video to draw into.")
        if self._writer is None:
            size = (picture.height, picture.width)
            self._writer = self.enter_context(VideoWriter(self.path, size, self.rate))
        self._writer.add(np.asarray(picture))


def _frame_done(frame: Frame, sample: Sample, result: Any, found: Predictions, wanted: Wanted, film: _Drawn) -> None:
    kept = result if wanted.unsure or not isinstance(result, Detection) else result.without_unsure()
    found.results.append((sample.id, kept, f"{frame.seconds:.3f}"))
    if wanted.review_below is not None and result.score < wanted.review_below:
        found.review.append(sample.id)
    if film.path is not None or wanted.crops is not None:
        image = Image.fromarray(frame.image.permute(1, 2, 0).numpy())
        _pictures_of(sample.id, result, image, found, wanted, None)
        if film.path is not None:
            film.add(result.draw(image))


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
    keys = list(lines[0]) if lines else ["file", "error"]
    lines += [{"file": name, "error": reason} for name, reason in found.failed.items()]
    aside = found.table.with_name(f".{found.table.name}.partial")
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys, restval="")
        writer.writeheader()
        writer.writerows(lines)
    shutil.move(aside, found.table)


def _write_coco(found: Predictions, sources: Sequence[Dataset], path: Path, class_names: Sequence[str]) -> None:
    """COCO results; pictures and classes keep the ids of the COCO files that they come from."""
    ids: dict[str, int | str] = {}
    numbers = [dict(zip(h.class_names, h.class_ids)) for one in sources for h in one.heads if h.class_ids]
    same = numbers if all(set(class_names) <= set(one) and one == numbers[0] for one in numbers) else []
    for source in sources:
        given = source.attributes.get("coco_image_id")
        if given is not None:
            ids |= {source.id(i): int(text) if text.isdigit() else text for i, text in enumerate(given)}
    known = same[0] if same else None
    boxes = [box for name, result, _ in found.results for box in result.coco(ids.get(name, name), known)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, (json.dumps(boxes) + "\n").encode())


def _without_id(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "id"}
