"""Batch norms that are constants, as detectors have them that are trained with few pictures per processor."""

from __future__ import annotations

from torch import nn
from torchvision.ops import FrozenBatchNorm2d


def freeze_norms(module: nn.Module) -> None:
    """Put a constant in the place of every batch norm inside: buffers of the same names, never updated."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            state = child.state_dict()
            frozen.load_state_dict({key: state[key] for key in frozen.state_dict()})
            setattr(module, name, frozen)
        else:
            freeze_norms(child)
