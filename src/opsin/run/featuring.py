"""Features of pictures by any layer of a model, and probes that say how much a layer knows of a labeled data set."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.bundle import Bundle
from opsin.data.dataset import Dataset
from opsin.durable import write_durably
from opsin.errors import ConfigError, DataError
from opsin.metrics.intervals import wilson
from opsin.models.fitted.probes import PROBES, probe
from opsin.run.data import unsealed
from opsin.run.predicting import pictures_at
from opsin.seeding import numpy_generator
from opsin.transfer import features
from opsin.transfer.bottleneck import features_of
from opsin.transfer.features import HEAD_INPUT, Features, Pool

FORMATS = (".npz", ".csv")
FOLDS = 5


def extract_files(
    bundle: Bundle, inputs: Sequence[str | Path], *, layer: str = HEAD_INPUT, pool: Pool = "mean", cached: bool = True
) -> Features:
    """Features of every picture of files, folders and data sets, from the cache where they are there.

    Raises:
        ConfigError: if there is no picture, or the layer cannot be tapped.
        UnknownName: if there is no such layer.
    """
    sources = [pictures_at(Path(one)) for one in inputs]
    if sum(len(source) for source in sources) == 0:
        raise ConfigError(f"No picture found in {', '.join(map(str, inputs))}.")
    parts = [_features(bundle, source, layer, pool, cached) for source in sources if len(source)]
    ids = tuple(name for part in parts for name in part.ids)
    return Features(ids, np.concatenate([part.values for part in parts]), layer)


def _features(bundle: Bundle, dataset: Dataset, layer: str, pool: Pool, cached: bool) -> Features:
    every = np.arange(len(dataset))
    if cached:
        return features_of(bundle.task, bundle.model, dataset, every, layer=layer, pool=pool).features
    from opsin.data.loader import EvalLoader

    loader = EvalLoader(dataset, every, bundle.task, batch_size=64)
    return features.extract(bundle.model, loader, layer, pool)


def layer_table(bundle: Bundle) -> list[dict[str, Any]]:
    """Name and output shape of every layer that can be tapped, in the order of execution."""
    found = features.layers(bundle.model, bundle.task.example_inputs(1))
    return [{"layer": name, "shape": list(shape)} for name, shape in found]


def check_name(path: Path) -> None:
    """See that features can be written to a path.

    Raises:
        ConfigError: if the file exists, or its kind is unknown.
    """
    if path.exists():
        raise ConfigError(f"--out {path} exists already; give another name, or remove it.")
    if path.suffix not in FORMATS:
        raise ConfigError(f"--out {path}: expected a name that ends in {' or '.join(FORMATS)}.")


def save(found: Features, path: Path) -> None:
    """Write features as `.npz` (arrays `ids` and `features`) or `.csv` (one line per picture).

    Raises:
        ConfigError: as `check_name`, or if maps should go into a table.
    """
    check_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    if path.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, ids=np.array(found.ids), features=found.values, layer=np.array(found.layer))
        write_durably(path, buffer.getvalue())
        return
    if found.values.ndim != 2:
        raise ConfigError(
            f"Features of shape {found.values.shape[1:]} do not fit a table. Give --out NAME.npz, or pool them."
        )
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["id", *(f"f{i}" for i in range(found.values.shape[1]))])
    writer.writerows([name, *(f"{v:.7g}" for v in row)] for name, row in zip(found.ids, found.values))
    write_durably(path, text.getvalue().encode())


def probe_data(
    bundle: Bundle,
    dataset: Dataset,
    names: Sequence[str] = tuple(PROBES),
    *,
    layer: str = HEAD_INPUT,
    pool: Pool = "mean",
    all_parts: bool = False,
) -> dict[str, Any]:
    """How well simple classifiers on a layer's features answer a labeled data set, out of fold.

    Every picture is answered once, by a probe that has not seen it; what a probe chooses is chosen inside the other folds.
    The test part that the data come with, or that training would seal by default, is left out: networks and layers are
    chosen by these numbers.

    Args:
        bundle: the model; its own classes do not matter.
        dataset: with one head of exclusive classes.
        names: probes, of `opsin.models.fitted.probes.PROBES`.
        layer, pool: where the features are taken.
        all_parts: take every picture, because none of these will be judged by.

    Returns:
        JSON values: one entry per probe with accuracy, its 95 % interval and seconds; the share of the largest class.

    Raises:
        DataError: if the data set has no exclusive classes, or too few pictures.
        UnknownName: for an unknown probe or layer.
    """
    heads = [head for head in dataset.heads if head.kind == "single"]
    if not heads:
        raise DataError(f"{dataset.name} has no exclusive classes to probe.")
    labels = dataset.targets[heads[0].name]
    open_to_all = np.arange(len(dataset)) if all_parts else unsealed(dataset)
    chosen = open_to_all[labels[open_to_all] >= 0]
    labels = labels[chosen].astype(np.int64)
    counts = np.bincount(labels)
    if len(counts[counts > 0]) < 2 or counts[counts > 0].min() < 2:
        raise DataError(f"{dataset.name}: probes need two classes or more, with two pictures or more in each.")
    started = time.monotonic()
    cached = features_of(bundle.task, bundle.model, dataset, chosen, layer=layer, pool=pool)
    seconds = time.monotonic() - started
    x = cached.features.values.reshape(len(chosen), -1)
    folds = deal_folds(labels, min(FOLDS, int(counts[counts > 0].min())))
    table = []
    for name in names:
        started = time.monotonic()
        answers, words = out_of_fold(name, x, labels, folds)
        found = wilson(int((answers == labels).sum()), len(labels))
        accuracy = {"value": found.value, "low": found.low, "high": found.high}
        table.append({"probe": name, "accuracy": accuracy, "chosen": words, "seconds": time.monotonic() - started})
    return {
        "data": dataset.name,
        "samples": len(labels),
        "left_out": len(dataset) - len(open_to_all),
        "classes": len(counts),
        "layer": layer,
        "width": int(x.shape[1]),
        "largest_class": float(counts.max() / counts.sum()),
        "feature_seconds": seconds,
        "from_cache": cached.hit,
        "probes": table,
    }


def out_of_fold(
    name: str, x: NDArray[np.float32], labels: NDArray[np.int64], folds: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], str]:
    """A probe's answer for every row (N,), each by a fit on the other folds, and what the last fit chose, in words."""
    answers, words = np.zeros(len(labels), np.int64), ""
    for test in folds:
        train = np.setdiff1d(np.arange(len(labels)), test)
        answers[test], words = probe(name, x[train], labels[train], x[test])
    return answers, words


def deal_folds(labels: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """Positions of each fold, every class dealt out evenly."""
    order = numpy_generator(0, "probe").permutation(len(labels))
    dealt: list[list[int]] = [[] for _ in range(count)]
    turn = 0
    for label in np.unique(labels):
        for i in order[labels[order] == label]:
            dealt[turn % count].append(int(i))
            turn += 1
    return [np.sort(np.array(fold)) for fold in dealt]
