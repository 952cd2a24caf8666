"""From batches to rows: run a model, turn outputs into results, score them against targets; exact over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from opsin.engine.distributed import Processes
from opsin.results.rows import Rows
from opsin.task import Batch, Task

Runner = Callable[[Any], Mapping[str, NDArray[Any]]]


def results(task: Task[Any], runner: Runner, batches: Iterable[Batch]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """One (result, target) per sample, in order.

    Args:
        runner: model inputs (B, C, H, W) to arrays by name; any runtime.
        batches: evaluation batches of this process.
    """
    for batch in batches:
        outputs = runner(batch.inputs)
        yield from zip(task.predict_step(outputs, batch.ids, batch.geometry), batch.originals)


def evaluate(task: Task[Any], runner: Runner, batches: Iterable[Batch], processes: Processes | None = None) -> Rows:
    """Rows of all processes, ordered by sample id.

    Raises:
        DataError: if there is nothing to evaluate.
    """
    rows = [task.score(result, target) for result, target in results(task, runner, batches)]
    shares = (processes or Processes()).gather_objects(rows)
    return Rows.collect([row for share in shares for row in share]).sorted_by_id()
