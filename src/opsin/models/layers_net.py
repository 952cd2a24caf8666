"""Layers: a network from a description, a chain of layers in short notation or a graph of such chains.

Paper: none; the notation of textbooks' tables of networks, read by `opsin.layers.notation`.
Implements: any of them, e.g. `chain="C5x32 same, P2, C5x64 same, P2, FC1024, drop .4, FC"` (3,274,634 parameters at
    28x28x1 and 10 classes).
Differs from the paper: weights are He's, biases 0 (`model.init` takes others).
Checked against: parameter counts and shapes by formula, the same layers written in torch (tests/unit/test_layers_net.py).
Reproduced: not yet run.
Weights: none shipped.

A convolution or dense layer is followed by `activation` (behind its BN, if that is next), unless its chain names an
activation before the next such layer; `linear` names none. The last `FC` has as many outputs as there are classes, and
what it gives are logits: nothing may stand behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from opsin.errors import ConfigError, ShapeError, UnknownName
from opsin.layers.from_notation import WEIGHTED, activated, make_module
from opsin.layers.layout import channels_last_hint
from opsin.layers.notation import ACTIVATIONS, Layer, read_layers
from opsin.models import Classified, Feature

NAMES = ("layers",)

INPUT = "input"
CHAIN = "chain"
_KEYS = ("layers", "from", "join", "same")
_EXAMPLE = "'C5x32 same, P2, C5x64 same, P2, FC1024, drop .4, FC'"
_SQUASHING = {
    "SOFTMAX": "the loss takes the logarithm of a softmax itself, and a second softmax leaves hardly a gradient",
    "SIGMOID": "the loss takes the logarithm of a sigmoid or softmax itself, and a second one leaves hardly a gradient",
    "RELU": "it would cut off all negative logits, and a class whose logit is 0 gets no gradient",
}


@dataclass(frozen=True)
class Node:
    """One chain of the graph, and where its input comes from.

    Args:
        name: of the node.
        layers: as read.
        source: names of earlier nodes, or `input`.
        join: how several sources become one.
        head: whether it ends in the classes.
        same: the earlier node whose weights it shares.
    """

    name: str
    layers: tuple[Layer, ...]
    source: tuple[str, ...] = (INPUT,)
    join: Literal["add", "concat"] = "concat"
    head: bool = False
    same: str | None = None


@dataclass(frozen=True)
class _Place:
    """What is between two layers: its shape, and picture pixels per cell.

    `stride` is None behind a transposed convolution, for vectors, and where a map grew beyond its picture. `one_size` says
    whether pictures of another size would not fit a dense layer before this place.
    """

    shape: tuple[int, ...]
    stride: int | None = 1
    one_size: bool = False

    def __str__(self) -> str:
        return " x ".join(map(str, self.shape))


class LayersNet(nn.Module):
    """A graph of chains; a single chain is a graph of one node.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        image_size: (H, W) of the pictures.
        nodes: in the order of computation. The last head gives the logits, earlier ones `auxiliary` in training mode.
        activation: behind convolutions and dense layers that name none.

    Raises:
        ShapeError: if a layer cannot take what it gets; the message names the layer.
    """

    def __init__(
        self, num_classes: int, in_channels: int, image_size: tuple[int, int], nodes: Sequence[Node], activation: Layer
    ) -> None:
        super().__init__()
        self.image_shape = (in_channels, *image_size)
        self.nodes = tuple(nodes)
        self.answer = next(node.name for node in reversed(nodes) if node.head)
        self.trunk, self.heads = nn.ModuleDict(), nn.ModuleDict()
        self._places: dict[str, _Place] = {INPUT: _Place(self.image_shape)}
        self._levels: dict[int, tuple[str, str, int]] = {}  # stride: node, layer, channels
        for node in nodes:
            self._add(node, activation, num_classes)
        self.one_size = any(place.one_size for place in self._places.values())
        self.head_names = tuple(f"heads.{name}" for name in self.heads)
        self.feature_info = [Feature(self._levels[stride][2], stride) for stride in sorted(self._levels)]

    # Putting it together ----------------------------------------------------------------------------------------------

    def _add(self, node: Node, activation: Layer, num_classes: int) -> None:
        layers, last = (node.layers[:-1], node.layers[-1]) if node.head else (node.layers, None)
        full = list(activated(layers, activation))
        start = self._joined(node)
        if node.same is not None:
            with torch.device("meta"):
                modules, place = self._chain(node, full, start)
            _refuse_other_shapes(node, modules, self.trunk[node.same])
        else:
            modules, place = self._chain(node, full, start)
            self.trunk[node.name] = modules
        if last is not None:
            self.heads[node.name] = nn.Linear(math.prod(place.shape), num_classes, bias=last.bias)
            place = replace(place, one_size=place.one_size or len(place.shape) == 3)
        self._places[node.name] = place

    def _joined(self, node: Node) -> _Place:
        places = [self._places[name] for name in node.source]
        first = places[0]
        if len(places) == 1:
            return first
        alike = {place.shape if node.join == "add" else place.shape[1:] for place in places}
        if len(alike) > 1 or len({len(place.shape) for place in places}) > 1:
            words = ", ".join(f"{name} is {place}" for name, place in zip(node.source, places))
            raise ShapeError(f"layers: node '{node.name}' cannot {node.join} what comes from its nodes: {words}.")
        channels = first.shape[0] if node.join == "add" else sum(place.shape[0] for place in places)
        stride = first.stride if len({place.stride for place in places}) == 1 else None
        return _Place((channels, *first.shape[1:]), stride, any(place.one_size for place in places))

    def _chain(self, node: Node, layers: Sequence[Layer], place: _Place) -> tuple[nn.Sequential, _Place]:
        """Modules of a node, and what is behind them; notes the last map of each stride."""
        modules: dict[str, nn.Module] = {}
        number = 0
        for layer in layers:
            number += any(layer is own for own in node.layers)  # activations that were put in have no number
            if layer.kind == "dense" and len(place.shape) == 3:
                modules[_name("flatten", modules)] = nn.Flatten()
                place = _Place((math.prod(place.shape),), None, True)
            try:
                with torch.device("meta"):  # shapes as torch has them, at no cost
                    probe = make_module(layer, place.shape).eval()
                    shape = tuple(probe(torch.empty(1, *place.shape)).shape[1:])
                module = make_module(layer, place.shape)
            except (RuntimeError, ValueError, ConfigError, ShapeError) as error:
                where = f"layers: layer {number} ('{layer.text}')" + _of(node)
                raise ShapeError(f"{where} cannot take {place}: {error}") from error
            if layer.kind in WEIGHTED:
                _initialize(module)
            name = _name(layer.name.lower() if layer.kind == "keep" else layer.kind, modules)
            modules[name] = module
            flattens = layer.kind == "flatten" and len(place.shape) == 3
            place = _Place(shape, self._stride(layer, place, shape), place.one_size or flattens)
            if place.stride is not None and (not node.head or node.name == self.answer):
                self._levels[place.stride] = (node.name, name, shape[0])
        found = nn.Sequential()
        for name, module in modules.items():
            found.add_module(name, module)
        return found, place

    def _stride(self, layer: Layer, place: _Place, shape: tuple[int, ...]) -> int | None:
        if place.stride is None or len(shape) < 3 or layer.kind == "transposed":
            return None
        stride = place.stride * layer.stride
        fits = all(cells <= -(-pixels // stride) for cells, pixels in zip(shape[1:], self.image_shape[1:]))
        return stride if fits else None

    # Running ----------------------------------------------------------------------------------------------------------

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """The last map of each stride, finest first: (B, channels, H / stride, W / stride) as in `feature_info`."""
        wanted = [self._levels[stride][:2] for stride in sorted(self._levels)]
        needed = {name for name, _ in wanted}
        for node in reversed(self.nodes):
            needed |= set(node.source) if node.name in needed else set()
        values: dict[str, Tensor] = {INPUT: images}
        maps: dict[tuple[str, str], Tensor] = {}
        for node in self.nodes:
            if node.name in needed:
                x = self._input(node, values)
                left = {layer for name, layer in wanted if name == node.name}
                passed_on = any(node.name in other.source for other in self.nodes if other.name in needed)
                for name, module in self._modules_of(node).named_children():
                    if not left and not passed_on:  # dense layers that fit one size of pictures alone
                        break
                    x = module(x)
                    maps[node.name, name] = x
                    left.discard(name)
                values[node.name] = x
        return [maps[one] for one in wanted]

    def forward(self, images: Tensor) -> Classified:
        self._check(images)
        values: dict[str, Tensor] = {INPUT: images}
        auxiliary: list[Tensor] = []
        for node in self.nodes:
            if node.head and node.name != self.answer and not self.training:
                continue
            x = self._modules_of(node)(self._input(node, values))
            if node.head:
                x = self.heads[node.name](x.flatten(1))  # (B, K)
                if node.name != self.answer:
                    auxiliary.append(x)
            values[node.name] = x
        return Classified(values[self.answer], tuple(auxiliary))

    def _modules_of(self, node: Node) -> nn.Module:
        return self.trunk[node.same or node.name]

    def _input(self, node: Node, values: Mapping[str, Tensor]) -> Tensor:
        given = [values[name] for name in node.source]
        if len(given) == 1:
            return given[0]
        return torch.cat(given, 1) if node.join == "concat" else torch.stack(given).sum(0)

    def _check(self, images: Tensor) -> None:
        expected, given = self.image_shape, tuple(images.shape[1:])
        if images.ndim != 4 or given[0] != expected[0] or (self.one_size and given != expected):
            wanted = ", ".join(map(str, expected)) if self.one_size else f"{expected[0]}, H, W"
            hint = channels_last_hint(images.shape, expected[0], "images.permute(0, 3, 1, 2)")
            raise ShapeError(f"This network is built for pictures (B, {wanted}); got {tuple(images.shape)}.{hint}")


def _initialize(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith("weight"):
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        else:
            nn.init.zeros_(parameter)


def _name(kind: str, taken: Mapping[str, Any]) -> str:
    """conv1, conv2, ... in the order of a chain."""
    return f"{kind}{1 + sum(name.rstrip('0123456789') == kind for name in taken)}"


def _of(node: Node) -> str:
    return "" if node.name == CHAIN else f" of node '{node.name}'"


def _refuse_other_shapes(node: Node, modules: nn.Module, shared: nn.Module) -> None:
    have = {name: tuple(tensor.shape) for name, tensor in shared.state_dict().items()}
    for name, tensor in modules.state_dict().items():
        if tuple(tensor.shape) != have[name]:
            raise ShapeError(
                f"layers: node '{node.name}' cannot share the weights of '{node.same}': for what it is given, {name} would be "
                f"{tuple(tensor.shape)}, and it is {have[name]}. Bring both inputs to the same channels (and size, for dense "
                f"layers)."
            )


# From a description to nodes ------------------------------------------------------------------------------------------


def _single(text: str, num_classes: int, padding: Literal["valid", "same"]) -> Node:
    """The node of a chain, whose last dense layer gives the classes."""
    layers = _read(CHAIN, text, padding)
    last = max((i for i, layer in enumerate(layers) if layer.kind == "dense"), default=None)
    if last is None:
        raise ConfigError(f"layers: '{text}' does not end in FC, which gives the classes. Expected e.g. {_EXAMPLE}.")
    if layers[last].channels not in (0, num_classes):
        raise ConfigError(
            f"layers: the last dense layer is '{layers[last].text}', and there are {num_classes} classes. Write FC without a "
            f"number at the end: it has as many outputs as there are classes."
        )
    behind = [layer for layer in layers[last + 1 :] if layer.name != "LINEAR"]
    if behind:
        raise ConfigError(_behind_the_logits(behind[0]))
    return Node(CHAIN, (*layers[:last], replace(layers[last], channels=0)), head=True)


def _graph(description: Mapping[str, Any], padding: Literal["valid", "same"]) -> list[Node]:
    given = description.get("nodes") if set(description) == {"nodes"} else None
    if not isinstance(given, Mapping) or not given:
        raise ConfigError('layers: expected graph = {"nodes": {NAME: "C3x32 same, P2", ...}} with one node or more.')
    nodes: list[Node] = []
    for name, value in given.items():
        nodes.append(_node(name, {"layers": value} if isinstance(value, str) else value, nodes, padding))
    _refuse_loose_ends(nodes)
    return nodes


def _node(name: str, given: Any, earlier: Sequence[Node], padding: Literal["valid", "same"]) -> Node:
    if not name.isidentifier() or name == INPUT or hasattr(nn.ModuleDict, name):
        raise ConfigError(
            f"layers: a node cannot be called '{name}'. Expected letters, digits and _, and not '{INPUT}'."
        )
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"layers: node '{name}' is {given!r}; expected layers as text, or a mapping with 'layers' or 'same'."
        )
    for key in given:
        if key not in _KEYS:
            raise UnknownName(f"key of node '{name}'", key, _KEYS)
    known = [INPUT, *(node.name for node in earlier)]
    before = INPUT if not earlier or earlier[-1].head else earlier[-1].name
    source = given.get("from", before)
    source = (source,) if isinstance(source, str) else tuple(source)
    for one in source:
        if one not in known:
            raise UnknownName(f"node before '{name}'", str(one), known)
    join = given.get("join", "concat")
    if join not in ("add", "concat") or not source:
        raise ConfigError(
            f"layers: node '{name}': expected inputs in 'from', and join 'add' or 'concat'; got {join!r}."
        )
    if "same" in given:
        twin = next((node for node in earlier if node.name == given["same"]), None)
        if twin is None or twin.head or "layers" in given:
            raise ConfigError(
                f"layers: node '{name}' is to share the weights of '{given['same']}': expected the name of an earlier node that "
                f"does not end in the classes, and no layers beside it."
            )
        return Node(name, twin.layers, source, join, same=twin.same or twin.name)
    layers = _read(name, given.get("layers", ""), padding)
    ends = [i for i, layer in enumerate(layers) if layer.kind == "dense" and not layer.channels]
    if ends and (behind := [layer for layer in layers[ends[0] + 1 :] if layer.name != "LINEAR"]):
        raise ConfigError(_behind_the_logits(behind[0]))
    return Node(name, layers[: ends[0] + 1] if ends else layers, source, join, head=bool(ends))


def _refuse_loose_ends(nodes: Sequence[Node]) -> None:
    used = {name for node in nodes for name in node.source}
    if not any(node.head for node in nodes):
        raise ConfigError("layers: no node ends in FC, which gives the classes.")
    for node in nodes:
        if node.head and node.name in used:
            raise ConfigError(f"layers: node '{node.name}' ends in the classes; no other node can take that.")
        if not node.head and node.name not in used:
            raise ConfigError(
                f"layers: nothing takes what node '{node.name}' gives. Name it in 'from', or end it with FC."
            )


def _read(node: str, text: Any, padding: Literal["valid", "same"]) -> tuple[Layer, ...]:
    if not isinstance(text, str):
        raise ConfigError(f"layers: node '{node}': expected layers as text such as {_EXAMPLE}; got {text!r}.")
    return tuple(read_layers(text, padding))


def _behind_the_logits(layer: Layer) -> str:
    reason = _SQUASHING.get(layer.name, "the loss takes what the last FC gives as it is")
    return f"layers: '{layer.text}' stands behind the last FC: {reason}. Leave it out."


def layers(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: tuple[int, int] = (28, 28),
    chain: str | None = None,
    graph: Mapping[str, Any] | None = None,
    padding: Literal["valid", "same"] = "valid",
    activation: str = "relu",
) -> LayersNet:
    """Build the network that a chain or a graph describes.

    Args:
        num_classes: outputs of every FC without a number.
        in_channels: C of the pictures.
        image_size: (H, W) of the pictures.
        chain: layers in short notation, the last one FC.
        graph: `{"nodes": {NAME: node, ...}}` in the order of computation. A node is its layers as text, or a mapping:
            `layers`; `from`, the name or names of earlier nodes or `input` (by default the node before); `join`, `add` or
            `concat`, for several names; `same`, an earlier node whose weights it shares, instead of layers. Nodes that end
            in FC are heads: the last one answers, the loss of earlier ones is added in training.
        padding: of convolutions that say nothing of it.
        activation: behind convolutions and dense layers that name none; `linear` is none.

    Raises:
        ConfigError: if the description cannot be read.
        ShapeError: if a layer cannot take what it gets.
    """
    if (chain is None) == (graph is None):
        raise ConfigError(f"layers: expected one description, chain or graph, e.g. model.kwargs.chain={_EXAMPLE}.")
    if padding not in ("valid", "same"):
        raise ConfigError(f"layers: padding = {padding!r}; expected 'valid' or 'same'.")
    usual = read_layers(activation)
    if len(usual) != 1 or usual[0].name not in ACTIVATIONS:
        raise ConfigError(f"layers: activation = {activation!r}; expected one of {', '.join(ACTIVATIONS).lower()}.")
    nodes = _graph(graph or {}, padding) if chain is None else [_single(chain, num_classes, padding)]
    return LayersNet(num_classes, in_channels, image_size, nodes, usual[0])
