"""Losses of detectors that predict a set: boxes are center x, center y, width, height as shares of the picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert

from opsin.losses.boxes import overlap


def paired_iou(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalized IoU (https://arxiv.org/abs/1902.09630) of boxes (M, 4) with others (M, 4), (M,) each.

    Areas are shares of the picture's, so small that the constant for pixels would change them.
    """
    a, b = box_convert(boxes, "cxcywh", "xyxy"), box_convert(others, "cxcywh", "xyxy")
    return overlap(a, b, "iou", 1e-12), overlap(a, b, "giou", 1e-12)


def box_losses(boxes: Tensor, true_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of absolute differences, and sum of 1 - generalized IoU, of pairs (M, 4): two scalars."""
    return (boxes - true_boxes).abs().sum(), (1 - paired_iou(boxes, true_boxes)[1]).sum()


def varifocal(logits: Tensor, quality: Tensor, matched: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Sum of the varifocal loss (https://arxiv.org/abs/2008.13367, equation 2): a scalar.

    Args:
        logits: (..., K).
        quality: (..., K), the wanted score: the IoU of the object's own class, 0 elsewhere.
        matched: (..., K) bool, true at the object's own class, even if its IoU is 0.
        alpha: weight of what is wanted to be 0.
        gamma: how much less those count that are near it.
    """
    weight = torch.where(matched, quality, alpha * logits.detach().sigmoid() ** gamma)
    return F.binary_cross_entropy_with_logits(logits, quality, weight, reduction="sum")


Pairs = Sequence[tuple[Tensor, Tensor]]
"""Per picture: positions of predictions, and of the objects that they are matched to."""


def matched(values: Tensor, pairs: Pairs) -> Tensor:
    """The matched predictions of all pictures, (M, ...), of values (B, N, ...)."""
    return torch.cat([own[found] for own, (found, _) in zip(values, pairs, strict=True)])


def wanted(values: Sequence[Tensor], pairs: Pairs) -> Tensor:
    """The objects that they are matched to, (M, ...), of values (objects, ...) per picture."""
    return torch.cat([own[objects] for own, (_, objects) in zip(values, pairs, strict=True)])


def set_losses(
    logits: Tensor, boxes: Tensor, pairs: Pairs, true_boxes: Sequence[Tensor], true_labels: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Losses of one set of predictions, as sums over the pairs (the first over all predictions too), in float32 at least.

    Args:
        logits: (B, N, K), one sigmoid per class.
        boxes: (B, N, 4).
        pairs: which prediction is which object.
        true_boxes: (objects, 4) of every picture.
        true_labels: (objects,) of every picture.

    Returns:
        `labels` (varifocal), `distance` (L1) and `overlap` (1 - generalized IoU).
    """
    logits, boxes = (x if x.dtype == torch.float64 else x.float() for x in (logits, boxes))
    found, true = matched(boxes, pairs), wanted(true_boxes, pairs)
    iou = paired_iou(found.detach(), true)[0]
    quality = torch.zeros_like(logits)
    own = torch.zeros_like(logits, dtype=torch.bool)
    picture = torch.cat([torch.full_like(place, i) for i, (place, _) in enumerate(pairs)])
    place = torch.cat([place for place, _ in pairs])
    names = wanted(true_labels, pairs)
    quality[picture, place, names] = iou
    own[picture, place, names] = True
    distance, overlap = box_losses(found, true)
    return {"labels": varifocal(logits, quality, own), "distance": distance, "overlap": overlap}
