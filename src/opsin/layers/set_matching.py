"""One-to-one assignment of predictions to objects by least total cost.

Paper: End-to-End Object Detection with Transformers (DETR), 2020, https://arxiv.org/abs/2005.12872, section 3.1; the
focal class cost is that of Deformable DETR, https://arxiv.org/abs/2010.04159.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from opsin.layers.wide import wide


class Costs(NamedTuple):
    """Weights of the terms of the cost, and the parameters of its focal class term."""

    label: float = 2.0
    distance: float = 5.0  # L1 of center x, center y, width, height
    overlap: float = 2.0  # generalized IoU, negative
    alpha: float = 0.25
    gamma: float = 2.0


@torch.no_grad()
def match_sets(
    logits: Tensor, boxes: Tensor, true_boxes: Sequence[Tensor], true_labels: Sequence[Tensor], costs: Costs
) -> list[tuple[Tensor, Tensor]]:
    """The assignment of least cost in every picture.

    Args:
        logits: (B, N, K), one sigmoid per class.
        boxes: (B, N, 4) center x, center y, width, height as shares of the picture.
        true_boxes: (M, 4) of every picture, likewise.
        true_labels: (M,) of every picture.
        costs: weights of the terms.

    Returns:
        Per picture (predictions, objects), both (min(N, M),) int64; predictions grow. A prediction that is not finite is
        taken only where nothing else is left.
    """
    pairs = []
    for scores, found, wanted, labels in zip(wide(logits), wide(boxes), true_boxes, true_labels, strict=True):
        if len(labels) == 0:
            none = torch.zeros(0, dtype=torch.int64, device=logits.device)
            pairs.append((none, none))
            continue
        chance = scores.sigmoid()[:, labels]  # (N, M)
        missed = costs.alpha * (1 - chance) ** costs.gamma * -(chance + 1e-8).log()
        raised = (1 - costs.alpha) * chance**costs.gamma * -(1 - chance + 1e-8).log()
        distance = (found[:, None] - wanted).abs().sum(-1)
        overlap = generalized_box_iou(box_convert(found, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy"))
        cost = costs.label * (missed - raised) + costs.distance * distance - costs.overlap * overlap
        largest = torch.finfo(cost.dtype).max
        rows, columns = linear_sum_assignment(torch.nan_to_num(cost, largest, largest, largest).cpu().numpy())
        pairs.append((torch.as_tensor(rows, device=logits.device), torch.as_tensor(columns, device=logits.device)))
    return pairs
