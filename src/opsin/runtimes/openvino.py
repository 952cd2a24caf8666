"""Run an OpenVINO or ONNX file with OpenVINO on the processor: arrays in, arrays by name out; no torch.

OpenVINO's telemetry package sends a message when it is imported; here it never is (OpenVINO then uses its own stub).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.errors import CheckpointError, MissingExtra
from opsin.runtimes.batching import in_batches

NAMES = ("openvino",)


def load_openvino() -> Any:
    """Import openvino with its telemetry kept out.

    Raises:
        MissingExtra: if it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # importing it is an ImportError now
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("openvino", "export", "OpenVINO") from error
    return openvino


class OpenVinoRuntime:
    """An OpenVINO model as a function from inputs to arrays.

    Args:
        path: of the `.xml` (its `.bin` beside it) or `.onnx` file.
        threads: processor threads; by default OpenVINO decides.
        precision: "f32" computes as the model was evaluated; "bf16" and "f16" are faster where the processor has the
            units and differ by some thousandths; None leaves it to OpenVINO, which takes the fast one.

    Raises:
        MissingExtra: if the package openvino is not installed.
        CheckpointError: if the file is missing or no such model.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None, precision: str | None = "f32") -> None:
        openvino = load_openvino()
        core = openvino.Core()
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if precision is not None:
            options["INFERENCE_PRECISION_HINT"] = precision
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            self.model = core.read_model(os.fspath(path))
            self.compiled = core.compile_model(self.model, "CPU", options)
        except RuntimeError as error:
            raise CheckpointError(f"{path} cannot be loaded by OpenVINO: {error}") from error
        self.version: str = openvino.__version__
        self.outputs: list[str] = [sorted(one.get_names())[0] for one in self.compiled.outputs]

    @property
    def metadata(self) -> dict[str, str]:
        """What opsin wrote into the file, by name."""
        if not self.model.has_rt_info(["opsin"]):
            return {}
        return {name: str(value) for name, value in self.model.get_rt_info(["opsin"]).value.items()}

    @property
    def batch(self) -> int | None:
        """Number of pictures that the graph is fixed to, None for any number."""
        first = self.model.inputs[0].get_partial_shape()[0]
        return None if first.is_dynamic else int(first.get_length())

    def __call__(self, inputs: Any) -> Mapping[str, NDArray[Any]]:
        """Inputs (B, C, H, W), arrays or whatever numpy turns into them, to arrays with first axis B."""
        return in_batches(self._run, np.ascontiguousarray(inputs), self.batch)

    def _run(self, inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        found = self.compiled([inputs])
        return {name: np.array(found[place]) for place, name in enumerate(self.outputs)}


build = OpenVinoRuntime
