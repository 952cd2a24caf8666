"""Train once, over several seeds, or over folds; and say what came out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opsin.errors import ConfigError
from opsin.metrics.repeats import summarize_repeats
from opsin.recipe import Layer
from opsin.run import Run, start
from opsin.run.data import Progress


@dataclass
class Runs:
    """One run, or several that differ in seed or fold alone."""

    runs: list[Run]
    differ_in: str = ""
    interrupted: bool = field(default=False)

    def to_dict(self) -> dict[str, Any]:
        """What `opsin train --json` gives."""
        if len(self.runs) == 1:
            return summary(self.runs[0])
        return {"runs": [summary(run) for run in self.runs], "differ_in": self.differ_in, "metrics": self.metrics()}

    def metrics(self) -> dict[str, Any]:
        """Mean over runs of every validation metric, with sd, range and t-interval."""
        every = [run.state.get("validation", {}) for run in self.runs]
        shared = [name for name in every[0] if all(name in one and one[name]["value"] is not None for one in every)]
        return {name: summarize_repeats([one[name]["value"] for one in every]).to_dict() for name in shared}

    def text(self) -> str:
        """What a person sees at the end."""
        if len(self.runs) == 1:
            return summary_text(self.runs[0])
        lines = [summary_text(run) for run in self.runs]
        name = self.runs[0].bundle.task.monitor.name
        found = self.metrics().get(name)
        if found:
            lines.append(
                f"{len(self.runs)} {self.differ_in}s: validation {name} mean {found['mean']:.4f} "
                f"(95 % interval {found['low']:.4f} to {found['high']:.4f}, sd {found['sd']:.4f})"
            )
        return "\n".join(lines)


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
    count, key, word = (folds, "data.split.fold", "fold") if folds is not None else (repeat, "run.seed", "seed")
    if count == 1:
        run = start(task, layers, out=out, quiet=quiet, progress=progress)
        return Runs([run], interrupted=_stopped(run))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"--{'folds' if folds else 'repeat'} and several processes cannot be used together.")
    first = _seed(layers) if key == "run.seed" else 0
    runs: list[Run] = []
    for i in range(first, first + count):
        section, name = key.rsplit(".", 1)
        values: dict[str, Any] = {name: i}
        for part in reversed(section.split(".")):
            values = {part: values}
        place = None if out is None else Path(out) / f"{word}-{i}"
        runs.append(start(task, [*layers, Layer(f"{word} {i}", values)], out=place, quiet=quiet, progress=progress))
        if _stopped(runs[-1]):
            return Runs(runs, word, True)
    return Runs(runs, word)


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
    return (
        f"{run.path}:{value}  best epoch {best} of {epochs}, {state['seconds']:.0f} s\n"
        f"Next: opsin evaluate {run.path}      (the sealed test part)"
    )


def _interval(found: dict[str, Any]) -> str:
    if found.get("low") is None:
        return f"{found['value']:.4f}"
    return f"{found['value']:.4f} ({found['low']:.4f} to {found['high']:.4f})"
