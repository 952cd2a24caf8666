"""The same from Python: five lines, one's own module, one's own callback, several heads with missing labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

import opsin
from opsin.engine.events import EpochDone, Evaluated, Event, RunStarted, StepDone, Warned
from opsin.errors import CheckpointError, ConfigError, TrainingError
from opsin.recipe import Layer
from opsin.run import Run


class Own(nn.Module):
    """A person's module that knows nothing of opsin."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Wrong(Own):
    """Returns probabilities, which a loss on logits must not be given."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).softmax(1)


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))


@pytest.fixture
def digits() -> opsin.data.Dataset:  # type: ignore[name-defined]
    from opsin.data import from_arrays

    data = load_digits()
    return from_arrays(
        np.uint8(data.images * 15.9), data.target, class_names=[str(i) for i in range(10)], name="digits"
    )


def test_five_lines(digits) -> None:  # type: ignore[no-untyped-def]
    run = opsin.train("classify", data=digits, model="mlp", epochs=3, quiet=True, listeners=("jsonl",))
    result = opsin.load(run.path).predict(np.uint8(load_digits().images[0] * 15.9))
    assert result.label in "0123456789"
    assert abs(sum(score for _, score in result.top(10)) - 1) < 1e-5
    assert result.draw(Image.new("L", (8, 8))).width >= 8
    json.dumps(result.to_dict())


def test_pictures_from_memory_are_turned_and_never_clipped_in_silence(digits, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = opsin.train("classify", data=digits, model="linear", epochs=1, quiet=True, listeners=())
    bundle, pixels = opsin.load(run.path), np.uint8(load_digits().images[3] * 15.9)

    def scores(image: object) -> np.ndarray:
        return bundle.predict(image).heads[0].scores

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", quality=100, exif=exif)
    with Image.open(tmp_path / "turned.jpg") as opened:
        np.testing.assert_allclose(scores(opened), scores(tmp_path / "turned.jpg"), atol=0.02)
    assert np.abs(scores(pixels) - scores(tmp_path / "turned.jpg")).max() > 0.05
    np.testing.assert_allclose(scores(pixels / 255), scores(pixels), atol=1e-6)
    np.testing.assert_allclose(scores(torch.from_numpy(pixels / 255)[None]), scores(pixels), atol=1e-6)
    for wrong in (pixels.astype(np.int64), torch.from_numpy(pixels.astype(np.int32))[None], pixels > 9):
        with pytest.raises(ConfigError, match=r"pixels of type .* do not say"):
            bundle.predict(wrong)
    for wrong in (pixels.astype(np.float32), Image.fromarray(pixels.astype(np.int32)), pixels / 255 - 0.5):
        with pytest.raises(ConfigError, match=r"floats go from .* takes uint8"):
            bundle.predict(wrong)


def test_other_data_given_as_an_object_stay_as_they_are(digits) -> None:  # type: ignore[no-untyped-def]
    from opsin.data import from_arrays

    run = opsin.train("classify", data=digits, model="mlp", epochs=3, quiet=True, listeners=())
    data, names = load_digits(), [str(i) for i in reversed(range(10))]
    other = from_arrays(np.uint8(data.images * 15.9), 9 - data.target, class_names=names, name="turned")
    first, second = (run.evaluate(data=other)["metrics"]["accuracy"]["value"] for _ in range(2))
    assert first == second > 0.5
    assert other.heads[0].class_names == tuple(names)
    assert (other.targets["label"] == 9 - data.target).all()


def test_nothing_of_the_test_part_is_kept_before_the_look_is_counted(digits, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    from opsin.data.ledger import Ledger

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run = opsin.train("classify", data=digits, model="linear", epochs=1, quiet=True, listeners=())
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "record", stopped)
        with pytest.raises(KeyboardInterrupt):
            run.evaluate()
    assert not (run.path / "predictions" / "test.npz").exists()
    assert len(run.evaluate(with_baselines=False)["looks_at_test"]) == 1
    assert (run.path / "predictions" / "test.npz").exists()


def test_own_module_class_and_callback(digits) -> None:  # type: ignore[no-untyped-def]
    seen: list[Event] = []
    run = opsin.train("classify", data=digits, model=Own, epochs=2, quiet=True, listeners=(), callbacks=[seen.append])
    assert [type(e) for e in seen].count(EpochDone) == 2
    assert any(isinstance(e, Evaluated) for e in seen)
    assert opsin.load(run.path).predict(np.zeros((8, 8), np.uint8)).label in "0123456789"


def test_own_module_object_is_given_again_to_load(digits) -> None:  # type: ignore[no-untyped-def]
    run = opsin.train("classify", data=digits, model=Own(), epochs=1, quiet=True, listeners=())
    with pytest.raises(CheckpointError, match="model="):
        opsin.load(run.path)
    assert opsin.load(run.path, model=Own()).predict(np.zeros((8, 8), np.uint8)).label in "0123456789"


def test_what_training_starts_from_and_how_is_said(digits, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    seen: list[Event] = []

    def train(model: Any, **sections: Any) -> Run:
        seen.clear()
        run: Run = opsin.train(
            "classify", data=digits, model=model, epochs=1, threads=1, quiet=True, listeners=(), callbacks=[seen.append],
            optimizer={"name": "muon", "lr": 0.02, "other_lr": 0.3}, schedule={"name": "constant"}, **sections,
        )  # fmt: skip
        return run

    def told() -> str:
        return next(str(event.details["weights"]) for event in seen if isinstance(event, RunStarted))

    threads = torch.get_num_threads()
    try:
        run = train("mlp")
        assert told() == "new weights (no --weights given)"
        assert {event.lr for event in seen if isinstance(event, StepDone)} == {0.02}  # of optimizer.lr, not other_lr
        assert json.loads((run.path / "environment.json").read_text())["threads"] == 1
        train({"name": "mlp", "weights": str(run.path / "bundle" / "weights.safetensors")})
        assert told().startswith("6 tensors loaded from ")
        train(Own())
        assert told() == "the weights of the given module"
    finally:
        torch.set_num_threads(threads)


def test_own_module_from_a_file(digits, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\ndef build(num_classes=10):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    run = opsin.train("classify", data=digits, model="mine.py:build", epochs=1, quiet=True, listeners=())
    assert opsin.load(run.path).predict(np.zeros((8, 8), np.uint8)).label in "0123456789"


def test_preflight_stops_before_step_one(digits) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TrainingError, match="probabilities"):
        opsin.train("classify", data=digits, model=Wrong, epochs=1, quiet=True, listeners=())


def test_unknown_settings(digits) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="epochs"):
        opsin.train("classify", data=digits, epoch=1)


def test_several_heads_with_missing_labels_and_labels_of_one_column(tmp_path: Path) -> None:
    data, rows = load_digits(), []
    (tmp_path / "pictures").mkdir()
    for i in range(300):
        name = f"pictures/{i:03d}.png"
        Image.fromarray(np.uint8(data.images[i] * 15.9)).save(tmp_path / name)
        number = int(data.target[i])
        traits = "|".join(
            word for word, yes in (("round", number in (0, 6, 8, 9)), ("straight", number in (1, 4, 7))) if yes
        )
        rows.append(
            [
                name,
                "" if i % 7 == 0 else number,
                "even" if number % 2 == 0 else "odd",
                traits or "|",
                f"writer-{i // 10}",
            ]
        )
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "digit", "parity", "traits", "writer"], *rows])
    columns = {"image": "file", "digit": "digit", "parity": "parity", "traits": "traits:multi", "group": "writer"}
    run = opsin.train(
        "classify",
        data={"path": "labels.csv", "columns": columns, "split": {"group": "writer"}},
        model={"name": "mlp", "kwargs": {"hidden": [300]}},
        optimizer={"name": "adamw"},
        batch_size=32,
        epochs=8,
        quiet=True,
        listeners=(),
    )
    assert run.bundle.spec.kwargs["hidden"] == [300]
    metrics = run.state["validation"]
    assert {"digit.accuracy", "parity.accuracy", "traits.average_precision", "heads_mean"} <= set(metrics)
    assert metrics["parity.accuracy"]["groups"] is not None
    result = run.predict(tmp_path / rows[0][0])
    assert [head.name for head in result.heads] == ["digit", "parity", "traits"]
    assert set(result.to_dict()["heads"]) == {"digit", "parity", "traits"}
    from opsin.run.evaluating import evaluate_run

    found = evaluate_run(run)
    assert found["metrics"]["heads_mean"]["value"] > 0.5


def test_a_head_without_labels_outside_training_is_undefined_and_stops_nothing(tmp_path: Path) -> None:
    data, lines = load_digits(), ["file,digit,parity,part"]
    for i in range(120):
        Image.fromarray(np.uint8(data.images[i] * 15.9)).save(tmp_path / f"{i:03d}.png")
        part = "train" if i < 70 else "val" if i < 95 else "test"
        number = int(data.target[i])
        parity = ("even", "odd")[number % 2] if part == "train" else ""
        lines.append(f"{i:03d}.png,{number},{parity},{part}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    columns = {"image": "file", "digit": "digit", "parity": "parity", "split": "part"}
    given = {"path": "labels.csv", "columns": columns}
    run = opsin.train("classify", data=given, model="linear", epochs=1, quiet=True, listeners=())
    validation = run.state["validation"]
    assert validation["parity.accuracy"]["value"] is None
    assert validation["heads_mean"]["value"] == validation["digit.accuracy"]["value"]
    from opsin.run.evaluating import evaluate_run

    found = evaluate_run(run)
    assert found["metrics"]["parity.average_precision"]["value"] is None
    assert "parity.accuracy" not in found["gap"]
    assert "digit.accuracy" in found["gap"]


def test_warnings_know_the_part_and_the_training_part(digits) -> None:  # type: ignore[no-untyped-def]
    from opsin.data import from_arrays
    from opsin.run.evaluating import evaluate_run

    drawn = np.random.default_rng(0).integers(0, 3, 120)  # labels by chance, which can only be learned by heart
    pictures = np.uint8(load_digits().images[:120] * 15.9)
    data = from_arrays(pictures, drawn, class_names=["a", "b", "c"], name="chance")
    given = {"augment_preset": "plain"}
    run = opsin.train(
        "classify", data=data, model="mlp", task=given, epochs=40, batch_size=16, quiet=True, listeners=()
    )
    texts = {}
    for part in ("test", "val"):
        texts[part] = {note["code"]: note["text"] for note in evaluate_run(run, part, with_baselines=False)["warnings"]}
    assert texts["test"]["train_better_than_test"].startswith("accuracy is")
    assert "not_held_out" not in texts["test"]
    assert "of the val part" in texts["val"]["not_held_out"]
    assert texts["val"]["tiny_test_set"].startswith("The val part has only")


def test_layers_reach_the_data_settings_of_an_object(digits) -> None:  # type: ignore[no-untyped-def]
    layer = Layer("script", {"data": {"split": {"seed": 3}}, "run": {"epochs": 5}})
    run = opsin.train("classify", data=digits, model="linear", layers=[layer], epochs=1, quiet=True, listeners=())
    assert (run.recipe.data.split.seed, run.recipe.run.epochs) == (3, 1)


def test_balance_keeps_the_order_of_heads_and_refuses_several_labels_alone() -> None:
    from opsin.data.dataset import ArraySource, Dataset, HeadSpec
    from opsin.tasks.classify import Classify

    several, one = HeadSpec("traits", "multi", ("round", "straight")), HeadSpec("digit", "single", ("0", "1"))
    targets = {"traits": np.float32([[1, 0]] * 8 + [[0, 1]] * 2), "digit": np.int64([0] * 8 + [1] * 2)}

    def inferred(*heads: HeadSpec) -> Any:
        pixels = ArraySource(np.zeros((10, 1, 8, 8), np.uint8))
        data = Dataset("toy", [str(i) for i in range(10)], pixels, heads=heads, targets=targets)
        return Classify.infer(data, np.arange(10), {"balance": "inverse"}).heads

    heads = inferred(several, one)
    assert [(head.name, head.class_weights) for head in heads] == [("traits", None), ("digit", (0.25, 1.0))]
    with pytest.raises(ConfigError, match="weighs exclusive classes"):
        inferred(several)


def test_micro_batches_and_batch_normalization_are_said(digits) -> None:  # type: ignore[no-untyped-def]
    for model, expected in (("smallnet", ["micro-batch-statistics"]), ("mlp", [])):
        codes: list[str] = []

        def note(event: Event, codes: list[str] = codes) -> None:
            codes.extend([event.code] if isinstance(event, Warned) else [])

        opsin.train(
            "classify", data=digits, model=model, epochs=0, batch_size=64, micro_batch=32, preflight=False,
            callbacks=[note], quiet=True, listeners=(),
        )  # fmt: skip
        assert codes == expected


def test_a_run_on_loaded_data_finds_them_again(tmp_path: Path) -> None:
    pictures, labels = load_digits(return_X_y=True)
    for i in range(60):
        path = tmp_path / "digits" / str(labels[i]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(pictures[i].reshape(8, 8) * 15)).save(path)
    data = opsin.load_data("digits", columns={"label": "path"})
    options = {"model": "linear", "epochs": 1, "preflight": False, "quiet": True, "listeners": ()}
    run = opsin.train("classify", data=data, **options)
    assert (run.recipe.data.path, run.recipe.data.columns) == ("digits", {"label": "path"})
    assert opsin.Run(run.path).data.dataset.fingerprint == data.fingerprint
    part = opsin.train("classify", data=data.select(np.arange(50)), **options)
    assert part.recipe.data.path is None
