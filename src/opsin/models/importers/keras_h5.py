"""Weights of Keras 2 and 3: whole models (.h5, .keras) and weights alone (.h5, .weights.h5); all of them are HDF5 inside.

Nothing of the file is run: classes of layers are only compared as words, Lambda layers and optimizers are left out, and links
to other files are refused. A .weights.h5 file names layers by their class and number and says neither how they are connected nor
the epsilon of batch norm; a whole model says both.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from opsin.errors import CheckpointError, MissingExtra
from opsin.models.importers import Array, Source, SourceLayer

NAMES = ("keras-h5",)

EPSILON = 1e-3  # Keras' default
SIGNATURE = b"\x89HDF\r\n\x1a\n"
KINDS = {"conv2d": "conv", "depthwise_conv2d": "depthwise", "dense": "dense", "batch_normalization": "batchnorm"}
LAYOUTS = {"conv": "HWIO", "depthwise": "HWCM", "dense": "IO"}
# endings of weight names, old and new
ROLES = (
    ("depthwise_kernel", "depthwise"),
    ("pointwise_kernel", "kernel"),
    ("kernel", "kernel"),
    ("_W", "kernel"),
    ("bias", "bias"),
    ("_b", "bias"),
    ("gamma", "gamma"),
    ("beta", "beta"),
    ("moving_mean", "mean"),
    ("moving_variance", "variance"),
)

Config = dict[str, Any]


def sniff(path: Path) -> bool:
    """Whether it is HDF5, or a zip archive with Keras' weights in it."""
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                return "model.weights.h5" in archive.namelist()
        except zipfile.BadZipFile:
            return False
    return start == SIGNATURE


def read(path: Path) -> Source:
    """Read the layers.

    Raises:
        MissingExtra: without h5py.
        CheckpointError: if a weight lies in another file, or the file is of no known kind.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra("h5py", "import", "reading weights of Keras") from error
    model: Config = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            model = json.loads(archive.read("config.json"))
            opened: Any = io.BytesIO(archive.read("model.weights.h5"))
    else:
        opened = path
    uncertain: tuple[str, ...] = ()
    with h5py.File(opened, "r") as file:
        _refuse_links(file, path)
        if not model and "model_config" in file.attrs:
            model = json.loads(_text(file.attrs["model_config"]))
        configs = list(_layer_configs(model))
        weights = file.get("model_weights", file)
        if "layer_names" in weights.attrs:
            layers = _by_name(weights, {config["name"]: config for config in configs})
        elif "layers" in file or "_layer_checkpoint_dependencies" in file:
            layers = _by_class(file, configs)
            uncertain = () if configs else tuple(_spread(file))
        else:
            raise CheckpointError(f"{path}: an HDF5 file, but not of Keras: it names no layers.")
        found = tuple(_connected(list(layers), configs))
    first = any(config["config"].get("data_format") == "channels_first" for config in configs)
    notes = () if configs else ("the file does not say how layers are connected",)
    return Source("keras-h5", found, EPSILON, "CHW" if first else "HWC", notes, uncertain)


def _refuse_links(group: Any, path: Path) -> None:
    import h5py

    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
            raise CheckpointError(f"{path}: {group.name}/{name} lies in another file, which opsin does not open.")
        item = group[name]
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise CheckpointError(f"{path}: {item.name} lies in another file, which opsin does not open.")
        else:
            _refuse_links(item, path)


def _layer_configs(model: Config) -> Iterator[Config]:
    """Layers as {class, name, config, inputs}, in the order of the file; models inside models are opened."""
    before: list[str] = []  # of a Sequential
    for layer in _listed(model):
        config = layer.get("config", {})
        name = config.get("name") or layer.get("name", "")
        if _listed(layer):
            yield from _layer_configs(layer)
        else:
            inputs = list(_names_in(layer["inbound_nodes"])) if "inbound_nodes" in layer else before
            yield {"class": layer["class_name"], "name": name, "config": config, "inputs": inputs}
        before = [name]


def _listed(model: Config) -> list[Config]:
    config = model.get("config", {})
    layers = config.get("layers", []) if isinstance(config, dict) else config  # Keras 2.0: the list itself
    return [layer for layer in layers if isinstance(layer, dict)]


def _names_in(nodes: Any) -> Iterator[str]:
    """Layers whose outputs a layer takes: {"keras_history": [name, ...]} (Keras 3) or [name, 0, 0, {}] (Keras 2)."""
    if isinstance(nodes, dict):
        if "keras_history" in nodes:
            yield nodes["keras_history"][0]
        else:
            for value in nodes.values():
                yield from _names_in(value)
    elif isinstance(nodes, list):
        if len(nodes) >= 3 and isinstance(nodes[0], str) and isinstance(nodes[1], int):
            yield nodes[0]
        else:
            for value in nodes:
                yield from _names_in(value)


def _by_name(weights: Any, configs: Mapping[str, Config]) -> Iterator[SourceLayer]:
    """Layers of the older layout: groups by layer name, each with a list of its weights."""
    for name in (_text(name) for name in weights.attrs["layer_names"]):
        group = weights[name]
        inner: dict[str, dict[str, Array]] = {}  # a model inside a model has several layers in one group
        names = [_text(weight) for weight in group.attrs.get("weight_names", ())]
        for weight in names:
            inner.setdefault(weight.rpartition("/")[0], {})[weight] = np.asarray(group[weight])
        for parent, arrays in inner.items():
            own = name if len(inner) == 1 else parent.rpartition("/")[2]
            yield from _layer(own, {_role(weight): array for weight, array in arrays.items()}, configs.get(own))


def _by_class(file: Any, configs: list[Config]) -> Iterator[SourceLayer]:
    """Layers of .weights.h5: groups by class and number, their weights numbered."""
    by_name = {config["name"]: config for config in configs}
    found: list[tuple[str, str, list[Array]]] = []

    def visit(group: Any) -> None:  # a model inside this one first: it is mostly the base, and what follows it a head
        container = group.get("layers", group.get("_layer_checkpoint_dependencies"))
        keys = sorted(container, key=_natural) if container is not None else []
        for key in keys:
            visit(container[key])
        for key in keys:
            layer = container[key]
            variables = layer.get("vars", {})
            arrays = [np.asarray(variables[n]) for n in sorted(variables, key=int)]
            if arrays:
                found.append((key, _text(variables.attrs.get("name", key)), arrays))

    visit(file)
    order = {config["name"]: i for i, config in enumerate(configs)}
    for key, name, arrays in sorted(found, key=lambda layer: order.get(layer[1], len(order))):
        class_name = re.sub(r"_\d+$", "", key)
        roles = _numbered(class_name, arrays, by_name.get(name))
        yield from _layer(name, roles, by_name.get(name), class_name)


def _spread(file: Any) -> Iterator[str]:
    """Classes that occur in a model and in a model inside it, of which the file does not say which come first."""
    places: dict[str, set[str]] = {}

    def note(name: str, item: Any) -> None:
        if name.endswith("/vars") and len(item):
            place, _, key = name.removesuffix("/vars").rpartition("/")
            places.setdefault(re.sub(r"_\d+$", "", key), set()).add(place)

    file.visititems(note)
    for class_name, found in places.items():
        if class_name in KINDS and len(found) > 1:
            yield f"{class_name} occurs in models inside the model; the order of them all is only in a whole model (.keras)"


def _numbered(class_name: str, arrays: list[Array], config: Config | None) -> dict[str, Array]:
    """Roles of weights that are only numbered: the order in which Keras' layers make them."""
    names: tuple[str, ...] = ("kernel", "bias")
    if class_name == "separable_conv2d":
        names = ("depthwise", "kernel", "bias")
    elif class_name == "batch_normalization":
        settings = config["config"] if config else {}
        names = ("gamma", "beta", "mean", "variance")
        if not settings and len(arrays) == 3:
            raise CheckpointError(
                "The file does not say whether batch norm is without scale or without shift. Save the whole model (.keras)."
            )
        left_out = {
            "gamma" if not settings.get("scale", True) else "",
            "beta" if not settings.get("center", True) else "",
        }
        names = tuple(name for name in names if name not in left_out)
    elif class_name not in KINDS:
        names = tuple(str(i) for i in range(len(arrays)))
    return dict(zip(names, arrays))


def _layer(name: str, roles: dict[str, Array], config: Config | None, class_name: str = "") -> Iterator[SourceLayer]:
    if not roles:
        return
    class_name = _snake(config["class"]) if config else class_name or _guessed(name, roles)
    settings = config["config"] if config else {}
    stride = settings["strides"][0] if isinstance(settings.get("strides"), list) else None
    padding = settings.get("padding", "") if stride else ""
    if class_name == "separable_conv2d":
        yield SourceLayer(
            f"{name}/depthwise", "depthwise", {"kernel": roles.pop("depthwise")}, "HWCM", None, None, stride, padding
        )
        yield SourceLayer(name, "conv", roles, "HWIO")
        return
    kind = KINDS.get(class_name, class_name)
    if kind == "depthwise" and "depthwise" in roles:
        roles = {"kernel" if role == "depthwise" else role: array for role, array in roles.items()}
    epsilon = settings.get("epsilon") if kind == "batchnorm" else None
    yield SourceLayer(name, kind, roles, LAYOUTS.get(kind, ""), epsilon, None, stride, padding)


def _guessed(name: str, roles: Mapping[str, Array]) -> str:
    """The class of a layer, where the file tells none."""
    if "mean" in roles and "variance" in roles:
        return "batch_normalization"
    if "depthwise" in roles:
        return "separable_conv2d" if "kernel" in roles else "depthwise_conv2d"
    kernel = roles.get("kernel")
    if kernel is None or kernel.ndim not in (2, 4):
        return "unknown"
    if kernel.ndim == 2:
        return "dense"
    deep = kernel.shape[3] == 1 and (
        len(roles["bias"]) == kernel.shape[2] > 1 if "bias" in roles else bool(re.search(r"depthwise|dw", name))
    )
    return "depthwise_conv2d" if deep else "conv2d"


def _connected(layers: list[SourceLayer], configs: list[Config]) -> Iterator[SourceLayer]:
    """The layers, batch norms with the layer that they follow, where the file tells."""
    inputs = {config["name"]: config["inputs"] for config in configs}
    active = {c["name"] for c in configs if c["config"].get("activation") not in (None, "linear")}
    for layer in layers:
        if layer.kind == "batchnorm" and layer.name in inputs:
            before = [name for name in inputs[layer.name] if name not in active]
            yield replace(layer, after=before[0] if before else "")
        else:
            yield layer


def _role(weight: str) -> str:
    last = re.sub(r"(_\d+)?(:\d+)?$", "", weight.rpartition("/")[2])
    return next((role for ending, role in ROLES if last.endswith(ending)), last)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().removesuffix("_v1")


def _natural(key: str) -> tuple[str, int]:
    number = re.search(r"_(\d+)$", key)
    return (key[: number.start()], int(number[1])) if number else (key, 0)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
