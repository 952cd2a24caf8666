"""Export a bundle to another runtime: one target per file, each compared with the model before it is handed over.

    model.onnx | model.xml   the graph: raw pixels in, outputs by the names of the model's NamedTuple; its metadata hold
                             task, settings, class names, license, lineage and the fingerprint of the weights
    model.json               the same, to be read by people and by predict.py
    parity.json              how far it lies from the model
    predict.py               predicts pictures without torch and without opsin (needs requirements.txt)

Nothing here knows a task: the graph is traced from `task.example_inputs`, judged by `task.predict_step`, `score` and
`summarize`. Importing this package, and listing the targets, loads no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from opsin import __version__
from opsin.errors import ConfigError
from opsin.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

    from opsin.bundle import Bundle
    from opsin.export.parity import Parity
    from opsin.task import Sample

targets = Registry("export target", "opsin.export")

RECORD = "model.json"
INPUT = "images"
FORMAT_VERSION = 1


class Traced(NamedTuple):
    """A model as a graph, before it is written by a target.

    `program` takes one tensor like `example`, (B, C, H, W) of raw pixels, and gives a tuple of tensors called
    `outputs`. `batch` is the B that it is fixed to, or None when it takes any.
    """

    program: ExportedProgram
    example: Tensor
    outputs: tuple[str, ...]
    batch: int | None


@dataclass(frozen=True)
class Target:
    """What a target's file gives as `build`.

    Args:
        file: name of the file that the runtime reads.
        runtime: registered runtime that runs it, for the comparison and in the export's own predict.py.
        write: writes a traced model with metadata (names to text) to a path.
    """

    file: str
    runtime: str
    write: Callable[[Traced, Mapping[str, str], Path], None]


@dataclass
class Report:
    """What came of an export.

    Args:
        target: its name.
        folder: where it lies; None when it was refused and removed.
        parity: the comparison with the model.
        bytes: of the graph with its weights.
        seconds: for writing and comparing.
        notes: what a person should know.
    """

    target: str
    folder: Path | None
    parity: Parity
    bytes: int
    seconds: float
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the export is within tolerance; if not, it was refused."""
        return self.parity.passed

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "target": self.target,
            "passed": self.passed,
            "folder": None if self.folder is None else str(self.folder),
            "bytes": self.bytes,
            "seconds": self.seconds,
            "notes": self.notes,
            "parity": self.parity.to_dict(),
        }


def export(
    bundle: Bundle, to: str, out: Path | str, *, samples: Sequence[Sample] = (), tolerance: float | None = None,
    batch: int | None = None, threads: int | None = None, overwrite: bool = False, keep_failed: bool = False,
) -> Report:  # fmt: skip
    """Write a bundle for another runtime and compare it with the model.

    An export above tolerance is refused: nothing stays at `out` (with `keep_failed` it lies in `OUT-refused`), and an
    earlier export there is left as it was.

    Args:
        bundle: the model.
        to: name of the target, e.g. "onnx".
        out: folder of the export, made here.
        samples: real pictures, with targets if there are any; up to 64 are compared besides random and edge inputs.
        tolerance: largest relative error that is accepted; by default 1e-4.
        batch: fix the number of pictures per call; by default any number.
        threads: of the runtime during the comparison.
        overwrite: replace an earlier export in `out`.
        keep_failed: keep a refused export beside `out`, under a name that says so.

    Raises:
        ConfigError: if `out` exists, or the model cannot be traced.
        MissingExtra: if a package that the target needs is not installed.
        UnknownName: if there is no such target.
    """
    from opsin.export import parity

    started, target, out = time.monotonic(), targets.get(to), Path(out)
    if bundle.spec.answer != "classified":
        raise ConfigError(
            f"Classifiers can be exported; the task of this model is {bundle.task_name}, whose boxes and points no export holds yet. "
            "The bundle itself runs with opsin predict, and with opsin.load(...).predict in Python."
        )
    _check_place(out, overwrite)
    tolerance = parity.TOLERANCE if tolerance is None else tolerance
    if not tolerance > 0:
        raise ConfigError(f"tolerance = {tolerance}: expected a positive number.")
    aside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        model = _plain_model(bundle)
        traced = trace(bundle.task, model, batch)
        notes = _write(bundle, to, target, traced, aside)
        found = _compare(bundle, model, target, aside, samples, batch, tolerance, threads)
        size = sum(path.stat().st_size for path in aside.glob(f"{Path(target.file).stem}.*") if path.name != RECORD)
        folder = _hand_over(aside, out, found.passed, keep_failed)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Report(to, folder, found, size, time.monotonic() - started, notes + _notes(samples, found))


def _write(bundle: Bundle, to: str, target: Target, traced: Traced, folder: Path) -> list[str]:
    """Graph, record and reader; returns notes."""
    from opsin.export import standalone

    record = {**describe(bundle, traced), "target": to, "file": target.file, "runtime": target.runtime}
    target.write(traced, as_text(record), folder / target.file)
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return standalone.write(folder, bundle.task_name, target.runtime)


def _compare(
    bundle: Bundle, model: Any, target: Target, folder: Path, samples: Sequence[Sample], batch: int | None,
    tolerance: float, threads: int | None,
) -> Parity:  # fmt: skip
    """Run the model and what was written over the same inputs; the result is kept beside the graph."""
    from opsin.export import parity
    from opsin.runtimes import runtimes
    from opsin.runtimes.torch import TorchRuntime

    runner = runtimes.get(target.runtime)(folder / target.file, threads=threads)
    found = parity.compare(
        bundle.task, TorchRuntime(model), runner, samples,
        batch=batch, tolerance=tolerance, runtime=f"{target.runtime} {runner.version}",
    )  # fmt: skip
    (folder / "parity.json").write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    return found


def _check_place(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RECORD).is_file():
        raise ConfigError(f"{out} exists and is not an export. Choose another folder with --out.")
    if not overwrite:
        raise ConfigError(f"{out} holds an export already. Choose another folder with --out, or pass --overwrite.")


def _hand_over(aside: Path, out: Path, passed: bool, keep_failed: bool) -> Path | None:
    if not passed and not keep_failed:
        return None
    place = out if passed else out.with_name(f"{out.name}-refused")
    shutil.rmtree(place, ignore_errors=True)
    aside.rename(place)
    return place


def _notes(samples: Sequence[Sample], found: Parity) -> list[str]:
    notes = []
    if not samples:
        notes.append("No real pictures were given: the comparison is over random and edge inputs only.")
    if found.flipped:
        count = f"{len(found.flipped)} of {found.compared['pictures']}"
        notes.append(f"{count} pictures got another answer: {', '.join(found.flipped[:5])}.")
    return notes


# From a bundle to a graph ---------------------------------------------------------------------------------------------


def _plain_model(bundle: Bundle) -> Any:
    """A copy of the model on the processor in float32 and evaluation mode."""
    import copy

    import torch

    return copy.deepcopy(bundle.model).to("cpu", torch.float32).eval()


def trace(task: Any, model: Any, batch: int | None = None) -> Traced:
    """Record the model's graph on the task's example inputs.

    Raises:
        ConfigError: if it cannot be recorded, e.g. because Python code in it depends on pixel values.
    """
    import torch

    if batch is not None and batch < 1:
        raise ConfigError(f"--batch {batch}: expected a positive number, or dynamic.")
    example = task.example_inputs(batch or 2)
    with torch.inference_mode():
        outputs = model(example)
    named = outputs._asdict() if hasattr(outputs, "_asdict") else {"logits": outputs}
    names = tuple(name for name, value in named.items() if isinstance(value, torch.Tensor))

    class Named(torch.nn.Module):
        """The model with its named outputs as a tuple, without those that are no tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = self.model(images)
            return tuple(getattr(outputs, name) for name in names) if hasattr(outputs, "_asdict") else (outputs,)

    axes = None if batch is not None else ({0: torch.export.Dim("batch", min=1, max=65536)},)
    try:
        program = torch.export.export(Named().eval(), (example,), dynamic_shapes=axes, strict=False)
    except Exception as error:  # the tracer raises many kinds
        advice = "" if batch is not None else " If it depends on the number of pictures, fix that with --batch N."
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise ConfigError(f"The model cannot be traced ({reason}).{advice}") from error
    return Traced(program, example, names, batch)


# What travels with the weights ----------------------------------------------------------------------------------------


def describe(bundle: Bundle, traced: Traced) -> dict[str, Any]:
    """Everything about a model but its weights, as JSON values."""
    settings = bundle.task.settings.model_dump(mode="json")
    pixel_type = str(traced.example.dtype).removeprefix("torch.")
    return {
        "format": "opsin-export",
        "version": FORMAT_VERSION,
        "opsin": __version__,
        "task": bundle.task_name,
        "settings": settings,
        "class_names": class_names(settings),
        "model": bundle.spec.to_dict(),
        "input": {"name": INPUT, "dtype": pixel_type, "shape": [traced.batch, *traced.example.shape[1:]]},
        "outputs": list(traced.outputs),
        "reduce_to": bundle.task.reduce_to,
        "license": bundle.info.get("license", "unknown"),
        "lineage": bundle.info.get("lineage", {}),
        "metrics": bundle.info.get("metrics", {}),
        "fingerprint": fingerprint(bundle),
    }


def class_names(settings: Any) -> dict[str, list[str]]:
    """Every list of class names in a task's settings, by the name of what holds it."""
    found: dict[str, list[str]] = {}
    if isinstance(settings, Mapping):
        if isinstance(settings.get("class_names"), list | tuple):
            found[str(settings.get("name", "classes"))] = list(settings["class_names"])
        for part in settings.values():
            found |= class_names(part)
    elif isinstance(settings, list | tuple):
        for part in settings:
            found |= class_names(part)
    return found


def fingerprint(bundle: Bundle) -> str:
    """SHA-256 of the weights, the one that stands in the bundle's `bundle.json`."""
    from safetensors.torch import save

    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in bundle.model.state_dict().items()}
    return hashlib.sha256(save(tensors)).hexdigest()


def as_text(record: Mapping[str, Any]) -> dict[str, str]:
    """A record as metadata of a graph: text by name, JSON (in ASCII) where the value is no text."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in record.items()}


__all__ = ["Report", "Target", "Traced", "class_names", "describe", "export", "fingerprint", "targets", "trace"]
