"""MLflow: settings, metrics by step, and how the run ended; into `mlruns` of the run folder unless told otherwise.

`MLFLOW_TRACKING_URI` names another store or a server, `MLFLOW_EXPERIMENT_NAME` the experiment. MLflow cannot take lines
back: steps that a resumed run repeats are logged twice, with the same values.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opsin.engine.events import EpochDone, Evaluated, Event, Finished, RunStarted, StepDone, Warned
from opsin.engine.listeners import flat, run_folder, scalars, step_interval
from opsin.errors import MissingExtra

NAMES = ("mlflow",)

_PER_CALL = 100  # parameters that the server takes at once
_LONGEST = 500  # characters of a value that every version takes
_STATUS = {"done": "FINISHED", "early stopping": "FINISHED", "interrupted": "KILLED"}


class MLflow:
    """Logs through a client of its own, so that a person's active MLflow run is left alone.

    Args:
        folder: the run folder; its name becomes the name of the MLflow run.

    Raises:
        MissingExtra: if mlflow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # its usage reports would leave the machine
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            # Files need no database driver; MLflow asks whoever wants them to say so.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        try:
            import mlflow
            from mlflow.entities import Metric, Param
        except ImportError as error:
            raise MissingExtra("mlflow-skinny", "mlflow", "the listener 'mlflow'") from error
        self._metric, self._param = Metric, Param
        self.folder = folder
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder.resolve() / "mlruns").as_uri()
        self._client = mlflow.MlflowClient(tracking_uri=self.uri)
        self._run: str | None = None
        self._interval = 1

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            if event.step % self._interval == 0 or event.step == 1:
                self._log(scalars(event), event.step)
        elif isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, EpochDone | Evaluated):
            self._log(scalars(event), event.step)
        elif isinstance(event, Warned) and self._run is not None:
            self._client.set_tag(self._run, f"warning.{event.code}", event.text)
        elif isinstance(event, Finished) and self._run is not None:
            self._client.set_terminated(self._run, status=_STATUS.get(event.reason, "FAILED"))

    def state(self) -> dict[str, Any]:
        """The id of the MLflow run, so that a resumed run continues it."""
        return {"run": self._run}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue the run of the checkpoint."""
        self._run = state.get("run")

    def _start(self, event: RunStarted) -> None:
        self._interval = step_interval(event.steps_per_epoch)
        if self._run is not None:
            self._client.update_run(self._run, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "opsin")
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known is not None else self._client.create_experiment(name)
        self._run = self._client.create_run(experiment, run_name=self.folder.name).info.run_id
        values = flat(event.details)
        params = [self._param(_key(key), str(value)[:_LONGEST]) for key, value in values.items()]
        for start in range(0, len(params), _PER_CALL):
            self._client.log_batch(self._run, params=params[start : start + _PER_CALL])

    def _log(self, values: Mapping[str, float], step: int) -> None:
        if self._run is not None:
            now = int(time.time() * 1000)
            metrics = [self._metric(_key(key), value, now, step) for key, value in values.items()]
            self._client.log_batch(self._run, metrics=metrics)


def _key(name: str) -> str:
    return re.sub(r"[^\w\-./: ]", "_", name)[:250]  # what MLflow takes


def build(folder: Path | None, *, quiet: bool = False) -> MLflow:
    """The listener for a run folder."""
    del quiet
    return MLflow(run_folder(folder, "mlflow"))
