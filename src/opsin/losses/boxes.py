"""Overlap of boxes in torch, with gradient: one number per pair for matching, sums for losses.

Boxes are (x1, y1, x2, y2). Losses come as a sum with its count, like those of classification.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torchvision.ops as ops
from torch import Tensor

from opsin.errors import ShapeError
from opsin.task import Part

Kind = Literal["iou", "giou", "diou", "ciou"]
EPSILON = 1e-7  # of torchvision's losses; boxes without area have a finite loss and gradient

_PAIRWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "iou": ops.box_iou,
    "giou": ops.generalized_box_iou,
    "diou": ops.distance_box_iou,
    "ciou": ops.complete_box_iou,
}
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "giou": ops.generalized_box_iou_loss,
    "diou": ops.distance_box_iou_loss,
}


def pairwise_overlap(first: Tensor, second: Tensor, kind: Kind = "iou") -> Tensor:
    """Overlap of every pair, (N, 4) and (M, 4) to (N, M); degenerate boxes give 0 and not nan for IoU.

    Args:
        first, second: boxes.
        kind: IoU in [0, 1], GIoU (Rezatofighi 2019), DIoU or CIoU (Zheng 2020) in [-1, 1].
    """
    return torch.nan_to_num(_PAIRWISE[kind](first, second)) if kind == "iou" else _PAIRWISE[kind](first, second)


def overlap(first: Tensor, second: Tensor, kind: Kind = "iou") -> Tensor:
    """Overlap of each box with its partner, (N, 4) and (N, 4) to (N,); finite, with finite gradient, for any boxes.

    Raises:
        ShapeError: if the two differ in shape.
    """
    if first.shape != second.shape or first.shape[-1] != 4:
        raise ShapeError(f"boxes have shapes {tuple(first.shape)} and {tuple(second.shape)}; expected (N, 4) twice.")
    if kind == "ciou":
        return _complete(first, second)
    if kind != "iou":
        return 1 - _LOSSES[kind](first, second, reduction="none", eps=EPSILON)
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    union = _area(first) + _area(second) - shared
    return shared / (union + EPSILON)


def overlap_loss_sum(predicted: Tensor, target: Tensor, kind: Kind = "giou", weights: Tensor | None = None) -> Part:
    """Sum of 1 - overlap over pairs of boxes.

    Args:
        predicted: (N, 4), with gradient; N = 0 gives 0 that still has a gradient.
        target: (N, 4).
        kind: see `pairwise_overlap`.
        weights: (N,), what each pair counts; 1 each when None.

    Returns:
        Part(sum, count), count = N or the sum of the weights.
    """
    each = 1 - overlap(predicted, target, kind)
    if weights is None:
        return Part(each.sum(), float(len(predicted)))
    return Part((each * weights).sum(), weights.sum())


def _complete(first: Tensor, second: Tensor) -> Tensor:
    """CIoU (Zheng 2020, eq. 8 to 11); torchvision's is nan for boxes without width and height."""
    difference = _slope(second) - _slope(first)
    v = 4 / math.pi**2 * difference**2
    with torch.no_grad():
        share = v / (1 - overlap(first, second) + v + EPSILON)
    return overlap(first, second, "diou") - share * v


def _slope(boxes: Tensor) -> Tensor:
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    return torch.atan(width / height.clamp_min(EPSILON))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)
