"""Weights of frozen TensorFlow graphs (.pb): a GraphDef whose variables have become Const nodes; read without TensorFlow.

Field numbers are those of TensorFlow's public graph.proto, node_def.proto, attr_value.proto, tensor.proto and
tensor_shape.proto. Layers are what uses the constants: Conv2D, DepthwiseConv2dNative, MatMul, FusedBatchNorm, and the
addition of a constant row behind one of them. Batch norm that was folded into multiplications is not recognized.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from opsin.errors import CheckpointError
from opsin.models.importers import Array, Source, SourceLayer
from opsin.wire import fields, messages, number

NAMES = ("tf-frozen",)

TYPES = {1: ("<f4", 5), 2: ("<f8", 6)}  # DataType: values of tensor_content, field of single values
KINDS = {"Conv2D": "conv", "DepthwiseConv2dNative": "depthwise", "MatMul": "dense"}
LAYOUTS = {"conv": "HWIO", "depthwise": "HWCM", "dense": "IO"}
NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
ADDITIONS = ("BiasAdd", "Add", "AddV2")
EPSILON = 1e-4  # of FusedBatchNorm, when the node leaves it out


@dataclass(frozen=True)
class Node:
    """A NodeDef: name, operation, names of the inputs (data only), attributes as encoded AttrValues."""

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: dict[str, bytes]


def sniff(path: Path) -> bool:
    """Whether the file begins like a GraphDef: a node (field 1) that begins with its name (1) and operation (2), in ASCII."""
    with path.open("rb") as file:
        start = file.read(4096)
    if start[:1] != b"\x0a":
        return False
    position = 2
    while position < len(start) and start[position - 1] >= 128:
        position += 1
    for tag in (0x0A, 0x12):
        if len(start) < position + 2 or start[position] != tag:
            return False
        end = position + 2 + start[position + 1]
        word = start[position + 2 : end]
        if not word or not word.isascii() or not word.decode().isprintable():
            return False
        position = end
    return True


def read(path: Path) -> Source:
    """Read the layers in an order of execution.

    Raises:
        CheckpointError: if the graph still has variables: it is not frozen.
    """
    nodes = {node.name: node for node in map(_node, messages(fields(path.read_bytes()).get(1)))}
    if any(node.op in ("VariableV2", "VarHandleOp") for node in nodes.values()):
        raise CheckpointError(f"{path}: the graph has variables, whose values lie elsewhere. Freeze it first.")
    layers: dict[str, SourceLayer] = {}
    layer_of: dict[str, str] = {}  # node -> the layer whose output it is
    first = ""
    for node in _ordered(nodes):
        arrays = [_constant(nodes, name) for name in node.inputs[1:]]
        known = [array for array in arrays if array is not None]
        if node.op in KINDS and known:
            kind = KINDS[node.op]
            layout = "OI" if kind == "dense" and number(_attribute(node, "transpose_b").get(5)) else LAYOUTS[kind]
            name = node.name.removesuffix("/" + node.op)
            padding = _attribute(node, "padding").get(2)
            words = messages(padding)[0].decode().lower() if padding else ""
            layers[name] = SourceLayer(name, kind, {"kernel": known[0]}, layout, None, None, _stride(node), words)
            layer_of[node.name] = name
        elif node.op in NORMS and len(known) == 4:
            name = node.name.removesuffix("/" + node.op)
            stored = _attribute(node, "epsilon").get(4)
            epsilon = struct.unpack("<f", messages(stored)[0])[0] if stored else EPSILON
            roles = dict(zip(("gamma", "beta", "mean", "variance"), known))
            after = layer_of.get(node.inputs[0], "")
            layers[name] = SourceLayer(name, "batchnorm", roles, epsilon=epsilon, after=after)
        elif node.op in ADDITIONS:
            _add_bias(node, nodes, layers, layer_of)
        if node.op in ("Conv2D", "BiasAdd", "MaxPool") and _attribute(node, "data_format").get(2):
            first = first or messages(_attribute(node, "data_format")[2])[0].decode()
    return Source("tf-frozen", tuple(layers.values()), 1e-3, "CHW" if first == "NCHW" else "HWC")


def _add_bias(node: Node, nodes: dict[str, Node], layers: dict[str, SourceLayer], layer_of: dict[str, str]) -> None:
    for left, right in (node.inputs[:2], node.inputs[1::-1]):
        bias, layer = _constant(nodes, right), layers.get(layer_of.get(left, ""))
        if bias is not None and bias.ndim == 1 and layer is not None and "bias" not in layer.arrays:
            roles = {**layer.arrays, "bias": bias}
            layers[layer.name] = replace(layer, arrays=roles)
            layer_of[node.name] = layer.name
            return


def _node(message: bytes) -> Node:
    found = fields(message)
    inputs = [name.decode() for name in messages(found.get(3))]
    attributes = {}
    for entry in messages(found.get(5)):  # a map: key 1, value 2
        pair = fields(entry)
        attributes[messages(pair[1])[0].decode()] = messages(pair[2])[0]
    data = tuple(name.partition(":")[0] for name in inputs if not name.startswith("^"))
    return Node(messages(found[1])[0].decode(), messages(found[2])[0].decode(), data, attributes)


def _attribute(node: Node, name: str) -> dict[int, list[int | bytes]]:
    """AttrValue: s = 2, i = 3, f = 4, b = 5, tensor = 8."""
    return fields(node.attributes[name]) if name in node.attributes else {}


def _stride(node: Node) -> int | None:
    """The larger of the strides: along rows and columns they are the same, along pictures and channels 1."""
    steps = fields(messages(_attribute(node, "strides").get(1, [b""]))[0]).get(3)  # list(i), packed
    if not steps:
        return None
    return max(max(step) if isinstance(step, bytes) else step for step in steps)


def _ordered(nodes: dict[str, Node]) -> Iterator[Node]:
    """Nodes, each after those that it takes something from; otherwise as in the file."""
    done: set[str] = set()
    for start in nodes:
        waiting = [start]
        while waiting:
            name = waiting[-1]
            missing = [i for i in nodes[name].inputs if i in nodes and i not in done and i not in waiting]
            if missing:
                waiting.append(missing[0])
                continue
            waiting.pop()
            if name not in done:
                done.add(name)
                yield nodes[name]


def _constant(nodes: dict[str, Node], name: str) -> Array | None:
    """The floating-point values behind a name, through Identity; None if it is computed."""
    node = nodes.get(name)
    seen = 0
    while node is not None and node.op == "Identity" and node.inputs and seen < len(nodes):
        node, seen = nodes.get(node.inputs[0]), seen + 1
    if node is None or node.op != "Const":
        return None
    value = messages(_attribute(node, "value").get(8))
    if not value:
        raise ValueError(f"the constant {node.name} has no value")
    tensor = fields(value[0])
    kind = number(tensor.get(1))
    if kind not in TYPES:
        return None
    shape = _shape(tensor)
    dtype, single = TYPES[kind]
    count = prod(shape)
    if 4 in tensor:  # tensor_content
        values = np.frombuffer(messages(tensor[4])[0], dtype)
    else:
        values = np.frombuffer(b"".join(messages(tensor.get(single))), dtype)
        if 0 < len(values) < count:  # the last one stands for the rest
            values = np.pad(values, (0, count - len(values)), "edge")
    if len(values) != count:
        raise ValueError(f"{node.name} has {len(values)} values for the shape {shape}")
    return values.reshape(shape)


def _shape(tensor: dict[int, list[int | bytes]]) -> tuple[int, ...]:
    if 2 not in tensor:
        return ()
    return tuple(number(fields(d).get(1)) for d in messages(fields(messages(tensor[2])[0]).get(2)))
