"""What a report is made from: plain values, so that it can be made of a run, or of anything with the same facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from opsin.results.rows import Rows
from opsin.results.section import Note, Picture
from opsin.task import Task

ON_VALIDATION = "val"


def no_picture(picture: Picture) -> None:
    """For reports without pictures."""
    del picture


@dataclass
class ReportInputs:
    """Everything a report may show; what is missing is left out, and the page says what it lacks.

    Args:
        run: the run's folder as a person would type it.
        recipe: `recipe.json`.
        data: `data.json`.
        environment: `environment.json`.
        state: `run.json`.
        evaluations: part ("test", "val", or "other-NAME") to what `evaluation-PART.json` holds.
        bundle: `bundle.json` of the best model, empty before there is one.
        looks: all looks at the test part so far, oldest first (`Look` as dictionaries).
        rows: part to its rows.
        metrics: path of `metrics.jsonl`.
        task: the task with its settings, None when training has not come that far.
        picture: draws a picture of a gallery, None when there is none to show.
        notes: further things that a reader must be told.
    """

    run: str
    recipe: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    bundle: Mapping[str, Any] = field(default_factory=dict)
    looks: Sequence[Mapping[str, Any]] = ()
    rows: Mapping[str, Rows] = field(default_factory=dict)
    metrics: Path | None = None
    task: Task[Any] | None = None
    picture: Callable[[Picture], Image.Image | None] = no_picture
    notes: Sequence[Note] = ()

    @property
    def finished(self) -> bool:
        """Whether training has ended and there is a model."""
        return self.state.get("status") == "done"

    @property
    def part(self) -> str | None:
        """The part whose numbers stand at the top: test when it was opened, else validation, else None."""
        if "test" in self.evaluations:
            return "test"
        return ON_VALIDATION if self.judged.get("metrics") else None

    @property
    def judged(self) -> Mapping[str, Any]:
        """The evaluation of that part; of the validation part, what training left in `run.json` is enough."""
        for part in ("test", ON_VALIDATION):
            if part in self.evaluations:
                return self.evaluations[part]
        metrics = self.state.get("validation") or {}
        if not metrics:
            return {}
        train = self.state.get("train", {})
        gap = {
            k: train[k] - one["value"]
            for k, one in metrics.items()
            if train.get(k) is not None and one["value"] is not None
        }
        samples = max((one["n"] for one in metrics.values()), default=0)
        return {"split": ON_VALIDATION, "samples": samples, "metrics": metrics, "train": train, "gap": gap}

    @property
    def monitor(self) -> str | None:
        """Name of the headline metric."""
        if self.task is not None:
            return self.task.monitor.name
        return self.judged.get("monitor")

    @property
    def higher_is_better(self) -> bool:
        """Direction of the headline metric."""
        return self.task is None or self.task.monitor.higher_is_better
