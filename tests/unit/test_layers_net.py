"""The network `layers`: against the same layers written in torch, against formulas, and what it refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opsin.analyze.chain import evaluate
from opsin.bundle import as_sample
from opsin.errors import ConfigError, ShapeError, UnknownName
from opsin.layers.normalize import Normalized
from opsin.models import ModelSpec, build
from opsin.models.blocks import blocks_of
from opsin.models.weights import head_of
from opsin.task import ImageSpec
from opsin.testing import check_model
from opsin.transfer.features import last_layer


def make(chain=None, shape=(3, 12, 14), classes=4, check=True, **kwargs):
    given = {"chain": chain} if chain is not None else {}
    return build(ModelSpec("layers", {**given, **kwargs}, shape[0], classes, shape[1:]), check=check)


@pytest.mark.parametrize(
    ("shape", "chain", "parameters"),
    [
        ((1, 28, 28), "C5x32 same, P2, C5x64 same, P2, FC1024, drop .4, FC10", 3_274_634),
        ((3, 32, 32), "C5x64 same, P2, C5x64 same, P2, C5x32 same, P2, FC128, FC64, FC10", 233_130),
        ((1, 28, 28), "FC10", 7_850),
        ((1, 28, 28), "C3x64, P2, FC256, FC128, FC47", 2_808_751),
        ((1, 28, 28), "[C3x128 same]x2, P2, [C3x64]x2, P2, FC256, FC128, FC47", 708_399),
        ((3, 32, 32), "C3x32 same, P2, C3x64 same, C3x64 same, P2, FC512, drop .5, FC10", 2_159_114),
    ],
)
def test_the_books_networks_have_their_parameters(shape, chain, parameters):
    classes = int(chain.rpartition("FC")[2])
    assert sum(p.numel() for p in make(chain, shape, classes, check=False).parameters()) == parameters
    assert evaluate(shape, chain).parameters == parameters


@pytest.mark.parametrize(
    ("chain", "net"),
    [
        (
            "C3x6 same, BN, P2, C3x8, tanh, drop .3, FC16, FC",
            lambda: nn.Sequential(
                nn.Conv2d(3, 6, 3, padding="same"), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3),
                nn.Tanh(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(160, 16), nn.ReLU(), nn.Linear(16, 4),
            ),
        ),
        (
            "C3x5x8 s2 p2 d2 nobias, leaky .1, A3s2, T4x6 s2 p1, PReLU, C3x6 g2 same, linear, GAP, FC8, GELU, FC",
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, (3, 5), 2, 2, 2, bias=False), nn.LeakyReLU(0.1), nn.AvgPool2d(3, 2),
                nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.PReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=2),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4),
            ),
        ),
        (
            "C1x4, softplus, flatten, FC8, leaky relu, FC8, sigmoid, FC6, ELU, FC6, SiLU, linear, FC, linear",
            lambda: nn.Sequential(
                nn.Conv2d(3, 4, 1), nn.Softplus(), nn.Flatten(), nn.Linear(672, 8), nn.LeakyReLU(0.2), nn.Linear(8, 8),
                nn.Sigmoid(), nn.Linear(8, 6), nn.ELU(), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 4),
            ),
        ),
    ],
)  # fmt: skip
def test_outputs_are_those_of_the_same_layers_in_torch(chain, net):
    ours, theirs = make(chain).eval(), net().eval()
    weights = list(ours.state_dict().values())
    assert [w.shape for w in weights] == [w.shape for w in theirs.state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights)))
    images = torch.randn(2, 3, 12, 14)
    torch.testing.assert_close(ours(images).logits, theirs(images))
    formula = evaluate((3, 12, 14), chain.replace("FC, linear", "FC").removesuffix("FC") + "FC4")
    assert formula.parameters == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(("size", "stride"), [((12, 14), 2), ((13, 15), 3)])
def test_same_padding_with_a_stride_is_the_window_at_every_stride(size, stride):
    torch.manual_seed(0)
    images = torch.rand(2, 3, *size)
    net = make(f"C3x5 s{stride} same, linear, P3s{stride} same, A3s{stride} same, FC", (3, *size)).eval()
    conv, _, pool, average = net.trunk["chain"]
    wide = F.conv2d(
        images, conv.layer.weight, conv.layer.bias, padding=1
    )  # centered: SAME moves the grid, if total is odd
    rows, columns = [(-(-n // stride) - 1) * stride + 3 - n for n in size]
    first = [1 - max(0, total) // 2 for total in (rows, columns)]
    x = wide[:, :, first[0] :: stride, first[1] :: stride][:, :, : -(-size[0] // stride), : -(-size[1] // stride)]
    torch.testing.assert_close(conv(images), x)
    assert pool(-1 - images.new_zeros(1, 5, 4, 4)).max() == -1  # added pixels never win
    torch.testing.assert_close(average(torch.ones(1, 5, 5, 4)), torch.ones(1, 5, -(-5 // stride), -(-4 // stride)))


def test_activations_that_torch_lacks():
    net = make("FC6, threshold, noise .5, FC")
    step, noise = net.trunk["chain"].threshold1, net.trunk["chain"].noise1
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], requires_grad=True)
    y = step(x)
    y.sum().backward()
    assert y.tolist() == [0, 0, 0, 1, 1]
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    zeros = torch.zeros(20_000)
    assert float(noise.train()(zeros).std()) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(noise.eval()(zeros), zeros)


def test_the_default_activation_can_be_another_or_none():
    kinds = lambda **kwargs: [type(m).__name__ for m in make("C3x4, BN, FC8, tanh, FC", **kwargs).trunk["chain"]]  # noqa: E731
    assert kinds() == ["Conv2d", "BatchNorm2d", "ReLU", "Flatten", "Linear", "Tanh"]
    assert kinds(activation="SiLU")[2] == "SiLU"
    assert kinds(activation="linear")[2] == "Identity"


GRAPH = {
    "nodes": {
        "stem": "C3x8 same, BN",
        "left": {"layers": "C3x8 same, P2", "from": "stem"},
        "right": {"same": "left", "from": "stem"},
        "middle": {"layers": "FC", "from": "stem"},
        "sum": {"layers": "C1x6, linear", "from": ["left", "right"], "join": "add"},
        "both": {"layers": "FC5, FC", "from": ["sum", "left"], "join": "concat"},
    }
}


def test_a_graph_computes_what_it_says():
    net = make(graph=GRAPH).train()
    trunk, images = net.trunk, torch.randn(3, 3, 12, 14)
    stem = F.relu(trunk["stem"].norm1(trunk["stem"].conv1(images)))
    left = F.max_pool2d(F.relu(trunk["left"].conv1(stem)), 2)
    both = torch.cat([trunk["sum"].conv1(2 * left), left], 1).flatten(1)
    found = net(images)
    torch.testing.assert_close(found.logits, net.heads["both"](F.relu(trunk["both"].dense1(both))))
    (auxiliary,) = found.auxiliary
    torch.testing.assert_close(auxiliary, net.heads["middle"](stem.flatten(1)))
    assert "right" not in trunk
    assert net.eval()(images).auxiliary == ()
    assert net.feature_info == [(8, 1), (6, 2)]
    check_model("layers", {"graph": GRAPH}, in_channels=(1,), image_sizes=((12, 14),), overfit_steps=60)


def test_trunk_and_head_are_found():
    net = make("C3x8, BN, P2, FC16, FC")
    assert head_of(net) == {"heads.chain.weight", "heads.chain.bias"}
    name, layer = last_layer(net)
    assert (name, layer.in_features) == ("heads.chain", 16)
    assert [block.name for block in blocks_of(net)][-1] == "head"


@pytest.mark.parametrize(
    ("chain", "error", "message"),
    [
        ("C3x8, P2, FC16", ConfigError, "the last dense layer is 'FC16', and there are 4 classes"),
        (
            "C3x8, FC, softmax",
            ConfigError,
            "'softmax' stands behind the last FC: the loss takes the logarithm of a softmax",
        ),
        ("FC4, sigmoid", ConfigError, "a second one leaves hardly a gradient"),
        ("FC, ReLU", ConfigError, "it would cut off all negative logits"),
        ("FC, drop .5", ConfigError, "'drop .5' stands behind the last FC"),
        ("C3x8, GAP", ConfigError, "does not end in FC"),
        ("C3x8, relish, FC", ConfigError, "'relish' is no layer"),
        ("P2, P2, C3x8, C5x8, FC", ShapeError, "layer 4 ('C5x8') cannot take 8 x 1 x 1"),
        ("C3x8, GAP, P2, FC", ShapeError, "layer 3 ('P2') cannot take 8: it needs a map"),
        ("C3x8 g2, FC", ShapeError, "layer 1 ('C3x8 g2') cannot take 3 x 12 x 14"),
        ("FC8, drop 40, FC", ShapeError, "('drop 40')"),
        ("FC0, FC", ConfigError, "'FC0' has no unit"),
    ],
)
def test_chains_that_are_refused(chain, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make(chain)


@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        ({"a": "C3x8"}, ConfigError, "no node ends in FC"),
        ({"a": "C3x8", "b": {"layers": "FC", "from": "input"}}, ConfigError, "nothing takes what node 'a' gives"),
        ({"a": "FC", "b": {"layers": "FC", "from": "a"}}, ConfigError, "node 'a' ends in the classes"),
        ({"a": "C3x8", "b": {"layers": "FC", "from": "aa"}}, UnknownName, "'aa'"),
        ({"a": "C3x8", "b": {"layer": "FC"}}, UnknownName, "layers"),
        ({"a": "C3x8", "b": {"same": "a"}, "c": "FC"}, ShapeError, "cannot share the weights of 'a'"),
        (
            {"a": "C3x8", "b": {"layers": "FC", "from": ["a", "input"], "join": "add"}},
            ShapeError,
            "a is 8 x 10 x 12, input is 3 x 12 x 14",
        ),
        ({"a": "C3x8", "b": "P2, FC, softmax"}, ConfigError, "stands behind the last FC"),
        ({"a": "C3x8, C15x2", "b": "FC"}, ShapeError, "of node 'a' cannot take 8 x 10 x 12"),
    ],
)  # fmt: skip
def test_graphs_that_are_refused(nodes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make(graph={"nodes": nodes})


def test_pictures_of_another_size_type_or_layout_are_refused():
    fixed, free = make("C3x8, P2, FC").eval(), make("C3x8, P2, GAP, FC").eval()
    with pytest.raises(ShapeError, match=re.escape("(B, 3, 12, 14); got (2, 3, 12, 12)")):
        fixed(torch.rand(2, 3, 12, 12))
    assert free(torch.rand(2, 3, 20, 9)).logits.shape == (2, 4)
    with pytest.raises(ShapeError, match=r"looks like \(B, H, W, C\)"):
        free(torch.rand(2, 12, 14, 3))
    with pytest.raises(RuntimeError, match=r"(?i)double.*float"):  # torch names both types
        free(torch.rand(2, 3, 12, 14, dtype=torch.float64))
    with pytest.raises(ConfigError, match="chain or graph"):
        make()


def test_pictures_whose_channels_stand_elsewhere_are_named():
    with pytest.raises(ConfigError, match=r"got \(30, 40, 3\). This looks like \(H, W, C\): give image.permute"):
        as_sample(torch.zeros(30, 40, 3))
    with pytest.raises(ConfigError, match=r"got \(3, 30, 40\). This looks like \(C, H, W\): give image.transpose"):
        as_sample(np.zeros((3, 30, 40), np.float32))
    model = Normalized(nn.Identity(), ImageSpec(3), [0.5], [0.5])
    with pytest.raises(ShapeError, match=r"got \(2, 30, 40, 3\). This looks like \(B, H, W, C\)"):
        model(torch.zeros(2, 30, 40, 3))
    with pytest.raises(ShapeError, match=r"\(B, 3, H, W\); got \(2, 1, 30, 40\)\.$"):
        model(torch.zeros(2, 1, 30, 40))
    assert model(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)).dtype == torch.float32
