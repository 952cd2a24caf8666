"""Every registered network, a few of timm's and a person's own obey the contract (`opsin.testing.check_model`)."""

from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from tests.tiny import TINY
from torch import Tensor, nn

from opsin.errors import ConfigError, ShapeError, UnknownName
from opsin.models import Classified, ModelSpec, build, models, resolve
from opsin.seeding import torch_seeded
from opsin.testing import ContractError, check_model

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.fc = nn.Linear(width, num_classes)
    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).amax((2, 3)))

def dictionary(num_classes=2):
    class AsDict(Net):
        def forward(self, x):
            return {"logits": super().forward(x), "other": 1}
    return AsDict(num_classes)

def wide(**kwargs):
    return Net(4)

def text(num_classes):
    class Text(nn.Module):
        def forward(self, x):
            return "cat"
    return Text()

def number(num_classes):
    return 3

built = Net(5)
"""


@pytest.fixture(autouse=True)
def _one_thread():
    """Small pictures are fastest on one thread, above all where tests share the processor with other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "my_nets.py"
    path.write_text(MODULE)
    return path


@pytest.mark.parametrize("name", models)
def test_registered(name):
    check_model(name, TINY[name].kwargs, image_sizes=TINY[name].sizes)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_cifar_stem(name):
    check_model(name, {"width": 8, "stem": "cifar"}, image_sizes=((32, 28),), overfit_steps=0, export=False)


@pytest.mark.parametrize(
    ("name", "kwargs", "size"),
    [
        ("timm/resnet18", {"channels": (8, 16, 24, 32), "stem_width": 8}, (64, 48)),
        ("timm/mobilenetv2_050", {}, (64, 64)),
        ("timm/vit_tiny_patch16_224", {"depth": 2, "embed_dim": 48}, (32, 48)),
    ],
)
def test_timm(name, kwargs, size):
    check_model(name, kwargs, in_channels=(1,), image_sizes=(size,))


def test_a_persons_own_module(user_file):
    check_model(f"{user_file}:Net", {"width": 16}, in_channels=(3,))
    check_model(f"{user_file}:dictionary", in_channels=(3,), overfit_steps=0, export=False)


def test_a_persons_own_file_is_wrapped_the_same_in_both_modes(user_file):
    model = build(ModelSpec(f"{user_file}:Net", {}, 3, 4, (16, 16)))
    for training in (True, False):
        assert type(model.train(training)(torch.zeros(2, 3, 16, 16))) is Classified
    assert build(ModelSpec(f"{user_file}:built", {}, 3, 5, (16, 16))).net is not None


def test_torchvision_by_reference_gets_num_classes():
    model = build(ModelSpec("torchvision.models:squeezenet1_1", {}, 3, 6, (64, 64)))
    assert model(torch.zeros(2, 3, 64, 64)).logits.shape == (2, 6)


def test_build_uses_torch_generator_and_leaves_it_after_the_check():
    spec = ModelSpec("smallnet", {"widths": [8, 16, 16]}, 1, 3, (28, 28))
    with torch_seeded("x"):
        a = build(spec)
        after = torch.rand(1)
    with torch_seeded("x"):
        b = build(spec, check=False)
        assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert a.training


def test_mirrored_small_net_gives_mean_logits_of_both_images():
    kwargs = {"widths": [8, 16, 16], "depths": [0, 1, 1]}
    with torch_seeded("mirror"):
        plain, images = build(ModelSpec("smallnet", kwargs, 3, 4, (28, 28))), torch.rand(3, 3, 28, 28)
    both = build(ModelSpec("smallnet", {**kwargs, "mirror": True}, 3, 4, (28, 28)))
    both.load_state_dict(plain.state_dict())
    assert torch.equal(both.train()(images).logits, plain.train()(images).logits)
    both.eval(), plain.eval()
    both.load_state_dict(plain.state_dict())
    expected = (plain(images).logits + plain(torch.flip(images, [-1])).logits) / 2
    assert torch.equal(both(images).logits, expected)
    assert torch.allclose(both(images.flip(3)).logits, expected, atol=1e-6)


def test_auto_and_round_trip():
    assert resolve(ModelSpec(image_size=(28, 28))).name == "smallnet"
    assert resolve(ModelSpec(image_size=(28, 41))).name == "resnet18"
    spec = ModelSpec("mlp", {"hidden": [3]}, 1, 2, (5, 6))
    assert ModelSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("name", "kwargs", "channels", "error", "message"),
    [
        ("resnet81", {}, 3, UnknownName, "Did you mean 'resnet18'"),
        (
            "resnet18",
            {"stm": "cifar"},
            3,
            ConfigError,
            r"no argument 'stm' \(did you mean 'stem'\?\)\. It takes: stem, width",
        ),
        ("resnet18", {"num_classes": 3}, 3, ConfigError, "'num_classes' is set from the data"),
        ("resnet18", {"stem": "jpeg"}, 3, ConfigError, "expected 'imagenet' or 'cifar'"),
        ("smallnet", {"widths": [8]}, 3, ConfigError, "and one depth of 0 or more for each"),
        ("mlp", {"hidden": []}, 3, ConfigError, "one positive width or more"),
        ("b2-mnist", {"hidden": "many"}, 3, ConfigError, "could not be built with hidden='many'"),
        ("timm/resnt18", {}, 3, UnknownName, "Did you mean 'resnet18'"),
        ("timm/resnet18.z9", {}, 3, UnknownName, "tag"),
        ("timm/hf-hub:somebody/model", {}, 3, UnknownName, "timm.list_models"),
        ("timm/resnet10t", {"drop_rte": 0.1}, 3, ConfigError, "no argument 'drop_rte'. Did you mean 'drop_rate'"),
        ("timm/resnet10t", {"pretrained": True}, 3, ConfigError, "--weights"),
        ("FILE:Net", {"witdh": 3}, 3, ConfigError, "did you mean 'width'"),
        ("FILE:Net", {}, 1, ShapeError, r"cannot take pictures of shape \(2, 1, 32, 32\)"),
        ("FILE:wide", {}, 3, ShapeError, r"gave logits \(2, 4\) for 2 pictures; expected \(2, 10\)"),
        ("FILE:text", {}, 3, ConfigError, "must return logits"),
        ("FILE:number", {}, 3, ConfigError, "returned int; expected a torch.nn.Module"),
        ("FILE:built", {"width": 3}, 3, ConfigError, "built already"),
        ("torch:pi", {}, 3, ConfigError, "'torch:pi' is float"),
    ],
)
def test_messages(name, kwargs, channels, error, message, user_file):
    with pytest.raises(error, match=message):
        build(ModelSpec(name.replace("FILE", str(user_file)), kwargs, channels, 10, (32, 32)))


def test_timm_names_its_license_and_preprocessing():
    model = build(ModelSpec("timm/resnet10t", {}, 3, 4, (64, 64)))
    assert {"license", "mean", "std", "input_size", "interpolation"} <= set(model.pretrained_cfg)
    assert model.head_names == ("net.fc",)


class Extra(NamedTuple):
    logits: Tensor
    mask: Tensor


class Broken(nn.Module):
    """Breaks one rule of the contract, chosen by `how`."""

    def __init__(self, num_classes: int, in_channels: int, how: str = "", width: int = 16) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)
        self.unused = nn.Linear(2, 2) if how == "unused" else None
        self.feature_info = [(width + 1, 1)]
        if how == "pyramid":
            self.forward_pyramid = lambda x: [self.conv(x)]
        self.fc = nn.Linear(width, num_classes)
        self.secret = torch.rand(num_classes)

    def forward(self, x: Tensor) -> Extra | Classified | Tensor:
        if self.how == "batch":
            x = x - x.mean(0)
        logits = self.fc(torch.relu(self.conv(x)).amax((2, 3)))
        if self.how == "nan":
            logits = logits / 0
        if self.how == "float":
            logits = logits.float()
        if self.how == "secret":
            logits = logits + self.secret.to(logits)
        if self.how == "detached":
            logits = logits.detach().requires_grad_()
        if self.how == "train" and self.training:
            return logits
        if self.how == "export" and float(logits.detach().sum()) > 1e9:
            logits = logits * 2
        return Extra(logits, logits > 0)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unused", "parameter 'unused.weight' gets no gradient"),
        ("detached", "gets no gradient"),
        ("batch", "one by one differ"),
        ("nan", "not finite"),
        ("float", "expected torch.float64"),
        ("secret", "part of the state not saved"),
        ("train", "in training returned Tensor"),
        ("pyramid", "declares 17 channels and stride 1"),
        ("export", "torch.export refuses"),
    ],
)
def test_the_check_finds(how, message):
    with pytest.raises(ContractError, match=message):
        check_model(Broken, {"how": how}, in_channels=(2,), image_sizes=((8, 8),))


def test_the_check_accepts_more_outputs_and_wants_learning():
    check_model(Broken, in_channels=(2,), image_sizes=((8, 8),))
    with pytest.raises(ContractError, match="were not learned in 2 steps"):
        check_model(Broken, in_channels=(2,), image_sizes=((8, 8),), overfit_steps=2)


def test_listing_loads_no_torch():
    code = "import sys; from opsin.models import models, ModelSpec, resolve; list(models); resolve(ModelSpec())"
    subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], check=True)
    code = "import sys; import opsin.models.builder; sys.exit('timm' in sys.modules or 'torchvision' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_network_has_a_tiny_variant():
    assert set(TINY) == set(models)
