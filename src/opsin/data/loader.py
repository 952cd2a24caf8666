"""From a data set to batches: which samples, in which order, with which keys; read, prepared and collated.

What a batch holds depends on (seed, epoch, global position) alone. Worker processes, the cache, the number of training
processes and the fast path change how fast it comes, nothing else (tests/unit/test_loader.py compares bits).

Two paths give the same batches:

* decode path: every sample is read, prepared and collated, here or in worker processes (`opsin.data.feed`);
* fast path: when `task.static_prepare` says that preparing a training sample uses no key, and all prepared samples have
  one size and fit in memory, they are prepared once, and a batch is then one gather from a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opsin import seeding
from opsin.data.cache import Cache
from opsin.data.feed import Feed, Order, Source
from opsin.errors import ConfigError
from opsin.memory import assumed_memory
from opsin.task import Batch, Geometry, Task

Indices = NDArray[np.int64]
Workers = int | Literal["auto"]


class TrainLoader:
    """Shuffled batches of one process's share, epoch after epoch.

    Args:
        dataset: what is read; has `read(i, reduce_to=None)`, `id(i)` and a length.
        indices: which samples of the data set, (N,).
        task: prepares and collates samples. Read if present: `static_prepare` (preparing a training sample uses no key)
            and `reduce_to` (short side in pixels below which a JPEG need not be decoded).
        batch_size: samples per step over all processes.
        seed: training seed.
        rank, world: this process and how many there are.
        least: fewest samples that a process takes of a batch; 2 where each normalizes its own share.
        workers: processes that decode; 0 decodes here, `auto` chooses by cores, cost and size.
        cache: keeps decoded pictures; one object may serve several loaders of the same data set.
        table_bytes: limit of the fast path's table; by default an eighth of the memory that is available.
        start_method: of worker processes (`fork`, `spawn`, `forkserver`); the platform's default if None.
        weights: (N,) how often each sample is wanted, relative to the others; an epoch keeps its length, and a sample
            that is due 1.3 times comes once or twice. By default all come once.

    Raises:
        ConfigError: if weights are not N positive numbers, or there are fewer samples, or a smaller batch, than processes.
    """

    def __init__(
        self,
        dataset: Any,
        indices: Indices,
        task: Task[Any],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        least: int = 1,
        workers: Workers = 0,
        cache: Cache | None = None,
        table_bytes: int | None = None,
        start_method: str | None = None,
        weights: NDArray[np.floating] | None = None,
    ) -> None:
        self.indices = np.asarray(indices, np.int64)
        self.weights = None if weights is None else _checked_weights(weights, len(self.indices))
        _check_rank(rank, world)
        if batch_size < world:
            raise ConfigError(f"run.batch_size={batch_size} is less than one sample for each of the {world} processes.")
        if len(self.indices) < world:
            raise ConfigError(
                f"{len(self.indices)} training samples for {world} processes: use at most one per sample."
            )
        self.task, self.batch_size, self.seed, self.rank, self.world = task, batch_size, seed, rank, world
        self.least = max(2, least * world)  # batch normalization has no statistics of a single sample
        source = Source(dataset, task, True, cache)
        self._batches = _Batches(source, self.indices, batch_size // world, workers, world, table_bytes, start_method)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; the last one is short, or a rest too small for a batch lengthens the one before it."""
        full, rest = divmod(len(self.indices), self.batch_size)
        return max(full + (rest >= self.least), 1)

    @property
    def samples_per_epoch(self) -> int:
        """Samples in an epoch over all processes."""
        return len(self.indices)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Give this process's share of every global batch of one epoch, from step `start` on."""
        order = seeding.numpy_generator(self.seed, number, "order").permutation(len(self.indices))
        if self.weights is not None:
            order = self._due(number, self.weights)[order]
        return self._batches.give(self._order(number, step, order) for step in range(start, self.steps_per_epoch))

    def _due(self, epoch: int, weights: NDArray[np.float64]) -> Indices:
        """Positions (N,) with repeats: systematic sampling, so each comes its expected number of times, rounded."""
        ends = np.cumsum(weights) / weights.sum() * len(weights)
        ends[-1] = len(weights)
        start = seeding.numpy_generator(self.seed, epoch, "weights").random()
        passed = np.ceil(ends - start).astype(np.int64)
        return np.repeat(np.arange(len(ends)), np.diff(passed, prepend=0))

    def _order(self, epoch: int, step: int, order: Indices) -> Order:
        last = step == self.steps_per_epoch - 1
        positions = np.arange(step * self.batch_size, len(order) if last else (step + 1) * self.batch_size)
        rows, keys = order[positions], seeding.keys(self.seed, epoch, positions)
        low, high = share(len(rows), self.rank, self.world)
        partners = self.task.partners(keys)
        if partners is None:
            return Order(rows[low:high], keys[low:high], high - low, None, int(keys[0]))
        wanted = np.asarray(partners, np.int64)[low:high]
        outside = np.unique(wanted[(wanted < low) | (wanted >= high)])
        local = np.concatenate([np.arange(low, high), outside])
        place = np.zeros(len(rows), np.int64)
        place[local] = np.arange(len(local))
        return Order(rows[local], keys[local], high - low, place[wanted], int(keys[0]))

    def close(self) -> None:
        """End worker processes; the loader can be used again and starts new ones."""
        self._batches.close()


class EvalLoader:
    """Batches of this process's contiguous share of the samples, in order, prepared as for prediction.

    Args: as for `TrainLoader`, except that batch_size counts the samples of one process.
    """

    def __init__(
        self,
        dataset: Any,
        indices: Indices,
        task: Task[Any],
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        workers: Workers = 0,
        cache: Cache | None = None,
        table_bytes: int | None = None,
        start_method: str | None = None,
    ) -> None:
        _check_rank(rank, world)
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: expected at least 1.")
        low, high = share(len(indices), rank, world)
        self.indices = np.asarray(indices, np.int64)[low:high]
        self.keys = seeding.keys(0, 0, np.arange(low, high), "evaluate")
        self.batch_size = batch_size
        source = Source(dataset, task, False, cache)
        self._batches = _Batches(source, self.indices, batch_size, workers, world, table_bytes, start_method)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        rows = np.arange(len(self.indices))
        cuts = [slice(i, i + self.batch_size) for i in range(0, len(rows), self.batch_size)]
        return self._batches.give(Order(rows[cut], self.keys[cut], len(rows[cut]), None) for cut in cuts)

    def close(self) -> None:
        """End worker processes; the loader can be used again and starts new ones."""
        self._batches.close()


def share(count: int, rank: int, world: int) -> tuple[int, int]:
    """Start and stop of the contiguous part of `count` things that belongs to a process; sizes differ by at most 1."""
    return count * rank // world, count * (rank + 1) // world


def _checked_weights(weights: NDArray[np.floating], count: int) -> NDArray[np.float64]:
    values = np.asarray(weights, np.float64)
    if values.shape != (count,) or not np.isfinite(values).all() or (values <= 0).any():
        raise ConfigError(f"Sample weights must be {count} positive numbers, one per training sample.")
    return values


def _check_rank(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise ConfigError(f"Process {rank} of {world}: the rank must be from 0 to {world - 1}.")


class _Batches:
    """Batches for orders, from the table if there is one, else by reading."""

    def __init__(
        self,
        source: Source,
        indices: Indices,
        batch_size: int,
        workers: Workers,
        world: int,
        table_bytes: int | None,
        start_method: str | None,
    ) -> None:
        self.source, self.indices, self.table_bytes, self.world = source, indices, table_bytes, world
        self.feed = Feed(source, indices, batch_size, workers, world, start_method)
        self.table: _Table | None = None
        self.undecided = len(indices) > 0

    def give(self, orders: Iterable[Order]) -> Iterator[Batch]:
        if self.undecided:
            self.table, self.undecided = self._make_table(), False
        if self.table is not None:
            yield from map(self.table.batch, orders)
        else:
            yield from self.feed.give(order._replace(rows=self.indices[order.rows]) for order in orders)

    def close(self) -> None:
        self.feed.close()

    def _make_table(self) -> _Table | None:
        if not getattr(self.source.task, "static_prepare", False):
            return None
        first = self.source.prepared(int(self.indices[0]), 0).inputs
        limit = assumed_memory() // (8 * self.world) if self.table_bytes is None else self.table_bytes
        if first.numel() * first.element_size() * len(self.indices) > limit:
            return None
        keys = np.zeros(_CHUNK, np.uint64)
        cuts = [self.indices[i : i + _CHUNK] for i in range(0, len(self.indices), _CHUNK)]
        batches = self.feed.give(Order(rows, keys[: len(rows)], len(rows), None) for rows in cuts)
        table = _Table.build(batches, len(self.indices))
        self.feed.close()  # its processes have nothing left to do
        return table


_CHUNK = 256  # samples collated at a time while the table is made


class _Column(NamedTuple):
    """Rows of one tensor; of interleaved pictures the rows are (H, W, C), so that a row is one run of memory."""

    rows: Tensor
    interleaved: bool

    @classmethod
    def like(cls, part: Tensor, count: int) -> _Column:
        interleaved = (
            part.ndim == 4 and not part.is_contiguous() and part.is_contiguous(memory_format=torch.channels_last)
        )
        shape = part.permute(0, 2, 3, 1).shape if interleaved else part.shape
        return cls(torch.empty((count, *shape[1:]), dtype=part.dtype), interleaved)

    def put(self, start: int, part: Tensor) -> bool:
        part = part.permute(0, 2, 3, 1) if self.interleaved else part
        if part.shape[1:] != self.rows.shape[1:] or part.dtype != self.rows.dtype:
            return False
        self.rows[start : start + len(part)] = part
        return True

    def take(self, index: Tensor) -> Tensor:
        chosen = self.rows.index_select(0, index)
        return chosen.permute(0, 3, 1, 2) if self.interleaved else chosen


class _Table:
    """All prepared samples of a loader: columns of tensors and lists, in the layout that `task.collate` gives."""

    def __init__(self, count: int, first: Batch) -> None:
        self.inputs = _Column.like(first.inputs, count)
        self.targets = {n: _Column.like(v, count) if isinstance(v, Tensor) else [] for n, v in first.targets.items()}
        self.geometry: list[Geometry] = []
        self.originals: list[dict[str, Any]] = []
        self.ids: list[str] = []

    @classmethod
    def build(cls, batches: Iterator[Batch], count: int) -> _Table | None:
        """Collect every batch; None if the samples do not fit into one table (sizes or kinds of targets differ)."""
        table: _Table | None = None
        for batch in batches:
            values = batch.targets.values()
            fits = all(isinstance(v, Tensor | list) and len(v) == len(batch) for v in [batch.inputs, *values])
            if not fits or not isinstance(batch.inputs, Tensor):
                return None
            table = table or cls(count, batch)
            if not table._add(batch):
                return None
        return table

    def _add(self, batch: Batch) -> bool:
        start, known = len(self.ids), {g: g for g in self.geometry[-1:]}
        if not self.inputs.put(start, batch.inputs) or batch.targets.keys() != self.targets.keys():
            return False
        for name, column in self.targets.items():
            value = batch.targets[name]
            if isinstance(column, _Column) and not (isinstance(value, Tensor) and column.put(start, value)):
                return False
            if isinstance(column, list):
                if isinstance(value, Tensor):
                    return False
                column.extend(value)
        self.geometry.extend(known.setdefault(g, g) for g in batch.geometry)  # equal ones become one object
        self.originals.extend(batch.originals)
        self.ids.extend(batch.ids)
        return True

    def batch(self, order: Order) -> Batch:
        """The batch that the decode path would give for the same order."""
        index, rows = torch.from_numpy(order.rows), order.rows.tolist()
        own = rows[: order.own]
        targets = {
            name: column.take(index) if isinstance(column, _Column) else [column[i] for i in rows]
            for name, column in self.targets.items()
        }
        return Batch(
            inputs=self.inputs.take(index),
            targets=targets,
            geometry=[self.geometry[i] for i in own],
            originals=[self.originals[i] for i in own],
            ids=[self.ids[i] for i in own],
            keys=order.keys,
            partners=order.partners,
            key=order.key,
        )
