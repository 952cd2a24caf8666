"""Protocol-buffer messages without their compiled classes: fields by number, as the public wire format describes them.

https://protobuf.dev/programming-guides/encoding/: a message is a row of (number << 3 | type) and a value; type 0 is a number
of 7-bit groups, lowest first, 1 is 8 bytes, 2 a length and as many bytes (text, messages, packed numbers), 5 is 4 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

Value = int | bytes

FIXED = {1: 8, 5: 4}


def fields(message: bytes) -> dict[int, list[Value]]:
    """The values of a message by field number; fixed-size numbers and everything with a length stay bytes.

    Raises:
        ValueError: if the message ends too early, or is none.
    """
    found: dict[int, list[Value]] = {}
    position = 0
    while position < len(message):
        key, position = varint(message, position)
        number, kind = key >> 3, key & 7
        value: Value
        if kind == 0:
            value, position = varint(message, position)
        elif kind == 2 or kind in FIXED:
            size, position = (FIXED[kind], position) if kind in FIXED else varint(message, position)
            value = message[position : position + size]
            position += size
            if len(value) < size:
                raise ValueError(f"field {number} is cut off at byte {position - size}")
        else:
            raise ValueError(f"byte {position} is no beginning of a field")
        if number == 0:
            raise ValueError(f"byte {position} is no beginning of a field")
        found.setdefault(number, []).append(value)
    return found


def messages(values: list[Value] | None) -> list[bytes]:
    """The values that have a length.

    Raises:
        ValueError: if one is a number.
    """
    found = [value for value in values or () if isinstance(value, bytes)]
    if len(found) < len(values or ()):
        raise ValueError("a number stands where a message was expected")
    return found


def number(values: list[Value] | None, default: int = 0) -> int:
    """The last value, as the format wants it for fields that are there once.

    Raises:
        ValueError: if it is not a number.
    """
    if not values:
        return default
    value = values[-1]
    if not isinstance(value, int):
        raise ValueError("bytes stand where a number was expected")
    return value


def varint(message: bytes, position: int) -> tuple[int, int]:
    """The number of 7-bit groups at a position, and where it ends.

    Raises:
        ValueError: if it is cut off.
    """
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise ValueError(f"a number is cut off at byte {position}")
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7


def spans(message: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int, int]]:
    """Every field of a message as (number, type, first byte, byte after the last); a number of type 0 is its groups.

    Raises:
        ValueError: if the message ends too early, or is none.
    """
    end = len(message) if end is None else end
    position = start
    while position < end:
        key, position = varint(message, position)
        number, kind = key >> 3, key & 7
        first = position
        if kind == 0:
            _, position = varint(message, position)
        elif kind == 2 or kind in FIXED:
            size, first = (FIXED[kind], position) if kind in FIXED else varint(message, position)
            position = first + size
        else:
            raise ValueError(f"byte {position} is no beginning of a field")
        if number == 0 or position > end:
            raise ValueError(f"field {number} is cut off at byte {first}")
        yield number, kind, first, position


def encoded(value: int) -> bytes:
    """A number as 7-bit groups; a negative one in the ten bytes of its two's complement."""
    value &= (1 << 64) - 1
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def field(number: int, content: bytes) -> bytes:
    """A field with a length: text, a message, or packed numbers."""
    return encoded(number << 3 | 2) + encoded(len(content)) + content
