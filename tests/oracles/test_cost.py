"""The cost of networks: multiply-adds against torch's flop counter, fields against gradients, memory against known sums."""

from __future__ import annotations

import time

import pytest
import torch
from tests.tiny import CLASSIFIERS, TINY
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import FlopCounterMode

from opsin.analyze.chain import evaluate
from opsin.analyze.cost import build_hollow, cost
from opsin.errors import ConfigError, ShapeError
from opsin.models import ModelSpec, build


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _counted(network: nn.Module, shape: tuple[int, ...]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_network_equals_the_flop_counter(name):
    height, width = TINY[name].sizes[0]
    spec = ModelSpec(name, TINY[name].kwargs, 3, 7, (height, width))
    network = build(spec, check=False).train()
    found = cost(network, (3, height, width))
    assert network.training
    assert found.total("macs") == _counted(network, (3, height, width))
    assert found.total("parameters") == sum(p.numel() for p in network.parameters())
    assert found.total("buffers") == sum(b.numel() for b in network.buffers())
    for depth in (0, 1, 2):
        assert sum(row.macs for row in found.grouped(depth)) == found.total("macs")


def test_a_hollow_network_costs_the_same():
    spec = ModelSpec("smallnet", TINY["smallnet"].kwargs, 1, 7, (28, 30))
    hollow = build_hollow(spec)
    assert all(isinstance(parameter, FakeTensor) for parameter in hollow.parameters())
    assert cost(hollow, (1, 28, 30)).to_dict() == cost(build(spec), (1, 28, 30)).to_dict()


@pytest.mark.parametrize(
    ("name", "kwargs", "size"),
    [
        ("timm/vit_tiny_patch16_224", {"depth": 2}, 64),
        ("timm/convnext_atto", {}, 64),
        ("timm/efficientnet_b0", {}, 64),
        ("timm/swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "img_size": 64}, 64),
        ("timm/mixer_s32_224", {}, 224),
    ],
)
def test_timm_equals_the_flop_counter(name, kwargs, size):
    network = build(ModelSpec(name, kwargs, 3, 5, (size, size)), check=False)
    assert cost(network, (3, size, size)).total("macs") == _counted(network, (3, size, size)) > 0


def test_attention_and_transposed_convolutions_equal_the_flop_counter():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(4, 8, 3, 2, groups=2)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x):
            return self.block(self.up(x).flatten(2).mT)

    network = Net().eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operation is not in the flop counter
    try:
        expected = _counted(network, (4, 6, 5))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert cost(network, (4, 6, 5)).total("macs") == expected
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_vgg16_memory_and_fields():
    spec = ModelSpec("torchvision.models:vgg16", {}, 3, 1000, (224, 224))
    found = cost(build_hollow(spec), (3, 224, 224))
    assert found.total("parameters") == 138_357_544
    assert found.values == 15_237_608
    assert round(found.stored_bytes / 2**20, 1) == 58.1
    assert round(found.weight_bytes / 2**20, 1) == 527.8
    assert round((found.training_bytes(0, "adam")) / 2**30, 2) == 2.06
    assert found.peak_bytes == 4 * (2 * 64 * 224 * 224 + 3 * 224 * 224)  # the picture is the caller's
    fields = {layer.name: layer.field for layer in found.layers}
    assert fields["net.features.28"] == "196 (jump 16)"
    assert fields["net.features.30"] == "212 (jump 32)"
    assert fields["net.classifier.0"] == "whole picture"
    assert (found.seen.height.size, found.seen.height.jump) == (212, 32)


def test_large_networks_take_no_time_and_the_network_stays_as_it_is():
    cost(nn.Conv2d(3, 4, 3), (3, 8, 8))  # what is done once is done
    start = time.process_time()
    network = build_hollow(ModelSpec("torchvision.models:vgg19", {}, 3, 1000, (224, 224)))
    assert cost(network, (3, 224, 224)).total("macs") > 19e9
    assert time.process_time() - start < 2  # a pass on real numbers takes 20 times as long
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_frozen_parameters_take_no_gradients():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 5))
    network[0].requires_grad_(False)
    found = cost(network, (3, 8, 8))
    assert (found.layers[0].frozen, found.layers[0].trainable) == (224, 0)
    assert found.training_bytes(0, "adam") == 4 * (224 + 4 * (8 * 36 * 5 + 5))
    chain = evaluate((3, 8, 8), "C3x8, FC5")
    assert (found.values, found.total("macs")) == (chain.values, chain.macs)


class Branches(nn.Module):
    """A sum of two ways with different fields."""

    def __init__(self):
        super().__init__()
        self.short = nn.Conv2d(1, 4, 1, stride=2)
        self.long = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=2, dilation=2))
        self.end = nn.Conv2d(4, 4, (3, 1), padding=(1, 0))

    def forward(self, x):
        return self.end(self.short(x) + self.long(x))


NETS = {
    "branches": Branches(),
    "pools": nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(2, 2, 5, padding=2)),
    "up": nn.Sequential(nn.Conv2d(1, 2, 3, 4, 1), nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 1)),
    "norms": nn.Sequential(
        nn.Conv2d(1, 4, 7, 2, 3), nn.BatchNorm2d(4), nn.GELU(), nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 2, 3, 2)
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_fields_equal_the_gradient_of_the_center_cell(name):
    network = NETS[name].eval()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.1)
    images = torch.rand(1, 1, 96, 96, requires_grad=True)
    out = network(images)
    out[0, :, out.shape[2] // 2, out.shape[3] // 2].sum().backward()
    seen = [images.grad[0, 0].sum(side).nonzero() for side in (1, 0)]
    spans = [int(places.max() - places.min()) + 1 for places in seen]
    last = cost(network, (1, 96, 96)).layers[-1]
    assert [last.seen.height.size, last.seen.width.size] == spans
    assert last.seen.height.jump == 96 / out.shape[2] or name == "norms"


def test_peak_follows_what_is_alive():
    class Two(nn.Module):
        def forward(self, x):
            kept = x + 1
            for _ in range(5):
                x = x * 2
            return x + kept

    assert cost(Two(), (1, 10, 10)).peak_bytes == 4 * 100 * 4  # picture, kept, and two of the chain
    assert cost(nn.ReLU(inplace=True), (1, 10, 10)).peak_bytes == 400


def test_messages():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(9, 8, 3))
    with pytest.raises(ShapeError, match=r"Layer '1' \(Conv2d\) cannot take its input: .*It gets \(1, 8, 6, 6\)"):
        cost(network, (3, 8, 8))

    class Looks(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ConfigError, match="decides by the values"):
        cost(Looks(), (3, 8, 8))
