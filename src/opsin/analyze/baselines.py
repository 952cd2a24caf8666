"""Simple methods on the same split, so that a network is compared with what needs no network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from opsin.data.classes import to_spec
from opsin.data.dataset import Dataset
from opsin.data.resize import resize
from opsin.results.rows import Rows
from opsin.seeding import numpy_generator
from opsin.task import Geometry, ImageSpec, Task
from opsin.tasks.classify import Classify

SIDE = 32  # pictures are reduced to at most this size
TRAINED_ON = {"majority": 10**9, "logistic regression": 5000, "1-nearest neighbor": 20000}
SMOOTHING = 1e-6


def baselines(task: Task[Any], data: Dataset, train: NDArray[np.int64], test: NDArray[np.int64]) -> dict[str, Rows]:
    """Rows of each simple method on the test samples, scored by the task like the model's own.

    Majority answers with class shares; logistic regression and the nearest neighbor see pixels of pictures reduced to
    32 x 32 at most, and at most 5,000 and 20,000 training samples (drawn with a fixed seed). Heads are learned one by
    one. Tasks other than classification have none.
    """
    if not isinstance(task, Classify):
        return {}
    order = numpy_generator(0, "baselines").permutation(len(train))
    most = max(count for method, count in TRAINED_ON.items() if method != "majority")
    used = train[order[:most]]
    seen, asked = _pixels(task, data, used), _pixels(task, data, test)
    found = {}
    for method, count in TRAINED_ON.items():
        scores = list(_scores(task, data, method, train if method == "majority" else used[:count], seen[:count], asked))
        found[method] = _rows(task, data, test, scores)
    return found


def judge(task: Task[Any]) -> Task[Any]:
    """The task that judges the rows of simple methods: the model's operating point means nothing for their scores."""
    return Classify(task.settings.model_copy(update={"decide": "best"})) if isinstance(task, Classify) else task


def _pixels(task: Classify, data: Dataset, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Flat pixels (n, D) in [0, 1]."""
    size = task.settings.image_size
    share = min(1.0, SIDE / max(size))
    small = (max(1, round(size[0] * share)), max(1, round(size[1] * share)))
    want = ImageSpec(task.settings.channels, task.settings.pixel_type, task.settings.pixel_range)
    low, high = want.range
    found = np.empty((len(indices), want.channels * small[0] * small[1]), np.float32)
    for row, i in enumerate(indices.tolist()):
        image = to_spec(data.read(i, reduce_to=2 * SIDE).image, want).to(torch.float32)
        found[row] = ((resize(image, small)[0] - low) / (high - low)).flatten().numpy()
    return found


def _scores(
    task: Classify,
    data: Dataset,
    method: str,
    train: NDArray[np.int64],
    seen: NDArray[np.float32],
    asked: NDArray[np.float32],
) -> Iterator[NDArray[np.float64]]:
    """Probabilities (n, K) of each head."""
    for head in task.settings.heads:
        target, k = data.targets[head.name][train], len(head.class_names)
        if head.kind == "single":
            yield _probabilities(method, target, k, seen, asked)
            continue
        columns = [np.where(np.isnan(column), -1, column).astype(np.int64) for column in target.T]
        yield np.stack([_probabilities(method, column, 2, seen, asked)[:, 1] for column in columns], axis=1)


def _probabilities(
    method: str, target: NDArray[np.int64], k: int, seen: NDArray[np.float32], asked: NDArray[np.float32]
) -> NDArray[np.float64]:
    known = target >= 0
    shares = np.bincount(target[known], minlength=k) / max(known.sum(), 1)
    found = np.tile(shares, (len(asked), 1))
    present = np.unique(target[known])
    if method == "majority" or len(present) < 2:
        return found
    model = (
        LogisticRegression(max_iter=60, tol=1e-3)
        if method == "logistic regression"
        else KNeighborsClassifier(1, algorithm="brute")
    )
    with threadpool_limits(limits=torch.get_num_threads()), np.errstate(all="ignore"):
        model.fit(seen[known], target[known])
        chances = model.predict_proba(asked)
    found = np.zeros((len(asked), k))
    found[:, present] = chances
    return found


def _rows(task: Classify, data: Dataset, indices: NDArray[np.int64], scores: list[NDArray[np.float64]]) -> Rows:
    logits = []
    for head, values in zip(task.settings.heads, scores):
        p = np.clip(values, SMOOTHING, 1 - SMOOTHING)
        logits.append(np.log(p) if head.kind == "single" else np.log(p / (1 - p)))
    ids = [data.id(i) for i in indices.tolist()]
    results = task.predict_step({"logits": np.concatenate(logits, axis=1)}, ids, [Geometry((1, 1), (1, 1))] * len(ids))
    targets = [{name: values[i] for name, values in data.targets.items()} for i in indices.tolist()]
    return Rows.collect([task.score(result, target) for result, target in zip(results, targets)]).sorted_by_id()
