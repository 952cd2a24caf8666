"""Projections: features of many numbers as points in two or three dimensions, with a measure of what was kept.

Engines: scikit-learn (PCA, t-SNE) and umap-learn where it is installed. Trustworthiness (Venna and Kaski 2001) is 1 when
whatever lies near a point in the drawing lies near it among the features too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.errors import ConfigError, UnknownName

METHODS = ("pca", "tsne", "umap")
FIRST_COMPONENTS = 50  # t-SNE and UMAP start from so many principal components: quicker, and less noise
NEIGHBORS = 10  # of the trustworthiness


@dataclass(frozen=True)
class Projection:
    """Points.

    Args:
        points: (N, 2) or (N, 3) float32, centered, the largest coordinate 1.
        by: the method.
        trustworthiness: in [0, 1].
        neighbors: that it was measured with.
        seed: of what is drawn at random.
        details: how the method was set; for PCA the shares of variance.
    """

    points: NDArray[np.float32]
    by: str
    trustworthiness: float
    neighbors: int
    seed: int
    details: dict[str, Any] = field(default_factory=dict)


def project(
    values: NDArray[np.float32], by: str = "pca", dimensions: int = 2, *, seed: int = 0, perplexity: float = 30.0
) -> Projection:
    """Features (N, D) as points.

    Args:
        values: at least 4 rows.
        by: "pca", "tsne" or "umap".
        dimensions: 2 or 3.
        seed: of t-SNE and UMAP.
        perplexity: of t-SNE, about the number of neighbors that each point keeps; lowered where there are few points.

    Raises:
        UnknownName: for another method.
        ConfigError: with fewer rows, other dimensions, features that are not finite, or without umap-learn for "umap".
    """
    from sklearn.manifold import trustworthiness

    if by not in METHODS:
        raise UnknownName("projection", by, METHODS)
    if dimensions not in (2, 3):
        raise ConfigError(f"A projection has 2 or 3 dimensions, not {dimensions}.")
    flat = np.asarray(values.reshape(len(values), -1), np.float64)
    if len(flat) < 4 or flat.shape[1] < 1:
        raise ConfigError(f"{len(flat)} pictures are too few to project; expected 4 or more.")
    if not np.isfinite(flat).all():
        raise ConfigError("Some features are not finite; do the model's weights hold numbers?")
    scores, shares = _principal(flat)
    details: dict[str, Any] = {}
    if by == "pca":
        points = _padded(scores, dimensions)
        details["explained_variance"] = [float(share) for share in shares[:dimensions]]
    elif by == "tsne":
        points, details = _tsne(scores, dimensions, seed, perplexity)
    else:
        points, details = _umap(scores, dimensions, seed)
    k = min(NEIGHBORS, (len(flat) - 1) // 2)
    trust = float(trustworthiness(flat, points, n_neighbors=k))
    points = points - points.mean(0)
    largest = float(np.abs(points).max())
    return Projection((points / (largest or 1.0)).astype(np.float32), by, trust, k, seed, details)


def _principal(flat: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates along the principal directions (N, R), and the share of the variance of each: its squared singular value."""
    from sklearn.utils.extmath import svd_flip

    left, singular, right = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    left, _ = svd_flip(left, right, u_based_decision=False)
    total = float((singular**2).sum())
    return left * singular, singular**2 / (total or 1.0)


def _padded(scores: NDArray[np.float64], dimensions: int) -> NDArray[np.float64]:
    found = scores[:, :dimensions]
    return np.pad(found, ((0, 0), (0, dimensions - found.shape[1])))


def _tsne(
    scores: NDArray[np.float64], dimensions: int, seed: int, perplexity: float
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    from sklearn.manifold import TSNE

    if not perplexity > 0:
        raise ConfigError(f"A perplexity of {perplexity}; expected more than 0, usually 5 to 50.")
    used = min(perplexity, (len(scores) - 1) / 3)
    start = _padded(scores, dimensions)
    start = start / (start[:, 0].std() or 1.0) * 1e-4  # the principal components, small: clusters keep their order
    engine = TSNE(dimensions, perplexity=used, early_exaggeration=12.0, init=start, random_state=seed)
    points: NDArray[np.float64] = engine.fit_transform(scores[:, :FIRST_COMPONENTS])
    return points, {
        "perplexity": used,
        "early_exaggeration": 12.0,
        "init": "pca",
        "divergence": float(engine.kl_divergence_),
    }


def _umap(scores: NDArray[np.float64], dimensions: int, seed: int) -> tuple[NDArray[np.float64], dict[str, Any]]:
    if find_spec("umap") is None:
        raise ConfigError(
            "UMAP needs the package 'umap-learn'. Install it with: pip install umap-learn (or take tsne)."
        )
    umap: Any = import_module("umap")
    neighbors = min(15, len(scores) - 1)
    engine = umap.UMAP(n_components=dimensions, n_neighbors=neighbors, random_state=seed)
    points: NDArray[np.float64] = engine.fit_transform(scores[:, :FIRST_COMPONENTS])
    return points, {"neighbors": neighbors}
