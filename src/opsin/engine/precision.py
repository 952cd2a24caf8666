"""Which arithmetic and layout the machine is good at, and the autocast and scaler that go with it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn

from opsin.errors import ConfigError
from opsin.recipe import RunSettings


@cache
def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware (AVX512-BF16, AMX or the Arm extension)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    found = any(bool(getattr(torch.cpu, name)()) for name in checks if hasattr(torch.cpu, name))
    arm = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    return found or "SVE" in str(arm)


def choose_device(name: str) -> torch.device:
    """The device a person asked for, or the best there is for `auto`.

    Raises:
        ConfigError: if the device named is not there; nothing falls back in silence.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"run.device = '{name}' is not a device. Use auto, cpu, cuda, cuda:N or mps.") from error
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False):
        raise ConfigError(
            f"run.device = '{name}', but torch {torch.__version__} sees no such device here. Use auto or cpu."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"run.device = '{name}', but there are only {torch.cuda.device_count()} CUDA devices.")
    return device


def choose_precision(settings: RunSettings, device: torch.device) -> str:
    """fp32, bf16, fp16 or fp64; `auto` takes bf16 where the hardware has it.

    Raises:
        ConfigError: for fp16 training on a CPU, where it is slow and overflows.
    """
    if settings.precision != "auto":
        if settings.precision == "fp16" and device.type == "cpu":
            raise ConfigError("run.precision = 'fp16' is not for training on a CPU. Use bf16 or fp32.")
        return settings.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


class Precision:
    """Autocast, gradient scaler and memory format of a run.

    Args:
        name: "fp32", "bf16", "fp16" or "fp64".
        channels_last: keep 4-d tensors in NHWC memory.
    """

    def __init__(self, name: str, device: torch.device, channels_last: bool) -> None:
        self.name, self.device, self.channels_last = name, device, channels_last
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        self.scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None

    @classmethod
    def choose(cls, settings: RunSettings, device: torch.device) -> Precision:
        """What the settings ask for, or what the device is good at."""
        name = choose_precision(settings, device)
        last = settings.channels_last if settings.channels_last != "auto" else name in ("bf16", "fp16")
        return cls(name, device, bool(last))

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, in the memory format and (for fp64) the type of the run."""
        model = model.to(self.device)
        if self.name == "fp64":
            model = model.double()
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        return model

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)
