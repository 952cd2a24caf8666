"""Judge a run on a part of its data, or on other data: metrics with intervals, baselines, warnings, the ledger."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from opsin.analyze.baselines import baselines, judge
from opsin.analyze.measure import as_json, measure, paired_difference
from opsin.data.dataset import PARTS, Dataset
from opsin.data.formats import load_data
from opsin.data.ledger import Ledger
from opsin.data.loader import EvalLoader
from opsin.data.objects import ObjectColumn
from opsin.engine.evaluate import evaluate
from opsin.engine.precision import choose_device
from opsin.errors import ConfigError, DataError
from opsin.metrics.intervals import Interval, finite
from opsin.results.rows import Rows
from opsin.results.section import Note
from opsin.run.data import bad_text, verify
from opsin.run.folder import environment
from opsin.task import Task

if TYPE_CHECKING:
    from opsin.bundle import Bundle
    from opsin.run import Run


def evaluate_run(
    run: Run,
    part: str = "test",
    *,
    data: Path | str | Dataset | None = None,
    with_baselines: bool = True,
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Metrics of a run's best model with intervals, as JSON values; rows are kept in `predictions/`.

    A look at the test part is written into the ledger of the data.

    Args:
        run: a run that has a model.
        part: `train`, `val` or `test` of the run's split; with `data`, only the name under which results are kept.
        data: other data with the same classes, all of which is evaluated.
        with_baselines: also judge simple methods trained on the same training part.
        skip_bad: leave out pictures that cannot be read, and count them.

    Raises:
        ConfigError: for an unknown part.
        DataError: if the part is empty, a picture broken, or the classes differ.
    """
    if data is None and part not in PARTS:
        raise ConfigError(f"--split {part}: expected one of {', '.join(PARTS)}.")
    task, bundle = run.bundle.task, run.bundle
    dataset, indices, name, skipped = _samples(run, part, data, skip_bad)
    started = time.monotonic()
    loader = EvalLoader(dataset, indices, task, batch_size=64, workers=run.recipe.data.workers)
    rows = evaluate(task, bundle.runner(bundle.info["precision"], choose_device(run.recipe.run.device)), loader)
    loader.close()
    seconds = time.monotonic() - started
    if data is None:
        groups = run.data.groups(run.recipe.data.split.group, rows.ids)
    else:
        groups = _own_groups(task, dataset, rows)
    intervals = measure(task, rows, groups=groups)
    # The look is counted before anything of it can be seen.
    looks = _looked(run, task.monitor.name, intervals) if data is None and part == "test" else []
    run.folder.predictions(name).parent.mkdir(exist_ok=True)
    rows.save(run.folder.predictions(name))
    found: dict[str, Any] = {
        "run": str(run.path),
        "split": name,
        "samples": len(rows),
        "metrics": as_json(intervals),
        "monitor": task.monitor.name,
        "train": run.state.get("train", {}),
        "warnings": [
            _note(note) for note in task.warnings(rows, run.state.get("train"), metrics=intervals, split=name)
        ],
        "looks_at_test": looks,
        "skipped": skipped,
        "seconds": seconds,
        "images_per_second": len(rows) / max(seconds, 1e-9),
        "environment": environment(),
    }
    if data is None:
        found["gap"] = gap(found["train"], intervals)
    if with_baselines and data is None and part != "train":
        found["baselines"] = _baselines(run, part, rows, groups)
    run.folder.write(f"evaluation-{name}.json", found)
    if data is None and part == "test":
        _into_bundle(run, found)
    return found


def evaluate_bundle(
    bundle: Bundle,
    data: Path | str | Dataset,
    *,
    name: str,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Metrics of a bundle on data with the same classes, as JSON values; nothing is written.

    Args:
        bundle: of a model without its run.
        data: all of it is evaluated.
        name: of the bundle, for people.
        columns: of the data, as for `load_data`.
        skip_bad: leave out pictures and boxes that cannot be used, and count them.

    Raises:
        DataError: if a picture is broken or the classes differ.
    """
    task = bundle.task
    dataset, skipped = _other_data(task, data, columns, skip_bad)
    started = time.monotonic()
    loader = EvalLoader(dataset, np.arange(len(dataset)), task, batch_size=64)
    rows = evaluate(task, bundle.runner(bundle.info.get("precision", "fp32")), loader)
    loader.close()
    seconds = time.monotonic() - started
    intervals = measure(task, rows, groups=_own_groups(task, dataset, rows))
    return {
        "run": name,
        "split": dataset.name,
        "samples": len(rows),
        "metrics": as_json(intervals),
        "monitor": task.monitor.name,
        "train": {},
        "warnings": [_note(note) for note in task.warnings(rows, metrics=intervals, split=dataset.name)],
        "looks_at_test": [],
        "skipped": skipped,
        "seconds": seconds,
        "images_per_second": len(rows) / max(seconds, 1e-9),
        "environment": environment(),
    }


def gap(train: Mapping[str, float], intervals: Mapping[str, Any]) -> dict[str, float]:
    """Training minus held-out value of every metric that has both."""
    both = {name: train[name] - one.value for name, one in intervals.items() if name in train}
    return {name: value for name, value in both.items() if math.isfinite(value)}


def _samples(
    run: Run, part: str, data: Path | str | Dataset | None, skip_bad: bool
) -> tuple[Dataset, NDArray[np.int64], str, dict[str, str]]:
    if data is None:
        indices = run.data.indices(part)
        if len(indices) == 0:
            raise DataError(f"The {part} part of {run.path} is empty.")
        return run.data.dataset, indices, part, {}
    seen, skipped = _other_data(run.bundle.task, data, run.recipe.data.columns or None, skip_bad)
    return seen, np.arange(len(seen)), f"other-{seen.name}", skipped


def _other_data(
    task: Task[Any], data: Path | str | Dataset, columns: Mapping[str, str] | None, skip_bad: bool
) -> tuple[Dataset, dict[str, str]]:
    """All samples of data that have the model's classes, as its task sees them, and what was left out."""
    dataset = data if isinstance(data, Dataset) else load_data(data, columns=columns, skip_bad=skip_bad)
    dataset = _in_known_order(task.classes, dataset)
    if task.point_names:
        _same_points(task.point_names, dataset)
    bad = verify(dataset)
    if bad and not skip_bad:
        raise DataError(bad_text(dataset, bad))
    good = np.array([i for i in range(len(dataset)) if i not in bad], np.int64)
    return task.view(dataset.select(good)), {dataset.id(i): reason for i, reason in bad.items()}


def _own_groups(task: Any, dataset: Dataset, rows: Rows) -> NDArray[np.int64] | None:
    """Group codes (N,) of rows of other data, where the task itself says what belongs together."""
    spec = task.defaults.get("data", {}).get("split", {}).get("group")
    if spec is None:
        return None
    codes = dict(zip(dataset.ids, dataset.groups(spec).tolist()))
    return np.array([codes[name] for name in rows.ids.tolist()], np.int64)


def _same_points(names: tuple[str, ...], dataset: Dataset) -> None:
    """Make sure that errors, measured point by point, compare the same points; names of formats without any may differ."""
    for head in dataset.heads:
        if head.kind != "objects":
            continue
        other = () if head.points is None else tuple(head.points.names)
        moved = [name for name, here in zip(other, names) if name != here and name in names]
        if len(other) != len(names) or moved:
            raise DataError(
                f"{dataset.root} has other points than the model, or in another order: {', '.join(other) or 'none'}; the "
                f"model answers {', '.join(names)}. Bring the points of the data into that order."
            )


def _in_known_order(known: Mapping[str, tuple[str, ...]], dataset: Dataset) -> Dataset:
    """The data with the model's class lists; the names must be those of the model, positions are never compared."""
    other = {h.name: tuple(h.class_names) for h in dataset.heads}
    for name, names in known.items():
        if name not in other:
            raise DataError(f"{dataset.root} has no labels for '{name}', which this model answers.")
        if other[name] == names:
            continue
        extra, missing = sorted(set(other[name]) - set(names)), sorted(set(names) - set(other[name]))
        if extra:
            raise DataError(
                f"{dataset.root} has classes that the model does not know: {', '.join(extra)} (the model lacks none of: "
                f"{', '.join(names)}; not in these data: {', '.join(missing) or 'none'}). Rename or remove them."
            )
        dataset = _renumbered(dataset, name, names)
    return dataset


def _renumbered(dataset: Dataset, head: str, names: tuple[str, ...]) -> Dataset:
    """The same data whose labels have the positions of the model's class list; what was given stays as it is."""
    old = next(h for h in dataset.heads if h.name == head)
    place = np.array([names.index(name) for name in old.class_names], np.int64)
    view = dataset.select(np.arange(len(dataset)))
    view.heads = tuple(replace(h, class_names=names, class_ids=()) if h is old else h for h in dataset.heads)
    values = dataset.targets[head]
    if isinstance(values, ObjectColumn):
        view.targets[head] = ObjectColumn(replace(values.objects, labels=place[values.objects.labels]), values.starts)
    elif old.kind == "single":
        view.targets[head] = np.where(values >= 0, place[np.clip(values, 0, None)], -1)
    else:
        full = np.zeros((len(values), len(names)), np.float32)
        full[:, place] = values
        view.targets[head] = full
    return view


def _looked(run: Run, name: str, intervals: Mapping[str, Interval]) -> list[dict[str, Any]]:
    """Write this look at the test part into the ledger of the data, and give all of them."""
    ledger, test = Ledger(run.recipe.data.path), run.data.split.test_fingerprint
    ids = run.data.split.ids_of("test")
    ledger.record(test, str(run.path), "evaluate --split test", name, finite(intervals[name].value), ids)
    return [asdict(look) for look in ledger.looks(test, ids)]


def _baselines(run: Run, part: str, rows: Rows, groups: NDArray[Any] | None) -> dict[str, Any]:
    """Metrics of simple methods on the same split, and by how much the model is better (paired)."""
    task, name = run.bundle.task, run.bundle.task.monitor.name
    found, plain = {}, judge(task)
    for method, other in baselines(task, run.data.dataset, run.data.indices("train"), run.data.indices(part)).items():
        difference = paired_difference(task, *rows.join(other), name, groups=groups, other=plain)
        found[method] = {
            "metrics": as_json(measure(plain, other, groups=groups, replicates=200)),
            "difference": difference.to_dict(),
        }
    return found


def _note(note: Note) -> dict[str, Any]:
    return {"code": note.code, "text": note.text, "level": note.level}


def _into_bundle(run: Run, found: Mapping[str, Any]) -> None:
    """The bundle carries its test metrics, so that they travel with the weights."""
    record = run.folder.read("bundle/bundle.json")
    record["metrics"] = found["metrics"]
    run.folder.write("bundle/bundle.json", record)
    run.bundle.info["metrics"] = found["metrics"]
