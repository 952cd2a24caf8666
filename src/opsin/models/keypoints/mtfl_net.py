"""A small network for five points of a face, and gender, smile, glasses and head pose beside them.

Paper: Facial Landmark Detection by Deep Multi-task Learning, 2014,
    https://mmlab.ie.cuhk.edu.hk/projects/TCDCN.html.
Implements: the widths of the usual textbook form: C3x16 P, C3x48 P, C3x64 P, C3x64 on 40 x 40 gray pixels, a dense layer of
    1024, linear coordinates; half the squared error of the points, and cross-entropy for each attribute.
Differs from the paper: same padding and ReLU as in the textbook form (valid padding would leave no map); equal weights of
    the attributes; pictures of any size that 8 divides.
Checked against: the closed form of its parameters, 1,732,709 with five points and `ATTRIBUTES`
    (tests/contracts/test_keypoint_models.py).
Reproduced: not yet run.
Weights: none shipped.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.errors import ConfigError
from opsin.models.keypoints import KeypointNet
from opsin.task import Part

NAMES = ("mtfl_net",)
ATTRIBUTES: Mapping[str, int] = {"gender": 2, "smile": 2, "glasses": 2, "pose": 5}


class Raw(NamedTuple):
    """What the layers say."""

    places: Tensor  # (B, P, 2) x and y as shares of width and height, from the middle
    attributes: tuple[Tensor, ...]  # logits (B, K) of each attribute


class MTFLNet(KeypointNet):
    """Four convolutions and a dense layer.

    Args:
        num_points: P.
        in_channels: C of the pictures.
        image_size: (H, W), multiples of 8.
        hidden: width of the dense layer.
        dropout: share of it that is dropped in training.
        attributes: names and numbers of classes, e.g. `ATTRIBUTES`; targets may give each as (B,) int64 under its name, -1
            where missing. None by default.

    Raises:
        ConfigError: if 8 does not divide the sides.
    """

    def __init__(
        self,
        num_points: int = 5,
        in_channels: int = 1,
        image_size: tuple[int, int] = (40, 40),
        hidden: int = 1024,
        dropout: float = 0.4,
        attributes: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        if image_size[0] % 8 or image_size[1] % 8:
            raise ConfigError(f"mtfl_net: image_size = {tuple(image_size)}; expected multiples of 8, e.g. 40 x 40.")
        self.num_points = num_points
        known = dict(attributes or {})
        widths = (in_channels, 16, 48, 64, 64)
        layers: list[nn.Module] = []
        for i, (narrow, wide) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Conv2d(narrow, wide, 3, padding=1), nn.ReLU(inplace=True)]
            layers += [nn.MaxPool2d(2)] if i < 3 else []
        self.features = nn.Sequential(*layers)
        cells = (image_size[0] // 8) * (image_size[1] // 8)
        self.dense = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * cells, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)
        )
        self.places = nn.Linear(hidden, 2 * num_points)
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, count) for name, count in known.items()})

    def raw(self, images: Tensor) -> Raw:
        features = self.dense(self.features(images))  # (B, hidden)
        places = self.places(features).unflatten(1, (self.num_points, 2))
        return Raw(places, tuple(head(features) for head in self.heads.values()))

    def attributes(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, K) of every attribute of normalized pictures (B, C, H, W)."""
        return dict(zip(self.heads, self.raw(images).attributes))

    def losses(self, raw: Raw, targets: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Part]:
        """Half the squared error of labeled points' coordinates as shares of the sides; cross-entropy of attributes."""
        points = targets["points"]
        seen = points[..., 2] > 0
        sides = torch.tensor([size[1], size[0]], dtype=torch.float32, device=points.device)
        error = 0.5 * (raw.places.float() + 0.5 - points[..., :2] / sides).square().sum(-1)  # (B, P)
        found = {"points": Part(torch.where(seen, error, 0.0).sum(), seen.sum().to(torch.float32))}
        for name, logits in zip(self.heads, raw.attributes):
            if name in targets:
                total = F.cross_entropy(logits.float(), targets[name], ignore_index=-1, reduction="sum")
                found[name] = Part(total, (targets[name] >= 0).sum().to(torch.float32))
        return found

    def decode(self, raw: Raw, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        sides = torch.tensor([size[1], size[0]], dtype=torch.float32, device=raw.places.device)
        places = raw.places.float()
        inside = (places.abs().amax(-1) <= 0.5).to(places.dtype)  # the network has no better idea of how sure it is
        return (places + 0.5) * sides, inside


build = MTFLNet
