"""TensorBoard event files under `tensorboard/` of the run folder: loss terms, rate, gradient norm, metrics, images/s.

Look with: tensorboard --logdir RUN/tensorboard. When a run resumes, the files are cut back to the checkpoint and the
new file tells a TensorBoard that is open to forget the later steps, so that no step shows twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from opsin.engine.events import EpochDone, Evaluated, Event, Finished, RunStarted, StepDone, Warned
from opsin.engine.listeners import run_folder, scalars, step_interval
from opsin.errors import MissingExtra

NAMES = ("tensorboard",)

_PATTERN = "events.out.tfevents.*"


class TensorBoard:
    """Writes event files with TensorBoard's own writer, which loads neither TensorFlow nor torch.

    Args:
        folder: where the event files go.

    Raises:
        MissingExtra: if tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            events = import_module("tensorboard.compat.proto.event_pb2")
            summaries = import_module("tensorboard.compat.proto.summary_pb2")
            writer = import_module("tensorboard.summary.writer.event_file_writer")
        except ImportError as error:
            raise MissingExtra("tensorboard", "all", "the listener 'tensorboard'") from error
        self._record, self._session = events.Event, events.SessionLog
        self._summary, self._make = summaries.Summary, writer.EventFileWriter
        self.folder = folder
        self._writer: Any = None
        self._purge: int | None = None
        self._last = 0
        self._interval = 1

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            if event.step % self._interval == 0 or event.step == 1:
                self._add(scalars(event), event.step)
        elif isinstance(event, RunStarted):
            self._interval = step_interval(event.steps_per_epoch)
        elif isinstance(event, EpochDone | Evaluated):
            self._add(scalars(event), event.step)
            self._writer.flush()
        elif isinstance(event, Warned | Finished) and self._writer is not None:
            self._writer.flush()

    def state(self) -> dict[str, Any]:
        """Which event files there are and how long, and the step to which they reach."""
        if self._writer is not None:
            self._writer.flush()
        sizes = {}
        for path in sorted(self.folder.glob(_PATTERN)):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sizes[path.name] = path.stat().st_size
        return {"files": sizes, "step": self._last}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Cut the event files back; what was begun after the checkpoint goes."""
        self.close()
        files: Mapping[str, int] = state.get("files", {})
        for path in self.folder.glob(_PATTERN):
            if path.name not in files:
                path.unlink()
            elif path.stat().st_size > files[path.name]:
                os.truncate(path, files[path.name])
        self._last = int(state.get("step", 0))
        self._purge = self._last + 1

    def close(self) -> None:
        """Write out and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> Any:
        if self._writer is None:
            self._writer = self._make(str(self.folder))
            if self._purge is not None and self._purge > 1:
                session = self._session(status=self._session.START)
                self._writer.add_event(self._record(wall_time=time.time(), step=self._purge, session_log=session))
            self._purge = None
        return self._writer

    def _add(self, values: Mapping[str, float], step: int) -> None:
        entries = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._open().add_event(self._record(wall_time=time.time(), step=step, summary=self._summary(value=entries)))
        self._last = max(self._last, step)


def build(folder: Path | None, *, quiet: bool = False) -> TensorBoard:
    """The listener for a run folder."""
    del quiet
    return TensorBoard(run_folder(folder, "tensorboard") / "tensorboard")
