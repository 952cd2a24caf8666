"""The only source of randomness: a key is hashed from (seed, epoch, position, purpose), and numbers from keys.

Nothing is drawn from a running stream, so there is no state to save: the number that a sample gets does not depend on
how many workers, processes or micro-batches there are, on caches, or on what was drawn before. A run that is resumed
in the middle of an epoch draws what the uninterrupted run would have drawn.

The hash is SplitMix64's finaliser (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), applied
once for every part of the key.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1
_STEP, _FIRST, _SECOND = int(_GOLDEN), int(_MIX1), int(_MIX2)


def _mix(x: Keys) -> Keys:
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


def _part(part: int | str) -> int:
    return _word(part) if isinstance(part, str) else int(part) & _MASK


@cache
def _word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def key(*parts: int | str) -> int:
    """Hash any number of integers and words into one 64-bit key, e.g. `key(seed, epoch, "shuffle")`."""
    state = 0
    for part in parts:
        state = (state + int(_GOLDEN) + _part(part)) & _MASK
        state = ((state ^ (state >> 30)) * int(_MIX1)) & _MASK
        state = ((state ^ (state >> 27)) * int(_MIX2)) & _MASK
        state = state ^ (state >> 31)
    return state


def keys(seed: int, epoch: int, positions: NDArray[np.int64], purpose: str = "sample") -> Keys:
    """One key per sample: (N,) uint64 from the training seed, the epoch and the global positions (N,) in it."""
    base = np.uint64(key(seed, epoch, purpose))
    with np.errstate(over="ignore"):
        return _mix(base + _GOLDEN + np.asarray(positions).astype(np.uint64))


def derive(sample_keys: Keys, purpose: str) -> Keys:
    """Give the same samples independent keys for another purpose, shape (N,)."""
    with np.errstate(over="ignore"):
        return _mix(sample_keys + _GOLDEN + np.uint64(_part(purpose)))


def uniform(sample_keys: Keys, purpose: str, count: int = 1) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), shape (N, count); row i depends on key i and the purpose alone."""
    with np.errstate(over="ignore"):
        steps = (np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)[None, :]
        bits = _mix(derive(sample_keys, purpose)[:, None] + steps)
    return (bits >> np.uint64(11)).astype(np.float64) * (1.0 / (1 << 53))


def uniform_one(sample_key: int, purpose: str) -> Iterator[float]:
    """The numbers that `uniform` gives one key, as many as are asked for, without the cost of small arrays."""
    state = _mix_one((int(sample_key) + _STEP + _part(purpose)) & _MASK)
    for step in itertools.count(1):
        yield (_mix_one((state + step * _STEP) & _MASK) >> 11) * (1.0 / (1 << 53))


def _mix_one(x: int) -> int:
    x = ((x ^ (x >> 30)) * _FIRST) & _MASK
    x = ((x ^ (x >> 27)) * _SECOND) & _MASK
    return x ^ (x >> 31)


def normal(sample_keys: Keys, purpose: str, count: int = 1) -> NDArray[np.float64]:
    """Standard normal numbers, shape (N, count), by the Box-Muller transform of `uniform`."""
    u = uniform(sample_keys, purpose, 2 * count)
    return np.sqrt(-2.0 * np.log1p(-u[:, :count])) * np.cos(2.0 * np.pi * u[:, count:])


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator for work that is not per sample (splits, bootstrap), from a key of any parts."""
    return np.random.Generator(np.random.Philox(key(*parts)))


def torch_generator(*parts: int | str) -> torch.Generator:
    """A CPU torch generator from a key of any parts."""
    import torch

    return torch.Generator().manual_seed(key(*parts) >> 1)


def seed_torch(*parts: int | str) -> None:
    """Set torch's default generators (CPU, and the accelerator's when one is in use) from a key of any parts."""
    import torch

    value = key(*parts) >> 1
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(value)


@contextmanager
def torch_seeded(*parts: int | str) -> Iterator[None]:
    """Seed torch's default CPU generator inside a block (for libraries that know no other) and restore it after."""
    import torch

    state = torch.default_generator.get_state()
    seed_torch(*parts)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
