"""Small net: a residual network of 3x3 convolutions for pictures of 28 to 40 pixels, made to train fast on a CPU.

Paper: none; after the ResNet-9 of David Page, "How to train your ResNet", 2018, https://github.com/davidcpage/cifar10-fast.
Implements: stem, then stages of one convolution with 2x2 max pooling and a residual branch of convolutions.
Differs from the paper: SiLU instead of ReLU, average pooling at the end, widths for two CPU cores.
Checked against: nothing outside; tests/contracts/test_models.py.
Reproduced: not yet run.
Weights: none shipped.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from opsin.errors import ConfigError
from opsin.models import Classified, Feature

NAMES = ("smallnet",)


def _convolution(in_channels: int, out_channels: int, pool: bool = False) -> nn.Sequential:
    """3x3 convolution, optional 2x2 max pooling, batch norm, SiLU."""
    layers: list[nn.Module] = [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.BatchNorm2d(out_channels), nn.SiLU(inplace=True))


class Stage(nn.Module):
    """Halves the picture, then adds a residual branch of `depth` convolutions (none for depth 0)."""

    def __init__(self, in_channels: int, channels: int, depth: int) -> None:
        super().__init__()
        self.entry = _convolution(in_channels, channels, pool=True)
        self.branch = nn.Sequential(*(_convolution(channels, channels) for _ in range(depth))) if depth else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)  # (B, channels, H/2, W/2)
        return x if self.branch is None else x + self.branch(x)


class SmallNet(nn.Module):
    """Stem, stages, global average pooling, logits.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        width: channels of the stem; stages have 2, 4, 8, ... times as many.
        depths: convolutions in the residual branch of each stage.
        dropout: rate before the last layer.
    """

    head_names = ("head",)

    def __init__(self, num_classes: int, in_channels: int, width: int, depths: Sequence[int], dropout: float) -> None:
        super().__init__()
        if width < 1 or not depths or min(depths) < 0:
            raise ConfigError(
                f"smallnet: width = {width}, depths = {list(depths)}; expected positive width, depths of 0 or more."
            )
        self.stem = _convolution(in_channels, width)
        channels = [width * 2**i for i in range(len(depths) + 1)]
        self.stages = nn.ModuleList(Stage(channels[i], channels[i + 1], depth) for i, depth in enumerate(depths))
        self.feature_info = [Feature(channels[i + 1], 2 ** (i + 1)) for i in range(len(depths))]
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels[-1], num_classes)

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """Features after each stage, finest first: (B, channels, H // stride, W // stride) as in `feature_info`."""
        x = self.stem(images)  # (B, width, H, W)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def forward(self, images: Tensor) -> Classified:
        x = self.forward_pyramid(images)[-1].mean((2, 3))  # (B, channels)
        return Classified(self.head(self.dropout(x)))  # (B, K)


def smallnet(
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 32,
    depths: Sequence[int] = (1, 2, 2),
    dropout: float = 0.0,
) -> SmallNet:
    """Build the small net; `width` and `depths` scale it."""
    return SmallNet(num_classes, in_channels, width, depths, dropout)
