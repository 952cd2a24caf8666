"""What file headers say, read without a decoder: JPEG segments, EXIF, PNG chunks, and depths that decoders would
drop."""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


class Exif(NamedTuple):
    """Orientation 1 to 8, and when the picture was taken ("2024:05:01 12:30:00") if the camera said so."""

    orientation: int = 1
    taken: str | None = None


class Jpeg(NamedTuple):
    """Header of a JPEG file: stored height and width, bits and number of components, EXIF."""

    height: int
    width: int
    bits: int
    components: int
    exif: Exif


def jpeg_header(data: bytes) -> Jpeg | None:
    """Walk the segments up to the frame header; None if there is none in `data`."""
    at, exif, xmp = 2, Exif(), None
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker == 0xE1 and body[:6] == b"Exif\0\0" and exif == Exif():
            exif = parse_exif(body[6:])
        elif marker == 0xE1 and body[:29] == b"http://ns.adobe.com/xap/1.0/\0":
            xmp = body[29:]
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
            bits, height, width, components = struct.unpack(">BHHB", body[:6])
            if exif.orientation == 1 and xmp is not None:
                found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp)
                exif = exif._replace(orientation=int(found[1])) if found else exif
            return Jpeg(height, width, bits, components, exif)
        elif marker in (0xD9, 0xDA):
            return None
        at += 2 + length
    return None


def parse_exif(tiff: bytes) -> Exif:
    """Orientation and DateTimeOriginal of an EXIF block that starts at its TIFF header; defaults where it is broken."""
    try:
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        main = _directory(tiff, struct.unpack_from(order + "I", tiff, 4)[0], order)
        orientation = main.get(0x0112, 1)
        inner = _directory(tiff, main[0x8769], order) if isinstance(main.get(0x8769), int) else {}
        taken = inner.get(0x9003) or inner.get(0x9004) or main.get(0x0132)
    except (KeyError, struct.error, IndexError, OverflowError):
        return Exif()
    valid = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
    return Exif(valid, taken if isinstance(taken, str) else None)


def _directory(tiff: bytes, at: int, order: str) -> dict[int, Any]:
    entries: dict[int, Any] = {}
    (count,) = struct.unpack_from(order + "H", tiff, at)
    for i in range(count):
        if at + 14 + 12 * i > len(tiff):
            break
        tag, kind, number = struct.unpack_from(order + "HHI", tiff, at + 2 + 12 * i)
        place = at + 10 + 12 * i
        if tag in entries:
            continue
        if kind == 1 and number:
            entries[tag] = tiff[place]
        elif kind == 3 and number:
            entries[tag] = struct.unpack_from(order + "H", tiff, place)[0]
        elif kind == 4 and number:
            entries[tag] = struct.unpack_from(order + "I", tiff, place)[0]
        elif kind == 2 and 4 < number < 256:
            (start,) = struct.unpack_from(order + "I", tiff, place)
            entries[tag] = tiff[start : start + number].split(b"\0")[0].decode("ascii", "replace").strip()
    return entries


class Png(NamedTuple):
    """The IHDR of a PNG file."""

    width: int
    height: int
    bits: int
    color: int  # 0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGB + alpha


def png_header(data: bytes) -> Png | None:
    """The header of a PNG file, None if it has none."""
    if len(data) < 26 or data[12:16] != b"IHDR":
        return None
    return Png(*struct.unpack(">IIBB", data[16:26]))


def png_fault(data: bytes) -> str | None:
    """What is broken in the chunks of a PNG file (decoders let wrong checksums of pixel data pass), or None."""
    at, pixels = 8, False
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            return "the file is truncated"
        if not kind[0] & 0x20:
            if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                return f"the checksum of its {kind.decode('ascii', 'replace')} chunk is wrong"
            pixels = pixels or kind == b"IDAT"
            if kind == b"IEND":
                return None if pixels else "it holds no pixel data"
        at = end
    return "the file is truncated"


def lost_depth(data: bytes, kind: str, tags: Any = None) -> str | None:
    """Say which bit depth the decoder would drop for this file, or None when it keeps all bits."""
    if kind == "TIFF" and tags is not None:
        bits = tags.get(258, (1,))
        bits = bits if isinstance(bits, tuple) else (bits,)
        if len(bits) > 1 and max(bits) > 8:
            return f"TIFF with {len(bits)} channels of {max(bits)} bits"
        if bits[0] > 32:
            return f"TIFF with {bits[0]} bits"
    if kind == "SGI" and len(data) > 3 and data[3] == 2:
        return "SGI with 16 bits"
    if kind == "JPEG2000":
        at = data.find(b"\xff\x51")  # SIZ marker
        if at >= 0 and len(data) > at + 40:
            components = int.from_bytes(data[at + 38 : at + 40], "big")
            bits_ = (data[at + 40] & 0x7F) + 1
            if (components > 1 and bits_ > 8) or bits_ > 16:
                return f"JPEG 2000 with {components} channels of {bits_} bits"
    if kind == "AVIF":
        at = data.find(b"pixi")
        if at >= 0 and len(data) > at + 9 and max(data[at + 9 : at + 9 + data[at + 8]], default=8) > 8:
            return f"AVIF with {max(data[at + 9 : at + 9 + data[at + 8]])} bits"
    return None


def deep_pnm(data: bytes) -> tuple[NDArray[np.uint16], int] | None:
    """Pixels (H, W, C) and the largest value of a PGM or PPM with more than 8 bits; None for any other file.

    Raises:
        ValueError: if the file is cut off or a value is larger than the header allows.
    """
    if data[:2] not in (b"P2", b"P3", b"P5", b"P6"):
        return None
    header = re.match(
        rb"P[2356](?:\s+|#[^\n]*\n)+(\d{1,9})(?:\s+|#[^\n]*\n)+(\d{1,9})(?:\s+|#[^\n]*\n)+(\d{1,9})[ \t\r\n]",
        data[:4096],
    )
    if header is None:
        return None
    width, height, largest = int(header[1]), int(header[2]), int(header[3])
    if not 255 < largest < 65536:
        return None
    channels = 3 if data[1:2] in b"36" else 1
    count = width * height * channels
    if data[1:2] in b"56":
        body = data[header.end() : header.end() + 2 * count]
        values = np.frombuffer(body[: len(body) // 2 * 2], ">u2").astype(np.uint16)
    else:
        words = re.sub(rb"#[^\n]*", b"", data[header.end() :]).split()[:count]
        values = np.array([int(word) for word in words], np.uint16)
    if len(values) < count:
        raise ValueError("the file is truncated")
    if count and int(values.max()) > largest:
        raise ValueError(f"it holds the value {values.max()}, its header allows {largest}")
    return values.reshape(height, width, channels), largest
