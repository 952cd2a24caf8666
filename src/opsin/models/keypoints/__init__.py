"""Networks that say where the points of one object are, one family per file.

The picture shows one object (the task cuts it out). A family says three things apart from its layers, and
`KeypointNet.forward` puts them together:

* `raw(images)`: what the layers say, a NamedTuple of tensors; traceable;
* `losses(raw, targets, size)`: the loss as sums with counts;
* `decode(raw, size)`: points in pixels of the input; traceable.

Coordinates are continuous: the center of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opsin.errors import ShapeError
from opsin.models import Located
from opsin.task import Part


class KeypointNet(nn.Module, abc.ABC):
    """A keypoint network of `num_points` points."""

    num_points: int

    @abc.abstractmethod
    def raw(self, images: Tensor) -> Any:
        """What the layers say of normalized pictures (B, C, H, W): a NamedTuple of tensors."""

    @abc.abstractmethod
    def losses(self, raw: Any, targets: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Part]:
        """Loss terms of the batch; each is divided by its own count, over the whole global batch.

        Args:
            raw: of the batch.
            targets: `points` (B, P, 3) float32 of x, y in pixels of the input and visibility (0: not labeled), and what else
                the network learns.
            size: (H, W) of the input.
        """

    @abc.abstractmethod
    def decode(self, raw: Any, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Points (B, P, 2), x and y in pixels of an input of `size` (H, W), and scores (B, P) in [0, 1]."""

    def forward(self, images: Tensor, targets: Mapping[str, Any] | None = None) -> Located:
        """Points and scores, and the losses if targets are given.

        Args:
            images: (B, C, H, W), normalized.
            targets: see `losses`; `points` may also be B tensors (P, 3).

        Raises:
            ShapeError: if the targets have another number of points.
        """
        size = (images.shape[-2], images.shape[-1])
        raw = self.raw(images)
        if targets is None:
            return Located(*self.decode(raw, size))
        points = stacked(targets["points"])
        if points.shape != (len(images), self.num_points, 3):
            raise ShapeError(
                f"Target points have shape {tuple(points.shape)}; expected ({len(images)}, {self.num_points}, 3): x, y, "
                "visibility."
            )
        nothing = images.new_zeros((len(images), 0))
        found = self.losses(raw, {**targets, "points": points}, size)
        return Located(images.new_zeros((len(images), 0, 2)), nothing, found)


def stacked(points: Tensor | Sequence[Tensor]) -> Tensor:
    """Points of a batch as (B, P, 3) float32."""
    found = points if isinstance(points, Tensor) else torch.stack(list(points))
    return found.to(torch.float32)


def inside(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Which points (B, P, 3) are labeled and lie within the input (H, W): (B, P) bool."""
    x, y, seen = points.unbind(-1)
    found: Tensor = (seen > 0) & (x >= 0) & (x <= size[1]) & (y >= 0) & (y <= size[0])
    return found


def refined(values: Tensor) -> Tensor:
    """Where the parabola through three neighboring values (..., 3) has its top, relative to the middle one, within 1.5; 0
    where they do not bend down."""
    left, middle, right = values.unbind(-1)
    bend = left - 2 * middle + right
    step = 0.5 * (left - right) / torch.where(bend < -1e-12, bend, torch.full_like(bend, -1.0))
    return torch.where(bend < -1e-12, step.clamp(-1.5, 1.5), torch.zeros_like(step))
