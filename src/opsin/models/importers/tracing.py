"""The layers with weights of a network of ours, in the order in which a picture meets them, and what stands before each.

One blank picture is sent through. That a layer comes before another is read from the graph that automatic differentiation
keeps, so branches are told from chains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

KINDS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Conv2d, "conv"),
    (nn.Linear, "dense"),
    (nn.modules.batchnorm._BatchNorm, "batchnorm"),
)


@dataclass(frozen=True)
class Slot:
    """One layer of ours.

    Args:
        name: of the module in the network.
        kind: "conv", "depthwise", "dense" or "batchnorm".
        module: the layer.
        after: of a batch norm: the layer whose output it gets directly, else "".
        before: names of all layers whose outputs reach this one.
        flattened: (C, H, W) of the map whose pixels a dense layer or a batch norm gets as a row, else None.
        unclear: one of these gets a row of which it is not known how it was made from the last map.
    """

    name: str
    kind: str
    module: Any
    after: str
    before: frozenset[str]
    flattened: tuple[int, int, int] | None
    unclear: bool = False


def slots(network: nn.Module, shape: tuple[int, int, int]) -> list[Slot]:
    """Trace the network.

    Args:
        network: takes pictures (B, C, H, W); its mode is left as it was.
        shape: (C, H, W) of a picture.

    Returns:
        The layers that took part, each once.
    """
    found: dict[str, Slot] = {}
    made: list[tuple[Any, str]] = []  # what differentiation remembers of a layer's output, and the layer
    layer_of = {id(p): name for name, m in network.named_modules() for p in m.parameters(recurse=False)}
    last_map = [shape]
    since: set[str] = set()  # dense layers that came after the last map

    def entering(name: str, kind: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        if name in found or not isinstance(x, Tensor):
            return
        after = next((layer for node, layer in made if node is x.grad_fn), "") if kind == "batchnorm" else ""
        before = frozenset(_layers_behind(x, layer_of))
        size = last_map[0]
        row = kind in ("dense", "batchnorm") and x.ndim == 2 and not since & before  # several may get the same row
        flat = size if row and x.shape[1] == size[0] * size[1] * size[2] else None
        unclear = row and flat is None and x.shape[1] != size[0]  # neither all pixels nor their mean
        found[name] = Slot(name, kind, module, after, before, flat, unclear)

    def leaving(name: str, output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        if name in found and found[name].kind != "batchnorm":
            made.append((output.grad_fn, name))
        if output.ndim == 4:
            last_map[0] = (output.shape[1], output.shape[2], output.shape[3])
            since.clear()
        elif name in found and found[name].kind == "dense":
            since.add(name)

    handles = []
    for name, module in network.named_modules():
        kind = next((word for kind, word in KINDS if isinstance(module, kind)), None)
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            kind = "depthwise"
        if kind:
            handles.append(
                module.register_forward_pre_hook(lambda m, x, name=name, kind=kind: entering(name, kind, m, x))
            )
        handles.append(module.register_forward_hook(lambda m, x, y, name=name: leaving(name, y)))
    modes = [(module, module.training) for module in network.modules()]
    frozen = [p for p in network.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        network.eval()
        for parameter in frozen:  # differentiation forgets layers without it
            parameter.requires_grad_(True)
        with torch.enable_grad():
            network(torch.zeros(1, *shape))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
        for parameter in frozen:
            parameter.requires_grad_(False)
    return list(found.values())


def _layers_behind(x: Tensor, layer_of: dict[int, str]) -> set[str]:
    waiting: list[Any] = [x.grad_fn]
    seen: set[Any] = set()
    layers: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in layer_of:
            layers.add(layer_of[id(variable)])
        waiting += [following for following, _ in node.next_functions]
    return layers
