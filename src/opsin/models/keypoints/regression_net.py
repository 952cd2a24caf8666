"""Coordinates straight from pooled features.

Paper: DeepPose: Human Pose Estimation via Deep Neural Networks, 2013, https://arxiv.org/abs/1312.4659 (the first stage);
    wing loss: Wing Loss for Robust Facial Landmark Localisation, 2017, https://arxiv.org/abs/1711.06753.
Implements: a trunk, global average pooling, one linear layer to P points, with L1, smooth L1, L2 or wing loss.
Differs from the paper: no cascade; any trunk; a second output per point says whether it is labeled at all, which is its
    score.
Checked against: torch's losses and the wing loss in closed form (tests/contracts/test_keypoint_models.py).
Reproduced: not yet run.
Weights: none shipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.errors import ConfigError
from opsin.models.keypoints import KeypointNet
from opsin.models.trunk import Trunk
from opsin.task import Part

NAMES = ("regression_net",)
Measure = Literal["l1", "smooth_l1", "l2", "wing"]
WING_WIDTH, WING_CURVE = 10.0, 2.0  # w and epsilon of the wing loss, in pixels
SMOOTH = 1.0  # pixels up to which the smooth L1 loss is a parabola
PRESENCE_WEIGHT = 0.1


class Raw(NamedTuple):
    """What the layers say."""

    places: Tensor  # (B, P, 2) x and y as shares of width and height, from the middle
    present: Tensor  # (B, P) logits of being labeled


class RegressionNet(KeypointNet):
    """A trunk with a linear layer for coordinates, which has no activation: points may lie outside the picture.

    Args:
        num_points: P.
        in_channels: C of the pictures.
        image_size: (H, W).
        backbone: any network with `forward_pyramid`.
        backbone_kwargs: its own keyword arguments.
        loss: of a coordinate, in pixels of the input: `l1`, `smooth_l1`, `l2` or `wing`.

    Raises:
        ConfigError: for another loss.
    """

    def __init__(
        self,
        num_points: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (128, 128),
        backbone: str = "resnet18",
        backbone_kwargs: Mapping[str, Any] | None = None,
        loss: Measure = "smooth_l1",
    ) -> None:
        super().__init__()
        if loss not in get_args(Measure):
            raise ConfigError(f"regression_net: loss = {loss!r}; expected one of {', '.join(get_args(Measure))}.")
        self.num_points, self.loss = num_points, loss
        self.trunk = Trunk(backbone, backbone_kwargs, in_channels, image_size)
        self.places = nn.Linear(self.trunk.channels[0], 2 * num_points)
        self.present = nn.Linear(self.trunk.channels[0], num_points)
        for layer in (self.places, self.present):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def raw(self, images: Tensor) -> Raw:
        features = self.trunk(images)[-1].mean((2, 3))  # (B, channels)
        return Raw(self.places(features).unflatten(1, (self.num_points, 2)), self.present(features))

    def losses(self, raw: Raw, targets: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Part]:
        """Loss of the coordinates of labeled points in pixels, as a share of the mean side; and of what is labeled."""
        points = targets["points"]
        seen = points[..., 2] > 0
        error = measured(self.decode(raw, size)[0] - points[..., :2], self.loss).sum(-1)  # (B, P)
        scale = 2 / (size[0] + size[1])
        present = F.binary_cross_entropy_with_logits(raw.present.float(), seen.float(), reduction="sum")
        return {
            "coordinates": Part(torch.where(seen, error, 0.0).sum() * scale, seen.sum().to(torch.float32)),
            "labeled": Part(present, float(seen.numel()), PRESENCE_WEIGHT),
        }

    def decode(self, raw: Raw, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        sides = torch.tensor([size[1], size[0]], dtype=torch.float32, device=raw.places.device)
        return (raw.places.float() + 0.5) * sides, raw.present.float().sigmoid()


def measured(differences: Tensor, kind: Measure) -> Tensor:
    """Loss of each difference in pixels, in its shape.

    `wing` is w ln(1 + |d| / e) up to w pixels and grows with |d| from there (equation 5 of its paper), w = 10, e = 2.
    """
    size = differences.abs()
    if kind == "l1":
        return size
    if kind == "l2":
        return differences.square()
    if kind == "smooth_l1":
        return torch.where(size < SMOOTH, 0.5 * size**2 / SMOOTH, size - 0.5 * SMOOTH)
    constant = WING_WIDTH - WING_WIDTH * math.log(1 + WING_WIDTH / WING_CURVE)
    return torch.where(size < WING_WIDTH, WING_WIDTH * torch.log1p(size / WING_CURVE), size - constant)


build = RegressionNet
