"""Heat maps: one map per point, bright where the point is.

Paper: Simple Baselines for Human Pose Estimation and Tracking, 2018, https://arxiv.org/abs/1804.06208; the decoding is
    that of Distribution-Aware Coordinate Representation for Human Pose Estimation, 2019, https://arxiv.org/abs/1910.06278.
Implements: a trunk, deconvolutions (4x4, stride 2, 256 channels) up to a fourth of the input, a 1x1 convolution to P maps;
    Gaussian targets of sigma 2 around the unrounded point, mean squared error over labeled points, decoding by a Taylor
    expansion of the logarithm.
Differs from the paper: the squared error is divided by that of an empty map (pi sigma^2), so that 1 is the loss of a
    network that says nothing; targets are not cut off at 3 sigma; blurring before decoding is an option, off by default;
    `head = "upsample"` has bilinear steps with 3x3 convolutions in place of deconvolutions.
Checked against: published parameters of the ResNet-50 pose network (33,999,697 with 17 points), round trips of points
    through maps, torch.export (tests/contracts/test_keypoint_models.py).
Reproduced: not yet run.
Weights: none shipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.errors import ConfigError
from opsin.models.keypoints import KeypointNet, inside
from opsin.models.trunk import Trunk
from opsin.task import Part

NAMES = ("heatmap_net",)
STRIDE = 4


class Raw(NamedTuple):
    """What the layers say."""

    maps: Tensor  # (B, P, H / 4, W / 4), about 1 at a point


class HeatmapNet(KeypointNet):
    """A trunk with a head of heat maps at a fourth of the input.

    Args:
        num_points: P.
        in_channels: C of the pictures.
        image_size: (H, W), multiples of the trunk's stride.
        backbone: any network with `forward_pyramid`.
        backbone_kwargs: its own keyword arguments.
        head: `deconv` as in the paper, or `upsample`.
        channels: of the head.
        sigma: of the Gaussian, in cells of the map.
        blur: smooth the maps with that Gaussian before the place is read off; for maps with ragged peaks.

    Raises:
        ConfigError: if the trunk's stride is not 4 times a power of two, or a size is no multiple of it.
    """

    def __init__(
        self,
        num_points: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (256, 192),
        backbone: str = "resnet18",
        backbone_kwargs: Mapping[str, Any] | None = None,
        head: Literal["deconv", "upsample"] = "deconv",
        channels: int = 256,
        sigma: float = 2.0,
        blur: bool = False,
    ) -> None:
        super().__init__()
        if head not in ("deconv", "upsample") or not sigma > 0:
            raise ConfigError(
                f"heatmap_net: head = {head!r}, sigma = {sigma}; expected deconv or upsample, and sigma > 0."
            )
        self.num_points, self.sigma, self.blur = num_points, sigma, blur
        self.trunk = Trunk(backbone, backbone_kwargs, in_channels, image_size)
        stride, steps = self.trunk.strides[0], max(0, round(math.log2(max(self.trunk.strides[0], 1) / STRIDE)))
        if stride != STRIDE * 2**steps:
            raise ConfigError(f"heatmap_net: backbone '{backbone}' has stride {stride}; expected 4, 8, 16, 32, ...")
        if image_size[0] % stride or image_size[1] % stride:
            raise ConfigError(
                f"heatmap_net: image_size = {image_size}; expected multiples of {stride} with '{backbone}'."
            )
        layers: list[nn.Module] = []
        wide = self.trunk.channels[0]
        for _ in range(steps):
            if head == "deconv":
                layers.append(nn.ConvTranspose2d(wide, channels, 4, 2, 1, bias=False))
            else:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
                layers.append(nn.Conv2d(wide, channels, 3, padding=1, bias=False))
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            wide = channels
        self.head = nn.Sequential(*layers)
        self.final = nn.Conv2d(wide, num_points, 1)
        for module in [*self.head.modules(), self.final]:
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.001)
        nn.init.zeros_(self.final.bias)  # type: ignore[arg-type]

    def raw(self, images: Tensor) -> Raw:
        return Raw(self.final(self.head(self.trunk(images)[-1])))

    def losses(self, raw: Raw, targets: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Part]:
        """Squared error of the maps over labeled points within the input, in units of an empty map's."""
        points = targets["points"]
        counted = inside(points, size)
        wanted = gaussians(points[..., :2], raw.maps.shape[-2:], size, self.sigma)
        error = (raw.maps.float() - wanted).square().sum((2, 3)) / (math.pi * self.sigma**2)  # (B, P)
        return {"heat_map": Part((error * counted).sum(), counted.sum().to(torch.float32))}

    def decode(self, raw: Raw, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        maps = raw.maps.float()
        cells = peaks(smoothed(maps, self.sigma) if self.blur else maps)  # (B, P, 2)
        height, width = maps.shape[-2:]
        scale = torch.tensor([size[1] / width, size[0] / height], dtype=cells.dtype, device=cells.device)
        return (cells + 0.5) * scale, maps.amax((2, 3)).clamp(0, 1)


def gaussians(points: Tensor, shape: torch.Size, size: tuple[int, int], sigma: float) -> Tensor:
    """Maps (B, P, h, w) that are 1 at each point (B, P, 2) of an input of `size` (H, W), falling with `sigma` cells."""
    height, width = shape
    x = torch.arange(width, dtype=torch.float32, device=points.device) + 0.5
    y = torch.arange(height, dtype=torch.float32, device=points.device) + 0.5
    across = torch.exp(-((x - points[..., :1] * (width / size[1])) ** 2) / (2 * sigma**2))  # (B, P, w)
    down = torch.exp(-((y - points[..., 1:] * (height / size[0])) ** 2) / (2 * sigma**2))  # (B, P, h)
    return down[..., :, None] * across[..., None, :]


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Maps (B, P, h, w) under a Gaussian of `sigma` cells."""
    radius = max(1, math.ceil(2.5 * sigma))
    steps = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-(steps**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(maps.shape[1], 1, 1, -1)  # (P, 1, 1, 2 * radius + 1)
    out = F.conv2d(maps, kernel, padding=(0, radius), groups=maps.shape[1])
    return F.conv2d(out, kernel.transpose(2, 3), padding=(radius, 0), groups=maps.shape[1])


def peaks(maps: Tensor) -> Tensor:
    """Cells (B, P, 2), x and y, of the maxima of maps (B, P, h, w), between cells by the log map's Taylor expansion.

    The expansion is around the maximum, or next to it where that lies on the border; equation 4 of the paper named in
    this file: m - D''^-1 D'. Exact for Gaussians.
    """
    height, width = maps.shape[-2:]
    flat = maps.flatten(2)  # (B, P, h * w)
    best = flat.argmax(-1)  # (B, P)
    column, row = best % width, best // width
    x, y = column.clamp(1, max(width - 2, 1)), row.clamp(1, max(height - 2, 1))
    log = flat.clamp_min(1e-10).log()

    def at(dx: int, dy: int) -> Tensor:
        place = (y + dy).clamp(0, height - 1) * width + (x + dx).clamp(0, width - 1)
        return log.gather(2, place[..., None])[..., 0]

    middle, left, right, above, below = at(0, 0), at(-1, 0), at(1, 0), at(0, -1), at(0, 1)
    dx, dy = 0.5 * (right - left), 0.5 * (below - above)
    dxx, dyy = right - 2 * middle + left, below - 2 * middle + above
    dxy = 0.25 * (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1))
    determinant = dxx * dyy - dxy**2
    good = (dxx < 0) & (dyy < 0) & (determinant > 1e-8) & (flat.amax(-1) > 1e-6)
    safe = torch.where(good, determinant, torch.ones_like(determinant))
    step_x = (dxy * dy - dyy * dx) / safe
    step_y = (dxy * dx - dxx * dy) / safe
    # A step that leads further than to the next cell but one is not that of this peak.
    good = good & (step_x.abs() <= 2) & (step_y.abs() <= 2)
    found_x = torch.where(good, x + step_x, column.to(log.dtype))
    found_y = torch.where(good, y + step_y, row.to(log.dtype))
    return torch.stack([found_x.clamp(-0.5, width - 0.5), found_y.clamp(-0.5, height - 0.5)], -1)


build = HeatmapNet
