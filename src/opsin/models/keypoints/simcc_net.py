"""SimCC: where a point lies is two classifications, one over columns and one over rows.

Paper: SimCC: a Simple Coordinate Classification Perspective for Human Pose Estimation, 2022,
    https://arxiv.org/abs/2107.03332.
Implements: a trunk, a 1x1 convolution to P maps, one linear layer per axis over the flattened map, bins finer than a pixel
    (splitting factor 2), Gaussian targets, the Kullback-Leibler divergence from them.
Differs from the paper: the place is read off between bins, by a parabola through the log probabilities; the score is the
    probability around the place, the geometric mean of both axes.
Checked against: round trips of points, torch.export (tests/contracts/test_keypoint_models.py).
Reproduced: not yet run.
Weights: none shipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.errors import ConfigError, ShapeError
from opsin.models.keypoints import KeypointNet, inside, refined
from opsin.models.trunk import Trunk
from opsin.task import Part

NAMES = ("simcc_net",)


class Raw(NamedTuple):
    """What the layers say: logits over bins from left to right and from top to bottom."""

    across: Tensor  # (B, P, split * W)
    down: Tensor  # (B, P, split * H)


class SimCCNet(KeypointNet):
    """A trunk with two linear classifiers per point.

    Args:
        num_points: P.
        in_channels: C of the pictures.
        image_size: (H, W); pictures of another size are refused.
        backbone: any network with `forward_pyramid`.
        backbone_kwargs: its own keyword arguments.
        split: bins per pixel.
        sigma: of the targets, in bins.

    Raises:
        ConfigError: if `split` or `sigma` is not positive.
    """

    def __init__(
        self,
        num_points: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (256, 192),
        backbone: str = "resnet18",
        backbone_kwargs: Mapping[str, Any] | None = None,
        split: float = 2.0,
        sigma: float = 6.0,
    ) -> None:
        super().__init__()
        if not (split > 0 and sigma > 0):
            raise ConfigError(f"simcc_net: split = {split}, sigma = {sigma}; expected positive numbers.")
        self.num_points, self.image_size, self.sigma = num_points, tuple(image_size), sigma
        self.trunk = Trunk(backbone, backbone_kwargs, in_channels, image_size)
        with torch.no_grad():
            cells = self.trunk(torch.zeros(2, in_channels, *image_size))[-1].shape[2:].numel()
        self.final = nn.Conv2d(self.trunk.channels[0], num_points, 1)
        self.across = nn.Linear(cells, round(split * image_size[1]))
        self.down = nn.Linear(cells, round(split * image_size[0]))

    def raw(self, images: Tensor) -> Raw:
        if tuple(images.shape[2:]) != self.image_size:
            raise ShapeError(f"simcc_net was built for pictures of {self.image_size}; got {tuple(images.shape[2:])}.")
        features = self.final(self.trunk(images)[-1]).flatten(2)  # (B, P, cells)
        return Raw(self.across(features), self.down(features))

    def losses(self, raw: Raw, targets: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Part]:
        """Divergence from the Gaussian targets, mean of both axes, over labeled points within the input."""
        points = targets["points"]
        counted = inside(points, size)
        total = torch.zeros((), device=points.device)
        for axis, logits in enumerate((raw.across, raw.down)):
            bins = logits.shape[-1]
            place = points[..., axis : axis + 1] * (bins / size[1 - axis])  # (B, P, 1)
            middles = torch.arange(bins, device=points.device) + 0.5
            wanted = F.softmax(-((middles - place) ** 2) / (2 * self.sigma**2), -1)
            error = F.kl_div(F.log_softmax(logits.float(), -1), wanted, reduction="none").sum(-1)  # (B, P)
            total = total + 0.5 * torch.where(counted, error, 0.0).sum()
        return {"simcc": Part(total, counted.sum().to(torch.float32))}

    def decode(self, raw: Raw, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        places, scores = [], []
        for axis, logits in enumerate((raw.across, raw.down)):
            chances = F.log_softmax(logits.float(), -1)
            bins = logits.shape[-1]
            best = chances.argmax(-1, keepdim=True)  # (B, P, 1)
            middle = best.clamp(1, bins - 2)
            around = torch.cat([chances.gather(-1, middle + step) for step in (-1, 0, 1)], -1)
            place = middle[..., 0] + 0.5 + refined(around)
            places.append(place.clamp(0, bins) * (size[1 - axis] / bins))
            radius = math.ceil(2 * self.sigma)
            window = F.avg_pool1d(chances.exp(), 2 * radius + 1, 1, radius) * (2 * radius + 1)
            scores.append(window.gather(-1, best)[..., 0])
        return torch.stack(places, -1), (scores[0] * scores[1]).sqrt().clamp(0, 1)


build = SimCCNet
