"""Weights of ONNX files: initializers, as the nodes that use them say what they are.

Names of PyTorch's exporters are kept, so that they can agree with ours. A batch norm that the exporter folded into its
convolution is not there any more: such a convolution has a bias instead. Operators are read, never run; a graph that
came from TensorFlow (a turn to channels-last in front of the dense layer) is noticed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from opsin.errors import CheckpointError, MissingExtra
from opsin.models.importers import Array, Source, SourceLayer

NAMES = ("onnx",)

SAME = {"Identity", "Cast", "CastLike", "Expand"}  # exporters put these between an initializer and its use
PASSING = {"Reshape", "Flatten", "Squeeze", "Identity", "Dropout", "Relu", "Clip", "Cast", "BatchNormalization"}
AFTER_VERSION = {0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42}  # the fields that may follow the first one of a ModelProto


def sniff(path: Path) -> bool:
    """Whether the file begins like a ModelProto: the version of the format (field 1, a small number), then a field of it."""
    with path.open("rb") as file:
        start = file.read(9)
    return (
        len(start) == 9 and start[0] == 0x08 and 0 < start[1] < 64 and start[2] in AFTER_VERSION and start[8:] != b"{"
    )


def read(path: Path) -> Source:
    """Read the layers in the order of the nodes, which the format demands to be an order of execution.

    Raises:
        MissingExtra: without onnx.
        CheckpointError: if values are kept in another file.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("onnx", "import", "reading weights from ONNX files") from error
    graph = onnx.load(str(path), load_external_data=False).graph
    _require_inside(graph, path)
    return _Graph(graph).source()


def _require_inside(graph: Any, path: Path) -> None:
    """Refuse tensors that name another file, which could be any file of this machine."""
    from onnx import TensorProto

    values = [_attribute(node, "value") for node in graph.node if node.op_type == "Constant"]
    for tensor in [*graph.initializer, *(value for value in values if value is not None)]:
        if tensor.data_location == TensorProto.EXTERNAL:
            other = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            raise CheckpointError(
                f"{path}: the values of {tensor.name or 'a constant'} are kept in another file ({other}), which is not "
                "read. Save the model as one file: torch.onnx.export(..., external_data=False), or "
                "onnx.save(onnx.load(FILE), NEW)."
            )


class _Graph:
    """The nodes of a graph by what they make, and its constants.

    Args:
        graph: onnx.GraphProto.
    """

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self.graph = graph
        self.makers = {output: node for node in graph.node for output in node.output}
        self.constants: dict[str, Array] = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and (value := _attribute(node, "value")) is not None:
                self.constants[node.output[0]] = numpy_helper.to_array(value)

    def source(self) -> Source:
        """All layers, then the floating-point initializers that belong to none."""
        layers: list[SourceLayer] = []
        layer_of: dict[str, str] = {}  # output -> name of the layer that made it
        used: set[str] = set()
        known: set[str] = set()
        order = "CHW"
        for node in self.graph.node:
            layer = self._layer(node, layer_of, used)
            if layer is None:
                continue
            if layer.kind == "dense" and not any(other.kind == "dense" for other in layers):
                order = self._order(node.input[0])
            layer_of[node.output[0]] = layer.name
            if layer.name not in known:  # a layer can be used twice
                layers.append(layer)
                known.add(layer.name)
        others: dict[str, dict[str, Array]] = {}
        for name, array in self.constants.items():
            if name not in used and array.dtype.kind == "f" and array.ndim and name not in self.makers:
                start, _, role = name.rpartition(".")
                others.setdefault(start or name, {})["kernel" if role == "weight" else role] = array
        layers += [SourceLayer(name, "other", arrays) for name, arrays in others.items() if name not in known]
        return Source("onnx", tuple(layers), flattened=order)

    def _layer(self, node: Any, layer_of: dict[str, str], used: set[str]) -> SourceLayer | None:
        """The layer of a node; names of its initializers are noted as used."""
        kind = node.op_type
        if kind not in ("Conv", "Gemm", "MatMul", "BatchNormalization"):
            return None
        found = [self._constant(name) for name in node.input[1:] if name]
        if not found or any(pair is None for pair in found):
            return None
        pairs = [pair for pair in found if pair is not None]
        used.update(name for name, _ in pairs)
        arrays = [array for _, array in pairs]
        name = next((n.rpartition(".")[0] for n, _ in pairs if n.endswith((".weight", ".kernel"))), "") or (
            node.name or node.output[0]
        )
        if kind == "BatchNormalization":
            roles = dict(zip(("gamma", "beta", "mean", "variance"), arrays))
            epsilon = _attribute(node, "epsilon")
            after = layer_of.get(node.input[0], "")
            return SourceLayer(name, "batchnorm", roles, epsilon=1e-5 if epsilon is None else epsilon, after=after)
        if kind == "Conv":
            groups = _attribute(node, "group") or 1
            if len(arrays) > 1:  # the exporter writes "no bias" as one zero for all
                arrays[1] = np.broadcast_to(arrays[1], arrays[0].shape[:1])
            deep = groups > 1 and arrays[0].shape[1] == 1
            roles = dict(zip(("kernel", "bias"), arrays))
            stride = (_attribute(node, "strides") or [1])[0]
            pads = [str(pad) for pad in _attribute(node, "pads") or [0]]
            padding = pads[0] if len(set(pads)) == 1 else ",".join(pads)
            if _attribute(node, "auto_pad") not in (None, b"NOTSET"):
                padding = ""
            return SourceLayer(name, "depthwise" if deep else "conv", roles, "OIHW", None, None, stride, padding)
        if arrays[0].ndim != 2:
            return None
        roles = dict(zip(("kernel", "bias"), arrays))
        if kind == "MatMul":
            for user in self.graph.node:
                if user.op_type == "Add" and node.output[0] in user.input:
                    bias = next((c for i in user.input if (c := self._constant(i)) and c[1].ndim == 1), None)
                    if bias:
                        used.add(bias[0])
                        roles["bias"] = bias[1]
                        layer_of[user.output[0]] = name
        layout = "OI" if kind == "Gemm" and _attribute(node, "transB") else "IO"
        return SourceLayer(name, "dense", roles, layout)

    def _constant(self, name: str) -> tuple[str, Array] | None:
        """(name of the initializer, its values), through nodes that leave it as it is or turn it over."""
        if name in self.constants:
            return name, self.constants[name]
        node = self.makers.get(name)
        if node is None or node.op_type not in {*SAME, "Transpose"}:
            return None
        found = self._constant(node.input[0])
        if found and node.op_type == "Transpose":
            return found[0], found[1].transpose(_attribute(node, "perm"))
        return found

    def _order(self, name: str) -> str:
        """Order of the pixels in front of a dense layer."""
        node = self.makers.get(name)
        for _ in range(len(self.makers)):  # a damaged graph may go round in circles
            if node is None or node.op_type not in PASSING:
                break
            node = self.makers.get(node.input[0])
        turned = (
            node is not None and node.op_type == "Transpose" and list(_attribute(node, "perm") or ()) == [0, 2, 3, 1]
        )
        return "HWC" if turned else "CHW"


def _attribute(node: Any, name: str) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)
