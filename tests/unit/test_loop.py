"""The loop around the steps: stopping, keeping the best, checkpoints, exact resume, losses that are not finite."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import TOYS, ToyLoader, make
from torch import Tensor, nn

from opsin.engine.checkpoint import Store
from opsin.engine.events import CheckpointSaved, EpochDone, Evaluated, Event, Finished, Stream, Warned
from opsin.engine.listeners import open_listeners
from opsin.engine.loop import Loop, LoopState, Plan
from opsin.engine.optimizers import Average
from opsin.engine.precision import Precision
from opsin.errors import CheckpointError, TrainingError
from opsin.task import Batch, Loss, Part

BATCH, EPOCHS, STEPS = 4, 3, 3  # 11 samples are three steps
SGD: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)  # noqa: E731
ADAM: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.AdamW(p, lr=0.01, fused=True)  # noqa: E731


@dataclass
class Setup:
    """One run in a folder; `stop_at` interrupts after that many steps of this process."""

    folder: Path
    name: str = "heads"
    optimizer: Callable[[Any], torch.optim.Optimizer] = SGD
    plan: Plan = field(default_factory=lambda: Plan(EPOCHS, clip_norm=0.5, checkpoint_seconds=1e9))
    ema: bool = True
    keep: int = 2
    stop_at: int = 10**9
    scores: list[float] = field(default_factory=list)
    seen: list[Event] = field(default_factory=list)
    best: list[tuple[dict[str, Tensor], int]] = field(default_factory=list)
    store: bool = True

    def build(self) -> Loop:
        task, self.model, _, x, targets = make(self.name)
        optimizers = {
            phase: self.optimizer([p for _, p in task.parameters(self.model, phase)]) for phase in task.phases
        }
        asked = [0]

        def interrupted() -> bool:
            asked[0] += 1
            return asked[0] >= self.stop_at

        listeners = open_listeners(["jsonl", self.seen.append], self.folder)
        self.stream = Stream(listeners)
        loop = Loop(
            task,
            self.model,
            optimizers,
            lambda step: 1.0 - 0.05 * step,
            ToyLoader(task, x, targets, BATCH),
            self.plan,
            precision=Precision("fp64", torch.device("cpu"), False),
            stream=self.stream,
            validate=self._validate,
            store=Store(self.folder / "checkpoints", self.keep) if self.store else None,
            save_best=lambda state: self.best.append(({n: t.clone() for n, t in state.items()}, loop.state.best_epoch)),
            average=Average(self.model, 0.9) if self.ema else None,
            interrupted=interrupted,
            folder=self.folder,
        )
        return loop

    def run(self, resume: bool = False) -> LoopState:
        loop = self.build()
        if resume:
            assert loop.resume()
        state = loop.run()
        self.stream.close()
        self.loop = loop
        return state

    def _validate(self, model: nn.Module) -> Mapping[str, float]:
        assert not model.training
        if self.scores:
            return {"count": self.scores.pop(0)}
        return {"count": float(sum(p.detach().abs().sum() for p in model.parameters()))}

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]


def _lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "seconds")} for line in lines]


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[name]) for name, t in one.items())


# Resume ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [1, 4, 6])
@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adamw"])
@pytest.mark.parametrize("name", TOYS)
def test_a_resumed_run_is_the_uninterrupted_one(
    name: str, optimizer: Callable[[Any], torch.optim.Optimizer], stop_at: int, tmp_path: Path
) -> None:
    whole = Setup(tmp_path / "whole", name, optimizer)
    whole.run()
    first = Setup(tmp_path / "halves", name, optimizer, stop_at=stop_at)
    state = first.run()
    assert (state.step, first.seen[-1].reason) == (stop_at, "interrupted")  # type: ignore[union-attr]
    second = Setup(tmp_path / "halves", name, optimizer)
    second.run(resume=True)
    assert _equal(second.model.state_dict(), whole.model.state_dict())
    assert whole.loop.average is not None
    assert second.loop.average is not None
    assert _equal(second.loop.average.state_dict(), whole.loop.average.state_dict())
    assert _lines(second.folder) == _lines(whole.folder)
    best = (first.best + second.best)[-1]
    assert best[1] == whole.best[-1][1]
    assert _equal(best[0], whole.best[-1][0])


def test_a_run_killed_between_checkpoints_repeats_what_was_lost(tmp_path: Path) -> None:
    whole = Setup(tmp_path / "whole")
    whole.run()
    first = Setup(tmp_path / "killed", stop_at=5)
    first.run()
    # The power went before the checkpoint of step 5 was written: only the one of step 3 is there.
    shutil.rmtree(first.folder / "checkpoints" / "step-00000005")
    second = Setup(tmp_path / "killed")
    second.run(resume=True)
    assert _equal(second.model.state_dict(), whole.model.state_dict())
    assert _lines(second.folder) == _lines(whole.folder)


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    whole = Setup(tmp_path / "whole")
    whole.run()
    first = Setup(tmp_path / "killed", stop_at=2)
    first.run()
    shutil.rmtree(first.folder / "checkpoints")
    second = Setup(tmp_path / "killed")
    loop = second.build()
    assert not loop.resume()
    loop.run()
    second.stream.close()
    assert _equal(second.model.state_dict(), whole.model.state_dict())
    assert _lines(second.folder) == _lines(whole.folder)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    first = Setup(tmp_path)
    first.run()
    before, lines = {n: t.clone() for n, t in first.model.state_dict().items()}, _lines(tmp_path)
    second = Setup(tmp_path)
    state = second.run(resume=True)
    assert state.step == EPOCHS * STEPS
    assert _equal(second.model.state_dict(), before)
    assert _lines(tmp_path) == lines


def test_micro_batches_resume_too(tmp_path: Path) -> None:
    plan = Plan(EPOCHS, micro_batch=3, checkpoint_seconds=1e9)
    whole = Setup(tmp_path / "whole", "two-stage", plan=plan)
    whole.run()
    Setup(tmp_path / "halves", "two-stage", plan=plan, stop_at=5).run()
    second = Setup(tmp_path / "halves", "two-stage", plan=plan)
    second.run(resume=True)
    assert _equal(second.model.state_dict(), whole.model.state_dict())
    assert _lines(second.folder) == _lines(whole.folder)


# Stopping and keeping -------------------------------------------------------------------------------------------------


def test_the_best_is_saved_only_when_better(tmp_path: Path) -> None:
    run = Setup(tmp_path, plan=Plan(5), scores=[0.5, 0.7, 0.7, float("nan"), 0.9], store=False)
    state = run.run()
    assert [epoch for _, epoch in run.best] == [0, 1, 4]
    assert [e.best for e in run.of(Evaluated)] == [True, True, False, False, True]
    assert (state.best, state.best_epoch) == ({"count": 0.9}, 4)


def test_the_latest_is_kept_while_nothing_can_be_judged(tmp_path: Path) -> None:
    nan = float("nan")
    run = Setup(tmp_path, plan=Plan(5, patience=2), scores=[nan, nan, nan, 0.5, nan], store=False)
    run.run()
    assert [epoch for _, epoch in run.best] == [0, 1, 2, 3]
    assert [e.code for e in run.of(Warned)] == ["undefined-monitor"]


def test_the_average_is_judged_and_kept_and_training_goes_on_without_it(tmp_path: Path) -> None:
    run = Setup(tmp_path, plan=Plan(1), scores=[1.0], store=False)
    run.run()
    assert run.loop.average is not None
    assert _equal(run.best[0][0], run.loop.average.state_dict())
    assert not _equal(run.best[0][0], run.model.state_dict())
    assert run.model.training


def test_early_stopping_and_resuming_it(tmp_path: Path) -> None:
    plan = Plan(10, patience=2)
    run = Setup(tmp_path, plan=plan, scores=[0.5, 0.6, 0.6, 0.4, 0.9])
    state = run.run()
    assert (state.epoch, state.stopped, state.best_epoch) == (4, "early stopping", 1)
    assert run.of(Finished)[0].reason == "early stopping"
    again = Setup(tmp_path, plan=plan)
    assert again.run(resume=True).step == state.step
    assert again.of(Finished)[0].reason == "early stopping"


def test_validate_every(tmp_path: Path) -> None:
    run = Setup(tmp_path, plan=Plan(5, validate_every=2), store=False)
    run.run()
    assert [e.epoch for e in run.of(Evaluated)] == [1, 3, 4]
    assert [e.epoch for e in run.of(EpochDone)] == [0, 1, 2, 3, 4]


def test_no_epochs_is_a_run_too(tmp_path: Path) -> None:
    run = Setup(tmp_path, plan=Plan(0))
    assert run.run().step == 0
    assert [type(e).__name__ for e in run.seen] == ["RunStarted", "Finished"]


# Checkpoints ----------------------------------------------------------------------------------------------------------


def test_an_interruption_saves_a_checkpoint(tmp_path: Path) -> None:
    run = Setup(tmp_path, stop_at=2)
    state = run.run()
    assert (state.step, state.epoch, state.step_in_epoch) == (2, 0, 2)
    assert [p.name for p in Store(tmp_path / "checkpoints").list()] == ["step-00000002"]
    assert run.of(CheckpointSaved)[0].path.name == "step-00000002"


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_old_checkpoints_go(keep: int, tmp_path: Path) -> None:
    Setup(tmp_path, keep=keep, plan=Plan(3)).run()
    names = [p.name for p in Store(tmp_path / "checkpoints").list()]
    assert names == ["step-00000003", "step-00000006", "step-00000009"][-keep:]
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == set(names)


def test_checkpoints_inside_an_epoch_by_the_clock(tmp_path: Path) -> None:
    run = Setup(tmp_path, plan=Plan(1, checkpoint_seconds=0.0), keep=9)
    run.run()
    assert [e.step for e in run.of(CheckpointSaved)] == [1, 2, 3]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(damage: str, file: str, tmp_path: Path) -> None:
    Setup(tmp_path).run()
    place = Store(tmp_path / "checkpoints").list()[-1]
    data = bytearray((place / file).read_bytes())
    if damage == "remove":
        (place / file).unlink()
    elif damage == "cut":
        (place / file).write_bytes(data[: len(data) // 2])
    elif file == "state.json":
        (place / file).write_bytes(bytes(data).replace(b'"version": 1', b'"version": 9'))
    else:
        data[-1] ^= 1
        (place / file).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"step-00000009") as caught:
        Setup(tmp_path).build().resume()
    if file == "tensors.safetensors":
        assert file in str(caught.value)
        assert damage == "remove" or "resume from step-00000006" in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    Setup(tmp_path, "heads").run()
    with pytest.raises(CheckpointError, match=r"step-00000009 does not fit the model, 12 tensors differ"):
        Setup(tmp_path, "set").build().resume()


# Losses that are not finite -------------------------------------------------------------------------------------------


class Breaks(nn.Module):
    """A layer whose output is not finite for inputs above 50."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 50, torch.full_like(x, float("inf")), x)


def _poisoned(setup: Setup, inputs: dict[int, float]) -> Loop:
    loop = setup.build()
    kind = type(loop.task)
    net = nn.Sequential()
    net.add_module("first", nn.Linear(6, 6).double())
    net.add_module("breaks", Breaks())
    net.add_module("last", nn.Linear(6, 3).double())
    with torch.no_grad():
        net.first.weight.copy_(torch.eye(6))  # type: ignore[union-attr, operator]

    class One(kind):  # type: ignore[misc, valid-type]
        def counts(self, batch: Batch, phase: str) -> dict[str, float]:
            return {"loss": float(len(batch))}

        def training_step(self, model: nn.Module, batch: Batch, phase: str) -> Loss:
            return {"loss": Part(model(batch.inputs).pow(2).sum(), float(len(batch)))}

    task = One(loop.task.settings)
    loader = ToyLoader(task, loop.loader.x.clone(), loop.loader.targets, BATCH)  # type: ignore[attr-defined]
    for sample, value in inputs.items():
        loader.x[sample] = value
    return Loop(
        task, net, {"main": torch.optim.SGD(net.parameters(), lr=1e-3)}, lambda step: 1.0, loader, Plan(2),
        precision=Precision("fp64", torch.device("cpu"), False), stream=Stream({"seen": setup.seen.append}),
    )  # fmt: skip


def test_a_loss_that_is_not_finite_stops_at_once_and_names_sample_and_layer(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    loop = _poisoned(setup, {6: 99.0})  # the second batch holds the samples 4 to 7
    before: list[dict[str, Tensor]] = []
    step = loop._step

    def watched(batch: Batch) -> None:
        before.append({n: t.clone() for n, t in loop.model.state_dict().items()})
        step(batch)

    loop._step = watched  # type: ignore[method-assign]
    with pytest.raises(
        TrainingError, match=r"not finite at step 2 \(loss\)\. .*'breaks' \(Breaks\).* 1 of the 4 samples cause it: 6\."
    ):
        loop.run()
    assert loop.state.step == 1
    assert _equal(before[-1], loop.model.state_dict())


def test_inputs_that_are_not_finite(tmp_path: Path) -> None:
    loop = _poisoned(Setup(tmp_path), {0: float("nan")})
    with pytest.raises(
        TrainingError, match=r"step 1 .*The inputs themselves are not finite\. 1 of the 4 samples cause it: 0\."
    ):
        loop.run()


def test_weights_that_an_update_broke(tmp_path: Path) -> None:
    loop = _poisoned(Setup(tmp_path), {})
    loop.optimizers["main"].param_groups[0]["lr"] = 1e300
    loop.base_rates = {"main": [float("inf")]}
    with pytest.raises(TrainingError, match=r"step 2 .*The weights of 'first.weight' are not finite already"):
        loop.run()


# The sums of an epoch -------------------------------------------------------------------------------------------------


def test_the_sums_of_an_epoch_survive_a_resume(tmp_path: Path) -> None:
    whole, halves = Setup(tmp_path / "whole"), Setup(tmp_path / "halves", stop_at=2)
    whole.run()
    halves.run()
    again = Setup(tmp_path / "halves")
    again.run(resume=True)
    assert [e.metrics for e in again.of(EpochDone)] == [e.metrics for e in whole.of(EpochDone)]


def test_every_process_sums_the_same_names_after_a_resume(tmp_path: Path) -> None:
    class Second:
        rank, world, is_main = 1, 2, False

        def gather(self, features: Tensor) -> Tensor:
            return features

    Setup(tmp_path, stop_at=2).run()
    loop = Setup(tmp_path).build()
    loop.processes = Second()  # type: ignore[assignment]
    loop.resume()
    assert loop._sums == {"a": [0.0, 0.0], "b": [0.0, 0.0]}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_batch_says_how_far_training_is(tmp_path: Path) -> None:
    loop, seen = Setup(tmp_path, ema=False).build(), []
    augment = loop.task.augment

    def noted(batch: Batch) -> Batch:
        assert all(part.done == batch.done for part in batch.split(2))
        seen.append(batch.done)
        return augment(batch)

    loop.task.augment = noted  # type: ignore[method-assign]
    loop.run()
    assert seen == [epoch / EPOCHS for epoch in range(EPOCHS) for _ in range(STEPS)]
