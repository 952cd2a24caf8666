"""Decoded pictures kept in memory that all worker processes share, within a byte budget.

A sample is stored as it was read (picture, id and target) in one block of anonymous shared memory, so a hit gives what
`dataset.read` gave, without a copy of the pixels. Nothing is evicted: in training every sample is used once per epoch,
so keeping the first ones that fit has the best hit rate there is, and the memory in use never passes the budget.

Whoever gets a picture from the cache must not write into it.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
import re
import sys
import tempfile
import uuid
from multiprocessing import reduction
from typing import Any, NamedTuple

import numpy as np
import torch

from opsin.errors import ConfigError
from opsin.memory import assumed_memory
from opsin.task import Sample

_SHARE = 0.4  # of the memory that is available, for `auto`
_ALIGN = 64
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class CacheInfo(NamedTuple):
    """How full a cache is."""

    samples: int
    used_bytes: int
    budget_bytes: int


class Cache:
    """Decoded samples of one data set, by index; shared with worker processes however they are started.

    Args:
        count: samples in the data set.
        budget_bytes: pixels and targets kept at most.
    """

    def __init__(self, count: int, budget_bytes: int) -> None:
        self.count, self.budget_bytes = count, budget_bytes
        self._lock = multiprocessing.get_context("spawn").Lock()  # one kind of lock that every start method can inherit
        self._block = _SharedBlock(max(budget_bytes, mmap.PAGESIZE))
        self._table_block = _SharedBlock((3 * count + 2) * 8)
        self._open()

    def _open(self) -> None:
        table = np.frombuffer(self._table_block.view, np.int64, 3 * self.count + 2)
        self._entries = table[2:].reshape(self.count, 3)  # end (0: absent), start, start of pixels
        self._state = table[:2]  # bytes in use, samples

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_entries", "_state")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def read(self, dataset: Any, index: int, reduce_to: int | None = None) -> Sample:
        """Give `dataset.read(index, reduce_to)`, from memory if it was kept; keeps it if there is room."""
        end, start, pixels = self._entries[index].tolist()
        if end:
            # These bytes were written by `_keep` in this run; nothing from a file or a stranger gets here.
            kept = pickle.loads(self._block.view[start:pixels])
            if kept[0] == reduce_to:
                return self._sample(self._block.view[pixels:end], *kept[1:])
        sample: Sample = dataset.read(index, reduce_to)
        if not end:
            self._keep(index, sample, reduce_to)
        return sample

    @staticmethod
    def _sample(
        pixels: memoryview, dtype: str, shape: tuple[int, ...], interleaved: bool, rest: tuple[Any, ...]
    ) -> Sample:
        image = torch.from_numpy(np.frombuffer(pixels, dtype).reshape(shape))
        return Sample(rest[0], image.permute(2, 0, 1) if interleaved else image, *rest[1:])

    def info(self) -> CacheInfo:
        """Samples and bytes in use."""
        return CacheInfo(int(self._state[1]), int(self._state[0]), self.budget_bytes)

    def _keep(self, index: int, sample: Sample, reduce_to: int | None) -> None:
        image = sample.image
        interleaved = image.permute(1, 2, 0).is_contiguous()
        pixels = (image.permute(1, 2, 0) if interleaved else image.contiguous()).numpy()
        facts = (
            reduce_to,
            pixels.dtype.str,
            pixels.shape,
            interleaved,
            (sample.id, sample.target, sample.original_size),
        )
        header = pickle.dumps(facts, protocol=5)
        padded = -(-len(header) // _ALIGN) * _ALIGN
        size = padded + -(-pixels.nbytes // _ALIGN) * _ALIGN
        with self._lock:
            start = int(self._state[0])
            if self._entries[index, 0] or start + size > self.budget_bytes:
                return
            self._state[0] = start + size  # the room is ours; others go on while we copy
        block = self._block.view
        block[start : start + len(header)] = header
        np.frombuffer(block, np.uint8, pixels.nbytes, start + padded)[:] = pixels.reshape(-1).view(np.uint8)
        with self._lock:
            if self._entries[index, 0]:
                return  # another process was faster
            self._entries[index, 1:] = start, start + padded
            self._entries[index, 0] = start + padded + pixels.nbytes  # last: from here on it is seen
            self._state[1] += 1


class _SharedBlock:
    """Anonymous shared memory of a fixed size that other processes of this program can map.

    On Linux a memfd, which the small /dev/shm of containers does not limit; on other Unix systems a temporary file
    without a name; on Windows a named section. Pages cost nothing before they are written.
    """

    def __init__(self, size: int) -> None:
        self.size, self._fd, self._tag = size, -1, ""
        if sys.platform == "win32":
            self._tag = f"opsin-{uuid.uuid4()}"
        elif hasattr(os, "memfd_create"):
            self._fd = os.memfd_create("opsin-cache")
        else:
            with tempfile.TemporaryFile(prefix="opsin-cache-") as file:
                self._fd = os.dup(file.fileno())
        if self._fd >= 0:
            os.ftruncate(self._fd, size)
        self._map()

    def _map(self) -> None:
        if sys.platform == "win32":
            self.view = memoryview(mmap.mmap(-1, self.size, tagname=self._tag))
        else:
            self.view = memoryview(mmap.mmap(self._fd, self.size))

    def __getstate__(self) -> tuple[int, Any, str]:
        return self.size, reduction.DupFd(self._fd) if self._fd >= 0 else None, self._tag

    def __setstate__(self, state: tuple[int, Any, str]) -> None:
        self.size, duplicate, self._tag = state
        self._fd = duplicate.detach() if duplicate is not None else -1
        self._map()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)


def make_cache(setting: str, dataset: Any, share: float = 1.0) -> Cache | None:
    """The cache that `data.cache` asks for, or None.

    Args:
        setting: `auto` (a part of the memory that is available), `none`, or bytes such as `2GB`.
        dataset: what will be read; a data set that is in memory already (`arrays`) needs no cache.
        share: of the budget, when several processes on this machine have a cache each (1 / their number).

    Raises:
        ConfigError: if the setting is none of these.
    """
    budget = parse_bytes(setting) if setting not in ("auto", "none") else int(assumed_memory() * _SHARE)
    if setting == "none" or getattr(dataset, "arrays", None) is not None or not len(dataset):
        return None
    return Cache(len(dataset), int(budget * share))


def parse_bytes(text: str) -> int:
    """Read `2GB`, `500 MB`, `1GiB` or a plain number of bytes.

    Raises:
        ConfigError: for anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", text, re.IGNORECASE)
    unit = match.group(2).upper() if match else ""
    unit = unit if unit in _UNITS else unit + "B"
    if not match or unit not in _UNITS:
        raise ConfigError(
            f"data.cache={text!r} is not an amount of memory. Expected auto, none, or for example 2GB or 500MB."
        )
    return int(float(match.group(1)) * _UNITS[unit])
