"""What a classifier has to know of a data set: heads, picture sizes, pixel statistics, class weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opsin.data.spec import convert, spec_of
from opsin.errors import DataError
from opsin.task import ImageSpec

if TYPE_CHECKING:
    from opsin.data.dataset import Dataset

LOOKED_AT = 500  # training pictures that statistics are taken from
EFFECTIVE_BETA = 0.999


def infer_heads(data: Dataset) -> list[dict[str, Any]]:
    """Heads of the data set as keyword arguments: name, kind and class names.

    Raises:
        DataError: if there are no labels, or a column holds numbers that are no classes.
    """
    if not data.heads:
        raise DataError(
            f"{data.name} has pictures but no labels, and training a classifier needs them. Sort the pictures into one "
            f"folder per class, or write a table (file,label) and pass it with --data table.csv."
        )
    if any(head.kind == "objects" for head in data.heads):
        count = sum(sum(data.counts(head.name).values()) for head in data.heads if head.kind == "objects")
        raise DataError(
            f"{data.name} ({data.format}) holds {count:,} boxes in {len(data):,} pictures, not classes of whole pictures. "
            f"Train a detector: opsin train detect --data {data.root}. To classify, give class folders or a table."
        )
    numbers = [head.name for head in data.heads if head.kind == "regression"]
    if numbers:
        raise DataError(
            f"{data.name}: column {', '.join(map(repr, numbers))} holds numbers, not classes. Leave it out with --columns, "
            f"or write its values as words (e.g. small, large) to use them as classes."
        )
    few = [head.name for head in data.heads if head.kind == "single" and len(head.class_names) < 2]
    if few:
        raise DataError(f"{data.name}: '{few[0]}' has only one class; a classifier needs at least two.")
    return [{"name": head.name, "kind": head.kind, "class_names": tuple(head.class_names)} for head in data.heads]


def to_spec(image: Tensor, want: ImageSpec) -> Tensor:
    """A picture (C, H, W) as (want.channels, H, W) of type want.dtype.

    Values of the wanted type count in the wanted range; of another type, over its whole range (floats over [0, 1]).
    """
    have = spec_of(image)
    if have.dtype == want.dtype:
        have = have._replace(range=want.range)
    return image if have == want else convert(image, have, want)


def _some(indices: NDArray[np.int64], count: int = LOOKED_AT) -> NDArray[np.int64]:
    if len(indices) <= count:
        return indices
    return indices[np.linspace(0, len(indices) - 1, count).round().astype(np.int64)]


def picture_sizes(data: Dataset, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, 2) heights and widths of the pictures, or of an even choice of them."""
    if data.arrays is not None:
        return np.array([data.arrays.shape[-2:]], np.int64)
    return np.array([data.size(int(i)) for i in _some(indices)], np.int64)


def pixel_statistics(
    data: Dataset, indices: NDArray[np.int64], want: ImageSpec
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of training pixels, as shares of the range; each picture counts alike."""
    low, high = want.range
    means, squares = [], []
    for i in _some(indices):
        pixels = (to_spec(data.read(int(i), reduce_to=64).image, want).to(torch.float64) - low) / (high - low)
        means.append(pixels.mean((1, 2)))
        squares.append((pixels**2).mean((1, 2)))
    mean = torch.stack(means).mean(0)
    std = (torch.stack(squares).mean(0) - mean**2).clamp_min(1e-6).sqrt()
    return tuple(round(float(v), 6) for v in mean), tuple(max(round(float(v), 6), 1e-3) for v in std)


def class_weights(data: Dataset, indices: NDArray[np.int64], head: str, k: int, rule: str) -> tuple[float, ...]:
    """Weight per class, largest 1: inverse frequency, or inverse effective number (1 - b^n) / (1 - b), b = .999.

    "Class-Balanced Loss Based on Effective Number of Samples", Cui et al. 2019, equation 3.
    """
    target = data.targets[head][indices]
    counts = np.bincount(target[target >= 0], minlength=k).astype(np.float64)
    seen = counts > 0
    amount = counts if rule == "inverse" else (1 - EFFECTIVE_BETA**counts) / (1 - EFFECTIVE_BETA)
    weights = np.where(seen, 1.0 / np.maximum(amount, 1e-12), 0.0)
    return tuple(float(w) for w in weights / weights.max())


def prior_logits(target: NDArray[Any], k: int, weights: Sequence[float] | None = None) -> NDArray[np.float32]:
    """Logits (K,) that have the lowest loss of all that are the same for every sample.

    Args:
        target: (N,) classes, -1 where missing, whose logits are log shares; or (N, K) labels, nan where missing, whose
            logits are log odds.
        k: K.
        weights: of the classes in the loss.

    A class or label without a sample, or without a sample that lacks it, is taken to have half a one.
    """
    if target.ndim == 1:
        counts = np.maximum(np.bincount(target[target >= 0], minlength=k), 0.5)
        counts = counts if weights is None else np.maximum(counts * np.asarray(weights), 1e-6)
        return np.asarray(np.log(counts / counts.sum()), np.float32)
    known = np.isfinite(target).sum(0)
    with_label = np.nansum(target, axis=0)
    odds = np.maximum(with_label, 0.5) / np.maximum(known - with_label, 0.5)
    return np.asarray(np.log(odds), np.float32)


def class_counts(data: Dataset, indices: NDArray[np.int64]) -> Mapping[str, dict[str, int]]:
    """Samples (or objects) per class and head among some samples."""
    found = {}
    for head in data.heads:
        target = data.targets[head.name][indices]
        if head.kind == "single":
            counts = np.bincount(target[target >= 0], minlength=len(head.class_names))
        elif head.kind == "multi":
            counts = np.nansum(target, axis=0).astype(np.int64)
        elif head.kind == "objects":
            counts = np.bincount(target.objects.labels, minlength=len(head.class_names))
        else:
            continue
        found[head.name] = {name: int(n) for name, n in zip(head.class_names, counts)}
    return found


def may_mirror(class_names: Sequence[str]) -> bool:
    """Whether a mirrored thing is still of its class: not where names speak of left and right, or are digits or letters."""
    names = [str(name).lower() for name in class_names]
    return not any("left" in n or "right" in n for n in names) and not (names and all(len(n) <= 1 for n in names))


def spec_words(spec: ImageSpec) -> str:
    """A spec in words for reports, e.g. "RGB 8 bit"."""
    names = {1: "gray", 2: "gray with alpha", 3: "RGB", 4: "RGB with alpha"}
    depths = {"uint8": "8 bit", "uint16": "16 bit", "float32": "float"}
    return f"{names.get(spec.channels, f'{spec.channels} channels')} {depths[spec.dtype]}"
