"""Our residual networks against torchvision's, and parameter counts against the published ones."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from opsin.models import ModelSpec, build
from opsin.models.backbones.resnet import resnet18, resnet34, resnet50
from opsin.models.weights import load_weights

BUILDERS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small pictures are fastest on one thread, above all where tests share the processor with other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", BUILDERS)
def test_state_dict_outputs_and_gradients_equal_torchvision(name):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=7)
    for module in theirs.modules():  # running statistics and scales that matter
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.2, 0.5)
    ours = BUILDERS[name](num_classes=7)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        x = torch.randn(2, 3, 64, 64)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        out_a, out_b = ours(a).logits, theirs(b)
        weight = torch.randn_like(out_a)
        (out_a * weight).sum().backward()
        (out_b * weight).sum().backward()
        torch.testing.assert_close(out_a, out_b, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")
    for key, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, theirs.get_buffer(key), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kwargs", "channels", "size", "classes", "count"),
    [
        ("resnet18", {}, 3, 224, 1000, 11_689_512),
        ("resnet34", {}, 3, 224, 1000, 21_797_672),
        ("resnet50", {}, 3, 224, 1000, 25_557_032),
        ("resnet18", {"stem": "cifar"}, 3, 32, 10, 11_173_962),  # the count that CIFAR ResNet-18 papers print
        ("smallnet", {}, 3, 32, 10, 1_857_946),  # ours: as its header says
        ("b2-mnist", {}, 1, 28, 10, 3_362_570),
        ("b2-simple-cnn", {}, 1, 28, 10, 18_960_138),
        ("linear", {}, 1, 28, 10, 7_850),
        ("mlp", {"hidden": [30]}, 1, 28, 10, 23_860),
        ("mlp", {"hidden": [256, 128]}, 1, 28, 47, 239_919),
    ],
)
def test_parameter_counts(name, kwargs, channels, size, classes, count):
    assert _count(build(ModelSpec(name, kwargs, channels, classes, (size, size)), check=False)) == count


def test_a_torchvision_file_loads(tmp_path):
    theirs = torchvision.models.resnet18(weights=None)
    path = tmp_path / "resnet18-f37072fd.pth"
    torch.save(theirs.state_dict(), path)
    ours = resnet18()
    report = load_weights(ours, path)
    assert report.complete
    assert not report.unexpected
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x).logits, theirs.eval()(x))


def test_zero_init_residual_starts_stages_as_projections():
    model = resnet18(width=8, zero_init_residual=True)
    x = torch.rand(2, 8, 8, 8)  # not negative, so the block's last ReLU changes nothing
    assert torch.equal(model.layer1(x), x)
    assert not torch.equal(resnet18(width=8).layer1(x), x)
