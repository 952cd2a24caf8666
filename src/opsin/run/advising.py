"""The transfer advisor: train several plans on the person's own data, compare them on the validation part, then advise.

Every plan is a whole run beside the others in one folder with the same split, so that the best one can be used as it is.
Nothing looks at the test part.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opsin.data.loader import EvalLoader
from opsin.errors import ConfigError
from opsin.recipe import Layer
from opsin.run import Run, new_recipe, start
from opsin.run.comparing import compare
from opsin.run.data import Progress
from opsin.run.folder import new_folder
from opsin.transfer.shift import statistics_shift

PLANS = ("head", "staged", "full")  # from cheap to dear
NEAR, FAR = 0.5, 2.0  # of `statistics_shift`
FEW = 2000  # training pictures


@dataclass(frozen=True)
class Advice:
    """What was measured, and what follows.

    Args:
        folder: holds one run per plan, and `advice.json`.
        plans: per plan: name, run, metric with interval, seconds.
        best: the plan that is advised.
        reasons: sentences.
        samples: training pictures.
        shift: distance of the data from those of the weights; None if the network has no batch norms.
    """

    folder: Path
    plans: list[dict[str, Any]]
    best: str
    reasons: list[str]
    samples: int
    shift: float | None
    metric: str

    def to_dict(self) -> dict[str, Any]:
        """For `--json` and `advice.json`."""
        return {
            "folder": str(self.folder), "metric": self.metric, "plans": self.plans, "best": self.best,
            "reasons": self.reasons, "samples": self.samples, "shift": self.shift,
        }  # fmt: skip

    def text(self) -> str:
        """What a person sees after the table."""
        run = next(plan["run"] for plan in self.plans if plan["plan"] == self.best)
        return "\n".join([*self.reasons, f"Advice: {self.best}. Its run is there: opsin evaluate {run}"])


def advise(
    task: str,
    layers: Sequence[Layer],
    *,
    plans: Sequence[str] = PLANS,
    out: Path | str | None = None,
    quiet: bool = False,
    progress: Progress | None = None,
) -> Advice:
    """Measure transfer plans on a data set.

    Args:
        task: name of the task.
        layers: settings as for training; `transfer.plan` is set here.
        plans: at least two.
        out: folder; by default the next free `runs/TASK-DATA-N`.
        quiet: nothing on the terminal.
        progress: told how many pictures are verified.

    Raises:
        ConfigError: for fewer than two plans, or without weights to start from.
        KeyboardInterrupt: if a plan was interrupted; its run can be resumed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("The advisor and several processes cannot be used together.")
    if len(plans) < 2:
        raise ConfigError("The advisor compares plans: name two or more.")
    recipe = new_recipe(task, layers)
    if recipe.model.weights == "none":
        raise ConfigError("There is nothing to transfer: name weights with --weights NAME|FILE.")
    if recipe.transfer.stages or recipe.transfer.head == "keep":
        raise ConfigError("The advisor compares plans as they are: leave transfer.stages and transfer.head out.")
    folder = new_folder(out, task, Path(recipe.data.path or "data").resolve().name)
    runs = []
    for plan in plans:
        own = [_without_length(layer) for layer in layers] if plan == "head" else list(layers)
        given = [*own, Layer(f"plan {plan} of the advisor", {"transfer": {"plan": plan}})]
        runs.append(start(task, given, out=folder.path / plan, quiet=quiet, progress=progress))
        if runs[-1].state.get("status") == "interrupted":
            raise KeyboardInterrupt
    found = compare(runs, split="val")
    table = [
        {"plan": plan, "run": one["run"], "metric": one["metric"], "seconds": one["seconds"]}
        for plan, one in zip(plans, found["runs"])
    ]
    best, reasons = _best(table, found, runs[0].bundle.task.monitor.higher_is_better)
    samples = len(runs[0].data.indices("train"))
    shift = _shift(runs[0])
    advice = Advice(folder.path, table, best, [_situation(samples, shift), *reasons], samples, shift, found["metric"])
    folder.write("advice.json", {**advice.to_dict(), "pairs": found["pairs"]})
    return advice


def _without_length(layer: Layer) -> Layer:
    """The plan that fits a head takes no epochs."""
    run = {k: v for k, v in layer.values.get("run", {}).items() if k not in ("epochs", "minutes")}
    return Layer(layer.source, {**layer.values, "run": run})


def _shift(run: Run) -> float | None:
    """By the run that moved nothing but the head: its statistics are still those of the weights."""
    data, bundle = run.data, run.bundle
    indices = data.indices("train")
    some = indices[np.linspace(0, len(indices) - 1, min(512, len(indices))).astype(np.int64)]
    return statistics_shift(bundle.model, EvalLoader(data.dataset, some, bundle.task, batch_size=64))


def _best(table: list[dict[str, Any]], found: dict[str, Any], higher: bool) -> tuple[str, list[str]]:
    """The plan with the best value, or a cheaper one that is not shown to be worse."""
    values = [row["metric"]["value"] for row in table]
    top = int(np.argmax(values) if higher else np.argmin(values))
    word = f"{table[top]['plan']} has the best validation {found['metric']} ({values[top]:.4f})"
    for i in range(top):
        pair = next(p for p in found["pairs"] if {p["first"], p["second"]} == {table[i]["run"], table[top]["run"]})
        if pair["verdict"] == "no difference shown":
            p = "" if pair["p"] is None else f", p = {pair['p']:.2g} by {pair['test']}"
            return table[i]["plan"], [f"{word}, but {table[i]['plan']} is cheaper and not shown to be worse{p}."]
    return table[top]["plan"], [f"{word}; no cheaper plan is as good."]


def _situation(samples: int, shift: float | None) -> str:
    size = "few" if samples < FEW else "many"
    if shift is None:
        return f"{samples} training pictures ({size})."
    near = "near to" if shift < NEAR else "far from" if shift > FAR else "at some distance from"
    rule = {
        ("few", "near to"): "a new head is often enough",
        ("few", "far from"): "earlier layers have to change too, at a low rate and with strong augmentation",
        ("many", "near to"): "fine-tune everything for a few epochs",
        ("many", "far from"): "fine-tune everything",
    }.get((size, near), "only a measurement can tell")
    return f"{samples} training pictures ({size}), {near} those of the weights (shift {shift:.2f}): as a rule, {rule}."
