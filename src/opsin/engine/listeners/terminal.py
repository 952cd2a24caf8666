"""What a person sees while a model trains: a bar on a terminal, plain lines in a file, on stderr in both cases.

Every finished epoch leaves one line: loss, validation metrics, time, speed, and whether it is the best so far. Tensors
are read at most four times a second, and only when there is a bar to show them in (or a line is due).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from opsin.engine.events import (
    CheckpointSaved,
    EpochDone,
    Evaluated,
    Event,
    Finished,
    Noted,
    RunStarted,
    StageStarted,
    StepDone,
    Warned,
)

NAMES = ("terminal",)

BAR_SECONDS = 0.25
LINE_SECONDS = 30.0
SHOWN = 4  # metrics in a line, the monitored one first


class Terminal:
    """Shows progress.

    Args:
        quiet: show warnings only.
        file: where to write; stderr by default.
    """

    def __init__(self, *, quiet: bool = False, file: TextIO | None = None) -> None:
        self.quiet, self.file = quiet, file or sys.stderr
        self._screen: _Screen | None = None
        self._started: RunStarted | None = None
        self._done: EpochDone | None = None  # an epoch whose line is not written yet
        self._evaluated: list[Evaluated] = []
        self._history: dict[str, Any] = {"last": "", "best": "", "best_epoch": -1, "monitor": ""}
        self._run_clock = self._epoch_clock = self._due = 0.0
        self._epoch_start = 0
        self._share = 1.0  # of the epoch, done since the run began or went on
        self._wait = BAR_SECONDS

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            if self._done is not None:
                self._epoch_line()
            now = time.monotonic()
            if now >= self._due:
                self._due = now + self._wait
                self._progress(event, now)
        elif isinstance(event, Warned):
            self._write(f"warning: {event.text}", "bold yellow")
        elif not self.quiet:
            self._rare(event)

    def state(self) -> dict[str, Any]:
        """The last and the best validation, which a resumed run shows on."""
        return dict(self._history)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Remember the validations of the checkpoint."""
        self._history.update(state)

    def close(self) -> None:
        """Write what is still to be said and leave the bar."""
        if self._done is not None:
            self._epoch_line()
        if self._screen is not None:
            self._screen.close()
            self._screen = None

    # Events -----------------------------------------------------------------------------------------------------------

    def _rare(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._begin(event)
        elif isinstance(event, EpochDone):
            self._done, self._evaluated = event, []
            self._share = (event.step - self._epoch_start) / self._steps
            if self._screen is not None:
                self._screen.show(event.epoch, self._steps, "validating")
        elif isinstance(event, Evaluated):
            self._evaluated.append(event)
            self._remember(event)
        elif self._done is not None:
            self._epoch_line()
        if isinstance(event, Noted):
            self._write(event.text)
        if isinstance(event, StageStarted):
            self._write(f"stage {event.number} of {event.stages}, {event.name}: trains {event.trained}")
        if isinstance(event, Finished):
            self.close()
            self._write(self._last_line(event))
        if isinstance(event, EpochDone | Evaluated | CheckpointSaved) and event.step % self._steps == 0:
            self._mark(event.step)

    def _mark(self, step: int) -> None:
        """The clock of an epoch runs from here, so that validation does not count as training."""
        self._epoch_clock, self._epoch_start = time.monotonic(), step

    def _begin(self, event: RunStarted) -> None:
        self._started, self._run_clock = event, time.monotonic()
        self._due = 0.0
        self._mark(event.step)
        if _is_terminal(self.file):
            self._screen, self._wait = _Screen(self.file, event), BAR_SECONDS
        else:
            self._wait, self._due = LINE_SECONDS, time.monotonic() + LINE_SECONDS
        where = f" into {event.folder}" if event.folder is not None else ""
        what = f"{event.epochs} epochs, {event.steps_per_epoch} steps and {event.samples_per_epoch} samples each{where}"
        begins = f"resuming at step {event.step}, epoch {event.epoch + 1}" if event.step else "training"
        self._write(f"{begins}: {what}" if event.epochs else f"nothing to train in steps{where}")
        if not event.step and "weights" in event.details:
            self._write(f"starting from {event.details['weights']}")

    def _progress(self, event: StepDone, now: float) -> None:
        if self.quiet or self._started is None:
            return
        text = self._status(event, now)
        if self._screen is not None:
            self._screen.show(event.epoch, event.step_in_epoch, text)
        elif event.step_in_epoch < self._steps:
            where = f"epoch {event.epoch + 1}/{self._started.epochs}  step {event.step_in_epoch}/{self._steps}"
            self._write(f"{where}  {text}")

    @property
    def _steps(self) -> int:
        return max(1, self._started.steps_per_epoch) if self._started is not None else 1

    # Words ------------------------------------------------------------------------------------------------------------

    def _status(self, event: StepDone, now: float) -> str:
        started = self._started
        if started is None:
            return ""
        words = [_losses(event.parts)]
        if self._history["last"]:
            words.append(f"val {self._history['last']} (best {self._history['best']})")
        done = event.step - self._epoch_start
        if done < 3 and now - self._epoch_clock < 1.0:  # too early to speak of speed
            return "  ".join([*words, f"lr {event.lr:.3g}"])
        pace = (now - self._epoch_clock) / max(done, 1)  # seconds a step, in this epoch
        whole = (now - self._run_clock) / max(event.step - started.step, 1)  # with validation and all
        images = started.samples_per_epoch / self._steps / max(pace, 1e-9)
        left = whole * (started.epochs * self._steps - event.step)
        words += [f"{_rate(images)} images/s", f"lr {event.lr:.3g}"]
        words.append(f"left {duration(pace * (self._steps - event.step_in_epoch))} of epoch, {duration(left)} in all")
        return "  ".join(word for word in words if word)

    def _remember(self, event: Evaluated) -> None:
        if event.part != "val":
            return
        value = event.metrics.get(event.monitor)
        number = f"{value:.4g}" if value is not None else ""
        self._history["last"] = f"{event.monitor} {number}" if number else ""
        if event.best:
            self._history.update(best=number, best_epoch=event.epoch, monitor=event.monitor)

    def _epoch_line(self) -> None:
        done, started = self._done, self._started
        self._done = None
        if done is None or started is None:
            return
        words = [f"epoch {done.epoch + 1}/{started.epochs}", f"train {_losses(done.metrics)}"]
        best = False
        for event in self._evaluated:
            first = {event.monitor: event.metrics[event.monitor]} if event.monitor in event.metrics else {}
            words.append(f"{event.part} {_named({**first, **event.metrics})}")
            best = best or event.best
        words.append(f"{done.seconds:.1f} s")
        words.append(f"{_rate(self._share * done.samples / max(done.seconds, 1e-9))} images/s")
        self._write("  ".join(words + ["* best"] * best))

    def _last_line(self, event: Finished) -> str:
        said = "stopped early, the validation got no better" if event.reason == "early stopping" else event.reason
        line = f"{said}, {event.step} steps in {duration(event.seconds)}."
        if self._history["best"]:
            epoch = self._history["best_epoch"] + 1
            when = f"in epoch {epoch}" if epoch else "before step 1"
            line += f" Best: val {self._history['monitor']} {self._history['best']} {when}."
        if event.reason == "interrupted" and self._started is not None and self._started.folder is not None:
            line += f" Go on with: opsin train --resume {self._started.folder}"
        return line

    def _write(self, line: str, style: str = "") -> None:
        if self.quiet and not style:
            return
        if self._screen is not None:
            self._screen.line(line, style)
        elif style and _is_terminal(self.file):
            _console(self.file).print(line, style=style, markup=False, highlight=False, soft_wrap=True)
        else:
            self.file.write(line + "\n")
            self.file.flush()


class _Screen:
    """A progress bar under permanent lines; drawn only when asked, so that no thread competes with training."""

    def __init__(self, file: TextIO, started: RunStarted) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        self.console = _console(file)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True)),
            console=self.console,
            auto_refresh=False,
            redirect_stdout=False,
            transient=True,
        )
        self.epochs = started.epochs
        self.task = self.progress.add_task("", total=started.steps_per_epoch, text="")
        self.progress.start()

    def show(self, epoch: int, step: int, text: str) -> None:
        """Draw the bar."""
        title = f"epoch {epoch + 1}/{self.epochs}"
        self.progress.update(self.task, description=title, completed=step, text=text, refresh=True)

    def line(self, text: str, style: str) -> None:
        """A line that stays, above the bar."""
        self.console.print(text, style=style or None, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bar."""
        self.progress.stop()


def _console(file: TextIO) -> Any:
    from rich.console import Console

    return Console(file=file)


def _is_terminal(file: TextIO) -> bool:
    if not (hasattr(file, "isatty") and file.isatty()):
        return False
    return not _console(file).is_dumb_terminal


def _named(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {float(value):.4g}" for name, value in list(values.items())[:SHOWN])


def _losses(values: Mapping[str, Any]) -> str:
    return _named({"loss": next(iter(values.values()))} if len(values) == 1 else values)


def _rate(images: float) -> str:
    return f"{images:,.0f}" if images >= 10 else f"{images:.2f}"


def duration(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 3:04:05."""
    whole = round(max(seconds, 0.0))
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"


def build(folder: Path | None, *, quiet: bool = False) -> Terminal:
    """The listener on stderr; it needs no folder."""
    del folder
    return Terminal(quiet=quiet)
