"""What GoogLeNet and Inception v3 share: a normalized convolution, and the scale of pixels that their weights expect.

Shapes: B batch, C channels, H W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from opsin.errors import ConfigError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class NormalizedConvolution(nn.Module):
    """Convolution without bias, batch norm, ReLU.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as nn.Conv2d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


class FromImageNetScale(nn.Module):
    """Takes pictures normalized by ImageNet's mean and deviation, gives them with 0..1 spread over -1..1.

    The published weights of both networks were trained on the latter, and everything around them hands over the former.

    Args:
        in_channels: C of the pictures; only 3 have such a scale.

    Raises:
        ConfigError: if in_channels is not 3.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        if in_channels != 3:
            raise ConfigError(
                f"transform_input = true is for RGB pictures and their published weights; these have {in_channels} "
                f"channels. Leave it out."
            )

    def forward(self, images: Tensor) -> Tensor:
        scaled = [
            images[:, i : i + 1] * (std / 0.5) + (mean - 0.5) / 0.5
            for i, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD))
        ]
        return torch.cat(scaled, 1)  # (B, 3, H, W)
