"""`metrics.jsonl` in the run folder: one JSON object a line, cut back to the checkpoint when a run resumes.

Keys `seconds` and `time` hold wall-clock times; all else is the same in two runs of one recipe on one machine. Steps
are logged by their number, not by the clock, for the same reason. NaN and infinities are null, which JSON can say.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from opsin.engine.events import EpochDone, Evaluated, Event, Finished, Noted, RunStarted, StageStarted, StepDone, Warned
from opsin.engine.listeners import run_folder, step_interval

NAMES = ("jsonl",)

FLUSH_SECONDS = 1.0


class JsonLines:
    """Writes epochs, evaluations, warnings, the end, and about 50 steps an epoch.

    Args:
        folder: the run folder; `metrics.jsonl` in it is continued when it exists.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"
        self._file: BinaryIO | None = None
        self._interval = 1
        self._flushed = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            if event.step % self._interval == 0 or event.step == 1:
                self._write(_step(event))
        elif isinstance(event, RunStarted):
            self._interval = step_interval(event.steps_per_epoch)
        else:
            record = _record(event)
            if record:
                self._write({**record, "time": round(time.time(), 3)}, now=True)

    def state(self) -> dict[str, Any]:
        """How long the file is, once it is safely on disk."""
        file = self._open()
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": file.tell()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Cut the file back to the length it had; to nothing for a run without checkpoint."""
        wanted = int(state.get("bytes", 0))
        self.close()
        size = self.path.stat().st_size if self.path.exists() else 0
        if size > wanted:
            os.truncate(self.path, wanted)
        elif size < wanted:
            text = f"metrics.jsonl had {size} bytes when the run resumed, not {wanted}: lines before this one are lost."
            self._write({"event": "warning", "code": "log-shortened", "text": text}, now=True)

    def close(self) -> None:
        """Write out and close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
        return self._file

    def _write(self, record: Mapping[str, Any], now: bool = False) -> None:
        file = self._open()
        file.write((json.dumps(record, allow_nan=False) + "\n").encode())
        clock = time.monotonic()
        if now or clock - self._flushed > FLUSH_SECONDS:
            file.flush()
            self._flushed = clock


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _step(event: StepDone) -> dict[str, Any]:
    record: dict[str, Any] = {"event": "step", "step": event.step, "epoch": event.epoch}
    record |= {"loss": _numbers(event.parts), "lr": _number(event.lr)}
    if event.gradient_norm is not None:
        record["gradient_norm"] = _number(event.gradient_norm)
    return record


def _record(event: Event) -> dict[str, Any]:
    if isinstance(event, EpochDone):
        where = {"event": "epoch", "step": event.step, "epoch": event.epoch}
        return {**where, "loss": _numbers(event.metrics), "samples": event.samples, "seconds": round(event.seconds, 6)}
    if isinstance(event, Evaluated):
        where = {"event": "evaluated", "step": event.step, "epoch": event.epoch, "part": event.part}
        return {**where, "metrics": _numbers(event.metrics), "best": event.best, "monitor": event.monitor}
    if isinstance(event, StageStarted):
        where = {"event": "stage", "step": event.step, "epoch": event.epoch, "number": event.number}
        return {**where, "name": event.name, "trained": event.trained}
    if isinstance(event, Warned):
        return {"event": "warning", "code": event.code, "text": event.text}
    if isinstance(event, Noted):
        return {"event": "note", "code": event.code, "text": event.text}
    if isinstance(event, Finished):
        where = {"event": "finished", "step": event.step, "epoch": event.epoch, "reason": event.reason}
        return {**where, "best": _numbers(event.best), "seconds": round(event.seconds, 6)}
    return {}


def build(folder: Path | None, *, quiet: bool = False) -> JsonLines:
    """The listener for a run folder."""
    del quiet
    return JsonLines(run_folder(folder, "jsonl"))
