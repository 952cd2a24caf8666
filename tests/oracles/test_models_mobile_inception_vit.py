"""GoogLeNet, Inception v3, MobileNets and vision transformers against torchvision's and timm's, number by number.

Both networks get the same random weights, scales and running statistics. Dropout has rate 0 in both. Every comparison
is in single precision, to 1e-5 of the largest value of the tensor (or of 1, where values are smaller).
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.efficientnet import _gen_mobilenet_v1
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TheirTransformer

from opsin.errors import CheckpointError, ConfigError, ShapeError
from opsin.layers.channels import rounded_channels
from opsin.models import ModelSpec, build, models
from opsin.models.weights import load_weights

TOLERANCE = 1e-5
FEW = {"num_classes": 7}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small pictures are fastest on one thread, above all where tests share the processor with other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _randomized(model: nn.Module) -> nn.Module:
    """Every weight, scale and running statistic made to matter; convolutions keep the size of what flows."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith(("class_token", "pos_embedding")):
                nn.init.kaiming_normal_(parameter, nonlinearity="linear")
            elif parameter.ndim > 1 or name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
            else:
                nn.init.uniform_(parameter, 0.7, 1.3)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.7, 1.4)
    return model


def _close(what: str, ours: Tensor, theirs: Tensor) -> None:
    scale = max(1.0, float(theirs.detach().abs().max()))
    difference = float((ours - theirs).detach().abs().max()) / scale
    assert difference <= TOLERANCE, f"{what} differ by {difference:.1e} of {scale:.1e}"


def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Logits, then those of auxiliary heads in the order in which the network has them."""
    out = model(images)
    if isinstance(out, Tensor):
        return [out]
    if hasattr(out, "auxiliary"):
        return [out.logits, *out.auxiliary]
    found = out._asdict()  # torchvision: logits, aux_logits2, aux_logits1 or logits, aux_logits
    return [found.pop("logits"), *(found[name] for name in sorted(found))]


def compare(
    ours: nn.Module, theirs: nn.Module, size: tuple[int, int], modes: tuple[bool, ...] = (False, True), batch: int = 4
) -> None:
    """Outputs, gradients of pictures and of every parameter, and running statistics are the same in both modes."""
    _randomized(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for training in modes:
        ours.train(training), theirs.train(training)
        images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(2))
        given = [images.clone().requires_grad_() for _ in range(2)]
        outputs = [_outputs(model, pictures) for model, pictures in zip((ours, theirs), given, strict=True)]
        assert float(outputs[1][0].detach().std()) > 0.05, "the weights leave nothing to compare"
        for i, (a, b) in enumerate(zip(*outputs, strict=True)):
            _close(f"outputs {i}, training={training},", a, b)
        for model, found in zip((ours, theirs), outputs, strict=True):
            model.zero_grad()
            torch.autograd.backward(sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in found))
        _close(f"gradients of pictures, training={training},", given[0].grad, given[1].grad)
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None:
                _close(f"gradients of {name}, training={training},", p.grad, q.grad)
        for name, buffer in ours.named_buffers():
            _close(name, buffer.double(), theirs.get_buffer(name).double())


def ours(name: str, size: tuple[int, int] = (224, 224), channels: int = 3, **kwargs: Any) -> nn.Module:
    """Our network of a name, with few classes."""
    return build(ModelSpec(name, kwargs, channels, FEW["num_classes"], size), check=False)


@pytest.mark.parametrize("transform", [False, True])
def test_googlenet(transform):
    given = {"dropout": 0.0, "transform_input": transform}
    theirs = torchvision.models.googlenet(aux_logits=True, init_weights=False, dropout_aux=0.0, **FEW, **given)
    compare(ours("googlenet", auxiliary=True, auxiliary_dropout=0.0, **given), theirs, (64, 79))


@pytest.mark.parametrize(("auxiliary", "size", "batch"), [(False, (107, 91), 4), (True, (299, 299), 2)])
def test_inception_v3(auxiliary, size, batch):
    given = {"dropout": 0.0, "transform_input": auxiliary}
    theirs = torchvision.models.inception_v3(aux_logits=auxiliary, init_weights=False, **FEW, **given)
    compare(ours("inception_v3", auxiliary=auxiliary, **given), theirs, size, batch=batch)


@pytest.mark.parametrize("width", [1.0, 0.25])
def test_mobilenet_v1(width):
    compare(ours("mobilenet_v1", width=width), _gen_mobilenet_v1("mobilenetv1_100", width, **FEW), (64, 80))


@pytest.mark.parametrize("width", [1.0, 1.4, 0.35])
def test_mobilenet_v2(width):
    theirs = torchvision.models.mobilenet_v2(width_mult=width, dropout=0.0, **FEW)
    compare(ours("mobilenet_v2", width=width, dropout=0.0), theirs, (64, 80))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v3_large"])
@pytest.mark.parametrize("width", [1.0, 0.75])
def test_mobilenet_v3(name, width):
    theirs = torchvision.models.get_model(name, weights=None, width_mult=width, dropout=0.0, **FEW)
    compare(ours(name, width=width, dropout=0.0), theirs, (64, 80))


SIZES = {
    "vit_b_16": (16, 12, 12, 768, 3072),
    "vit_b_32": (32, 12, 12, 768, 3072),
    "vit_l_16": (16, 24, 16, 1024, 4096),
    "vit_l_32": (32, 24, 16, 1024, 4096),
    "vit_h_14": (14, 32, 16, 1280, 5120),
}


@pytest.mark.parametrize("name", SIZES)
def test_vit_with_two_blocks(name):
    patch, _, heads, dim, mlp = SIZES[name]
    theirs = TheirTransformer(2 * patch, patch, 2, heads, dim, mlp, **FEW)
    compare(ours(name, (2 * patch, 2 * patch), depth=2), theirs, (2 * patch, 2 * patch))


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_vit_with_all_blocks(name):
    with torch.device("meta"):  # every weight is set anyway
        theirs, mine = torchvision.models.get_model(name, weights=None, **FEW), ours(name)
    compare(mine.to_empty(device="cpu"), theirs.to_empty(device="cpu"), (224, 224), modes=(False,), batch=1)


@pytest.mark.parametrize(
    ("name", "kwargs", "count"),
    [
        ("googlenet", {}, 6_624_904),
        ("googlenet", {"auxiliary": True}, 13_004_888),
        ("inception_v3", {}, 23_834_568),
        ("inception_v3", {"auxiliary": True}, 27_161_264),
        ("mobilenet_v1", {}, 4_231_976),
        ("mobilenet_v1", {"width": 0.75}, 2_585_560),
        ("mobilenet_v1", {"width": 0.5}, 1_331_592),
        ("mobilenet_v1", {"width": 0.25}, 470_072),
        ("mobilenet_v2", {}, 3_504_872),
        ("mobilenet_v3_small", {}, 2_542_856),
        ("mobilenet_v3_large", {}, 5_483_032),
        ("vit_b_16", {}, 86_567_656),
        ("vit_b_32", {}, torchvision.models.ViT_B_32_Weights.DEFAULT.meta["num_params"]),
        ("vit_l_16", {}, torchvision.models.ViT_L_16_Weights.IMAGENET1K_V1.meta["num_params"]),
        ("vit_l_32", {}, torchvision.models.ViT_L_32_Weights.DEFAULT.meta["num_params"]),
        ("vit_h_14", {}, torchvision.models.ViT_H_14_Weights.IMAGENET1K_SWAG_LINEAR_V1.meta["num_params"]),
    ],
)
def test_parameter_counts(name, kwargs, count):
    with torch.device("meta"):
        model = build(ModelSpec(name, kwargs), check=False)
    assert sum(p.numel() for p in model.parameters()) == count


def test_the_shallow_mobilenet_v1_lacks_five_blocks_of_512():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in ours("mobilenet_v1", depths=(1, 2, 2, n, 2)).parameters()) for n in (6, 1)]
    assert counts[0] - counts[1] == 5 * (512 * 9 + 512 * 512 + 4 * 512)


# Picture sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "smallest"), [("googlenet", 15), ("inception_v3", 75)])
def test_too_small_pictures_are_refused_with_the_smallest_size(name, smallest):
    model = ours(name, width=0.125).eval()
    assert model(torch.zeros(1, 3, smallest, smallest)).logits.shape == (1, 7)
    assert [feature.shape[1] for feature in model.forward_pyramid(torch.zeros(1, 3, smallest, smallest))] == [
        channels for channels, _ in model.feature_info
    ]
    with pytest.raises(ShapeError, match=f"{name} needs pictures of {smallest} x {smallest}"):
        model(torch.zeros(1, 3, smallest + 9, smallest - 1))


def test_the_smallest_sizes_are_torchvisions():
    weights = torchvision.models.GoogLeNet_Weights.DEFAULT, torchvision.models.Inception_V3_Weights.DEFAULT
    assert [one.meta["min_size"] for one in weights] == [(15, 15), (75, 75)]


def test_inceptions_auxiliary_head_says_the_smallest_size():
    model = ours("inception_v3", width=0.125, auxiliary=True)
    assert model.eval()(torch.zeros(1, 3, 75, 75)).auxiliary == ()
    assert len(model.train()(torch.randn(2, 3, 299, 299)).auxiliary) == 1
    with pytest.raises(
        ShapeError, match=r"auxiliary head of inception_v3 needs pictures of 299 x 299 .* got 298 x 320"
    ):
        model(torch.zeros(2, 3, 298, 320))


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_mobilenets_take_a_single_pixel(name):
    assert ours(name, width=0.25).eval()(torch.zeros(1, 3, 1, 1)).logits.shape == (1, 7)


def test_inceptions_pyramid_lies_over_its_pixels():
    """A bright spot lights up the cell over it: (row, column) of the cell times stride is the spot's place."""
    torch.manual_seed(0)
    model = ours("inception_v3", width=0.25, dropout=0.0).eval()
    images = torch.zeros(2, 3, 299, 299)
    row, column = 70, 218
    images[1, :, row - 4 : row + 4, column - 4 : column + 4] = 3.0
    with torch.no_grad():
        maps = model.forward_pyramid(images)
    for feature, (_, stride) in zip(maps[:2], model.feature_info, strict=False):
        assert feature.shape[2:] == (299 // stride, 299 // stride)
        heat = (feature[1] - feature[0]).square().sum(0)
        cells = torch.arange(len(heat)) + 0.5
        at = [float((heat.sum(axis) * cells).sum() / heat.sum()) * stride for axis in (1, 0)]
        assert abs(at[0] - row) < stride
        assert abs(at[1] - column) < stride


def test_vit_refuses_pictures_that_patches_do_not_fill():
    with pytest.raises(ShapeError, match=r"200x225 cannot be cut into patches of 16x16.* nearest size is 192x224"):
        ours("vit_b_16", (200, 225), depth=1)
    with pytest.raises(ShapeError, match=r"built for pictures of 32x48; got 48x32"):
        ours("vit_b_16", (32, 48), depth=1, dim=24)(torch.zeros(1, 3, 48, 32))
    with pytest.raises(ConfigError, match="num_heads = 5 does not divide dim = 24"):
        ours("vit_b_16", depth=1, dim=24, num_heads=5)


def test_vits_map_is_the_picture_cut_in_patches():
    model = ours("vit_b_16", (32, 48), depth=0, dim=24)
    nn.init.zeros_(model.encoder.pos_embedding)
    images = torch.randn(2, 3, 32, 48)
    (feature,) = model.forward_pyramid(images)
    for row in range(2):
        for column in range(3):
            patch = images[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            expected = model.encoder.ln(model.conv_proj(patch)[:, :, 0, 0])
            torch.testing.assert_close(feature[:, :, row, column], expected, rtol=1e-5, atol=1e-5)


def test_the_networks_tell_dropout_from_no_dropout():
    """Each rate reaches its layer: with it, two passes in training differ."""
    cases = [("googlenet", "dropout", 64), ("mobilenet_v1", "dropout", 64), ("mobilenet_v2", "dropout", 64)]
    cases += [("mobilenet_v3_small", "dropout", 64), ("inception_v3", "dropout", 107)]
    cases += [("vit_b_16", "dropout", 32), ("vit_b_16", "attention_dropout", 32)]
    small: dict[str, Any] = {"vit_b_16": {"depth": 1, "dim": 24}}
    for name, rate, side in cases:
        images = torch.randn(4, 3, side, side)
        for value, same in ((0.0, True), (0.5, False)):
            model = ours(name, (side, side), **{rate: value}, **small.get(name, {"width": 0.25}))
            assert torch.equal(model(images).logits, model(images).logits) is same, (name, rate, value)


def test_transform_input_is_for_rgb_alone():
    for name in ("googlenet", "inception_v3"):
        assert models.module(name).PRETRAINED == {"transform_input": True}
        with pytest.raises(ConfigError, match="these have 1 channels"):
            ours(name, channels=1, transform_input=True)


def test_widths_are_rounded_as_torchvision_does():
    from torchvision.models._utils import _make_divisible

    for channels in range(1, 400):
        for width in (0.25, 0.35, 0.5, 0.75, 1.0, 1.4):
            assert rounded_channels(channels * width) == _make_divisible(channels * width, 8)


def test_mobilenet_v1_names_its_weights():
    source = models.module("mobilenet_v1").WEIGHTS_FROM["mobilenet_v1"].removeprefix("timm:")
    assert timm.models.get_pretrained_cfg(source).license == "apache-2.0"


# Published files ------------------------------------------------------------------------------------------------------


def _transformer(size: int, tmp_path: Any) -> Any:
    theirs = _randomized(TheirTransformer(size, 16, 1, 4, 48, 96))
    path = tmp_path / "vit.pth"
    torch.save(theirs.state_dict(), path)
    return theirs, path


@pytest.mark.parametrize(("old", "new"), [(64, (96, 96)), (96, (64, 64)), (64, (48, 112))])
def test_position_embeddings_for_another_picture_size(tmp_path, old, new):
    theirs, path = _transformer(old, tmp_path)
    model = build(ModelSpec("vit_b_16", {"depth": 1, "dim": 48, "num_heads": 4, "mlp_dim": 96}, 3, 1000, new))
    report = load_weights(model, path)
    side, grid = old // 16, (new[0] // 16, new[1] // 16)
    assert report.adapted == f"encoder.pos_embedding interpolated from {side}x{side} to {grid[0]}x{grid[1]} patches"
    assert "; adapted: encoder.pos_embedding interpolated" in report.summary()
    assert not report.missing
    assert not report.unexpected
    assert not report.complete
    expected = timm.layers.resample_abs_pos_embed(theirs.encoder.pos_embedding, list(grid))
    torch.testing.assert_close(model.encoder.pos_embedding.data, expected.data, rtol=1e-6, atol=1e-6)


def test_position_embeddings_of_the_same_size_are_left_alone(tmp_path):
    theirs, path = _transformer(64, tmp_path)
    model = build(ModelSpec("vit_b_16", {"depth": 1, "dim": 48, "num_heads": 4, "mlp_dim": 96}, 3, 1000, (64, 64)))
    assert load_weights(model, path).complete
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.eval()(images).logits, theirs.eval()(images), rtol=1e-5, atol=1e-5)


def test_position_embeddings_of_another_width_are_an_error(tmp_path):
    _, path = _transformer(64, tmp_path)
    model = build(ModelSpec("vit_b_16", {"depth": 1, "dim": 24, "num_heads": 4, "mlp_dim": 96}, 3, 1000, (96, 96)))
    with pytest.raises(CheckpointError, match="another variant of this network"):
        load_weights(model, path)


def test_a_file_with_the_older_names_of_the_perceptrons_loads(tmp_path):
    """torchvision's first files say mlp.linear_1 and mlp.linear_2; its own loader renames them, and so does ours."""
    theirs, path = _transformer(64, tmp_path)
    state = {
        re.sub(r"mlp\.([03])\.", lambda found: f"mlp.linear_{1 + int(found[1]) // 3}.", name): tensor
        for name, tensor in theirs.state_dict().items()
    }
    assert any("mlp.linear_2.bias" in name for name in state)
    TheirTransformer(64, 16, 1, 4, 48, 96).load_state_dict(state)
    torch.save(state, path)
    model = build(ModelSpec("vit_b_16", {"depth": 1, "dim": 48, "num_heads": 4, "mlp_dim": 96}, 3, 1000, (64, 64)))
    assert load_weights(model, path).complete


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_the_published_files_with_auxiliary_heads_load(tmp_path, name):
    """Without auxiliary heads theirs are reported; with them, and other classes, every head is new as a whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torchvision.models.get_model(name, weights=None, aux_logits=True, init_weights=False, num_classes=9)
    path = tmp_path / f"{name}.pth"
    torch.save(theirs.state_dict(), path)
    plain = build(ModelSpec(name, {}, 3, 9), check=False)
    report = load_weights(plain, path)
    assert report.complete
    assert {key.partition(".")[0].lower()[:3] for key in report.unexpected} == {"aux"}
    whole = build(ModelSpec(name, {"auxiliary": True}, 3, 4), check=False)
    report = load_weights(whole, path)
    assert not report.unexpected
    heads = {f"{head}.{part}" for head in whole.head_names for part in ("weight", "bias")}
    assert set(report.mismatched) == heads
