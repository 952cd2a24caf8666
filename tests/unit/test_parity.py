"""An export that is not the model is caught and refused, with exit code 1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from opsin import cli
from opsin.bundle import Bundle
from opsin.export import export
from opsin.export import onnx as onnx_target
from opsin.export.parity import compare, said
from opsin.models import ModelSpec, build
from opsin.runtimes.torch import TorchRuntime
from opsin.seeding import torch_seeded
from opsin.task import Sample
from opsin.tasks.classify import Classify, ClassifySettings, HeadSettings


@pytest.fixture
def bundle() -> Bundle:
    heads = (HeadSettings(name="label", class_names=("a", "b", "c")),)
    settings = ClassifySettings(
        heads=heads, image_size=(8, 8), channels=1, mean=(0.3,), std=(0.3,), small=True, flip=False
    )
    task, spec = Classify(settings), ModelSpec("linear", {}, 1, 3, (8, 8))
    with torch_seeded("parity"):
        model = task.assemble(build(spec))
    return Bundle(task, "classify", spec, model.eval())


def pictures(count: int) -> list[Sample]:
    values = np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), np.uint8)
    return [Sample(f"{i}", torch.from_numpy(v), {"label": i % 3}) for i, v in enumerate(values)]


class Altered:
    """The model with something done to its outputs."""

    def __init__(self, bundle: Bundle, change: Any) -> None:
        self.model, self.change = TorchRuntime(bundle.model), change

    def __call__(self, inputs: Any) -> Mapping[str, NDArray[Any]]:
        found: Mapping[str, NDArray[Any]] = self.change({k: v.copy() for k, v in self.model(inputs).items()})
        return found


def check(bundle: Bundle, change: Any, count: int = 20, **options: Any) -> Any:
    return compare(bundle.task, TorchRuntime(bundle.model), Altered(bundle, change), pictures(count), **options)


def test_the_model_equals_itself(bundle: Bundle) -> None:
    found = check(bundle, lambda o: o)
    assert found.passed
    assert found.reason == ""
    assert found.max_relative == 0
    assert found.compared == {"random": 8, "edges": 2, "pictures": 20}
    assert found.metrics["accuracy"]["difference"] == 0


def test_at_most_64_pictures(bundle: Bundle) -> None:
    assert check(bundle, lambda o: o, count=70).compared["pictures"] == 64


def test_errors_are_measured(bundle: Bundle) -> None:
    found = check(bundle, lambda o: {"logits": o["logits"] * 1.001})
    assert not found.passed
    assert found.max_relative == pytest.approx(1e-3, rel=1e-3)
    assert found.checks["pictures"]["logits"].max_abs == pytest.approx(
        found.checks["pictures"]["logits"].largest * 1e-3, rel=1e-2
    )
    assert "logits" in found.reason
    assert found.flipped == []
    assert check(bundle, lambda o: {"logits": o["logits"] * 1.001}, tolerance=2e-3).passed


def test_flipped_answers_are_named(bundle: Bundle) -> None:
    found = check(bundle, lambda o: {"logits": -o["logits"]})
    assert not found.passed
    assert len(found.flipped) >= 15
    assert set(found.flipped) <= {str(i) for i in range(20)}
    assert (
        found.metrics["accuracy"]["difference"]
        == found.metrics["accuracy"]["export"] - found.metrics["accuracy"]["model"]
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(bundle: Bundle, value: float) -> None:
    def change(outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs["logits"][-1, 0] = value
        return outputs

    found = check(bundle, change)
    assert not found.passed
    assert found.to_dict()["max_relative"] is None
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda o: {"scores": o["logits"]}, "scores"),
        (lambda o: {"logits": o["logits"][:, :2]}, "(1, 2)"),
        (lambda o: {}, "[]"),
    ],
)
def test_other_outputs(bundle: Bundle, change: Any, reason: str) -> None:
    found = check(bundle, change)
    assert not found.passed
    assert reason in found.reason


def test_a_small_picture_is_not_hidden_by_a_large_one(bundle: Bundle) -> None:
    """An error in one picture counts against that picture's own values."""
    model = TorchRuntime(bundle.model)
    inputs = bundle.task.example_inputs(2)

    def change(outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        smallest = np.abs(outputs["logits"]).max(axis=1).argmin()
        outputs["logits"][smallest] *= 1.01
        return outputs

    assert model(inputs)["logits"].shape == (2, 3)
    assert check(bundle, change).max_relative == pytest.approx(0.01, rel=0.01)


def test_what_is_said() -> None:
    one = {"class": "a", "score": 0.5, "top": [{"class": "a", "score": 0.5}, {"class": "b", "score": 0.4}]}
    two = {"class": "a", "score": 0.4, "top": [{"class": "b", "score": 0.4}, {"class": "a", "score": 0.4}]}
    assert said(one) == said(two)
    assert said(one) != said({**two, "class": "b"})


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX writer that moves the largest weight by 2 %."""
    write = onnx_target.write

    def spoil(traced: Any, metadata: Any, path: Path) -> None:
        write(traced, metadata, path)
        model = onnx.load(str(path))
        weight = max(model.graph.initializer, key=lambda t: int(np.prod(t.dims)))
        values = onnx.numpy_helper.to_array(weight).copy()
        values.flat[np.abs(values).argmax()] *= 1.02
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, str(path))

    monkeypatch.setattr(onnx_target, "build", onnx_target.Target("model.onnx", "onnxruntime", spoil))


@pytest.mark.usefixtures("spoiled")
def test_an_altered_graph_is_refused(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle.save(tmp_path / "bundle")
    report = export(bundle, "onnx", tmp_path / "out", samples=pictures(4), threads=1)
    assert not report.passed
    assert report.folder is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle"]

    assert cli.main(["export", str(tmp_path / "bundle"), "--to", "onnx", "--keep-failed", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["passed"] is False
    assert said["exports"][0]["parity"]["reason"]
    assert said["exports"][0]["folder"] == str(tmp_path / "export" / "onnx-refused")
    assert [p.name for p in (tmp_path / "export").iterdir()] == ["onnx-refused"]

    tolerant = ["export", str(tmp_path / "bundle"), "--to", "onnx", "--tolerance", "1"]
    assert cli.main(tolerant) == 0
    assert "passed" in capsys.readouterr().out
    assert cli.main(tolerant) == 2  # it is there already
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "bundle"), "--to", "onnx", "--overwrite"]) == 1
    assert (
        json.loads((tmp_path / "export" / "onnx" / "parity.json").read_text())["tolerance"] == 1
    )  # the earlier one stays
    assert "refused" in capsys.readouterr().out


def test_wrong_use(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle.save(tmp_path / "bundle")
    for options, words in [
        (["--to", "onxn"], "onnx"),
        (["--to", "onnx", "--batch", "many"], "dynamic"),
        (["--to", "onnx", "--batch", "0"], "positive"),
        (["--to", "onnx", "--tolerance", "-1"], "positive"),
    ]:
        assert cli.main(["export", str(tmp_path / "bundle"), *options]) == 2
        assert words in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
