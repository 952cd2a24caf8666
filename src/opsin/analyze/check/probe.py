"""A quick classifier on thumbnails, for one purpose: what would the other pictures say about this label?

Features are gradient histograms (Dalal and Triggs, 2005, with each cell normalized by its surroundings), the picture
itself at 16 x 16, and colors at 8 x 8. Their principal components go through a Gaussian kernel ridge regression on up
to 1000 landmarks (Nystrom), solved in closed form once for every fold: the sums over a fold are subtracted from the
sums over all. So every picture is judged by a model that has seen neither it nor its duplicates, without any training
loop, and the result is the same on every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from opsin.analyze.check.hashing import SIDE
from opsin.seeding import numpy_generator

Array = NDArray[np.float32]

FOLDS = 5
_LANDMARKS = 1000
_COMPONENTS = 128
_CHUNK = 2048
_FEATURED = 512
_ORIENTATIONS = 9
_CELL_SCALE, _TINT_SCALE = 12.0, 3.0
_STRENGTHS = (0.03, 0.3, 3.0)


@dataclass(frozen=True)
class OutOfFold:
    """What a model trained without a sample says about it.

    Args:
        probabilities: (N, K), rows sum to one, calibrated by temperature on the samples themselves.
        accuracy: share of samples whose most probable class is the given label.
        kappa: the same, corrected for what always naming the largest class would reach: 0 is no better, 1 is perfect.
    """

    probabilities: Array
    accuracy: float
    kappa: float


def features(thumbnails: NDArray[np.uint8], colors: NDArray[np.uint8] | None) -> Array:
    """Describe thumbnails.

    Args:
        thumbnails: (N, 32, 32) grey.
        colors: (N, 8, 8, 3), or None for grey pictures.

    Returns:
        (N, 832), with colors (N, 1024).
    """
    grey = thumbnails.astype(np.float32) / 255
    n = len(grey)
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")  # (N, 34, 34)
    cells: NDArray[Any]
    half: NDArray[Any]
    dx = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]  # (N, 32, 32)
    dy = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    strength = np.hypot(dx, dy)
    place: NDArray[Any] = np.arctan2(dy, dx) % np.pi * (_ORIENTATIONS / np.pi)
    low = place.astype(np.int64)
    share = place - low
    line = np.arange(SIDE) // 4
    cell = ((np.arange(n)[:, None, None] * 8 + line[:, None]) * 8 + line) * _ORIENTATIONS  # (N, 32, 32)
    cells = _summed(cell + low % _ORIENTATIONS, strength * (1 - share), n * 64 * _ORIENTATIONS)
    cells += _summed(cell + (low + 1) % _ORIENTATIONS, strength * share, n * 64 * _ORIENTATIONS)
    cells = np.moveaxis(cells.reshape(n, 8, 8, _ORIENTATIONS), -1, 1) / 16  # (N, 9, 8, 8)
    energy = np.pad((cells**2).sum(1), ((0, 0), (1, 1), (1, 1)), mode="edge")  # (N, 10, 10)
    around = sum(energy[:, r : r + 8, c : c + 8] for r in range(3) for c in range(3))
    cells = cells / np.sqrt(np.asarray(around)[:, None] + 1e-3)
    half = grey.reshape(n, 16, 2, 16, 2).mean((2, 4)).reshape(n, -1)  # (N, 256)
    half = (half - half.mean(1, keepdims=True)) / (half.std(1, keepdims=True) + 0.05)
    parts: list[NDArray[Any]] = [cells.reshape(n, -1) * np.float32(_CELL_SCALE), half * np.float32(0.7)]
    if colors is not None:
        tint = colors.reshape(n, -1).astype(np.float32) / 255
        parts.append((tint - np.float32(0.5)) * np.float32(_TINT_SCALE))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _summed(places: NDArray[np.int64], weights: NDArray[Any], size: int) -> Array:
    return np.bincount(places.ravel(), weights.ravel(), size).astype(np.float32)


def components(thumbnails: NDArray[np.uint8], colors: NDArray[np.uint8] | None) -> Array:
    """Features in their principal components (found on at most 4000 samples), (N, D)."""
    some = np.sort(numpy_generator("check", "components").permutation(len(thumbnails))[:4000])
    sample = np.concatenate(list(_feature_blocks(thumbnails, colors, some)))
    mean = sample.mean(0)
    spread = np.cov((sample - mean).T)
    kept_from = len(spread) - min(_COMPONENTS, max(len(some) - 1, 1))
    kept = scipy.linalg.eigh(spread, subset_by_index=(kept_from, len(spread) - 1))[1].astype(np.float32)
    every = np.arange(len(thumbnails))
    return np.concatenate([(block - mean) @ kept for block in _feature_blocks(thumbnails, colors, every)])


def _feature_blocks(
    thumbnails: NDArray[np.uint8], colors: NDArray[np.uint8] | None, members: NDArray[np.int64]
) -> Iterator[Array]:
    for start in range(0, len(members), _FEATURED):
        block = members[start : start + _FEATURED]
        yield features(thumbnails[block], None if colors is None else colors[block])


def _distances(points: NDArray[Any], landmarks: NDArray[Any]) -> NDArray[Any]:
    squares = (points**2).sum(1)[:, None] + (landmarks**2).sum(1)[None] - 2 * points @ landmarks.T
    return np.asarray(np.maximum(squares, 0))


def out_of_fold(points: Array, labels: NDArray[np.int64], classes: int, folds: NDArray[np.int64]) -> OutOfFold:
    """Judge every sample by a model of the other folds.

    Args:
        points: (N, D) features.
        labels: (N,) in [0, classes).
        folds: (N,) in [0, FOLDS); duplicates must share a fold.
    """
    n = len(points)
    landmarks = points[np.sort(numpy_generator("check", "landmarks").permutation(n)[:_LANDMARKS])]
    scale = 1 / float(np.median(_distances(landmarks[:500], landmarks[:500])) + 1e-9)
    prior = np.bincount(labels, minlength=classes) / n
    m = len(landmarks)
    grams, rights = np.zeros((FOLDS, m, m)), np.zeros((FOLDS, m, classes))
    blocks = [(fold, block) for fold in range(FOLDS) for block in _blocks(np.flatnonzero(folds == fold))]
    for fold, block in blocks:
        # Squared in double precision: the sum of products must stay positive definite.
        kernel = np.exp(-scale * _distances(points[block], landmarks)).astype(np.float64)  # (n, M)
        grams[fold] += kernel.T @ kernel
        rights[fold] += kernel.T @ (np.eye(classes)[labels[block]] - prior)  # (M, n) (n, K)
    exact = landmarks.astype(np.float64)
    own = np.exp(-scale * _distances(exact, exact)) + 1e-6 * np.eye(m)
    gram, right = grams.sum(0), rights.sum(0)

    def scores(strength: float, wanted: tuple[int, ...]) -> Array:
        weights = {
            fold: scipy.linalg.cho_solve(
                scipy.linalg.cho_factor(gram - grams[fold] + strength * own, overwrite_a=True), right - rights[fold]
            ).astype(np.float32)
            for fold in wanted
        }
        parts = [
            np.exp(-scale * _distances(points[block], landmarks)) @ weights[fold]
            for fold, block in blocks
            if fold in weights
        ]
        return np.concatenate(parts) + prior.astype(np.float32)

    order = np.concatenate([block for _, block in blocks])
    first = order[folds[order] == folds[order[0]]]
    strength = min(_STRENGTHS, key=lambda s: _calibrated(scores(s, (int(folds[order[0]]),)), labels[first])[0])
    probabilities = np.empty((n, classes), np.float32)
    probabilities[order] = _calibrated(scores(strength, tuple(range(FOLDS))), labels[order])[1]
    accuracy = float((probabilities.argmax(1) == labels).mean())
    return OutOfFold(probabilities, accuracy, (accuracy - prior.max()) / max(1 - prior.max(), 1e-9))


def _blocks(members: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.split(members, range(_CHUNK, len(members), _CHUNK)) if len(members) else []


def _calibrated(scores: Array, labels: NDArray[np.int64]) -> tuple[float, Array]:
    """Probabilities from scores: softmax at the temperature with the least log loss on the labels."""
    best: tuple[float, Array] | None = None
    for sharpness in np.geomspace(1, 40, 16):
        logits = scores * np.float32(sharpness)
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(1, keepdims=True)
        loss = float(-np.log(np.maximum(p[np.arange(len(p)), labels], 1e-7)).mean())
        if best is None or loss < best[0]:
            best = (loss, p)
    return best if best else (0.0, scores)
