"""Begin with the shares of the classes: what a model would say without looking."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from opsin.errors import ConfigError
from opsin.models.weights import head_of
from opsin.task import Task


@torch.no_grad()
def begin_at_prior(network: nn.Module, task: Task[Any], data: Any, indices: NDArray[np.int64]) -> None:
    """Set the biases of the head, and of auxiliary heads, to the logits of the training part's shares.

    Raises:
        ConfigError: if the task has no such shares, or the head no bias for each class.
    """
    prior = task.prior(data, indices)
    if prior is None:
        raise ConfigError("model.bias_prior: this task has no classes whose shares the biases could start from.")
    names = head_of(network)
    biases = [p for name, p in network.named_parameters() if name in names and tuple(p.shape) == prior.shape]
    if not biases:
        raise ConfigError(
            f"model.bias_prior: the last layer of the network ({', '.join(sorted(names)) or 'not found'}) has no bias for each "
            f"of the {len(prior)} outputs. Give it one, or leave the setting out."
        )
    for bias in biases:
        bias.copy_(torch.from_numpy(prior))
