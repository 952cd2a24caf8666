"""A plain chain of layers in short notation, with its sizes and costs by formula; no network is built.

The notation is that of `opsin.layers.notation`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from opsin.analyze import calculators
from opsin.analyze.calculators import Field
from opsin.errors import ConfigError, OpsinError, ShapeError
from opsin.layers.notation import Kind, Layer, Padding, read_layers


@dataclass(frozen=True)
class Row:
    """What one layer makes and costs, for one picture.

    Args:
        layer: as written.
        shape: (C, H, W), or (n,) after flattening.
        parameters: trained values.
        buffers: values that are kept but not trained.
        macs: multiply-adds.
        values: activations that it stores.
        field: what one output cell sees along the height.
    """

    layer: str
    shape: tuple[int, ...]
    parameters: int = 0
    buffers: int = 0
    macs: int = 0
    values: int = 0
    field: Field = Field()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "layer": self.layer,
            "shape": list(self.shape),
            "parameters": self.parameters,
            "buffers": self.buffers,
            "macs": self.macs,
            "values": self.values,
            "field": None if self.field.whole else self.field.size,
            "jump": None if self.field.whole else self.field.jump,
        }


@dataclass(frozen=True)
class Chain:
    """All rows, the input first, and their totals."""

    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """Trained values."""
        return sum(row.parameters for row in self.rows)

    @property
    def buffers(self) -> int:
        """Values that are kept but not trained."""
        return sum(row.buffers for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-adds for one picture."""
        return sum(row.macs for row in self.rows)

    @property
    def values(self) -> int:
        """Activations that training stores for one picture, the picture itself included."""
        return sum(row.values for row in self.rows)

    @property
    def peak(self) -> int:
        """Most values that live at once in inference: a layer's input and output."""
        sizes = [math.prod(row.shape) for row in self.rows]
        return max((a + b for a, b in pairwise(sizes)), default=sizes[0])

    def memory(self, batch: int = 1, optimizer: str = "adam") -> int:
        """Bytes that training takes in float32; see `calculators.training_memory`."""
        return calculators.training_memory(self.parameters, self.values, batch=batch, optimizer=optimizer)

    def to_dict(self, batch: int = 1) -> dict[str, Any]:
        """As JSON values; memory of training for so many pictures per step."""
        return {
            "layers": [row.to_dict() for row in self.rows],
            "parameters": self.parameters,
            "buffers": self.buffers,
            "macs": self.macs,
            "values": self.values,
            "peak_bytes": 4 * self.peak,
            "training_bytes": {name: self.memory(batch, name) for name in calculators.STATES if name != "none"},
        }


def picture(text: str) -> tuple[int, int, int]:
    """Read `224x224x3` (height, width, channels) as (C, H, W); a single number is a vector of that length.

    Raises:
        ConfigError: for anything else.
    """
    found = re.fullmatch(r"(\d+)x(\d+)(?:x(\d+))?|(\d+)", text.strip())
    numbers = found and ([found[3] or "1", found[1], found[2]] if found[1] else [found[4], "1", "1"])
    if not numbers or min(map(int, numbers)) < 1:
        raise ConfigError(f"'{text}' is no picture size. Expected height x width x channels, e.g. 224x224x3.")
    channels, height, width = map(int, numbers)
    return channels, height, width


def evaluate(image: tuple[int, int, int], chain: Iterable[Layer] | str, padding: Padding = "valid") -> Chain:
    """Sizes and costs of a chain.

    Args:
        image: (C, H, W).
        chain: layers, or their short notation.
        padding: of convolutions that say nothing of it (short notation).

    Raises:
        ShapeError: if a layer does not fit, with its number and what it gets.
        ConfigError: if the notation cannot be read.
    """
    rows = [Row("input", image, values=math.prod(image))]
    for number, layer in enumerate(read_layers(chain, padding) if isinstance(chain, str) else chain, 1):
        try:
            rows.append(_MAKERS[layer.kind](layer, rows[-1]))
        except OpsinError as error:
            shape = " x ".join(map(str, rows[-1].shape))
            raise ShapeError(f"Layer {number} ('{layer.text}') cannot take {shape}: {error}") from error
    return Chain(tuple(rows))


# One layer ------------------------------------------------------------------------------------------------------------


def _map(row: Row) -> tuple[int, int, int]:
    if len(row.shape) != 3:
        raise ShapeError("it needs a map of channels, height and width; this is flattened already.")
    channels, height, width = row.shape
    return channels, height, width


def _window(layer: Layer, row: Row) -> tuple[tuple[int, int], Field]:
    """(H, W) behind a kernel that moves, and what its cells see."""
    _, height, width = _map(row)
    out = [
        calculators.output_size(n, k, layer.stride, layer.padding, layer.dilation)
        for n, k in zip((height, width), layer.kernel)
    ]
    if layer.padding == "same":
        before = calculators.same_padding(height, layer.kernel[0], layer.stride, layer.dilation)[0]
    else:
        before = 0 if layer.padding == "valid" else layer.padding
    return (out[0], out[1]), row.field.after(layer.kernel[0], layer.stride, before, layer.dilation)


def _conv(layer: Layer, row: Row) -> Row:
    size, field = _window(layer, row)
    channels = _map(row)[0]
    parameters = calculators.conv_parameters(layer.kernel, channels, layer.channels, layer.groups, layer.bias)
    macs = calculators.conv_macs(layer.kernel, channels, layer.channels, size, layer.groups)
    return _made(layer, (layer.channels, *size), field, parameters, macs)


def _transposed(layer: Layer, row: Row) -> Row:
    channels, height, width = _map(row)
    if layer.padding == "same":
        raise ConfigError("'same' is not defined for a transposed convolution; give its padding as a number (p1).")
    added = 0 if layer.padding == "valid" else layer.padding
    size = [
        calculators.transposed_size(n, k, layer.stride, added, layer.dilation)
        for n, k in zip((height, width), layer.kernel)
    ]
    parameters = calculators.conv_parameters(layer.kernel, channels, layer.channels, layer.groups, layer.bias)
    macs = calculators.conv_macs(layer.kernel, channels, layer.channels, (height, width), layer.groups)
    field = row.field.after_transposed(layer.kernel[0], layer.stride, added, layer.dilation)
    return _made(layer, (layer.channels, *size), field, parameters, macs)


def _pool(layer: Layer, row: Row) -> Row:
    size, field = _window(layer, row)
    return _made(layer, (_map(row)[0], *size), field)


def _global(layer: Layer, row: Row) -> Row:
    return _made(layer, (_map(row)[0],), replace(row.field, whole=True))


def _dense(layer: Layer, row: Row) -> Row:
    if not layer.channels:
        raise ConfigError("FC alone has as many outputs as there are classes; here say how many, e.g. FC10.")
    inputs = math.prod(row.shape)
    parameters = calculators.dense_parameters(inputs, layer.channels, layer.bias)
    field = replace(row.field, whole=True)
    return _made(layer, (layer.channels,), field, parameters, calculators.dense_macs(inputs, layer.channels))


def _norm(layer: Layer, row: Row) -> Row:
    trained, kept = calculators.norm_parameters(row.shape[0])
    return Row(layer.text, row.shape, trained, kept, 0, math.prod(row.shape), row.field)


def _flatten(layer: Layer, row: Row) -> Row:
    return Row(layer.text, (math.prod(row.shape),), field=row.field)


def _keep(layer: Layer, row: Row) -> Row:
    slope = 1 if layer.name == "PRELU" else 0
    return Row(layer.text, row.shape, slope, field=row.field)  # done in place, or off in inference


def _made(layer: Layer, shape: tuple[int, ...], field: Field, parameters: int = 0, macs: int = 0) -> Row:
    return Row(layer.text, shape, parameters, 0, macs, math.prod(shape), field)


_MAKERS: dict[Kind, Callable[[Layer, Row], Row]] = {
    "conv": _conv,
    "transposed": _transposed,
    "max": _pool,
    "average": _pool,
    "global": _global,
    "dense": _dense,
    "norm": _norm,
    "flatten": _flatten,
    "keep": _keep,
}
