"""Which object an anchor is responsible for, and which anchors are drawn for a loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

BACKGROUND = -1  # no object
IGNORED = -2  # neither an object nor background: left out of the loss


def match_by_iou(boxes: Tensor, anchors: Tensor, high: float, low: float, *, keep_best: bool) -> Tensor:
    """Give every anchor the object that it overlaps most, if that is enough.

    Source: Faster R-CNN, 2015, section 3.1.2.

    Args:
        boxes: objects (M, 4).
        anchors: (N, 4).
        high: least IoU of a match.
        low: below it an anchor is background; between the two it is ignored.
        keep_best: match the anchors that overlap an object most (all in a tie) with their best object, however little
            that is.

    Returns:
        (N,) int64: position of the object, BACKGROUND or IGNORED.
    """
    if not len(boxes):
        return torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    overlap = box_iou(boxes, anchors)  # (M, N)
    value, nearest = overlap.max(dim=0)
    found = torch.where(value < high, IGNORED, nearest)
    found = torch.where(value < low, BACKGROUND, found)
    if keep_best:
        best = (overlap == overlap.max(dim=1, keepdim=True).values).any(dim=0)
        found = torch.where(best, nearest, found)
    return found


def match_default_boxes(boxes: Tensor, anchors: Tensor, threshold: float) -> Tensor:
    """SSD's matching, section 2.2: every object has its best default box, every other box its best object if IoU is enough.

    Args:
        boxes: objects (M, 4); where two have the same best box, the later one gets it.
        anchors: default boxes (N, 4).
        threshold: least IoU of a match.

    Returns:
        (N,) int64: position of the object, or BACKGROUND.
    """
    if not len(boxes):
        return torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    overlap = box_iou(boxes, anchors)  # (M, N)
    value, nearest = overlap.max(dim=0)
    found = torch.where(value < threshold, BACKGROUND, nearest)
    for i, best in enumerate(
        overlap.argmax(dim=1).tolist()
    ):  # in turn: with one index for two, torch promises no order
        found[best] = i
    return found


def sample_balanced(labels: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Draw anchors for a loss from torch's default generator: at most a share of positives, filled up with background.

    Args:
        labels: (N,): above 0 positive, 0 background, below 0 ignored.
        count: how many are drawn, if there are as many.
        share: largest share of positives.

    Returns:
        Positions of positives and of background, each sorted.
    """
    positive, background = torch.where(labels > 0)[0], torch.where(labels == 0)[0]
    many = min(len(positive), int(count * share))
    chosen = torch.randperm(len(positive), device=labels.device)[:many]
    others = torch.randperm(len(background), device=labels.device)[: min(len(background), count - many)]
    return positive[chosen].sort().values, background[others].sort().values
