"""Every command on a detector, from a folder of pages to a comparison."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import socket
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from tests.shapes import shapes

import opsin
from opsin.cli import main
from opsin.data.formats import coco, yolo
from opsin.recipe import Layer
from opsin.results.detection import Detection
from opsin.run import Run, start

SETTINGS: dict[str, Any] = {
    "data": {"path": "pages", "workers": 0},
    "model": {"name": "yolox_pico", "kwargs": {"width": 0.0625}},
    "optimizer": {"name": "adamw", "lr": 0.004, "ema": 0.5},
    "task": {
        "long_side": 64, "floor": 0.0,
        "augment": {"mosaic": 0.5, "copy_paste": 0.8, "mixup": 0.3, "multi_scale": [0.5, 1.5]},
    },
    "run": {
        "epochs": 3, "batch_size": 6, "validate_every": 1, "checkpoint_seconds": 0.0, "threads": 1, "preflight": False,
        "listeners": ["jsonl"],
    },
}  # fmt: skip
FAST = [
    "--data", "pages", "--model", "yolox_pico", "model.kwargs.width=.0625", "task.long_side=64", "task.floor=0",
    "data.workers=0", "run.batch_size=6", "run.preflight=false", "run.threads=1", 'run.listeners=["jsonl"]', "--quiet",
]  # fmt: skip
PAGE = "pages/images/s001.png"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detect")
    coco.write(shapes(24), folder / "pages")
    yolo.write(shapes(8, seed=5), folder / "other")
    (folder / "mixed").mkdir()
    for name in ("s000.png", "s001.png", "s005.png"):
        (folder / "mixed" / name).write_bytes((folder / "pages/images" / name).read_bytes())
    (folder / "mixed/broken.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("OPSIN_HOME", str(place / "home"))


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("OPSIN_HOME", str(place / "home"))
        start("detect", [Layer("test", SETTINGS)], out=place / "runs/a", quiet=True)
    return place / "runs/a"


def call(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    found = main([*words, "--json"])
    out = capsys.readouterr()
    assert found == code, out.err + out.out
    return json.loads(out.out)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    message: str = call(capsys, *words, code=2)["error"]["message"]
    return message


def train_elsewhere(
    folder: str, home: str, settings: dict[str, Any], rank: int = 0, world: int = 1, port: int = 0
) -> None:
    """In a process of its own, which may be killed or be one of several."""
    os.environ["OPSIN_HOME"] = home
    if world > 1:
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(rank),
        }  # fmt: skip
    start("detect", [Layer("test", settings)], out=folder, quiet=True)


def test_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = call(capsys, "data", "inspect", "pages")["objects"]["objects"]
    column = shapes(24).targets["objects"]
    assert facts["objects"] == len(column.objects)
    assert facts["crowd"] == int(column.objects.crowd.sum()) > 0
    assert not [one for one in call(capsys, "data", "check", "pages")["findings"] if one["level"] == "error"]
    parts = call(capsys, "data", "split", "pages", "--out", "split.json")["counts"]
    assert sum(part[""] for part in parts.values()) == 24
    notes = call(capsys, "data", "convert", "pages", "--to", "voc", "--out", "voc")["notes"]
    assert any("crowd" in note for note in notes)
    cut = call(capsys, "data", "crop", "pages", "--out", "cut")
    assert cut["objects"] == facts["objects"] - facts["crowd"]
    assert len(list(Path("cut").rglob("*.png"))) == cut["objects"]


def test_resume_after_a_kill_gives_the_same_bits(run: Path, place: Path) -> None:
    """With mosaic, pasted objects, blended pictures, sizes per batch and averaged weights, all of which have state."""
    if sys.platform == "win32":
        pytest.skip("kills with SIGKILL")
    folder = place / "runs/killed"
    process = multiprocessing.get_context("spawn").Process(
        target=train_elsewhere, args=(str(folder), str(place / "home"), SETTINGS)
    )
    process.start()
    while process.is_alive() and len(list(folder.glob("checkpoints/step-*"))) < 2:
        process.join(0.01)
    assert process.is_alive(), "training ended before it could be killed"
    process.kill()
    process.join()
    assert Run(folder).state["status"] != "done"
    Run(folder).resume(quiet=True)
    name = "bundle/weights.safetensors"
    assert (folder / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.slow
def test_two_processes_train_as_one(place: Path) -> None:
    settings = {
        **SETTINGS,
        "run": {**SETTINGS["run"], "epochs": 2, "batch_size": 5, "precision": "fp64", "channels_last": False},
    }
    train_elsewhere(str(place / "runs/one"), str(place / "home"), settings)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    given = (str(place / "runs/two"), str(place / "home"), settings)
    both = [spawn.Process(target=train_elsewhere, args=(*given, rank, 2, port)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(240)
        assert process.exitcode == 0
    first, second = (load_file(place / "runs" / name / "bundle/weights.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys()
    assert max(float((first[k].double() - second[k].double()).abs().max()) for k in first) < 1e-6


def test_several_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = call(capsys, "train", "detect", *FAST, "--epochs", "1", "--repeat", "2", "--out", "runs/r")
    assert several["metrics"]["map"]["seeds"] == 2
    folds = call(capsys, "train", "detect", *FAST, "--epochs", "1", "--folds", "2", "--out", "runs/f")
    assert len(folds["runs"]) == 2
    listed = call(capsys, "runs", "list")["runs"]
    assert {Path(one["run"]).name for one in listed} >= {"a", "seed-0", "fold-1"}
    for name in ("runs/a", "runs/r/seed-0"):
        call(capsys, "evaluate", name)
    found = call(capsys, "compare", "runs/a", "runs/r/seed-0")
    assert (found["metric"], found["pairs"][0]["test"]) == ("map", "paired bootstrap")


def test_skip_bad_and_minutes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco.write(shapes(12, seed=2), "bad")
    Path("bad/images/s000.png").write_bytes(b"not a picture")
    words = ["train", "detect", *FAST, "--data", "bad", "--minutes", "0.01"]
    assert "s000.png" in refused(capsys, *words, "--out", "runs/bad")
    call(capsys, *words, "--skip-bad", "--out", "runs/good")
    assert "s000.png" in json.loads(Path("runs/good/data.json").read_text())["skipped"]


def test_evaluate_and_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = call(capsys, "evaluate", "runs/a")
    assert found["monitor"] == "map"
    assert {"map", "map50", "ar100", "f1"} <= set(found["metrics"])
    assert call(capsys, "evaluate", "runs/a", "--split", "val")["split"] == "val"
    other = call(capsys, "evaluate", "runs/a", "--data", "other")
    assert (other["split"], other["samples"]) == ("other-other", 8)
    coco.write(shapes(6, classes=("disc", "bar")), "strange")
    assert "does not know: bar" in refused(capsys, "evaluate", "runs/a", "--data", "strange")
    assert main(["report", "runs/a"]) == 0
    page = (run / "report.html").read_text()
    for words in ("mAP", "Objects per class", "Worst pictures", "white dashes", "data:image/jpeg"):
        assert words in page
    assert main(["evaluate", "runs/a", "--data", "other"]) == 0
    said = capsys.readouterr()
    assert "other-other part" not in said.out + said.err


def test_predict_one_picture(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = call(capsys, "predict", "runs/a", PAGE, "--score", "0")
    one = found["predictions"][0]
    assert one["size"] == [64, 64]
    assert sum(one["counts"].values()) == len(one["objects"]) > 0
    assert all(0 <= v <= 64 for found in one["objects"] for v in found["box_xyxy"])
    assert found["table"] is None
    none = call(capsys, "predict", "runs/a", PAGE, "--score", "1")["predictions"][0]
    assert (none["counts"], none["objects"]) == ({}, [])


def test_predict_a_folder_with_everything(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = call(
        capsys, "predict", "runs/a", "mixed", "--score", "0.002", "--save", "drawn", "--crops", "crops", "--coco",
        "found.json", "--sort-into", "sorted", "--review-below", "0.99", "--table", "all.csv",
    )  # fmt: skip
    assert list(found["failed"]) == ["broken.png"]
    with Path("all.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["file"] for line in lines if line["error"]] == ["broken.png"]
    assert {"objects", "classes", "score", "boxes"} <= set(lines[0])
    assert len(list(Path("drawn").rglob("*.png"))) == len(list(Path("sorted").rglob("*.png"))) == 3
    boxes = json.loads(Path("found.json").read_text())
    assert {box["image_id"] for box in boxes} == {"s000.png", "s001.png", "s005.png"}
    assert found["crops"] == len(list(Path("crops").rglob("*.png")))
    assert "exists already" in refused(capsys, "predict", "runs/a", "mixed", "--coco", "found.json")


def test_predict_finds_nothing_to_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = call(capsys, "predict", "runs/a", "mixed/broken.png", "--table", "none.csv", code=2)
    assert list(found["failed"]) == ["broken.png"]
    assert Path("none.csv").read_text().splitlines()[0] == "file,error"
    assert "no such file" in refused(capsys, "predict", "runs/a", "nowhere.png")
    assert "--top is for classifiers" in refused(capsys, "predict", "runs/a", PAGE, "--top", "3")
    assert "one class per picture" in refused(capsys, "predict", "runs/a", PAGE, "--beside", "./runs/a")


def test_predict_in_tiles(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = Image.new("RGB", (150, 90), (110, 110, 110))
    wide.paste(Image.open(PAGE), (80, 20))
    wide.save("wide.png")
    one = call(capsys, "predict", "runs/a", "wide.png", "--tile", "64", "--score", "0")["predictions"][0]
    assert one["size"] == [90, 150]
    assert max(found["box_xyxy"][2] for found in one["objects"]) > 80


def test_predict_a_video(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    from opsin.data.video import VideoReader, VideoWriter

    data = shapes(6, seed=3)
    with VideoWriter(Path("clip.mp4"), (64, 64), Fraction(10)) as writer:
        for i in range(6):
            writer.add(data.read(i).image.permute(1, 2, 0).numpy())
    words = ["predict", "runs/a", "clip.mp4", "--every", "2", "--save", "film", "--score", "0"]
    found = call(capsys, *words)
    assert [one["file"] for one in found["predictions"]] == ["clip.mp4#0", "clip.mp4#2", "clip.mp4#4"]
    assert [one["time"] for one in found["predictions"]] == ["0.000", "0.200", "0.400"]
    with VideoReader(found["videos"]["clip.mp4"]) as drawn:
        assert drawn.facts.size == (256, 256), "small frames are enlarged, so that words can be read"
        assert len(list(drawn)) == 3


def test_explain(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = call(capsys, "predict", "runs/a", PAGE, "--score", "0")["predictions"][0]["objects"][-1]["class"]
    for words in ([], ["--class", seen], ["--method", "grad-cam"], ["--method", "saliency"]):
        one = call(capsys, "explain", "runs/a", PAGE, "--save", "why", *words)["explanations"][0]
        assert np.isfinite(np.load(one["map"])).all()
        assert words or one["method"] == "occlusion"
    assert "zebra" in refused(capsys, "explain", "runs/a", PAGE, "--class", "zebra")


def test_models_features_and_see(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = call(capsys, "models", "show", "runs/a")
    assert shown["parameters"] == Run(run).state["parameters"]
    assert call(capsys, "models", "show", "localizer", "--size", "64")["parameters"] > 0
    assert "yolox_pico" in json.dumps(call(capsys, "models", "list"))
    assert "--layer" in refused(capsys, "features", "runs/a", "pages")
    call(capsys, "features", "runs/a", "pages", "--layer", "backbone.C3_n3", "--out", "features.npz")
    assert np.load("features.npz")["features"].shape[0] == 24
    call(capsys, "see", "maps", "runs/a", PAGE, "--out", "maps.png")
    call(capsys, "see", "neighbors", "runs/a", "pages", "--picture", PAGE, "--out", "near.png")
    assert "classes" in refused(capsys, "see", "separation", "runs/a", "pages", "--out", "apart.svg")


def test_export_is_refused_with_what_works(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "export", "runs/a", "--to", "onnx", "--out", "exported")
    assert "opsin predict" in message
    assert not list(Path().glob("*exported*"))


def test_wrong_models_and_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "boxes" in refused(capsys, "train", "classify", "--data", "pages", "--out", "runs/x1")
    assert "detected" in refused(
        capsys, "train", "detect", "--data", "pages", "--model", "resnet18", "--out", "runs/x2"
    )
    words = ["train", "detect", *FAST, "--weights", "runs/a", "--transfer", "head", "--out", "runs/x3"]
    assert "transfer.head=steps" in refused(capsys, *words)


def test_python(run: Path, place: Path) -> None:
    one = opsin.load(run).predict(PAGE)
    assert isinstance(one, Detection)
    assert (one.id, one.size) == (PAGE, (64, 64))
    every = one.at(0.0)
    assert len(every) == len(list(every)) > 0
    first = next(iter(every))
    assert first.score == max(every.scores)
    assert first.class_name in ("disc", "square")
    assert every.draw(Image.open(PAGE)).size == (256, 256)
    json.dumps(every.to_dict())
    again = opsin.train(
        "detect", data="pages", model={"name": "yolox_pico", "kwargs": {"width": 0.0625}}, out="runs/python", quiet=True,
        layers=[Layer("test", {**SETTINGS, "run": {**SETTINGS["run"], "epochs": 1}})],
    )  # fmt: skip
    assert again.state["status"] == "done"
    assert [found.id for found in again.bundle.predict([PAGE, PAGE])] == [PAGE, PAGE]


def test_predictions_keep_the_ids_of_coco(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco.write(shapes(3, seed=5), "numbered")
    path = Path("numbered/annotations/instances.json")
    values = json.loads(path.read_text())
    for one in values["images"] + values["categories"]:
        one["id"] *= 10
    for one in values["annotations"]:
        one |= {"image_id": 10 * one["image_id"], "category_id": 10 * one["category_id"]}
    path.write_text(json.dumps(values))
    call(capsys, "predict", "runs/a", str(path), "--coco", "numbered.json")
    boxes = json.loads(Path("numbered.json").read_text())
    assert {box["image_id"] for box in boxes} == {10, 20, 30}
    assert {box["category_id"] for box in boxes} <= {one["id"] for one in values["categories"]}
    assert {box["category_id"] % 10 for box in boxes} == {0}
