"""GoogLeNet: modules that look at their input through four windows at once, and logits in the middle while it learns.

Paper: Going Deeper with Convolutions, 2014, https://arxiv.org/abs/1409.4842.
Implements: table 1 and figure 3, with the two auxiliary classifiers of section 5 behind 4a and 4d (`auxiliary=True`).
Differs from the paper: batch norm after every convolution instead of local response norm; the windows called 5x5 are
    3x3; the fourth pooling is 2x2; auxiliary heads pool to 4x4 whatever the size; the last dropout is 0.2 instead of
    0.4. All of it as the published weights have it.
Checked against: torchvision 0.29: same state-dict keys, outputs with those of the auxiliary heads, gradients, parameter
    counts 6,624,904 and 13,004,888 with auxiliary heads (tests/oracles/test_models_mobile_inception_vit.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published file (BSD-3-Clause) loads unchanged. It wants `transform_input=True`
    (PRETRAINED), and its auxiliary heads were never trained: without `auxiliary` they are reported as not used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.layers.inception_parts import FromImageNetScale, NormalizedConvolution
from opsin.layers.picture_size import require_picture_size
from opsin.models import Classified, Feature

NAMES = ("googlenet",)
PRETRAINED = {"transform_input": True}  # arguments that the published weights need

SMALLEST = 15  # pixels: below, a pooling has nothing left to pool


class Inception(nn.Module):
    """Four branches side by side: 1x1 | 1x1, 3x3 | 1x1, "5x5" (3x3) | pooling, 1x1 (figure 2b).

    Args:
        in_channels: channels of the input.
        window1: outputs of the 1x1 branch.
        window3: (reduced, outputs) of the 3x3 branch.
        window5: (reduced, outputs) of the branch called 5x5.
        pool: outputs of the pooling branch.
    """

    def __init__(
        self, in_channels: int, window1: int, window3: tuple[int, int], window5: tuple[int, int], pool: int
    ) -> None:
        super().__init__()
        self.out_channels = window1 + window3[1] + window5[1] + pool
        self.branch1 = NormalizedConvolution(in_channels, window1, 1)
        self.branch2 = nn.Sequential(
            NormalizedConvolution(in_channels, window3[0], 1), NormalizedConvolution(*window3, 3, padding=1)
        )
        self.branch3 = nn.Sequential(
            NormalizedConvolution(in_channels, window5[0], 1), NormalizedConvolution(*window5, 3, padding=1)
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), NormalizedConvolution(in_channels, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class AuxiliaryHead(nn.Module):
    """Logits from the middle of the network (section 5): pooling, 1x1 convolution, two dense layers.

    Args:
        in_channels: channels of the map.
        channels: after the 1x1 convolution.
        hidden: width of the first dense layer.
        num_classes: K.
        dropout: rate between the dense layers.
    """

    def __init__(self, in_channels: int, channels: int, hidden: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = NormalizedConvolution(in_channels, channels, 1)
        self.fc1 = nn.Linear(channels * 4 * 4, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.adaptive_avg_pool2d(x, 4)).flatten(1)  # (B, channels * 16)
        logits: Tensor = self.fc2(self.dropout(F.relu(self.fc1(x))))  # (B, K)
        return logits


class GoogLeNet(nn.Module):
    """Stem, nine inception modules, global average pooling, logits; see the module's text.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        width: factor of all channels.
        auxiliary: whether there are auxiliary heads; their logits are returned in training mode only.
        transform_input: pictures come normalized by ImageNet's mean and deviation, and are brought to -1..1.
        dropout: rate before the last layer.
        auxiliary_dropout: rate inside the auxiliary heads.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        width: float,
        auxiliary: bool,
        transform_input: bool,
        dropout: float,
        auxiliary_dropout: float,
    ) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(1, round(channels * width))

        def inception(given: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int) -> Inception:
            pairs = [(scaled(reduced), scaled(out)) for reduced, out in (three, five)]
            return Inception(given, scaled(one), pairs[0], pairs[1], scaled(pool))

        self.transform = FromImageNetScale(in_channels) if transform_input else None
        stem = scaled(192)
        self.conv1 = NormalizedConvolution(in_channels, scaled(64), 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = NormalizedConvolution(scaled(64), scaled(64), 1)
        self.conv3 = NormalizedConvolution(scaled(64), stem, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = inception(stem, 64, (96, 128), (16, 32), 32)
        self.inception3b = inception(self.inception3a.out_channels, 128, (128, 192), (32, 96), 64)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = inception(self.inception3b.out_channels, 192, (96, 208), (16, 48), 64)
        self.inception4b = inception(self.inception4a.out_channels, 160, (112, 224), (24, 64), 64)
        self.inception4c = inception(self.inception4b.out_channels, 128, (128, 256), (24, 64), 64)
        self.inception4d = inception(self.inception4c.out_channels, 112, (144, 288), (32, 64), 64)
        self.inception4e = inception(self.inception4d.out_channels, 256, (160, 320), (32, 128), 128)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.inception5a = inception(self.inception4e.out_channels, 256, (160, 320), (32, 128), 128)
        self.inception5b = inception(self.inception5a.out_channels, 384, (192, 384), (48, 128), 128)
        self.aux1 = self.aux2 = None
        if auxiliary:
            heads = (scaled(128), scaled(1024), num_classes, auxiliary_dropout)
            self.aux1 = AuxiliaryHead(self.inception4a.out_channels, *heads)
            self.aux2 = AuxiliaryHead(self.inception4d.out_channels, *heads)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.inception5b.out_channels, num_classes)
        self.head_names = ("fc", "aux1.fc2", "aux2.fc2") if auxiliary else ("fc",)
        levels = (self.inception3b, self.inception4e, self.inception5b)
        self.feature_info = [Feature(stem, 4)] + [
            Feature(level.out_channels, stride) for level, stride in zip(levels, (8, 16, 32))
        ]
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01)

    def _features(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The levels of the pyramid, and the maps that the auxiliary heads see."""
        require_picture_size(images, SMALLEST, "googlenet")
        x = images if self.transform is None else self.transform(images)
        x = self.maxpool1(self.conv1(x))  # (B, 64, H/4, W/4), channels here and below times width
        stem = self.conv3(self.conv2(x))  # (B, 192, H/4, W/4)
        x = self.inception3a(self.maxpool2(stem))  # (B, 256, H/8, W/8)
        level3 = self.inception3b(x)  # (B, 480, H/8, W/8)
        first = self.inception4a(self.maxpool3(level3))  # (B, 512, H/16, W/16)
        second = self.inception4d(self.inception4c(self.inception4b(first)))  # (B, 528, H/16, W/16)
        level4 = self.inception4e(second)  # (B, 832, H/16, W/16)
        level5 = self.inception5b(self.inception5a(self.maxpool4(level4)))  # (B, 1024, H/32, W/32)
        return [stem, level3, level4, level5], [first, second]

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """Features before each pooling and at the end, finest first: (B, channels, H / stride, W / stride)."""
        return self._features(images)[0]

    def forward(self, images: Tensor) -> Classified:
        levels, middle = self._features(images)
        x = self.dropout(self.avgpool(levels[-1]).flatten(1))  # (B, 1024)
        logits = self.fc(x)  # (B, K)
        if not self.training or self.aux1 is None or self.aux2 is None:
            return Classified(logits)
        return Classified(logits, (self.aux1(middle[0]), self.aux2(middle[1])))  # each (B, K)


def googlenet(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    auxiliary: bool = False,
    transform_input: bool = False,
    dropout: float = 0.2,
    auxiliary_dropout: float = 0.7,
) -> GoogLeNet:
    """Build GoogLeNet with batch norm; `auxiliary=True` adds the two heads of the paper while it trains."""
    return GoogLeNet(num_classes, in_channels, width, auxiliary, transform_input, dropout, auxiliary_dropout)
