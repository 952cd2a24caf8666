"""The calculators and the chain notation: figures worked out in the literature, and torch's own layers."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from opsin.analyze import calculators as calc
from opsin.analyze.calculators import Field
from opsin.analyze.chain import evaluate, picture
from opsin.errors import ConfigError, ShapeError
from opsin.layers.notation import read_layers

small = st.integers(1, 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), small, small, st.integers(0, 3), small)
def test_sizes_equal_torchs(size, kernel, stride, padding, dilation):
    x = torch.empty(1, 1, size, device="meta")
    convolution = nn.Conv1d(1, 1, kernel, stride, padding, dilation, device="meta")
    transposed = nn.ConvTranspose1d(1, 1, kernel, stride, padding, dilation=dilation, device="meta")
    if dilation * (kernel - 1) + 1 > size + 2 * padding:
        with pytest.raises(ShapeError, match="does not fit"):
            calc.output_size(size, kernel, stride, padding, dilation)
    else:
        assert calc.output_size(size, kernel, stride, padding, dilation) == convolution(x).shape[-1]
        before, after = calc.same_padding(size, kernel, stride, dilation)
        padded = nn.functional.pad(x, (before, after))
        if padded.shape[-1] >= dilation * (kernel - 1) + 1:
            same = nn.Conv1d(1, 1, kernel, stride, 0, dilation, device="meta")(padded).shape[-1]
            assert same == calc.output_size(size, kernel, stride, "same", dilation) == -(-size // stride)
    back = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1
    assume(back >= 1)
    assert calc.transposed_size(size, kernel, stride, padding, dilation) == transposed(x).shape[-1]


def test_figures_of_single_layers():
    assert calc.output_size(28, 5, padding="valid") == 24
    assert calc.output_size(28, 3, stride=2, padding="same") == 14
    assert calc.conv_parameters((5, 5), 3, 10) == 760
    assert calc.dense_parameters(32 * 32 * 3, 10) == 30_730
    assert calc.conv_parameters((3, 3), 3, 64) == 1_792
    assert calc.norm_parameters(64) == (128, 128)
    assert calc.conv_macs((3, 3), 3, 64, (224, 224)) == 86_704_128
    assert calc.dense_macs(224 * 224 * 3, 64) == 9_633_792
    assert calc.conv_parameters((7, 7), 512, 4096) == 102_760_448 + 4_096 == calc.dense_parameters(7 * 7 * 512, 4096)
    assert calc.conv_parameters((3, 3), 64, 64, groups=64, bias=False) == 9 * 64


def test_branch_with_and_without_squeeze():
    assert evaluate((192, 28, 28), "C5x32 same").macs == 120_422_400
    squeezed = evaluate((192, 28, 28), "C1x16, C5x32 same")
    assert [row.macs for row in squeezed.rows[1:]] == [2_408_448, 10_035_200]
    assert squeezed.macs == 12_443_648


def test_cascades_keep_the_field_and_save_parameters():
    channels = 64
    wide = evaluate((channels, 32, 32), f"C7x{channels} same nobias")
    three = evaluate((channels, 32, 32), f"[C3x{channels} same nobias]x3")
    neck = evaluate(
        (channels, 32, 32), f"C1x{channels // 2} nobias, C3x{channels // 2} same nobias, C1x{channels} nobias"
    )
    assert (wide.parameters, three.parameters) == (49 * channels**2, 27 * channels**2)
    assert wide.rows[-1].field == three.rows[-1].field == Field(7, 1, 0.5)
    assert neck.parameters == 3.25 * channels**2


VGG16 = (
    "[C3x64 same]x2, P2, [C3x128 same]x2, P2, [C3x256 same]x3, P2, [C3x512 same]x3, P2, [C3x512 same]x3, P2, "
    "FC4096, drop .5, FC4096, drop .5, FC1000"
)


def test_receptive_fields():
    found = evaluate((1, 64, 64), "C3x1, C3x1, P2, C3x1").rows[-1].field
    assert (found.size, found.jump) == (10, 2)
    fields = [row.field for row in evaluate((3, 224, 224), VGG16).rows]
    assert (fields[17].size, fields[17].jump) == (196, 16)
    assert (fields[18].size, fields[18].jump) == (212, 32)
    assert fields[19].whole


@pytest.mark.parametrize(
    "modules",
    [
        [nn.Conv1d(1, 1, 3, 2, 1), nn.Conv1d(1, 1, 5, 1, 0, 2)],
        [nn.Conv1d(1, 1, 4, 2), nn.MaxPool1d(3, 2), nn.Conv1d(1, 1, 3, padding=1)],
        [nn.Conv1d(1, 1, 3, 2), nn.ConvTranspose1d(1, 1, 3)],
    ],
)
def test_fields_and_centers_against_gradients(modules):
    field = Field()
    for module in modules:
        nums = [value if isinstance(value, int) else value[0] for value in (module.kernel_size, module.stride)]
        pad, dilation = (v if isinstance(v, int) else v[0] for v in (module.padding, module.dilation))
        step = field.after_transposed if isinstance(module, nn.ConvTranspose1d) else field.after
        field = step(*nums, pad, dilation)
        for parameter in module.parameters():
            nn.init.ones_(parameter)
    x = torch.linspace(1, 2, 64).view(1, 1, -1).requires_grad_()
    # A maximum lets one gradient through; the average over the same window lets all.
    swapped = [nn.AvgPool1d(m.kernel_size, m.stride) if isinstance(m, nn.MaxPool1d) else m for m in modules]
    y = nn.Sequential(*swapped)(x)
    cell = y.shape[-1] // 2
    seen = torch.autograd.grad(y[0, 0, cell], x)[0].flatten().nonzero().flatten()
    assert seen[-1] - seen[0] + 1 == field.size
    assert (seen[0] + seen[-1]) / 2 + 0.5 == field.start + cell * field.jump


def test_memory_of_vgg16():
    found = evaluate((3, 224, 224), VGG16)
    assert found.parameters == 138_357_544
    assert found.values == 15_237_608
    assert round(4 * found.values / 2**20, 1) == 58.1
    assert round(4 * found.parameters / 2**20, 1) == 527.8
    assert round(calc.training_memory(found.parameters, 0) / 2**30, 2) == 2.06
    assert found.memory(8, "momentum") == 4 * (3 * 138_357_544 + 8 * 15_237_608)
    assert found.memory(1, "none") < found.memory(1, "sgd") < found.memory(1, "momentum") < found.memory(1, "adam")
    assert found.peak == 2 * 64 * 224 * 224


def test_worked_convolution():
    image = [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]
    kernel = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    x, w = torch.tensor(image, dtype=torch.float), torch.tensor(kernel, dtype=torch.float)
    y = nn.functional.conv2d(x[None, None], w[None, None])
    assert y[0, 0].tolist() == [[4, 3, 4], [2, 4, 3], [2, 3, 4]]
    assert evaluate((1, 5, 5), "C3x1").rows[-1].shape == (1, 3, 3)
    assert evaluate((1, 5, 5), "C3x1 p1").rows[-1].shape == (1, 5, 5)


BOOKS = {
    "B1-mnist": ("28x28x1", "C5x32 same, P2, C5x64 same, P2, FC1024, drop .4, FC10", 3_274_634, "13.88 M"),
    "B1-cifar": ("32x32x3", "C5x64 same,P2,C5x64 same,P2,C5x32 same,P2,FC128,FC64,FC10", 233_130, "34.48 M"),
    "B1-encoder": ("28x28x1", "C5x16 s2 same, C5x32 s2 same, FC200, FC10", 329_058, "1.02 M"),
    "B2-linear": ("784", "FC10", 7_850, "7.8 k"),
    "B2-mnist": ("28x28x1", "C3x64 valid, P2, C3x128 valid, P2, FC1024, drop .4, FC10", 3_362_570, "12.60 M"),
    "B2-simple": ("28x28x1", "C3x64, C3x128 valid, P2, drop .3, FC1024, drop .3, FC10", 18_960_138, "61.74 M"),
    "B2-simple-150": ("150x150x3", "C3x64, C3x128, P2, FC1024, FC2", 698_561_410, "2.31 G"),
    "B3-fc": ("28x28x1", "FC256, FC128, FC47", 239_919, "0.24 M"),
    "B3-cnn-1": ("28x28x1", "C3x64 valid, ReLU, P2, flatten, FC256, FC128, FC47", 2_808_751, "3.20 M"),
    "B3-cnn-2": ("28x28", "[C3x128 same]x2, P2, [C3x64 valid]x2, P2, FC256, FC128, FC47", 708_399, "131.26 M"),
    "B4-mlp": ("28x28x1", "FC30, ReLU, FC10", 23_860, "23.8 k"),
    "B4-cifar": ("32x32x3", "C3x32 same,P2,C3x64 same,C3x64 same,P2,FC512,drop .5,FC10", 2_159_114, "17.14 M"),
    "B1-xor": ("2", "FC4, FC8, FC1", 61, None),
    "B1-iris": ("4", "FC3", 15, None),
    "LeNet-5": ("32x32x1", "C5x6, P2, C5x16, P2, FC120, FC84, FC10", 61_706, None),
    "AlexNet": (
        "227x227x3",
        "C11x96 s4, LRN, P3s2, C5x256 g2 p2, LRN, P3s2, C3x384 same, C3x384 g2 same, C3x256 g2 same, P3s2, "
        "FC4096, FC4096, FC1000",
        60_965_224,
        "0.72 G",
    ),
    "VGG-16": ("224x224x3", VGG16, 138_357_544, "15.47 G"),
}


@pytest.mark.parametrize(("image", "text", "parameters", "macs"), BOOKS.values(), ids=list(BOOKS))
def test_networks_of_the_books(image, text, parameters, macs):
    found = evaluate(picture(image), text)
    assert found.parameters == parameters
    if macs is not None:
        number, unit = macs.split()
        digits = len(number.partition(".")[2])
        assert round(found.macs / {"k": 1e3, "M": 1e6, "G": 1e9}[unit], digits) == float(number)


def test_batch_norm_for_every_convolution():
    found = evaluate((1, 28, 28), "[C3x128 same, BN]x2, P2, [C3x64, BN]x2, P2, FC256, FC128, FC47")
    assert found.parameters + found.buffers == 709_935
    assert found.buffers == 768


@pytest.mark.parametrize(("image", "text"), [("3x30x20", "C3x5x8 s2 p1 d2, T4x6 s2 p1 nobias, A2, C3x6 g3 same, P3s2")])
def test_a_chain_equals_torchs_modules(image, text):
    net = nn.Sequential(
        nn.Conv2d(3, 8, (3, 5), 2, 1, 2),
        nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 6, 3, padding=1, groups=3),
        nn.MaxPool2d(3, 2),
    )
    found = evaluate((3, 30, 20), text)
    x = torch.zeros(1, 3, 30, 20)
    for module, row in zip(net, found.rows[1:], strict=True):
        x = module(x)
        assert tuple(x.shape[1:]) == row.shape
        assert sum(p.numel() for p in module.parameters()) == row.parameters


@pytest.mark.parametrize(
    ("image", "text", "error", "message"),
    [
        ("28x28", "C3x8, P2, X7", ConfigError, "'X7' is no layer"),
        ("28x28", "C3x8 q2", ConfigError, "'C3x8 q2' is no layer"),
        ("28 by 28", "FC2", ConfigError, "'28 by 28' is no picture size"),
        ("8x8", "P2, P2, P2, C3x4", ShapeError, r"Layer 4 \('C3x4'\) cannot take 1 x 1 x 1: A kernel of 3"),
        ("8x8", "FC5, C3x4", ShapeError, r"Layer 2 \('C3x4'\) cannot take 5: .*flattened already"),
        ("8x8x3", "C3x4 g2", ShapeError, "cannot be divided into 2 groups"),
        ("8x8x3", "T3x4 same", ShapeError, "not defined for a transposed"),
        ("8x8x3", "C3x4 s0", ShapeError, "stride = 0; expected 1 or more"),
    ],
)
def test_messages(image, text, error, message):
    with pytest.raises(error, match=message):
        evaluate(picture(image), text)


def test_unknown_optimizer_and_default_padding():
    with pytest.raises(ConfigError, match=re.escape("Known: none, sgd, momentum, adam")):
        calc.training_memory(1, 1, optimizer="adagrad")
    assert [layer.padding for layer in read_layers("C3x8, C3x8 valid, P2", "same")] == ["same", "valid", "valid"]
