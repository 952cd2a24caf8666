"""A column of text in two flat arrays, so that a million ids cost their bytes and no Python objects."""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class StringColumn(Sequence[str]):
    """N strings as one UTF-8 blob and N + 1 offsets; read like a sequence, `take` like an array.

    Args:
        strings: any strings; they are copied.
    """

    __slots__ = ("_blob", "_offsets")

    def __init__(self, strings: Iterable[str] = ()) -> None:
        parts = [text.encode("utf-8", "surrogateescape") for text in strings]
        self._offsets = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=self._offsets[1:])
        self._blob: NDArray[np.uint8] = np.frombuffer(b"".join(parts), np.uint8)

    @classmethod
    def _of(cls, blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> StringColumn:
        column = cls()
        column._blob, column._offsets = blob, offsets
        return column

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> StringColumn: ...
    def __getitem__(self, index: int | slice) -> str | StringColumn:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"index {index} of a column with {n} entries")
        index %= n
        return self._blob[self._offsets[index] : self._offsets[index + 1]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        blob, offsets = self._blob.tobytes(), self._offsets.tolist()
        for start, stop in itertools.pairwise(offsets):
            yield blob[start:stop].decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StringColumn):
            return np.array_equal(self._offsets, other._offsets) and np.array_equal(self._blob, other._blob)
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash((len(self), self._blob.tobytes()))

    def __repr__(self) -> str:
        shown = ", ".join(repr(text) for text in self[:3])
        return f"StringColumn([{shown}{', ...' if len(self) > 3 else ''}], length {len(self)})"

    def take(self, indices: NDArray[np.int64]) -> StringColumn:
        """The strings at `indices` (M,), as a new column."""
        indices = np.asarray(indices, np.int64)
        lengths = np.diff(self._offsets)[indices]
        offsets = np.zeros(len(indices) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        shift = np.repeat(self._offsets[:-1][indices] - offsets[:-1], lengths)
        return StringColumn._of(self._blob[np.arange(offsets[-1]) + shift], offsets)

    @property
    def nbytes(self) -> int:
        """Memory of the column in bytes."""
        return self._blob.nbytes + self._offsets.nbytes


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key of the natural order: digits by value, letters without case, and the text itself to settle ties.

    >>> sorted(["b", "10", "2", "A"], key=natural_key)
    ['2', '10', 'A', 'b']
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    key = tuple((0, int(p), "") if p[0] in "0123456789" else (1, 0, p.casefold()) for p in parts)
    return (*key, (-1, 0, text))


def normalized(name: str) -> str:
    """A relative name as a sample id: POSIX slashes, Unicode NFC, no leading `./`."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def ids_fingerprint(ids: Iterable[str]) -> str:
    """A short name (32 hex digits of SHA-256) for a set of sample ids, whatever their order."""
    digest = hashlib.sha256()
    for text in sorted(ids):
        digest.update(text.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:32]
