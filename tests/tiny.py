"""A tiny variant of every registered network: the builder's arguments and the picture sizes (H, W) that suit it.

Contract tests run over this table; `test_models.py` fails when a registered network is missing here.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Tiny(NamedTuple):
    """How a network is made small enough for a test of seconds."""

    kwargs: dict[str, Any]
    sizes: tuple[tuple[int, int], ...] = ((32, 32), (40, 32))


VIT = {"dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}

TINY: dict[str, Tiny] = {
    "b2-mnist": Tiny({"hidden": 32}),
    "b2-simple-cnn": Tiny({"hidden": 32}),
    "googlenet": Tiny({"width": 0.125}, ((48, 40),)),
    "inception_v3": Tiny({"width": 0.125}, ((75, 83),)),
    "linear": Tiny({}),
    "mlp": Tiny({"hidden": [32]}),
    "mobilenet_v1": Tiny({"width": 0.25}, ((64, 48),)),
    "mobilenet_v2": Tiny({"width": 0.25, "last_channels": 64}, ((64, 48),)),
    "mobilenet_v3_large": Tiny({"width": 0.25, "hidden": 128}, ((64, 48),)),
    "mobilenet_v3_small": Tiny({"width": 0.25, "hidden": 128}, ((64, 48),)),
    "resnet18": Tiny({"width": 8}),
    "resnet34": Tiny({"width": 8}, ((64, 48),)),  # a map of 1x1 is too small for deep batch norms
    "resnet50": Tiny({"width": 8}, ((64, 64),)),
    "smallnet": Tiny({"widths": (8, 16, 16)}),
    "vit_b_16": Tiny(VIT, ((48, 32),)),
    "vit_b_32": Tiny(VIT, ((64, 32),)),
    "vit_h_14": Tiny(VIT, ((28, 42),)),
    "vit_l_16": Tiny(VIT, ((32, 48),)),
    "vit_l_32": Tiny(VIT, ((64, 64),)),
}
