"""Weights & Biases: settings, metrics by step, and how the run ended; offline unless `WANDB_MODE` says otherwise.

Offline runs lie in `wandb` of the run folder; `wandb sync RUN/wandb/offline-run-*` sends them when a person wants that.
`WANDB_PROJECT` names the project.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opsin.engine.events import EpochDone, Evaluated, Event, Finished, RunStarted, StepDone, Warned
from opsin.engine.listeners import run_folder, scalars, step_interval
from opsin.errors import MissingExtra

NAMES = ("wandb",)


class WeightsAndBiases:
    """Logs into a run of its own.

    Numbers of one step (the step itself, the means of its epoch, the validation) go into one row, as W&B merges logs
    that carry the same step.

    Args:
        folder: the run folder; its name becomes the name of the W&B run.

    Raises:
        MissingExtra: if wandb is not installed.
    """

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its crash reports would leave the machine
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("wandb", "wandb", "the listener 'wandb'") from error
        self._wandb = wandb
        self.folder = folder
        self._id: str | None = None
        self._run: Any = None
        self._interval = 1

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            if event.step % self._interval == 0 or event.step == 1:
                self._log(event)
        elif isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, EpochDone | Evaluated):
            self._log(event)
        elif isinstance(event, Warned) and self._run is not None:
            self._run.summary[f"warning/{event.code}"] = event.text
        elif isinstance(event, Finished) and self._run is not None:
            self._run.summary["reason"] = event.reason
            for name, value in event.best.items():
                self._run.summary[f"best/{name}"] = value
            self._finish(255 if event.reason == "interrupted" else 0)

    def state(self) -> dict[str, Any]:
        """The id of the W&B run, so that a resumed run continues it."""
        return {"run": self._id}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue the run of the checkpoint."""
        self._id = state.get("run")

    def close(self) -> None:
        """End the W&B run as failed, if it was not finished."""
        self._finish(1)

    def _start(self, event: RunStarted) -> None:
        self._interval = step_interval(event.steps_per_epoch)
        self._finish(1)
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "opsin"),
            name=self.folder.name,
            id=self._id,
            resume="allow" if self._id is not None else None,
            dir=str(self.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=dict(event.details),
            settings=self._wandb.Settings(console="off", silent=True),
        )
        self._id = self._run.id

    def _log(self, event: StepDone | EpochDone | Evaluated) -> None:
        if self._run is not None:
            self._run.log(scalars(event), step=event.step)

    def _finish(self, code: int) -> None:
        if self._run is not None:
            self._run.finish(exit_code=code)
            self._run = None


def build(folder: Path | None, *, quiet: bool = False) -> WeightsAndBiases:
    """The listener for a run folder."""
    del quiet
    return WeightsAndBiases(run_folder(folder, "wandb"))
