"""PP-HGNetV2: blocks that keep all their intermediate maps, of plain convolutions that processors like.

Paper: none of its own; the network of PaddleClas, described with PP-HGNet in its documentation
    (https://github.com/PaddlePaddle/PaddleClas), and used by D-FINE, https://arxiv.org/abs/2410.13842. Blocks after
    VoVNet, https://arxiv.org/abs/1904.09730.
Implements: B0, B2, B4 and B5, the sizes that D-FINE builds on; B0 and B2 with a learnable scale and shift after every
    activation (`affine`).
Differs from the paper: nothing known.
Checked against: timm's hgnetv2_b0, _b2, _b4, _b5: same names, answers, gradients and parameter counts 5,996,550 /
    11,221,356 / 19,796,680 / 39,569,064 (tests/oracles/test_d_fine.py); transformers' backbone of D-FINE, there too.
Reproduced: not yet run.
Weights: none shipped; timm's published files (PaddleClas's, Apache-2.0) load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.layers.channels import rounded_channels
from opsin.models import Classified, Feature

NAMES = ("hgnet_v2_b0", "hgnet_v2_b2", "hgnet_v2_b4", "hgnet_v2_b5")
WEIGHTS_FROM = {
    "hgnet_v2_b0": "timm:hgnetv2_b0",
    "hgnet_v2_b2": "timm:hgnetv2_b2",
    "hgnet_v2_b4": "timm:hgnetv2_b4",
    "hgnet_v2_b5": "timm:hgnetv2_b5",
}


class Affine(nn.Module):
    """One scale and one shift for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.bias


class ConvBlock(nn.Module):
    """Convolution, batch normalization, and unless it is linear ReLU and a learnable scale and shift."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        linear: bool = False,
        affine: bool = False,
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.Identity() if linear else nn.ReLU()
        self.lab = Affine() if affine and not linear else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lab(self.act(self.bn(self.conv(x))))
        return out


class LightBlock(nn.Module):
    """A linear 1x1 convolution, then a convolution of each channel."""

    def __init__(self, in_channels: int, channels: int, kernel: int, affine: bool) -> None:
        super().__init__()
        self.conv1 = ConvBlock(in_channels, channels, 1, linear=True)
        self.conv2 = ConvBlock(channels, channels, kernel, groups=channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        return out


class Stem(nn.Module):
    """To a quarter of the size; two branches, one of them pooled."""

    def __init__(self, in_channels: int, middle: int, channels: int, affine: bool) -> None:
        super().__init__()
        self.stem1 = ConvBlock(in_channels, middle, 3, stride=2, affine=affine)
        self.stem2a = ConvBlock(middle, middle // 2, 2, affine=affine)
        self.stem2b = ConvBlock(middle // 2, middle, 2, affine=affine)
        self.stem3 = ConvBlock(middle * 2, middle, 3, stride=2, affine=affine)
        self.stem4 = ConvBlock(middle, channels, 1, affine=affine)
        self.pool = nn.MaxPool2d(2, stride=1)

    def forward(self, images: Tensor) -> Tensor:
        x = F.pad(self.stem1(images), (0, 1, 0, 1))  # kernels of 2 reach one pixel to the right and down
        branch = self.stem2b(F.pad(self.stem2a(x), (0, 1, 0, 1)))
        out: Tensor = self.stem4(self.stem3(torch.cat([self.pool(x), branch], 1)))  # (B, channels, H/4, W/4)
        return out


class Block(nn.Module):
    """A chain of layers, whose maps are all put together and mixed by 1x1 convolutions."""

    def __init__(
        self,
        in_channels: int,
        middle: int,
        channels: int,
        layers: int,
        kernel: int,
        light: bool,
        affine: bool,
        residual: bool,
    ) -> None:
        super().__init__()
        self.residual = residual
        widths = [in_channels, *[middle] * (layers - 1)]
        self.layers = nn.ModuleList(
            LightBlock(width, middle, kernel, affine) if light else ConvBlock(width, middle, kernel, affine=affine)
            for width in widths
        )
        self.aggregation = nn.Sequential(
            ConvBlock(in_channels + layers * middle, channels // 2, 1, affine=affine),
            ConvBlock(channels // 2, channels, 1, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        out: Tensor = self.aggregation(torch.cat(maps, 1))
        return out + x if self.residual else out


class StageSpec(NamedTuple):
    """One stage: channels that it takes, of its layers and that it gives, and blocks; light layers have kernels of 5."""

    in_channels: int
    middle: int
    channels: int
    blocks: int
    light: bool = False


class Stage(nn.Module):
    """Halves the map (not the first stage), then blocks."""

    def __init__(self, spec: StageSpec, layers: int, shrink: bool, affine: bool) -> None:
        super().__init__()
        start = spec.in_channels
        self.downsample = ConvBlock(start, start, 3, 2, start, linear=True) if shrink else nn.Identity()
        kernel = 5 if spec.light else 3
        widths = [start, *[spec.channels] * (spec.blocks - 1)]
        self.blocks = nn.Sequential(
            *(
                Block(width, spec.middle, spec.channels, layers, kernel, spec.light, affine, residual=i > 0)
                for i, width in enumerate(widths)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.downsample(x))
        return out


class Head(nn.Module):
    """Global average pooling, a 1x1 convolution, logits."""

    def __init__(self, channels: int, hidden: int, num_classes: int, affine: bool, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU()]
        self.last_conv = nn.Sequential(*layers, *([Affine()] if affine else []))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last_conv(x.mean((2, 3), keepdim=True)).flatten(1)
        out: Tensor = self.fc(self.dropout(x))
        return out


class HGNetV2(nn.Module):
    """Stem, four stages, classifier.

    Args:
        stem: channels inside the stem.
        stages: the four stages.
        layers: layers of a block.
        affine: learnable scale and shift after every activation.
        num_classes: K.
        in_channels: C of the pictures.
        hidden: channels before the logits.
        dropout: of the classifier.
    """

    head_names = ("head.fc",)

    def __init__(
        self,
        stem: int,
        stages: Sequence[StageSpec],
        layers: int,
        affine: bool,
        num_classes: int,
        in_channels: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.stem = Stem(in_channels, stem, stages[0].in_channels, affine)
        self.stages = nn.Sequential(*(Stage(spec, layers, i > 0, affine) for i, spec in enumerate(stages)))
        self.head = Head(stages[-1].channels, hidden, num_classes, affine, dropout)
        self.feature_info = [Feature(spec.channels, 4 * 2**i) for i, spec in enumerate(stages)]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """Features after each stage, finest first: (B, channels, H / stride, W / stride) as in `feature_info`."""
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def forward(self, images: Tensor) -> Classified:
        return Classified(self.head(self.forward_pyramid(images)[-1]))  # (B, K)


def hgnet_v2_b4(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    stem: int = 32,
    start: int = 48,
    middle: int = 48,
    channels: Sequence[int] = (128, 512, 1024, 2048),
    blocks: Sequence[int] = (1, 1, 3, 1),
    layers: int = 6,
    affine: bool = False,
    hidden: int = 2048,
    dropout: float = 0.0,
) -> HGNetV2:
    """Build PP-HGNetV2-B4.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        width: factor of all channels.
        stem: channels inside the stem.
        start: channels that the stem gives.
        middle: channels of the layers of the first stage; each later stage doubles them.
        channels: of the four stages.
        blocks: of the four stages.
        layers: layers of a block.
        affine: learnable scale and shift after every activation.
        hidden: channels before the logits.
        dropout: of the classifier.
    """
    given = [rounded_channels(width * one, 2) for one in (start, *channels)]
    stages = [
        StageSpec(given[i], rounded_channels(width * middle * 2**i, 2), given[i + 1], blocks[i], light=i >= 2)
        for i in range(4)
    ]
    inside = rounded_channels(width * stem, 2)
    return HGNetV2(inside, stages, layers, affine, num_classes, in_channels, hidden, dropout)


hgnet_v2_b0 = partial(
    hgnet_v2_b4,
    stem=16,
    start=16,
    middle=16,
    channels=(64, 256, 512, 1024),
    blocks=(1, 1, 2, 1),
    layers=3,
    affine=True,
)
"""Build PP-HGNetV2-B0."""

hgnet_v2_b2 = partial(hgnet_v2_b4, stem=24, start=32, middle=32, channels=(96, 384, 768, 1536), layers=4, affine=True)
"""Build PP-HGNetV2-B2."""

hgnet_v2_b5 = partial(hgnet_v2_b4, stem=32, start=64, middle=64, blocks=(1, 2, 5, 2))
"""Build PP-HGNetV2-B5."""
