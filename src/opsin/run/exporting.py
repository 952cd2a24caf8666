"""Export a run's best model, or a bundle, compared on pictures of the run's validation part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from opsin.bundle import Bundle
from opsin.data.home import cache_home
from opsin.errors import ConfigError, DataError
from opsin.export import Report, export, targets
from opsin.export.parity import SAMPLES
from opsin.run import Run, find_bundle
from opsin.run.folder import find_run
from opsin.task import Sample

ALL = "all"


def export_run(
    source: Run | Bundle | Path | str, to: str, out: Path | str | None = None, *, tolerance: float | None = None,
    batch: int | None = None, threads: int | None = None, overwrite: bool = False, keep_failed: bool = False,
) -> list[Report]:  # fmt: skip
    """Export a model to one target, or to all of them.

    The comparison uses up to 64 pictures, spread over the validation part; the test part stays sealed. For a bare
    bundle, or when the data cannot be read any more, it uses random and edge inputs only, and the notes say so.

    Args:
        source: a run, a bundle, a folder of either, or `last`.
        to: name of a target, or `all`.
        out: folder of the export; by default `export/TARGET` in the run (beside the bundle). For `all`, one folder per
            target is made in it.
        tolerance, batch, threads, overwrite, keep_failed: see `opsin.export.export`.

    Returns:
        One report per target; an export above tolerance is among them, refused.

    Raises:
        ConfigError: if a folder exists, or there is no place to export to.
        MissingExtra: if a package that a target needs is not installed.
        UnknownName: if there is no such run or target.
    """
    names = list(targets) if to == ALL else [to]
    for name in names:
        targets.get(name)
    bundle, run = _opened(source)
    places = [_place(bundle, run, name, out, several=to == ALL) for name in names]
    samples, notes = ([], []) if run is None else _pictures(run)
    reports = []
    for name, place in zip(names, places):
        report = export(
            bundle, name, place, samples=samples, tolerance=tolerance, batch=batch, threads=threads,
            overwrite=overwrite, keep_failed=keep_failed,
        )  # fmt: skip
        report.notes[:0] = notes
        reports.append(report)
    return reports


def _opened(source: Run | Bundle | Path | str) -> tuple[Bundle, Run | None]:
    if isinstance(source, Bundle):
        return source, None
    if isinstance(source, Run):
        return source.bundle, source
    folder = find_bundle(source)
    if folder is not None:
        return Bundle.load(folder), None
    run = Run(find_run(source))
    return run.bundle, run


def _place(bundle: Bundle, run: Run | None, name: str, out: Path | str | None, several: bool) -> Path:
    if out is not None:
        return Path(out) / name if several else Path(out)
    if run is not None:
        return run.path / "export" / name
    if bundle.folder is None:
        raise ConfigError("This bundle lies in no folder; say where the export should go: out=FOLDER.")
    if bundle.folder.is_relative_to(cache_home()):  # published weights: an export is no part of the cache
        return Path("export") / bundle.folder.name / name
    return bundle.folder.parent / "export" / name


def _pictures(run: Run) -> tuple[Sequence[Sample], list[str]]:
    """Validation pictures, evenly spread over the part, and notes."""
    try:
        indices = run.data.indices("val")
        count = min(SAMPLES, len(indices))
        chosen = indices[np.linspace(0, max(len(indices) - 1, 0), count).round().astype(np.int64)]
        reduce_to = run.bundle.task.reduce_to
        return [run.data.dataset.read(int(i), reduce_to) for i in chosen], []
    except (DataError, ConfigError, OSError) as error:
        return [], [f"The validation pictures cannot be read: {error}"]
