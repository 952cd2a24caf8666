"""Run an ONNX file with ONNX Runtime on the processor: arrays in, arrays by name out; no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.errors import CheckpointError, MissingExtra
from opsin.runtimes.batching import in_batches

NAMES = ("onnxruntime",)


class OnnxRuntime:
    """An ONNX file as a function from inputs to arrays.

    Args:
        path: of the `.onnx` file.
        threads: processor threads; by default one per core.

    Raises:
        MissingExtra: if the package onnxruntime is not installed.
        CheckpointError: if the file is missing or no ONNX graph.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtra("onnxruntime", "export", "Running an ONNX file") from error
        if hasattr(onnxruntime, "disable_telemetry_events"):
            onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base
            raise CheckpointError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
        self.version: str = onnxruntime.__version__
        self.input = self.session.get_inputs()[0]
        self.outputs: list[str] = [one.name for one in self.session.get_outputs()]

    @property
    def metadata(self) -> dict[str, str]:
        """What opsin wrote into the file, by name."""
        found = self.session.get_modelmeta().custom_metadata_map
        return {name.removeprefix("opsin."): value for name, value in found.items() if name.startswith("opsin.")}

    @property
    def batch(self) -> int | None:
        """Number of pictures that the graph is fixed to, None for any number."""
        first = self.input.shape[0]
        return first if isinstance(first, int) else None

    def __call__(self, inputs: Any) -> Mapping[str, NDArray[Any]]:
        """Inputs (B, C, H, W), arrays or whatever numpy turns into them, to arrays with first axis B."""
        return in_batches(self._run, np.ascontiguousarray(inputs), self.batch)

    def _run(self, inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return dict(zip(self.outputs, self.session.run(self.outputs, {self.input.name: inputs})))


build = OnnxRuntime
