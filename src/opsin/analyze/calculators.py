"""Sizes, parameters, multiply-adds, receptive fields and memory of layers by formula, without building anything.

Everything here is plain arithmetic on whole numbers (no torch, no NumPy). MAC is one multiplication with its addition;
libraries that count "FLOPs" mostly print twice that number. Biases, activations and pooling count no MACs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from opsin.errors import ConfigError, ShapeError
from opsin.layers.notation import Padding

STATES = {"none": 0, "sgd": 0, "momentum": 1, "adam": 2}
"""Values that an optimizer keeps for each parameter, next to weight and gradient."""


def output_size(size: int, kernel: int, stride: int = 1, padding: Padding = 0, dilation: int = 1) -> int:
    """Pixels along one side after a convolution or pooling.

    Args:
        size: pixels before it.
        kernel: pixels of the kernel.
        stride: pixels between two places of the kernel.
        padding: pixels added at each end; `same` gives ceil(size / stride), `valid` adds none.
        dilation: distance of neighboring kernel pixels.

    Raises:
        ShapeError: if the kernel does not fit even once.
        ConfigError: if a number is out of range.
    """
    _positive(size=size, kernel=kernel, stride=stride, dilation=dilation)
    if padding == "same":
        return math.ceil(size / stride)
    added = _pixels(padding)
    reach = dilation * (kernel - 1) + 1
    if reach > size + 2 * added:
        raise ShapeError(
            f"A kernel of {kernel} (dilation {dilation}: {reach} pixels) does not fit into {size} pixels with "
            f"{added} added at each end. Add padding, or pool less before it."
        )
    return (size + 2 * added - reach) // stride + 1


def same_padding(size: int, kernel: int, stride: int = 1, dilation: int = 1) -> tuple[int, int]:
    """Pixels to add before and after so that ceil(size / stride) come out; the odd one goes after."""
    wanted = output_size(size, kernel, stride, "same", dilation)
    total = max(0, (wanted - 1) * stride + dilation * (kernel - 1) + 1 - size)
    return total // 2, total - total // 2


def transposed_size(
    size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, output_padding: int = 0
) -> int:
    """Pixels along one side after a transposed convolution: (n - 1) s - 2 p + d (k - 1) + o + 1.

    Raises:
        ShapeError: if nothing is left after the padding is cut off.
    """
    _positive(size=size, kernel=kernel, stride=stride, dilation=dilation)
    found = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1
    if found < 1:
        raise ShapeError(f"A transposed convolution of {size} pixels with padding {padding} leaves {found} pixels.")
    return found


def conv_parameters(kernel: Sequence[int], in_channels: int, channels: int, groups: int = 1, bias: bool = True) -> int:
    """Weights and biases of a convolution with `channels` filters.

    Raises:
        ShapeError: if the channels cannot be divided into the groups.
    """
    if in_channels % groups or channels % groups:
        raise ShapeError(f"{in_channels} -> {channels} channels cannot be divided into {groups} groups.")
    return (math.prod(kernel) * in_channels // groups + bias) * channels


def conv_macs(kernel: Sequence[int], in_channels: int, channels: int, size: Sequence[int], groups: int = 1) -> int:
    """Multiply-adds of a convolution for one picture.

    Args:
        kernel: its sides.
        in_channels: of what it reads.
        channels: of what it makes.
        size: (H, W) of its output; of its *input* when it is transposed.
        groups: each reads its own share of the channels.
    """
    return math.prod(kernel) * (in_channels // groups) * channels * math.prod(size)


def dense_parameters(inputs: int, outputs: int, bias: bool = True) -> int:
    """Weights and biases of a dense layer."""
    return (inputs + bias) * outputs


def dense_macs(inputs: int, outputs: int, rows: int = 1) -> int:
    """Multiply-adds of a dense layer, for each of `rows` vectors."""
    return inputs * outputs * rows


def norm_parameters(channels: int) -> tuple[int, int]:
    """Trained values and running statistics of batch norm: scale and shift; mean and variance."""
    return 2 * channels, 2 * channels


def attention_macs(queries: int, keys: int, key_width: int, value_width: int) -> int:
    """Multiply-adds of the two products of attention (scores, and the mixture of values), for one head."""
    return queries * keys * (key_width + value_width)


def training_memory(parameters: int, stored: int, *, batch: int = 1, optimizer: str = "adam", width: int = 4) -> int:
    """Bytes of weights, gradients, optimizer states and of the activations that the backward pass needs.

    Args:
        parameters: trained values.
        stored: activations kept for one picture.
        batch: pictures per step.
        optimizer: none (weights only, no gradients), sgd, momentum or adam.
        width: bytes of one value; 4 for float32.

    Raises:
        ConfigError: if the optimizer is unknown.
    """
    if optimizer not in STATES:
        raise ConfigError(f"Unknown optimizer '{optimizer}' for the memory of training. Known: {', '.join(STATES)}.")
    copies = 1 if optimizer == "none" else 2 + STATES[optimizer]
    return width * (parameters * copies + batch * stored)


@dataclass(frozen=True)
class Field:
    """What one output cell sees, along one side, in pixels of the picture.

    Args:
        size: pixels that it depends on.
        jump: pixels between the centers of neighboring cells.
        start: center of the first cell; 0.5 is the center of the first pixel.
        whole: it depends on the whole picture (after global pooling, a dense layer on a map, attention).
    """

    size: float = 1
    jump: float = 1
    start: float = 0.5
    whole: bool = False

    def after(self, kernel: int, stride: float = 1, padding: float = 0, dilation: int = 1) -> Field:
        """The field behind a convolution or pooling; `padding` is what is added *before* the first pixel."""
        reach = dilation * (kernel - 1)
        return replace(
            self,
            size=self.size + reach * self.jump,
            jump=self.jump * stride,
            start=self.start + (reach / 2 - padding) * self.jump,
        )

    def after_transposed(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Field:
        """The field behind a transposed convolution: its cells lie closer, each sees ceil(reach / stride) inputs."""
        reach, jump = dilation * (kernel - 1) + 1, self.jump / stride
        size = self.size + (math.ceil(reach / stride) - 1) * self.jump
        return replace(self, size=size, jump=jump, start=self.start + (padding - (reach - 1) / 2) * jump)

    def joined(self, other: Field) -> Field:
        """The field of a sum or concatenation: the larger one counts."""
        if self.whole or other.whole:
            return replace(self, whole=True)
        wide = self if self.size >= other.size else other
        return replace(wide, jump=max(self.jump, other.jump))

    def __str__(self) -> str:
        return "whole picture" if self.whole else f"{self.size:g} (jump {self.jump:g})"


def _pixels(padding: Padding) -> int:
    if padding == "valid":
        return 0
    if not isinstance(padding, int) or padding < 0:
        raise ConfigError(f"padding = {padding!r}; expected same, valid, or pixels (0 or more).")
    return padding


def _positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name} = {number}; expected 1 or more.")
