"""Preflight: each finding is provoked by a model broken in that way, a sound one gives none, and nothing is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.toys import TOYS, Toy, ToyLoader, make
from torch import Tensor, nn
from torch.nn import functional as F

from opsin import memory, seeding
from opsin.engine import capacity
from opsin.engine import preflight as module
from opsin.engine.capacity import epochs_for_minutes, find_micro_batch, steps_for_minutes
from opsin.engine.events import Event, Stream
from opsin.engine.loop import Loop, Plan
from opsin.engine.optimizers import Average
from opsin.engine.precision import Precision
from opsin.engine.preflight import output_notes, preflight
from opsin.errors import TrainingError
from opsin.results.section import Note
from opsin.task import Batch, Geometry, Loss, Part, Task, TaskSettings

CPU = torch.device("cpu")
FP32, FP64 = Precision("fp32", CPU, False), Precision("fp64", CPU, False)
CLASSES = 4


@pytest.fixture(autouse=True)
def _steady(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A busy machine must not change what is found."""
    monkeypatch.setattr(module, "OVERFIT_SECONDS", 60.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Classify(Toy):
    """Cross-entropy over pictures (B, 1, 4, 4), and a finding of its own when labels are out of range."""

    @classmethod
    def infer(cls, data: Any, indices: Any, given: Mapping[str, Any]) -> TaskSettings:
        return TaskSettings()

    @property
    def model_facts(self) -> dict[str, Any]:
        return {"in_channels": 1, "num_outputs": CLASSES, "image_size": (4, 4)}

    def counts(self, batch: Batch, phase: str) -> dict[str, float]:
        return {"loss": float(len(batch))}

    def training_step(self, model: nn.Module, batch: Batch, phase: str) -> Loss:
        logits = model(batch.inputs)
        target = batch.targets["y"] % logits.shape[1]
        return {"loss": Part(F.cross_entropy(logits, target, reduction="sum"), float(len(batch)))}

    def example_inputs(self, batch_size: int = 1) -> Tensor:
        return torch.zeros(batch_size, 1, 4, 4)

    def check_batch(self, model: nn.Module, batch: Batch) -> Iterator[Note]:
        if int(batch.targets["y"].max()) >= CLASSES:
            yield Note("label-range", "labels too large", "error")


class Net(nn.Module):
    """A sound network whose ends can be replaced."""

    def __init__(self, last: Callable[[Tensor], Tensor] = lambda logits: logits, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.2)
        self.head, self.last = nn.Linear(8 * 16, classes), last

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.conv(x)))
        return self.last(self.head(self.drop(h).flatten(1)))


def _batch(size: int = 16, scale: float = 1.0) -> Batch:
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(size, 1, 4, 4, generator=g) * scale, torch.randint(0, CLASSES, (size,), generator=g)
    ids = [f"{i}.png" for i in range(size)]
    return Batch(x, {"y": y}, [Geometry((4, 4), (4, 4))] * size, [{}] * size, ids, seeding.keys(0, 0, np.arange(size)))


def _net(**given: Any) -> Net:
    with seeding.torch_seeded("net"):
        return Net(**given)


def _sgd(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    return {"main": torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)}


def _codes(model: nn.Module, batch: Batch | None = None, **given: Any) -> dict[str, Note]:
    given.setdefault("precision", FP32)
    optimizers = given.pop("optimizers", None) or _sgd(model)
    notes = preflight(Classify(TaskSettings()), model, batch or _batch(), optimizers, **given)
    assert all(note.text.endswith(".") and len(note.text) > 10 for note in notes if note.code != "label-range")
    return {note.code: note for note in notes}


def test_a_sound_model_gives_no_finding() -> None:
    assert _codes(_net(), train_ids=["a", "b"], val_ids=iter(["c"])) == {}


@pytest.mark.parametrize("name", TOYS)
def test_the_toy_tasks_give_no_error_and_no_warning(name: str) -> None:
    task, model, _, x, targets = make(name)
    optimizers: dict[str, torch.optim.Optimizer] = {
        phase: torch.optim.SGD([p for _, p in task.parameters(model, phase)], lr=0.1) for phase in task.phases
    }
    batch = next(ToyLoader(task, x, targets, 11).epoch(0))
    notes = preflight(task, model, batch, optimizers, precision=FP64)
    assert [n for n in notes if n.level != "info"] == []


def test_nothing_is_touched() -> None:
    model, batch = _net(), _batch()
    optimizers = {"main": torch.optim.Adam(model.parameters())}
    F.cross_entropy(model(batch.inputs), batch.targets["y"]).backward()
    optimizers["main"].step()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    moments = [t.clone() for s in optimizers["main"].state.values() for t in s.values()]
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.norm.eval()
    torch.manual_seed(3)
    generator = torch.default_generator.get_state()
    inputs = batch.inputs.clone()
    _codes(model, batch, optimizers=optimizers)
    find_micro_batch(Classify(TaskSettings()), model, batch, precision=FP32, optimizers=optimizers)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert all(
        torch.equal(a, b) for a, b in zip(moments, [t for s in optimizers["main"].state.values() for t in s.values()])
    )
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters()) if p.grad is not None)
    assert torch.equal(torch.default_generator.get_state(), generator)
    assert model.training
    assert not model.norm.training
    assert torch.equal(batch.inputs, inputs)
    assert not model._forward_hooks
    assert not model.conv._forward_pre_hooks


# Outputs --------------------------------------------------------------------------------------------------------------


def test_softmax_inside_the_model() -> None:
    note = _codes(_net(last=lambda z: z.softmax(1)))["probabilities"]
    assert note.level == "error"
    assert "softmax" in note.text


def test_relu_on_logits() -> None:
    assert _codes(_net(last=F.relu))["relu-logits"].level == "error"


def test_one_unit_softmax() -> None:
    assert "one-unit-softmax" in _codes(_net(last=lambda z: z.softmax(1), classes=1))


def test_sigmoid_inside_the_model() -> None:
    assert _codes(_net(last=torch.sigmoid))["sigmoid"].level == "warning"


def test_outputs_that_are_fine() -> None:
    z = torch.randn(16, 5)
    for fine in (z, torch.zeros(16, 5), z.log_softmax(1), {"embedding_map": z.softmax(1)}, z.abs() * 3 + 0.1):
        assert list(output_notes(fine)) == []
    assert [n.code for n in output_notes({"logits": {"color": z, "shape": z.softmax(1)}})] == ["probabilities"]


# Parameters and optimizer ---------------------------------------------------------------------------------------------


def test_a_frozen_head_is_named() -> None:
    model = _net()
    model.head.requires_grad_(False)
    note = _codes(model)["frozen"]
    assert note.level == "info"
    assert "'head.weight'" in note.text


def test_everything_frozen() -> None:
    model = _net()
    optimizers = _sgd(model)
    model.requires_grad_(False)
    found = _codes(model, optimizers=optimizers)
    assert found["all-frozen"].level == found["loss-detached"].level == "error"


def test_a_parameter_that_the_loss_does_not_use() -> None:
    model = _net()
    model.spare = nn.Linear(3, 3)
    note = _codes(model)["no-gradient"]
    assert note.data["parameters"] == ["spare.weight", "spare.bias"]


def test_outputs_detached_from_the_parameters() -> None:
    assert _codes(_net(last=Tensor.detach))["loss-detached"].level == "error"


def test_the_optimizer_misses_a_parameter() -> None:
    model = _net()
    optimizers: dict[str, torch.optim.Optimizer] = {
        "main": torch.optim.SGD([*model.conv.parameters(), *model.norm.parameters()], lr=0.1)
    }
    note = _codes(model, optimizers=optimizers)["optimizer-missing"]
    assert note.data["parameters"] == ["head.weight", "head.bias"]
    assert note.level == "error"


def test_the_optimizer_holds_another_model() -> None:
    found = _codes(_net(), optimizers=_sgd(_net()))
    assert {"optimizer-missing", "optimizer-foreign"} <= set(found)


def test_the_optimizer_holds_what_the_task_does_not_train() -> None:
    class Part_(Classify):
        def parameters(self, model: nn.Module, phase: str) -> Any:
            return [(n, p) for n, p in model.named_parameters() if n.startswith("head")]

    model = _net()
    codes = {n.code for n in preflight(Part_(TaskSettings()), model, _batch(), _sgd(model), precision=FP32)}
    assert {"optimizer-extra", "never-trained"} <= codes


# Modes ----------------------------------------------------------------------------------------------------------------


class Always(nn.Dropout):
    def train(self, mode: bool = True) -> Always:
        return super().train(True)


class Never(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> Never:
        return super().train(False)


def test_dropout_that_ignores_eval() -> None:
    model = _net()
    model.drop = Always(0.5)
    found = _codes(model)
    assert found["mode-eval"].level == found["eval-random"].level == "error"


def test_functional_dropout_that_is_always_on() -> None:
    assert "eval-random" in _codes(_net(last=lambda z: F.dropout(z, 0.5)))


def test_random_losses_are_no_random_predictions() -> None:
    """A two-stage detector draws the boxes that count, in evaluation mode too."""

    class Drawing(Classify):
        def training_step(self, model: nn.Module, batch: Batch, phase: str) -> Loss:
            logits = model(batch.inputs, noisy=True)
            return {"loss": Part(F.cross_entropy(logits, batch.targets["y"], reduction="sum"), float(len(batch)))}

    class Noisy(Net):
        def forward(self, x: Tensor, noisy: bool = False) -> Tensor:
            return super().forward(x) + (0.1 * torch.randn(len(x), CLASSES) if noisy else 0.0)

    with seeding.torch_seeded("net"):
        model = Noisy()
    assert preflight(Drawing(TaskSettings()), model, _batch(), _sgd(model), precision=FP32) == []


def test_batch_norm_frozen_by_hand_is_only_mentioned() -> None:
    model = _net()
    model.norm = Never(8)
    assert {code: note.level for code, note in _codes(model).items()} == {"mode-train": "info"}


class Counting(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return super().forward(x)


def test_a_model_that_changes_while_predicting() -> None:
    assert _codes(Counting())["eval-changes"].data["buffers"] == ["seen"]


# Data -----------------------------------------------------------------------------------------------------------------


def test_shared_ids() -> None:
    note = _codes(_net(), train_ids=["a", "b", "c"], val_ids=["c", "d"])["shared-ids"]
    assert note.level == "error"
    assert "'c'" in note.text


def test_unscaled_inputs() -> None:
    batch = _batch()
    batch.inputs = torch.rand(16, 1, 4, 4) * 255
    note = _codes(_net(), batch)["inputs-unscaled"]
    assert note.level == "warning"
    assert note.data["layer"] == "conv"


def test_pixels_normalized_inside_the_model_are_fine() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.float() / 127.5 - 1)

    batch = _batch()
    batch.inputs = (torch.rand(16, 1, 4, 4) * 255).to(torch.uint8)
    assert _codes(Inside(), batch) == {}


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("inputs-shape", lambda x: x[:, 0]),
        ("inputs-constant", torch.zeros_like),
        ("inputs-repeated", lambda x: x[:1].expand_as(x).clone()),
        ("inputs-nonfinite", lambda x: x / (x > 0)),
    ],
)
def test_inputs(code: str, change: Callable[[Tensor], Tensor]) -> None:
    batch = _batch()
    batch.inputs = change(batch.inputs)
    assert code in _codes(_net(), batch)


def test_findings_of_the_task_are_passed_on() -> None:
    batch = _batch()
    batch.targets["y"][0] = 9
    assert "label-range" in _codes(_net(), batch)


# Loss -----------------------------------------------------------------------------------------------------------------


def test_a_step_that_fails_is_a_finding() -> None:
    note = _codes(_net(last=lambda z: z @ torch.ones(7, 7)))["step-fails"]
    assert "7x7" in note.text


def test_a_loss_that_is_not_finite_at_the_start() -> None:
    found = _codes(_net(last=lambda z: z / 0.0))
    assert found["loss-nonfinite"].level == "error"
    assert "cannot-overfit" not in found


def test_cannot_overfit() -> None:
    note = _codes(_net(last=lambda z: z * 1e-9))["cannot-overfit"]
    assert note.level == "error"
    assert "run.preflight=false" in note.text
    assert note.data["lowest"] > 1.2
    note = _codes(_net(last=lambda z: z.clamp(-0.08, 0.08)))["cannot-overfit"]  # a little can be learned
    assert note.level == "warning"
    assert note.data["first"] * 0.8 < note.data["lowest"] < note.data["first"] * 0.98


def test_overfitting_is_skipped_when_a_step_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OVERFIT_SECONDS", 0.0)
    note = _codes(_net(last=lambda z: z * 1e-9))["cannot-overfit"]
    assert "10 steps" in note.text  # so many are tried however slow they are
    assert note.level == "warning"  # too few to stop for
    little = _codes(_net(last=lambda z: z * 0.02))["overfit-skipped"]
    assert "10 steps" in little.text
    assert little.level == "info"
    monkeypatch.setattr(module, "OVERFIT_LIMIT", 0.0)
    note = _codes(_net(last=lambda z: z * 1e-9))["overfit-skipped"]
    assert note.level == "info"


def test_errors_come_first() -> None:
    model = _net(last=lambda z: z.softmax(1))
    model.conv.requires_grad_(False)
    notes = preflight(Classify(TaskSettings()), model, _batch(), _sgd(model), precision=FP32)
    assert [n.level for n in notes] == sorted((n.level for n in notes), key=["error", "warning", "info"].index)


# Memory and time ------------------------------------------------------------------------------------------------------


def _hungry(limit: int, error: Exception) -> Net:
    def last(z: Tensor) -> Tensor:
        if len(z) > limit:
            raise error
        return z

    return _net(last=last)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_the_micro_batch_is_halved_until_it_fits(error: Exception) -> None:
    task, batch = Classify(TaskSettings()), _batch(20)
    assert find_micro_batch(task, _hungry(100, error), batch, precision=FP32) is None
    assert find_micro_batch(task, _hungry(7, error), batch, precision=FP32) == 5
    assert find_micro_batch(task, _hungry(2, error), batch, precision=FP32) == 2
    with pytest.raises(TrainingError, match="Not even one sample"):
        find_micro_batch(task, _hungry(0, error), batch, precision=FP32)


def test_other_errors_are_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        find_micro_batch(Classify(TaskSettings()), _hungry(4, RuntimeError("shapes differ")), _batch(), precision=FP32)


def test_preflight_itself_makes_do_with_fewer_samples() -> None:
    assert _codes(_hungry(8, MemoryError())) == {}


def test_a_coupled_task_is_never_split() -> None:
    task, model, _, x, targets = make("contrastive")
    batch = next(ToyLoader(task, x, targets, 8).epoch(0))
    assert find_micro_batch(task, model, batch, precision=FP64) is None


def test_free_memory_limits_the_micro_batch_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = Classify(TaskSettings()), _batch(64)
    monkeypatch.setattr(capacity, "available_memory", lambda: 30_000)
    found = find_micro_batch(task, _net(), batch, precision=FP32)
    assert found is not None
    assert 1 <= found < 64
    monkeypatch.setattr(capacity, "available_memory", lambda: None)
    assert find_micro_batch(task, _net(), batch, precision=FP32) is None


def test_the_limit_of_a_nested_control_group_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "limit").write_text("30000\n")
    (tmp_path / "used").write_text("0\n")
    monkeypatch.setattr(memory, "_container_files", lambda: iter([(tmp_path / "limit", tmp_path / "used")]))
    found = find_micro_batch(Classify(TaskSettings()), _net(), _batch(64), precision=FP32)
    assert found is not None
    assert found < 64


def _loop(task: Task[Any], model: nn.Module, seen: list[Event], validate: Any = None) -> Loop:
    _, _, _, x, targets = make("heads")
    optimizers: dict[str, torch.optim.Optimizer] = {"main": torch.optim.Adam(model.parameters())}
    loader = ToyLoader(task, x, targets, 4)
    return Loop(
        task, model, optimizers, lambda step: 1.0, loader, Plan(3, clip_norm=1.0, validate_every=2),
        precision=FP64, average=Average(model, 0.9), stream=Stream({"one": seen.append}), validate=validate,
    )  # fmt: skip


def test_timing_leaves_no_trace_and_counts_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model, *_ = make("heads")
    seen: list[Event] = []
    clock = iter(np.arange(0.0, 1000.0, 0.5))
    monkeypatch.setattr(capacity, "_clock", lambda device: float(next(clock)))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    loop = _loop(task, model, seen, validate=lambda m: {"count": 1.0})
    timing = steps_for_minutes(loop, 1.0, warmup=1)
    # Every reading of the clock is half a second: two steps of 0.5 s after the warm-up, validation 0.5 s.
    assert (timing.step_seconds, timing.validation_seconds) == (0.5, 0.5)
    # An epoch is 3 steps = 1.5 s, two epochs with one validation 3.5 s: 17 pairs make 59.5 s.
    assert timing.epochs == 34
    assert timing.total_seconds == 59.5
    assert seen == []
    assert loop.state.step == 0
    assert not loop.optimizers["main"].state
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    reached = loop.run()
    other_task, other, *_ = make("heads")
    _loop(other_task, other, [], validate=lambda m: {"count": 1.0}).run()
    assert reached.step == 9
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in model.state_dict().items())


def test_an_epoch_shorter_than_the_warm_up_is_timed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model, *_ = make("heads")
    clock = iter(np.arange(0.0, 1000.0, 0.5))
    monkeypatch.setattr(capacity, "_clock", lambda device: float(next(clock)))
    timing = steps_for_minutes(_loop(task, model, []), 1.0, warmup=3)  # an epoch is 3 steps
    assert timing.step_seconds == 0.5
    assert timing.epochs == 40


def test_epochs_for_minutes_without_a_loop() -> None:
    task, model, _, x, targets = make("heads")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    epochs = epochs_for_minutes(task, model, ToyLoader(task, x, targets, 4), 0.05, precision=FP64, micro_batch=2)
    assert epochs > 1
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_at_least_one_epoch() -> None:
    task, model, *_ = make("heads")
    assert steps_for_minutes(_loop(task, model, []), 1e-9).epochs == 1
