"""The exported predict.py, where neither torch nor opsin can be imported, says what opsin says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opsin.bundle import Bundle
from opsin.data import resize as by_torch
from opsin.data.classes import to_spec
from opsin.data.image import read_image
from opsin.data.spec import spec_of
from opsin.export import export, targets
from opsin.export.standalone import closure, pictures
from opsin.models import ModelSpec, build
from opsin.run.predicting import predict_files
from opsin.seeding import torch_seeded
from opsin.task import ImageSpec
from opsin.tasks.classify import Classify, ClassifySettings, HeadSettings

ISOLATED = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        absent = {"torch", "torchvision", "opsin", "simplejpeg", "pydantic", "onnx", "openvino_telemetry"}
        if name.partition(".")[0] in absent:
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

ONE = {
    "heads": (HeadSettings(name="label", class_names=("cat", "dog", "gnü")),),
    "image_size": (24, 24), "channels": 3, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.2), "small": False,
    "flip": True,
}  # fmt: skip
TWO = {
    "heads": (
        HeadSettings(name="sort", class_names=("no", "yes"), thresholds=(0.6, 0.4)),
        HeadSettings(name="tags", class_names=("a", "b", "c", "d"), kind="multi", thresholds=(0.3, 0.5, 0.5, 0.6)),
    ),
    "image_size": (20, 28), "channels": 1, "mean": (0.4,), "std": (0.2,), "small": True, "flip": False,
    "decide": "operating-point",
}  # fmt: skip


def make_bundle(settings: dict[str, Any]) -> Bundle:
    task = Classify(ClassifySettings(**settings))
    facts = task.model_facts
    spec = ModelSpec("linear", {}, facts["in_channels"], facts["num_outputs"], facts["image_size"])
    with torch_seeded("standalone"):
        model = task.assemble(build(spec))
    return Bundle(task, "classify", spec, model.eval())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many kinds."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    color = random.integers(0, 256, (61, 83, 3), np.uint8)
    smooth = Image.fromarray(color).resize((200, 130), Image.Resampling.BICUBIC)
    Image.fromarray(color).save(folder / "color.png")
    Image.fromarray(color[..., 0]).save(folder / "gray.png")
    Image.fromarray(color).quantize(16).save(folder / "palette.png")
    Image.fromarray(np.dstack([color, color[..., :1]])).save(folder / "alpha.png")
    Image.fromarray(color[..., 0] > 99).save(folder / "bits.png")
    Image.fromarray(color[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    for orientation in (1, 3, 6, 7):
        exif = Image.Exif()
        exif[0x0112] = orientation
        exif[0x0132] = "2024:05:01 12:30:00"
        smooth.save(folder / f"turned-{orientation}.jpg", quality=90, exif=exif)
    smooth.convert("L").save(folder / "gray.jpg")
    smooth.convert("CMYK").save(folder / "cmyk.jpg")
    smooth.save(folder / "é.webp", lossless=True)
    Image.fromarray(color[:24, :24]).save(folder / "exact.bmp")
    (folder / "broken.png").write_bytes((folder / "color.png").read_bytes()[:-20])
    return folder


def run(export_folder: Path, *arguments: str | Path, cwd: Path) -> tuple[int, Any, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [sys.executable, "-I", "-c", ISOLATED, str(export_folder / "predict.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, cwd=cwd, env=environment, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr.decode()


def same(mine: Any, theirs: Any) -> bool:
    """Equal but for the sixth digit of numbers."""
    if isinstance(mine, float) and isinstance(theirs, float):
        return abs(mine - theirs) <= 2e-6
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return list(mine) == list(theirs) and all(same(mine[k], theirs[k]) for k in mine)
    if isinstance(mine, list) and isinstance(theirs, list):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    return bool(mine == theirs)


@pytest.mark.parametrize("target", targets)
@pytest.mark.parametrize("settings", [ONE, TWO], ids=["one head", "two heads"])
def test_it_says_what_opsin_says(
    target: str, settings: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(settings)
    assert export(bundle, target, tmp_path / "out", threads=1).passed
    monkeypatch.chdir(tmp_path)
    expected = predict_files(bundle, [folder]).to_dict()
    code, found, errors = run(tmp_path / "out", folder, "--threads", "1", cwd=tmp_path)
    assert code == 0, errors
    assert [p["file"] for p in found["predictions"]] == [p["file"] for p in expected["predictions"]]
    for mine, theirs in zip(found["predictions"], expected["predictions"]):
        assert same(mine, theirs), (mine, theirs)
    assert list(found["failed"]) == list(expected["failed"]) == ["broken.png"]
    assert {p["time"] for p in found["predictions"]} == {None, "2024:05:01 12:30:00"}

    for name in ("turned-6.jpg", "palette.png"):
        code, found, errors = run(tmp_path / "out", folder / name, cwd=tmp_path)
        expected = predict_files(bundle, [folder / name]).to_dict()
        assert code == 0, errors
        assert same(found["predictions"], expected["predictions"]), (found, expected)
        assert found["failed"] == {}
    one = bundle.predict(folder / "palette.png").to_dict()
    assert same(
        {"id": one["id"], **found["predictions"][0]}, {"id": one.pop("id"), "file": "palette.png", **one, "time": None}
    )


def test_wrong_use(folder: Path, tmp_path: Path) -> None:
    export(make_bundle(ONE), "onnx", tmp_path / "out", threads=1)
    code, found, errors = run(tmp_path / "out", tmp_path / "nowhere.png", cwd=tmp_path)
    assert (code, found) == (2, None)
    assert "nowhere.png" in errors
    assert "Traceback" not in errors
    code, found, errors = run(tmp_path / "out", folder / "broken.png", cwd=tmp_path)
    assert code == 2
    assert list(found["failed"]) == ["broken.png"]
    needs = (tmp_path / "out" / "requirements.txt").read_text().split()
    assert [line.partition(">=")[0] for line in needs] == ["numpy", "pillow", "onnxruntime"]

    record = json.loads((tmp_path / "out" / "model.json").read_text())
    (tmp_path / "out" / "model.json").write_text(json.dumps({**record, "fingerprint": "another"}))
    code, found, errors = run(tmp_path / "out", folder / "color.png", cwd=tmp_path)
    assert (code, found) == (2, None)
    assert "different models" in errors


def test_the_reader_takes_nothing_heavy_along(tmp_path: Path) -> None:
    import opsin.export.standalone as package

    own = Path(package.__file__).parent
    for path in closure([*own.glob("[!_]*.py")]):
        assert "import torch" not in path.read_text(), path
        assert "from torch" not in path.read_text(), path


# The pieces, bit by bit ----------------------------------------------------------------------------------------------


def test_every_picture_is_decoded_the_same(folder: Path) -> None:
    for path in sorted(folder.glob("[!b]*")):
        for reduce_to in (None, 40):
            image, _ = read_image(path, reduce_to=reduce_to)
            found = pictures.read_picture(path, reduce_to).pixels
            np.testing.assert_array_equal(found, image.permute(1, 2, 0).numpy(), err_msg=path.name)


def test_bytes_are_resized_to_the_same_bits() -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        height, width, channels = (int(v) for v in random.integers((1, 1, 1), (150, 150, 5)))
        size = int(random.integers(1, 90)), int(random.integers(1, 90))
        pixels = random.integers(0, 256, (height, width, channels), np.uint8)
        expected = by_torch.resize(torch.from_numpy(pixels).permute(2, 0, 1), size)[0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pictures.resize(pixels, size), expected)


def test_deep_pixels_are_resized_within_the_documented_tolerance() -> None:
    random = np.random.default_rng(0)
    for size in ((40, 30), (9, 50), (31, 7), (80, 90)):
        deep = random.integers(0, 65536, (40, 50, 3), np.uint16)
        expected = by_torch.resize(torch.from_numpy(deep).permute(2, 0, 1), size)[0].permute(1, 2, 0).numpy()
        found = pictures.resize(deep, size)
        assert found.dtype == np.uint16
        assert np.abs(found.astype(int) - expected).max() <= 1
        floats = random.random((40, 50, 3), np.float32)
        expected = by_torch.resize(torch.from_numpy(floats).permute(2, 0, 1), size)[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(pictures.resize(floats, size), expected, atol=1e-6)


def test_channels_and_values_are_converted_the_same() -> None:
    random = np.random.default_rng(0)
    makers = {
        "uint8": lambda c: random.integers(0, 256, (5, 6, c), np.uint8),
        "uint16": lambda c: random.integers(0, 65536, (5, 6, c), np.uint16),
        "float32": lambda c: random.random((5, 6, c), np.float32),
    }
    for have in makers:
        for want in makers:
            for channels in (1, 2, 3, 4):
                for wanted in (1, 3, 4):
                    pixels = makers[have](channels)
                    image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
                    spec = ImageSpec(wanted, want, spec_of(torch.zeros(1, 1, 1, dtype=getattr(torch, want))).range)
                    expected = to_spec(image, spec).permute(1, 2, 0).numpy()
                    found = pictures.convert(pixels, wanted, want, spec.range)
                    assert found.dtype == expected.dtype
                    np.testing.assert_allclose(found, expected, atol=1e-6 if want == "float32" else 0)
