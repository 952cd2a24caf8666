"""One pass over all pictures, and what several checks share afterwards: duplicates, labels, parts."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.analyze.check.duplicates import Likeness, exact_labels, near_pairs
from opsin.analyze.check.facts import Facts, measure_arrays, measure_file
from opsin.analyze.check.findings import CheckOptions
from opsin.analyze.check.grouping import components_of
from opsin.analyze.check.objects import ObjectHead
from opsin.data.dataset import PARTS, Dataset
from opsin.errors import DataError

Progress = Callable[[int, int], None]
"""Called with (pictures done, pictures in all)."""

_BATCH = 2048
_FILES = 32


def measure(dataset: Dataset, options: CheckOptions, progress: Progress | None = None) -> Facts:
    """Look at every picture once.

    Decoders release Python's lock, so threads are enough; at most a few hundred pictures are under way at a time.
    """
    count = len(dataset)
    arrays = dataset.arrays
    report = progress or (lambda _done, _all: None)
    if arrays is not None:
        facts = Facts(count, colored=arrays.shape[1] >= 3)
        for start in range(0, count, _BATCH):
            measure_arrays(facts, start, arrays[start : start + _BATCH])
            report(min(start + _BATCH, count), count)
    else:
        facts = Facts(count, colored=dataset.spec.channels >= 3)
        if count:
            _one(dataset, facts, 0)  # in this thread: opens the archive once for all
        threads = options.threads or os.cpu_count() or 1
        with ThreadPoolExecutor(threads) as pool:
            jobs = (range(start, min(start + _FILES, count)) for start in range(1, count, _FILES))
            for last in _bounded(pool, lambda job: [_one(dataset, facts, i) for i in job][-1], jobs, 4 * threads):
                report(last + 1, count)
    facts.finish()
    return facts


def _one(dataset: Dataset, facts: Facts, i: int) -> int:
    try:
        data, name = dataset.bytes_of(i)
    except DataError as error:
        facts.errors[i] = str(error)
        return i
    measure_file(facts, i, data, name)
    return i


def _bounded(pool: ThreadPoolExecutor, work: Callable[[Any], int], jobs: Iterable[Any], ahead: int) -> Iterator[int]:
    waiting: deque[Future[int]] = deque()
    for job in jobs:
        waiting.append(pool.submit(work, job))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class Scan:
    """All that a check may look at.

    Args:
        dataset: N samples.
        facts: of every picture.
        parts: (N,) positions in `PARTS`, -1 where a sample is in no part.
        options: thresholds.
    """

    def __init__(self, dataset: Dataset, facts: Facts, parts: NDArray[np.int8], options: CheckOptions) -> None:
        self.dataset, self.facts, self.parts, self.options = dataset, facts, parts, options

    def __len__(self) -> int:
        return len(self.dataset)

    def ids(self, members: Iterable[int]) -> tuple[str, ...]:
        """Ids of samples."""
        return tuple(self.dataset.id(int(i)) for i in members)

    def part_name(self, i: int) -> str:
        """Part of sample i, "" if it has none."""
        return PARTS[self.parts[i]] if self.parts[i] >= 0 else ""

    @property
    def split_known(self) -> bool:
        """Whether there are at least two parts to leak between."""
        return len(np.unique(self.parts[self.parts >= 0])) > 1

    @property
    def times_known(self) -> bool:
        """Whether every picture says when it was taken."""
        return 0 < len(self.facts.taken) == len(self)

    @cached_property
    def single_heads(self) -> list[tuple[str, tuple[str, ...], NDArray[np.int64]]]:
        """Name, class names and labels (N,) of every head with exclusive classes."""
        return [(h.name, h.class_names, self.dataset.targets[h.name]) for h in self.dataset.heads if h.kind == "single"]

    @cached_property
    def object_heads(self) -> list[ObjectHead]:
        """Every head of objects with its boxes and the sizes of their pictures."""
        heads = [head for head in self.dataset.heads if head.kind == "objects"]
        return [ObjectHead(self.dataset, head, self.facts.sizes, self.options) for head in heads]

    def label_text(self, i: int) -> str:
        """Labels of sample i in words."""
        words = [head.text(i) for head in self.object_heads]
        for name, classes, labels in self.single_heads:
            value = classes[labels[i]] if labels[i] >= 0 else "no label"
            words.append(value if len(self.single_heads) == 1 else f"{name}: {value}")
        return ", ".join(words)

    def caption(self, i: int) -> str:
        """Part and label of sample i, for captions."""
        return ", ".join(word for word in (self.part_name(i), self.label_text(i)) if word)

    @cached_property
    def exact(self) -> NDArray[np.int64]:
        """(N,) cluster codes: equal where two files have the same bytes or the same pixels; -1 for unreadable ones."""
        return exact_labels(self.facts, self.dataset, self.near)

    @cached_property
    def exact_clusters(self) -> list[NDArray[np.int64]]:
        """Clusters of two and more identical pictures, largest first."""
        return components_of(self.exact)

    @cached_property
    def near(self) -> Likeness:
        """Pairs of pictures that look alike (one picture of each set of equal files stands for all)."""
        return near_pairs(self.facts, self.options)

    @cached_property
    def alike(self) -> NDArray[np.int64]:
        """(N,) cluster codes: equal where pictures are the same or joined by near duplicates."""
        return self.near.joined(self.exact)
