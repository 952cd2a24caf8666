"""Faster R-CNN: a first network proposes regions, a second one says what is in each and mends its box.

Paper: Faster R-CNN, 2015, https://arxiv.org/abs/1506.01497; Feature Pyramid Networks, 2016, https://arxiv.org/abs/1612.03144;
    the second version: Benchmarking Detection Transfer Learning with Vision Transformers, 2021, https://arxiv.org/abs/2111.11429.
Implements: both stages on a pyramid of strides 4 to 64: 3 anchors a cell, of 8 strides' length; proposals by non-maximum
    suppression at .7, 256 anchors and 512 regions a picture in the loss; RoIAlign, two dense layers of 1024. `faster_rcnn_v2`: two
    convolutions in the first head, four with batch norm and one dense layer in the second, batch norm in the pyramid.
Differs from the paper: sigmoid objectness; smooth L1 with beta 1/9 everywhere and no factor 10 between the terms; objects join
    the proposals while training. As torchvision. With targets given, proposals are as many as in training in both modes;
    candidates are the best 5,000 pairs of region and class, where torchvision takes all above the threshold.
Checked against: torchvision 0.29: losses (with the same random draws), gradients, outputs and detections after merging;
    41,755,286 parameters with its 91 classes, 43,712,278 the second version (tests/oracles/test_detectors_torchvision.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published files (BSD-3-Clause) load unchanged, with 80 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from opsin.errors import ConfigError
from opsin.layers.fpn import Norm, PyramidBackbone, with_norm
from opsin.layers.region_proposals import Drawn, Proposals, RegionProposals, proposal_losses
from opsin.layers.regions import (
    POOLED,
    ConvolutionHead,
    DenseHead,
    Predictor,
    Regions,
    as_rois,
    draw_regions,
    pool_regions,
    region_candidates,
    region_losses,
)
from opsin.layers.torchvision_files import adapted
from opsin.models.builder import build_backbone
from opsin.models.detectors import Detector, Targets
from opsin.task import Part

NAMES = ("faster_rcnn", "faster_rcnn_v2")

CLASSIFIERS = {"roi_heads.box_predictor.cls_score": (1, 1), "roi_heads.box_predictor.bbox_pred": (1, 4)}


class Raw(NamedTuple):
    """What both stages say; regions are the proposals, or those drawn for the loss."""

    logits: Tensor  # (R, K + 1), background first
    deltas: Tensor  # (R, K + 1, 4)
    proposals: Proposals
    anchors: Drawn | None = None
    regions: Regions | None = None


class FasterRCNN(Detector):
    """Backbone, pyramid, two stages.

    Args:
        backbone: gives maps, the last of which only the first stage uses.
        rpn: the first stage.
        box_head: from features of regions to vectors of `hidden` numbers.
        hidden: their length.
        num_classes: K.
        drawn: regions per picture in the loss.
        candidates: kept per picture.
        threshold: least score of a candidate.
    """

    stride = 32
    overlap = 0.5
    head_names = tuple(CLASSIFIERS)

    def __init__(
        self,
        backbone: PyramidBackbone,
        rpn: RegionProposals,
        box_head: nn.Module,
        hidden: int,
        num_classes: int,
        drawn: int,
        candidates: int,
        threshold: float,
    ) -> None:
        super().__init__()
        self.num_classes, self.drawn, self.candidates, self.threshold = num_classes, drawn, candidates, threshold
        self.backbone, self.rpn = backbone, rpn
        self.roi_heads = nn.ModuleDict({"box_head": box_head, "box_predictor": Predictor(hidden, num_classes + 1)})

    def raw(self, images: Tensor, targets: Targets | None = None) -> Raw:
        """Of regions drawn by means of the targets, or of all proposals."""
        features = self.backbone(images)
        proposals = self.rpn(features, (images.shape[-2], images.shape[-1]), learning=targets is not None)
        anchors = regions = None
        rois = as_rois(proposals.boxes)
        if targets is not None:
            anchors = self.rpn.draw(proposals, targets.boxes)
            regions = draw_regions(proposals, targets.boxes, targets.labels, self.drawn)
            rois = regions.rois
        pooled = pool_regions(features[:-1], rois, self.backbone.strides[:-1], POOLED)
        logits, deltas = self.roi_heads["box_predictor"](self.roi_heads["box_head"](pooled))
        return Raw(logits, deltas, proposals, anchors, regions)

    def losses(self, raw: Raw, targets: Targets) -> dict[str, Part]:
        """`objectness`, `proposals`, `classes` and `boxes`; `raw` has drawn what is compared with the targets.

        Raises:
            ConfigError: if `raw` had no targets.
        """
        del targets
        if raw.anchors is None or raw.regions is None:
            raise ConfigError("losses need what raw(images, targets) draws; raw was called without targets.")
        return {**proposal_losses(raw.anchors), **region_losses(raw.logits, raw.deltas, raw.regions)}

    def decode(self, raw: Raw, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of proposal and class."""
        return region_candidates(raw.logits, raw.deltas, raw.proposals, size, self.candidates, self.threshold)

    def adapt_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Tensors of a file of torchvision's with the classes and names here."""
        return adapted(state, self.state_dict(), CLASSIFIERS, self.num_classes, background=True)


def _build(
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    backbone: str,
    backbone_kwargs: Mapping[str, Any] | None,
    norm: Norm,
    norm_eps: float | None,
    channels: int,
    hidden: int,
    octave: float,
    before: tuple[int, int],
    after: tuple[int, int],
    drawn: tuple[int, int],
    candidates: int,
    threshold: float,
    second: bool,
) -> FasterRCNN:
    body, levels, info = build_backbone(backbone, backbone_kwargs or {}, in_channels, image_size, (4, 8, 16, 32))
    widths, strides = [one.channels for one in info], [one.stride for one in info]
    pyramid = PyramidBackbone(with_norm(body, norm, norm_eps), levels, widths, strides, channels, "pool", norm=second)
    rpn = RegionProposals(channels, pyramid.strides, octave, 2 if second else 1, before, after, drawn[0])
    head = ConvolutionHead(channels, hidden) if second else DenseHead(channels, hidden)
    return FasterRCNN(pyramid, rpn, head, hidden, num_classes, drawn[1], candidates, threshold)


def faster_rcnn(
    num_classes: int = 80,
    in_channels: int = 3,
    image_size: tuple[int, int] = (640, 640),
    backbone: str = "resnet50",
    backbone_kwargs: Mapping[str, Any] | None = None,
    norm: Norm = "batch",
    norm_eps: float | None = None,
    channels: int = 256,
    hidden: int = 1024,
    octave: float = 8,
    before: tuple[int, int] = (2000, 1000),
    after: tuple[int, int] = (2000, 1000),
    drawn: tuple[int, int] = (256, 512),
    candidates: int = 5000,
    threshold: float = 0.05,
) -> FasterRCNN:
    """Build Faster R-CNN on a feature pyramid.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        image_size: (H, W), for backbones that have to know it.
        backbone: a network with a feature pyramid: a registered name or `timm/NAME`.
        backbone_kwargs: its keyword arguments.
        norm: "frozen" makes the backbone's batch norms constants.
        norm_eps: their eps, if frozen; 0 for torchvision's first file.
        channels: of the pyramid.
        hidden: width of the dense layers.
        octave: length of a level's anchors, in its cells: smaller for small objects.
        before: proposals per level before suppression, in training and in evaluation.
        after: proposals per picture, in training and in evaluation.
        drawn: anchors and regions per picture in the loss.
        candidates: kept per picture.
        threshold: least score of a candidate.
    """
    return _build(
        num_classes, in_channels, image_size, backbone, backbone_kwargs, norm, norm_eps, channels, hidden, octave, before,
        after, drawn, candidates, threshold, second=False,
    )  # fmt: skip


def faster_rcnn_v2(
    num_classes: int = 80,
    in_channels: int = 3,
    image_size: tuple[int, int] = (640, 640),
    backbone: str = "resnet50",
    backbone_kwargs: Mapping[str, Any] | None = None,
    norm: Norm = "batch",
    norm_eps: float | None = None,
    channels: int = 256,
    hidden: int = 1024,
    octave: float = 8,
    before: tuple[int, int] = (2000, 1000),
    after: tuple[int, int] = (2000, 1000),
    drawn: tuple[int, int] = (256, 512),
    candidates: int = 5000,
    threshold: float = 0.05,
) -> FasterRCNN:
    """Build Faster R-CNN's second version: deeper heads, batch norm everywhere. Arguments as of `faster_rcnn`."""
    return _build(
        num_classes, in_channels, image_size, backbone, backbone_kwargs, norm, norm_eps, channels, hidden, octave, before,
        after, drawn, candidates, threshold, second=True,
    )  # fmt: skip
