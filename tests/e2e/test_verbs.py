"""The commands a person types, on real pictures, from a folder to predictions."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from opsin.cli import main

FAST = [
    "run.preflight=true",
    'run.listeners=["jsonl"]',
    "model.kwargs.stem=4",
    "model.kwargs.widths=[8, 8, 8]",
    "--model",
    "smallnet",
    "--quiet",
]


def write(folder: Path, indices: range) -> Path:
    data = load_digits()
    for i in indices:
        path = folder / str(data.target[i]) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(data.images[i] * 15.9)).resize((16, 16)).save(path)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("verbs") / "digits", range(400)).parent


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
        assert main(["train", "classify", "--data", "digits", "--epochs", "6", "--out", "runs/a", *FAST]) == 0
    return place / "runs/a"


def test_train_wrote_everything(run: Path) -> None:
    for name in (
        "recipe.json",
        "data.json",
        "environment.json",
        "metrics.jsonl",
        "run.json",
        "bundle/bundle.json",
        "bundle/weights.safetensors",
        "predictions/val.npz",
    ):
        assert (run / name).exists(), name
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    assert json.loads((run / "recipe.json").read_text())["sources"]["run.epochs"] == "flag --epochs"


def test_evaluate_counts_looks_and_shows_baselines(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = call(capsys, "evaluate", "runs/a")
    second = call(capsys, "evaluate", "runs/a", "--no-baselines")
    assert len(second["looks_at_test"]) == len(first["looks_at_test"]) + 1
    accuracy = first["metrics"]["accuracy"]
    assert set(accuracy) == {"value", "low", "high", "n", "groups", "method"}
    assert accuracy["low"] < accuracy["value"] < accuracy["high"] or accuracy["value"] == 1
    assert set(first["baselines"]) == {"majority", "logistic regression", "1-nearest neighbor"}
    assert json.loads((run / "bundle/bundle.json").read_text())["metrics"]["accuracy"]["value"] == accuracy["value"]


def test_predict_table_sorting_review_and_bad_files(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "new"
    write(folder, range(1700, 1712))
    (folder / "broken.png").write_bytes(b"not a picture")
    found = call(
        capsys, "predict", "runs/a", "new", "--sort-into", "sorted", "--save", "drawn", "--review-below", "0.9"
    )
    assert len(found["predictions"]) == 12
    assert list(found["failed"]) == ["broken.png"]
    with Path(found["table"]).open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["file"] for line in lines if line["error"]] == ["broken.png"]
    assert {"file", "class", "score", "top5", "time", "error"} == set(lines[0])
    unsure = {one["file"] for one in found["predictions"] if one["score"] < 0.9}
    assert set(found["review"]) == unsure
    assert len(list((place / "sorted").rglob("*.png"))) == 12
    assert len(list((place / "drawn").rglob("*.png"))) == 12


def test_one_by_one_and_in_batches_agree(run: Path, place: Path) -> None:
    import opsin

    bundle = opsin.load(run)
    paths = sorted((place / "digits").rglob("*.png"))[:20]
    together = bundle.predict(paths, batch_size=20)
    for path, one in zip(paths, together):
        alone = bundle.predict(path)
        assert alone.label == one.label
        np.testing.assert_allclose(alone.heads[0].scores, one.heads[0].scores, atol=1e-6)


def test_compare_repeat_and_list(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repeated = call(
        capsys, "train", "classify", "--data", "digits", "--epochs", "2", "--out", "runs/r", "--repeat", "2", *FAST
    )
    assert repeated["metrics"]["accuracy"]["seeds"] == 2
    record = json.loads(Path("runs/r/repeat.json").read_text())
    assert (record["status"], record["values"]) == ("done", [0, 1])
    assert record["runs"] == {"seed-0": "done", "seed-1": "done"}
    found = call(capsys, "compare", "runs/a", "runs/r/seed-0", "--split", "val")
    assert found["pairs"][0]["test"] == "exact McNemar"
    assert found["metric"] == "accuracy"
    listed = call(capsys, "runs", "list")
    assert {Path(one["run"]).name for one in listed["runs"]} >= {"a", "seed-0", "seed-1"}


@pytest.mark.parametrize(("flag", "word"), [("--repeat", "seed"), ("--folds", "fold")])
def test_several_runs_are_finished_and_judged_together(
    run: Path, capsys: pytest.CaptureFixture[str], flag: str, word: str
) -> None:
    name = f"runs/several-{word}"
    whole = call(capsys, "train", "classify", "--data", "digits", "--epochs", "1", "--out", name, flag, "2", *FAST)
    kept = Path(name, f"{word}-0", "checkpoints/best.safetensors").stat().st_mtime_ns
    recipe = json.loads(Path(name, f"{word}-1", "recipe.json").read_text())
    shutil.rmtree(Path(name, f"{word}-1"))
    record = json.loads(Path(name, "repeat.json").read_text())
    Path(name, "repeat.json").write_text(json.dumps({**record, "status": "interrupted", "runs": {}, "metrics": {}}))
    assert "--resume" in call(capsys, "evaluate", name, code=2)["error"]["message"]
    again = call(capsys, "train", "--resume", name, "--quiet")
    assert again["metrics"] == whole["metrics"]
    assert json.loads(Path(name, "repeat.json").read_text()) == record
    assert json.loads(Path(name, f"{word}-1", "recipe.json").read_text()) == recipe
    assert Path(name, f"{word}-0", "checkpoints/best.safetensors").stat().st_mtime_ns == kept
    judged = call(capsys, "evaluate", name, "--no-baselines")
    accuracy, parts = judged["metrics"]["accuracy"], [one["metrics"]["accuracy"] for one in judged["runs"]]
    if word == "seed":
        assert accuracy["mean"] == pytest.approx(sum(one["value"] for one in parts) / 2)
    else:
        assert accuracy["n"] == sum(one["n"] for one in parts) == 400
        assert accuracy["value"] == pytest.approx(sum(one["value"] * one["n"] for one in parts) / 400)
    assert accuracy["low"] <= accuracy["high"]
    assert main(["evaluate", name, "--no-baselines"]) == 0
    assert f"{word}-1" in capsys.readouterr().out


def test_compare_refuses_other_test_ids(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(
        capsys,
        "train",
        "classify",
        "--data",
        "digits",
        "--epochs",
        "1",
        "--split-seed",
        "7",
        "--out",
        "runs/other",
        *FAST,
    )
    found = call(capsys, "compare", "runs/a", "runs/other", "--split", "val", code=2)
    assert "not over the same samples" in found["error"]["message"]


def test_split_from_keeps_the_sealed_test(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(place / "digits-week-two", range(500))
    found = call(
        capsys,
        "train",
        "classify",
        "--data",
        "digits-week-two",
        "--epochs",
        "1",
        "--split-from",
        "runs/a",
        "--out",
        "runs/b",
        *FAST,
    )
    old, new = (
        json.loads((place / name / "data.json").read_text())["split"]["parts"] for name in ("runs/a", found["run"])
    )
    for part in ("train", "val", "test"):
        assert set(old[part]) <= set(new[part])
    assert len(new["test"]) > len(old["test"])


def test_split_from_keeps_the_settings_of_the_split(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = r"regex:(\d{2})\d\d\.png"
    write(place / "grouped", range(0, 1790, 10))
    words = ("train", "classify", "--data", "grouped", "--epochs", "1", "--model", "linear", "--quiet")
    call(capsys, *words, "--group", group, "--split-seed", "3", "--out", "runs/g1", 'run.listeners=["jsonl"]')
    write(place / "grouped", range(5, 1790, 10))
    found = call(capsys, *words, "--split-from", "last", "--out", "runs/g2", 'run.listeners=["jsonl"]')
    kept = json.loads((place / "runs/g2/recipe.json").read_text())
    assert (kept["data"]["split"]["group"], kept["data"]["split"]["seed"]) == (group, 3)
    assert kept["sources"]["data.split.group"] == "flag --split-from"
    parts = json.loads((Path(found["run"]) / "data.json").read_text())["split"]["parts"]
    owners = {part: {Path(name).name[:2] for name in ids} for part, ids in parts.items()}
    assert not owners["train"] & owners["test"]
    refused = call(capsys, *words, "--split-from", "runs/g1", "--group", "parent", code=2)
    assert "data.split.group is 'parent'" in refused["error"]["message"]
    shown = call(capsys, "data", "split", "grouped", "--split-from", "runs/g1", "--out", "grouped.json")
    assert group in shown["method"]
    refused = call(
        capsys, "data", "split", "grouped", "--split-from", "runs/g1", "--by", "random", "--out", "no.json", code=2
    )
    assert "data.split.by is 'random'" in refused["error"]["message"]


def test_broken_pictures_stop_training_before_step_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(place / "with-broken", range(120))
    bad = next(folder.rglob("*.png"))
    bad.write_bytes(bad.read_bytes()[:60])
    found = call(capsys, "train", "classify", "--data", "with-broken", "--epochs", "1", *FAST, code=2)
    assert bad.name in found["error"]["message"]
    assert "--skip-bad" in found["error"]["message"]
    found = call(
        capsys,
        "train",
        "classify",
        "--data",
        "with-broken",
        "--epochs",
        "1",
        "--skip-bad",
        "--out",
        "runs/skipped",
        *FAST,
    )
    log = [json.loads(line) for line in (place / "runs/skipped/metrics.jsonl").read_text().splitlines()]
    told = [one["text"] for one in log if one.get("code") == "skipped"]
    assert len(told) == 1
    assert told[0].startswith("Left out because of --skip-bad: 1 picture, ")
    assert bad.name in told[0]
    record = json.loads((place / "runs/skipped/data.json").read_text())
    assert [Path(name).name for name in record["skipped"]] == [bad.name]


def test_wrong_use(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        "exists already"
        in call(capsys, "train", "classify", "--data", "digits", "--out", "runs/a", code=2)["error"]["message"]
    )
    assert (
        "resnet18"
        in call(capsys, "train", "classify", "--data", "digits", "--model", "resnet81", code=2)["error"]["message"]
    )
    assert "classify" in call(capsys, "train", "clasify", "--data", "digits", code=2)["error"]["message"]
    assert call(capsys, "train", "--resume", "runs/a")["status"] == "done"
    for words in (
        ["--batch-size", "64"],
        ["--seed", "3"],
        ["--weights", "x.pt"],
        ["--augment", "strong"],
        ["--repeat", "2"],
    ):
        told = call(capsys, "train", "--resume", "runs/a", *words, code=2)["error"]["message"]
        assert "leave out the other settings" in told
    both = call(capsys, "train", "classify", "--data", "digits", "--epochs", "1", "--minutes", "1", code=2)
    assert "--epochs and --minutes" in both["error"]["message"]


def test_a_recipe_of_a_run_gives_the_same_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", "digits", "--epochs", "1", "task.augment.erase=0.2", *FAST]
    call(capsys, "train", "classify", *given, "--out", "runs/given")
    call(capsys, "train", "classify", "--recipe", "runs/given/recipe.json", "--out", "runs/again", "--quiet")
    first, second = (json.loads((place / f"runs/{name}/run.json").read_text()) for name in ("given", "again"))
    assert first["task_settings"] == second["task_settings"]
    assert first["task_settings"]["augment"]["erase"] == 0.2
    assert first["task_settings"]["augment"]["shift"] > 0  # of the preset
    weights = [(place / f"runs/{name}/bundle/weights.safetensors").read_bytes() for name in ("given", "again")]
    assert weights[0] == weights[1]


def test_starting_weights_survive_a_kill_before_the_first_checkpoint(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--weights", "runs/a/bundle/weights.safetensors"]
    words = ["train", "classify", "--data", "digits", "--epochs", "1", *start, *FAST]
    call(capsys, *words, "--out", "runs/tuned")
    killed = place / "runs/killed"
    shutil.copytree(place / "runs/tuned", killed)
    shutil.rmtree(killed / "checkpoints")
    shutil.rmtree(killed / "bundle")
    state = json.loads((killed / "run.json").read_text())
    kept = {k: state[k] for k in ("opsin", "task", "task_settings", "model", "effective", "weights")}
    (killed / "run.json").write_text(json.dumps({**kept, "status": "running"}))
    call(capsys, "train", "--resume", "runs/killed", "--quiet")
    whole, resumed = (place / f"runs/{name}/bundle/weights.safetensors" for name in ("tuned", "killed"))
    assert whole.read_bytes() == resumed.read_bytes()


def test_changed_data_are_noticed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(place / "changing", range(100))
    call(capsys, "train", "classify", "--data", "changing", "--epochs", "1", "--out", "runs/changing", *FAST)
    next(folder.rglob("*.png")).unlink()
    assert "fingerprint" in call(capsys, "evaluate", "runs/changing", code=2)["error"]["message"]


def test_data_verbs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "data", "inspect", "digits")["samples"] == 400
    flat = place / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted((place / "digits").rglob("*.png"))[:5]):
        (flat / f"{i}.png").write_bytes(path.read_bytes())
    assert "one folder per class" in call(capsys, "data", "inspect", "flat")["next"]
    made = call(capsys, "data", "split", "digits", "--out", "split.json")
    assert sum(counts[""] for counts in made["counts"].values()) == 400
    call(capsys, "data", "convert", "digits", "--to", "csv", "--out", "as-csv")
    assert call(capsys, "data", "inspect", "as-csv")["samples"] == 400


def test_shrunk_training_pictures(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(place / "photos", range(80))
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            image.resize((130, 100)).save(path)
    words = ["train", "classify", "--data", "photos", "--epochs", "1", "task.image_size=[64, 64]", *FAST]
    call(capsys, *words, "data.shrink=80", "--out", "runs/shrunk")
    call(capsys, *words, "--out", "runs/whole")
    kept = [json.loads((place / f"runs/{name}/run.json").read_text()) for name in ("shrunk", "whole")]
    assert kept[0]["task_settings"] == kept[1]["task_settings"]
    weights = [(place / f"runs/{name}/bundle/weights.safetensors").read_bytes() for name in ("shrunk", "whole")]
    assert weights[0] != weights[1]
    told = call(capsys, *words, "data.shrink=50", code=2)["error"]["message"]
    assert "Give at least 73" in told
