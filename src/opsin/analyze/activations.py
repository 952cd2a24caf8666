"""How large activations are at initialization: layers where they vanish, explode or die before training begins."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from opsin.models.builder import evaluating
from opsin.seeding import torch_generator


class Activation(NamedTuple):
    """What came out of one layer, over all pictures, channels and cells.

    Args:
        name: dotted path.
        kind: class name.
        mean: of the values.
        variance: of the values.
        zeros: share of values that are exactly 0.
    """

    name: str
    kind: str
    mean: float
    variance: float
    zeros: float


def activations(network: nn.Module, images: Tensor) -> list[Activation]:
    """Statistics of every layer's output in one pass, in the order of the pass.

    Batch norm takes the statistics of these pictures, as in the first step of training; dropout is off. The network
    stays as it is.

    Args:
        network: with the weights to judge.
        images: (B, C, H, W), normalized as the network expects; 8 or more make the variances steady.
    """
    found: list[Activation] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                values = output.detach().double()
                zeros = float((values == 0).double().mean())
                variance = float(values.var(correction=0))
                found.append(Activation(name, type(module).__name__, float(values.mean()), variance, zeros))

        return hook

    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}  # running statistics are not ours
    with ExitStack() as stack:
        stack.enter_context(evaluating(network))
        stack.enter_context(torch.no_grad())
        for name, module in network.named_modules():
            if isinstance(module, _BatchNorm):
                module.training = True
            if not list(module.children()):
                stack.callback(module.register_forward_hook(note(name)).remove)
        torch.func.functional_call(network, buffers, (images,))
    return found


def noise(channels: int, size: tuple[int, int], count: int = 16) -> Tensor:
    """Pictures (count, channels, H, W) of independent normal values, always the same."""
    return torch.randn((count, channels, *size), generator=torch_generator("activations"))
