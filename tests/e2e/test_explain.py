"""`opsin explain`: drawings, maps and numbers in a folder, for people and for machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opsin.bundle import Bundle
from opsin.cli import main
from opsin.errors import ConfigError
from opsin.explain import explain
from opsin.models import ModelSpec, build
from opsin.seeding import torch_seeded
from opsin.tasks.classify import Classify, ClassifySettings, HeadSettings


@pytest.fixture(autouse=True)
def _one_thread():
    """Small pictures are fastest on one thread, above all where tests share the processor with other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and photos larger than what it takes: one as JPEG, turned by EXIF, and one that is none."""
    place = tmp_path_factory.mktemp("explain")
    heads = (HeadSettings(name="label", class_names=("cat", "dog")),)
    task = Classify(
        ClassifySettings(heads=heads, image_size=(32, 32), channels=3, mean=(0.5,), std=(0.3,), small=False, flip=False)
    )
    spec = ModelSpec("smallnet", {"stem": 8, "widths": (8, 16), "depths": (0, 1)}, 3, 2, (32, 32))
    with torch_seeded("e2e"):
        Bundle(task, "classify", spec, task.assemble(build(spec)).eval()).save(place / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    (place / "in" / "below").mkdir(parents=True)
    image = Image.fromarray(pixels).resize((200, 150)).resize((400, 300))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: shown as 400 high and 300 wide
    image.save(place / "in" / "a.jpg", exif=exif)
    image.save(place / "in" / "below" / "b.png")
    (place / "in" / "broken.png").write_bytes(b"no picture")
    return place


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def call(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    found = main([*words, "--json"])
    out = capsys.readouterr()
    assert found == code, out.err + out.out
    return json.loads(out.out)


def test_a_folder_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("explain", "model", "in", "--method", "occlusion", "--class", "dog", "--save", "out")
    found = call(capsys, *words, "--option", "patch=16", "--option", "stride=8")
    assert list(found["failed"]) == ["broken.png"]
    one, other = found["explanations"]
    assert (one["file"], one["size"], other["file"], other["size"]) == ("a.jpg", [400, 300], "below/b.png", [300, 400])
    assert {"class": "dog", "method": "occlusion", "head": "label"}.items() <= one.items()
    assert one["details"]["patch"] == 16
    assert one["drawn"] == "out/a-occlusion.png"
    assert other["drawn"] == "out/below/b-occlusion.png"
    saved = np.load(one["map"])
    assert saved.shape == (400, 300)
    assert Image.open(one["drawn"]).width >= 2 * 300
    assert json.loads(Path("out/a-occlusion.json").read_text()) == one
    same = explain(Bundle.load("model"), "in/a.jpg", "occlusion", class_name="dog", patch=16, stride=8)
    np.testing.assert_array_equal(same.map, saved)
    predicted = call(capsys, "predict", "model", "in/a.jpg")["predictions"][0]["top"]
    assert one["probability"] == pytest.approx({p["class"]: p["score"] for p in predicted}["dog"], abs=1e-5)
    again = call(capsys, *words)["explanations"][0]
    assert again["drawn"] == "out/a-occlusion-2.png"
    assert again["details"]["patch"] == 4


def test_checks_and_layers(capsys: pytest.CaptureFixture[str]) -> None:
    found = call(
        capsys, "explain", "model", "in/a.jpg", "--layer", "stem", "--sanity", "--faithful", "--save", "checks"
    )
    one = found["explanations"][0]
    assert one["details"] == {"layer": "stem", "cells": [32, 32]}
    assert isinstance(one["sanity"]["passed"], bool)
    assert one["sanity"]["steps"][-1]["correlation"] == one["sanity"]["correlation"]
    assert set(one["faithful"]) == {"deletion", "insertion", "random_deletion", "random_insertion"}


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "model", "in", "--sanity", "--faithful", "--head", "label", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    assert "strongest region" in shown.out
    assert "below/b.png" in shown.out
    assert "what the model learned" in shown.out
    assert "deletion" in shown.out
    assert "Drawn into explanations" in shown.out
    assert "broken.png" in shown.err
    assert main(["explain", "model", "in/a.jpg", "--method", "integrated-gradients", "--option", "steps=1"]) == 0
    assert "try --option steps=2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in", "--method", "cam"], "Unknown explainer 'cam'. Did you mean 'grad-cam'"),
        (["in", "--class", "dgo"], "Did you mean 'dog'"),
        (["in", "--layer", "stems"], "Did you mean 'stem"),
        (["in", "--option", "steps"], "--option steps: expected NAME=VALUE"),
        (["in", "--option", "stesp=3", "--method", "integrated-gradients"], "Did you mean 'steps'"),
        (["nowhere"], "nowhere: there is no such file or folder"),
    ],
)
def test_messages(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = call(capsys, "explain", "model", *words, code=2)["error"]
    assert message in error["message"]


OWN = """
from opsin.explain.question import Found

def flat(question, *, invert: bool = False, steps: int = 3, weights: tuple = (1.0, 2.0), other=None):
    return Found(question.pixels[0, 0] * 0 + steps, False, {"layer": "stem", "invert": invert, "other": other})
"""


def test_a_method_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    Path("methods").mkdir(exist_ok=True)
    Path("methods/my.py").write_text(OWN)
    Path("own").mkdir()
    Path("own/a-my.py-flat.json").write_text("mine")
    words = ("explain", "model", "in/a.jpg", "--method", "methods/my.py:flat", "--save", "own", "--sanity")
    one = call(capsys, *words, "--option", "invert=false", "--option", "other=x")["explanations"][0]
    assert one["drawn"] == "own/a-my.py-flat-2.png"
    assert Path("own/a-my.py-flat.json").read_text() == "mine"
    assert one["details"] == {"layer": "stem", "invert": False, "other": "x"}
    assert one["sanity"]["passed"] is False
    assert "nothing to check" in one["sanity"]["verdict"]
    for option, expected in (("invert=perhaps", "true or false"), ("weights=1,2", "tuple"), ("steps=1.5", "a whole")):
        assert f"expected {expected}" in call(capsys, *words, "--option", option, code=2)["error"]["message"]
    explain(Bundle.load("model"), "in/a.jpg", "methods/my.py:flat", weights=(3.0,), invert=True)


def test_models_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from opsin.run import beside

    for folder, gray in (("one", 0), ("two", 255)):
        Path(folder).mkdir()
        Image.new("RGB", (32, 32), (gray, gray, gray)).save(f"{folder}/x.png")
        Image.new("RGB", (32, 32), (gray, 9, 9)).save(f"{folder}/{folder}.png")
    Path("empty").mkdir()
    bundles = {"a": Bundle.load("model"), "b": Bundle.load("model")}
    inputs = ["one", "two", "empty", "in/a.jpg", "in/broken.png"]
    found = beside.side_by_side(bundles, inputs)
    assert [one.file for one in found.pictures] == ["one.png", "one/x.png", "two.png", "two/x.png", "a.jpg"]
    assert list(found.failed) == ["broken.png"]
    said = {one.file: one.answers["a"] for one in found.pictures}
    assert said["one/x.png"] != said["two/x.png"]
    predict = beside.predict_files

    def half_blind(bundle: Bundle, *args: Any, **more: Any) -> Any:
        done = predict(bundle, *args, **more)
        if bundle is bundles["b"]:
            done.failed |= {name: "too large" for name, _, _ in done.results if name == "one.png"}
            done.results = [row for row in done.results if row[0] != "one.png"]
        return done

    monkeypatch.setattr(beside, "predict_files", half_blind)
    found = beside.side_by_side(bundles, inputs)
    assert "one.png" not in [one.file for one in found.pictures]
    assert found.failed == {"one.png": "too large", "broken.png": found.failed["broken.png"]}
    with pytest.raises(ConfigError, match="No picture found in empty"):
        beside.side_by_side(bundles, ["empty"])


def test_a_bundle_does_not_replace_the_folder_that_the_program_runs_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.load("model")
    monkeypatch.chdir(tmp_path)
    for folder in (Path(), tmp_path):
        with pytest.raises(ConfigError, match="is the folder that this runs in"):
            bundle.save(folder)
    Path("file").write_text("")
    with pytest.raises(ConfigError, match="file exists and is not a bundle"):
        bundle.save("file")
    assert bundle.save("down") == Path("down")
    assert Bundle.load("down").spec == bundle.spec


def test_nothing_that_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    found = call(capsys, "explain", "model", "in/broken.png", code=2)
    assert found["explanations"] == []
    assert list(found["failed"]) == ["broken.png"]
