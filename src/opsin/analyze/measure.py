"""Metrics of rows with their intervals: Wilson for shares of rows, bootstrap for the rest, by groups when there are any."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.metrics.intervals import Interval, bootstrap, proportion
from opsin.metrics.paired import Difference, paired_bootstrap
from opsin.results.rows import Rows
from opsin.seeding import numpy_generator
from opsin.task import Task

REPLICATES = 1000
BUDGET = 50_000_000  # rows x replicates: more rows take fewer replicates, at least 200


def measure(
    task: Task[Any], rows: Rows, *, groups: NDArray[Any] | None = None, replicates: int = REPLICATES, seed: int = 0
) -> dict[str, Interval]:
    """Every metric of the task with a 95 % interval.

    Args:
        rows: of one part of the data.
        groups: (N,) group of each row; groups are drawn, not rows, so that pictures of one patient count once.
        replicates: of the bootstrap; fewer are drawn for very many rows.
        seed: of the bootstrap; the same rows give the same interval.
    """
    count = int(max(200, min(replicates, BUDGET // max(len(rows), 1))))
    generator = numpy_generator(seed, "bootstrap")
    found = bootstrap(
        lambda weights: task.summarize(rows, weights), len(rows), groups=groups, replicates=count, seed=generator
    )
    right = task.correct(rows)
    if right is not None:
        known = ~np.isnan(right)
        found["accuracy"] = proportion(right[known], groups=None if groups is None else groups[known])
    return found


def paired_difference(
    task: Task[Any],
    first: Rows,
    second: Rows,
    name: str,
    *,
    groups: NDArray[Any] | None = None,
    other: Task[Any] | None = None,
    replicates: int = 500,
) -> Difference:
    """How far two sets of answers to the same samples lie apart in one metric, with a 95 % interval.

    Args:
        task: judges `first`, and `second` too unless `other` is given.
        first, second: rows of the same samples in the same order (`Rows.join`).
        name: of the metric.
        groups: (N,) group of each row.
    """
    return paired_bootstrap(
        lambda weights: {name: task.summarize(first, weights)[name]},
        lambda weights: {name: (other or task).summarize(second, weights)[name]},
        len(first),
        groups=groups,
        replicates=replicates,
        seed=0,
    )[name]


def as_json(intervals: dict[str, Interval]) -> dict[str, Any]:
    """`{name: {value, low, high, n, groups, method}}`."""
    return {name: one.to_dict() for name, one in intervals.items()}


def values(task: Task[Any], rows: Rows) -> dict[str, float]:
    """Metrics without intervals, for validation during training."""
    return {name: float(np.asarray(value)) for name, value in task.summarize(rows).items()}
