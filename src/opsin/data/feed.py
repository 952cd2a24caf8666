"""Samples read, prepared and collated in order, here or in worker processes.

A worker makes whole batches and hands their tensors over in shared memory. An exception in a worker comes back as one
`DataError` that names the sample; a worker that is killed ends the epoch with an error that says so.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from opsin.data.cache import Cache
from opsin.errors import DataError
from opsin.seeding import Keys
from opsin.task import Batch, Prepared, Sample, Task

_PREFETCH = 2  # batches per worker that are ready or being made
_START_SECONDS = 2.0  # decoding an epoch must cost more than this before processes are started


class Order(NamedTuple):
    """What one batch of one process is made of.

    `rows` (B + extra,) are the samples, `keys` (B + extra,) their keys; the first `own` belong to this process,
    the others are partners that other processes own; `partners` (own,) or (own, P) are positions in `rows`, or None.
    `key` is that of the global batch.
    """

    rows: NDArray[np.int64]
    keys: Keys
    own: int
    partners: NDArray[np.int64] | None
    key: int = 0


class _Failure(NamedTuple):
    """An exception that happened in a worker, as text."""

    message: str
    trace: str


class Source:
    """Makes the batch of an order; can be sent to worker processes.

    Args:
        dataset: what is read.
        task: prepares and collates; `reduce_to` is read from it.
        train: prepare for training.
        cache: keeps decoded pictures.
    """

    def __init__(self, dataset: Any, task: Task[Any], train: bool, cache: Cache | None) -> None:
        self.dataset, self.task, self.train, self.cache = dataset, task, train, cache

    def read(self, index: int) -> Sample:
        """Read one sample, from the cache if it is there."""
        reduce_to: int | None = getattr(self.task, "reduce_to", None)
        if self.cache is not None:
            return self.cache.read(self.dataset, index, reduce_to)
        sample: Sample = self.dataset.read(index, reduce_to)
        return sample

    def prepared(self, index: int, key: int) -> Prepared:
        """Read and prepare one sample.

        Raises:
            DataError: whatever goes wrong, with the sample's id.
        """
        try:
            return self.task.prepare(self.read(index), key, self.train)
        except Exception as error:
            raise DataError(_named(self.dataset, index, error)) from error

    def batch(self, order: Order) -> Batch:
        """Read, prepare and collate; ids, geometry and originals of the own samples only."""
        pairs = zip(order.rows.tolist(), order.keys.tolist(), strict=True)
        batch = self.task.collate([self.prepared(index, key) for index, key in pairs], order.keys)
        own = order.own
        return Batch(
            inputs=batch.inputs,
            targets=batch.targets,
            geometry=batch.geometry[:own],
            originals=batch.originals[:own],
            ids=batch.ids[:own],
            keys=order.keys,
            partners=order.partners,
            key=order.key,
        )


def _named(dataset: Any, index: int, error: Exception) -> str:
    try:
        name = str(dataset.id(index))
    except Exception:  # the id itself may be what is broken
        name = f"sample {index}"
    text = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
    return text if name in text else f"{name}: {text}"


class Feed:
    """Runs a source over orders, keeping their sequence.

    Args:
        source: makes the batches.
        indices: samples that the orders are made of, to try the cost of one.
        batch_size: samples in a batch of this process.
        workers: number of processes, or `auto`.
        world: training processes on this machine, which share its cores.
        start_method: of the processes.
    """

    def __init__(
        self,
        source: Source,
        indices: NDArray[np.int64],
        batch_size: int,
        workers: int | Literal["auto"],
        world: int,
        start_method: str | None,
    ) -> None:
        self.source, self.indices, self.batch_size = source, indices, batch_size
        self.workers, self.world, self.start_method = workers, world, start_method
        self.orders: Iterable[Order] = ()
        self._loader: DataLoader[Any] | None = None

    def give(self, orders: Iterable[Order]) -> Iterator[Batch]:
        """Batches for the orders, in their sequence; one such iteration at a time.

        Raises:
            DataError: if a sample cannot be read, with its id, or a worker was killed.
        """
        if self.workers == "auto":
            self.workers = self._choose_workers()
        if self.workers == 0:
            yield from map(self.source.batch, orders)
            return
        self.orders = orders
        if self._loader is None:
            self._loader = self._make_loader(self.workers)
        batches = _started(self._loader)
        while True:
            try:
                item = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "exited unexpectedly" not in str(error):
                    raise
                raise self._killed(self.workers, error) from error
            if isinstance(item, bytes):
                item = pickle.loads(item)  # our own worker wrote it a moment ago
            if isinstance(item, _Failure):
                self.close()
                failure = DataError(item.message)
                failure.add_note(item.trace)
                raise failure
            yield item

    def close(self) -> None:
        """End the worker processes; the next iteration starts new ones."""
        self._loader = None

    def _killed(self, workers: int, error: Exception) -> DataError:
        self.close()
        return DataError(
            f"A process that decodes pictures was killed ({error}). Most often the machine ran out of memory: use "
            f"fewer of them (data.workers={workers // 2}) or no cache (data.cache=none)."
        )

    def _make_loader(self, workers: int) -> DataLoader[Any]:
        return DataLoader(
            _InWorker(self.source, by_value=not self._fits_shared_memory(workers)),
            batch_size=None,
            sampler=_Orders(self),
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=_begin_worker,
            prefetch_factor=_PREFETCH,
            persistent_workers=True,
            multiprocessing_context=self.start_method,
        )

    def _fits_shared_memory(self, workers: int) -> bool:
        """Whether /dev/shm (64 MB in many containers) holds the batches that are on their way."""
        folder = Path("/dev/shm")
        if not folder.is_dir():
            return True
        inputs = self.source.prepared(int(self.indices[0]), 0).inputs
        batch = inputs.numel() * inputs.element_size() * self.batch_size
        return shutil.disk_usage(folder).free > batch * (workers * _PREFETCH + 4) * self.world

    def _choose_workers(self) -> int:
        cores = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        ) // self.world
        if cores <= 1 or getattr(self.source.dataset, "arrays", None) is not None:
            return 0
        tried = self.indices[:: max(1, len(self.indices) // 8)].tolist()
        started = time.perf_counter()
        for index in tried:
            self.source.prepared(index, 0)
        seconds = (time.perf_counter() - started) / len(tried)
        return 0 if seconds * len(self.indices) / self.world < _START_SECONDS else min(cores - 1, 16)


class _Orders(Sampler[Order]):
    """What the data loader asks for the next order; starts again for every epoch."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __iter__(self) -> Iterator[Order]:
        return iter(self.feed.orders)


class _InWorker(TorchDataset[Any]):
    """A source in a worker: exceptions come back as values; `by_value` sends batches through a pipe."""

    def __init__(self, source: Source, by_value: bool) -> None:
        self.source, self.by_value = source, by_value

    def __getitem__(self, order: Order) -> Any:
        try:
            batch = self.source.batch(order)
        except Exception as error:
            return _Failure(str(error), traceback.format_exc())
        return pickle.dumps(batch) if self.by_value else batch


def _unchanged(item: Any) -> Any:
    return item


def _begin_worker(_: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training process, which ends its workers


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Iterate, without torch's handler that raises at any place of the program when a child process dies.

    The death of a worker is still noticed, where batches are awaited.
    """
    here = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    handler = signal.getsignal(signal.SIGCHLD) if here else None
    batches = iter(loader)
    if here and handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    return batches
