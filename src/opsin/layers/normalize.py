"""Normalization of pixels inside the model: pictures travel as they are stored, and the export needs no recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opsin.errors import ConfigError, ShapeError
from opsin.layers.layout import channels_last_hint
from opsin.task import ImageSpec


class Normalized(nn.Module):
    """A network behind `((pixels - low) / (high - low) - mean) / std`.

    Mean and standard deviation stand in the buffers `mean` and `std` (state-dict keys beside `net.*`) and follow the
    module's type: in double precision the arithmetic is double. Under autocast it stays in float32.

    Args:
        net: gets float pictures (B, C, H, W), about zero mean and unit variance.
        spec: channels, and the (low, high) that pixels can hold; the type of the pixels may differ from spec.dtype
            (a batch augmented in float32 keeps the range of its uint8 source).
        mean: per channel, in units where low is 0 and high is 1; one value counts for all channels.
        std: per channel, in the same units.

    Raises:
        ConfigError: if mean or std do not fit the channels, std is not positive, or the range is empty.
        ShapeError: on pictures with another number of channels; the message gives the shape received.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, spec: ImageSpec, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.channels = spec.channels
        self.low, self.high = (float(bound) for bound in spec.range)
        if not self.high > self.low:
            raise ConfigError(f"The pixel range {spec.range} is empty; expected (low, high) with low < high.")
        self.register_buffer("mean", _per_channel("mean", mean, spec.channels))
        self.register_buffer("std", _per_channel("std", std, spec.channels))
        if not bool((self.std > 0).all()):
            raise ConfigError(f"std = {list(std)}; expected positive numbers.")

    def normalize(self, images: Tensor) -> Tensor:
        """Pixels (B, C, H, W) of any type to the floats that the network gets; memory layout is kept."""
        if images.ndim != 4 or images.shape[1] != self.channels:
            hint = channels_last_hint(images.shape, self.channels, "images.permute(0, 3, 1, 2)")
            raise ShapeError(f"This model takes pictures (B, {self.channels}, H, W); got {tuple(images.shape)}.{hint}")
        scale = 1.0 / ((self.high - self.low) * self.std)  # (C,)
        offset = -(self.low / (self.high - self.low) + self.mean) / self.std  # (C,)
        return images.to(self.mean.dtype) * scale[:, None, None] + offset[:, None, None]

    def forward(self, images: Tensor, **given: Any) -> Any:
        return self.net(self.normalize(images), **given)


def _per_channel(name: str, values: Sequence[float], channels: int) -> Tensor:
    if len(values) not in (1, channels):
        raise ConfigError(f"{name} = {list(values)}; expected {channels} values, one per channel, or a single one.")
    return torch.tensor([float(value) for value in values], dtype=torch.float32).expand(channels).clone()
