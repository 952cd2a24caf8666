"""Features: what a layer of a model says of pictures, as arrays with the ids of the pictures.

A layer is named as in the model (`layer3`, `blocks.5`, `features.12`); `head-input`, the default, is what the last layer
with weights is given. Maps (B, C, H, W) are averaged over positions unless they are wanted whole; tokens (B, N, C) likewise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from opsin.errors import ConfigError, UnknownName
from opsin.models.builder import evaluating
from opsin.models.weights import head_of
from opsin.task import Batch

HEAD_INPUT = "head-input"
Pool = Literal["mean", "max", "none"]


@dataclass(frozen=True)
class Features:
    """Features of pictures.

    Args:
        ids: (N,) names of the pictures.
        values: (N, D) float32, or (N, ...) when maps are kept whole.
        layer: where they were taken.
    """

    ids: tuple[str, ...]
    values: NDArray[np.float32]
    layer: str


def last_layer(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """Name and module of the linear layer that gives the logits, or None if they come from something else."""
    names = head_of(model)
    modules = dict(model.named_modules())
    owners = [name.rpartition(".")[0] for name in names]
    linear = [name for name in modules if name in owners and isinstance(modules[name], nn.Linear)]
    if len(set(owners)) != 1 or len(linear) != 1:
        return None
    module = modules[linear[0]]
    return (linear[0], module) if isinstance(module, nn.Linear) else None


def layers(model: nn.Module, images: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """Name and output shape of every layer that can be tapped, in the order of execution.

    Args:
        model: in any mode; left as it was.
        images: (B, C, H, W), as the model takes them.
    """
    found: list[tuple[str, tuple[int, ...]]] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: _note(found, name, out))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with evaluating(model), torch.inference_mode():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _note(found: list[tuple[str, tuple[int, ...]]], name: str, output: Any) -> None:
    if isinstance(output, Tensor) and output.ndim >= 2:
        found.append((bare(name), tuple(output.shape[1:])))


def bare(name: str) -> str:
    """A layer's name without opsin's wrappers (`net.`)."""
    while name.startswith("net."):
        name = name.removeprefix("net.")
    return name


def find_layer(model: nn.Module, name: str) -> tuple[str, nn.Module]:
    """The module of a layer, with its full name.

    Raises:
        UnknownName: if there is none; the message offers the nearest names.
    """
    modules = {bare(path): (path, module) for path, module in model.named_modules() if path}
    if name not in modules:
        raise UnknownName("layer", name, modules, hint="opsin features RUN --layers lists them.")
    return modules[name]


def extract(model: nn.Module, batches: Iterable[Batch], layer: str = HEAD_INPUT, pool: Pool = "mean") -> Features:
    """Features of every picture of the batches.

    Args:
        model: assembled (takes pixels); left in the mode it was in.
        batches: evaluation batches.
        layer: name, or `head-input`.
        pool: mean or max over positions of a map, or none to keep it whole.

    Raises:
        UnknownName: if there is no such layer.
        ConfigError: if the layer gives no tensor, or the network has no linear last layer for `head-input`.
    """
    device = next(model.parameters()).device
    interleaved = any(getattr(module, "output_fmt", None) == "NHWC" for module in model.modules())
    ids: list[str] = []
    parts: list[NDArray[np.float32]] = []
    with tapped(model, layer) as seen, evaluating(model), torch.inference_mode():
        for batch in batches:
            seen.clear()
            model(batch.inputs.to(device))
            if not seen:
                raise ConfigError(
                    f"Layer '{layer}' was not used in the forward pass, or gives no tensor; choose another."
                )
            parts.append(_pooled(seen[-1], pool, interleaved).float().cpu().numpy())
            ids += batch.ids
    values = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
    return Features(tuple(ids), values, layer)


def _pooled(value: Tensor, pool: Pool, interleaved: bool) -> Tensor:
    if value.ndim == 4 and interleaved:
        value = value.permute(0, 3, 1, 2)  # (B, H, W, C) of timm's Swin and its relatives
    if pool == "none" or value.ndim == 2:
        return value
    positions = tuple(range(2, value.ndim)) if value.ndim == 4 else (1,)  # (B, C, H, W), or tokens (B, N, C)
    return value.mean(positions) if pool == "mean" else value.amax(positions)


@contextmanager
def tapped(model: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """What a layer gives, one entry per call of it inside the block.

    Raises:
        UnknownName: if there is no such layer.
        ConfigError: if the network has no linear last layer for `head-input`.
    """
    seen: list[Tensor] = []
    if layer == HEAD_INPUT:
        found = last_layer(model)
        if found is None:
            raise ConfigError(
                "The network's last layer is not linear, so it has no input to tap. Name a layer: --layer NAME."
            )
        handle = found[1].register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    else:
        _, module = find_layer(model, layer)
        handle = module.register_forward_hook(lambda _m, _i, out: seen.append(out) if isinstance(out, Tensor) else None)
    try:
        yield seen
    finally:
        handle.remove()
