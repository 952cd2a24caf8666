"""Small net: a residual network of plain 3x3 convolutions for pictures of 28 to 40 pixels, made to train fast on a CPU.

Dense 3x3 convolutions are what CPU kernels do best (depthwise ones reach a tenth of their rate), and pooling before the
normalization leaves it a quarter of the work.

Paper: none; after the ResNet-9 of David Page, "How to train your ResNet", 2018, https://github.com/davidcpage/cifar10-fast.
Implements: stem, then stages of one convolution with 2x2 max pooling and a residual branch of `depth` convolutions;
    1,857,946 parameters with the default widths at 3 channels and 10 classes.
Differs from the paper: SiLU instead of ReLU, average instead of max pooling at the end, a residual branch in every
    stage, widths for two CPU cores; the mean over mirror images (as in airbench, https://arxiv.org/abs/2404.00498) is
    an option.
Checked against: nothing outside; tests/contracts/test_models.py.
Reproduced: results/recipe-fashion-small.json, recipe-cifar-subset.json and recipe-mnist-strong.json hold what it reaches.
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
        stem: channels before the first stage.
        widths: channels of each stage.
        depths: convolutions in the residual branch of each stage.
        dropout: rate before the last layer.
        mirror: in evaluation mode, give the mean logits of the picture and its mirror image (twice the work; for
            pictures whose mirror image means the same).
    """

    head_names = ("head",)

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stem: int,
        widths: Sequence[int],
        depths: Sequence[int],
        dropout: float,
        mirror: bool,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths) or not widths or min(stem, *widths) < 1 or min(depths) < 0:
            raise ConfigError(
                f"smallnet: stem = {stem}, widths = {list(widths)}, depths = {list(depths)}; expected positive widths, "
                f"and one depth of 0 or more for each of them."
            )
        self.stem = _convolution(in_channels, stem)
        channels = [stem, *widths]
        self.stages = nn.ModuleList(Stage(channels[i], channels[i + 1], depth) for i, depth in enumerate(depths))
        self.feature_info = [Feature(width, 2 ** (i + 1)) for i, width in enumerate(widths)]
        self.mirror = mirror
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels[-1], num_classes)

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """Features after each stage, finest first: (B, channels, H // stride, W // stride) as in `feature_info`."""
        x = self.stem(images)  # (B, stem, H, W)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def _logits(self, images: Tensor) -> Tensor:
        x = self.forward_pyramid(images)[-1].mean((2, 3))  # (B, channels)
        logits: Tensor = self.head(self.dropout(x))  # (B, K)
        return logits

    def forward(self, images: Tensor) -> Classified:
        logits = self._logits(images)
        if self.mirror and not self.training:
            logits = (logits + self._logits(images.flip(3))) / 2
        return Classified(logits)


def smallnet(
    num_classes: int = 10,
    in_channels: int = 3,
    stem: int = 16,
    widths: Sequence[int] = (48, 128, 256),
    depths: Sequence[int] = (1, 2, 2),
    dropout: float = 0.0,
    mirror: bool = False,
) -> SmallNet:
    """Build the small net; `widths=(32, 64, 128)` is four times cheaper and enough for grey 28-pixel pictures."""
    return SmallNet(num_classes, in_channels, stem, widths, depths, dropout, mirror)
