"""A registered or timm network as the trunk of a larger one: its features, without the layers that only classify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from opsin.errors import ConfigError
from opsin.models.builder import build_backbone


class Trunk(nn.Module):
    """Features of a network with `forward_pyramid`; its layers that these do not need are taken out.

    Args:
        name: registered name or `timm/NAME`.
        kwargs: the network's own keyword arguments.
        in_channels: channels of a picture.
        image_size: (H, W) of the pictures.
        strides: of the levels that are wanted, finest first; None is the coarsest level alone.

    Raises:
        ConfigError: if the network has no pyramid or lacks one of the strides.
    """

    def __init__(
        self,
        name: str,
        kwargs: Mapping[str, Any] | None,
        in_channels: int,
        image_size: tuple[int, int],
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.net, levels, info = build_backbone(name, kwargs or {}, in_channels, image_size, strides)
        self.levels, self.strides = tuple(levels), tuple(level.stride for level in info)
        self.channels = tuple(level.channels for level in info)
        if strides is not None and self.strides != tuple(strides):
            raise ConfigError(f"backbone = '{name}' has features at strides {self.strides}; it needs {tuple(strides)}.")

    def forward(self, images: Tensor) -> list[Tensor]:
        """The wanted levels of pictures (B, C, H, W), finest first: (B, channels, H / stride, W / stride) each."""
        features: list[Tensor] = self.net.forward_pyramid(images)  # type: ignore[operator]
        return [features[level] for level in self.levels]
