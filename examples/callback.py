"""Your own callback: any callable that takes an event.

    python examples/callback.py

Events are typed (`opsin.engine.events`); ask with `isinstance` for those that matter. The same function can be named on
the command line, as a listener that a factory makes: `run.listeners='["terminal", "examples/callback.py:build"]'`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import opsin
from opsin.data.build import from_arrays
from opsin.engine.events import EpochDone, Evaluated, Event, Finished, Warned


def show(event: Event) -> None:
    """Print one line per epoch, and whatever a person should know."""
    if isinstance(event, EpochDone):
        losses = ", ".join(f"{name} {value:.3f}" for name, value in event.metrics.items())
        print(f"epoch {event.epoch + 1}: loss {losses}, {event.samples / event.seconds:.0f} pictures/s")
    elif isinstance(event, Evaluated):
        print(
            f"  {event.part} {event.monitor} {event.metrics[event.monitor]:.3f}{'  (best so far)' if event.best else ''}"
        )
    elif isinstance(event, Warned):
        print(f"  note: {event.text}")
    elif isinstance(event, Finished):
        print(f"finished ({event.reason}) after {event.step} steps")


def build() -> Callable[[Event], None]:
    """For `run.listeners`: a factory that gives a listener; it may take the run folder as its argument."""
    return show


def main() -> None:
    """Train on arrays in memory, with the callback."""
    digits = load_digits()
    images = np.round(digits.images[:600] * (255 / 16)).astype(np.uint8)
    data = from_arrays(images, digits.target[:600], name="digits")
    with tempfile.TemporaryDirectory() as place:
        opsin.train(
            "classify", data=data, model="mlp", epochs=3, out=Path(place) / "run", quiet=True, callbacks=[show]
        )  # fmt: skip


if __name__ == "__main__":
    main()
