"""Box queries of real-time DETRs: proposals from the encoder's maps, and the arithmetic of boxes as logits.

Paper: Deformable DETR, 2020, https://arxiv.org/abs/2010.04159, appendix A.4 (two stages); RT-DETR, 2023,
https://arxiv.org/abs/2304.08069, section 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from opsin.layers.hybrid_encoder import Mlp
from opsin.layers.wide import wide, wide_type


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logits of shares, in float32 at least; shares nearer to 0 or 1 than `eps` are taken as `eps` away."""
    x = wide(x).clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def anchors_of(sizes: Sequence[tuple[int, int]], like: Tensor, scale: float = 0.05) -> tuple[Tensor, Tensor]:
    """One box per cell, as logits (1, sum of H * W, 4), and whether it lies inside the picture (1, ..., 1).

    Args:
        sizes: (H, W) of every level, finest first.
        like: a tensor on the device wanted; the type is float32, or float64 if its is.
        scale: side of the boxes of the finest level as a share of the picture; each level doubles it.
    """
    boxes = []
    for level, (height, width) in enumerate(sizes):
        y = (torch.arange(height, device=like.device, dtype=wide_type(like)) + 0.5) / height
        x = (torch.arange(width, device=like.device, dtype=wide_type(like)) + 0.5) / width
        centers = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1)
        boxes.append(torch.cat([centers, torch.full_like(centers, scale * 2.0**level)], -1))
    anchors = torch.cat(boxes).unsqueeze(0)
    inside = ((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdim=True)
    logits = torch.log(anchors / (1 - anchors))
    return torch.where(inside, logits, torch.finfo(torch.float32).max), inside


class Proposals(NamedTuple):
    """The cells that look most like objects: N per picture."""

    logits: Tensor  # (B, N, K)
    box_logits: Tensor  # (B, N, 4)
    features: Tensor  # (B, N, D)


class ProposalHead(nn.Module):
    """Scores a box at every cell and takes the best N.

    Args:
        dim: D.
        num_classes: K.
        count: N, or all cells of small pictures.
    """

    def __init__(self, dim: int, num_classes: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.output = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.class_head = nn.Linear(dim, num_classes)
        self.box_head = Mlp(dim, dim, 4, 3)

    def forward(self, memory: Tensor, sizes: Sequence[tuple[int, int]]) -> Proposals:
        """Proposals from the maps of all levels (B, sum of H * W, D)."""
        anchors, inside = anchors_of(sizes, memory)
        features = self.output(memory * inside.to(memory.dtype))
        logits = self.class_head(features)  # (B, sum of H * W, K)
        best = logits.amax(-1).topk(min(self.count, logits.shape[1]), dim=1).indices.unsqueeze(-1)
        chosen = features.gather(1, best.expand(-1, -1, features.shape[-1]))
        placed = anchors.expand(memory.shape[0], -1, -1).gather(1, best.expand(-1, -1, 4))
        scores = logits.gather(1, best.expand(-1, -1, logits.shape[-1]))
        return Proposals(scores, wide(self.box_head(chosen)) + placed, chosen)


def best_of(logits: Tensor, boxes: Tensor, size: tuple[int, int], count: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    """The best (query, class) pairs.

    Args:
        logits: (B, N, K).
        boxes: (B, N, 4) center x, center y, width, height as shares of the picture.
        size: (H, W) of the picture in pixels.
        count: how many, or all N * K.

    Returns:
        Boxes (B, count, 4) xyxy in pixels, scores (B, count), labels (B, count) int64, best first.
    """
    classes = logits.shape[-1]
    scores, index = wide(logits).sigmoid().flatten(1).topk(min(count, logits.shape[1] * classes), dim=1)
    there = wide(boxes)
    ordered = torch.cat([there[..., :2], there[..., 2:].clamp(min=0)], -1)  # edges, refined one by one, may cross
    corners = box_convert(ordered, "cxcywh", "xyxy") * picture_scale(size, boxes)
    query = torch.div(index, classes, rounding_mode="floor").unsqueeze(-1).expand(-1, -1, 4)
    return corners.gather(1, query), scores, index % classes


def picture_scale(size: tuple[int, int], like: Tensor) -> Tensor:
    """(4,) float32 width, height, width, height of a picture of `size` (H, W), on the device of `like`."""
    sides = [torch.full((), side, dtype=torch.float32, device=like.device) for side in (size[1], size[0])]
    return torch.stack(sides * 2)
