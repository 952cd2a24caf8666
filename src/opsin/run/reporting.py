"""Gather what a run knows into its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from opsin.analyze.check.facts import in_eight_bits
from opsin.data.dataset import Dataset
from opsin.data.ledger import Ledger
from opsin.data.spec import spec_of
from opsin.errors import DataError, OpsinError
from opsin.report import ReportInputs, no_picture, write_report
from opsin.report.marks import marked
from opsin.results.rows import Rows
from opsin.results.section import Note, Picture
from opsin.run import Run
from opsin.task import Task, tasks

NAME = "report.html"
DECODED = 256  # large JPEG files are decoded at a smaller size, not below this


def report_run(run: Run, out: Path | None = None) -> Path:
    """Write the report of a run and return its path; `report.md` beside it has the same words.

    Works at any time: before training has ended, and while the test part is still sealed.

    Args:
        run: the run.
        out: the HTML file; by default `report.html` in the run's folder.

    Raises:
        ConfigError: if `out` is not named .html, or a file in its place is not a report.
        DataError: if a file of the run is damaged.
    """
    return write_report(gather(run), run.path / NAME if out is None else Path(out))


def gather(run: Run) -> ReportInputs:
    """All that the run's folder and the ledger of its data hold."""
    evaluations = {
        path.stem.removeprefix("evaluation-"): run.folder.read(path.name)
        for path in sorted(run.path.glob("evaluation-*.json"))
    }
    rows = {path.stem: Rows.load(path) for path in sorted((run.path / "predictions").glob("*.npz"))}
    state, notes = run.state, list[Note]()
    inputs = ReportInputs(
        run=str(run.path),
        recipe=run.folder.read("recipe.json"),
        data=_optional(run, "data.json"),
        environment=_optional(run, "environment.json"),
        state=state,
        evaluations=evaluations,
        bundle=_optional(run, "bundle/bundle.json"),
        looks=_looks(run, evaluations, notes),
        rows=rows,
        metrics=run.path / "metrics.jsonl",
        task=_task(run, state),
        notes=notes,
    )
    inputs.picture = _pictures(run, inputs, notes)
    return inputs


def _optional(run: Run, name: str) -> dict[str, Any]:
    return run.folder.read(name) if (run.path / name).exists() else {}


def _task(run: Run, state: dict[str, Any]) -> Task[Any] | None:
    """The task with its settings (class names, operating points), without building the model."""
    if "task_settings" not in state:
        return None
    kind = tasks.get(run.recipe.task_name)
    made: Task[Any] = kind(kind.settings_type.model_validate(state["task_settings"]))
    return made


def _looks(run: Run, evaluations: dict[str, Any], notes: list[Note]) -> list[dict[str, Any]]:
    """Looks from the ledger as it is now; from the last evaluation when the data are out of reach."""
    known: list[dict[str, Any]] = evaluations.get("test", {}).get("looks_at_test", [])
    try:
        split = run.data.split
        looks = Ledger(run.recipe.data.path).looks(split.test_fingerprint, split.ids_of("test"))
        found = [asdict(look) for look in looks]
    except (OpsinError, OSError) as error:
        notes.append(
            Note(
                "no_ledger", f"The ledger of looks at the test part cannot be read; the count may be too small. {error}"
            )
        )
        return known
    if len(found) < len(known):
        notes.append(
            Note(
                "lost_looks",
                f"The ledger of the data holds {len(found)} looks at the test part, the last evaluation saw "
                f"{len(known)}: looks were removed.",
            )
        )
        return known
    return found


def _pictures(run: Run, inputs: ReportInputs, notes: list[Note]) -> Callable[[Picture], Image.Image | None]:
    """A function that draws a picture of a gallery as a person sees it; pictures are read when asked for."""
    try:
        dataset = run.data.dataset
    except (OpsinError, OSError) as error:
        notes.append(Note("no_pictures", f"Pictures cannot be shown. {error}"))
        return no_picture
    places = {name: i for i, name in enumerate(dataset.ids)}
    rows = inputs.rows.get(inputs.part or "")
    lines = {} if rows is None else {name: i for i, name in enumerate(rows.ids.tolist())}

    def picture(one: Picture) -> Image.Image | None:
        found = _picture(dataset, places[one.id], DECODED if one.box is None else None) if one.id in places else None
        if found is None:
            return None
        image, size = found
        marks = inputs.task.marks(rows.row(lines[one.id])) if inputs.task and rows and one.id in lines else []
        return marked(image, size, marks, one.box) if marks or one.box else image

    return picture


def _picture(dataset: Dataset, place: int, reduce_to: int | None) -> tuple[Image.Image, tuple[int, int]] | None:
    """A picture and (H, W) of its original."""
    try:
        sample = dataset.read(place, reduce_to=reduce_to)
    except (DataError, OSError):
        return None
    image = sample.image
    spec = dataset.spec if image.dtype == torch.float32 else spec_of(image)
    pixels = in_eight_bits(image, spec).permute(1, 2, 0).contiguous().numpy()  # (C, H, W) -> (H, W, C)
    drawn = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
    return drawn, sample.original_size or (drawn.height, drawn.width)
