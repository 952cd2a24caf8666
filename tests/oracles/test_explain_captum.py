"""Explanation methods against captum, on networks of five families; deletion and insertion against their definition."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, LayerAttribution, LayerGradCam, Occlusion, Saliency
from torch import Tensor, nn

from opsin.explain import checked, explainers
from opsin.explain.faithful import measure
from opsin.explain.question import Found, Question, short_name, undisturbed
from opsin.models import ModelSpec, build
from opsin.seeding import torch_generator, torch_seeded
from opsin.tasks.classify import Classify, ClassifySettings, HeadSettings

CLASSES, TARGET, SIZE = 4, 2, (48, 48)
NETWORKS = {
    "smallnet": {"widths": (8, 16, 16)},
    "resnet18": {"width": 8},
    "b2-mnist": {"hidden": 32},
    "timm/mobilenetv2_050": {},
    "timm/vit_tiny_patch16_224": {"depth": 2, "embed_dim": 48, "reg_tokens": 2},
}
every_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small pictures are fastest on one thread, above all where tests share the processor with other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def asked(name: str) -> Question:
    """A question about a network with random statistics, in double precision so that only the method is compared."""
    heads = (HeadSettings(name="label", class_names=tuple("abcd")),)
    task = Classify(
        ClassifySettings(
            heads=heads, image_size=SIZE, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.2), small=True, flip=False
        )
    )
    with torch_seeded("captum"):
        model = task.assemble(build(ModelSpec(name, NETWORKS[name], 3, CLASSES, SIZE))).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    pixels = torch.rand((1, 3, *SIZE), generator=torch_generator("picture"), dtype=torch.float64) * 255
    aim = task.aim({"logits": np.zeros((1, CLASSES), np.float32)}, class_name="abcd"[TARGET])
    return Question(model.double(), pixels, aim.pick, aim.chance, batch_size=7)


def logits(question: Question):
    return lambda pixels: question.model(pixels).logits


def of_class(question: Question, target: int) -> Question:
    return replace(question, pick=lambda answer: answer.logits[:, target])


def ours(question: Question, method: str, **options) -> Found:
    with undisturbed(question.model):
        return checked(method, options)(question)


def close(found: Tensor, expected: Tensor) -> None:
    expected = expected.detach()
    assert float(expected.abs().max()) > 0
    assert found.shape == expected.shape
    assert float((found.detach() - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@every_network
def test_saliency(name):
    question = asked(name)
    expected = Saliency(logits(question)).attribute(question.pixels.clone().requires_grad_(), TARGET)  # absolute
    close(ours(question, "saliency").map, expected[0].amax(0) * 255)


@every_network
def test_input_x_gradient(name):
    question = asked(name)
    expected = InputXGradient(logits(question)).attribute(question.pixels.clone().requires_grad_(), TARGET)
    close(ours(question, "input-x-gradient").map, expected[0].sum(0))


@every_network
@pytest.mark.parametrize("baseline", ["black", "mean"])
def test_integrated_gradients(name, baseline):
    question = asked(name)
    start = torch.zeros_like(question.pixels)
    if baseline == "mean":
        start = start + question.pixels.mean((2, 3), keepdim=True)
    expected = IntegratedGradients(logits(question)).attribute(question.pixels, start, TARGET, n_steps=20)
    found = ours(question, "integrated-gradients", steps=20, baseline=baseline)
    close(found.map, expected[0].sum(0))
    difference = (logits(question)(question.pixels) - logits(question)(start))[0, TARGET].detach()
    error = float((found.map.sum() - difference).abs() / difference.abs())
    assert found.details["completeness_error"] == pytest.approx(error, rel=1e-6)


@every_network
def test_occlusion(name):
    question = asked(name)
    window, stride = 18, 13  # the last patches reach beyond the border
    expected = Occlusion(logits(question)).attribute(
        question.pixels, (3, window, window), (3, stride, stride), baselines=127.5, target=TARGET
    )
    found = ours(question, "occlusion", patch=window, stride=stride, fill="gray")
    close(found.map, expected[0, 0])
    assert found.details["patches"] == 16


class AsMap(nn.Module):
    """A normalization layer whose patch tokens pass through `point` as a map (B, C, h, w), for captum to look at."""

    def __init__(self, norm: nn.Module, prefix: int, cells: tuple[int, int]) -> None:
        super().__init__()
        self.norm, self.prefix, self.cells, self.point = norm, prefix, cells, nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm(tokens)
        patches = self.point(tokens[:, self.prefix :].transpose(1, 2).unflatten(2, self.cells))
        return torch.cat([tokens[:, : self.prefix], patches.flatten(2).transpose(1, 2)], 1)


@every_network
def test_grad_cam(name):
    question = asked(name)
    found = ours(question, "grad-cam")
    if "vit" in name:
        net = question.model.net.net
        assert found.details == {"layer": "blocks.1.norm1", "cells": [3, 3]}
        before, net.blocks[1].norm1 = net.blocks[1].norm1, AsMap(net.blocks[1].norm1, 3, (3, 3))
        layer = net.blocks[1].norm1.point
    else:
        layer = next(m for full, m in question.model.named_modules() if short_name(full) == found.details["layer"])
    cam, pixels = LayerGradCam(logits(question), layer), question.pixels.clone().requires_grad_()
    small = torch.cat([cam.attribute(pixels, target, relu_attributions=True) for target in range(CLASSES)])
    if "vit" in name:
        net.blocks[1].norm1 = before
    assert list(small.shape[2:]) == found.details["cells"]
    maps = [ours(of_class(question, target), "grad-cam").map for target in range(CLASSES)]  # some are 0 everywhere
    close(torch.stack(maps), LayerAttribution.interpolate(small, SIZE, "bilinear")[:, 0])


@pytest.mark.parametrize("layer", ["stem.0", "stem.1", "stages.1.entry.0", "stages.1"])
def test_grad_cam_of_a_layer_before_an_activation_in_place(layer):
    # captum itself is asked for a copy of the network whose activations are not in place.
    question = asked("smallnet")
    places = [module for module in question.model.modules() if getattr(module, "inplace", False)]
    assert places
    maps = [ours(of_class(question, target), "grad-cam", layer=layer).map for target in range(CLASSES)]
    for module in places:
        module.inplace = False
    cam, pixels = (
        LayerGradCam(logits(question), question.model.net.get_submodule(layer)),
        question.pixels.clone().requires_grad_(),
    )
    small = torch.cat([cam.attribute(pixels, target, relu_attributions=True) for target in range(CLASSES)])
    for module in places:
        module.inplace = True
    close(torch.stack(maps), LayerAttribution.interpolate(small, SIZE, "bilinear")[:, 0])


def test_smooth_grad_without_noise_is_saliency_and_with_it_the_mean_over_noise():
    question = asked("b2-mnist")
    close(ours(question, "smooth-grad", samples=3, noise=0.0).map, ours(question, "saliency").map)
    found = ours(question, "smooth-grad", samples=3, noise=0.1)
    noises = torch.randn((3, 3, *SIZE), generator=torch_generator("smooth-grad", 0)).double()
    spread = 0.1 * (question.pixels.max() - question.pixels.min())
    pixels = (question.pixels + spread * noises).requires_grad_()
    expected = Saliency(logits(question)).attribute(pixels, TARGET)
    close(found.map, expected.mean(0).amax(0) * 255)


def test_deletion_and_insertion_by_definition():
    question = asked("b2-mnist")
    found = ours(question, "occlusion", patch=16, stride=16)
    values = found.map + torch.linspace(0, 1e-9, found.map.numel(), dtype=torch.float64).reshape(SIZE)  # no ties
    measured = measure(question, Found(values, signed=True), steps=4)
    order = values.flatten().argsort(descending=True)
    chances = []
    for step in range(5):
        picture = question.pixels.clone().flatten(2)
        picture[..., order[: step * 576]] = question.pixels.mean((2, 3))[..., None]
        with torch.no_grad():
            chances.append(float(logits(question)(picture.unflatten(2, SIZE)).softmax(1)[0, TARGET]))
    assert measured.deletion == pytest.approx(np.trapezoid(chances) / 4, rel=1e-9)
    turned = measure(question, Found(-values, signed=True), steps=4)
    assert turned.deletion != measured.deletion
    assert turned.random_deletion == measured.random_deletion


def test_all_methods_are_compared():
    assert set(explainers) == {
        "saliency", "input-x-gradient", "smooth-grad", "integrated-gradients", "occlusion", "grad-cam"
    }  # fmt: skip
