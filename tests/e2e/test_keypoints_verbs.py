"""Every command on a keypoint model, from COCO files to a comparison."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.points import TRIANGLE, triangles

from opsin.cli import main
from opsin.engine.events import EpochDone
from opsin.recipe import Layer, Recipe
from opsin.run import Run, start

FAST = [
    "--model", "heatmap_net", 'model.kwargs={"backbone_kwargs":{"width":8},"channels":16}', "run.batch_size=16",
    'run.listeners=["jsonl"]', "task.image_size=[64,64]", "data.workers=0", "--quiet",
]  # fmt: skip


def write(folder: Path, count: int) -> Path:
    """Triangles as COCO keypoints."""
    data = triangles(count)
    (folder / "images").mkdir(parents=True)
    images, notes = [], []
    for i in range(count):
        sample = data.read(i)
        Image.fromarray(sample.image[0].numpy()).save(folder / "images" / sample.id)
        images.append({"id": i + 1, "file_name": sample.id, "width": 64, "height": 64})
        found = sample.target["objects"]
        for (left, top, right, bottom), points in zip(found.boxes_xyxy.tolist(), found.points):
            notes.append({
                "id": len(notes) + 1, "image_id": i + 1, "category_id": 1, "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top) / 2, "iscrowd": 0, "keypoints": points.ravel().tolist(),
                "num_keypoints": 3,
            })  # fmt: skip
    skeleton = [[a + 1, b + 1] for a, b in TRIANGLE.skeleton]
    kinds = [{"id": 1, "name": "triangle", "keypoints": list(TRIANGLE.names), "skeleton": skeleton}]
    whole = {"images": images, "annotations": notes, "categories": kinds}
    (folder / "annotations.json").write_text(json.dumps(whole))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("keypoints") / "triangles", 40).parent


@pytest.fixture(autouse=True)
def _home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("OPSIN_HOME", str(place / "home"))


def call(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    found = main([*words, "--json"])
    out = capsys.readouterr()
    assert found == code, out.err + out.out
    return json.loads(out.out)


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("OPSIN_HOME", str(place / "home"))
        words = ["train", "keypoints", "--data", "triangles", "--epochs", "12", "--out", "runs/a", *FAST]
        assert main(words) == 0
    return place / "runs/a"


def test_training_learns_and_keeps_pictures_together(run: Path) -> None:
    state = json.loads((run / "run.json").read_text())
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"]["heat_map"] for line in losses if line["event"] == "epoch"]
    assert losses[-1] < 0.6 * losses[0]
    assert state["validation"]["nme"]["value"] < 0.35
    parts = json.loads((run / "data.json").read_text())["split"]["parts"]
    pictures = {part: {name.partition("#")[0] for name in names} for part, names in parts.items()}
    assert not pictures["train"] & pictures["test"]
    assert not pictures["train"] & pictures["val"]
    assert sum(len(names) for names in parts.values()) == 60


def test_data_check(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = call(capsys, "data", "check", "triangles")
    assert not [one for one in found["findings"] if one["level"] == "error"]


def test_evaluate_and_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = call(capsys, "evaluate", str(run))
    metrics = found["metrics"]
    assert found["monitor"] == "nme"  # the points are not COCO's, so there are no spreads
    assert metrics["nme"]["low"] <= metrics["nme"]["value"] <= metrics["nme"]["high"]
    assert metrics["nme"]["groups"] < metrics["nme"]["n"], "pictures are drawn, not objects"
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    for words in ("Error per point", "Cumulative error", "Largest errors", "left_foot", "root of its area"):
        assert words in page
    other = call(capsys, "evaluate", str(run), "--data", "triangles")
    assert other["samples"] == 60
    assert other["metrics"]["nme"]["groups"] == 40


def test_resumed_training_gives_the_same_bits(run: Path, place: Path) -> None:
    part = place / "runs/part"

    def stop(event: Any) -> None:
        if isinstance(event, EpochDone) and event.epoch == 4:
            os.kill(os.getpid(), signal.SIGINT)

    recipe = Recipe.load(run / "recipe.json")
    values = {name: recipe.to_dict()[name] for name in ("data", "model", "run", "task")}
    start("keypoints", [Layer("test", values)], out=part, callbacks=[stop], quiet=True)
    assert Run(part).state["status"] == "interrupted"
    Run(part).resume(quiet=True)
    assert Run(part).state["status"] == "done"
    name = "bundle/weights.safetensors"
    assert (part / name).read_bytes() == (run / name).read_bytes()


def test_predict(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = call(
        capsys, "predict", str(run), "triangles/images/p000.png", "triangles/images/p001.png", "--save", "drawn"
    )
    assert set(found["predictions"][0]["points"]) == set(TRIANGLE.names)
    assert len(list(Path("drawn").rglob("*.png"))) == 2
    table = Path(found["table"]).read_text().splitlines()
    assert "left_foot_x" in table[0]


def test_explain(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method, words in (("occlusion", ["--class", "top"]), ("grad-cam", ["--head", "x"])):
        found = call(
            capsys, "explain", str(run), "triangles/images/p000.png", "--method", method, *words, "--save", "why"
        )
        assert found
        maps = [np.load(path) for path in Path("why").rglob("*.npy")]
        assert all(np.isfinite(one).all() for one in maps)


def test_models_show_and_compare(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (str(run), "heatmap_net", "localizer"):
        shown = call(capsys, "models", "show", name)
        assert shown["parameters"] > 10_000, name
    words = [
        "train",
        "keypoints",
        "--data",
        "triangles",
        "--epochs",
        "2",
        "--out",
        "runs/b",
        *FAST,
        "--split-from",
        "runs/a",
    ]
    assert main(words) == 0
    for name in ("runs/a", "runs/b"):
        assert main(["evaluate", name]) == 0
    found = call(capsys, "compare", "runs/a", "runs/b")
    assert found["metric"] == "nme"
    assert found["pairs"][0]["difference"]["value"] < 0
