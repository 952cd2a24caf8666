"""Which pictures are the same, and which are nearly: same bytes, same pixels, or the same view saved again.

A pair is a near duplicate when all of these hold (`CheckOptions` has the thresholds):

* at most 6 of the 64 bits of the DCT hash differ,
* the grey thumbnails correlate at least 0.97, and so (at least 0.95) do the colors,
* the differences between neighboring thumbnail pixels correlate at least 0.9; at least 0.98 for pictures with a
  short side below 64. This tells a picture saved twice from two drawings of the same thing. Measured on the 70,000
  pictures of MNIST: the first two rules alone flag 18,428 pairs, nearly all of them two different ones; with the
  third rule 1 pair is left. On Fashion-MNIST, which holds near copies, they flag 11,144 and 91 pairs.

Pictures with nearly no content (standard deviation below 4 of 255) have no meaningful hash and are compared by bytes
alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from opsin.analyze.check.grouping import join
from opsin.analyze.check.hashing import candidate_pairs, hamming
from opsin.data.image import read_image
from opsin.errors import DataError

if TYPE_CHECKING:
    from opsin.analyze.check.facts import Facts
    from opsin.analyze.check.findings import CheckOptions
    from opsin.data.dataset import Dataset

Pairs = NDArray[np.int64]

MOST_CANDIDATES = 50_000_000
"""The search stops after so many candidate pairs (pictures that are nearly all alike) and says so."""
MOST_PAIRS = 2_000_000
"""And after so many near duplicates."""
SMALL = 64
_LITTLE_CONTENT = 4.0
_TINT = 0.95
_SLACK = 0.02
_COMPARED = 2000
_CHUNK = 8192


@dataclass(frozen=True)
class Likeness:
    """Near duplicates.

    Args:
        pairs: (M, 2) positions, most alike first.
        correlation: (M,) of the thumbnails.
        distance: (M,) bits of the hash that differ.
        complete: False if the search was cut short.
    """

    pairs: Pairs
    correlation: NDArray[np.float32]
    distance: NDArray[np.uint8]
    complete: bool = True

    def joined(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cluster codes (N,) after joining every pair."""
        return join(codes, self.pairs)


def by_bytes(facts: Facts) -> NDArray[np.int64]:
    """(N,) codes, equal for files with the same bytes; -1 for those that cannot be read."""
    both = np.ascontiguousarray(facts.digests).view("V16").ravel()
    codes = np.unique(both, return_inverse=True)[1].astype(np.int64).reshape(-1)
    return np.where(facts.readable, codes, -1)


def exact_labels(facts: Facts, dataset: Dataset, near: Likeness) -> NDArray[np.int64]:
    """(N,) codes, equal for pictures with the same bytes or the same pixels; -1 for those that cannot be read.

    Same pixels in different files (another format, other metadata) are near duplicates first; those of equal size
    that are as good as identical, at most 2000 pairs, are decoded and compared.
    """
    codes = by_bytes(facts)
    if dataset.arrays is not None or not len(near.pairs):
        return codes
    left, right = near.pairs.T
    same_size = (facts.sizes[left] == facts.sizes[right]).all(1)
    likely = near.pairs[same_size & (near.correlation > 0.9999)][:_COMPARED]
    equal = [pair for pair in likely if _same_pixels(dataset, int(pair[0]), int(pair[1]))]
    return join(codes, np.array(equal, np.int64).reshape(-1, 2))


def _same_pixels(dataset: Dataset, i: int, j: int) -> bool:
    try:
        (one, _), (other, _) = (read_image(dataset.bytes_of(k)[0]) for k in (i, j))
    except DataError:
        return False
    return one.dtype == other.dtype and torch.equal(one, other)


def near_pairs(facts: Facts, options: CheckOptions) -> Likeness:
    """All near duplicates among pictures that differ in their bytes."""
    codes = by_bytes(facts)
    usable = np.flatnonzero(facts.readable & (facts.stds >= _LITTLE_CONTENT))
    usable = usable[np.unique(codes[usable], return_index=True)[1]]
    seen, found, complete = 0, 0, True
    kept, correlations = [], []
    for block in candidate_pairs(facts.hashes[usable], options.hash_distance):
        seen += len(block)
        for start in range(0, len(block), _CHUNK):
            pairs = usable[block[start : start + _CHUNK]]
            pairs, correlation = _confirmed(facts, options, pairs)
            kept.append(pairs)
            correlations.append(correlation)
            found += len(pairs)
        if seen > MOST_CANDIDATES or found > MOST_PAIRS:
            complete = False
            break
    if not kept:
        return Likeness(np.zeros((0, 2), np.int64), np.zeros(0, np.float32), np.zeros(0, np.uint8), complete)
    pairs, first = np.unique(np.sort(np.concatenate(kept), axis=1), axis=0, return_index=True)
    correlation = np.concatenate(correlations)[first]
    order = np.argsort(-correlation, kind="stable")
    pairs, correlation = pairs[order], correlation[order]
    return Likeness(pairs, correlation, hamming(facts.hashes[pairs[:, 0]], facts.hashes[pairs[:, 1]]), complete)


def _confirmed(facts: Facts, options: CheckOptions, pairs: Pairs) -> tuple[Pairs, NDArray[np.float32]]:
    """Those pairs (n, 2) whose thumbnails agree, and how well."""
    pairs = pairs[_roughly_correlated(facts, pairs) >= options.correlation - _SLACK]
    if not len(pairs):
        return pairs, np.zeros(0, np.float32)
    left, right = (facts.thumbnails[side].astype(np.float32) for side in pairs.T)
    correlation = _correlated(left, right)
    good = correlation >= options.correlation
    pairs, left, right, correlation = pairs[good], left[good], right[good], correlation[good]
    if not len(pairs):
        return pairs, correlation
    edges = _correlated(_edges(left), _edges(right))
    small = np.minimum(facts.sizes[pairs[:, 0]].min(1), facts.sizes[pairs[:, 1]].min(1)) < SMALL
    good = edges >= np.where(small, options.edge_correlation_small, options.edge_correlation)
    if facts.tints is not None:
        colors = (facts.tints[side].astype(np.float32) for side in pairs.T)
        good &= _correlated(*colors) >= _TINT
    return pairs[good], correlation[good]


def _roughly_correlated(facts: Facts, pairs: Pairs) -> NDArray[np.float32]:
    """Correlation of thumbnails from their known means and deviations: one pass over the pixels, right to 0.01."""
    flat = facts.thumbnails.reshape(len(facts.thumbnails), -1)
    left, right = pairs.T
    means, stds = facts.means, np.maximum(facts.stds, 1e-3)
    products = np.einsum("np,np->n", flat[left].astype(np.float32), flat[right].astype(np.float32)) / flat.shape[1]
    correlation: NDArray[np.float32] = (products - means[left] * means[right]) / (stds[left] * stds[right])
    return correlation


def _correlated(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pearson's correlation of each of n arrays with its partner, (n,)."""
    left, right = (
        side.reshape(len(side), -1) - side.reshape(len(side), -1).mean(1, keepdims=True) for side in (left, right)
    )
    norms = np.sqrt((left**2).sum(1) * (right**2).sum(1))
    correlation: NDArray[np.float32] = (left * right).sum(1) / np.maximum(norms, 1e-6)
    return correlation


def _edges(thumbnails: NDArray[np.float32]) -> NDArray[np.float32]:
    """Differences between neighbors, (n, 2, 31, 31)."""
    across = np.diff(thumbnails, axis=2)[:, :-1]
    return np.stack([across, np.diff(thumbnails, axis=1)[:, :, :-1]], axis=1)
