"""PNG files with 16 bits per channel, read exactly (Pillow keeps 16 bits of grey only).

The filters of PNG make a byte depend on its neighbors to the left and above. All bytes on one diagonal are
independent, so the picture is undone diagonal by diagonal. Specification: https://www.w3.org/TR/png-3/ (sections 7 to
9).
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from opsin.data.headers import png_header

_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
# Adam7: first row, first column, row step, column step of every pass
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def decode_deep_png(data: bytes) -> NDArray[np.uint16]:
    """Pixels (H, W, C) of a PNG with 16 bits per channel and no palette; a transparent color becomes an alpha channel.

    Raises:
        ValueError: if the pixel data are cut off or damaged.
    """
    header = png_header(data)
    if header is None or header.bits != 16 or header.color not in _CHANNELS:
        raise ValueError("not a PNG with 16 bits per channel")
    chunks = _chunks(data)
    try:
        raw = zlib.decompress(chunks[b"IDAT"])
    except zlib.error as error:
        raise ValueError(f"the pixel data cannot be unpacked ({error})") from error
    channels = _CHANNELS[header.color]
    pixels = np.zeros((header.height, header.width, channels), np.uint16)
    at = 0
    for row, column, row_step, column_step in _PASSES if data[28] else ((0, 0, 1, 1),):
        part = pixels[row::row_step, column::column_step]
        height, width = part.shape[:2]
        if not height or not width:
            continue
        size = height * (1 + width * channels * 2)
        if len(raw) - at < size:
            raise ValueError("the pixel data are truncated")
        lines = np.frombuffer(raw, np.uint8, size, at).reshape(height, -1)
        part[...] = _unfiltered(lines[:, 0], lines[:, 1:], channels * 2).view(">u2").reshape(height, width, channels)
        at += size
    transparent = chunks.get(b"tRNS", b"")
    if header.color in (0, 2) and len(transparent) == 2 * channels:
        clear = (pixels == np.frombuffer(transparent, ">u2")).all(axis=2, keepdims=True)  # (H, W, 1)
        pixels = np.concatenate([pixels, np.where(clear, 0, 65535).astype(np.uint16)], axis=2)
    return pixels


def _chunks(data: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        found[kind] = found.get(kind, b"") + data[at + 8 : at + 8 + length]
        at += 12 + length
    return found


def _unfiltered(kinds: NDArray[np.uint8], lines: NDArray[np.uint8], unit: int) -> NDArray[np.uint8]:
    """Bytes (H, W * unit) with the filters of the rows (H,) undone; `unit` is the number of bytes per pixel."""
    if kinds.max(initial=0) > 4:
        raise ValueError(f"a row has the unknown filter {kinds.max()}")
    height, width = lines.shape[0], lines.shape[1] // unit
    given = lines.reshape(height, width, unit).astype(np.int16)
    # One row and one column of zeros stand for the neighbors outside the picture.
    out = np.zeros((height + 1, width + 1, unit), np.int16)
    rows = np.arange(height)
    for diagonal in range(height + width - 1):
        y = rows[max(0, diagonal - width + 1) : diagonal + 1]
        x = diagonal - y
        left, above, corner = out[y + 1, x], out[y, x + 1], out[y, x]  # (D, unit) each
        kind = kinds[y][:, None]
        guess = np.select(
            [kind == 1, kind == 2, kind == 3, kind == 4],
            [left, above, (left + above) >> 1, _paeth(left, above, corner)],
            np.int16(0),
        )
        out[y + 1, x + 1] = (given[y, x] + guess) & 0xFF
    return np.ascontiguousarray(out[1:, 1:].reshape(height, -1).astype(np.uint8))


def _paeth(left: NDArray[np.int16], above: NDArray[np.int16], corner: NDArray[np.int16]) -> NDArray[np.int16]:
    estimate = left + above - corner
    by_left, by_above, by_corner = abs(estimate - left), abs(estimate - above), abs(estimate - corner)
    nearest = np.where(
        (by_left <= by_above) & (by_left <= by_corner), left, np.where(by_above <= by_corner, above, corner)
    )
    return nearest.astype(np.int16)
