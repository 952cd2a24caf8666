"""Run a model with torch, on any device, in the precision that was evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from opsin.task import as_arrays

NAMES = ("torch",)
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchRuntime:
    """A model in evaluation mode as a function from inputs to arrays.

    Args:
        model: any module that returns a NamedTuple of tensors.
        precision: "fp32", "bf16", "fp16" (autocast) or "fp64".
        device: where the model lives; its own device by default.
    """

    def __init__(self, model: nn.Module, precision: str = "fp32", device: torch.device | None = None) -> None:
        self.model = model if device is None else model.to(device)
        self.precision = precision
        self.device = device or next(model.parameters(), torch.zeros(())).device
        self.channels_last = precision in TYPES

    def __call__(self, inputs: Any) -> Mapping[str, NDArray[Any]]:
        """Inputs (B, C, H, W) as tensor or array, to float32 arrays with first axis B."""
        images = inputs if isinstance(inputs, Tensor) else torch.from_numpy(np.ascontiguousarray(inputs))
        images = images.to(self.device)
        if self.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        training = self.model.training
        self.model.eval()
        cast = (
            torch.autocast(self.device.type, dtype=TYPES[self.precision]) if self.precision in TYPES else nullcontext()
        )
        try:
            with torch.inference_mode(), cast:
                return as_arrays(self.model(images))
        finally:
            self.model.train(training)


build = TorchRuntime
