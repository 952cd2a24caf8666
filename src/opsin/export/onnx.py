"""ONNX: one file with graph, weights and metadata, for ONNX Runtime and whatever else reads ONNX.

Operators of opset 18; float32. Weights above 2 GB lie in a second file beside it, as ONNX demands.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opsin.errors import ConfigError, MissingExtra
from opsin.export import INPUT, Target, Traced

NAMES = ("onnx",)
OPSET = 18
LIMIT = 2_000_000_000  # bytes that one protocol buffer can hold, with room for the graph


def write(traced: Traced, metadata: Mapping[str, str], path: Path) -> None:
    """Write and check an ONNX file; every metadata entry is called `opsin.NAME` in it.

    Raises:
        MissingExtra: if onnx or onnxscript is not installed.
        ConfigError: if an operator of the model has no form in ONNX.
    """
    onnx = _packages()
    import torch

    try:
        converted = torch.onnx.export(
            traced.program, (), input_names=[INPUT], output_names=list(traced.outputs),
            opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise ConfigError(f"The model has no form in ONNX: {str(error).splitlines()[0]}") from error
    if converted is None:
        raise ConfigError("torch.onnx.export gave no graph; another version of torch may be installed.")
    size = sum(t.numel() * t.element_size() for t in traced.program.state_dict.values())
    converted.model.metadata_props.update({f"opsin.{name}": text for name, text in metadata.items()})
    if traced.batch is None:
        _name_batch_axis(converted.model)
    _forget_sources(converted.model)
    converted.save(path, external_data=size > LIMIT)
    onnx.checker.check_model(str(path), full_check=True)


def _packages() -> Any:
    for package in ("onnx", "onnxscript"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtra(package, "export", "Export to ONNX") from error
    import onnx

    return onnx


def _name_batch_axis(model: Any) -> None:
    """Call the first axis of inputs and outputs `batch`; the tracer calls it `s34` or so."""
    traced = model.graph.inputs[0].shape[0].value
    values = {*model.graph.inputs, *model.graph.outputs, *(value for node in model.graph for value in node.outputs)}
    for value in values:
        for place, size in enumerate(value.shape or ()):
            if getattr(size, "value", None) == traced and not isinstance(size, int):
                value.shape[place] = "batch"


def _forget_sources(model: Any) -> None:
    """Leave out the lines of Python, with paths on this machine, that every node was traced from."""
    for part in (model.graph, *model.graph, *(value for node in model.graph for value in node.outputs)):
        part.metadata_props.clear()


build = Target("model.onnx", "onnxruntime", write)
