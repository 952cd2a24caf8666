"""Grad-CAM: where the channels are active that speak for the score, at the resolution of a layer.

Paper: Selvaraju et al., "Grad-CAM", 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2.
Differs from the paper: the layer is found by looking at one pass, and the tokens of a transformer's normalization layers
count as maps, without those that stand for no place (class token, registers).
Checked against: captum (tests/oracles/test_explain_captum.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.errors import ConfigError, UnknownName
from opsin.explain.question import Found, Question, short_name

NAMES = ("grad-cam",)
MOST_PREFIX = 16  # tokens before those of the patches: class, distillation, registers

Size = tuple[int, int]
View = Callable[[Tensor], Tensor]


class Layer(NamedTuple):
    """A layer's first output in one pass."""

    name: str
    module: nn.Module
    output: Tensor


def build(question: Question, *, layer: str = "") -> Found:
    """ReLU of a layer's channels, weighed by the mean gradient of the score in each, enlarged to the input.

    Args:
        question: what is asked.
        layer: name of the layer; by default the last, in order of execution, whose output is a map larger than 1x1 and
            on which the score depends.

    Raises:
        UnknownName: if there is no such layer.
        ConfigError: if no layer keeps a map of the picture, or the one that was named does not.
    """
    with torch.enable_grad(), recorded(question.model) as layers:
        score = question.pick(question.model(question.pixels.detach().requires_grad_()))
    question.need_gradient(score)
    if layer:
        known = [one.name for one in layers]
        if layer not in known:
            raise UnknownName("layer", layer, known)
        layers = [one for one in layers if one.name == layer]
    for name, values, gradient in with_gradient(score, layers, question.size):
        weights = gradient.mean((2, 3), keepdim=True)  # (1, C, 1, 1)
        small = F.relu((weights * values).sum(1, keepdim=True))  # (1, 1, h, w)
        large = F.interpolate(small, question.size, mode="bilinear", align_corners=False)
        cells = [small.shape[2], small.shape[3]]
        return Found(large[0, 0], signed=False, details={"layer": name, "cells": cells})
    raise ConfigError(f"grad-cam: {_no_map(layer)} Methods that need no map: {', '.join(_others())}.")


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Layer]]:
    """The first tensor that each module gives inside the block, in order of execution; the hooks go with the block."""
    layers: list[Layer] = []
    seen: set[nn.Module] = set()
    handles = []

    def hook(name: str) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        def keep(module: nn.Module, _: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor) or module in seen:
                return None
            seen.add(module)
            layers.append(Layer(name, module, output))
            return output.clone()  # an activation in place behind it would change what is kept

        return keep

    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(hook(short_name(name))))
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def with_gradient(score: Tensor, layers: Sequence[Layer], size: Size) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, values and gradient (1, C, h, w) of layers that are maps on which the score depends, last first."""
    grids = [(one.output.shape[2], one.output.shape[3]) for one in layers if one.output.ndim == 4]
    for one in reversed(layers):
        view = map_view(one.module, one.output.shape, size, grids) if one.output.requires_grad else None
        if view is None:
            continue
        (gradient,) = torch.autograd.grad(score.sum(), one.output, retain_graph=True, allow_unused=True)
        if gradient is not None and bool(view(gradient).any()):
            yield one.name, view(one.output.detach()), view(gradient)


def map_view(module: nn.Module, shape: Sequence[int], size: Size, grids: Sequence[Size] = ()) -> View | None:
    """How an output of a layer is seen as a map (B, C, h, w), or None if it is none.

    Args:
        module: the layer.
        shape: of its output.
        size: (H, W) of the model's input; a map has about its proportions.
        grids: (h, w) of the outputs with 4 axes in the same pass, in order: the last one that fits is the tokens' grid.
    """
    if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd | nn.Softmax):
        return None  # what went in is an output already, or weights of attention
    norm = "Norm" in type(module).__name__
    channels_last = isinstance(module, nn.Linear) or (
        isinstance(module, nn.LayerNorm | nn.RMSNorm) and not type(module).__name__.endswith("2d")
    )
    if len(shape) == 4 and not channels_last and _fits((shape[2], shape[3]), size):
        return lambda values: values
    if len(shape) == 4 and _fits((shape[1], shape[2]), size):
        return lambda values: values.permute(0, 3, 1, 2)
    if len(shape) == 3 and norm:
        grid = _grid(shape[1], size, grids)
        if grid is not None:
            height, width = grid
            return lambda tokens: (
                tokens[:, -height * width :].transpose(1, 2).reshape(len(tokens), -1, height, width)  # (B, C, h, w)
            )
    return None


def _grid(tokens: int, size: Size, grids: Sequence[Size]) -> Size | None:
    """(h, w) that the last h*w tokens come from."""
    for cells in reversed(grids):
        if _fits(cells, size) and 0 <= tokens - cells[0] * cells[1] <= MOST_PREFIX:
            return cells
    for prefix in (0, 1, 2, 5):  # patches that were cut without a convolution
        height = round(math.sqrt((tokens - prefix) * size[0] / size[1])) if tokens > prefix else 0
        if height and (tokens - prefix) % height == 0 and _fits((height, (tokens - prefix) // height), size):
            return height, (tokens - prefix) // height
    return None


def _fits(cells: Size, size: Size) -> bool:
    """Whether a map of h x w cells has the proportions of the input, but for what strides round off."""
    (height, width), (whole_height, whole_width) = cells, size
    if height * width <= 1 or height > whole_height + 4 or width > whole_width + 4:
        return False
    return abs(height * whole_width - width * whole_height) < max(size)


def _no_map(layer: str) -> str:
    if layer:
        return f"the output of '{layer}' is no map of the picture larger than 1x1, or the score does not depend on it."
    return "no layer of this network keeps a map of the picture that the score depends on."


def _others() -> list[str]:
    from opsin.explain import explainers

    return [name for name in explainers if name not in NAMES]
