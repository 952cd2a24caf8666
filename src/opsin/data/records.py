"""TFRecord files and the `tf.train.Example` in them, without TensorFlow.

A record is its length (8 bytes, lowest first), a masked CRC-32C of these, the data, and a masked CRC-32C of the data
(https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details). An Example is a protocol-buffer message:
a map from names to lists of bytes, of float32 or of int64.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opsin.data.places import FolderPlace, Place
from opsin.errors import DataError
from opsin.wire import encoded, field, spans, varint

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, its bits in reverse
_LANE = 256  # bytes of a lane; lanes are worked on side by side
_SHORT = 8192  # up to so many bytes, one after the other is faster


class Record(NamedTuple):
    """The data of one record, and where they lie in their file."""

    number: int
    offset: int
    data: bytes


class Feature(NamedTuple):
    """A list of an Example: `numbers` of floats or integers, or `pieces` of bytes as (first, after the last)."""

    numbers: Sequence[float]
    pieces: Sequence[tuple[int, int]]


@cache
def _bytes_table() -> NDArray[np.uint32]:
    """The remainder of every byte (256,)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


@cache
def _bytes_list() -> list[int]:
    return [int(value) for value in _bytes_table()]


@cache
def _advance(level: int) -> NDArray[np.uint32]:
    """What `_LANE * 2**level` bytes of 0 make of each byte of a state, (4, 256)."""
    states = (np.arange(256, dtype=np.uint32)[None] << np.array([0, 8, 16, 24], np.uint32)[:, None]).astype(np.uint32)
    if level:
        half = _advance(level - 1)
        return _applied(half, _applied(half, states))
    table = _bytes_table()
    for _ in range(_LANE):
        states = table[states & 255] ^ (states >> 8)
    return states


def _applied(advance: NDArray[np.uint32], states: NDArray[np.uint32]) -> NDArray[np.uint32]:
    moved: NDArray[np.uint32] = advance[0][states & 255] ^ advance[1][(states >> 8) & 255]
    moved ^= advance[2][(states >> 16) & 255] ^ advance[3][states >> 24]
    return moved


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of some bytes.

    The data are cut into lanes which are divided side by side, and the remainders are joined two by two: a CRC is linear,
    so that of A followed by B is that of A moved on by the length of B, plus (without carry) that of B from 0.
    """
    table, state = _bytes_table(), 0xFFFFFFFF
    start = len(data) % _LANE if len(data) > _SHORT else len(data)
    one_by_one = _bytes_list()
    for byte in data[:start]:
        state = one_by_one[(state ^ byte) & 255] ^ (state >> 8)
    lanes = np.frombuffer(data, np.uint8, offset=start).reshape(-1, _LANE).T.astype(np.uint32)  # (256, lanes)
    if not lanes.shape[1]:
        return state ^ 0xFFFFFFFF
    states = np.zeros(lanes.shape[1], np.uint32)
    states[0] = state
    for row in lanes:
        states = table[(states ^ row) & 255] ^ (states >> 8)
    level = 0
    while len(states) > 1:
        if len(states) % 2:
            states = np.concatenate([np.zeros(1, np.uint32), states])  # nothing before the first lane
        states = _applied(_advance(level), states[::2]) ^ states[1::2]
        level += 1
    return int(states[0]) ^ 0xFFFFFFFF


def masked_crc(data: bytes) -> int:
    """CRC-32C as TFRecord stores it: turned by 15 bits, plus 0xa282ead8."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def framed(data: bytes) -> bytes:
    """Data as a record."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


def starts_like_records(head: bytes) -> bool:
    """Whether some first bytes are a length with its right CRC."""
    return len(head) >= 12 and struct.unpack("<I", head[8:12])[0] == masked_crc(head[:8])


def records(data: bytes | mmap.mmap, where: str) -> Iterator[Record]:
    """The records of a file, numbered from 0, their CRCs checked.

    Raises:
        DataError: if a CRC is wrong or the file is cut off; with record and byte.
    """
    if data[:2] == b"\x1f\x8b":
        raise DataError(f"{where}: a compressed TFRecord file cannot be read at random. Unpack it first (gunzip).")
    position = number = 0
    while position < len(data):
        at = f"{where}, record {number} (byte {position})"
        head = data[position : position + 12]
        if len(head) < 12:
            raise DataError(f"{at}: the file is cut off. Download or write it again.")
        if not starts_like_records(head):
            raise DataError(f"{at}: the CRC of its length is wrong: the file is damaged, or no TFRecord file.")
        (size,) = struct.unpack("<Q", head[:8])
        content, check = data[position + 12 : position + 12 + size], data[position + 12 + size : position + 16 + size]
        if len(content) < size or len(check) < 4:
            raise DataError(f"{at}: the file is cut off. Download or write it again.")
        if struct.unpack("<I", check)[0] != masked_crc(content):
            raise DataError(f"{at}: its CRC is wrong: the file is damaged. Download or write it again.")
        yield Record(number, position + 12, content)
        position += size + 16
        number += 1


def features(data: bytes) -> dict[str, Feature]:
    """The lists of an Example by name; bytes are given as positions in `data`.

    Raises:
        ValueError: if it is no Example.
    """
    found: dict[str, Feature] = {}
    for number, kind, first, last in spans(data):
        if (number, kind) != (1, 2):
            continue
        for inner, inner_kind, start, stop in spans(data, first, last):
            if (inner, inner_kind) == (1, 2):
                entry = {n: (a, b) for n, k, a, b in spans(data, start, stop) if k == 2}
                if 1 in entry:
                    name = data[slice(*entry[1])].decode("utf-8")
                    found[name] = _feature(data, *entry.get(2, (0, 0)))
    return found


def _feature(data: bytes, first: int, last: int) -> Feature:
    numbers: list[float] = []
    pieces: list[tuple[int, int]] = []
    for which, kind, start, stop in spans(data, first, last):
        if kind != 2:
            raise ValueError(f"byte {start} is no list of values")
        for number, inner, a, b in spans(data, start, stop):
            if number != 1:
                continue
            if which == 1:
                pieces.append((a, b))
            elif which == 2:
                numbers += np.frombuffer(data[a:b], "<f4").astype(np.float64).tolist()
            elif which == 3:
                numbers += _integers(data, a, b if inner == 2 else a + 1)
    return Feature(numbers, pieces)


def _integers(data: bytes, position: int, last: int) -> list[int]:
    values = []
    while position < last:
        value, position = varint(data, position)
        values.append(value - (1 << 64) if value >> 63 else value)
    return values


def example(lists: Mapping[str, Sequence[bytes] | NDArray[Any]]) -> bytes:
    """An Example: lists of bytes, and arrays of integers or floats, by name; an empty list keeps its type."""
    entries = []
    for name, values in lists.items():
        if not isinstance(values, np.ndarray):
            feature = field(1, b"".join(field(1, value) for value in values))
        elif values.dtype.kind == "f":
            feature = field(2, field(1, values.astype("<f4").tobytes()) if len(values) else b"")
        else:
            packed = b"".join(encoded(value) for value in values.tolist())
            feature = field(3, field(1, packed) if len(values) else b"")
        entries.append(field(1, field(1, name.encode("utf-8")) + field(2, feature)))
    return field(1, b"".join(entries))


class RecordPlace(Place):
    """Pictures inside the files of another place, each read by where it lies.

    Args:
        base: the place of the files.
        members: name to (file, offset, size).
    """

    def __init__(self, base: Place, members: Mapping[str, tuple[str, int, int]]) -> None:
        super().__init__(base.root, base.focus)
        self.base, self.members = base, dict(members)
        self._last: tuple[str, bytes] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_last": None}

    def _list(self) -> Iterator[str]:
        yield from self.members

    def has(self, name: str) -> bool:
        return name in self.members

    def where(self, name: str) -> str:
        file = self.members.get(name, ("", 0, 0))[0]
        return f"{self.base.where(file)}#{name}"

    def read(self, name: str) -> bytes:
        return self._part(name, None)

    def head(self, name: str, size: int = 65536) -> bytes:
        return self._part(name, size)

    def _part(self, name: str, most: int | None) -> bytes:
        if name not in self.members:
            raise DataError(f"{self.base.title}: no record holds the picture '{name}'.")
        file, offset, size = self.members[name]
        wanted = size if most is None else min(size, most)
        if isinstance(self.base, FolderPlace):
            try:
                with (self.base.root / file).open("rb") as stream:
                    stream.seek(offset)
                    content = stream.read(wanted)
            except OSError as error:
                raise DataError(f"{self.where(name)}: cannot be read ({error.strerror or error}).") from error
        else:
            last = self._last  # threads may replace it meanwhile
            if last is None or last[0] != file:
                last = self._last = (file, self.base.read(file))
            content = last[1][offset : offset + wanted]
        if len(content) < wanted:
            raise DataError(
                f"{self.where(name)}: the file ends in the middle of this picture. It was changed or cut off."
            )
        return content
