"""Muon: momentum whose matrices are made orthogonal, so that every direction of a layer learns at the same rate.

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
https://kellerjordan.github.io/posts/muon/; the use for convolutions with weights of fixed norm follows "94 % on CIFAR-10 in
3.29 seconds" (airbench, https://arxiv.org/abs/2404.00498, and its later Muon variant). Hidden convolutions and matrices get
Muon, everything else (first and last layer, biases, norms) SGD with Nesterov's momentum in the same optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

STEPS = 3
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, from the source


def orthogonalize(matrix: Tensor, steps: int = STEPS) -> Tensor:
    """Bring the singular values of a matrix (M, N) near 1, by Newton-Schulz iteration in bfloat16.

    Values end up between about 0.7 and 1.2, which is as good for the purpose as exactly 1.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.bfloat16)
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: Tensor = x.T if tall else x
    return found


def is_hidden(name: str, parameter: nn.Parameter, last: str) -> bool:
    """Whether Muon suits a parameter: a convolution over more than four channels, or a matrix that is not the last layer."""
    if parameter.ndim == 4:
        return parameter.shape[1] > 4
    return parameter.ndim == 2 and name != last


class Muon(torch.optim.Optimizer):
    """Muon for hidden layers, SGD with Nesterov's momentum for the rest.

    Args:
        hidden: parameters with two dimensions or more; each keeps the norm sqrt(rows), so they need no decay.
        groups: parameter groups of the rest, each with `weight_decay`.
        lr: rate of the hidden layers.
        other_lr: rate of the rest.
        momentum: of both.
    """

    def __init__(
        self, hidden: Iterable[nn.Parameter], groups: list[dict[str, Any]], lr: float, other_lr: float, momentum: float
    ) -> None:
        both = [{"params": list(hidden), "lr": lr, "muon": True, "weight_decay": 0.0}]
        both += [{**group, "lr": other_lr, "muon": False} for group in groups]
        super().__init__([group for group in both if group["params"]], {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients: Any = [p.grad for p in parameters]
            buffers = [self._buffer(p) for p in parameters]
            if not group["muon"]:
                if group["weight_decay"]:
                    gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
                self._momentum(buffers, gradients, group["momentum"])
                updates = torch._foreach_add(gradients, buffers, alpha=group["momentum"])
                torch._foreach_add_(parameters, updates, alpha=-group["lr"])
                continue
            self._momentum(buffers, gradients, group["momentum"])
            for p, gradient, buffer in zip(parameters, gradients, buffers):
                if gradient is None:
                    continue
                direction = orthogonalize(gradient.add(buffer, alpha=group["momentum"]).flatten(1))
                p.mul_(len(p) ** 0.5 / p.norm().clamp_min(1e-7))
                p.add_(direction.view(p.shape).to(p.dtype), alpha=-group["lr"])
        return loss

    def _buffer(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        found: Tensor = state["momentum_buffer"]
        return found

    @staticmethod
    def _momentum(buffers: list[Tensor], gradients: Any, momentum: float) -> None:
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
