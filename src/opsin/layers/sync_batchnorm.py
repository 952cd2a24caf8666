"""Batch normalization over the global batch: what several processes compute is what one process would.

Works on any torch.distributed backend (gloo on CPU, nccl on GPUs) and in double precision. Local batches may have any
sizes, also different ones and also none: every sample of the global batch counts once.

The statistics of the processes are merged by the parallel formula of Chan, Golub and LeVeque (1979), so that no sum of
squares is subtracted from another. One all-reduce forward, one backward.

Shapes: B local batch, C channels, R processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from opsin.errors import ConfigError, ShapeError

CONVERTED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SyncBatchNorm(_BatchNorm):
    """Batch normalization whose statistics in training are those of the global batch.

    Without torch.distributed, in one process, and in evaluation it is nn.BatchNorm*d. Gradients of parameters are those
    of the local samples, as for every other layer; summed over processes they are the gradients of the global batch.

    Args:
        num_features: C.
        eps, momentum, affine, track_running_stats: as nn.BatchNorm2d.
        group: the processes that share statistics; all of them when None.
        drop, act: what the replaced layer did after normalizing (timm's BatchNormAct2d), if anything.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        group: dist.ProcessGroup | None = None,
        drop: nn.Module | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.group = group
        self.drop, self.act = drop, act

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise ShapeError(f"SyncBatchNorm takes (B, {self.num_features}, ...); got {tuple(input.shape)}.")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size(self.group) > 1:
            x = self._normalized_together(input)
        else:
            x = self._normalized_alone(input)
        for after in (self.drop, self.act):
            if after is not None:
                x = after(x)
        return x

    def _momentum(self) -> float:
        """The factor of new statistics; counts the batch."""
        if self.num_batches_tracked is None:
            return 0.0
        self.num_batches_tracked.add_(1)
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum

    def _normalized_alone(self, x: Tensor) -> Tensor:
        by_batch = self.training or self.running_mean is None
        momentum = self._momentum() if self.training else 0.0
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, by_batch, momentum, self.eps
        )

    def _normalized_together(self, x: Tensor) -> Tensor:
        count, mean, squares = _merged(_local_statistics(x.detach()), self.group)  # (), (C,), (C,)
        if count < 2:
            raise ShapeError(f"SyncBatchNorm needs more than 1 value per channel; got {tuple(x.shape)}.")
        if self.running_mean is not None and self.running_var is not None:
            momentum = self._momentum()
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((squares / (count - 1)).to(self.running_var.dtype), momentum)
        scale = torch.rsqrt(squares / count + self.eps)  # (C,)
        out: Tensor = _Normalize.apply(x, self.weight, self.bias, mean, scale, count, self.group)
        return out


def convert(module: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Replace every batch norm in a module, in place; parameters, buffers and state-dict keys stay the same.

    Args:
        module: any network; if it is itself a batch norm, use what is returned.
        group: the processes that share statistics.

    Raises:
        ConfigError: for a subclass of nn.BatchNorm*d that does more than normalize, drop and activate.
    """
    if isinstance(module, CONVERTED):
        return _converted(module, group)
    for name, child in module.named_children():
        replacement = convert(child, group)
        if replacement is not child:
            setattr(module, name, replacement)
    return module


def _converted(norm: _BatchNorm, group: dist.ProcessGroup | None) -> SyncBatchNorm:
    after = {name: child for name, child in norm.named_children() if name in ("drop", "act")}
    known = type(norm) in CONVERTED or set(after) == {"drop", "act"}
    if not known or len(after) != len(dict(norm.named_children())):
        raise ConfigError(
            f"{type(norm).__module__}.{type(norm).__name__} is a batch norm of its own kind; it cannot be "
            f"synchronized. Set run.sync_batch_norm=false, or train in one process."
        )
    new = SyncBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, group=group, **after
    )
    new.weight, new.bias = norm.weight, norm.bias
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    new.training = norm.training
    return new


def _per_channel(x: Tensor, value: Tensor) -> Tensor:
    return value.view(1, -1, *[1] * (x.ndim - 2))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _local_statistics(x: Tensor) -> Tensor:
    """(2C + 1,): the number of values per channel, their means, and the sums of squared distances from them."""
    wide = _wide(x)
    axes = [0, *range(2, x.ndim)]
    count = x.numel() // x.shape[1]
    mean = wide.sum(axes) / max(count, 1)  # (C,)
    squares = (wide - _per_channel(x, mean)).square().sum(axes)  # (C,)
    return torch.cat([mean.new_tensor([count]), mean, squares])


def _merged(local: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """Number, mean (C,) and sum of squared distances (C,) of the values of all processes, the same bits in each."""
    table = local.new_zeros(dist.get_world_size(group), len(local))  # (R, 2C + 1)
    table[dist.get_rank(group)] = local
    dist.all_reduce(table, group=group)
    channels = (len(local) - 1) // 2
    counts, means, squares = torch.split(table, [1, channels, channels], dim=1)  # (R, 1), (R, C), (R, C)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    return count, mean, (squares + counts * (means - mean).square()).sum(0)


class _Normalize(torch.autograd.Function):
    """(x - mean) * scale * weight + bias, with the gradient through mean and scale of the global batch."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        scale: Tensor,
        count: Tensor,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.group, ctx.has_bias = group, bias is not None
        factor = scale if weight is None else scale * weight.to(scale.dtype)
        shift = -mean * factor if bias is None else bias.to(scale.dtype) - mean * factor
        return torch.addcmul(_per_channel(x, shift), _wide(x), _per_channel(x, factor)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        grad = _wide(grads[0])
        axes = [0, *range(2, x.ndim)]
        centered = _wide(x) - _per_channel(x, mean)
        local_sum = grad.sum(axes)  # (C,)
        local_dot = (grad * centered).sum(axes)  # (C,)
        grad_weight = (local_dot * scale).to(weight.dtype) if weight is not None and ctx.needs_input_grad[1] else None
        grad_bias = local_sum if ctx.has_bias and ctx.needs_input_grad[2] else None
        # Every process takes part, whether or not its own x needs a gradient: the others wait for its sums.
        totals = torch.cat([local_sum, local_dot])
        dist.all_reduce(totals, group=ctx.group)
        grad_x = None
        if ctx.needs_input_grad[0]:
            mean_sum, mean_dot = (totals / count).chunk(2)  # (C,) each
            factor = scale if weight is None else scale * weight.to(scale.dtype)
            inner = grad - _per_channel(x, mean_sum) - centered * _per_channel(x, scale.square() * mean_dot)
            grad_x = (inner * _per_channel(x, factor)).to(x.dtype)
        return grad_x, grad_weight, grad_bias, None, None, None, None
