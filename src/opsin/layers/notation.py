"""Layers in short notation, read into a list: what `opsin models calculate` costs and what the network `layers` builds.

    C5x32 same     convolution 5x5 with 32 filters (C3x5x32: 3 high, 5 wide)
    T4x64 s2 p1    transposed convolution
    P2, A3s2       max and average pooling (stride = kernel unless said)
    GAP            global average pooling
    FC1024         dense layer (flattens what comes); FC alone has as many outputs as there are classes
    BN, LRN        batch normalization, local response normalization
    drop .4        dropout; `sdrop .2` drops whole channels; `noise .1` adds Gaussian noise of that deviation
    flatten
    ReLU, leaky .1, PReLU, ELU, GELU, SiLU, sigmoid, tanh, softplus, softmax, threshold, linear     activations
    [C3x64 same, BN]x2 repeats

Options behind a layer: s2 stride, p1 padding, same, valid, d2 dilation, g2 groups, nobias.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from opsin.errors import ConfigError

Padding = int | Literal["same", "valid"]
Kind = Literal["conv", "transposed", "max", "average", "global", "dense", "norm", "flatten", "keep"]

ACTIVATIONS = (
    "RELU", "LEAKY", "PRELU", "ELU", "GELU", "SILU", "SIGMOID", "TANH", "SOFTPLUS", "SOFTMAX", "THRESHOLD", "LINEAR",
)  # fmt: skip
LEAKY_SLOPE = 0.2

_KERNEL = {"C": "conv", "T": "transposed", "P": "max", "A": "average"}
_PLAIN = {"GAP": "global", "BN": "norm", "FLATTEN": "flatten", "FC": "dense", "LRN": "keep"}
_NUMBERED = ("DROP", "SDROP", "NOISE", "LEAKY")  # a number behind the word belongs to it
_HEAD = re.compile(r"([CT])(\d+)x(\d+)(?:x(\d+))?|([PA])(\d+)(?:x(\d+))?|FC(\d+)|([A-Za-z]+)")
_OPTION = re.compile(r"([spdg])(\d+)|(same|valid|nobias)")
_REPEAT = re.compile(r"\[([^\[\]]*)\]x(\d+)")


@dataclass(frozen=True)
class Layer:
    """One layer of a chain; `text` is how it was written.

    `name` is the word of a layer that is one, in capitals (RELU, DROP, LRN); `number` what stands behind it. A dense layer
    of 0 channels has as many outputs as there are classes.
    """

    text: str
    kind: Kind
    kernel: tuple[int, int] = (1, 1)
    channels: int = 0
    stride: int = 1
    padding: Padding = "valid"
    dilation: int = 1
    groups: int = 1
    bias: bool = True
    name: str = ""
    number: float | None = None


def read_layers(text: str, padding: Padding = "valid") -> list[Layer]:
    """Read the short notation; `padding` holds for convolutions that say nothing of it.

    Raises:
        ConfigError: naming the layer that cannot be read.
    """
    while _REPEAT.search(text):
        text = _REPEAT.sub(lambda found: ", ".join([found[1]] * int(found[2])), text)
    return [_layer(one.strip(), padding) for one in text.split(",") if one.strip()]


def _layer(text: str, padding: Padding) -> Layer:
    head = _HEAD.match(text)
    if head is None:
        raise ConfigError(_unreadable(text))
    options = text[head.end() :].strip()
    if head[9]:
        return _word(text, head[9].upper(), options)
    layer: Layer
    if head[1]:
        sides = (int(head[2]), int(head[3] if head[4] else head[2]))
        layer = Layer(text, _KERNEL[head[1]], sides, int(head[4] or head[3]), padding=padding)  # type: ignore[arg-type]
        if layer.kind == "transposed" and padding == "same":
            layer = replace(layer, padding="valid")
    elif head[5]:
        sides = (int(head[6]), int(head[7] or head[6]))
        layer = Layer(text, _KERNEL[head[5]], sides, stride=sides[0])  # type: ignore[arg-type]
    elif int(head[8]):
        layer = Layer(text, "dense", channels=int(head[8]))
    else:
        raise ConfigError(
            f"'{text}' has no unit. Write FC for as many as there are classes, or a number such as FC1024."
        )
    return _with_options(layer, options)


def _word(text: str, name: str, options: str) -> Layer:
    """A layer that is a word, perhaps with a number: `leaky .1`, `leaky relu .1`, `drop .4`."""
    if name == "LEAKYRELU":
        name = "LEAKY"
    if name == "LEAKY" and options.lower().startswith("relu"):
        options = options[len("relu") :].strip()
    if name in _NUMBERED:
        if re.fullmatch(r"\d*\.?\d+", options):
            return Layer(text, "keep", name=name, number=float(options))
        if name != "LEAKY" or options:
            raise ConfigError(_unreadable(text))
        return Layer(text, "keep", name=name, number=LEAKY_SLOPE)
    if name in ACTIVATIONS:
        if options:
            raise ConfigError(_unreadable(text))
        return Layer(text, "keep", name=name)
    if name not in _PLAIN:
        raise ConfigError(_unreadable(text))
    return _with_options(Layer(text, _PLAIN[name], name=name), options)  # type: ignore[arg-type]


def _with_options(layer: Layer, options: str) -> Layer:
    position = 0
    names: dict[str, str] = {"s": "stride", "p": "padding", "d": "dilation", "g": "groups"}
    for found in _OPTION.finditer(options):
        if options[position : found.start()].strip():
            break
        position = found.end()
        if found[1]:
            layer = replace(layer, **{names[found[1]]: int(found[2])})  # type: ignore[arg-type]
        elif found[3] == "nobias":
            layer = replace(layer, bias=False)
        else:
            layer = replace(layer, padding="same" if found[3] == "same" else "valid")
    if options[position:].strip():
        raise ConfigError(_unreadable(layer.text))
    return layer


def _unreadable(text: str) -> str:
    return (
        f"'{text}' is no layer. Expected e.g. 'C3x64 same', 'C7x64 s2 p3', 'T4x64 s2 p1', P2, 'P3s2', A7, GAP, FC1024, FC, BN, "
        f"LRN, 'drop .5', flatten, or '[C3x64 same]x2'; or an activation: ReLU, 'leaky .1', PReLU, ELU, GELU, SiLU, sigmoid, "
        f"tanh, softplus, threshold, linear."
    )
