"""Every registered detector obeys the contract (`opsin.testing.check_detector`), on its own backbone and on others."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import DENSE, SMALL, TINY, TWO_STAGES
from torch import nn

from opsin.errors import ConfigError, ShapeError
from opsin.models import Detected, ModelSpec, answer_of, build, models
from opsin.task import Part
from opsin.testing import ContractError, check_detector

DETECTORS = [name for name in models if answer_of(name) == "detected"]


@pytest.fixture(autouse=True)
def _one_thread():
    """Small pictures are fastest on one thread, above all where tests share the processor with other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _by_default(name):
    """The other networks of a file are of the same parts as its first one."""
    return name == models.module(name).NAMES[0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if _by_default(name) else pytest.mark.slow) for name in DETECTORS]
)
def test_registered(name):
    tiny = TINY[name]
    check_detector(name, tiny.kwargs, image_sizes=tiny.sizes, num_points=tiny.points, overfit_steps=tiny.steps)


@pytest.mark.parametrize(
    "options", [{"reg_max": 8}, {"assignment": "tal", "objectness": False, "class_loss": "varifocal"}, {"l1_weight": 1}]
)
def test_options_of_yolox(options):
    kwargs = {**TINY["yolox_pico"].kwargs, **options}
    check_detector("yolox_pico", kwargs, in_channels=(3,), image_sizes=((64, 96),), overfit_steps=0, export=False)


OTHERS = {
    "mobilenet": {"backbone": "mobilenet_v3_large", "backbone_kwargs": {"width": 0.25}},
    "vgg": {"backbone": "vgg11_bn", "backbone_kwargs": {"width": 8}},
    "timm": {"backbone": "timm/resnet18", "backbone_kwargs": {"channels": (8, 16, 24, 32), "stem_width": 8}},
    "vit": {"backbone": "timm/vit_tiny_patch16_224", "backbone_kwargs": {"depth": 2, "embed_dim": 48}},
}


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("retinanet", "mobilenet"),
        ("retinanet", "vit"),
        ("fcos", "timm"),
        ("faster_rcnn", "mobilenet"),
        ("faster_rcnn", "vit"),
        ("ssd", "mobilenet"),
        ("ssd", "vgg"),
        ("ssdlite", "timm"),
        ("ssdlite", "mobilenet"),
    ],
)
def test_on_other_backbones(name, backbone):
    kwargs = {**TINY[name].kwargs, **OTHERS[backbone]}
    check_detector(name, kwargs, in_channels=(2,), image_sizes=((64, 64),), overfit_steps=0, export=False)


def test_frozen_norms_stay_as_they_are():
    model = build(ModelSpec("fcos", {**DENSE, "norm": "frozen", "norm_eps": 0.0}, 3, 2, (64, 64), "detected"))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    assert before
    targets = {"boxes": [torch.tensor([[4.0, 4, 40, 50]])], "labels": [torch.tensor([1])]}
    model.train()(torch.randn(1, 3, 64, 64), targets=targets)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"backbone": "linear"}, "'linear' has no feature pyramid. Those that do: alexnet"),
        ({"backbone": "fcos"}, "'fcos' is a detector"),
        ({"backbone": "resnet18", "backbone_kwargs": {"depth": 3}}, "has no argument 'depth'"),
        ({**SMALL, "norm": "none"}, "norm = 'none'; expected 'batch' or 'frozen'"),
    ],
)
def test_refused(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        build(ModelSpec("retinanet", kwargs, 3, 2, (64, 64), "detected"))


def test_points_have_to_be_given():
    kwargs = {**TWO_STAGES, "widths": (8,)}
    model = build(ModelSpec("keypoint_rcnn", kwargs, 3, 1, (64, 64), "detected", 4), check=False)
    targets = {"boxes": [torch.tensor([[4.0, 4, 40, 50]])], "labels": [torch.tensor([0])]}
    with pytest.raises(ShapeError, match="the targets have none"):
        model(torch.randn(1, 3, 64, 64), targets=targets)


class Broken(nn.Module):
    """A detector with one fault."""

    def __init__(self, num_classes: int, in_channels: int, how: str = "") -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(in_channels, 5 + num_classes, 16, 16)
        self.unused = nn.Linear(2, 2) if how == "unused" else None
        self.secret = torch.rand(())

    def forward(self, images, targets=None):
        if self.how == "batch":
            images = images - images.mean(0)
        out = self.conv(images).flatten(2).transpose(1, 2)
        boxes = torch.cat((out[..., :2].sigmoid() * 20, 30 + out[..., 2:4].sigmoid() * 20), -1)
        scores, labels = out[..., 5:].softmax(-1).max(-1)
        overlap = torch.full((), 0.5)
        if targets is not None:
            count = len(images) if self.how != "count" else 1
            total = out.square().sum() / (count if self.how == "mean" else 1)
            if self.how == "empty" and not len(targets["boxes"][0]):
                total = total / 0
            return Detected(boxes, scores, labels, overlap, None, {"all": Part(total, count)})
        if self.how == "secret":
            scores = scores * self.secret
        if self.how == "range":
            scores = scores * 9
        if self.how == "labels":
            labels = labels + 1
        if self.how == "inside out":
            boxes = boxes.flip(-1)
        return Detected(boxes, scores, labels, overlap)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unused", "parameter 'unused.weight' gets no gradient"),
        ("batch", "candidates one by one differ"),
        ("count", "the count of 'all' is 1"),
        ("mean", "the sum of 'all' is"),
        ("empty", "without objects: 'all' is not finite"),
        ("secret", "part of the state not saved"),
        ("range", r"have to be in \[0, 1\]"),
        ("labels", r"expected torch.int64 in \[0, 3\)|gave labels up to 3"),
        ("inside out", "ends before it begins"),
        ("", "objects of 4 pictures were not found after 5 steps"),
    ],
)
def test_the_check_finds(how, message):
    with pytest.raises((ContractError, ShapeError), match=message):
        check_detector(Broken, {"how": how}, in_channels=(2,), image_sizes=((64, 64),), overfit_steps=5)
