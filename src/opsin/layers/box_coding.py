"""Boxes as what a network says of them: deltas from an anchor (R-CNN), or distances from a point to the four sides (FCOS).

Boxes and anchors are xyxy in pixels. Decoding undoes encoding; its arithmetic is in float32 at least, because anchors are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Weights = tuple[float, float, float, float]

LARGEST_GROWTH = math.log(1000 / 16)  # of a side, before exp; what R-CNN's implementations allow


def encode_deltas(boxes: Tensor, anchors: Tensor, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Deltas that turn anchors into boxes: shift of the center in anchor sides, logarithm of the growth.

    Source: Rich feature hierarchies (R-CNN), 2013, appendix C; the weights are the inverse variances of SSD and Fast R-CNN.

    Args:
        boxes: (..., 4), of positive width and height.
        anchors: (..., 4), likewise.
        weights: factors of dx, dy, dw, dh.

    Returns:
        (..., 4) dx, dy, dw, dh.
    """
    sides, center = anchors[..., 2:] - anchors[..., :2], (anchors[..., :2] + anchors[..., 2:]) / 2
    new_sides, new_center = boxes[..., 2:] - boxes[..., :2], (boxes[..., :2] + boxes[..., 2:]) / 2
    shift, growth = (new_center - center) / sides, torch.log(new_sides / sides)
    return torch.cat((shift, growth), dim=-1) * shift.new_tensor(weights)


def decode_deltas(deltas: Tensor, anchors: Tensor, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """The boxes (..., 4) that deltas (..., 4) make of anchors (..., 4); a side grows 62.5-fold at most."""
    sides, center = anchors[..., 2:] - anchors[..., :2], (anchors[..., :2] + anchors[..., 2:]) / 2
    wx, wy, ww, wh = weights
    shift = torch.stack((deltas[..., 0] / wx, deltas[..., 1] / wy), dim=-1)
    growth = torch.stack((deltas[..., 2] / ww, deltas[..., 3] / wh), dim=-1).to(sides.dtype)
    new_center, half = shift * sides + center, torch.exp(growth.clamp(max=LARGEST_GROWTH)) * sides / 2
    return torch.cat((new_center - half, new_center + half), dim=-1)


def encode_distances(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Distances from the centers of anchors (..., 4) to the left, top, right and bottom of boxes (..., 4), in anchor sides.

    Source: FCOS, 2019, equation 1; a side is the level's stride there.
    """
    sides, center = anchors[..., 2:] - anchors[..., :2], (anchors[..., :2] + anchors[..., 2:]) / 2
    return torch.cat(((center - boxes[..., :2]) / sides, (boxes[..., 2:] - center) / sides), dim=-1)


def decode_distances(distances: Tensor, anchors: Tensor) -> Tensor:
    """The boxes (..., 4) that have such distances (..., 4) from the centers of anchors (..., 4)."""
    sides, center = anchors[..., 2:] - anchors[..., :2], (anchors[..., :2] + anchors[..., 2:]) / 2
    return torch.cat((center - distances[..., :2] * sides, center + distances[..., 2:] * sides), dim=-1)


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) cut at the edges of a picture of `size` (H, W)."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)
