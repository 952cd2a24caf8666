"""Keypoint R-CNN: Faster R-CNN with a third head, which finds the points of each object that was found.

Paper: Mask R-CNN, 2017, https://arxiv.org/abs/1703.06870, section 5; the rest as in faster_rcnn.py.
Implements: eight 3x3 convolutions of 512 on 14 x 14 cells, a transposed convolution and an interpolation to 56 x 56, a softmax
    over each point's map; the points of detections, not of proposals.
Differs from the paper: 17 points by default but any number; the loss is averaged over labeled points of all regions. As
    torchvision. Boxes are merged in here, before their points are looked for: `detections` per picture remain, and merging
    them again changes nothing. A point's score is its probability (Detectron2's rule), where torchvision gives a logit.
Checked against: torchvision 0.29: losses (with the same random draws), gradients, boxes and points; 59,137,258 parameters for
    persons (tests/oracles/test_detectors_torchvision.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published files (BSD-3-Clause) load unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opsin.errors import ConfigError, ShapeError
from opsin.layers.candidates import kept_by_nms, taken
from opsin.layers.fpn import Norm, PyramidBackbone, with_norm
from opsin.layers.region_keypoints import POOLED as POINT_CELLS
from opsin.layers.region_keypoints import KeypointHead, KeypointPredictor, keypoint_loss, points_of
from opsin.layers.region_proposals import Drawn, Proposals, RegionProposals, proposal_losses
from opsin.layers.regions import (
    POOLED,
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

NAMES = ("keypoint_rcnn",)

CLASSIFIERS = {"roi_heads.box_predictor.cls_score": (1, 1), "roi_heads.box_predictor.bbox_pred": (1, 4)}


class Found(NamedTuple):
    """Detections of a picture, merged."""

    boxes: Tensor  # (B, D, 4)
    scores: Tensor  # (B, D)
    labels: Tensor  # (B, D)


class Raw(NamedTuple):
    """What the stages say; with targets of the regions drawn for the loss, else of the detections."""

    logits: Tensor  # (R, K + 1), background first
    deltas: Tensor  # (R, K + 1, 4)
    proposals: Proposals
    maps: Tensor  # (regions with an object, P, 56, 56), or (B, D, P, 56, 56)
    found: Found | None = None
    anchors: Drawn | None = None
    regions: Regions | None = None


class KeypointRCNN(Detector):
    """Backbone, pyramid, two stages and the points.

    Args:
        backbone: gives maps, the last of which only the first stage uses.
        rpn: the first stage.
        channels: of the maps.
        hidden: width of the dense layers.
        widths: channels of the convolutions for points.
        num_classes: K.
        num_points: P.
        drawn: regions per picture in the loss.
        candidates: kept per picture before merging.
        detections: kept per picture after it, D.
        threshold: least score of a candidate.
    """

    stride = 32
    overlap = 0.5
    head_names = tuple(CLASSIFIERS)

    def __init__(
        self,
        backbone: PyramidBackbone,
        rpn: RegionProposals,
        channels: int,
        hidden: int,
        widths: Sequence[int],
        num_classes: int,
        num_points: int,
        drawn: int,
        candidates: int,
        detections: int,
        threshold: float,
    ) -> None:
        super().__init__()
        self.num_classes, self.drawn, self.detections = num_classes, drawn, detections
        self.candidates, self.threshold = candidates, threshold
        self.backbone, self.rpn = backbone, rpn
        self.roi_heads = nn.ModuleDict(
            {
                "box_head": DenseHead(channels, hidden),
                "box_predictor": Predictor(hidden, num_classes + 1),
                "keypoint_head": KeypointHead(channels, widths),
                "keypoint_predictor": KeypointPredictor([channels, *widths][-1], num_points),
            }
        )

    def raw(self, images: Tensor, targets: Targets | None = None) -> Raw:
        """Of regions drawn by means of the targets, or of all proposals and the detections among them."""
        features, size = self.backbone(images), (images.shape[-2], images.shape[-1])
        proposals = self.rpn(features, size, learning=targets is not None)
        if targets is not None:
            anchors = self.rpn.draw(proposals, targets.boxes)
            regions = draw_regions(proposals, targets.boxes, targets.labels, self.drawn)
            logits, deltas = self._boxes(features, regions.rois)
            maps = self._maps(features, regions.rois[regions.labels > 0])
            return Raw(logits, deltas, proposals, maps, None, anchors, regions)
        logits, deltas = self._boxes(features, as_rois(proposals.boxes))
        found = self._merged(*region_candidates(logits, deltas, proposals, size, self.candidates, self.threshold))
        maps = self._maps(features, as_rois(found.boxes))
        maps = maps.reshape(-1, found.boxes.shape[1], *maps.shape[1:])
        return Raw(logits, deltas, proposals, maps, found)

    def _boxes(self, features: list[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        pooled = pool_regions(features[:-1], rois, self.backbone.strides[:-1], POOLED)
        logits, deltas = self.roi_heads["box_predictor"](self.roi_heads["box_head"](pooled))
        return logits, deltas

    def _maps(self, features: list[Tensor], rois: Tensor) -> Tensor:
        pooled = pool_regions(features[:-1], rois, self.backbone.strides[:-1], POINT_CELLS)
        maps: Tensor = self.roi_heads["keypoint_predictor"](self.roi_heads["keypoint_head"](pooled))
        return maps

    def _merged(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Found:
        boxes = boxes.detach()
        kept = kept_by_nms(boxes, scores.detach(), self.overlap, groups=labels)
        scores, places = torch.where(kept, scores, 0).topk(min(self.detections, scores.shape[1]), dim=1)
        return Found(taken(boxes, places), scores, labels.gather(1, places))

    def losses(self, raw: Raw, targets: Targets) -> dict[str, Part]:
        """`objectness`, `proposals`, `classes`, `boxes` and `points`.

        Raises:
            ConfigError: if `raw` had no targets.
            ShapeError: if the targets have no points.
        """
        if raw.anchors is None or raw.regions is None:
            raise ConfigError("losses need what raw(images, targets) draws; raw was called without targets.")
        if targets.points is None:
            raise ShapeError("keypoint_rcnn learns from points (M, P, 3) of every object; the targets have none.")
        own = raw.regions.labels > 0
        boxes, matched = raw.regions.rois[own], raw.regions.matched[own]
        goals = [points[matched[boxes[:, 0] == i]] for i, points in enumerate(targets.points)]
        return {
            **proposal_losses(raw.anchors),
            **region_losses(raw.logits, raw.deltas, raw.regions),
            "points": keypoint_loss(raw.maps, boxes[:, 1:], torch.cat(goals).to(boxes.dtype)),
        }

    def decode(self, raw: Raw, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The detections."""
        del size
        return _found(raw)

    def decode_points(self, raw: Raw, size: tuple[int, int]) -> Tensor:
        """The points of the detections, (B, D, P, 3)."""
        return points_of(raw.maps, _found(raw).boxes, size)

    def adapt_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Tensors of a file of torchvision's with the classes and names here."""
        return adapted(state, self.state_dict(), CLASSIFIERS, self.num_classes, background=True)


def _found(raw: Raw) -> Found:
    if raw.found is None:
        raise ConfigError("With targets given there are no detections; call raw(images) to decode.")
    return raw.found


def keypoint_rcnn(
    num_classes: int = 1,
    num_points: int = 17,
    in_channels: int = 3,
    image_size: tuple[int, int] = (640, 640),
    backbone: str = "resnet50",
    backbone_kwargs: Mapping[str, Any] | None = None,
    norm: Norm = "batch",
    norm_eps: float | None = None,
    channels: int = 256,
    hidden: int = 1024,
    widths: Sequence[int] = (512,) * 8,
    octave: float = 8,
    before: tuple[int, int] = (2000, 1000),
    after: tuple[int, int] = (2000, 1000),
    drawn: tuple[int, int] = (256, 512),
    candidates: int = 5000,
    detections: int = 100,
    threshold: float = 0.05,
) -> KeypointRCNN:
    """Build Keypoint R-CNN on a feature pyramid.

    Args:
        num_classes: K.
        num_points: P, points of an object.
        in_channels: C of the pictures.
        image_size: (H, W), for backbones that have to know it.
        backbone: a network with a feature pyramid: a registered name or `timm/NAME`.
        backbone_kwargs: its keyword arguments.
        norm: "frozen" makes the backbone's batch norms constants.
        norm_eps: their eps, if frozen; 0 for the newer of torchvision's files.
        channels: of the pyramid.
        hidden: width of the dense layers.
        widths: channels of the convolutions for points.
        octave: length of a level's anchors, in its cells: smaller for small objects.
        before: proposals per level before suppression, in training and in evaluation.
        after: proposals per picture, in training and in evaluation.
        drawn: anchors and regions per picture in the loss.
        candidates: kept per picture before merging.
        detections: kept per picture after it.
        threshold: least score of a candidate.
    """
    body, levels, info = build_backbone(backbone, backbone_kwargs or {}, in_channels, image_size, (4, 8, 16, 32))
    in_widths, strides = [one.channels for one in info], [one.stride for one in info]
    pyramid = PyramidBackbone(with_norm(body, norm, norm_eps), levels, in_widths, strides, channels, "pool")
    rpn = RegionProposals(channels, pyramid.strides, octave, 1, before, after, drawn[0])
    return KeypointRCNN(
        pyramid, rpn, channels, hidden, widths, num_classes, num_points, drawn[1], candidates, detections, threshold
    )
