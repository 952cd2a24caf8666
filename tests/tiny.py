"""A tiny variant of every registered network: the builder's arguments and the picture sizes (H, W) that suit it.

Contract tests run over this table; `test_models.py` fails when a registered network is missing here.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Tiny(NamedTuple):
    """How a network is made small enough for a test of seconds."""

    kwargs: dict[str, Any]
    sizes: tuple[tuple[int, int], ...] = ((32, 32), (40, 32))


TINY: dict[str, Tiny] = {
    "b2-mnist": Tiny({"hidden": 32}),
    "b2-simple-cnn": Tiny({"hidden": 32}),
    "linear": Tiny({}),
    "mlp": Tiny({"hidden": [32]}),
    "resnet18": Tiny({"width": 8}),
    "resnet34": Tiny({"width": 8}, ((64, 48),)),  # a map of 1x1 is too small for deep batch norms
    "resnet50": Tiny({"width": 8}, ((64, 64),)),
    "smallnet": Tiny({"widths": (8, 16, 16)}),
}
