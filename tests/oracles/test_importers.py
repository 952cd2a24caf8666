"""Weights of Keras, ONNX and TensorFlow give the answers here that they give there."""

from __future__ import annotations

import json
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

import opsin
from opsin.cli import main
from opsin.errors import CheckpointError, ConfigError, MissingExtra
from opsin.models import ModelSpec, build
from opsin.models.importers import format_of, read
from opsin.models.importers.mapping import LayerMap, import_layers
from opsin.wire import fields


@pytest.fixture(scope="module")
def keras() -> Any:
    """Keras on torch, where it is installed."""
    pytest.importorskip("h5py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = pytest.importorskip("keras")
    if found.backend.backend() != "torch":
        pytest.skip("Keras runs on another backend here")
    found.utils.set_random_seed(3)
    return found


def shaken(model: Any) -> Any:
    """A Keras model whose biases and statistics are not the zeros and ones that it begins with."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape).astype(np.float32))
    return model


def keras_says(model: Any, pictures: np.ndarray) -> np.ndarray:
    """What a Keras model answers to pictures (B, C, H, W)."""
    with torch.no_grad():
        return np.asarray(model(pictures.transpose(0, 2, 3, 1)).detach().cpu())


def pictures_like(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def ours_says(network: nn.Module, pictures: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network.eval()(torch.from_numpy(pictures)).logits.numpy()


def imported(network: nn.Module, path: Path, shape: tuple[int, int, int], **more: Any) -> LayerMap:
    found = import_layers(network, path, shape, **more)
    assert found is not None
    return found


def same(theirs: np.ndarray, ours: np.ndarray, share: float = 1e-4) -> bool:
    """Whether logits agree, as a share of the largest one."""
    assert theirs.std() > 1e-3 * np.abs(theirs).max()  # the answer depends on something
    return bool(np.abs(theirs - ours).max() <= share * np.abs(theirs).max())


# Keras ----------------------------------------------------------------------------------------------------------------


def small_cnn(keras: Any) -> Any:
    layers = keras.layers
    return shaken(
        keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                layers.Conv2D(64, 3, activation="relu"),
                layers.MaxPool2D(),
                layers.Lambda(lambda x: x),
                layers.Conv2D(128, 3, activation="relu"),
                layers.MaxPool2D(),
                layers.Flatten(),
                layers.Dense(64, activation="relu"),
                layers.Dense(10),
            ]
        )
    )


def saved(model: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_weights(path) if path.name.endswith(".weights.h5") else model.save(path)
    return path


@pytest.mark.parametrize("name", ["m.h5", "m.weights.h5", "m.keras"])
def test_a_small_network_of_keras(keras: Any, name: str, tmp_path: Path) -> None:
    theirs = small_cnn(keras)
    path = saved(theirs, tmp_path / name).rename(tmp_path / "no-suffix")
    ours = build(ModelSpec("b2-mnist", {"hidden": 64}, 1, 10, (28, 28)))
    found = imported(ours, path, (1, 28, 28))
    pictures = pictures_like(3, 1, 28, 28)
    assert same(keras_says(theirs, pictures), ours_says(ours, pictures))
    assert [row.change for row in found.rows if row.target == "dense.weight"] == ["IO to OI, pixels 5x5x128 to 128x5x5"]
    assert found.complete
    assert found.format == "keras-h5"


@pytest.mark.parametrize("name", ["m.weights.h5", "m.keras"])
def test_vgg_of_keras(keras: Any, name: str, tmp_path: Path) -> None:
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3), pooling="avg")
    theirs = shaken(keras.Model(base.input, keras.layers.Dense(5)(base.output)))
    ours = build(ModelSpec("vgg16", {"head": "pool"}, 3, 5, (32, 32)))
    imported(ours, saved(theirs, tmp_path / name), (3, 32, 32))
    pictures = pictures_like(2, 3, 32, 32)
    assert same(keras_says(theirs, pictures), ours_says(ours, pictures))


class PaddedAsKeras(nn.Module):
    """Pads at the right and the bottom only, as Keras' MobileNet does in front of convolutions of stride 2."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        convolution.padding = (0, 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(functional.pad(x, (0, 1, 0, 1)))


@pytest.mark.parametrize("name", ["m.h5", "m.weights.h5", "m.keras"])
def test_mobilenet_of_keras(keras: Any, name: str, tmp_path: Path) -> None:
    theirs = shaken(
        keras.applications.MobileNet(
            weights=None, input_shape=(32, 32, 3), classes=5, alpha=0.25, classifier_activation=None, dropout=0.0
        )
    )
    ours = build(ModelSpec("mobilenet_v1", {"width": 0.25}, 3, 5, (32, 32)))
    found = imported(ours, saved(theirs, tmp_path / name), (3, 32, 32))
    assert any("1x1 convolution to dense" in row.change for row in found.rows)
    assert any("epsilon 0.001 to 1e-05" in row.change for row in found.rows)
    told = [note for note in found.notes if "on all sides" in note]
    assert len(told) == (
        0 if name == "m.weights.h5" else 5
    )  # one for each stride of 2, where the file says how it pads
    for parent in list(ours.modules()):
        for child, module in list(parent.named_children()):
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2) and not isinstance(parent, PaddedAsKeras):
                setattr(parent, child, PaddedAsKeras(module))
    pictures = pictures_like(3, 3, 32, 32)
    assert same(keras_says(theirs, pictures), ours_says(ours, pictures))


class Separable(nn.Module):
    """Batch norm without scale behind a convolution without bias, then a separable convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.deep = nn.Conv2d(4, 4, 3, groups=4, bias=False)
        self.mix = nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6 * 16, 3)

    def forward(self, x: torch.Tensor) -> Any:
        from opsin.models import Classified

        return Classified(self.head(self.mix(self.deep(self.norm(self.first(x)))).flatten(1)))


@pytest.mark.parametrize("name", ["m.h5", "m.keras"])
def test_biases_and_batch_norms_that_differ_are_settled_exactly(keras: Any, name: str, tmp_path: Path) -> None:
    layers = keras.layers
    stack = [
        layers.Conv2D(4, 3), layers.BatchNormalization(scale=False, epsilon=0.01), layers.SeparableConv2D(6, 3),
        layers.Flatten(), layers.Dense(3),
    ]  # fmt: skip
    theirs = shaken(keras.Sequential([keras.Input((8, 8, 3)), *stack]))
    ours = Separable().eval()
    found = imported(ours, saved(theirs, tmp_path / name), (3, 8, 8))
    assert "less the bias of the layer before" in found.summary()
    pictures = pictures_like(2, 3, 8, 8)
    assert same(keras_says(theirs, pictures), ours_says(ours, pictures), 1e-5)
    weights = saved(theirs, tmp_path / "m.weights.h5")
    with pytest.raises(CheckpointError, match="without scale or without shift"):
        import_layers(ours, weights, (3, 8, 8))


class Rows(nn.Module):
    """Batch norm between the rows of pixels and the dense layers, of which two get the same row."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm1d(4 * 30)
        self.left = nn.Linear(4 * 30, 6)
        self.right = nn.Linear(4 * 30, 5)
        self.head = nn.Linear(11, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        row = self.norm(self.first(x).flatten(1))
        return self.head(torch.cat([self.left(row), self.right(row)], 1))


@pytest.mark.parametrize("frozen_here", [False, True])
@pytest.mark.parametrize("name", ["m.h5", "m.keras"])
def test_batch_norm_and_dense_layers_side_by_side_on_rows_of_pixels(
    keras: Any, name: str, frozen_here: bool, tmp_path: Path
) -> None:
    layers = keras.layers
    start = keras.Input((8, 7, 3))
    row = layers.BatchNormalization()(layers.Flatten()(layers.Conv2D(4, 3)(start)))
    both = layers.Concatenate()([layers.Dense(6)(row), layers.Dense(5)(row)])
    theirs = shaken(keras.Model(start, layers.Dense(3)(both)))
    ours = Rows().eval().requires_grad_(not frozen_here)
    found = imported(ours, saved(theirs, tmp_path / name), (3, 8, 7))
    assert "pixels 6x5x4 to 4x6x5, epsilon" in found.summary()
    assert ours.head.weight.requires_grad != frozen_here
    pictures = pictures_like(2, 3, 8, 7)
    with torch.no_grad():
        assert same(keras_says(theirs, pictures), ours(torch.from_numpy(pictures)).numpy(), 1e-5)


@pytest.mark.parametrize("name", ["m.h5", "m.weights.h5", "m.keras"])
def test_a_model_inside_a_model(keras: Any, name: str, tmp_path: Path) -> None:
    layers = keras.layers
    norm = layers.BatchNormalization()
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), norm, layers.DepthwiseConv2D(3)])
    end = [layers.Conv2D(6, 1), layers.Flatten(), layers.Dense(3)]
    theirs = shaken(keras.Sequential([keras.Input((8, 8, 3)), inner, *end]))
    ours = Separable()
    ours.deep.bias = nn.Parameter(torch.zeros(4))
    path = saved(theirs, tmp_path / name)
    if name == "m.weights.h5":
        with pytest.raises(CheckpointError, match="ambiguous: conv2d occurs in models inside the model"):
            import_layers(ours, path, (3, 8, 8))
    found = imported(ours, path, (3, 8, 8), partial=name == "m.weights.h5")
    assert not found.unmatched_target
    pictures = pictures_like(2, 3, 8, 8)
    assert same(keras_says(theirs, pictures), ours_says(ours, pictures), 1e-5)


@pytest.mark.parametrize("old", [True, False])
def test_published_files_of_keras_2(old: bool, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    arrays = arrays_of_the_graph()
    names = {
        "conv1": {"conv1_W_1:0" if old else "conv1/kernel:0": "a", "conv1_b_1:0" if old else "conv1/bias:0": "bias"},
        "bn": {f"bn/{r}:0": k for r, k in zip(("gamma", "beta", "moving_mean"), ("gamma", "beta", "mean"))},
        "act": {},
        "conv_dw_1": {"conv_dw_1/depthwise_kernel:0": "d"},
        "predictions": {"predictions/kernel:0": "b", "predictions/bias:0": "c"},
    }
    names["bn"]["bn/moving_variance:0"] = "variance"
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in names]
        for name, weights in names.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, key in weights.items():
                group[weight] = arrays[key]
    ours = Small()
    found = imported(ours, tmp_path / "m.h5", (3, 8, 8))
    assert "taken as 0.001" in found.summary()
    x = pictures_like(2, 3, 8, 8)
    with torch.no_grad():
        expected = by_hand(arrays, x.transpose(0, 2, 3, 1), epsilon=0.001)
        assert same(expected, ours.eval()(torch.from_numpy(x)).numpy(), 1e-5)


def test_a_convolution_of_another_stride_is_another_network(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    stack = [layers.Conv2D(4, 3, strides=2), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    path = saved(keras.Sequential([keras.Input((8, 8, 3)), *stack]), tmp_path / "m.keras")
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"conv2d.* has stride 2, 0 has 1"):
        import_layers(ours, path, (3, 8, 8))
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


def test_links_out_of_the_file_are_not_followed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["kernel"] = np.zeros((3, 2))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["layer_names"] = ["d"]
        file.create_group("d").attrs["weight_names"] = ["kernel"]
        file["d"]["kernel"] = h5py.ExternalLink("secret.h5", "kernel")
    with pytest.raises(CheckpointError, match="lies in another file"):
        read(tmp_path / "m.h5", "keras-h5")


# ONNX -----------------------------------------------------------------------------------------------------------------


class Logits(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.net(x)
        return found if isinstance(found, torch.Tensor) else found.logits


def exported(model: nn.Module, path: Path, size: int, new: bool, fold: bool) -> Path:
    pytest.importorskip("onnxscript")
    example = (torch.zeros(1, 3, size, size),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if new:
            program = torch.onnx.export(model.eval(), example, dynamo=True, optimize=fold, verbose=False)
            assert program is not None
            program.save(path)
        else:
            torch.onnx.export(model.eval(), example, path, dynamo=False, do_constant_folding=fold)
    return path


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize(("name", "new"), [("resnet18", False), ("smallnet", True)])
def test_our_networks_through_onnx(name: str, new: bool, fold: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = build(ModelSpec(name, {}, 3, 5, (32, 32)))
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    pictures = pictures_like(2, 3, 32, 32)
    expected = ours_says(theirs, pictures)
    path = exported(Logits(theirs), tmp_path / "m", 32, new, fold)
    ours = build(ModelSpec(name, {}, 3, 5, (32, 32)))
    found = imported(ours, path, (3, 32, 32))
    assert same(expected, ours_says(ours, pictures), 1e-5)
    assert found.complete
    assert ("folded" in found.summary()) == fold


@pytest.mark.parametrize("fold", [True, False])
def test_squeezenet_of_torchvision_through_onnx(fold: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.squeezenet1_1(weights=None, num_classes=5).eval()
    pictures = pictures_like(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pictures)).numpy()
    path = exported(theirs, tmp_path / "m.onnx", 64, False, fold)
    ours = build(ModelSpec("squeezenet1_1", {}, 3, 5, (64, 64)))
    imported(ours, path, (3, 64, 64))
    assert same(expected, ours_says(ours, pictures), 1e-5)


def test_an_onnx_file_without_names_in_the_order_of_channels_last(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(4, 3, 3, 3)), "b": rng.normal(size=(4 * 36, 5)), "c": rng.normal(size=5)}
    initializers = [onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in arrays.items()]
    initializers.append(onnx.numpy_helper.from_array(np.array([1, -1]), "row"))
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "a"], ["1"]),
        make("Transpose", ["1"], ["2"], perm=[0, 2, 3, 1]),
        make("Reshape", ["2", "row"], ["3"]),
        make("MatMul", ["3", "b"], ["4"]),
        make("Add", ["4", "c"], ["y"]),
    ]
    kind = onnx.TensorProto.FLOAT
    ends = [[onnx.helper.make_tensor_value_info(n, kind, s)] for n, s in (("x", [1, 3, 8, 8]), ("y", [1, 5]))]
    graph = onnx.helper.make_graph(nodes, "g", *ends, initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    found = imported(ours, tmp_path / "m.onnx", (3, 8, 8))
    picture = pictures_like(1, 3, 8, 8)
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        assert same(session.run(None, {"x": picture})[0], ours(torch.from_numpy(picture)).numpy(), 1e-5)
    assert found.by == "order"


def test_a_batch_norm_without_variance_does_not_fit(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    ones = [onnx.numpy_helper.from_array(np.ones(3, np.float32), name) for name in "abc"]
    nodes = [onnx.helper.make_node("BatchNormalization", ["x", "a", "b", "c"], ["y"], name="bn")]
    ends = [[onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3, 8, 8])] for n in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", *ends, ones))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"(?s)without a place: bn .*not filled: 0\.weight"):
        import_layers(nn.Sequential(nn.BatchNorm2d(3)), tmp_path / "m.onnx", (3, 8, 8))


@pytest.mark.parametrize("constant", [False, True])
def test_onnx_with_values_in_another_file_is_refused(constant: bool, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    array = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    (tmp_path / "secret").write_bytes(array.tobytes())
    kernel = onnx.numpy_helper.from_array(array, "a")
    kernel.ClearField("raw_data")
    kernel.data_location = onnx.TensorProto.EXTERNAL
    kernel.external_data.add(key="location", value="secret")
    make = onnx.helper.make_node
    nodes = [make("Constant", [], ["a"], value=kernel)] if constant else []
    graph = onnx.helper.make_graph([*nodes, make("Conv", ["x", "a"], ["y"])], "g", [], [], [] if constant else [kernel])
    (tmp_path / "m.onnx").write_bytes(onnx.helper.make_model(graph, ir_version=8).SerializeToString())
    with pytest.raises(CheckpointError, match=r"m\.onnx: the values of a are kept in another file \(secret\)"):
        import_layers(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)), tmp_path / "m.onnx", (3, 8, 8))


# TensorFlow -----------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | float | str | bytes) -> bytes:
    """One field on the wire; a message is a row of them."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def node(name: str, op: str, inputs: tuple[str, ...] = (), **attributes: bytes) -> bytes:
    entries = b"".join(field(5, field(1, key) + field(2, value)) for key, value in attributes.items())
    return field(1, field(1, name) + field(2, op) + b"".join(field(3, i) for i in inputs) + entries)


def const(name: str, array: np.ndarray, single: bool = False) -> bytes:
    dims = b"".join(field(2, field(1, size)) for size in array.shape)
    values = array.astype("<f4").tobytes()
    stored = field(5, values[:4]) if single else field(4, values)
    tensor = field(1, 1) + field(2, dims) + stored
    return node(name, "Const", (), dtype=field(6, 1), value=field(8, tensor))


def frozen(arrays: dict[str, np.ndarray]) -> bytes:
    """A GraphDef, nodes in a scrambled order: convolution, bias, batch norm, depthwise convolution, dense layer."""
    stride = field(1, field(3, bytes([1, 1, 1, 1])))
    valid = {"padding": field(2, "VALID"), "strides": stride}
    return b"".join(
        [
            node("out", "BiasAdd", ("dense/MatMul", "c")),
            node("dense/MatMul", "MatMul", ("row", "b/read")),
            node("b/read", "Identity", ("b",)),
            node("x", "Placeholder"),
            *(const(name, array, single=name == "gamma") for name, array in arrays.items()),
            node("one/Conv2D", "Conv2D", ("x", "a"), **valid),
            node("one/add", "AddV2", ("one/Conv2D", "bias")),
            node("norm", "FusedBatchNormV3", ("one/add", "gamma", "beta", "mean", "variance"), epsilon=field(4, 0.002)),
            node("deep/depthwise", "DepthwiseConv2dNative", ("norm:0", "d"), **valid),
            node("row", "Reshape", ("deep/depthwise", "shape")),
            node("shape", "Const", (), value=field(8, field(1, 3) + field(7, b"\x02\xc8\x01"))),
        ]
    )


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.deep = nn.Conv2d(4, 8, 2, groups=4, bias=False)
        self.head = nn.Linear(8 * 25, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.deep(self.norm(self.first(x))).flatten(1))


def arrays_of_the_graph() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    shapes = {"a": (3, 3, 3, 4), "bias": (4,), "beta": (4,), "mean": (4,), "d": (2, 2, 4, 2), "b": (200, 5), "c": (5,)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {**arrays, "gamma": np.full(4, 0.7, np.float32), "variance": rng.uniform(0.5, 2, 4).astype(np.float32)}


def by_hand(v: dict[str, np.ndarray], x: np.ndarray, epsilon: float = 0.002) -> np.ndarray:
    """The network in TensorFlow's order of axes, by sums; x is (B, H, W, C)."""

    def windows(x: np.ndarray, size: int) -> np.ndarray:  # (B, H, W, C, size, size)
        return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))

    x = np.einsum("bhwcij,ijco->bhwo", windows(x, 3), v["a"]) + v["bias"]
    x = (x - v["mean"]) / np.sqrt(v["variance"] + epsilon) * v["gamma"] + v["beta"]
    x = np.einsum("bhwcij,ijcm->bhwcm", windows(x, 2), v["d"])  # channel by channel, its maps side by side
    return x.reshape(len(x), -1) @ v["b"] + v["c"]


def test_a_frozen_graph_of_tensorflow(tmp_path: Path) -> None:
    arrays = arrays_of_the_graph()
    path = tmp_path / "graph"
    path.write_bytes(frozen(arrays))
    ours = Small()
    found = imported(ours, path, (3, 8, 8))
    x = pictures_like(2, 3, 8, 8)
    with torch.no_grad():
        assert same(by_hand(arrays, x.transpose(0, 2, 3, 1)), ours.eval()(torch.from_numpy(x)).numpy(), 1e-5)
    assert found.format == "tf-frozen"
    assert found.complete


def test_the_wire_format_is_that_of_google() -> None:
    descriptor = pytest.importorskip("google.protobuf.descriptor_pb2")
    message = descriptor.FileDescriptorProto(
        name="é.proto", dependency=["a", "b" * 300], public_dependency=[0, 1 << 20]
    )
    message.message_type.add(name="M").field.add(name="f", number=7)
    message.options.uninterpreted_option.add(double_value=0.5, negative_int_value=-3)
    found = fields(message.SerializeToString())
    assert found[1] == ["é.proto".encode()]
    assert found[3] == [b"a", b"b" * 300]
    assert found[10] == [0, 1 << 20]
    inner = fields(found[4][0])  # type: ignore[arg-type]
    assert fields(inner[2][0])[3] == [7]  # type: ignore[arg-type]
    option = fields(fields(found[8][0])[999][0])  # type: ignore[arg-type]
    assert option[6] == [struct.pack("<d", 0.5)]
    assert option[5] == [(1 << 64) - 3]


# Files that are broken, or of another network -------------------------------------------------------------------------


def onnx_bytes(tmp_path: Path) -> bytes:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    return exported(model, tmp_path / "whole.onnx", 8, False, True).read_bytes()


def h5_bytes(tmp_path: Path) -> bytes:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file.attrs["layer_names"] = ["d"]
        group = file.create_group("d")
        group.attrs["weight_names"] = ["d/kernel:0"]
        group["d/kernel:0"] = np.ones((300, 20), np.float32)
    return (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("kind", ["keras-h5", "onnx", "tf-frozen"])
def test_broken_files_are_named_and_leave_nothing(kind: str, tmp_path: Path) -> None:
    make = {"keras-h5": h5_bytes, "onnx": onnx_bytes, "tf-frozen": lambda _: frozen(arrays_of_the_graph())}
    whole = make[kind](tmp_path)
    path = tmp_path / "broken.file"
    path.write_bytes(whole)
    assert format_of(path) == kind
    for end in (len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match=r"broken\.file"):
            opsin_import(path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def opsin_import(path: Path, to: Path) -> None:
    from opsin.run.importing import import_weights

    import_weights(path, "linear", to, classes="a,b,c,d,e", size=8)


def test_a_zip_without_weights_and_a_pickle_are_none_of_these(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    torch.save({"a": torch.zeros(3)}, tmp_path / "m.pt")
    assert [format_of(tmp_path / name) for name in ("m.keras", "m.pt")] == [None, None]


def test_without_h5py_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(MissingExtra, match=r"opsin\[import\]"):
        read(tmp_path / "m.h5", "keras-h5")


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    arrays = arrays_of_the_graph()
    arrays["mean"][2] = np.nan
    (tmp_path / "graph.pb").write_bytes(frozen(arrays))
    with pytest.raises(CheckpointError, match=r"mean of norm .* not finite"):
        import_layers(Small(), tmp_path / "graph.pb", (3, 8, 8))


def test_many_class_names_and_another_license_than_the_file_says(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from opsin.run.importing import import_weights, read_classes

    names = [f"class-{i}" for i in range(100)]
    assert read_classes(",".join(names)) == tuple(names)
    network = build(ModelSpec("linear", {}, 3, 2, (8, 8)))
    file = tmp_path / "m.safetensors"
    save_file(network.state_dict(), file, {"license": "cc-by-nc-4.0"})
    with pytest.raises(ConfigError, match=r"--license mit, but .*m\.safetensors says of itself: cc-by-nc-4\.0"):
        import_weights(file, "linear", tmp_path / "made", classes="a,b", size=8, license="mit")
    assert not (tmp_path / "made").exists()
    made = import_weights(file, "linear", tmp_path / "made", classes="a,b", size=8, license="CC BY-NC 4.0")
    assert made.license == "cc-by-nc-4.0"


def test_a_folder_that_cannot_be_replaced_is_refused_before_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opsin.run.fetching import get

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is the folder that this runs in"):
        opsin_import(Path("none.onnx"), Path())
    with pytest.raises(ConfigError, match="is the folder that this runs in"):
        get("resnet18", ".", say=lambda _: pytest.fail("it went on"))


def test_branches_of_the_same_shape_are_ambiguous(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(12, 5), nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.left(x.flatten(1)) - self.right(x.flatten(1))

    rng = np.random.default_rng(0)
    kernels = {name: rng.normal(size=(12, 5)) for name in "ab"}
    graph = b"".join(const(n, k) + node(f"{n}/MatMul", "MatMul", ("x", n)) for n, k in kernels.items())
    (tmp_path / "graph.pb").write_bytes(graph + node("x", "Placeholder"))
    ours = Branches()
    with pytest.raises(CheckpointError, match="a and b may be left and right, or the other way round"):
        import_layers(ours, tmp_path / "graph.pb", (3, 2, 2))
    assert imported(ours, tmp_path / "graph.pb", (3, 2, 2), partial=True).ambiguous


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    source = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    Path("net.py").write_text(
        "from torch import nn\n"
        "def make(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, num_classes))\n"
    )
    exported(source, Path("m.onnx"), 8, False, True)
    words = ["models", "import", "m.onnx", "--model", "net.py:make", "--size", "8", "--classes"]
    assert main([*words, "a,b,c,d,e", "--to", "made"]) == 0
    assert "-> net.2.weight (5, 144)" in capsys.readouterr().out
    lineage = json.loads(Path("made/bundle.json").read_text())["lineage"]
    assert lineage["layers"]["format"] == "onnx"
    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = source((torch.from_numpy(picture).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5)[0].softmax(0)
    bundle = opsin.load("made")
    bundle.task = type(bundle.task)(bundle.task.settings.model_copy(update={"crop_share": 1.0}))
    assert np.allclose(bundle.predict(picture).heads[0].scores, expected, atol=1e-5)
    assert main([*words, "a,b,c", "--to", "few"]) == 2
    shown = capsys.readouterr().err
    assert "in the network, not filled: net.2.weight" in shown
    assert not Path("few").exists()
    assert main([*words, "a,b,c", "--to", "few", "--partial", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"]["unmatched_target"] == ["net.2.weight", "net.2.bias"]
