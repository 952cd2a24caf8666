"""Normalization inside the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from opsin.errors import ConfigError, ShapeError
from opsin.layers.normalize import Normalized
from opsin.models import ModelSpec, build
from opsin.task import ImageSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small pictures are fastest on one thread, above all where tests share the processor with other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("dtype", "value_range", "torch_dtype"),
    [
        ("uint8", (0.0, 255.0), torch.uint8),
        ("uint16", (0.0, 65535.0), torch.uint16),
        ("uint16", (100.0, 4095.0), torch.uint16),
        ("float32", (-1.0, 1.0), torch.float32),
        ("uint8", (0.0, 255.0), torch.float32),  # augmented in float32, range kept
    ],
)
def test_equals_the_formula(dtype, value_range, torch_dtype):
    low, high = value_range
    rng = np.random.default_rng(0)
    pixels = rng.uniform(low, high, (2, 3, 5, 4))
    pixels = pixels if torch_dtype == torch.float32 else pixels.round()
    model = Normalized(nn.Identity(), ImageSpec(3, dtype, value_range), MEAN, STD)
    images = torch.from_numpy(pixels).to(torch_dtype)
    expected = ((pixels - low) / (high - low) - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    before = images.clone()
    torch.testing.assert_close(model(images), torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(images, before)
    assert model(images).dtype == torch.float32
    assert model.double()(images).dtype == torch.float64


def test_double_precision_is_double():
    model = Normalized(nn.Identity(), ImageSpec(1), (0.5,), (0.25,)).double()
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    expected = (images.double() / 255 - 0.5) / 0.25
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-15)


def test_layout_autocast_gradient_and_state():
    model = Normalized(nn.Conv2d(3, 4, 3), ImageSpec(), MEAN, STD)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8).to(memory_format=torch.channels_last)
    assert model.normalize(images).is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.normalize(images).dtype == torch.float32
        assert model(images).dtype == torch.bfloat16
    floats = images.float().requires_grad_()
    model(floats).sum().backward()
    assert floats.grad.abs().sum() > 0
    assert set(model.state_dict()) == {"mean", "std", "net.weight", "net.bias"}


def test_one_value_for_all_channels():
    model = Normalized(nn.Identity(), ImageSpec(channels=4), (0.5,), (0.5,))
    assert torch.equal(model(torch.full((1, 4, 2, 2), 255, dtype=torch.uint8)), torch.ones(1, 4, 2, 2))


def test_exports_with_uint8_pixels():
    net = build(ModelSpec("smallnet", {"widths": [8, 16, 16]}, 3, 4, (32, 32)))
    model = Normalized(net, ImageSpec(), MEAN, STD).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.testing.assert_close(program.module()(images).logits, model(images).logits, rtol=1e-5, atol=1e-5)


def test_exports_to_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    net = build(ModelSpec("smallnet", {"widths": [8, 16, 16]}, 3, 4, (32, 32)))
    model = Normalized(net, ImageSpec(), MEAN, STD).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model, (images[:2],), path, dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    session = runtime.InferenceSession(path)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(logits, model(images).logits.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "mean", "std", "message"),
    [
        (ImageSpec(), (0.5, 0.5), (1.0,), "expected 3 values"),
        (ImageSpec(), (0.5,), (1.0, 0.0, 1.0), "expected positive"),
        (ImageSpec(range=(1.0, 1.0)), (0.5,), (1.0,), "empty"),
    ],
)
def test_settings_that_do_not_fit(spec, mean, std, message):
    with pytest.raises(ConfigError, match=message):
        Normalized(nn.Identity(), spec, mean, std)


def test_other_channels_are_refused():
    model = Normalized(nn.Identity(), ImageSpec(), MEAN, STD)
    with pytest.raises(ShapeError, match=r"\(B, 3, H, W\); got \(2, 1, 4, 4\)"):
        model(torch.zeros(2, 1, 4, 4))
