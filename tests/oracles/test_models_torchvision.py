"""Our networks against torchvision's, and parameter counts against the published ones.

The bar is 1e-5 of each tensor's largest value in float32; these networks call the same kernels in the same order, so that
they meet it with room to spare, and no comparison needs float64.
"""

from __future__ import annotations

import pytest
import torch
import torchvision
from tests.oracles.comparing import compare, count, on_meta
from torch import nn
from torchvision.models import resnet

from opsin.models import ModelSpec, build, models
from opsin.models.backbones.alexnet import alexnet_2012
from opsin.models.backbones.densenet import densenet121
from opsin.models.backbones.resnet import resnet18, resnet50
from opsin.models.backbones.squeezenet import squeezenet1_1
from opsin.models.backbones.vgg import vgg11, vgg16
from opsin.models.weights import load_weights

# Parameters with 1000 classes and 3 channels: the spec's figures; those of *_bn, 64x4d and wide are torchvision's `num_params`.
COUNTS = {
    "alexnet": 61_100_840,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small pictures are fastest on one thread, above all where tests share the processor with other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The largest residual networks: groups and inner channels per group. With one or two blocks per stage in the default run.
LARGE = {
    "resnext101_32x8d": (32, 8),
    "resnext101_64x4d": (64, 4),
    "wide_resnet50_2": (1, 128),
    "wide_resnet101_2": (1, 128),
}


def _pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Ours and torchvision's for 7 classes; where there are hidden dense layers, both with 32 instead of 4096 units."""
    theirs = on_meta(torchvision.models.get_model, name=name, weights=None, num_classes=7)
    if not name.startswith(("vgg", "alexnet")):
        return on_meta(models.get(name), num_classes=7), theirs
    dense = [i for i, layer in enumerate(theirs.classifier) if isinstance(layer, nn.Linear)]
    with torch.device("meta"):
        for i, units in zip(dense, (32, 32, 7), strict=True):
            theirs.classifier[i] = nn.Linear(theirs.classifier[i].in_features if i == dense[0] else 32, units)
    return on_meta(models.get(name), num_classes=7, hidden=32), theirs


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in COUNTS]
)
def test_equal_to_torchvision(name):
    compare(name, *_pair(name), size=(67, 64))


@pytest.mark.parametrize("name", LARGE)
def test_equal_to_torchvision_with_fewer_blocks(name):
    (groups, width), depths = LARGE[name], (1, 2, 1, 1)
    given = {"num_classes": 7, "groups": groups, "width_per_group": width}
    theirs = on_meta(resnet.ResNet, block=resnet.Bottleneck, layers=depths, **given)
    compare(name, on_meta(models.get(name), num_classes=7, depths=depths), theirs, size=(67, 64))


@pytest.mark.parametrize("name", COUNTS)
def test_full_size_weights_have_torchvisions_names_and_shapes(name):
    ours, theirs = on_meta(models.get(name)), on_meta(torchvision.models.get_model, name=name, weights=None)
    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == shapes
    assert count(ours) == COUNTS[name]


@pytest.mark.parametrize("change", ["dropout", "eps", "pooling", "order"])
def test_the_comparison_finds(change):
    ours, theirs = _pair("vgg11_bn" if change == "dropout" else "densenet121")
    if change == "dropout":
        ours.classifier[5].p = 0.4
    if change == "eps":
        ours.features.norm5.eps = 1.1e-5 + 1e-4
    if change == "pooling":
        ours.features.transition3.pool = nn.MaxPool2d(2)
    if change == "order":
        layer = ours.features.denseblock4.denselayer1
        layer.forward = lambda x: layer.conv2(layer.norm2(layer.relu(layer.conv1(layer.relu(layer.norm1(x))))))
    with pytest.raises(AssertionError, match="differs by"):
        compare("changed", ours, theirs, size=(67, 64))


@pytest.mark.parametrize(
    ("name", "kwargs", "channels", "size", "classes", "expected"),
    [
        ("resnet18", {"stem": "cifar"}, 3, 32, 10, 11_173_962),  # the count that CIFAR ResNet-18 papers print
        ("smallnet", {}, 3, 32, 10, 1_857_946),  # ours: as its header says
        ("b2-mnist", {}, 1, 28, 10, 3_362_570),
        ("b2-simple-cnn", {}, 1, 28, 10, 18_960_138),
        ("linear", {}, 1, 28, 10, 7_850),
        ("mlp", {"hidden": [30]}, 1, 28, 10, 23_860),
        ("mlp", {"hidden": [256, 128]}, 1, 28, 47, 239_919),
    ],
)
def test_parameter_counts(name, kwargs, channels, size, classes, expected):
    assert count(build(ModelSpec(name, kwargs, channels, classes, (size, size)), check=False)) == expected


def test_vgg_with_other_heads():
    assert count(on_meta(vgg16, head="1-dense")) == 39_803_688
    assert count(on_meta(vgg16, head="1-dense").features) == 14_714_688
    assert count(on_meta(vgg16, head="pool")) == 14_714_688 + 512 * 1000 + 1000
    model, x = vgg11(num_classes=3, width=4, head="pool").eval(), torch.randn(2, 3, 64, 96)
    last = model.classifier[1]
    expected = model.features(x).mean((2, 3)) @ last.weight.T + last.bias
    torch.testing.assert_close(model(x).logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("builder", "name"), [(resnet18, "resnet18"), (squeezenet1_1, "squeezenet1_1"), (densenet121, "densenet121")]
)
def test_a_torchvision_file_loads(builder, name, tmp_path):
    theirs = torchvision.models.get_model(name, weights=None)
    path = tmp_path / f"{name}-f37072fd.pth"
    torch.save(theirs.state_dict(), path)
    ours = builder()
    report = load_weights(ours, path)
    assert report.complete
    assert not report.unexpected
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x).logits, theirs.eval()(x))


def test_densenet_takes_the_older_names_of_published_files():
    theirs = torchvision.models.densenet121(weights=None, num_classes=4)
    old = {}
    for key, tensor in theirs.state_dict().items():
        if "denselayer" in key:
            for layer in ("norm", "conv"):
                key = key.replace(f".{layer}1.", f".{layer}.1.").replace(f".{layer}2.", f".{layer}.2.")
        old[key] = tensor
    assert "features.denseblock1.denselayer1.norm.1.running_mean" in old
    ours = densenet121(num_classes=4)
    renamed, note = ours.adapt_state(old)
    assert list(renamed) == list(theirs.state_dict())
    assert note is None
    before = list(old)
    ours.load_state_dict(old, strict=True)
    assert list(old) == before
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x).logits, theirs.eval()(x))


def test_zero_init_residual_starts_stages_as_projections():
    model = resnet18(width=8, zero_init_residual=True)
    x = torch.rand(2, 8, 8, 8)  # not negative, so the block's last ReLU changes nothing
    assert torch.equal(model.layer1(x), x)
    assert not torch.equal(resnet18(width=8).layer1(x), x)


# The AlexNet of 2012 has no outside implementation here: its paper's numbers stand in for one. -----------------------------


def test_alexnet_2012_has_the_sizes_of_the_paper():
    model = on_meta(alexnet_2012)
    assert count(model) == 60_965_224
    convolutions = [tuple(layer.weight.shape) for layer in model.features if isinstance(layer, nn.Conv2d)]
    assert convolutions == [(96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3), (384, 192, 3, 3), (256, 192, 3, 3)]
    maps = model.forward_pyramid(torch.empty(1, 3, 227, 227, device="meta"))
    assert [tuple(one.shape[1:]) for one in maps] == [(96, 55, 55), (256, 27, 27), (256, 13, 13), (256, 6, 6)]
    # Section 3.5 counts the neurons of layers 1 to 8.
    x, neurons = torch.empty(1, 3, 227, 227, device="meta"), []
    for layer in model.features:
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            neurons.append(x.numel())
    neurons += [layer.out_features for layer in model.classifier if isinstance(layer, nn.Linear)]
    assert neurons == [290_400, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]


def test_alexnet_2012_normalizes_responses_by_the_formula_of_the_paper():
    layer = alexnet_2012(width=12, hidden=8).features[2]
    a = torch.randn(2, 12, 3, 3, dtype=torch.float64) * 50  # large, so that the sum matters beside k = 2
    expected = torch.empty_like(a)
    for i in range(12):  # section 3.3: n = 5 neighbors, k = 2, alpha = 1e-4, beta = 0.75
        near = a[:, max(0, i - 2) : min(12, i + 3)].square().sum(1)
        expected[:, i] = a[:, i] / (2 + 1e-4 * near) ** 0.75
    torch.testing.assert_close(layer(a), expected, rtol=1e-12, atol=0)


def test_alexnet_2012_starts_as_the_paper_says():
    model = alexnet_2012(width=48, hidden=64)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert [layer.bias[0].item() for layer in layers] == [0, 1, 0, 1, 1, 1, 1, 0]
    assert all(bool((layer.bias == layer.bias[0]).all()) for layer in layers)
    assert all(0.0095 < float(layer.weight.std()) < 0.0105 for layer in layers[:7])


def test_alexnet_2012_keeps_its_two_halves_apart():
    model = alexnet_2012(width=12, hidden=8)
    second = model.features[4]
    x = torch.randn(1, 12, 5, 5)
    changed = x.clone()
    changed[:, 6:] += 1
    difference = (second(x) - second(changed)).abs().amax((0, 2, 3))
    assert not difference[:16].any()
    assert difference[16:].all()


def test_first_layers_do_not_start_as_torchs_default():
    """He initialization, fan out, as torchvision: deviation sqrt(2 / (64 * 49))."""
    assert float(resnet50().conv1.weight.std()) == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)
    assert float(vgg11(width=16, hidden=8).features[3].weight.std()) == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)
