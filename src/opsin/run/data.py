"""The data of a run: read, verified before step 1, split, and written down."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.data.classes import class_counts
from opsin.data.dataset import PARTS, Dataset
from opsin.data.formats import load_data
from opsin.data.splits import Split, SplitFile, make_split
from opsin.data.tiling import tile_dataset
from opsin.errors import ConfigError, DataError
from opsin.recipe import DataSettings, Recipe, SplitSettings
from opsin.run.folder import RunFolder, find_run

Progress = Callable[[int, int], None]
View = Callable[[Dataset], Dataset]
SHOWN = 10
INHERITED = ("seed", "fractions", "by", "group")  # split settings that --split-from keeps


@dataclass
class RunData:
    """A data set with its split.

    Args:
        dataset: all samples that can be used.
        split: part of every sample.
        skipped: id to reason, of samples left out with `--skip-bad`.
    """

    dataset: Dataset
    split: Split
    skipped: dict[str, str]

    def indices(self, part: str) -> NDArray[np.int64]:
        """Positions of the samples of a part."""
        return self.split.indices(part).astype(np.int64)

    def groups(self, spec: str | None, ids: NDArray[np.str_]) -> NDArray[np.int64] | None:
        """Group codes (N,) of samples by id, or None without groups."""
        if spec is None:
            return None
        codes = dict(zip(self.dataset.ids, self.dataset.groups(spec).tolist()))
        return np.array([codes[name] for name in ids.tolist()], np.int64)

    def to_dict(self, settings: DataSettings) -> dict[str, Any]:
        """What `data.json` holds."""
        data = self.dataset
        return {
            "name": data.name,
            "path": settings.path,
            "format": data.format,
            "samples": len(data),
            "fingerprint": data.fingerprint,
            "spec": data.spec._asdict(),
            "conversions": data.conversions,
            "heads": [{"name": h.name, "kind": h.kind, "class_names": list(h.class_names)} for h in data.heads],
            "counts": {part: class_counts(data, self.indices(part)) for part in PARTS},
            "sizes": {part: len(self.indices(part)) for part in PARTS},
            "skipped": self.skipped,
            "problems": [
                {"where": p.where, "message": p.message, "level": p.level}
                for p in [*data.problems[:200], *self.split.problems]
            ],
            "split": self.split.to_json(),
        }


def open_data(
    settings: DataSettings, *, given: Dataset | None = None, view: View | None = None, progress: Progress | None = None
) -> RunData:
    """Read the data set, make sure that every picture can be decoded, and split it.

    Args:
        settings: the section `data`.
        given: the data set itself, if it was given as an object.
        view: `Task.view`.
        progress: called with (done, all) while pictures are verified.

    Raises:
        DataError: if a picture is broken and `skip_bad` is off, or the data cannot be split.
    """
    dataset = given if given is not None else read_data(settings)
    skipped: dict[str, str] = {}
    bad = verify(dataset, progress=progress)
    if bad and not settings.skip_bad:
        raise DataError(bad_text(dataset, bad))
    if bad:
        skipped = {dataset.id(i): reason for i, reason in bad.items()}
        keep = np.ones(len(dataset), np.bool_)
        keep[list(bad)] = False
        dataset = dataset.select(keep)
    dataset = _seen(dataset, settings, view)
    earlier = None
    if settings.split.earlier is not None:
        earlier = SplitFile.from_json(find_run(settings.split.earlier).read("data.json")["split"])
    return RunData(dataset, make_split(dataset, settings.split, earlier), skipped)


def _seen(dataset: Dataset, settings: DataSettings, view: View | None) -> Dataset:
    """The samples that a run has of a data set: its tiles if it is cut, and what the task makes of it."""
    if settings.tile is not None:
        dataset = tile_dataset(dataset, settings.tile, settings.tile_overlap).dataset
    return dataset if view is None else view(dataset)


def unsealed(dataset: Dataset) -> NDArray[np.int64]:
    """Positions of the samples that may be looked at before a model is chosen: all but the test part.

    The test part is the one that the data come with, or that training would make by default; none where the data are too
    few to be split.
    """
    try:
        split = make_split(dataset, SplitSettings())
    except (ConfigError, DataError):
        return np.arange(len(dataset))
    return np.sort(np.concatenate([split.indices("train"), split.indices("val")])).astype(np.int64)


def continued(recipe: Recipe) -> Recipe:
    """The recipe with the split settings of the run that it continues (`--split-from`), where none were given.

    Raises:
        ConfigError: if what was given contradicts them.
    """
    if recipe.data.split.earlier is None:
        return recipe
    folder = find_run(recipe.data.split.earlier)
    given = {name: getattr(recipe.data.split, name) for name in INHERITED if f"data.split.{name}" in recipe.sources}
    values = {"earlier": str(folder.path), **inherited(folder, given)}
    said = recipe.sources.get("data.split.earlier", "flag --split-from")
    return recipe.with_values(said, **{f"data.split.{name}": value for name, value in values.items()})


def inherited(folder: RunFolder, given: Mapping[str, Any]) -> dict[str, Any]:
    """Split settings of an earlier run, without those that are given.

    Raises:
        ConfigError: if another group or another way of dealing is given than the earlier run had.
    """
    kept = Recipe.load(folder.recipe).data.split
    for name in ("group", "by"):
        had = getattr(kept, name)
        if had is not None and given.get(name, had) != had:
            raise ConfigError(
                f"data.split.{name} is {given[name]!r}, but the split of {folder.path} was made with {had!r}. Leave it "
                "out to go on with that split, or make a new one without --split-from."
            )
    return {name: getattr(kept, name) for name in INHERITED if name not in given}


def read_data(settings: DataSettings) -> Dataset:
    """Read the data set that the settings name.

    Raises:
        ConfigError: if none is named.
    """
    if settings.path is None:
        raise ConfigError("No data given. Name a folder, file or archive: --data PATH")
    return load_data(settings.path, settings.format, settings.columns, skip_bad=settings.skip_bad)


def reopen_data(
    folder: RunFolder, settings: DataSettings, given: Dataset | None = None, view: View | None = None
) -> RunData:
    """Read the data set of an existing run again, with the split that was written down.

    Raises:
        DataError: if the data have changed since.
    """
    record = folder.read("data.json")
    dataset = given if given is not None else read_data(settings)
    if record["skipped"]:
        keep = np.array([name not in record["skipped"] for name in dataset.ids])
        dataset = dataset.select(keep)
    dataset = _seen(dataset, settings, view)
    if dataset.fingerprint != record["fingerprint"]:
        raise DataError(
            f"The data at {settings.path} are not those of {folder.path} any more: fingerprint {dataset.fingerprint}, "
            f"then {record['fingerprint']} ({len(dataset)} samples now, {record['samples']} then). Restore them, or train "
            f"a new run on the new data with --split-from {folder.path}, which keeps its test part sealed."
        )
    return RunData(dataset, Split.from_file(dataset, SplitFile.from_json(record["split"])), record["skipped"])


def verify(
    dataset: Dataset, indices: Iterable[int] | None = None, *, progress: Progress | None = None
) -> dict[int, str]:
    """Decode every picture once, and give the reason for each that cannot be: position to message."""
    if dataset.arrays is not None:
        return {}
    every = list(range(len(dataset)) if indices is None else indices)
    bad: dict[int, str] = {}

    def look(i: int) -> tuple[int, str | None]:
        try:
            dataset.read(i)
        except DataError as error:
            return i, str(error)
        return i, None

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for number, (i, reason) in enumerate(pool.map(look, every), 1):
            if reason is not None:
                bad[i] = reason
            if progress is not None and (number % 50 == 0 or number == len(every)):
                progress(number, len(every))
    return bad


def bad_text(dataset: Dataset, bad: dict[int, str]) -> str:
    """The error for pictures that cannot be used."""
    lines = [f"  - {reason}" for reason in list(bad.values())[:SHOWN]]
    more = f"\n  ... and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return (
        f"{len(bad)} of {len(dataset)} pictures of {dataset.root} cannot be used:\n" + "\n".join(lines) + more + "\n"
        "Mend or remove them (opsin data check shows all), or pass --skip-bad to leave them out and count them."
    )
