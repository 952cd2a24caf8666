"""Neighbors: the pictures whose features point into the most similar direction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opsin.errors import ConfigError, ShapeError

PART = 1024  # rows of queries that are compared at once


def nearest(
    values: NDArray[np.float32], queries: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows most similar to each query by the cosine between them, the most similar first; ties in order of the rows.

    Features of zeros have no direction: they are similar to nothing (0).

    Args:
        values: (N, D), what is searched.
        queries: (M, D).
        count: rows per query, at most N.

    Returns:
        Positions (M, count) in `values`, and their cosines in [-1, 1].

    Raises:
        ShapeError: if the widths differ, or features are not flat or not finite.
        ConfigError: if `count` is not in 1 to N.
    """
    if values.ndim != 2 or queries.ndim != 2 or values.shape[1] != queries.shape[1]:
        raise ShapeError(f"Features {values.shape} and queries {queries.shape}; expected (N, D) and (M, D).")
    if not (np.isfinite(values).all() and np.isfinite(queries).all()):
        raise ShapeError("Some features are not finite; do the model's weights hold numbers?")
    if not 1 <= count <= len(values):
        raise ConfigError(f"{count} neighbors were asked for; expected 1 to {len(values)}, the pictures searched.")
    directions = _directions(values)
    places, cosines = [], []
    for start in range(0, len(queries), PART):
        similar = _directions(queries[start : start + PART]) @ directions.T  # (m, N)
        order = np.argsort(-similar, axis=1, kind="stable")[:, :count]
        places.append(order)
        cosines.append(np.take_along_axis(similar, order, axis=1))
    if not places:
        return np.zeros((0, count), np.int64), np.zeros((0, count))
    return np.concatenate(places), np.concatenate(cosines)


def _directions(values: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    found: NDArray[np.float64] = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
    return found
