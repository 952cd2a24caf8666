"""Every export target gives every registered kind of network back: same outputs, its facts inside, any batch size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tests.tiny import CLASSIFIERS, TINY

from opsin import train
from opsin.bundle import Bundle
from opsin.errors import ConfigError, UnknownName
from opsin.export import export, targets
from opsin.models import ModelSpec, build, models
from opsin.run.exporting import export_run
from opsin.runtimes import runtimes
from opsin.seeding import torch_seeded
from opsin.task import Sample
from opsin.tasks.classify import Classify, ClassifySettings, HeadSettings

SMALL: dict[str, dict[str, Any]] = {
    **{name: tiny.kwargs for name, tiny in TINY.items()},
    "smallnet": {"stem": 8, "widths": (8, 16), "depths": (0, 1), "mirror": True},
}
SLOW = pytest.mark.slow
ONE = (HeadSettings(name="label", class_names=("a", "b", 'ü, "c"')),)
TWO = (
    HeadSettings(name="shape", class_names=("round", "long")),
    HeadSettings(name="color", class_names=("red", "green", "blue"), kind="multi", thresholds=(0.2, 0.5, 0.9)),
)


def make_bundle(
    name: str,
    channels: int = 1,
    heads: tuple[HeadSettings, ...] = ONE,
    size: tuple[int, int] = (28, 28),
    **settings: Any,
) -> Bundle:
    given = {"mean": (0.3,) * channels, "std": (0.2,) * channels, "small": True, "flip": False, **settings}
    task = Classify(ClassifySettings(heads=heads, image_size=size, channels=channels, **given))
    spec = ModelSpec(name, SMALL.get(name, {}), channels, task.model_facts["num_outputs"], size)
    with torch_seeded("bundle for exports"):
        model = task.assemble(build(spec))
    for module in model.modules():  # as if trained: running statistics that are not 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.linspace(-0.1, 0.1, module.num_features))
            module.running_var.copy_(torch.linspace(0.5, 1.5, module.num_features))
    return Bundle(task, "classify", spec, model.eval(), {"license": "CC0-1.0", "lineage": {"data": "toys"}})


def pictures(bundle: Bundle, count: int) -> list[Sample]:
    generator = np.random.default_rng(0)
    shape = (bundle.task.settings.channels, 30, 40)
    targets = {"label": 0, "shape": 1, "color": np.array([1, 0, 1], np.float32)}
    given = {head.name: targets[head.name] for head in bundle.task.settings.heads}
    return [
        Sample(f"{i}.png", torch.from_numpy(generator.integers(0, 256, shape, np.uint8)), given) for i in range(count)
    ]


def _by_default(name: str, channels: int) -> bool:
    """The other networks of a file are of the same parts as its first one; large ones are tried with colors alone."""
    module = models.module(name)
    return name == module.NAMES[0] and (channels == 3 or "backbones" not in module.__name__)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        pytest.param(name, channels, marks=() if _by_default(name, channels) else SLOW)
        for name in CLASSIFIERS
        for channels in (1, 3)
    ],
)
def test_every_network_on_every_target(name: str, channels: int, tmp_path: Path) -> None:
    bundle = make_bundle(name, channels, TWO if channels == 3 else ONE, size=TINY[name].sizes[0])
    for target in targets:
        report = export(bundle, target, tmp_path / target, samples=pictures(bundle, 3), threads=1)
        assert report.passed, report.parity.reason
        assert report.parity.max_relative <= 1e-4
        assert report.parity.compared == {"random": 8, "edges": 2, "pictures": 3}
        assert report.parity.flipped == []
        assert report.folder == tmp_path / target
        assert report.notes == []
        for metric in report.parity.metrics.values():
            assert metric["model"] == pytest.approx(metric["export"], abs=1e-5, nan_ok=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One export per target of the linear model with two heads."""
    folder = tmp_path_factory.mktemp("exported")
    bundle = make_bundle("linear", 1, TWO)
    bundle.save(folder / "bundle")
    reports = {target: export(bundle, target, folder / target, threads=1) for target in targets}
    return {"folder": folder, "bundle": bundle, "reports": reports}


@pytest.mark.parametrize("target", targets)
def test_what_travels_with_the_weights(target: str, exported: dict[str, Any]) -> None:
    folder = exported["folder"] / target
    record = json.loads((folder / "model.json").read_text())
    bundle = json.loads((exported["folder"] / "bundle" / "bundle.json").read_text())
    found = runtimes.get(record["runtime"])(folder / record["file"], threads=1).metadata
    assert json.loads(found["settings"]) == record["settings"] == bundle["task"]["settings"]
    assert json.loads(found["class_names"]) == {"shape": ["round", "long"], "color": ["red", "green", "blue"]}
    assert found["task"] == "classify"
    assert found["license"] == "CC0-1.0"
    assert json.loads(found["lineage"]) == {"data": "toys"}
    assert found["fingerprint"] == record["fingerprint"] == bundle["weights"]["sha256"]
    assert record["input"] == {"name": "images", "dtype": "uint8", "shape": [None, 1, 28, 28]}
    assert record["outputs"] == ["logits"]
    stored = json.loads((folder / "parity.json").read_text())
    assert stored == exported["reports"][target].parity.to_dict()
    assert exported["reports"][target].notes == [
        "No real pictures were given: the comparison is over random and edge inputs only."
    ]


@pytest.mark.parametrize("target", targets)
def test_any_number_of_pictures(target: str, exported: dict[str, Any]) -> None:
    record = json.loads((exported["folder"] / target / "model.json").read_text())
    runner = runtimes.get(record["runtime"])(exported["folder"] / target / record["file"], threads=1)
    assert runner.batch is None
    inputs = exported["bundle"].task.example_inputs(7)
    outputs = runner(inputs)
    assert outputs["logits"].shape == (7, 5)
    one = np.concatenate([runner(inputs[i : i + 1])["logits"] for i in range(7)])
    np.testing.assert_allclose(outputs["logits"], one, rtol=1e-5, atol=1e-6)
    expected = exported["bundle"].predict([*inputs])
    found = exported["bundle"].predict([*inputs], runner=runner)
    assert [r.heads[0].label for r in found] == [r.heads[0].label for r in expected]


@pytest.mark.parametrize("target", targets)
def test_a_fixed_number_of_pictures(target: str, tmp_path: Path) -> None:
    bundle = make_bundle("linear")
    report = export(bundle, target, tmp_path / "out", batch=3, samples=pictures(bundle, 4), threads=1)
    assert report.passed
    record = json.loads((tmp_path / "out" / "model.json").read_text())
    assert record["input"]["shape"] == [3, 1, 28, 28]
    runner = runtimes.get(record["runtime"])(tmp_path / "out" / record["file"], threads=1)
    assert runner.batch == 3
    inputs = bundle.task.example_inputs(7)
    expected = bundle.runner()(inputs)["logits"]
    np.testing.assert_allclose(runner(inputs)["logits"], expected, rtol=1e-4, atol=1e-5)
    assert runner(inputs[:0])["logits"].shape == (0, 3)


@pytest.mark.parametrize("pixel_type", ["uint16", "float32"])
def test_deep_pixels(pixel_type: str, tmp_path: Path) -> None:
    top = {"uint16": 4095.0, "float32": 1.0}[pixel_type]
    bundle = make_bundle("linear", pixel_type=pixel_type, pixel_range=(0.0, top))
    for target in targets:
        assert export(bundle, target, tmp_path / target, threads=1).passed


def test_the_onnx_file_is_clean(exported: dict[str, Any]) -> None:
    path = exported["folder"] / "onnx" / "model.onnx"
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert sorted(p.name for p in path.parent.glob("model.onnx*")) == ["model.onnx"]  # no second file with weights
    assert model.opset_import[0].version >= 18
    assert [i.name for i in model.graph.input] == ["images"]
    assert [o.name for o in model.graph.output] == ["logits"]
    axis = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert axis == model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()  # no paths of this machine


def test_openvino_keeps_float32(exported: dict[str, Any]) -> None:
    text = (exported["folder"] / "openvino" / "model.xml").read_text()
    assert 'element_type="f32"' in text
    assert 'element_type="f16"' not in text


def test_nothing_is_written_over(exported: dict[str, Any], tmp_path: Path) -> None:
    bundle = make_bundle("linear")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="is not an export"):
            export(bundle, "onnx", tmp_path / "mine", overwrite=overwrite)
    with pytest.raises(ConfigError, match="--overwrite"):
        export(bundle, "onnx", exported["folder"] / "onnx")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_unknown_target() -> None:
    with pytest.raises(UnknownName, match="onnx"):
        export(make_bundle("linear"), "onxn", "anywhere")
    assert {"onnx", "openvino"} <= set(targets)


def test_a_run_is_compared_on_its_validation_part(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for i in range(60):
        folder = tmp_path / "data" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 128 + 127 * (i % 2), (8, 8), np.uint8)).save(folder / f"{i}.png")
    run = train("classify", data=tmp_path / "data", model="linear", epochs=1, out=tmp_path / "run", quiet=True)
    (report,) = export_run(run.path, "onnx", threads=1)
    assert report.folder == tmp_path / "run" / "export" / "onnx"
    assert report.parity.compared["pictures"] == len(run.data.indices("val")) > 0
    assert report.parity.metrics["accuracy"]["difference"] == 0
    assert report.notes == []

    (tmp_path / "data" / "a" / "0.png").unlink()
    (report,) = export_run(run.path, "onnx", tmp_path / "other", threads=1)
    assert report.passed
    assert "pictures" not in report.parity.compared
    assert "not those of" in report.notes[0]
    assert "No real pictures" in report.notes[1]


CHECK = """
import socket, sys
def refuse(*arguments, **given): raise SystemExit("a connection was tried")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
import {imports}
{then}
loaded = [name for name in {forbidden!r} if sys.modules.get(name) is not None]
sys.exit(f"loaded: {{loaded}}" if loaded else 0)
"""


@pytest.mark.parametrize(
    ("imports", "then", "forbidden"),
    [
        ("opsin.export", "list(opsin.export.targets)", ["torch", "onnx", "openvino"]),
        ("opsin.runtimes.onnxruntime", "import onnxruntime", ["torch"]),
        (
            "opsin.runtimes.openvino",
            "opsin.runtimes.openvino.load_openvino(); import openvino.tools.ovc.convert_impl, time; time.sleep(1)",
            ["torch", "openvino_telemetry"],
        ),
    ],
    ids=["listing targets", "onnxruntime", "openvino"],
)
def test_what_is_not_loaded(imports: str, then: str, forbidden: list[str]) -> None:
    code = CHECK.format(imports=imports, then=then, forbidden=forbidden)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
