"""Overlap of boxes and their partners in torch, with gradient: what losses of boxes are made of.

Boxes are (x1, y1, x2, y2), in any unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torchvision.ops as ops
from torch import Tensor

from opsin.errors import ShapeError

Kind = Literal["iou", "giou", "diou", "ciou"]
EPSILON = 1e-7  # of torchvision's losses; boxes without area have a finite loss and gradient

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "giou": ops.generalized_box_iou_loss,
    "diou": ops.distance_box_iou_loss,
}


def overlap(first: Tensor, second: Tensor, kind: Kind = "iou", epsilon: float = EPSILON) -> Tensor:
    """Overlap of each box with its partner, (N, 4) and (N, 4) to (N,); finite, with finite gradient, for any boxes.

    Args:
        first, second: boxes.
        kind: IoU in [0, 1], GIoU (Rezatofighi 2019), DIoU or CIoU (Zheng 2020) in [-1, 1].
        epsilon: added to what is divided by, in squares of the boxes' unit; less for shares of a picture than for pixels.

    Raises:
        ShapeError: if the two differ in shape.
    """
    if first.shape != second.shape or first.shape[-1] != 4:
        raise ShapeError(f"boxes have shapes {tuple(first.shape)} and {tuple(second.shape)}; expected (N, 4) twice.")
    if kind == "ciou":
        return _complete(first, second, epsilon)
    if kind != "iou":
        return 1 - _LOSSES[kind](first, second, reduction="none", eps=epsilon)
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    union = _area(first) + _area(second) - shared
    return shared / (union + epsilon)


def _complete(first: Tensor, second: Tensor, epsilon: float) -> Tensor:
    """CIoU (Zheng 2020, eq. 8 to 11); torchvision's is nan for boxes without width and height."""
    difference = _slope(second) - _slope(first)
    v = 4 / math.pi**2 * difference**2
    with torch.no_grad():
        share = v / (1 - overlap(first, second, epsilon=epsilon) + v + EPSILON)
    return overlap(first, second, "diou", epsilon) - share * v


def _slope(boxes: Tensor) -> Tensor:
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    return torch.atan(width / height.clamp_min(EPSILON))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)
