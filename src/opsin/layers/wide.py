"""Numbers wide enough for the arithmetic of boxes, whatever the network computes in."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """float32 of a tensor in half precision; float32 and float64 stay as they are."""
    return x if x.dtype == torch.float64 else x.float()


def wide_type(x: Tensor) -> torch.dtype:
    """The type that `wide` would give a tensor."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
