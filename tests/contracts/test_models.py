"""Every registered network, a few of timm's and a person's own obey the contract (`opsin.testing.check_model`)."""

from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from tests.tiny import CLASSIFIERS, TINY
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


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_registered(name):
    check_model(name, TINY[name].kwargs, image_sizes=TINY[name].sizes)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_registered_at_full_size(name):
    check_model(name, in_channels=(3,), image_sizes=((224, 224),), overfit_steps=0)


@pytest.mark.parametrize(
    ("name", "kwargs", "size"),
    [
        ("vgg13", {"width": 4, "hidden": 16, "head": "3-dense"}, (64, 48)),
        ("vgg13_bn", {"width": 4, "head": "1-dense"}, (64, 48)),
        ("squeezenet1_1", {"width": 4, "rectified_logits": True}, (48, 32)),
        ("densenet121", {"growth_rate": 4, "width": 8, "depths": (2, 1, 1), "dropout": 0.2}, (32, 32)),
        ("resnext50_32x4d", {"width": 8, "group_width": 1, "zero_init_residual": True}, (64, 64)),
    ],
)
def test_other_arguments(name, kwargs, size):
    check_model(name, kwargs, in_channels=(2,), image_sizes=(size,), overfit_steps=0, export=False)


@pytest.mark.parametrize(
    ("name", "kwargs", "smallest"),
    [
        ("alexnet", {}, 63),
        ("alexnet_2012", {}, 67),
        ("vgg11", {}, 32),
        ("squeezenet1_0", {}, 21),
        ("squeezenet1_1", {}, 17),
        ("densenet121", {}, 29),
        ("densenet121", {"depths": (1, 1)}, 5),
    ],
)
def test_the_smallest_picture(name, kwargs, smallest):
    def spec(*size):
        return ModelSpec(name, {**TINY[name].kwargs, **kwargs}, 3, 4, size)

    build(spec(smallest, smallest + 9))
    with pytest.raises(
        ShapeError, match=f"{smallest} x {smallest} pixels or more; got {smallest + 9} x {smallest - 1}"
    ):
        build(spec(smallest + 9, smallest - 1))


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
        ("resnet18", {"stem": "jpeg"}, 3, ConfigError, "stem = 'jpeg'; expected one of imagenet, cifar, deep"),
        ("vgg11", {"head": "none"}, 3, ConfigError, "head = 'none'; expected '3-dense', '1-dense' or 'pool'"),
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
        self.ignored = nn.Parameter(torch.ones(3)) if how in ("idle", "infinite") else None
        self.scale = nn.Parameter(torch.zeros(())) if how == "zero scale" else None
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)
        self.unused = nn.Linear(2, 2) if how == "unused" else None
        self.feature_info = [(width + 1, 1)]
        if how == "pyramid":
            self.forward_pyramid = lambda x: [self.conv(x)]
        if how in ("pooled", "valid"):
            self.feature_info = [(width, 2)]
            self.forward_pyramid = lambda x: [
                self.conv(x)[..., :4, :4] if how == "pooled" else self.conv(x)[..., 3::2, 3::2]
            ]
        if how == "other head":
            self.head_names = ("conv", "fc")
        if how == "hidden head":
            self.head_names = ("conv",)
        self.fc = nn.Linear(width, num_classes)
        self.secret = torch.rand(num_classes)

    def forward(self, x: Tensor) -> Extra | Classified | Tensor:
        if self.how == "batch":
            x = x - x.mean(0)
        maps = self.conv(x)
        if self.how == "rounding":
            maps = (maps + 1000) - 1000
        if self.how == "types":
            maps = torch.zeros(maps.shape, dtype=x.dtype).index_add(0, torch.arange(len(maps)), maps)
        if self.how == "range":
            maps = (maps * 1e36).square().sqrt() / 1e36 if maps.dtype == torch.bfloat16 else maps
        logits = self.fc(torch.relu(maps).amax((2, 3)))
        if self.how == "idle":
            logits = logits + 0 * self.ignored.sum()
        if self.how == "infinite":
            logits = logits + (self.ignored - 1).abs().sum().sqrt()
        if self.how == "zero scale":
            logits = logits * self.scale
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
        ("idle", "gradient of parameter 'ignored' is zero on two batches"),
        ("infinite", "gradient of parameter 'ignored' is not finite"),
        ("pooled", r"and \(2, 16, 4, 4\) for those 2 pixels larger; feature_info declares 16 channels and stride 2"),
        ("rounding", "under bfloat16 autocast differ from those in float32"),
        ("range", "under bfloat16 autocast are not finite"),
        ("types", "forward under bfloat16 autocast fails"),
        ("other head", "head_names has 'conv'; no weight of that name"),
        ("hidden head", "'fc.bias' depends on the number of classes"),
    ],
)
def test_the_check_finds(how, message):
    with pytest.raises(ContractError, match=message):
        check_model(Broken, {"how": how}, in_channels=(2,), image_sizes=((8, 8),))


@pytest.mark.parametrize("how", ["valid", "zero scale"])
def test_the_check_accepts(how):
    check_model(Broken, {"how": how}, in_channels=(2,), image_sizes=((8, 8),), overfit_steps=0)


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
