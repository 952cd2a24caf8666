"""Modules for layers in short notation, and the layers that torch does not have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import ConfigError, ShapeError
from opsin.layers.notation import ACTIVATIONS, Layer

WEIGHTED = ("conv", "transposed", "dense")

# Layers that torch does not have ---------------------------------------------------------------------------------------


class Padded(nn.Module):
    """A convolution or pooling behind as many added pixels as give ceil(size / stride); the odd one goes after."""

    def __init__(self, layer: nn.Module, reach: tuple[int, int], stride: int, value: float) -> None:
        super().__init__()
        self.layer, self.reach, self.stride, self.value = layer, reach, stride, value

    def forward(self, x: Tensor) -> Tensor:
        sides: list[int] = []
        for size, reach in zip((x.shape[3], x.shape[2]), reversed(self.reach)):
            total = max(0, (-(-size // self.stride) - 1) * self.stride + reach - size)
            sides += [total // 2, total - total // 2]
        found: Tensor = self.layer(F.pad(x, sides, value=self.value))
        return found


class PaddedAverage(nn.Module):
    """Average pooling whose output is ceil(size / stride) large; pixels that were added do not count."""

    def __init__(self, kernel: tuple[int, int], stride: int) -> None:
        super().__init__()
        self.pool = Padded(nn.AvgPool2d(kernel, stride), kernel, stride, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.pool(x) / self.pool(torch.ones_like(x[:1, :1]))
        return found


class GlobalAverage(nn.Module):
    """Mean over positions: (B, C, H, W) to (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Threshold(nn.Module):
    """1 where the input is positive, else 0; its gradient is taken as 1 where the input is within [-1, 1].

    The straight-through estimator of Hubara et al. 2016: a step has no gradient of its own to learn from.
    """

    def forward(self, x: Tensor) -> Tensor:
        soft = x.clamp(-1.0, 1.0)
        return soft + ((x > 0).to(x.dtype) - soft).detach()


class Noise(nn.Module):
    """Adds Gaussian noise of a standard deviation, in training mode only."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.deviation * torch.randn_like(x) if self.training else x


# From notation to modules ----------------------------------------------------------------------------------------------

_MODULES: dict[str, Any] = {
    "RELU": nn.ReLU,
    "PRELU": nn.PReLU,
    "ELU": nn.ELU,
    "GELU": nn.GELU,
    "SILU": nn.SiLU,
    "SIGMOID": nn.Sigmoid,
    "TANH": nn.Tanh,
    "SOFTPLUS": nn.Softplus,
    "SOFTMAX": partial(nn.Softmax, 1),
    "THRESHOLD": Threshold,
    "LINEAR": nn.Identity,
    "LEAKY": nn.LeakyReLU,
    "DROP": nn.Dropout,
    "SDROP": nn.Dropout2d,
    "NOISE": Noise,
}


def make_module(layer: Layer, shape: tuple[int, ...]) -> nn.Module:
    """The module of a layer that gets (C, H, W) or (n,); a dense layer gets (n,).

    Raises:
        ShapeError: if the layer needs a map.
        ConfigError: if it has options that do not go together.
    """
    if layer.kind == "dense":
        return nn.Linear(shape[0], layer.channels, bias=layer.bias)
    if layer.kind == "flatten":
        return nn.Flatten()
    if layer.kind == "norm":
        return nn.BatchNorm2d(shape[0]) if len(shape) == 3 else nn.BatchNorm1d(shape[0])
    if layer.kind == "keep" and layer.name in _MODULES:
        return _MODULES[layer.name]() if layer.number is None else _MODULES[layer.name](layer.number)  # type: ignore[no-any-return]
    if len(shape) != 3:
        raise ShapeError("it needs a map of channels, height and width; this is flattened already.")
    if layer.name == "LRN":
        return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)  # torch divides alpha by 5: AlexNet's 1e-4
    if layer.kind == "global":
        return GlobalAverage()
    return _window(layer, shape[0])


def _window(layer: Layer, channels: int) -> nn.Module:
    """A kernel that moves over a map of so many channels."""
    kernel, stride = layer.kernel, layer.stride
    reach = (layer.dilation * (kernel[0] - 1) + 1, layer.dilation * (kernel[1] - 1) + 1)
    if layer.kind in ("max", "average") and (layer.groups > 1 or (layer.kind == "average" and layer.dilation > 1)):
        raise ConfigError("pooling has no groups, and average pooling no dilation.")
    same = layer.padding == "same"
    added = 0 if isinstance(layer.padding, str) else layer.padding
    if layer.kind == "max":
        pool = nn.MaxPool2d(kernel, stride, added, layer.dilation)
        return Padded(pool, reach, stride, -torch.inf) if same else pool
    if layer.kind == "average":
        return PaddedAverage(kernel, stride) if same else nn.AvgPool2d(kernel, stride, added)
    shared: dict[str, Any] = {"dilation": layer.dilation, "groups": layer.groups, "bias": layer.bias}
    if layer.kind == "transposed":
        if same:
            raise ConfigError("'same' is not defined for a transposed convolution; give its padding as a number (p1).")
        return nn.ConvTranspose2d(channels, layer.channels, kernel, stride, added, **shared)
    if not same or stride == 1:
        return nn.Conv2d(channels, layer.channels, kernel, stride, "same" if same else added, **shared)
    return Padded(nn.Conv2d(channels, layer.channels, kernel, stride, **shared), reach, stride, 0.0)


def activated(layers: Sequence[Layer], activation: Layer) -> Iterator[Layer]:
    """The layers with the activation behind each convolution and dense layer that names none."""
    waiting = False
    for number, layer in enumerate(layers):
        if waiting and layer.kind != "norm":
            yield activation
            waiting = False
        yield layer
        if layer.kind in WEIGHTED:
            waiting = not _names_activation(layers[number + 1 :])
    if waiting:
        yield activation


def _names_activation(behind: Sequence[Layer]) -> bool:
    for layer in behind:
        if layer.kind in WEIGHTED:
            return False
        if layer.name in ACTIVATIONS:
            return True
    return False
