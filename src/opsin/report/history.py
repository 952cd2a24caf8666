"""Training curves from `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.report.content import Chart, Line

POINTS = 240  # of a line; more are averaged
LOG_FROM = 30.0  # largest over smallest loss from which on the axis is logarithmic

Events = list[dict[str, Any]]


@dataclass
class History:
    """What happened in training, by kind of event."""

    steps: Events = field(default_factory=list)
    epochs: Events = field(default_factory=list)
    evaluations: Events = field(default_factory=list)
    warnings: Events = field(default_factory=list)
    finished: dict[str, Any] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> float | None:
        """Optimizer steps of one epoch, None before the first has ended."""
        return self.epochs[0]["step"] / (self.epochs[0]["epoch"] + 1) if self.epochs else None

    @property
    def images_per_second(self) -> float | None:
        """Training pictures per second, all epochs together."""
        seconds = sum(e.get("seconds") or 0.0 for e in self.epochs)
        return sum(e.get("samples") or 0 for e in self.epochs) / seconds if seconds > 0 else None


def read_history(path: Path | None) -> History:
    """Read the log; lines that are not whole (a run that was killed) are left out."""
    found = History()
    if path is None or not path.is_file():
        return found
    kinds = {"step": found.steps, "epoch": found.epochs, "evaluated": found.evaluations, "warning": found.warnings}
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if not isinstance(event, dict):
                continue
            if event.get("event") in kinds:
                kinds[event["event"]].append(event)
            elif event.get("event") == "finished":
                found.finished = event
    return found


def charts(history: History, monitor: str | None, best_epoch: int | None) -> list[Chart]:
    """Loss, headline metric on the validation part, and learning rate over the epochs."""
    scale = history.steps_per_epoch or 1.0
    x_title = "epoch" if history.steps_per_epoch else "step"
    mark = None if best_epoch is None else (best_epoch + 1.0, f"kept: epoch {best_epoch + 1}")
    found = [
        _loss(history, scale, x_title),
        _metric(history, scale, x_title, monitor, mark),
        _rate(history, scale, x_title),
    ]
    return [chart for chart in found if any(len(line.x) > 1 or line.dots for line in chart.lines)]


def _series(
    events: Events, scale: float, key: str, name: str | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions and values of what is there and finite."""
    pairs = []
    for event in events:
        value = event.get(key) if name is None else (event.get(key) or {}).get(name)
        if value is not None:
            pairs.append((event["step"] / scale, float(value)))
    table = np.array(pairs, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def thinned(
    x: NDArray[np.float64], y: NDArray[np.float64], most: int = POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most `most` points, each the mean of neighbors."""
    if len(x) <= most:
        return x, y
    groups = np.array_split(np.arange(len(x)), most)
    return np.array([x[g].mean() for g in groups]), np.array([y[g].mean() for g in groups])


def _loss(history: History, scale: float, x_title: str) -> Chart:
    names = list(dict.fromkeys(name for event in [*history.steps, *history.epochs] for name in event.get("loss") or {}))
    lines = []
    for name in names[:6]:
        label = "training" if len(names) == 1 else f"training, {name}"
        if len(names) == 1:
            lines.append(Line("each step", *thinned(*_series(history.steps, scale, "loss", name)), faint=True))
        lines.append(
            Line(label, *thinned(*_series(history.epochs, scale, "loss", name)), dots=len(history.epochs) <= 40)
        )
    x, y = _series([e for e in history.evaluations if e.get("part") == "val"], scale, "metrics", "log_loss")
    if len(x) and len(names) == 1:
        lines.append(Line("validation", *thinned(x, y), dots=len(x) <= 40))
    lines = [line for line in lines if len(line.x)]
    every = np.concatenate([line.y for line in lines]) if lines else np.zeros(0)
    log = bool(len(every) and every.min() > 0 and every.max() / every.min() > LOG_FROM)
    return Chart("Loss", x_title, tuple(lines), log, note="Logarithmic axis." if log else "")


def _metric(history: History, scale: float, x_title: str, monitor: str | None, mark: tuple[float, str] | None) -> Chart:
    held = [e for e in history.evaluations if e.get("part") == "val"]
    name = monitor or (held[0].get("monitor") if held else None)
    x, y = _series(held, scale, "metrics", name) if name else (np.zeros(0), np.zeros(0))
    title = f"{(name or 'metric').replace('_', ' ')} on the validation part"
    line = Line(name or "metric", *thinned(x, y), dots=len(x) <= 40)
    return Chart(title[0].upper() + title[1:], x_title, (line,), mark=mark if len(x) else None)


def _rate(history: History, scale: float, x_title: str) -> Chart:
    return Chart("Learning rate", x_title, (Line("learning rate", *thinned(*_series(history.steps, scale, "lr"))),))


def progress(history: History, state: Mapping[str, Any]) -> str:
    """How far training came: `epoch 3 of 8`."""
    done, planned = len(history.epochs), (state.get("effective") or {}).get("epochs")
    last = max((e["epoch"] + 1 for e in history.epochs), default=done)
    return f"{last} of {planned} epochs" if planned is not None else f"{last} epochs"
