"""OpenVINO: graph (.xml) and weights (.bin) for Intel processors, graphics and neural units.

Weights stay float32 (nothing is compressed in silence). In which precision the graph computes is decided when it is
loaded; the comparison runs in float32, as opsin's runtime does by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from opsin.errors import ConfigError
from opsin.export import INPUT, Target, Traced
from opsin.runtimes.openvino import load_openvino

NAMES = ("openvino",)


def write(traced: Traced, metadata: Mapping[str, str], path: Path) -> None:
    """Convert the traced graph and write it; the metadata stand under `opsin` in its `rt_info`.

    Raises:
        MissingExtra: if openvino is not installed.
        ConfigError: if an operator of the model has no form in OpenVINO.
    """
    openvino = load_openvino()
    _teach_uint16()
    try:
        model = openvino.convert_model(traced.program)
        shape = [-1 if traced.batch is None else traced.batch, *traced.example.shape[1:]]
        model.reshape(openvino.PartialShape(shape))
    except Exception as error:  # the frontends raise many kinds
        raise ConfigError(f"The model has no form in OpenVINO: {str(error).splitlines()[0]}") from error
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, traced.outputs, strict=True):
        output.get_tensor().set_names({name})
    for name, text in metadata.items():
        model.set_rt_info(text, ["opsin", name])
    openvino.save_model(model, path, compress_to_fp16=False)


def _teach_uint16() -> None:
    """OpenVINO computes with 16-bit pixels, but its reader of torch graphs lacks the name of the type."""
    from openvino import Type
    from openvino.frontend.pytorch.utils import pt_to_ov_type_map

    pt_to_ov_type_map.setdefault("torch.uint16", Type.u16)


build = Target("model.xml", "openvino", write)
