"""Is the export the model? Both run over the same inputs, and everything that differs is measured.

The inputs are real pictures (prepared exactly as for prediction), random ones, and edges: all pixels at the lowest and
at the highest value, in batches of one, two and an odd number. The relative error of a picture is the largest
difference of an output divided by the largest value that the model gives there, so that large outputs of one picture
hide nothing in another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opsin.results.rows import Rows
from opsin.task import Sample, Task

Arrays = Mapping[str, NDArray[Any]]
Runner = Callable[[Any], Arrays]
Pairs = Sequence[tuple[Arrays, Arrays]]  # what the model gave, what the export gave

SAMPLES = 64  # real pictures that are compared
TOLERANCE = 1e-4  # relative, for graphs that compute in float32
FLOOR = 1e-3  # of the largest output over all pictures: smaller ones are measured against this
CHUNK = 16


@dataclass
class OutputError:
    """How far one output of the export lies from the model's, over some pictures.

    Args:
        max_abs, mean_abs: of the difference.
        max_relative: see the module's text; infinite where one of the two is not finite and the other is.
        largest: the model's largest absolute value.
    """

    max_abs: float
    mean_abs: float
    max_relative: float
    largest: float


@dataclass
class Parity:
    """What came of the comparison; stored as `parity.json` in the export.

    Args:
        passed: whether every relative error is within tolerance.
        tolerance: largest relative error that is accepted.
        reason: why it did not pass, in words.
        outputs: by name, over everything.
        checks: the same by kind of input: pictures, random, edges.
        compared: number of inputs of each kind.
        metrics: name to value of the model, value of the export, difference; over the real pictures that have targets.
        flipped: ids of real pictures for which the export says something else than the model.
        runtime: what ran the export.
    """

    passed: bool
    tolerance: float
    reason: str = ""
    outputs: dict[str, OutputError] = field(default_factory=dict)
    checks: dict[str, dict[str, OutputError]] = field(default_factory=dict)
    compared: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    flipped: list[str] = field(default_factory=list)
    runtime: str = ""

    @property
    def max_relative(self) -> float:
        """The largest relative error of any output."""
        return max((one.max_relative for one in self.outputs.values()), default=float("inf"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an error that is not finite becomes null."""
        found: dict[str, Any] = _finite({**asdict(self), "max_relative": self.max_relative})
        return found


def compare(
    task: Task[Any],
    model: Runner,
    export: Runner,
    samples: Sequence[Sample] = (),
    *,
    batch: int | None = None,
    tolerance: float = TOLERANCE,
    runtime: str = "",
) -> Parity:
    """Run the model and its export over the same inputs.

    Args:
        task: prepares pictures, turns outputs into results and judges them.
        model, export: inputs (B, C, H, W) to arrays by name.
        samples: real pictures, at most the first 64 are used; with targets, metrics are compared too.
        batch: the number of pictures that the export is fixed to.
        tolerance: largest relative error that passes.
        runtime: name and version of what runs the export.
    """
    found = Parity(False, tolerance, runtime=runtime)
    pairs: dict[str, list[tuple[Arrays, Arrays]]] = {}
    for kind, inputs in made_inputs(task, batch):
        pairs.setdefault(kind, []).append((model(inputs), export(inputs)))
        found.compared[kind] = found.compared.get(kind, 0) + len(inputs)
    rows: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for start in range(0, min(len(samples), SAMPLES), CHUNK):
        _compare_pictures(task, model, export, samples[start : min(start + CHUNK, SAMPLES)], found, pairs, rows)
    everything = [pair for some in pairs.values() for pair in some]
    found.reason = _unlike(everything)
    if found.reason:
        return found
    scale = {name: max(_largest(mine[name]) for mine, _ in everything) for name in everything[0][0]}
    found.checks = {kind: _errors(some, scale) for kind, some in pairs.items()}
    found.outputs = _errors(everything, scale)
    found.metrics = _metrics(task, rows)
    found.passed = found.max_relative <= tolerance
    if not found.passed:
        worst = max(found.outputs, key=lambda name: found.outputs[name].max_relative)
        found.reason = f"output '{worst}' differs by {found.max_relative:.2e} of its value, more than {tolerance:.2e}"
    return found


def made_inputs(task: Task[Any], batch: int | None) -> Iterator[tuple[str, Tensor]]:
    """Kind and inputs (B, C, H, W) that need no data: random, and with all pixels at either end of their range."""
    sizes = (batch,) if batch is not None else (1, 2, 5)
    for size in sizes:
        yield "random", task.example_inputs(size)
    example = task.example_inputs(sizes[0])
    for value in _range(task, example):
        yield "edges", torch.full(example.shape, value).to(example.dtype)


def _range(task: Task[Any], example: Tensor) -> tuple[float, float]:
    if task.spec is not None:
        return float(task.spec.range[0]), float(task.spec.range[1])
    if example.is_floating_point():
        return float(example.min()), float(example.max())
    return 0.0, float(torch.iinfo(example.dtype).max)


def _compare_pictures(
    task: Task[Any], model: Runner, export: Runner, samples: Sequence[Sample], found: Parity,
    pairs: dict[str, list[tuple[Arrays, Arrays]]], rows: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:  # fmt: skip
    prepared = [task.prepare(sample, 0, train=False) for sample in samples]
    batch = task.collate(prepared, np.zeros(len(prepared), np.uint64))
    outputs = model(batch.inputs), export(batch.inputs)
    pairs.setdefault("pictures", []).append(outputs)
    found.compared["pictures"] = found.compared.get("pictures", 0) + len(batch)
    if _unlike([outputs]) or not all(np.isfinite(values).all() for one in outputs for values in one.values()):
        return  # there is nothing to turn into results; the errors say so
    mine, theirs = (task.predict_step(one, batch.ids, batch.geometry) for one in outputs)
    found.flipped += [name for name, a, b in zip(batch.ids, mine, theirs) if said(a) != said(b)]
    rows += [(task.score(a, t), task.score(b, t)) for a, b, t in zip(mine, theirs, batch.originals) if t]


def said(result: Any) -> Any:
    """What a result says in words, without its numbers and without the order of lists: equal for equal decisions."""
    return _words(result.to_dict() if hasattr(result, "to_dict") else result)


def _words(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _words(part) for name, part in value.items() if not isinstance(part, float)}
    if isinstance(value, list | tuple):
        return sorted((_words(part) for part in value if not isinstance(part, float)), key=repr)
    return value


def _unlike(pairs: Pairs) -> str:
    """What is so different that numbers cannot be compared, in words; empty if nothing."""
    for mine, theirs in pairs:
        if list(mine) != list(theirs):
            return f"the model's outputs are {list(mine)}, the export's {list(theirs)}"
        for name, values in mine.items():
            if values.shape != theirs[name].shape:
                return f"output '{name}' of the model is {values.shape}, that of the export {theirs[name].shape}"
    return ""


def _largest(values: NDArray[Any]) -> float:
    sizes = np.abs(values.astype(np.float64))
    return float(sizes[np.isfinite(sizes)].max(initial=0.0))


def _errors(pairs: Pairs, scale: Mapping[str, float]) -> dict[str, OutputError]:
    found = {}
    for name in pairs[0][0]:
        differences, relative, largest = [], [0.0], [0.0]
        for mine, theirs in pairs:
            a, b = mine[name].astype(np.float64), theirs[name].astype(np.float64)
            same = (a == b) | (np.isnan(a) & np.isnan(b))  # two equal infinities differ by nothing
            with np.errstate(invalid="ignore"):
                difference = np.where(same, 0.0, np.abs(a - b))
            difference = np.where(np.isnan(difference), np.inf, difference).reshape(len(a), -1)  # (B, ...) -> (B, n)
            sizes = np.where(np.isfinite(a), np.abs(a), 0.0).reshape(len(a), -1).max(axis=1, initial=0.0)  # (B,)
            floor = max(FLOOR * scale[name], float(np.finfo(np.float32).tiny))
            differences.append(difference.ravel())
            relative.append(float((difference.max(axis=1, initial=0.0) / np.maximum(sizes, floor)).max(initial=0.0)))
            largest.append(float(sizes.max(initial=0.0)))
        flat = np.concatenate(differences)
        mean = float(flat.mean()) if len(flat) else 0.0
        found[name] = OutputError(float(flat.max(initial=0.0)), mean, max(relative), max(largest))
    return found


def _metrics(task: Task[Any], rows: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, dict[str, float]]:
    if not rows:
        return {}
    mine, theirs = (task.summarize(Rows.collect([pair[place] for pair in rows])) for place in (0, 1))
    values = {name: (float(np.asarray(mine[name])), float(np.asarray(theirs[name]))) for name in mine}
    return {name: {"model": a, "export": b, "difference": b - a} for name, (a, b) in values.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
