"""Losses of classifiers and attribute heads, each as a sum with the count that it is divided by, once and globally.

Every `*_count` function gives the count of its loss from the targets alone, so that it can be summed over micro-batches
and processes before the first backward pass. Arithmetic is in float32 at least (double stays double).

Shapes: B batch, K classes or attributes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from opsin.errors import ShapeError
from opsin.task import Part

IGNORED = -1  # an integer target that is not counted


def cross_entropy_sum(
    logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Part:
    """Cross-entropy between softmax(logits) and one class, or a distribution over classes, per picture.

    With class weights a picture counts as much as its class weighs, so sum / count is what
    `torch.nn.functional.cross_entropy` gives for integer targets. For distributions torch divides by B; here a one-hot
    row counts exactly as its integer would, so mixing labels does not change the scale of the loss.

    Args:
        logits: (B, K).
        target: (B,) integers, -1 for pictures that are not counted, or (B, K) shares (soft labels, mixup), which sum
            to 0 in rows that are not counted.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1].
        class_weights: (K,), all 1 when None.

    Returns:
        Part(sum, count).
    """
    _check_rows("logits", logits)
    logits = _at_least_float32(logits)
    weights = None if class_weights is None else class_weights.to(logits)
    count = cross_entropy_count(target, class_weights).to(logits.dtype)
    if target.ndim == 1:
        _check_length(logits, target)
        total = F.cross_entropy(
            logits, target.long(), weights, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
        )
    else:
        _check_same_shape(logits, target)
        shares = target.to(logits.dtype)
        # Smoothed here: torch gives the even part to every row, also to one that is not counted
        even = shares.sum(1, keepdim=True) / shares.shape[1]
        shares = (1 - label_smoothing) * shares + label_smoothing * even
        total = F.cross_entropy(logits, shares, weights, reduction="sum")
    return Part(total, count)


def cross_entropy_count(target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """What `cross_entropy_sum` is divided by, scalar: counted pictures, each as much as its class weighs."""
    if target.ndim == 1:
        counted = target != IGNORED  # (B,)
        if class_weights is None:
            return counted.sum().to(torch.get_default_dtype())
        return class_weights.to(target.device)[target.long().clamp_min(0)][counted].sum()
    if class_weights is None:
        return target.sum()
    return (target * class_weights.to(target)).sum()


def binary_cross_entropy_sum(logits: Tensor, target: Tensor, *, positive_weights: Tensor | None = None) -> Part:
    """Binary cross-entropy per attribute; entries whose target is nan are missing and not counted.

    Args:
        logits: (B, K).
        target: (B, K) in [0, 1], nan where the label is missing.
        positive_weights: (K,) factors of the positive term, as `pos_weight` of torch.

    Returns:
        Part(sum over present entries, number of present entries).
    """
    _check_same_shape(logits, target)
    logits = _at_least_float32(logits)
    present = ~target.isnan()  # (B, K)
    filled = target.nan_to_num(0.0).to(logits.dtype)
    weight = None if positive_weights is None else positive_weights.to(logits)
    values = F.binary_cross_entropy_with_logits(logits, filled, reduction="none", pos_weight=weight)  # (B, K)
    return Part(values.where(present, 0.0).sum(), binary_count(target).to(logits.dtype))


def binary_count(target: Tensor) -> Tensor:
    """What the binary losses are divided by, scalar: entries of the target that are not nan."""
    return (~target.isnan()).sum().to(torch.get_default_dtype())


def focal_sum(logits: Tensor, target: Tensor, *, gamma: float = 2.0, class_weights: Tensor | None = None) -> Part:
    """Cross-entropy times (1 - p)^gamma, p being the probability of the true class: easy pictures count for less.

    Focal loss, https://arxiv.org/abs/1708.02002, equation 5, for one class out of K; gamma 0 is cross-entropy.

    Args:
        logits: (B, K).
        target: (B,) integers, -1 for pictures that are not counted.
        gamma: 0 or more.
        class_weights: (K,), the paper's alpha; all 1 when None.

    Returns:
        Part(sum, count) with the count of `cross_entropy_count`.
    """
    _check_rows("logits", logits)
    _check_length(logits, target)
    log_p = _at_least_float32(logits).log_softmax(1)  # (B, K)
    counted = target != IGNORED
    index = target.long().clamp_min(0)
    log_true = log_p.gather(1, index[:, None])[:, 0]  # (B,)
    # 1 - p as a clamped expm1: exact near p = 1, and a finite gradient at p = 1 for gamma < 1
    values = -log_true * (-torch.expm1(log_true)).clamp_min(torch.finfo(log_true.dtype).tiny).pow(gamma)
    if class_weights is not None:
        values = values * class_weights.to(values)[index]
    return Part(values.where(counted, 0.0).sum(), cross_entropy_count(target, class_weights).to(values.dtype))


def binary_focal_sum(logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float | None = 0.25) -> Part:
    """Focal loss per attribute or anchor; entries whose target is nan are missing and not counted.

    https://arxiv.org/abs/1708.02002, equation 5, on sigmoids.

    Args:
        logits: (B, K).
        target: (B, K) in {0, 1}, nan where the label is missing.
        gamma: 0 or more.
        alpha: weight of positives (negatives get 1 - alpha), or None.

    Returns:
        Part(sum over present entries, number of present entries).
    """
    _check_same_shape(logits, target)
    logits = _at_least_float32(logits)
    present = ~target.isnan()  # (B, K)
    truth = target.nan_to_num(0.0).to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")  # (B, K)
    p_wrong = torch.sigmoid(logits * (1 - 2 * truth))  # 1 - p of the true answer
    values = entropy * p_wrong.pow(gamma)
    if alpha is not None:
        values = values * (alpha * truth + (1 - alpha) * (1 - truth))
    return Part(values.where(present, 0.0).sum(), binary_count(target).to(logits.dtype))


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _check_rows(name: str, logits: Tensor) -> None:
    if logits.ndim != 2:
        raise ShapeError(f"{name} have shape {tuple(logits.shape)}; expected (B, K).")


def _check_length(logits: Tensor, target: Tensor) -> None:
    if target.ndim != 1 or len(target) != len(logits):
        raise ShapeError(
            f"target has shape {tuple(target.shape)}; expected ({len(logits)},), one class per row of the logits."
        )
    if target.is_floating_point():
        raise ShapeError(f"target has type {target.dtype}; expected integers, the class of each picture.")


def _check_same_shape(logits: Tensor, target: Tensor) -> None:
    if logits.shape != target.shape:
        raise ShapeError(
            f"target has shape {tuple(target.shape)}; expected {tuple(logits.shape)}, the shape of the logits."
        )
