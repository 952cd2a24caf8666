"""Detectors, one family per file: pictures to candidate boxes with classes and scores.

A family says three things apart from its layers, and `Detector.forward` puts them together:

* `raw(images, targets)`: what the layers say, a NamedTuple of tensors; traceable without targets;
* `losses(raw, targets)`: assignment and loss, as sums with counts;
* `decode(raw, size)`: candidates in pixels of the input; traceable.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opsin.models import Detected
from opsin.task import Part


class Targets(NamedTuple):
    """What is in the B pictures of a batch, in pixels of the input; objects that do not count (crowds) are left out."""

    boxes: list[Tensor]  # (M, 4) float32 xyxy each, of positive width and height
    labels: list[Tensor]  # (M,) int64 each
    points: list[Tensor] | None = None  # (M, P, 3) float32 each: x, y, visibility (0 not labeled, 1 hidden, 2 visible)


class Detector(nn.Module, abc.ABC):
    """A detector.

    `stride` divides both sides of every input. `overlap` is the IoU above which of two boxes of one class the weaker one
    is dropped (1 for networks that say each object once).
    """

    stride: int = 32
    overlap: float = 1.0

    @abc.abstractmethod
    def raw(self, images: Tensor, targets: Targets | None = None) -> Any:
        """What the layers say of normalized pictures (B, C, H, W): a NamedTuple of tensors."""

    @abc.abstractmethod
    def losses(self, raw: Any, targets: Targets) -> dict[str, Part]:
        """Loss terms of the batch; each is divided by its own count, over the whole global batch."""

    @abc.abstractmethod
    def decode(self, raw: Any, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates: boxes (B, N, 4) xyxy in pixels of an input of `size` (H, W), scores (B, N), labels (B, N) int64."""

    def decode_points(self, raw: Any, size: tuple[int, int]) -> Tensor | None:
        """Points of the candidates, (B, N, P, 3), for families that have them."""
        del raw, size
        return None

    def forward(self, images: Tensor, targets: Targets | Mapping[str, Any] | None = None) -> Detected:
        """Candidates, or the losses if targets are given.

        Args:
            images: (B, C, H, W), normalized; sides are multiples of `stride`.
            targets: of the pictures.
        """
        if targets is not None:
            given = targets if isinstance(targets, Targets) else Targets(**targets)
            none = images.new_zeros((len(images), 0))
            found = self.losses(self.raw(images, given), given)
            return Detected(images.new_zeros((len(images), 0, 4)), none, none.long(), none.sum(), losses=found)
        size = (images.shape[-2], images.shape[-1])
        raw = self.raw(images)
        boxes, scores, labels = self.decode(raw, size)
        limit = torch.full((), self.overlap, dtype=torch.float32, device=images.device)
        return Detected(boxes, scores, labels, limit, self.decode_points(raw, size))
