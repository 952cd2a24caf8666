"""Our detectors against torchvision's: same weights, same pictures, same random draws; losses, gradients, detections.

Both get the same random weights, in double precision, so that no rectifier or threshold falls on different sides. Pictures
are as large as the network's input, so torchvision's resizing does nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from tests.oracles.comparing import count
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, resnet18
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d, batched_nms
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from opsin.models import models
from opsin.models.detectors import Detector, Targets
from opsin.models.weights import load_weights

K = 4
POINTS = 5
# Smaller than the default, for speed:
PROPOSALS = (60, 40)  # in training and in evaluation
WIDTHS = (48, 32)  # of the head for points
HIDDEN = 64  # of the second stage of faster_rcnn_v2
TOLERANCE = 1e-4  # of the largest value of the tensor compared


class Pair(NamedTuple):
    """A network here and the same in torchvision."""

    entry: str  # its name in torchvision
    size: tuple[int, int]  # (H, W) of the pictures in the comparison
    detections: int  # kept by torchvision
    names: dict[str, str]  # of the loss terms, there to here
    whole: tuple[str, ...]  # tensors whose first class is background that nothing ever has
    classes: int = 90


TWO_STAGES = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposals",
    "loss_classifier": "classes",
    "loss_box_reg": "boxes",
}
DENSE = {"classification": "classes", "bbox_regression": "boxes"}
FIRST = ("head.classification_head.cls_logits.weight", "head.classification_head.cls_logits.bias")
PAIRS = {
    "faster_rcnn": Pair("fasterrcnn_resnet50_fpn", (96, 128), 100, TWO_STAGES, ()),
    "faster_rcnn_v2": Pair("fasterrcnn_resnet50_fpn_v2", (96, 128), 100, TWO_STAGES, ()),
    "retinanet": Pair("retinanet_resnet50_fpn", (96, 128), 300, DENSE, FIRST),
    "retinanet_v2": Pair("retinanet_resnet50_fpn_v2", (96, 128), 300, DENSE, FIRST),
    "fcos": Pair("fcos_resnet50_fpn", (96, 128), 100, {**DENSE, "bbox_ctrness": "centerness"}, FIRST),
    "ssd": Pair("ssd300_vgg16", (300, 300), 200, DENSE, ()),
    "ssdlite": Pair("ssdlite320_mobilenet_v3_large", (320, 320), 300, DENSE, ()),
    "keypoint_rcnn": Pair(
        "keypointrcnn_resnet50_fpn", (96, 128), 12, {**TWO_STAGES, "loss_keypoint": "points"}, (), classes=1
    ),
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _theirs(name: str, full: bool) -> nn.Module:
    """torchvision's network for K classes and background; with a ResNet-18 instead of a ResNet-50 unless it has to be full."""
    pair = PAIRS[name]
    given: dict[str, Any] = {"num_classes": K + 1}
    if "rcnn" in name:
        given |= {f"rpn_post_nms_top_n_{mode}": number for mode, number in zip(("train", "test"), PROPOSALS)}
        given["box_detections_per_img"] = pair.detections
    if name == "keypoint_rcnn":
        given["num_keypoints"] = POINTS
    if full or name in ("ssd", "ssdlite", "retinanet_v2"):
        return get_model(pair.entry, weights=None, weights_backbone=None, **given)
    common = {"backbone_name": "resnet18", "weights": None, "trainable_layers": 5}
    if name == "faster_rcnn":
        return FasterRCNN(resnet_fpn_backbone(**common), **given)
    if name == "faster_rcnn_v2":
        backbone = _resnet_fpn_extractor(resnet18(), 5, norm_layer=nn.BatchNorm2d)
        given["box_head"] = FastRCNNConvFCHead((256, 7, 7), [256] * 4, [HIDDEN], norm_layer=nn.BatchNorm2d)
        given["box_predictor"] = FastRCNNPredictor(HIDDEN, given.pop("num_classes"))
        return FasterRCNN(backbone, rpn_head=RPNHead(256, 3, conv_depth=2), **given)
    if name == "keypoint_rcnn":
        given["keypoint_head"] = KeypointRCNNHeads(256, WIDTHS)
        given["keypoint_predictor"] = KeypointRCNNPredictor(WIDTHS[-1], given.pop("num_keypoints"))
        return KeypointRCNN(resnet_fpn_backbone(**common), **given)
    norm = FrozenBatchNorm2d if name == "retinanet" else nn.BatchNorm2d
    extra = LastLevelP6P7(256, 256)
    backbone = resnet_fpn_backbone(**common, returned_layers=[2, 3, 4], extra_blocks=extra, norm_layer=norm)
    return {"retinanet": RetinaNet, "fcos": FCOS}[name](backbone, **given)


def _ours(name: str, full: bool, classes: int = K, **kwargs: Any) -> Detector:
    given: dict[str, Any] = {"num_classes": classes, "image_size": PAIRS[name].size, **kwargs}
    if not full and name not in ("ssd", "ssdlite", "retinanet_v2"):
        given["backbone"] = "resnet18"
        if name == "keypoint_rcnn":
            given["widths"] = WIDTHS
        if name == "faster_rcnn_v2":
            given["hidden"] = HIDDEN
        if name in ("faster_rcnn", "keypoint_rcnn", "retinanet"):
            given["norm"] = "frozen"
    if "rcnn" in name:
        given.setdefault("after", PROPOSALS)
    if name == "keypoint_rcnn":
        given = {"num_points": POINTS, "detections": PAIRS[name].detections, **given}
    return models.get(name)(**given)


def _pair(name: str, full: bool = False) -> tuple[Detector, nn.Module]:
    """Both networks with the same random weights, in double precision."""
    pair, generator = PAIRS[name], torch.Generator().manual_seed(sum(name.encode()))
    theirs = _theirs(name, full).double()
    with torch.no_grad():
        for key, tensor in (*theirs.named_parameters(), *theirs.named_buffers()):
            if "num_batches" in key:
                continue
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 100
            tensor.normal_(0, (1.5 / fan_in) ** 0.5, generator=generator)
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d | nn.GroupNorm):
                module.weight.uniform_(0.4, 0.9, generator=generator)
        for key in pair.whole:  # background is certain never to be there, so it has neither loss nor gradient
            tensor = theirs.get_parameter(key)
            rows = tensor.reshape(-1, K + 1, *tensor.shape[1:])
            rows[:, 0] = -200 if tensor.ndim == 1 else 0
    for parameter in theirs.parameters():
        parameter.requires_grad_()
    height, width = pair.size
    theirs.transform.image_mean, theirs.transform.image_std = [0.0] * 3, [1.0] * 3
    theirs.transform.min_size, theirs.transform.max_size = (min(height, width),), max(height, width)
    theirs.transform._skip_resize = True
    ours = _ours(name, full).double()
    ours.load_state_dict({key: _mapped(key, tensor, pair) for key, tensor in theirs.state_dict().items()}, strict=True)
    return ours, theirs


def _mapped(key: str, tensor: Tensor, pair: Pair) -> Tensor:
    """The values of classes alone."""
    if key not in pair.whole:
        return tensor
    return tensor.reshape(-1, K + 1, *tensor.shape[1:])[:, 1:].flatten(0, 1)


def _targets(size: tuple[int, int], pictures: int) -> Targets:
    """Objects of many sizes; the second picture has fewer."""
    height, width = size
    share = torch.tensor(
        [
            [0.05, 0.1, 0.45, 0.8],
            [0.5, 0.05, 0.95, 0.5],
            [0.3, 0.6, 0.42, 0.75],
            [0.6, 0.55, 0.9, 0.97],
            [0.1, 0.1, 0.3, 0.4],
        ]
    )
    boxes = share.double() * torch.tensor([width, height, width, height])
    generator = torch.Generator().manual_seed(5)
    part = torch.rand((len(boxes), POINTS, 2), generator=generator, dtype=torch.float64)
    points = boxes[:, None, :2] + part * (boxes[:, None, 2:] - boxes[:, None, :2])
    seen = torch.randint(0, 3, (len(boxes), POINTS, 1), generator=generator)
    points = torch.cat((points.float(), seen.float()), dim=2)
    labels = torch.tensor([0, 1, 2, 3, 1])
    chosen = [slice(0, 5), slice(1, 3)][:pictures]
    return Targets([boxes[c] for c in chosen], [labels[c] for c in chosen], [points[c] for c in chosen])


def _theirs_of(targets: Targets) -> list[dict[str, Tensor]]:
    assert targets.points is not None
    parts = zip(targets.boxes, targets.labels, targets.points, strict=True)
    return [{"boxes": boxes, "labels": labels + 1, "keypoints": points} for boxes, labels, points in parts]


def _learning(model: nn.Module, training: bool) -> None:
    """torchvision gives losses in training mode only: evaluation is then that of its batch norms."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(training)


def _close(found: Tensor | None, expected: Tensor | None, what: str, least: float = 0.0) -> None:
    assert found is not None, what
    assert expected is not None, what
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)}, expected {tuple(expected.shape)}"
    if not expected.numel():
        return
    scale = max(float(expected.detach().abs().max()), least)
    difference = float((found - expected).detach().abs().max())
    assert difference <= TOLERANCE * scale, f"{what}: differs by {difference:.1e}; the largest value is {scale:.1e}"


def _compare_losses(name: str, ours: Detector, theirs: nn.Module, training: bool) -> None:
    pair, generator = PAIRS[name], torch.Generator().manual_seed(2)
    # torchvision's RetinaNet averages over pictures; that of SSD is 300 pixels large
    pictures = 1 if name in ("retinanet", "retinanet_v2", "ssd") else 2
    images = torch.randn((pictures, 3, *pair.size), generator=generator, dtype=torch.float64)
    targets = _targets(pair.size, pictures)
    ours.train(training).zero_grad()
    theirs.zero_grad()
    _learning(theirs, training)
    a, b = images.clone().requires_grad_(), images.clone().requires_grad_()
    torch.manual_seed(3)
    found = ours(a, targets=targets).losses
    torch.manual_seed(3)
    expected = theirs(list(b), _theirs_of(targets))
    assert {pair.names[key] for key in expected} == set(found)
    for key, value in expected.items():
        part = found[pair.names[key]]
        assert float(value) > 0
        _close(part.sum.detach() / part.count, value.detach(), f"{name}, {key}")
    torch.autograd.backward([part.weight * part.sum / part.count for part in found.values()])
    torch.autograd.backward(list(expected.values()))
    _close(a.grad, b.grad, f"{name}, gradient of the pictures")
    given = dict(theirs.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in given.values())
    for key, parameter in ours.named_parameters():
        gradient = given[key].grad
        _close(parameter.grad, _mapped(key, gradient, pair), f"{name}, gradient of {key}", least=1e-6 * largest)
    assert len(list(ours.parameters())) == len(given)


def _order(boxes: Tensor, scores: Tensor) -> list[int]:
    """Best first; equal scores (slivers at the edge have the same features) by the left side."""
    keys = [(-round(float(score), 9), float(box[0])) for box, score in zip(boxes, scores, strict=True)]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _compare_detections(name: str, ours: Detector, theirs: nn.Module) -> int:
    pair, generator = PAIRS[name], torch.Generator().manual_seed(4)
    images = torch.randn((2, 3, *pair.size), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        found = ours.eval()(images)
        expected = theirs.eval()(list(images))
    assert float(found.overlap) == pytest.approx(ours.overlap)
    for i, result in enumerate(expected):
        there = torch.where(found.scores[i] > 0)[0]
        boxes, scores, labels = found.boxes[i, there], found.scores[i, there], found.labels[i, there]
        kept = batched_nms(boxes, scores, labels, ours.overlap)[: pair.detections]
        kept = kept[_order(boxes[kept], scores[kept])]
        same = _order(result["boxes"], result["scores"])
        result = {key: values[same] for key, values in result.items()}
        _close(scores[kept], result["scores"], f"{name}, scores")
        _close(boxes[kept], result["boxes"], f"{name}, boxes")
        assert torch.equal(labels[kept] + 1, result["labels"])
        if found.points is not None:
            points = found.points[i, there[kept]]
            _close(points[..., :2], result["keypoints"][..., :2], f"{name}, points")
    return sum(len(result["boxes"]) for result in expected)


@pytest.mark.parametrize("name", PAIRS)
def test_equal_to_torchvision(name):
    ours, theirs = _pair(name)
    assert _compare_detections(name, ours, theirs) > 20
    _compare_losses(name, ours, theirs, training=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_equal_to_torchvision_at_full_size(name):
    ours, theirs = _pair(name, full=True)
    assert _compare_detections(name, ours, theirs) > 20
    for training in (False, True):
        _compare_losses(name, ours, theirs, training)


@pytest.mark.parametrize("name", PAIRS)
def test_published_layout(name):
    """Names, shapes and number of parameters of torchvision's published files."""
    pair = PAIRS[name]
    meta = get_model_weights(pair.entry).DEFAULT.meta
    frozen = {} if name.endswith("_v2") or name.startswith("ssd") else {"norm": "frozen"}
    extra = {"num_points": 17} if name == "keypoint_rcnn" else {}
    classes = len(meta["categories"]) - (not pair.whole)
    size = {"ssd": (300, 300), "ssdlite": (320, 320)}.get(name, (640, 640))
    with torch.device("meta"):
        ours = models.get(name)(num_classes=classes, image_size=size, **frozen, **extra)
        theirs = get_model(pair.entry, weights=None, weights_backbone=None, num_classes=len(meta["categories"]))
    assert count(ours) == meta["num_params"]
    expected = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    if frozen:  # published files of these come from frozen norms, which count no batches
        expected = {key: shape for key, shape in expected.items() if not key.endswith("num_batches_tracked")}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == expected


@pytest.mark.parametrize(
    ("name", "change", "value"), [("fcos", "radius", 0.7), ("retinanet", "overlap", 0.2), ("faster_rcnn", "drawn", 8)]
)
def test_the_comparison_finds(name, change, value):
    ours, theirs = _pair(name)
    setattr(ours, change, value)
    check = _compare_detections if change == "overlap" else partial(_compare_losses, training=False)
    with pytest.raises(AssertionError, match=r"differs by|expected"):
        check(name, ours, theirs)


@pytest.mark.parametrize("name", ["retinanet", "ssd", "faster_rcnn"])
def test_a_published_file_gives_80_classes(name, tmp_path):
    """torchvision's file has 91 rows: the 80 with a name come in order, the others are left out and counted."""
    pair = PAIRS[name]
    theirs = get_model(pair.entry, weights=None, weights_backbone=None, num_classes=91)
    state = theirs.state_dict()
    named = [
        i for i, word in enumerate(get_model_weights(pair.entry).DEFAULT.meta["categories"]) if word[0] not in "_N"
    ]
    assert len(named) == 80
    old = {key.replace("_blocks.0.0.", "_blocks.0."): tensor for key, tensor in state.items()}  # the first layout
    torch.save(old, tmp_path / f"{name}.pth")
    ours = models.get(name)(num_classes=80, image_size=(300, 300))
    report = load_weights(ours, tmp_path / f"{name}.pth")
    assert not report.missing
    assert not report.unexpected
    assert not report.mismatched
    assert "91 rows" in str(report.adapted)
    own = ours.state_dict()
    if name == "faster_rcnn":
        boxes = state["roi_heads.box_predictor.bbox_pred.weight"].reshape(91, 4, -1)
        assert torch.equal(own["roi_heads.box_predictor.bbox_pred.weight"], boxes[[0, *named]].flatten(0, 1))
        return
    key = "head.classification_head." + ("module_list.0.weight" if name == "ssd" else "cls_logits.weight")
    rows = state[key].reshape(-1, 91, *state[key].shape[1:])[:, ([0] if name == "ssd" else []) + named]
    assert torch.equal(own[key], rows.flatten(0, 1))
