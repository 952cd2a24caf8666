"""Multi-scale deformable attention: each query looks at a few points of every feature map, at places that it chooses.

Paper: Deformable DETR, 2020, https://arxiv.org/abs/2010.04159, section 4.1; points per level and discrete sampling:
RT-DETRv2, 2024, https://arxiv.org/abs/2407.17140, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.errors import ConfigError
from opsin.layers.wide import wide

Sampling = Literal["bilinear", "discrete"]
Sizes = Sequence[tuple[int, int]]


def sample_levels(
    values: Tensor, sizes: Sizes, places: Tensor, weights: Tensor, points: Sequence[int], sampling: Sampling
) -> Tensor:
    """Weighted sum of feature maps at given places.

    Args:
        values: (B, sum of H * W, heads, C), the maps of all levels one after the other.
        sizes: (H, W) of every level.
        places: (B, Q, heads, P, 2), x and y as shares of the picture, in order of the levels; P is the sum of `points`.
        weights: (B, Q, heads, P).
        points: places per level.
        sampling: "bilinear" between the four cells around, zero outside, or "discrete": the nearest cell, without
            gradient for the places.

    Returns:
        (B, Q, heads * C), in the type of `values`; the arithmetic is in float32 at least.
    """
    batch, _, heads, channels = values.shape
    queries = places.shape[1]
    places, weights, taken = wide(places), wide(weights), wide(values)
    cells = [height * width for height, width in sizes]
    maps = torch.split(taken.permute(0, 2, 3, 1).flatten(0, 1), cells, dim=-1)
    spots = torch.split(places.permute(0, 2, 1, 3, 4).flatten(0, 1), list(points), dim=2)  # (B * heads, Q, p, 2)
    found = []
    for flat, spot, (height, width), count in zip(maps, spots, sizes, points, strict=True):
        if sampling == "bilinear":
            grid = torch.unflatten(flat, -1, (height, width))  # (B * heads, C, H, W)
            found.append(F.grid_sample(grid, 2 * spot - 1, "bilinear", "zeros", align_corners=False))
        else:
            x = (spot[..., 0] * width + 0.5).long().clamp(0, width - 1)
            y = (spot[..., 1] * height + 0.5).long().clamp(0, height - 1)
            cell = (y * width + x).flatten(1).unsqueeze(1).expand(-1, channels, -1)
            found.append(torch.unflatten(flat.gather(2, cell), -1, (queries, count)))
    shares = weights.permute(0, 2, 1, 3).flatten(0, 1).unsqueeze(1)  # (B * heads, 1, Q, P)
    summed = (torch.cat(found, dim=-1) * shares).sum(-1)  # (B * heads, C, Q)
    return summed.reshape(batch, heads * channels, queries).transpose(1, 2).to(values.dtype)


class DeformableAttention(nn.Module):
    """Cross-attention of box queries to feature maps.

    Args:
        dim: D of queries and maps.
        num_heads: heads; D is a multiple of it.
        points: places that a head looks at, per level.
        project: whether maps are projected before and the result after (not in D-FINE).
        sampling: "bilinear", or "discrete", which needs no grid sampling at inference.
        offset_scale: an offset of 1 is this share of the box's width or height.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        points: Sequence[int],
        project: bool = True,
        sampling: Sampling = "bilinear",
        offset_scale: float = 0.5,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"{dim} channels cannot be shared by {num_heads} heads; take a multiple.")
        if sampling not in ("bilinear", "discrete"):
            raise ConfigError(f"sampling = '{sampling}'; expected 'bilinear' or 'discrete'.")
        self.num_heads, self.points = num_heads, tuple(points)
        self.sampling, self.offset_scale = sampling, offset_scale
        total = sum(self.points)
        self.sampling_offsets = nn.Linear(dim, num_heads * total * 2)
        self.attention_weights = nn.Linear(dim, num_heads * total)
        self.value_proj = nn.Linear(dim, dim) if project else nn.Identity()
        self.output_proj = nn.Linear(dim, dim) if project else nn.Identity()
        shares = torch.cat([torch.full((count,), 1 / count) for count in self.points])
        self.register_buffer("shares", shares.unsqueeze(-1), persistent=False)
        self.shares: Tensor
        self._initialize()
        if sampling == "discrete":  # nothing teaches the offsets; they stay as they are or as a file has them
            self.sampling_offsets.requires_grad_(False)

    def _initialize(self) -> None:
        """Heads look in different directions, point by point farther away, all with the same weight."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.cat([torch.arange(1, count + 1) for count in self.points])
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((directions[:, None] * steps[None, :, None]).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, boxes: Tensor, memory: Tensor, sizes: Sizes) -> Tensor:
        """What the queries see, (B, Q, D).

        Args:
            queries: (B, Q, D).
            boxes: (B, Q, 4) center x, center y, width, height as shares of the picture; offsets are in units of them.
            memory: (B, sum of H * W, D), the maps of all levels.
            sizes: (H, W) of every level.
        """
        values = self.value_proj(memory).unflatten(-1, (self.num_heads, -1))  # (B, sum of H * W, heads, C)
        offsets = torch.unflatten(wide(self.sampling_offsets(queries)), -1, (self.num_heads, -1, 2))
        weights = torch.unflatten(wide(self.attention_weights(queries)), -1, (self.num_heads, -1)).softmax(-1)
        boxes = wide(boxes)[:, :, None, None]  # (B, Q, 1, 1, 4)
        places = boxes[..., :2] + offsets * self.shares * boxes[..., 2:] * self.offset_scale
        seen: Tensor = self.output_proj(sample_levels(values, sizes, places, weights, self.points, self.sampling))
        return seen
