"""LoRA: instead of a weight, learn a low-rank change of it.

Paper: LoRA: Low-Rank Adaptation of Large Language Models, 2021, https://arxiv.org/abs/2106.09685, section 4.1:
W' = W + (alpha / rank) B A with W frozen, A (rank, in) random and B (out, rank) zero, so that training starts at W.
Convolutions count as matrices (out, in * kh * kw); depthwise and grouped ones are left alone.

`inject` puts the change behind the weight by `torch.nn.utils.parametrize`, so that no module of the network is replaced;
`merge` adds it up, and the network is as before, with the same names of weights, at no cost in prediction.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from opsin.errors import ConfigError


class LowRank(nn.Module):
    """W + (alpha / rank) B A for one weight.

    Args:
        weight: (out, ...), flattened to (out, in).
        rank: of the change; at most half the smaller side of the matrix is used.
        alpha: strength of the change.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        out, width = weight.shape[0], weight[0].numel()
        rank = max(1, min(rank, min(out, width) // 2))
        self.scale = alpha / rank
        self.down = nn.Parameter(weight.new_empty(rank, width))  # A
        self.up = nn.Parameter(weight.new_zeros(out, rank))  # B
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # a small change must not be lost in rounding
            return weight + self.scale * (self.up @ self.down).view_as(weight)


def inject(model: nn.Module, rank: int, alpha: float | None = None, leave: Collection[str] = ()) -> list[str]:
    """Freeze a model and give its matrices and convolutions a low-rank change, drawn from torch's default generator.

    Args:
        model: changed in place.
        rank: of the changes.
        alpha: strength; by default the rank.
        leave: names of parameters that stay as they are, trainable (the head).

    Returns:
        Names of the weights that got a change.

    Raises:
        ConfigError: if the model has no such weight.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in leave)
    chosen: list[tuple[str, nn.Module, str]] = []
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        names = ["in_proj_weight"] if "in_proj_weight" in own else ["weight"]
        plain = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        for name in names:
            full = f"{path}.{name}" if path else name
            if name in own and full not in leave and (plain or name == "in_proj_weight"):
                chosen.append((full, module, name))
    if not chosen:
        raise ConfigError(
            "transfer.plan = 'lora': the network has no matrix or convolution besides its head. Use full."
        )
    for _, module, name in chosen:
        weight = getattr(module, name)
        parametrize.register_parametrization(module, name, LowRank(weight, rank, alpha or rank))
    return [full for full, _, _ in chosen]


def merge(model: nn.Module) -> None:
    """Add every change to its weight; the state dict has the names that it had before `inject`."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
