"""Perceptual hash of pictures and the search for hashes that nearly agree, in less than all pairs.

The hash is the 64-bit DCT hash (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010):
the picture as 32 x 32 grey values, its two-dimensional DCT-II, the 8 x 8 lowest frequencies without the zeroth row
and column, one bit per coefficient: above the median of the 64 or not. Scaling, recompression and small changes of
light move few bits; Hamming distance <= 6 is the customary sign of a near duplicate.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

SIDE = 32
"""Side of the grey thumbnail that is hashed."""

Hashes = NDArray[np.uint64]
Pairs = NDArray[np.int64]

_BANDS = 4
_BAND_BITS = 16
_CHUNK = 1 << 21


@cache
def dct_rows() -> NDArray[np.float32]:
    """Rows 1 to 8 of the orthonormal DCT-II matrix of size 32, shape (8, 32)."""
    k = np.arange(1, 9)[:, None]
    n = np.arange(SIDE)[None, :]
    rows: NDArray[np.float32] = (np.sqrt(2 / SIDE) * np.cos(np.pi * (2 * n + 1) * k / (2 * SIDE))).astype(np.float32)
    return rows


def dct_hash(thumbnails: NDArray[np.uint8]) -> Hashes:
    """The 64-bit DCT hash of grey thumbnails.

    Args:
        thumbnails: (N, 32, 32) grey values.

    Returns:
        (N,) uint64; bit 8 r + c (most significant first) belongs to frequency (r + 1, c + 1).
    """
    rows = dct_rows()
    out = np.empty(len(thumbnails), np.uint64)
    for start in range(0, len(thumbnails), 4096):
        block = thumbnails[start : start + 4096].astype(np.float32)  # (n, 32, 32)
        low = (rows @ block @ rows.T).reshape(len(block), 64)  # (n, 64)
        # A flat picture has coefficients of rounding noise alone: the tolerance turns them into zeros.
        above = low > np.maximum(np.median(low, axis=1, keepdims=True), 1e-3)
        out[start : start + 4096] = np.packbits(above, axis=1).view(">u8")[:, 0]
    return out


def hamming(a: Hashes, b: Hashes) -> NDArray[np.uint8]:
    """Number of bits in which hashes differ, elementwise."""
    distance: NDArray[np.uint8] = np.bitwise_count(a ^ b)
    return distance


def _spread(hashes: Hashes) -> list[NDArray[np.uint16]]:
    """Cut hashes into four 16-bit bands, each with bits of all frequencies, so that no band is the same for all."""
    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)  # (N, 64)
    return [np.packbits(bits[:, band::_BANDS], axis=1).view(">u2")[:, 0].astype(np.uint16) for band in range(_BANDS)]


def candidate_pairs(hashes: Hashes, radius: int = 6) -> Iterator[Pairs]:
    """All pairs of hashes at Hamming distance <= radius, in blocks (n, 2) of bounded size.

    Multi-index hashing (Norouzi, Punjani, Fleet, 2012): if two 64-bit hashes differ in at most 7 bits, then in one of
    four 16-bit bands they differ in at most one. Every pair comes once: from the first band that finds it.

    Args:
        hashes: (N,) 64-bit hashes; give each only once, as N equal hashes are N^2 pairs.
        radius: at most 7.
    """
    if radius > 2 * _BANDS - 1:
        raise ValueError(f"radius {radius} is more than {2 * _BANDS - 1}, for which the four bands are made.")
    bands = _spread(hashes)
    for place, band in enumerate(bands):
        order = np.argsort(band, kind="stable")
        starts = np.searchsorted(band[order], np.arange((1 << _BAND_BITS) + 1, dtype=np.uint32))
        for flip in (0, *(1 << bit for bit in range(_BAND_BITS))):
            if flip:
                queries = np.flatnonzero((band & flip) == 0)  # of a pair, the one whose bit is clear asks
                wanted = band[queries].astype(np.int64) | flip
                first, last = starts[wanted], starts[wanted + 1]
            else:
                queries = order
                first = np.arange(1, len(order) + 1)  # those behind it in its own bucket
                last = starts[band[order].astype(np.int64) + 1]
            for left, right in _joined(queries, order, first, last):
                near = hamming(hashes[left], hashes[right]) <= radius
                left, right = left[near], right[near]
                for earlier in bands[:place]:
                    new = np.bitwise_count(earlier[left] ^ earlier[right]) > 1
                    left, right = left[new], right[new]
                if len(left):
                    yield np.sort(np.stack([left, right], axis=1), axis=1)  # (n, 2)


def _joined(queries: Pairs, order: Pairs, first: Pairs, last: Pairs) -> Iterator[tuple[Pairs, Pairs]]:
    """Expand (query, range of `order`) into index pairs, about 2 million at a time."""
    counts = np.maximum(last - first, 0)
    busy = np.flatnonzero(counts)
    counts, queries, first = counts[busy], queries[busy], first[busy]
    ends = np.cumsum(counts)
    start = 0
    while start < len(queries):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _CHUNK, side="right")))
        part = counts[start:stop]
        within = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
        yield np.repeat(queries[start:stop], part), order[np.repeat(first[start:stop], part) + within]
        start = stop
