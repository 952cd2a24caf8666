"""DenseNet: every layer sees the maps of all layers before it, so that each needs to add only a few.

Paper: Densely Connected Convolutional Networks, 2016, https://arxiv.org/abs/1608.06993.
Implements: table 1 (DenseNet-BC: 1x1 bottlenecks of 4 growth rates, compression by a half): 121, 169 and 201 layers with
    growth rate 32, 161 layers with 48.
Differs from the paper: nothing in the network; the initialization is torchvision's (He et al., 2015, fan in), which is
    the authors'. All maps of a block are kept for the backward pass; nothing is computed twice to save memory.
Checked against: torchvision 0.29: same state-dict keys, outputs, gradients and parameter counts 7,978,856 / 28,681,000 /
    14,149,480 / 20,013,928 (tests/oracles/test_models_torchvision.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published files (BSD-3-Clause), whose names are of an older form, load unchanged.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opsin.layers.picture_size import require_picture_size
from opsin.models import Classified, Feature

NAMES = ("densenet121", "densenet161", "densenet169", "densenet201")

# Published files say denselayer1.norm.1 where the modules, which may have no dot in their names, are called norm1.
_OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)\.")


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 1x1 to few channels, batch norm, ReLU, 3x3 to `growth_rate` channels."""

    def __init__(self, in_channels: int, growth_rate: int, bottleneck: int, dropout: float) -> None:
        super().__init__()
        channels = bottleneck * growth_rate
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, growth_rate, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.relu(self.norm1(x)))
        x = self.conv2(self.relu(self.norm2(x)))
        out: Tensor = self.dropout(x)  # (B, growth_rate, H, W)
        return out


class DenseBlock(nn.Sequential):
    """Layers that each append `growth_rate` channels to what they get."""

    def __init__(self, in_channels: int, depth: int, growth_rate: int, bottleneck: int, dropout: float) -> None:
        layers = (DenseLayer(in_channels + i * growth_rate, growth_rate, bottleneck, dropout) for i in range(depth))
        super().__init__(OrderedDict((f"denselayer{i}", layer) for i, layer in enumerate(layers, 1)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = torch.cat([x, layer(x)], 1)
        return x  # (B, in_channels + depth * growth_rate, H, W)


class Transition(nn.Sequential):
    """Compresses the channels by a half and pools 2x2."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(
            OrderedDict(
                norm=nn.BatchNorm2d(in_channels),
                relu=nn.ReLU(inplace=True),
                conv=nn.Conv2d(in_channels, in_channels // 2, 1, bias=False),
                pool=nn.AvgPool2d(2),
            )
        )


class DenseNet(nn.Module):
    """Stem, dense blocks with transitions in between, global average pooling, logits.

    Args:
        depths: layers per block.
        num_classes: K.
        in_channels: C of the pictures.
        growth_rate: channels that each layer adds.
        width: channels of the stem.
        bottleneck: channels between the two convolutions of a layer, in growth rates.
        dropout: rate at the end of each layer.
    """

    head_names = ("classifier",)

    def __init__(
        self,
        depths: Sequence[int],
        num_classes: int = 1000,
        in_channels: int = 3,
        growth_rate: int = 32,
        width: int = 64,
        bottleneck: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict[str, nn.Module](
                conv0=nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False),
                norm0=nn.BatchNorm2d(width),
                relu0=nn.ReLU(inplace=True),
                pool0=nn.MaxPool2d(3, stride=2, padding=1),
            )
        )
        self.feature_info: list[Feature] = []
        channels = width
        for i, depth in enumerate(depths, 1):
            if i > 1:
                self.features.add_module(f"transition{i - 1}", Transition(channels))
                channels //= 2
            self.features.add_module(f"denseblock{i}", DenseBlock(channels, depth, growth_rate, bottleneck, dropout))
            channels += depth * growth_rate
            self.feature_info.append(Feature(channels, 2 * 2**i))
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        self.smallest = 2 * 2 ** len(depths) - 3  # two halvings round up, those of the transitions down
        self.register_load_state_dict_pre_hook(_rename_in_place)  # type: ignore[no-untyped-call]
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def adapt_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """A published file's tensors under this module's names; there is nothing to report, no value changes."""
        return {_renamed(name): tensor for name, tensor in state.items()}, None

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """The maps of each block, finest first: (B, channels, H / stride, W / stride) as in `feature_info`.

        The last are normalized and rectified, the others are as the next transition gets them.

        Raises:
            ShapeError: if the pictures are so small that a map would vanish.
        """
        require_picture_size(images, self.smallest, "This DenseNet")
        x, features = images, []
        for layer in self.features:
            if isinstance(layer, Transition):
                features.append(x)
            x = layer(x)
        return [*features, self.relu(x)]

    def forward(self, images: Tensor) -> Classified:
        x = self.forward_pyramid(images)[-1]
        x = self.avgpool(x).flatten(1)  # (B, channels)
        return Classified(self.classifier(x))  # (B, K)


def _renamed(name: str) -> str:
    return _OLD_NAME.sub(r"\1\2.", name)


def _rename_in_place(_module: nn.Module, state: dict[str, Any], *_: Any) -> None:
    for name in [name for name in state if _renamed(name) != name]:
        state[_renamed(name)] = state.pop(name)


densenet121 = partial(DenseNet, depths=(6, 12, 24, 16))
densenet161 = partial(DenseNet, depths=(6, 12, 36, 24), growth_rate=48, width=96)
densenet169 = partial(DenseNet, depths=(6, 12, 32, 32))
densenet201 = partial(DenseNet, depths=(6, 12, 48, 32))
