"""Transfer: blocks, plans, frozen parts, LoRA, fitted heads, exact resume over stages, features and their cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import CLASSIFIERS, TINY
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import opsin
from opsin.bundle import Bundle
from opsin.data.loader import EvalLoader
from opsin.engine.checkpoint import Store
from opsin.engine.events import Event, StageStarted, StepDone
from opsin.errors import ConfigError, UnknownName
from opsin.layers import lora
from opsin.models import ModelSpec, build
from opsin.models.blocks import HEAD, blocks_of, choose
from opsin.models.fitted.probes import PROBES, fit_labels, fit_logistic, probe
from opsin.models.weights import save_safetensors
from opsin.recipe import StageSettings, TransferSettings
from opsin.run.featuring import probe_data
from opsin.seeding import torch_seeded
from opsin.transfer import bottleneck, plans
from opsin.transfer.features import extract, last_layer, layers
from opsin.transfer.shift import statistics_shift

NET = {"name": "smallnet", "kwargs": {"stem": 4, "widths": [8, 8, 16], "depths": [0, 1, 1]}}


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pictures(folder: Path, count: int = 30, kinds: int = 3, size: int = 24) -> Path:
    """Squares of different places and brightness, by class."""
    rng = np.random.default_rng(0)
    for i in range(count):
        kind = i % kinds
        array = rng.integers(0, 60, (size, size, 3), np.uint8)
        array[4 + 4 * kind : 12 + 4 * kind, 4:12, kind % 3] += 150
        (folder / f"class-{kind}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / f"class-{kind}" / f"{i}.png")
    return folder


def donor(path: Path, classes: int = 7) -> Path:
    with torch_seeded("donor"):
        model = build(ModelSpec(NET["name"], NET["kwargs"], 3, classes, (24, 24)))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    save_safetensors(model, path, {"license": "mit"})
    return path


def settings(tmp_path: Path, **transfer: Any) -> dict[str, Any]:
    weights = tmp_path / "donor.safetensors"
    return {
        "data": {"path": str(pictures(tmp_path / "data")), "workers": 0},
        "model": {**NET, "weights": str(weights if weights.exists() else donor(weights))},
        "transfer": transfer,
        "quiet": True,
        "run": {"batch_size": 8, "checkpoint_seconds": 0, "preflight": False, "device": "cpu", "precision": "fp32"},
    }


def state(bundle: Bundle) -> dict[str, torch.Tensor]:
    return {name.removeprefix("net."): t.clone() for name, t in bundle.model.state_dict().items()}


# Blocks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_parameter_is_in_exactly_one_block(name):
    tiny = TINY[name]
    model = build(ModelSpec(name, tiny.kwargs, 3, 5, tiny.sizes[0]), check=False)
    blocks = blocks_of(model)
    listed = [parameter for block in blocks for parameter in block.parameters]
    assert sorted(listed) == sorted(n for n, _ in model.named_parameters())
    assert blocks[-1].name == HEAD
    assert len({block.name for block in blocks}) == len(blocks)
    head = dict(model.named_parameters())
    assert any(head[n].shape[0] == 5 for n in blocks[-1].parameters), "the head has a row per class"


def test_blocks_are_what_a_person_would_point_at():
    model = build(ModelSpec("resnet18", {"width": 8}, 3, 5, (32, 32)))
    assert [b.name for b in blocks_of(model)] == ["conv1", "layer1", "layer2", "layer3", "layer4", "head"]
    assert choose(model, "head") == ("fc.weight", "fc.bias")
    assert set(choose(model, "last:1")) == {n for n, _ in model.named_parameters() if n.startswith(("layer4", "fc"))}
    assert choose(model, "from:layer4") == choose(model, "last:1")
    assert choose(model, "last:5") == choose(model, "all")
    assert choose(model, "layer4.1.*,fc") == choose(model, "layer4.1,fc.*")
    assert all(n.endswith("bias") for n in choose(model, "*.bias"))


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        ("last:9", ConfigError, "from 0 to 5"),
        ("last:x", ConfigError, "from 0 to 5"),
        ("from:layer5", UnknownName, "layer4"),
        ("layr4.*", ConfigError, "no parameter is named 'layr4"),
    ],
)
def test_wrong_words_for_what_is_trained(words, error, says):
    model = build(ModelSpec("resnet18", {"width": 8}, 3, 5, (32, 32)))
    with pytest.raises(error, match=says):
        choose(model, words)


# Plans ----------------------------------------------------------------------------------------------------------------


def test_epochs_are_dealt_out_by_share():
    stages = [StageSettings(name=n, share=s) for n, s in (("a", 1.0), ("b", 2.0), ("c", 7.0))]
    assert [count for count, _ in plans.divide(stages, 13, None)] == [2, 3, 8]
    for epochs in range(1, 30):
        counts = [count for count, _ in plans.divide(stages, epochs, 4)]
        assert sum(counts) == max(epochs, 3)
        assert min(counts) >= 1
    assert plans.divide([], 5, None) == ()


def test_a_frozen_trunk_is_frozen_whole():
    model = build(ModelSpec("resnet18", {"width": 8}, 3, 5, (32, 32)))
    rates = plans.begin(model, TransferSettings(plan="full"), StageSettings(name="x", train="last:1"))
    model.train()
    assert not model.layer3.training
    assert not model.bn1.training
    assert model.layer4.training
    assert model.layer4[0].bn1.training
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(rates) == set(choose(model, "last:1"))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.randn(4, 3, 32, 32))
    moved = {n.partition(".")[0] for n, b in model.named_buffers() if not torch.equal(b, before[n])}
    assert moved == {"layer4"}
    plans.finish(model)
    assert all(module.training for module in model.train().modules())


def test_rates_fall_with_depth():
    model = build(ModelSpec("resnet18", {"width": 8}, 3, 5, (32, 32)))
    given = TransferSettings(plan="full", trunk_rate=0.1, layer_decay=0.5)
    rates = plans.prepared(model, given, StageSettings(name="x", train="all", rate=2.0)).rates
    assert rates["fc.weight"] == 2.0
    assert rates["layer4.0.conv1.weight"] == pytest.approx(0.2)
    assert rates["layer3.0.conv1.weight"] == pytest.approx(0.1)
    assert rates["conv1.weight"] == pytest.approx(0.2 * 0.5**4)


@pytest.mark.parametrize("plan", ["head", "staged", "full", "lora", "bias"])
def test_plans_train_what_they_say(tmp_path, plan):
    given = settings(tmp_path, plan=plan, head="steps")
    seen: list[Event] = []
    run = opsin.train("classify", epochs=2, callbacks=[seen.append], **given)
    start, end = opsin.models.weights.read_weights(given["model"]["weights"])[0], state(run.bundle)
    if plan == "staged":  # the best weights may be those of the first stage
        last = Store(run.folder.checkpoints).load()[0]
        end = {name.removeprefix("model.net."): t for name, t in last.items() if name.startswith("model.net.")}
    changed = {n for n, t in start.items() if n in end and t.shape == end[n].shape and not torch.equal(t, end[n])}
    trunk = {n for n in changed if not n.startswith("head.") and "num_batches" not in n}
    statistics = {n for n in trunk if "running" in n}
    if plan == "head":
        assert not trunk
    elif plan == "lora":
        assert trunk == {n for n, t in start.items() if t.ndim == 4}  # every convolution, no norm, no statistics
    elif plan == "bias":
        assert set(trunk - statistics) == {n for n, t in start.items() if t.ndim == 1} - {
            n for n in start if n.startswith("head.") or "running" in n
        }
    else:
        assert {n for n, t in start.items() if t.ndim == 4} <= trunk
    stages = [event.name for event in seen if isinstance(event, StageStarted)]
    assert stages == {"staged": ["head", "top", "all"]}.get(plan, [plan])
    assert run.bundle.info["lineage"]["transfer"] == plan


def test_a_plan_without_weights_is_an_error(tmp_path):
    given = settings(tmp_path, plan="head")
    given["model"] = NET
    with pytest.raises(ConfigError, match="nothing to transfer"):
        opsin.train("classify", **given)


def test_head_takes_no_epochs(tmp_path):
    with pytest.raises(ConfigError, match="takes no epochs"):
        opsin.train("classify", epochs=3, **settings(tmp_path, plan="head"))


def test_muon_has_one_rate(tmp_path):
    with pytest.raises(ConfigError, match="muon"):
        opsin.train("classify", epochs=1, optimizer={"name": "muon"}, **settings(tmp_path, plan="full"))


# Resume ---------------------------------------------------------------------------------------------------------------


class _Stop(Exception):
    """Stands for a power cut."""


@pytest.mark.parametrize("plan", ["staged", "lora"])
def test_resume_is_bit_identical_at_every_step(tmp_path, plan):
    given = settings(tmp_path, plan=plan)
    whole = opsin.train("classify", epochs=3, out=tmp_path / "whole", **given)
    expected, log = state(whole.bundle), _log(whole)
    for stop in (1, 3, 4, 5, 8):

        def cut(event: Event, stop: int = stop) -> None:
            if isinstance(event, StepDone) and event.step == stop:
                raise _Stop

        folder = tmp_path / f"cut-{stop}"
        with pytest.raises(_Stop):
            opsin.train("classify", epochs=3, out=folder, callbacks=[cut], **given)
        run = opsin.run.Run(folder).resume(quiet=True)
        found = state(run.bundle)
        assert all(torch.equal(expected[name], found[name]) for name in expected), f"cut at step {stop}"
        assert _log(run) == log


def _log(run: Any) -> list[str]:
    import json

    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [
        str({k: v for k, v in line.items() if k not in ("time", "seconds")})
        for line in lines
        if line["event"] != "note"
    ]


def test_a_stage_that_gets_no_better_ends_and_the_next_begins_from_the_best(tmp_path):
    given = settings(tmp_path, stages=[{"name": "a", "train": "head", "patience": 1}, {"name": "b", "train": "last:1"}])
    given["transfer"]["head"] = "steps"
    seen: list[Event] = []
    opsin.train("classify", epochs=12, callbacks=[seen.append], optimizer={"lr": 1e-12}, **given)
    starts = [event for event in seen if isinstance(event, StageStarted)]
    assert [event.name for event in starts] == ["a", "b"]
    assert starts[1].epoch < 6, "the first stage ended early"
    assert "(stages.2, head)" in starts[1].trained


# LoRA -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "timm/vit_tiny_patch16_224"])
def test_lora_starts_at_the_weights_and_merges_into_them(name):
    kwargs = {"width": 8} if name == "resnet18" else {"depth": 2, "embed_dim": 48}
    model = build(ModelSpec(name, kwargs, 3, 5, (32, 32))).eval()
    names, x = list(model.state_dict()), torch.randn(2, 3, 32, 32)
    before = model(x).logits
    changed = lora.inject(model, 4, leave=choose(model, HEAD))
    torch.testing.assert_close(model(x).logits, before)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n in trained if n.endswith((".up", ".down"))} | set(choose(model, HEAD))
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(".up"):
            nn.init.normal_(parameter, 0, 0.1)
    after = model(x).logits
    assert not torch.allclose(after, before)
    lora.merge(model)
    assert list(model.state_dict()) != []
    assert set(model.state_dict()) == set(names)
    torch.testing.assert_close(model(x).logits, after, rtol=1e-5, atol=1e-5)
    assert changed
    assert all(n in names for n in changed)


# Heads from features --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [2, 5])
def test_a_fitted_head_answers_as_scikit_learn_does(kinds):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(1)
    y = rng.integers(0, kinds, 200)
    x = rng.normal(3.0, 2.0, (200, 12)) + np.eye(12)[y] * 4
    head = fit_logistic(x, y, kinds)
    scaled = StandardScaler().fit_transform(x)
    expected = LogisticRegression(C=head.strength, max_iter=500, tol=1e-5).fit(scaled, y).predict_proba(scaled)
    logits = torch.from_numpy(x @ head.weight.T.astype(np.float64) + head.bias)
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=2e-3)


def test_missing_labels_absent_classes_and_labels_in_any_number():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 3, 120)
    x = rng.normal(size=(120, 6)) + np.eye(6)[y] * 5
    gaps = np.where(rng.random(120) < 0.3, -1, y)
    gaps[gaps == 1] = -1
    head = fit_logistic(x, gaps, 4)
    answers = (x @ head.weight.T + head.bias).argmax(1)
    assert set(answers) == {0, 2}
    assert (answers == y)[gaps >= 0].all()
    labels = np.stack([(y == 0), (y == 1)], 1).astype(float)
    labels[::7, 0] = np.nan
    several = fit_labels(x, labels)
    said = x @ several.weight.T + several.bias > 0
    assert (said == np.stack([(y == 0), (y == 1)], 1)).mean() > 0.98


def test_few_rows_single_rows_and_none():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(31, 5)) + 0.0
    y = np.array([0] * 15 + [1] * 15 + [2])
    x[y == 1] += 4
    head = fit_logistic(x, y, 3)
    assert head.strength != 1e-2, "one class of a single picture does not turn the choice off"
    assert fit_logistic(x, np.full(31, -1), 3).bias.tolist() == [-30.0] * 3
    with pytest.raises(ConfigError, match="not finite"):
        fit_logistic(np.where(x > 4, np.inf, x), y, 3)
    for name in PROBES:
        probe(name, x[[0, 20]], np.array([0, 1]), x[:3])


def test_probes_leave_the_sealed_part_alone(tmp_path):
    run = opsin.train("classify", **settings(tmp_path, plan="head"))
    data = opsin.load_data(tmp_path / "data")
    found = probe_data(run.bundle, data, ["nearest"])
    assert found["left_out"] == len(run.data.indices("test")) > 0
    assert found["samples"] == 30 - found["left_out"]
    assert probe_data(run.bundle, data, ["nearest"], all_parts=True)["samples"] == 30


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_learns_what_can_be_learned(name):
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 90)
    x = rng.normal(size=(90, 8)) + np.eye(8)[y] * 6
    answers, _ = probe(name, x[:60], y[:60], x[60:])
    assert (answers == y[60:]).mean() > 0.9
    with pytest.raises(UnknownName, match="logistic"):
        probe("logistik", x, y, x)


def test_head_only_equals_a_logistic_regression_on_the_features(tmp_path):
    run = opsin.train("classify", **settings(tmp_path, plan="head"))
    bundle = run.bundle
    start = opsin.models.weights.read_weights(tmp_path / "donor.safetensors")[0]
    end = state(bundle)
    assert all(torch.equal(t, end[n]) for n, t in start.items() if not n.startswith("head."))
    indices = run.data.indices("train")
    found = extract(bundle.model, EvalLoader(run.data.dataset, indices, bundle.task, batch_size=8))
    weight, bias, _ = bundle.task.fit_head(found.values, run.data.dataset, indices)
    np.testing.assert_array_equal(weight, end["head.weight"].numpy())
    np.testing.assert_array_equal(bias, end["head.bias"].numpy())
    assert run.state["best"]["epoch"] == -1
    assert run.state["validation"]["accuracy"]["n"] > 0


# Features and their cache ---------------------------------------------------------------------------------------------


def test_features_equal_torchvisions_extractor(tmp_path):
    model = build(ModelSpec("resnet18", {"width": 8}, 3, 5, (64, 64))).eval()
    x = torch.randn(2, 3, 64, 64)
    reference = create_feature_extractor(model, {"layer3": "layer3", "flatten": "flatten"})(x)

    class Batches:
        inputs, ids = x, ["a", "b"]

    for layer, pool, expected in (
        ("layer3", "none", reference["layer3"]),
        ("layer3", "mean", reference["layer3"].mean((2, 3))),
        ("layer3", "max", reference["layer3"].amax((2, 3))),
        ("head-input", "mean", reference["flatten"]),
    ):
        found = extract(model, [Batches()], layer, pool)
        np.testing.assert_allclose(found.values, expected.detach().numpy(), atol=1e-6)
        assert found.ids == ("a", "b")
    assert dict(layers(model, x))["layer3"] == (32, 4, 4)
    with pytest.raises(UnknownName, match="layer3"):
        extract(model, [Batches()], "layre3")
    assert model.training is False
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert last_layer(model)[0] == "fc"


def test_a_stale_cache_is_impossible(tmp_path, monkeypatch):
    data = pictures(tmp_path / "data", size=24)
    big = data / "class-0" / "big.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 500, 3), np.uint8)).save(big)
    assert big.stat().st_size > 2 * 64 * 1024, "larger than what the data set's own fingerprint reads"
    run = opsin.train("classify", **{**settings(tmp_path, plan="head"), "data": {"path": str(data)}})
    task, model = run.bundle.task, run.bundle.model

    def look(**changes: Any) -> bottleneck.Cached:
        dataset = opsin.load_data(data)
        given = {"task": task, "model": model, "indices": np.arange(len(dataset)), **changes}
        return bottleneck.features_of(dataset=dataset, **given)

    first = look()
    assert not first.hit
    again = look()
    assert again.hit
    np.testing.assert_array_equal(first.features.values, again.features.values)
    # weights, even one bit of one; but not the head's, which comes after
    with torch.no_grad():
        model.net.head.weight.add_(1.0)
    assert look().hit
    weight = model.net.stem[0].weight
    with torch.no_grad():
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(1e9))
    assert not look().hit
    # transform
    other = type(task)(task.settings.model_copy(update={"image_size": (20, 20)}))
    assert not look(task=other).hit
    assert look(task=type(task)(task.settings.model_copy(update={"label_smoothing": 0.5}))).hit
    # what a module keeps besides weights
    pool_of = model.net.stages[0].entry[1]
    pool_of.ceil_mode = True
    assert not look().hit
    pool_of.ceil_mode = False
    # layer, pool, samples
    assert not look(layer="stages.1").hit
    assert not look(layer="stages.1", pool="max").hit
    assert not look(indices=np.arange(5)).hit
    # data: the middle of a large file, at the same size
    content = bytearray(big.read_bytes())
    content[len(content) // 2] ^= 1
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    before = opsin.load_data(data).fingerprint
    big.write_bytes(bytes(content))
    assert opsin.load_data(data).fingerprint == before, "the fingerprint does not see it"
    names = {bottleneck.key(task, model, opsin.load_data(data), np.arange(31), "head-input", "mean")}
    assert not (bottleneck.features_of.__globals__["cache_home"]() / "features" / f"{names.pop()}.safetensors").exists()


def test_a_damaged_cache_file_is_computed_again(tmp_path):
    run = opsin.train("classify", **settings(tmp_path, plan="head"))
    dataset, task, model = run.data.dataset, run.bundle.task, run.bundle.model
    first = bottleneck.features_of(task, model, dataset, np.arange(9))
    first.path.write_bytes(first.path.read_bytes()[:-40])
    again = bottleneck.features_of(task, model, dataset, np.arange(9))
    assert not again.hit
    np.testing.assert_array_equal(first.features.values, again.features.values)
    assert bottleneck.features_of(task, model, dataset, np.arange(9)).hit


def test_the_cache_stays_small(tmp_path, monkeypatch):
    run = opsin.train("classify", **settings(tmp_path, plan="head"))
    monkeypatch.setattr(bottleneck, "LIMIT_BYTES", 3000)
    for count in range(2, 12):
        path = bottleneck.features_of(run.bundle.task, run.bundle.model, run.data.dataset, np.arange(count)).path
    files = list(path.parent.glob("*.safetensors"))
    assert path in files
    assert sum(file.stat().st_size for file in files) <= 3000


# Shift ----------------------------------------------------------------------------------------------------------------


def test_shift_is_zero_at_home_and_grows_with_distance():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)).train()
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 + 1
    model[0].momentum = None
    model(x)
    model.eval()

    class Batches:
        def __init__(self, inputs: torch.Tensor) -> None:
            self.inputs, self.ids = inputs, [""] * len(inputs)

        def __len__(self) -> int:
            return len(self.ids)

    near, far = (statistics_shift(model, [Batches(one)]) for one in (x, x + 5))
    assert near < 1e-3
    # closed form: equal variances v and a gap of g in the mean give g^2 / (2 v)
    assert far == pytest.approx(25 / (2 * float(model[0].running_var.mean())), rel=0.05)
    assert statistics_shift(nn.Conv2d(3, 4, 1), [Batches(x)]) is None


# Which head -----------------------------------------------------------------------------------------------------------


def test_a_head_of_other_classes_is_not_taken_over(tmp_path):
    given = settings(tmp_path)
    given["model"] = NET
    first = opsin.train("classify", epochs=1, out=tmp_path / "first", **given)
    pictures(tmp_path / "others")
    for folder in list((tmp_path / "others").iterdir()):
        folder.rename(folder.with_name(folder.name.replace("class", "kind")))
    common = {**given, "model": {**NET, "weights": str(first.path)}}
    again = opsin.train("classify", epochs=0, out=tmp_path / "again", **common)
    assert torch.equal(state(again.bundle)["head.weight"], state(first.bundle)["head.weight"])
    common["data"] = {**given["data"], "path": str(tmp_path / "others")}
    other = opsin.train("classify", epochs=0, out=tmp_path / "other", **common)
    assert not torch.equal(state(other.bundle)["head.weight"], state(first.bundle)["head.weight"])
    assert torch.equal(state(other.bundle)["stem.0.weight"], state(first.bundle)["stem.0.weight"])
    assert other.state["weights"]["report"]["left"] == ["head.bias", "head.weight"]
    common["data"] = given["data"]
    kept = {**common, "transfer": {"plan": "full", "head": "keep"}, "optimizer": {"lr": 1e-12}}
    run = opsin.train("classify", epochs=1, out=tmp_path / "kept", **kept)
    assert torch.allclose(state(run.bundle)["head.weight"], state(first.bundle)["head.weight"])


def test_a_head_of_other_classes_cannot_be_kept(tmp_path):
    given = settings(tmp_path)
    given["model"] = NET
    first = opsin.train("classify", epochs=0, out=tmp_path / "first", **given)
    pictures(tmp_path / "others")
    for folder in list((tmp_path / "others").iterdir()):
        folder.rename(folder.with_name(folder.name.replace("class", "kind")))
    common = {**given, "model": {**NET, "weights": str(first.path)}, "transfer": {"plan": "head", "head": "keep"}}
    common["data"] = {**given["data"], "path": str(tmp_path / "others")}
    with pytest.raises(ConfigError, match=r"for other classes \(class-0, class-1.*have kind-0"):
        opsin.train("classify", epochs=1, **common)


def test_a_head_that_is_not_there_cannot_be_kept(tmp_path):
    with pytest.raises(ConfigError, match=r"no head of this size .*head\.bias"):
        opsin.train("classify", epochs=1, **settings(tmp_path, plan="full", head="keep"))


def test_partial_restore_in_training(tmp_path):
    given = settings(tmp_path)
    given["model"]["restore"] = ["stem"]
    run = opsin.train("classify", epochs=0, **given)
    start = opsin.models.weights.read_weights(tmp_path / "donor.safetensors")[0]
    same = {n for n, t in state(run.bundle).items() if n in start and t.ndim == 4 and torch.equal(t, start[n])}
    assert same == {"stem.0.weight"}
