"""Receptive fields through any network: what each tensor operation does to the field of its inputs.

Fields are those of one cell of the last map (or one token). Branches that join keep the larger field. Statistics that
normalization takes over the picture are not counted; attention, global pooling and dense layers on a map see the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from opsin.analyze.calculators import Field

aten = torch.ops.aten


@dataclass(frozen=True)
class Seen:
    """What a tensor knows of its origin.

    Args:
        height, width: fields along both sides.
        places: cells of the last map, which tokens stand for.
        channels: values of each cell.
    """

    height: Field = Field()
    width: Field = Field()
    places: int = 1
    channels: int = 1

    @property
    def whole(self) -> Seen:
        """The same, seeing all of the picture."""
        return replace(self, height=replace(self.height, whole=True), width=replace(self.width, whole=True))

    def joined(self, other: Seen) -> Seen:
        """What a sum or concatenation sees."""
        larger = self if self.places >= other.places else other
        return replace(larger, height=self.height.joined(other.height), width=self.width.joined(other.width))


class Fields:
    """Keeps the field of every living tensor, and finds that of each operation's outputs."""

    def __init__(self) -> None:
        self._seen: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def start(self, images: Tensor) -> None:
        """The picture (B, C, H, W) itself."""
        self._seen[images] = Seen(places=images.shape[2] * images.shape[3], channels=images.shape[1])

    def of(self, tensor: Any) -> Seen | None:
        """What a tensor sees; None for what does not come from the picture."""
        if not isinstance(tensor, Tensor) or tensor not in self._seen:
            return None
        found: Seen = self._seen[tensor]
        return found

    def follow(self, function: Any, args: tuple[Any, ...], outputs: list[Tensor]) -> None:
        """Note what the outputs of an operation see."""
        inputs = [(t, seen) for t in _tensors(args) if (seen := self.of(t)) is not None]
        if not inputs or not outputs:
            return
        found = inputs[0][1]
        for _, other in inputs[1:]:
            found = found.joined(other)
        rule = _RULES.get(function.overloadpacket)
        if rule is not None:
            found = rule(Operation(found, inputs[0][0], args, outputs[0], len(inputs)))
        for output in outputs:
            kept = found
            if output.ndim == 4 and rule in _MAPS:
                kept = replace(found, places=output.shape[2] * output.shape[3], channels=output.shape[1])
            self._seen[output] = kept


class Operation(NamedTuple):
    """One tensor operation.

    Args:
        seen: what its inputs see together.
        x: the first input that comes from the picture.
        args: all it got.
        out: its first output.
        inputs: number of inputs that come from the picture.
    """

    seen: Seen
    x: Tensor
    args: tuple[Any, ...]
    out: Tensor
    inputs: int


Rule = Callable[[Operation], Seen]


def _tensors(args: Any) -> list[Tensor]:
    if isinstance(args, Tensor):
        return [args]
    if isinstance(args, list | tuple):
        return [tensor for one in args for tensor in _tensors(one)]
    return []


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1]) if len(value) else (0, 0)


def _convolution(operation: Operation) -> Seen:
    seen, x, args, out = operation.seen, operation.x, operation.args, operation.out
    weight, stride, padding, dilation, transposed = args[1], *(_pair(args[i]) for i in (3, 4, 5)), args[6]
    kernel = _pair(tuple(weight.shape[2:]))
    fields = []
    for i, field in enumerate((seen.height, seen.width)):
        if transposed:
            fields.append(field.after_transposed(kernel[i], stride[i], padding[i], dilation[i]))
        else:
            fields.append(field.after(kernel[i], stride[i], padding[i], dilation[i]))
    found = Seen(fields[0], fields[1], seen.places, seen.channels)
    sides = tuple(x.shape[2:])
    covers = not transposed and math.prod(sides) > 1 and kernel == _pair(sides) and math.prod(out.shape[2:]) == 1
    return found.whole if covers and padding == (0, 0) else found  # a dense layer written as a convolution


def _pool(operation: Operation) -> Seen:
    seen, x, args, out = operation.seen, operation.x, operation.args, operation.out
    kernel = _pair(args[1])
    stride = _pair(args[2]) if len(args) > 2 and args[2] else kernel
    padding = _pair(args[3]) if len(args) > 3 else (0, 0)
    dilation = _pair(args[4]) if len(args) > 4 and isinstance(args[4], list) else (1, 1)  # average pooling has none
    if out.shape[-1] == out.shape[-2] == 1 and x.shape[-1] * x.shape[-2] > 1:
        return seen.whole
    height, width = (
        f.after(kernel[i], stride[i], padding[i], dilation[i]) for i, f in enumerate((seen.height, seen.width))
    )
    return replace(seen, height=height, width=width)


def _adaptive_pool(operation: Operation) -> Seen:
    seen, x, out = operation.seen, operation.x, operation.out
    if out.shape[-1] * out.shape[-2] == 1 < x.shape[-1] * x.shape[-2]:
        return seen.whole
    fields = []
    for field, n, m in zip((seen.height, seen.width), x.shape[-2:], out.shape[-2:]):
        kernel = math.ceil(n / m) + (1 if n % m else 0)
        fields.append(field.after(kernel, n / m))
    return replace(seen, height=fields[0], width=fields[1])


def _resize(operation: Operation) -> Seen:
    seen, x, out = operation.seen, operation.x, operation.out
    fields = []
    for field, n, m in zip((seen.height, seen.width), x.shape[-2:], out.shape[-2:]):  # the neighbor is read too
        fields.append(replace(field, size=field.size + field.jump * (n != m), jump=field.jump * n / m))
    return replace(seen, height=fields[0], width=fields[1])


def _nearest(operation: Operation) -> Seen:
    seen, x, out = operation.seen, operation.x, operation.out
    ratios = [n / m for n, m in zip(x.shape[-2:], out.shape[-2:])]
    height, width = (replace(f, jump=f.jump * r) for f, r in zip((seen.height, seen.width), ratios))
    return replace(seen, height=height, width=width)


def _slice(operation: Operation) -> Seen:
    seen, x, args = operation.seen, operation.x, operation.args
    step = args[4] if len(args) > 4 else 1
    dimension = (args[1] if len(args) > 1 else 0) % x.ndim
    if step == 1 or x.ndim != 4 or x.shape[1] != seen.channels or dimension < 2:
        return seen
    name = "height" if dimension == 2 else "width"
    field: Field = getattr(seen, name)
    return replace(seen, places=seen.places // step, **{name: replace(field, jump=field.jump * step)})  # type: ignore[arg-type]


def _reduce(operation: Operation) -> Seen:
    """Means, sums and maxima: over channels each cell keeps its field, over cells the whole picture is seen."""
    seen, x, args, out = operation.seen, operation.x, operation.args, operation.out
    if x.numel() == out.numel():
        return seen
    dims = args[1] if len(args) > 1 and args[1] is not None else list(range(x.ndim))
    dims = [d % x.ndim for d in ([dims] if isinstance(dims, int) else dims)]
    of_channels = 1 if x.ndim == 4 and x.shape[1] == seen.channels else x.ndim - 1
    over_cells = any(d not in (0, of_channels) and x.shape[d] > 1 for d in dims)
    return seen.whole if over_cells and seen.places > 1 else seen


def _dense(operation: Operation) -> Seen:
    """A matrix product of (rows, inputs): rows that stand for cells or tokens keep their fields, one row mixes them."""
    seen, args, out = operation.seen, operation.args, operation.out
    factors = [t for t in _tensors(args) if t.ndim >= 2][-2:]
    rows, inputs = math.prod(factors[0].shape[:-1]), factors[0].shape[-1]
    if operation.inputs > 1:
        return seen.whole  # two things from the picture multiplied: attention
    mixes = rows == 1 or (inputs == seen.places and inputs != seen.channels)
    found = seen.whole if mixes and seen.places > 1 else seen
    return found if mixes else replace(found, channels=out.shape[-1])


def _whole(operation: Operation) -> Seen:
    return operation.seen.whole


_RULES: dict[Any, Rule] = {
    aten.convolution: _convolution,
    aten.max_pool2d_with_indices: _pool,
    aten.avg_pool2d: _pool,
    aten._adaptive_avg_pool2d: _adaptive_pool,
    aten.adaptive_max_pool2d: _adaptive_pool,
    aten.upsample_nearest2d: _nearest,
    aten.upsample_bilinear2d: _resize,
    aten.upsample_bicubic2d: _resize,
    aten.slice: _slice,
    aten.mean: _reduce,
    aten.sum: _reduce,
    aten.amax: _reduce,
    aten.amin: _reduce,
    aten.max: _reduce,
    aten.mm: _dense,
    aten.addmm: _dense,
    aten.bmm: _dense,
    aten.baddbmm: _dense,
    aten._scaled_dot_product_flash_attention_for_cpu: _whole,
    aten._scaled_dot_product_attention_math_for_mps: _whole,
    aten._scaled_dot_product_flash_attention: _whole,
    aten._scaled_dot_product_efficient_attention: _whole,
    aten._scaled_dot_product_cudnn_attention: _whole,
}
_MAPS = (_convolution, _pool, _adaptive_pool, _nearest, _resize)
