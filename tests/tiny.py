"""A tiny variant of every registered network: the builder's arguments and the picture sizes (H, W) that suit it.

Contract tests run over this table; `test_models.py` fails when a registered network is missing here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from opsin.models import answer_of


class Tiny(NamedTuple):
    """How a network is made small enough for a test of seconds."""

    kwargs: dict[str, Any]
    sizes: tuple[tuple[int, int], ...] = ((32, 32), (40, 32))
    points: int = 0  # of an object, for detectors that have some
    steps: int = 200  # in which a detector learns a few pictures by heart


SMALL = {"backbone": "resnet18", "backbone_kwargs": {"width": 8}}
DENSE = {**SMALL, "channels": 16, "candidates": 4000}  # all of them: which come last is up to rounding
TWO_STAGES = {**DENSE, "hidden": 64, "octave": 6, "before": (200, 200), "after": (40, 24), "drawn": (9999, 9999)}
DETR = {
    "dim": 32,
    "encoder_dim": 32,
    "encoder_hidden": 32,
    "decoder_hidden": 32,
    "num_heads": 4,
    "decoder_layers": 2,
    "num_queries": 10,
    "denoising": 4,
    "expansion": 0.5,
}
RESNET = {"width": 8, "depths": (1, 1, 1, 1)}
HGNET = {"width": 0.25, "blocks": (1, 1, 1, 1), "layers": 2}
VIT = {"dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}

TINY: dict[str, Tiny] = {
    "alexnet": Tiny({"width": 8, "hidden": 32, "dropout": 0.0}, ((64, 72),)),
    "alexnet_2012": Tiny({"width": 24, "hidden": 512, "dropout": 0.0}, ((67, 72),)),
    "b2-mnist": Tiny({"hidden": 32}),
    "b2-simple-cnn": Tiny({"hidden": 32}),
    "googlenet": Tiny({"width": 0.125}, ((48, 40),)),
    "inception_v3": Tiny({"width": 0.125}, ((75, 83),)),
    "densenet121": Tiny({"growth_rate": 4, "width": 8, "depths": (1, 2, 2, 1)}, ((64, 48),)),
    "densenet161": Tiny({"growth_rate": 4, "width": 8, "depths": (2, 1, 2, 1)}, ((64, 48),)),
    "densenet169": Tiny({"growth_rate": 4, "width": 8, "depths": (1, 1, 2, 2)}, ((64, 48),)),
    "densenet201": Tiny({"growth_rate": 4, "width": 8, "depths": (1, 1, 1, 1)}, ((64, 48),)),
    "heatmap_net": Tiny({"backbone_kwargs": {"width": 8}, "channels": 16}, ((64, 96),)),
    "layers": Tiny({"chain": "C3x8 same, BN, P2, [C3x8 same]x2, A2, FC32, FC"}),
    "linear": Tiny({}),
    "localizer": Tiny({"backbone_kwargs": {"width": 8}}, ((64, 96),)),
    "mlp": Tiny({"hidden": [32]}),
    "mtfl_net": Tiny({"hidden": 32}, ((64, 96),)),
    "mobilenet_v1": Tiny({"width": 0.25}, ((64, 48),)),
    "mobilenet_v2": Tiny({"width": 0.25, "last_channels": 64}, ((64, 48),)),
    "mobilenet_v3_large": Tiny({"width": 0.25, "hidden": 128}, ((64, 48),)),
    "mobilenet_v3_small": Tiny({"width": 0.25, "hidden": 128}, ((64, 48),)),
    "regression_net": Tiny({"backbone_kwargs": {"width": 8}}, ((64, 96),)),
    "resnet18": Tiny({"width": 8}),
    "resnet34": Tiny({"width": 8}, ((64, 48),)),  # a map of 1x1 is too small for deep batch norms
    "resnet50": Tiny({"width": 8}, ((64, 64),)),
    "resnet101": Tiny({"width": 8, "depths": (1, 1, 2, 1)}, ((64, 64),)),
    "resnet152": Tiny({"width": 8, "depths": (1, 2, 2, 1)}, ((64, 64),)),
    "resnet18_vd": Tiny({"width": 8}, ((64, 48),)),
    "resnet34_vd": Tiny({"width": 8, "depths": (1, 2, 1, 1)}, ((64, 48),)),
    "resnet50_vd": Tiny({"width": 8}, ((64, 64),)),
    "resnet101_vd": Tiny({"width": 8, "depths": (1, 1, 2, 1)}, ((64, 64),)),
    "resnext50_32x4d": Tiny({"width": 8, "depths": (1, 1, 1, 1), "groups": 4, "group_width": 2}, ((64, 64),)),
    "resnext101_32x8d": Tiny({"width": 8, "depths": (1, 1, 1, 1), "groups": 4, "group_width": 4}, ((64, 64),)),
    "resnext101_64x4d": Tiny({"width": 8, "depths": (1, 1, 1, 1), "groups": 8, "group_width": 2}, ((64, 64),)),
    "simcc_net": Tiny({"backbone_kwargs": {"width": 8}}, ((64, 96),)),
    "smallnet": Tiny({"widths": (8, 16, 16)}),
    "vit_b_16": Tiny(VIT, ((48, 32),)),
    "vit_b_32": Tiny(VIT, ((64, 32),)),
    "vit_h_14": Tiny(VIT, ((28, 42),)),
    "vit_l_16": Tiny(VIT, ((32, 48),)),
    "vit_l_32": Tiny(VIT, ((64, 64),)),
    "squeezenet1_0": Tiny({"width": 4, "dropout": 0.0, "rectified_logits": False}, ((32, 40),)),
    "squeezenet1_1": Tiny({"width": 4, "dropout": 0.0, "rectified_logits": False}, ((32, 40),)),
    "vgg11": Tiny({"width": 8, "head": "pool", "dropout": 0.0}),
    "vgg11_bn": Tiny({"width": 8, "hidden": 256, "dropout": 0.0}),
    "vgg13": Tiny({"width": 8, "head": "pool", "dropout": 0.0}),
    "vgg13_bn": Tiny({"width": 8, "hidden": 256, "dropout": 0.0}),
    "vgg16": Tiny({"width": 8, "head": "pool", "dropout": 0.0}),
    "vgg16_bn": Tiny({"width": 8, "hidden": 256, "dropout": 0.0}),
    "vgg19": Tiny({"width": 8, "head": "1-dense", "dropout": 0.0}),
    "vgg19_bn": Tiny({"width": 8, "hidden": 256, "dropout": 0.0}),
    "wide_resnet50_2": Tiny({"width": 8, "depths": (1, 1, 1, 1)}, ((64, 64),)),
    "wide_resnet101_2": Tiny({"width": 8, "depths": (1, 1, 1, 1), "widening": 3.0}, ((64, 64),)),
    "d_fine_l": Tiny({**DETR, "backbone_kwargs": HGNET, "points": (2, 3, 2), "depth": 1}, ((64, 96),)),
    "d_fine_m": Tiny({**DETR, "backbone_kwargs": HGNET, "depth": 1, "sampling": "discrete"}, ((64, 96),)),
    "d_fine_n": Tiny({**DETR, "backbone_kwargs": HGNET, "depth": 1}, ((64, 96),)),
    "d_fine_s": Tiny({**DETR, "backbone_kwargs": HGNET}, ((64, 96),)),
    "d_fine_x": Tiny({**DETR, "backbone_kwargs": {**HGNET, "blocks": (1, 1, 2, 1)}, "depth": 1}, ((64, 96),)),
    "rt_detrv2_r101": Tiny({**DETR, "backbone_kwargs": RESNET, "norm": "frozen"}, ((64, 96),)),
    "rt_detrv2_r18": Tiny({**DETR, "backbone_kwargs": RESNET}, ((64, 96),)),
    "rt_detrv2_r34": Tiny({**DETR, "backbone_kwargs": RESNET, "look_forward_twice": True}, ((64, 96),)),
    "rt_detrv2_r50": Tiny({**DETR, "backbone_kwargs": RESNET, "eval_layers": 1}, ((64, 96),)),
    "hgnet_v2_b0": Tiny({"width": 0.25, "hidden": 64}, ((64, 48),)),
    "hgnet_v2_b2": Tiny({"width": 0.25, "hidden": 64, "blocks": (1, 1, 2, 1), "layers": 2}, ((64, 48),)),
    "hgnet_v2_b4": Tiny({"width": 0.125, "hidden": 64, "blocks": (1, 1, 1, 1), "layers": 3}, ((64, 64),)),
    "hgnet_v2_b5": Tiny({"width": 0.125, "hidden": 64, "blocks": (1, 1, 2, 1), "layers": 2}, ((64, 64),)),
    "yolox_pico": Tiny({"width": 0.0625}, ((64, 96),)),
    "yolox_nano": Tiny({"width": 0.125}, ((64, 96),), steps=500),
    "yolox_tiny": Tiny({"width": 0.125}, ((64, 96),)),
    "yolox_s": Tiny({"width": 0.125, "activation": "relu"}, ((64, 96),)),
    "yolox_m": Tiny({"width": 0.125, "depth": 0.33, "assignment": "tal", "objectness": False}, ((64, 96),)),
    "yolox_l": Tiny({"width": 0.125, "depth": 0.33, "reg_max": 8}, ((64, 96),)),
    "yolox_x": Tiny({"width": 0.125, "depth": 0.33, "l1_weight": 1.0}, ((64, 96),)),
    "faster_rcnn": Tiny(TWO_STAGES, ((64, 64), (64, 96))),
    "faster_rcnn_v2": Tiny(TWO_STAGES, ((64, 64), (64, 96))),
    "fcos": Tiny(DENSE, ((64, 64), (64, 96))),
    "keypoint_rcnn": Tiny({**TWO_STAGES, "widths": (32, 32), "detections": 20}, ((64, 64), (64, 96)), 4),
    "retinanet": Tiny(DENSE, ((64, 64), (64, 96))),
    "retinanet_v2": Tiny(DENSE, ((64, 64), (64, 96))),
    "ssd": Tiny({"backbone_kwargs": {"width": 8}}, ((64, 64), (70, 96))),
    "ssdlite": Tiny({**SMALL, "widths": (32, 32, 32, 32)}, ((64, 64), (70, 96))),
}

CLASSIFIERS = tuple(name for name in TINY if answer_of(name) == "classified")
