"""Optimizers from settings: which parameters decay, the default rates, gradient clipping, the average of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opsin.engine.muon import Muon, is_hidden
from opsin.errors import ConfigError, TrainingError
from opsin.recipe import OptimizerSettings


def learning_rate(settings: OptimizerSettings, batch_size: int) -> float:
    """The peak rate: as given, or 0.05 per 128 samples for sgd (linear scaling, Goyal 2017), 0.1 for muon,
    0.001 for adam and adamw."""
    if settings.lr is not None:
        return settings.lr
    if settings.name == "sgd":
        return 0.05 * batch_size / 128
    return 0.1 if settings.name == "muon" else 1e-3


def build_optimizer(
    settings: OptimizerSettings,
    named: Iterable[tuple[str, nn.Parameter]],
    batch_size: int,
    rates: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters given; vectors and scalars (biases, norms) get no weight decay.

    Args:
        settings: the update rule.
        named: parameters by name; those without gradient are left out.
        batch_size: samples per step, for the default rate.
        rates: factor of the rate by parameter name (discriminative rates); 1 for those that are not named.

    Raises:
        TrainingError: if nothing is trainable.
        ConfigError: if the update rule takes one rate only.
    """
    trainable = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if not trainable:
        raise TrainingError("No parameter of the model is trainable: everything is frozen. Unfreeze at least the head.")
    factors = {name: (rates or {}).get(name, 1.0) for name, _ in trainable}
    rate = learning_rate(settings, batch_size)
    groups: list[dict[str, Any]] = []
    for factor in sorted(set(factors.values()), reverse=True):  # the first group has the rate that `optimizer.lr` names
        own = [p for name, p in trainable if factors[name] == factor]
        scaled = {} if set(factors.values()) == {1.0} else {"lr": rate * factor}
        decayed, plain = [p for p in own if p.ndim > 1], [p for p in own if p.ndim <= 1]
        groups.append({"params": decayed, "weight_decay": settings.weight_decay, **scaled})
        groups.append({"params": plain, "weight_decay": 0.0, **scaled})
    groups = [group for group in groups if group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for _, p in trainable)
    if settings.name == "sgd":
        nesterov = settings.nesterov and settings.momentum > 0
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, nesterov=nesterov, fused=fused)
    if settings.name == "muon":
        if set(factors.values()) != {1.0}:
            raise ConfigError(
                "optimizer.name = 'muon' takes one rate for all layers, and the transfer plan sets several. Choose sgd or "
                "adamw, or transfer.trunk_rate=1 with transfer.layer_decay=1."
            )
        decayed = [p for _, p in trainable if p.ndim > 1]
        last = [name for name, p in trainable if p.ndim > 1][-1:]
        hidden = {id(p) for name, p in trainable if is_hidden(name, p, *last)}
        rest = [{**group, "params": [p for p in group["params"] if id(p) not in hidden]} for group in groups]
        return Muon([p for p in decayed if id(p) in hidden], rest, rate, settings.other_lr, settings.momentum)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=rate, betas=settings.betas, fused=fused)


class Average:
    """Exponential moving average of a model's weights and running statistics (Polyak averaging).

    The decay grows as (1 + t) / (10 + t) up to `decay`, so that early weights are forgotten. Whole-number buffers are
    copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        source = model.state_dict(keep_vars=True)
        self._live = [t.detach() for t in source.values() if t.is_floating_point()]
        self._other = [(name, t.detach()) for name, t in source.items() if not t.is_floating_point()]
        self._names = [name for name, t in source.items() if t.is_floating_point()]
        self._mean = [t.clone() for t in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights."""
        self.updates += 1
        weight = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._mean, self._live, weight)

    @torch.no_grad()
    def reset(self) -> None:
        """Begin anew from the weights as they are."""
        self.updates = 0
        torch._foreach_copy_(self._mean, self._live)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the model's own names."""
        return {**dict(zip(self._names, self._mean)), **dict(self._other)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], updates: int) -> None:
        """Continue from saved averages."""
        for name, mean in zip(self._names, self._mean):
            mean.copy_(state[name])
        self.updates = updates

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights with the averages (call again to change back)."""
        kept = [t.clone() for t in self._live]
        torch._foreach_copy_(self._live, self._mean)
        torch._foreach_copy_(self._mean, kept)
