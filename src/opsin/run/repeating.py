"""Train once, over several seeds, or over folds; go on with what is missing; and say what came out.

Several runs lie side by side in one folder with `repeat.json`: the settings, the seeds or folds, how far each run is,
and the metrics over all of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.analyze.measure import REPLICATES, as_json
from opsin.errors import ConfigError
from opsin.metrics.intervals import bootstrap
from opsin.metrics.repeats import summarize_repeats
from opsin.recipe import Layer
from opsin.results.rows import Rows
from opsin.run import Run, new_recipe, start
from opsin.run.data import Progress
from opsin.run.evaluating import evaluate_run
from opsin.run.folder import RUNS, RunFolder, new_folder
from opsin.seeding import numpy_generator

RECORD = "repeat.json"


@dataclass
class Runs:
    """One run, or several in a folder that differ in seed or fold alone."""

    runs: list[Run]
    folder: Path | None = None
    differ_in: str = ""
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """What `opsin train --json` gives."""
        if self.folder is None:
            return summary(self.runs[0])
        return {
            "folder": str(self.folder),
            "status": "interrupted" if self.interrupted else "done",
            "runs": [summary(run) for run in self.runs],
            "differ_in": self.differ_in,
            "metrics": self.metrics(),
        }

    def metrics(self) -> dict[str, Any]:
        """Mean over finished runs of every validation metric, with sd, range and t-interval."""
        return _over_runs([run.state["validation"] for run in self.runs if run.state.get("status") == "done"])

    def text(self) -> str:
        """What a person sees at the end."""
        if self.folder is None:
            return summary_text(self.runs[0])
        lines = [summary_text(run) for run in self.runs if run.state.get("status") == "done"]
        if self.interrupted:
            return "\n".join([*lines, f"Stopped; everything is saved. Go on with: opsin train --resume {self.folder}"])
        name = self.runs[0].bundle.task.monitor.name
        found = self.metrics().get(name)
        if found:
            lines.append(
                f"{len(self.runs)} {self.differ_in}s: validation {name} mean {found['mean']:.4f} "
                f"(95 % interval {found['low']:.4f} to {found['high']:.4f}, sd {found['sd']:.4f})"
            )
        return "\n".join([*lines, f"Next: opsin evaluate {self.folder}      (all of them, on the sealed test part)"])


def train_repeated(
    task: str,
    layers: Sequence[Layer],
    *,
    out: Path | str | None = None,
    repeat: int = 1,
    folds: int | None = None,
    quiet: bool = False,
    progress: Progress | None = None,
) -> Runs:
    """Train one run, `repeat` runs with seeds counted up, or one run per fold.

    Raises:
        ConfigError: if both folds and repeats are asked for with one output folder each; nothing is trained then.
    """
    if folds is not None and repeat > 1:
        raise ConfigError("--folds and --repeat cannot be used together; repeat a single split, or use folds.")
    count, word = (folds, "fold") if folds is not None else (repeat, "seed")
    if folds is not None:
        layers = [*layers, Layer("folds", {"data": {"split": {"folds": folds}}})]
    if count == 1:
        run = start(task, layers, out=out, quiet=quiet, progress=progress)
        return Runs([run], interrupted=_stopped(run))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"--{'folds' if folds else 'repeat'} and several processes cannot be used together.")
    recipe = new_recipe(task, layers)
    folder = new_folder(out, task, Path(recipe.data.path or "data").resolve().name)
    first = _seed(layers) if word == "seed" else 0
    record = {
        "version": 1,
        "task": task,
        "layers": [{"source": layer.source, "values": layer.values} for layer in layers],
        "differ_in": word,
        "values": list(range(first, first + count)),
    }
    folder.write(RECORD, {**record, "status": "running", "runs": {}, "metrics": {}})
    return resume_repeated(folder, quiet=quiet, progress=progress)


def find_repeat(reference: Path | str) -> RunFolder | None:
    """The folder of several runs with this path, or name below `runs/`; None when it is no such folder."""
    for path in (Path(reference), RUNS / reference):
        if (path / RECORD).is_file():
            return RunFolder(path)
    return None


def resume_repeated(folder: RunFolder, *, quiet: bool = False, progress: Progress | None = None) -> Runs:
    """Train what is missing of several runs; those that are finished stay as they are.

    Raises:
        DataError: if `repeat.json` is damaged.
    """
    record = folder.read(RECORD)
    word = record["differ_in"]
    layers = [Layer(one["source"], one["values"]) for one in record["layers"]]
    found = Runs([], folder.path, word)
    status = "failed"
    try:
        for value in record["values"]:
            place = folder.path / f"{word}-{value}"
            if (place / "recipe.json").is_file():
                run = Run(RunFolder(place)).resume(quiet=quiet)
            else:
                own: dict[str, Any] = (
                    {"run": {"seed": value}} if word == "seed" else {"data": {"split": {"fold": value}}}
                )
                every = [*layers, Layer(f"{word} {value}", own)]
                run = start(record["task"], every, out=place, quiet=quiet, progress=progress)
            found.runs.append(run)
            found.interrupted = _stopped(run)
            _note(folder, found, "interrupted" if found.interrupted else "running")
            if found.interrupted:
                break
        status = "interrupted" if found.interrupted else "done"
    finally:
        _note(folder, found, status)
    return found


def evaluate_repeated(folder: RunFolder, part: str = "test", **options: Any) -> dict[str, Any]:
    """Judge every run of a folder; options as for `evaluate_run`.

    Returns:
        What each run gives, and every metric over the runs: for seeds the mean with a t-interval, for folds the mean over
        folds (each judged as its own run judges, by its share of the pictures) with an interval over the pictures.

    Raises:
        ConfigError: if not every run has ended.
    """
    record = folder.read(RECORD)
    if record["status"] != "done":
        raise ConfigError(f"{folder.path} is not finished ({record['status']}): opsin train --resume {folder.path}")
    runs = [Run(RunFolder(folder.path / f"{record['differ_in']}-{value}")) for value in record["values"]]
    each = [evaluate_run(run, part, **options) for run in runs]
    out_of_fold = record["differ_in"] == "fold" and part == "test" and options.get("data") is None
    found = {
        "folder": str(folder.path),
        "split": each[0]["split"],
        "differ_in": record["differ_in"],
        "interval": "pictures" if out_of_fold else f"{record['differ_in']}s",
        "monitor": each[0]["monitor"],
        "metrics": _out_of_fold(runs) if out_of_fold else _over_runs([one["metrics"] for one in each]),
        "runs": each,
    }
    folder.write(f"evaluation-{found['split']}.json", found)
    return found


def _out_of_fold(runs: Sequence[Run]) -> dict[str, Any]:
    """Every picture judged once, by the run that did not see it."""
    tables = [Rows.load(run.folder.predictions("test")) for run in runs]
    stops = np.cumsum([len(rows) for rows in tables])
    shares = [len(rows) / stops[-1] for rows in tables]

    def statistic(weights: NDArray[Any]) -> dict[str, Any]:
        parts = np.split(weights, stops[:-1], axis=1)
        found = [run.bundle.task.summarize(rows, own) for run, rows, own in zip(runs, tables, parts)]
        return {name: sum(share * one[name] for share, one in zip(shares, found)) for name in found[0]}

    groups = [run.data.groups(run.recipe.data.split.group, rows.ids) for run, rows in zip(runs, tables)]
    together = (
        None if any(one is None for one in groups) else np.concatenate([one for one in groups if one is not None])
    )
    drawn = bootstrap(
        statistic, int(stops[-1]), groups=together, replicates=REPLICATES, seed=numpy_generator(0, "bootstrap")
    )
    return as_json(drawn)


def _over_runs(every: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, sd, range and t-interval of every metric that all runs have."""
    shared = (
        [name for name in every[0] if all(one.get(name, {}).get("value") is not None for one in every)] if every else []
    )
    return {name: summarize_repeats([one[name]["value"] for one in every]).to_dict() for name in shared}


def _note(folder: RunFolder, found: Runs, status: str) -> None:
    states = {run.path.name: run.state.get("status") for run in found.runs}
    folder.update(RECORD, status=status, runs=states, metrics=found.metrics())


def _seed(layers: Sequence[Layer]) -> int:
    given = [
        layer.values["run"]["seed"]
        for layer in layers
        if isinstance(layer.values.get("run"), dict) and "seed" in layer.values["run"]
    ]
    return int(given[-1]) if given else 0


def _stopped(run: Run) -> bool:
    return bool(run.state.get("status") == "interrupted")


def summary(run: Run) -> dict[str, Any]:
    """A run in a few values."""
    state = run.state
    return {
        "run": str(run.path),
        "status": state.get("status"),
        "task": run.recipe.task_name,
        "model": state.get("model", {}).get("name"),
        "parameters": state.get("parameters"),
        "data": run.recipe.data.path,
        "epochs": state.get("effective", {}).get("epochs"),
        "steps": state.get("steps"),
        "seconds": state.get("seconds"),
        "best_epoch": state.get("best", {}).get("epoch"),
        "split": "val",
        "metrics": state.get("validation", {}),
        "train": state.get("train", {}),
    }


def summary_text(run: Run) -> str:
    """A run in a few lines, with the next command."""
    state = run.state
    if state.get("status") == "interrupted":
        return f"Stopped; everything is saved. Go on with: opsin train --resume {run.path}"
    name = run.bundle.task.monitor.name
    found = state.get("validation", {}).get(name)
    value = "" if not found else f"  validation {name} {_interval(found)}"
    best, epochs = state.get("best", {}).get("epoch", -1) + 1, state["effective"]["epochs"]
    when = f"best epoch {best} of {epochs}" if best else f"{epochs} epochs"
    if not best and state.get("best", {}).get("metrics") and epochs:
        when += ", none better than the start"
    return (
        f"{run.path}:{value}  {when}, {state['seconds']:.0f} s\n"
        f"Next: opsin evaluate {run.path}      (the sealed test part)"
    )


def _interval(found: dict[str, Any]) -> str:
    if found.get("low") is None:
        return f"{found['value']:.4f}"
    return f"{found['value']:.4f} ({found['low']:.4f} to {found['high']:.4f})"
