"""What runs a model, one per file: inputs in, arrays by name out; only `torch.py` needs torch."""

from __future__ import annotations

from opsin.registry import Registry

runtimes = Registry("runtime", "opsin.runtimes")
