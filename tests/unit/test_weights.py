"""Weight files: what is loaded, what is reported, what is refused and how it is said."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from opsin.errors import CheckpointError
from opsin.layers.normalize import Normalized
from opsin.models import ModelSpec, build
from opsin.models.backbones.resnet import resnet18, resnet50
from opsin.models.builder import AsClassified
from opsin.models.smallnet import smallnet
from opsin.models.weights import load_weights, read_weights, save_safetensors
from opsin.task import ImageSpec


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _net(classes: int = 4, channels: int = 3, width: int = 8) -> nn.Module:
    return resnet18(classes, channels, width=width)


def _equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return _net()


def test_safetensors_round_trip_is_bit_equal_and_keeps_metadata(net, tmp_path):
    path = tmp_path / "a.safetensors"
    net = net.to(memory_format=torch.channels_last)
    save_safetensors(net, path, {"license": "apache-2.0"})
    other = _net()
    report = load_weights(other, path)
    assert _equal(net, other)
    assert report.complete
    assert report.license == "apache-2.0"
    assert set(report.loaded) == set(net.state_dict())
    assert "license: apache-2.0" in report.summary()
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert json.loads(json.dumps(report.to_dict()))["license"] == "apache-2.0"


@pytest.mark.parametrize("container", [None, "state_dict", "model", "model_ema", "model_state_dict"])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "encoder."])
def test_published_state_dicts_are_unwrapped(net, tmp_path, container, wrapper):
    path = tmp_path / "a.pth"
    state = {wrapper + name: value for name, value in net.state_dict().items()}
    torch.save(state if container is None else {"epoch": 3, container: state}, path)
    other = _net()
    report = load_weights(other, path)
    assert _equal(net, other)
    assert report.complete
    assert not report.unexpected
    assert report.container == (container or "")
    assert report.license is None
    assert "unknown, treated as non-commercial" in report.summary()


def test_averaged_weights_come_first(net, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"state_dict": _net().state_dict(), "state_dict_ema": net.state_dict()}, path)
    other = _net()
    assert load_weights(other, path).container == "state_dict_ema"
    assert _equal(net, other)


@pytest.mark.parametrize("wrap", [AsClassified, lambda n: Normalized(n, ImageSpec(), (0.5,), (0.5,))])
def test_a_plain_file_goes_into_a_wrapped_network_and_back(net, tmp_path, wrap):
    path = tmp_path / "a.safetensors"
    save_safetensors(net, path)
    wrapped = wrap(AsClassified(_net()))
    report = load_weights(wrapped, path)
    assert _equal(net, wrapped.net.net)
    assert report.complete
    save_safetensors(wrapped, path)
    again = wrap(AsClassified(_net()))
    assert load_weights(again, path).complete
    assert _equal(again, wrapped)


@pytest.mark.parametrize(
    "make",
    [
        _net,
        lambda k: smallnet(k, widths=(8, 16, 16)),
        lambda k: build(ModelSpec("timm/test_resnet", {}, 3, k, (32, 32))),
    ],
)
def test_a_head_of_another_size_stays_new(tmp_path, make):
    path = tmp_path / "a.safetensors"
    donor, model = make(7), make(4)
    save_safetensors(donor, path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, path)
    assert report.mismatched
    for name, value in model.state_dict().items():
        expected = before[name] if name in report.mismatched else donor.state_dict()[name]
        assert torch.equal(value, expected), name
    assert all(shapes[0][0] == 7 and shapes[1][0] == 4 for shapes in report.mismatched.values())
    assert "newly initialized because the size differs" in report.summary()
    assert set(report.to_dict()["mismatched"]) == set(report.mismatched)
    assert not report.complete
    with pytest.raises(CheckpointError, match=r"shapes differ: .* in the file"):
        load_weights(model, path, allow_head_mismatch=False)


def test_a_persons_head_is_the_last_layer_with_weights(tmp_path):
    path = tmp_path / "a.safetensors"
    make = lambda k: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, k))  # noqa: E731
    save_safetensors(make(2), path)
    assert set(load_weights(make(5), path).mismatched) == {"2.weight", "2.bias"}


def test_missing_and_unexpected_are_reported(net, tmp_path):
    path = tmp_path / "a.pt"
    state = net.state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["layer4.1.conv2.weight"]
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}  # old files
    torch.save(state, path)
    report = load_weights(_net(), path)
    assert report.missing == ("layer4.1.conv2.weight",)
    assert report.unexpected == ("extra.weight",)
    assert not report.complete


def test_prefix(net, tmp_path):
    path = tmp_path / "a.pt"
    torch.save(
        {
            **{f"student.{n}": v * 0 for n, v in net.state_dict().items()},
            **{f"teacher.{n}": v for n, v in net.state_dict().items()},
        },
        path,
    )
    other = _net()
    assert load_weights(other, path, prefix="teacher.").complete
    assert _equal(net, other)
    with pytest.raises(CheckpointError, match=r"begins with 'coach\.'\. Names begin with: student\., teacher\."):
        load_weights(other, path, prefix="coach.")


@pytest.mark.parametrize(("given", "wanted"), [(3, 1), (1, 3), (3, 5)])
def test_other_input_channels(tmp_path, given, wanted):
    path = tmp_path / "a.safetensors"
    donor, model = _net(channels=given), _net(channels=wanted)
    save_safetensors(donor, path)
    with pytest.raises(CheckpointError, match=f"for pictures with {given} channels, the model takes {wanted}"):
        load_weights(model, path)
    report = load_weights(model, path, adapt_input=True)
    assert report.adapted == f"conv1.weight, {given} to {wanted} channels"
    assert not report.complete
    grey = torch.rand(2, 1, 16, 16)
    if wanted < 4:  # equal channels give equal activations
        a, b = donor.conv1(grey.expand(-1, given, -1, -1)), model.conv1(grey.expand(-1, wanted, -1, -1))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_another_width_is_refused_and_nothing_changes(net, tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors(_net(width=16), path)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match="another variant"):
        load_weights(net, path)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("names", "looks"),
    [
        (resnet50(2, width=8).state_dict(), "ResNet-50"),
        (_net().state_dict(), "ResNet-18"),
        ({"blocks.0.attn.qkv.weight": torch.ones(2, 2)}, "a ViT of timm"),
        ({"something.weight": torch.ones(2, 2)}, "none of its 1 names is in the model. In the file: something.weight"),
    ],
)
def test_a_file_of_another_architecture(tmp_path, names, looks):
    path = tmp_path / "a.pth"
    torch.save(dict(names), path)
    with pytest.raises(CheckpointError, match=looks):
        load_weights(smallnet(4, widths=(8, 16, 16)), path)


class Sneaky:
    def __reduce__(self):
        return (os.system, ("touch /tmp/opsin-was-here",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.pt", None, "no such file"),
        ("empty.pt", b"", "truncated, damaged or something else"),
        ("text.pth", b"404: Not Found", "truncated, damaged or something else"),
        ("html.safetensors", b"<!doctype html>" * 50, "truncated, damaged or something else"),
        ("lie.safetensors", (1 << 40).to_bytes(8, "little") + b"{}", "truncated, damaged or something else"),
    ],
)
def test_broken_files(net, tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        load_weights(net, path)
    assert name in str(error.value)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_truncated_files(net, tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    if suffix == "pt":
        torch.save(net.state_dict(), path)
    else:
        save_safetensors(net, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=rf"a\.{suffix}: the file is not a readable weight file"):
        load_weights(net, path)


def test_pickles_with_code_are_refused(net, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"state_dict": net.state_dict(), "config": Sneaky()}, path)
    with pytest.raises(CheckpointError, match=r"holds Python objects besides tensors \((posix|nt)\.system\)"):
        load_weights(net, path)
    assert not Path("/tmp/opsin-was-here").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "no tensors found. Its entries are: epoch"),
        ([1, 2], "the file holds list"),
        (torch.ones(3), "holds Tensor"),
    ],
)
def test_files_that_hold_no_state_dict(net, tmp_path, content, message):
    path = tmp_path / "a.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        load_weights(net, path)


def test_weights_that_are_not_finite_are_refused(net, tmp_path):
    path = tmp_path / "a.safetensors"
    with torch.no_grad():
        net.layer1[0].conv1.weight[0, 0, 0, 0] = torch.nan
    save_safetensors(net, path)
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight holds values that are not finite"):
        load_weights(_net(), path)


def test_half_precision_files_and_tied_weights(tmp_path):
    path = tmp_path / "a.safetensors"
    net = _net()
    safetensors.torch.save_file(
        {n: v.half() if v.is_floating_point() else v for n, v in net.state_dict().items()}, path
    )
    other = _net()
    assert load_weights(other, path).complete
    assert other.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(other.conv1.weight, net.conv1.weight, rtol=1e-3, atol=1e-3)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    save_safetensors(tied, path)
    assert len(read_weights(path)[0]) == 4


def test_an_interrupted_save_leaves_the_old_file(net, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_safetensors(net, path)
    old = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save_safetensors(_net(), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_metadata_is_readable_by_others(net, tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors(net, path, {"license": "bsd-3-clause", "opsin": "1"})
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == {"license": "bsd-3-clause", "opsin": "1"}


# Partial restore ------------------------------------------------------------------------------------------------------


def test_only_what_is_wanted_is_restored(net, tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors(net, path)
    other = _net()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    report = load_weights(other, path, only=["conv1", "layer1.*"])
    changed = {name for name, tensor in other.state_dict().items() if torch.equal(tensor, net.state_dict()[name])}
    restored = {name for name in before if name.startswith(("conv1.", "layer1."))}
    assert set(report.loaded) == restored <= changed
    assert all(torch.equal(before[name], t) for name, t in other.state_dict().items() if name not in restored)
    assert set(report.left) == set(before) - restored
    assert not report.complete
    assert "left newly initialized" in report.summary()
    with pytest.raises(CheckpointError, match="nothing to restore is named 'layer9"):
        load_weights(other, path, only=["layer9.*"])


def test_names_are_mapped(net, tmp_path):
    path = tmp_path / "a.safetensors"
    state = {f"trunk.{name}".replace("layer1", "stage_one"): t for name, t in net.state_dict().items()}
    safetensors.torch.save_file(state, path)
    other = _net()
    load_weights(other, path, rename={r"^trunk\.": "", "stage_one": "layer1"})
    assert _equal(net, other)
    with pytest.raises(CheckpointError, match="fits none of its names"):
        load_weights(other, path, rename={"^stem": ""})
    with pytest.raises(CheckpointError, match="not a regular expression"):
        load_weights(other, path, rename={"(": ""})
    with pytest.raises(CheckpointError, match="gives two tensors the name"):
        load_weights(other, path, rename={".*": "x"})


def test_a_new_head_stays_new_though_sizes_agree(net, tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors(net, path)
    other = _net()
    before = other.fc.weight.clone()
    report = load_weights(other, path, new_head=True)
    assert torch.equal(other.fc.weight, before)
    assert report.left == ("fc.bias", "fc.weight")
    assert torch.equal(other.conv1.weight, net.conv1.weight)


def test_a_file_without_tensors_is_refused(tmp_path):
    safetensors.torch.save_file({}, tmp_path / "empty.safetensors", {"license": "mit"})
    with pytest.raises(CheckpointError, match="no tensors found"):
        read_weights(tmp_path / "empty.safetensors")
