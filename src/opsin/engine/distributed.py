"""Several processes as one: sums of counts and gradients, rows of all, and gathering with gradient.

Gradients are summed, not averaged: every loss part has been divided by its global count already, so the sum over
processes is the gradient of the one global loss. Start with torchrun; the backend is nccl on CUDA and gloo elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Processes:
    """The processes of a run; with one process every method is free and does nothing.

    Args:
        rank, world: this process's number and how many there are.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @classmethod
    def join(cls, device_type: str) -> Processes:
        """Join the group that torchrun describes in the environment; alone without it."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not dist.is_initialized():
            if device_type == "cuda":
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    def leave(self) -> None:
        """Leave the group."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process raises the flag."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)).item())

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            dist.barrier()

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of ranks, on every process."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    @torch.no_grad()
    def share(self, model: nn.Module) -> None:
        """Give every process the weights of the first."""
        if self.world > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.detach(), 0)

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter], bucket_bytes: int = 32 << 20) -> None:
        """Sum gradients over processes in flat buckets; a parameter without gradient anywhere keeps none."""
        if self.world == 1:
            return
        every = list(parameters)
        if not every:
            return
        used = self.sum(torch.tensor([float(p.grad is not None) for p in every], device=every[0].device))
        wanted = [p for p, count in zip(every, used.tolist()) if count]
        for p in wanted:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        bucket: list[Tensor] = []
        size = 0
        for p in wanted:
            gradient = p.grad
            if gradient is None:
                continue
            if bucket and (size > bucket_bytes or gradient.dtype != bucket[0].dtype):
                self._sum_bucket(bucket)
                bucket, size = [], 0
            bucket.append(gradient)
            size += gradient.numel() * gradient.element_size()
        if bucket:
            self._sum_bucket(bucket)

    def _sum_bucket(self, bucket: list[Tensor]) -> None:
        flat = self.sum(torch.cat([g.reshape(-1) for g in bucket]))
        for gradient, part in zip(bucket, torch.split(flat, [g.numel() for g in bucket])):
            gradient.copy_(part.view(gradient.shape))

    def gather(self, features: Tensor) -> Tensor:
        """Rows (B_r, ...) of all processes as one tensor (sum of B_r, ...), gradients flowing back to their owners."""
        return features if self.world == 1 else _Gather.apply(features, self.rank, self.world)


class _Gather(torch.autograd.Function):
    """All-gather of unequal shares; the gradient of a row is the sum of what all processes send back."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, rank: int, world: int) -> Tensor:
        sizes = torch.zeros(world, dtype=torch.int64, device=features.device)
        sizes[rank] = len(features)
        dist.all_reduce(sizes)
        counts = sizes.tolist()
        ctx.start, ctx.length = sum(counts[:rank]), counts[rank]
        whole = features.new_zeros((sum(counts), *features.shape[1:]))
        whole[ctx.start : ctx.start + ctx.length] = features
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        return whole[ctx.start : ctx.start + ctx.length], None, None
