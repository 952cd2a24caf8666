"""The one typed stream of what happens in a run; the terminal, files, dashboards and a person's callback listen to it.

A listener is any callable that takes an event. One that keeps files may also have `state() -> dict` and
`restore(state)`: the state is stored in every checkpoint, and given back when a run resumes, so that logs are cut back
to the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class RunStarted:
    """Training begins or goes on; `step` and `epoch` say where."""

    folder: Path | None
    epochs: int
    steps_per_epoch: int
    samples_per_epoch: int
    step: int = 0
    epoch: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageStarted:
    """A stage of fine-tuning begins; `number` counts from 1, `trained` says in words what is trained."""

    step: int
    epoch: int
    number: int
    stages: int
    name: str
    trained: str


@dataclass(frozen=True)
class StepDone:
    """One optimizer step. `parts` holds loss terms divided by their global counts, as tensors: read them rarely."""

    step: int
    epoch: int
    step_in_epoch: int
    samples: int
    parts: Mapping[str, Tensor]
    lr: float
    gradient_norm: Tensor | None = None


@dataclass(frozen=True)
class Evaluated:
    """Metrics of a part of the data after an epoch."""

    step: int
    epoch: int
    part: str
    metrics: Mapping[str, float]
    best: bool
    monitor: str


@dataclass(frozen=True)
class EpochDone:
    """An epoch has ended; `metrics` are the loss terms averaged over its samples."""

    step: int
    epoch: int
    metrics: Mapping[str, float]
    seconds: float
    samples: int


@dataclass(frozen=True)
class CheckpointSaved:
    """The state of the loop is on disk."""

    step: int
    epoch: int
    path: Path


@dataclass(frozen=True)
class Warned:
    """Something a person should know; `code` is stable for machines."""

    code: str
    text: str


@dataclass(frozen=True)
class Noted:
    """Something done that a person may want to know; `code` is stable for machines."""

    code: str
    text: str


@dataclass(frozen=True)
class Finished:
    """Training has ended; `reason` is "done", "early stopping" or "interrupted"."""

    step: int
    epoch: int
    reason: str
    seconds: float
    best: Mapping[str, float]


Event = RunStarted | StageStarted | StepDone | Evaluated | EpochDone | CheckpointSaved | Warned | Noted | Finished
Listener = Callable[[Event], None]


class Stream:
    """Hands every event to every listener, in order, and keeps their states for checkpoints."""

    def __init__(self, listeners: Mapping[str, Listener]) -> None:
        self.listeners = dict(listeners)

    def __call__(self, event: Event) -> None:
        for listener in self.listeners.values():
            listener(event)

    def state(self) -> dict[str, Any]:
        """States of the listeners that have one, by name."""
        return {name: one.state() for name, one in self.listeners.items() if hasattr(one, "state")}

    def restore(self, states: Mapping[str, Any]) -> None:
        """Cut listeners back to a checkpoint."""
        for name, one in self.listeners.items():
            if hasattr(one, "restore"):
                one.restore(states.get(name, {}))

    def close(self) -> None:
        """Close what listeners hold open."""
        for one in self.listeners.values():
            if hasattr(one, "close"):
                one.close()
