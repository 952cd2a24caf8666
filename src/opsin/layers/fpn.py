"""A backbone with a feature pyramid network on top, and batch norms that are frozen.

Source: Feature Pyramid Networks for Object Detection, 2016, https://arxiv.org/abs/1612.03144; levels P6 and P7 as in RetinaNet
and FCOS. Names of the weights are torchvision's (`body`, `fpn`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from opsin.errors import ConfigError

Norm = Literal["batch", "frozen"]
Top = Literal["pool", "p5", "c5"]


class PyramidBackbone(nn.Module):
    """Some levels of a backbone's pyramid through a feature pyramid network.

    Args:
        body: has `forward_pyramid`.
        levels: which of its levels are used, finest first.
        in_channels: their channels.
        strides: their strides.
        channels: of every level that comes out.
        top: what is added above the coarsest level: "pool" (every second cell of it), or P6 and P7 by convolutions, from
            the coarsest level of the pyramid ("p5") or of the backbone ("c5").
        norm: batch norm after every convolution of the pyramid, which then have no bias.
    """

    def __init__(
        self,
        body: nn.Module,
        levels: Sequence[int],
        in_channels: Sequence[int],
        strides: Sequence[int],
        channels: int,
        top: Top,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.body = body
        self.levels = tuple(levels)
        last = channels if top == "p5" else in_channels[-1]
        extra = LastLevelMaxPool() if top == "pool" else LastLevelP6P7(last, channels)
        if isinstance(extra, LastLevelP6P7):
            extra.use_P5 = top == "p5"
        self.fpn = FeaturePyramidNetwork(
            list(in_channels), channels, extra_blocks=extra, norm_layer=nn.BatchNorm2d if norm else None
        )
        above = 1 if top == "pool" else 2
        self.strides = (*strides, *(strides[-1] * 2 ** (i + 1) for i in range(above)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps (B, channels, ceil(H / stride), ceil(W / stride)), one per stride in `strides`."""
        pyramid = self.body.forward_pyramid(images)  # type: ignore[operator]
        features: dict[str, Tensor] = self.fpn(OrderedDict((str(i), pyramid[k]) for i, k in enumerate(self.levels)))
        return list(features.values())


def with_norm(model: nn.Module, norm: Norm, eps: float | None = None) -> nn.Module:
    """The model with its batch norms as wanted.

    Args:
        model: changed in place where it is not a batch norm itself.
        norm: "batch" leaves them; "frozen" makes statistics, scale and shift constants (buffers of the same names), which
            is how detectors are trained with one or two pictures per processor.
        eps: of frozen norms; by default what it was.

    Raises:
        ConfigError: if there is no such norm.
    """
    if norm not in ("batch", "frozen"):
        raise ConfigError(f"norm = '{norm}'; expected 'batch' or 'frozen'.")
    if norm == "batch":
        return model
    if isinstance(model, nn.BatchNorm2d):
        frozen: nn.Module = FrozenBatchNorm2d(model.num_features, model.eps if eps is None else eps)
        state = model.state_dict()
        frozen.load_state_dict({name: state[name] for name in frozen.state_dict()})
        return frozen
    for name, child in model.named_children():
        setattr(model, name, with_norm(child, norm, eps))
    return model
