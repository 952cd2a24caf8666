"""`opsin models show`, `diff` and `calculate`, as a person types them; and a run that starts from chosen first values."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opsin.bundle import Bundle
from opsin.cli import main
from opsin.models import ModelSpec, build
from opsin.tasks.classify import Classify, ClassifySettings, HeadSettings

SMALL = ["--size", "32", "--channels", "1"]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]):
    """Run `opsin models ...` and give its JSON, or its text."""

    def call(*words: str, code: int = 0):
        assert main(["models", *words]) == code
        captured = capsys.readouterr()
        return json.loads(captured.out) if "--json" in words else captured.out + captured.err

    return call


def test_show_says_what_a_network_is_and_costs(say) -> None:
    text = say("show", "smallnet", *SMALL)
    found = say("show", "smallnet", *SMALL, "--json")
    network = build(ModelSpec("smallnet", {}, 1, 10, (32, 32)))
    assert found["parameters"] == sum(p.numel() for p in network.parameters())
    assert sum(layer["macs"] for layer in found["layers"]) == found["macs"]
    assert found["weights"] == "none shipped."
    assert "cifar10-fast" in found["paper"]
    for words in (f"{found['parameters']:,} parameters", "receptive field: 76 (jump 8)", "stages.2.entry", "adam"):
        assert words in text
    assert "stages.2.entry.0" not in text
    assert "stages.2.entry.0" in say("show", "smallnet", *SMALL, "--layers")
    assert "stages.2" not in say("show", "smallnet", *SMALL, "--depth", "1")
    assert say("show", "smallnet", *SMALL, "--classes", "7", "--json")["layers"][-2]["shape"] == [7]
    assert "apache-2.0" in say("show", "timm/resnet10t", "--size", "64", "--json")["weights"]


@pytest.mark.parametrize("ending", ["csv", "md", "html", "svg", "png"])
def test_tables_are_saved(say, tmp_path: Path, ending: str) -> None:
    path = tmp_path / "made" / f"table.{ending}"
    say("show", "b2-mnist", "--size", "28", "--save", str(path))
    if ending == "png":
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.shape[1] > 400
        assert (pixels < 128).sum() > 1000
    else:
        text = path.read_text()
        assert "receptive field" in text
        assert "Conv2d" in text
    if ending == "csv":
        rows = list(csv.DictReader(path.open()))
        network = build(ModelSpec("b2-mnist", {}, 3, 10, (28, 28)))
        assert sum(int(row["parameters"].replace(",", "") or 0) for row in rows) == sum(
            p.numel() for p in network.parameters()
        )
    assert "Expected .csv, .md, .html, .svg, .png" in say("show", "linear", "--save", str(tmp_path / "t.xls"), code=2)


def test_activations_on_noise_and_on_pictures(say, tmp_path: Path) -> None:
    small = say("show", "mlp", *SMALL, "--activations", "noise", "--init", "*=normal:0.001", "--json")["activations"]
    large = say("show", "mlp", *SMALL, "--activations", "noise", "--init", "*=normal:0.1", "--json")["activations"]
    first = next(i for i, one in enumerate(small) if one["kind"] == "Linear")
    # A sum of 1024 products of unit normals with weights of that deviation.
    assert small[first]["variance"] == pytest.approx(1024 * 0.001**2, rel=0.2)
    assert large[first]["variance"] == pytest.approx(1024 * 0.1**2, rel=0.2)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    on_pictures = say("show", "mlp", *SMALL, "--activations", str(tmp_path), "--init", "*=normal:0.1", "--json")
    assert on_pictures["activations"] != large
    assert "variance" in say("show", "mlp", *SMALL, "--activations", "noise")
    assert "is for --activations" in say("show", "mlp", *SMALL, "--init", "*=he", code=2)
    assert "expected PATTERN=INITIALIZER" in say(
        "show", "mlp", *SMALL, "--activations", "noise", "--init", "he", code=2
    )


def test_a_bundle_shows_its_own_network(say, tmp_path: Path) -> None:
    head = HeadSettings(name="label", class_names=("a", "b", "c"))
    task = Classify(
        ClassifySettings(
            heads=(head,), image_size=(28, 20), channels=1, mean=(0.5,), std=(0.25,), small=True, flip=True
        )
    )
    spec = ModelSpec("smallnet", {"widths": [8, 16, 16]}, 1, 3, (28, 20))
    torch.manual_seed(0)
    model = task.assemble(build(spec)).eval()
    Bundle(task, "classify", spec, model).save(tmp_path / "bundle")
    found = say("show", str(tmp_path / "bundle"), "--activations", "noise", "--json")
    assert found["image"] == [1, 28, 20]
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["activations"][-1]["name"] == "head"
    assert "has its weights" in say(
        "show", str(tmp_path / "bundle"), "--activations", "noise", "--init", "*=he", code=2
    )


def test_diff(say) -> None:
    found = say("diff", "resnet18", "resnet34", "--size", "64", "--json")
    assert found["removed"] == []
    assert {layer["name"] for layer in found["added"]} >= {"layer1.2.conv1", "layer4.2.bn2"}
    assert found["changed"] == {}
    assert found["totals"]["parameters"] == [11_181_642, 21_289_802]
    text = say("diff", "b2-mnist", "b2-simple-cnn", "--size", "28", "--channels", "1", "--classes", "5")
    assert "->" in text
    assert "ratio" in text


def test_calculate(say, tmp_path: Path) -> None:
    words = ("calculate", "28x28x1", "C5x32 same, P2, C5x64 same, P2, FC1024, drop .4, FC10")
    found = say(*words, "--json")
    assert found["parameters"] == 3_274_634
    assert found["layers"][4]["shape"] == [64, 7, 7]
    assert say(*words, "--json", "--batch", "8")["training_bytes"]["sgd"] > found["training_bytes"]["sgd"]
    assert "3,274,634 parameters" in say(*words, "--save", str(tmp_path / "t.csv"))
    assert "share of MACs" in (tmp_path / "t.csv").read_text()
    shapes = [
        say("calculate", "8x8", "C3x4", "--padding", how, "--json")["layers"][1]["shape"] for how in ("same", "valid")
    ]
    assert shapes == [[4, 8, 8], [4, 6, 6]]
    assert "expected valid or same" in say("calculate", "8x8", "C3x4", "--padding", "full", code=2)
    assert "Layer 2 ('C9x4')" in say("calculate", "8x8", "P2, C9x4", code=2)


def test_training_starts_from_the_chosen_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    words = ["train", "classify", "--data", str(tmp_path / "data"), "--model", "linear", "--out", str(tmp_path / "run")]
    zeros = 'model.init={"*": "zeros!"}'
    assert main([*words, "--epochs", "0", zeros, "run.listeners=[]"]) == 0
    weights = Bundle.load(tmp_path / "run" / "bundle").model.state_dict()
    trained = [value for name, value in weights.items() if name.startswith("net.")]
    assert trained
    assert not any(value.any() for value in trained)
