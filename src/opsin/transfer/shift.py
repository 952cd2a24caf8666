"""How far pictures are from those that weights were trained on, as the batch norms of the network see it.

A batch norm keeps mean and variance of what it was given in training. The distance of a layer is the mean over its channels
of the symmetric Kullback-Leibler divergence between two normal distributions: the kept one and that of the new pictures
(as in AdaBN, Li et al. 2016, https://arxiv.org/abs/1603.04779, which replaces the one by the other). 0 is no shift.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from opsin.models.builder import evaluating
from opsin.task import Batch


def statistics_shift(model: nn.Module, batches: Iterable[Batch], most: int = 512) -> float | None:
    """Mean distance over all batch norms; None for a network without running statistics.

    Args:
        model: with its weights; left as it was.
        batches: of new pictures, prepared as for prediction.
        most: so many pictures are enough.
    """
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    if not norms:
        return None
    sums: dict[int, list[Any]] = {id(norm): [0.0, 0.0, 0] for norm in norms}

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        x = given[0].double()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        entry = sums[id(module)]
        entry[0] = entry[0] + x.sum(axes)
        entry[1] = entry[1] + x.square().sum(axes)
        entry[2] += x.numel() // x.shape[1]

    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    seen = 0
    device = next(model.parameters()).device
    try:
        with evaluating(model), torch.inference_mode():
            for batch in batches:
                model(batch.inputs.to(device))
                seen += len(batch)
                if seen >= most:
                    break
    finally:
        for handle in handles:
            handle.remove()
    distances = [_divergence(norm, *sums[id(norm)]) for norm in norms if sums[id(norm)][2] > 1]
    return sum(distances) / len(distances) if distances else None


def _divergence(norm: Any, total: Tensor, squares: Tensor, count: int) -> float:
    mean, var = total / count, squares / count - (total / count).square()
    kept, kept_var = norm.running_mean.double(), norm.running_var.double() + norm.eps
    var = var.clamp_min(0) + norm.eps
    gap = (mean - kept).square()
    return float(((kept_var + gap) / var + (var + gap) / kept_var - 2).mean() / 4)
