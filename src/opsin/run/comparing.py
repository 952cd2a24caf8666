"""Compare runs on the same samples: paired bootstrap of the metric, exact McNemar where answers are right or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from opsin.analyze.measure import measure, paired_difference
from opsin.errors import ConfigError, DataError, UnknownName
from opsin.metrics.names import METRICS
from opsin.metrics.paired import holm, mcnemar
from opsin.results.rows import Rows
from opsin.run import Run
from opsin.task import Task

SIGNIFICANT = 0.05


def compare(runs: Sequence[Path | str | Run], *, split: str = "test", metric: str | None = None) -> dict[str, Any]:
    """Metrics of each run with intervals, and the paired difference of every two, as JSON values.

    Args:
        runs: two or more, evaluated on the same part.
        split: `test` or `val`.
        metric: by default the task's own.

    Raises:
        ConfigError: for fewer than two runs, or runs of different tasks.
        DataError: if a run has not been evaluated, or the sample ids differ.
    """
    opened = [one if isinstance(one, Run) else Run(one) for one in runs]
    if len(opened) < 2:
        raise ConfigError("compare needs two runs or more, e.g. opsin compare runs/a runs/b")
    if len({run.recipe.task_name for run in opened}) > 1:
        raise ConfigError(f"The runs are of different tasks: {', '.join(run.recipe.task_name for run in opened)}.")
    rows = [_rows(run, split) for run in opened]
    aligned = [rows[0], *(rows[0].join(other)[1] for other in rows[1:])]
    task = opened[0].bundle.task
    name = metric or task.monitor.name
    spec = opened[0].recipe.data.split.group
    groups = None if spec is None else opened[0].data.groups(spec, rows[0].ids)
    first = measure(task, rows[0], groups=groups)
    if name not in first:
        raise UnknownName("metric", name, first)
    found = [
        {
            "run": str(run.path),
            "model": run.state.get("model", {}).get("name"),
            "parameters": run.state.get("parameters"),
            "seconds": run.state.get("seconds"),
            "metric": measure(run.bundle.task, one, groups=groups)[name].to_dict(),
        }
        for run, one in zip(opened, aligned)
    ]
    pairs = [
        _pair(opened[i], opened[j], aligned[i], aligned[j], name, groups)
        for i, j in combinations(range(len(opened)), 2)
    ]
    known = {str(i): pair["p"] for i, pair in enumerate(pairs) if pair["p"] is not None}
    for key, p in (holm(known) if known else {}).items():
        pairs[int(key)]["p"] = p
    for pair in pairs:
        pair["verdict"] = _verdict(pair, _higher_is_better(task, name))
    return {"metric": name, "split": split, "samples": len(rows[0]), "runs": found, "pairs": pairs}


def _rows(run: Run, split: str) -> Rows:
    path = run.folder.predictions(split)
    if not path.exists():
        raise DataError(
            f"{run.path} has not been evaluated on its {split} part. Run: opsin evaluate {run.path} --split {split}"
        )
    return Rows.load(path)


def _pair(one: Run, other: Run, first: Rows, second: Rows, name: str, groups: Any) -> dict[str, Any]:
    """p is McNemar's exact one for accuracy of ungrouped rows, else the paired bootstrap's."""
    tasks = one.bundle.task, other.bundle.task
    difference = paired_difference(
        tasks[0], first, second, name, groups=groups, other=tasks[1], replicates=1000
    ).to_dict()
    found: dict[str, Any] = {
        "first": str(one.path),
        "second": str(other.path),
        "difference": difference,
        "p": difference["p_value"],
        "test": "paired bootstrap",
    }
    right, other_right = tasks[0].correct(first), tasks[1].correct(second)
    if name == "accuracy" and groups is None and right is not None and other_right is not None:
        known = ~np.isnan(right)
        exact = mcnemar(right[known], other_right[known]).to_dict()
        found |= {"p": exact["p_value"], "test": "exact McNemar", "mcnemar": exact}
    return found


def _higher_is_better(task: Task[Any], name: str) -> bool:
    if name == task.monitor.name:
        return task.monitor.higher_is_better
    known = METRICS.get(name.rpartition(".")[2])
    return known is None or known.better == "higher"


def _verdict(pair: dict[str, Any], higher_is_better: bool) -> str:
    p, value = pair["p"], pair["difference"]["value"]
    if p is None or p >= SIGNIFICANT or not value:
        return "no difference shown"
    return f"{'first' if (value > 0) == higher_is_better else 'second'} is better"
