"""A registered or timm network as the trunk of a larger one: its features, without the layers that only classify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opsin.errors import ConfigError
from opsin.models import ModelSpec
from opsin.models.builder import build_model, evaluating


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
        net = build_model(ModelSpec(name, dict(kwargs or {}), in_channels, 1, image_size), check=False)
        info = getattr(net, "feature_info", None)
        if not info or not callable(getattr(net, "forward_pyramid", None)):
            raise ConfigError(f"backbone = '{name}' has no forward_pyramid; take one that lists its features.")
        at = {stride: level for level, (_, stride) in enumerate(info)}
        self.strides = tuple(strides) if strides is not None else (info[-1].stride,)
        if missing := [stride for stride in self.strides if stride not in at]:
            raise ConfigError(
                f"backbone = '{name}' has features at strides {', '.join(map(str, at))}; stride {missing[0]} is missing."
            )
        self.levels = tuple(at[stride] for stride in self.strides)
        self.channels = tuple(int(info[level].channels) for level in self.levels)
        self.net = net
        _leave_out_unused(net, torch.zeros(1, in_channels, *image_size))

    def forward(self, images: Tensor) -> list[Tensor]:
        """The wanted levels of pictures (B, C, H, W), finest first: (B, channels, H / stride, W / stride) each."""
        features: list[Tensor] = self.net.forward_pyramid(images)  # type: ignore[operator]
        return [features[level] for level in self.levels]


def _leave_out_unused(net: nn.Module, images: Tensor) -> None:
    """Take out the modules with weights that `forward_pyramid` does not call, above all the classifier."""
    called: set[nn.Module] = set()
    handles = [module.register_forward_pre_hook(lambda module, _: called.add(module)) for module in net.modules()]
    with evaluating(net), torch.no_grad():
        net.forward_pyramid(images)  # type: ignore[operator]
    for handle in handles:
        handle.remove()
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if next(child.parameters(), None) is not None and not any(module in called for module in child.modules()):
                setattr(parent, name, nn.Identity())
