"""The training loop: the only one, for every task.

A global batch is the same whatever the number of processes and micro-batches: every loss part is a sum, divided once by
its count over the whole global batch, and gradients are summed. Randomness comes from keys of (seed, step), so the loop
has no generator state, and a resumed run repeats the uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from opsin import seeding
from opsin.engine import checkpoint as disk
from opsin.engine.distributed import Processes
from opsin.engine.events import (
    CheckpointSaved,
    EpochDone,
    Evaluated,
    Finished,
    RunStarted,
    StageStarted,
    StepDone,
    Stream,
    Warned,
)
from opsin.engine.nonfinite import explain_nonfinite
from opsin.engine.optimizers import Average
from opsin.engine.precision import Precision
from opsin.engine.regularize import Regularizer
from opsin.engine.schedules import Schedule
from opsin.task import Batch, Loss, Part, Task


class Epochs(Protocol):
    """Where batches come from: this process's share of each global batch, from any step of any epoch."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, the same for every process."""
        ...

    @property
    def samples_per_epoch(self) -> int:
        """Samples in an epoch over all processes."""
        ...

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from step `start` on."""
        ...


@dataclass
class LoopState:
    """Where training stands; everything here is in every checkpoint.

    `stage` counts from 0; `stage_epoch` and `stage_step` say where it began.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    best: dict[str, float] = field(default_factory=dict)
    best_epoch: int = -1
    worse_in_a_row: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)
    stopped: str = ""
    warned: bool = False
    stage: int = 0
    stage_epoch: int = 0
    stage_step: int = 0


@dataclass(frozen=True)
class Stage:
    """A part of a run with its own trainable parameters, optimizer, schedule and end.

    Args:
        name: for people.
        epochs: most epochs of this stage.
        patience: end the stage after this many validations without a better metric; the next one begins then.
        trained: what is trained, in words.
    """

    name: str
    epochs: int
    patience: int | None = None
    trained: str = ""


@dataclass(frozen=True)
class Plan:
    """The numbers of a run that the loop needs; see `opsin.recipe` for their meaning.

    With `stages`, `epochs` is their sum, and each stage has its own patience; without, the run is one stage without a name.
    `judge_first` validates the model before step 1, so that training has to beat it.
    """

    epochs: int
    seed: int = 0
    micro_batch: int | None = None
    clip_norm: float | None = None
    patience: int | None = None
    validate_every: int = 1
    checkpoint_seconds: float = 60.0
    judge_first: bool = False
    stages: tuple[Stage, ...] = ()


BeginStage = Callable[[int], tuple[Mapping[str, torch.optim.Optimizer], Schedule]]
Validate = Callable[[nn.Module], Mapping[str, float]]


class Loop:
    """Trains a model on a task.

    Args:
        task: supplies the steps; with several processes its `gather` is set here.
        model: on its device already; `forward` may be another callable over the same weights (a compiled one).
        optimizers: one per phase of the task.
        schedule: factor of the base rates by step.
        loader: batches.
        plan: numbers of the run.
        precision: autocast, scaler and layout.
        processes: this process among the others.
        stream: who listens.
        validate: gives the metrics of the validation part for a model in eval mode; None does without.
        store: where checkpoints go; None keeps none.
        save_best: called with the model's state when a validation is the best so far, or none could be judged.
        average: running average of weights, validated and kept instead of the weights themselves.
        begin_stage: makes the parameters of a stage trainable and gives its optimizers and schedule; those of the first
            stage are given as `optimizers` and `schedule`.
        load_best: gives the weights that `save_best` kept, from which the next stage goes on.
        regularizer: penalties that join the loss once per step, and limits that hold after it.
        interrupted: asked between steps whether a person or the machine wants to stop.
    """

    def __init__(
        self,
        task: Task[Any],
        model: nn.Module,
        optimizers: Mapping[str, torch.optim.Optimizer],
        schedule: Schedule,
        loader: Epochs,
        plan: Plan,
        *,
        precision: Precision,
        forward: nn.Module | None = None,
        processes: Processes | None = None,
        stream: Stream | None = None,
        validate: Validate | None = None,
        store: disk.Store | None = None,
        save_best: Callable[[Mapping[str, Tensor]], None] | None = None,
        average: Average | None = None,
        begin_stage: BeginStage | None = None,
        load_best: Callable[[], Mapping[str, Tensor]] | None = None,
        regularizer: Regularizer | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        folder: Path | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.task, self.model, self.forward = task, model, forward or model
        self.loader, self.plan = loader, plan
        self.stages = plan.stages or (Stage("", plan.epochs, plan.patience),)
        self.begin_stage, self.load_best, self.regularizer = begin_stage, load_best, regularizer
        self.precision, self.processes = precision, processes or Processes()
        self.stream = stream or Stream({})
        self.validate, self.store, self.save_best, self.average = validate, store, save_best, average
        self.interrupted, self.folder, self.details = interrupted, folder, dict(details or {})
        self.state = LoopState()
        self.device = next(model.parameters()).device
        self._use(optimizers, schedule)
        self._sums: dict[str, list[float]] = {}
        self._last_saved = time.monotonic()
        if self.processes.world > 1:
            self.task.gather = self.processes.gather  # type: ignore[method-assign]

    def _use(self, optimizers: Mapping[str, torch.optim.Optimizer], schedule: Schedule) -> None:
        self.optimizers, self.schedule = optimizers, schedule
        self.base_rates = {phase: [group["lr"] for group in opt.param_groups] for phase, opt in optimizers.items()}
        self._trained = {
            phase: [p for group in opt.param_groups for p in group["params"]] for phase, opt in optimizers.items()
        }

    # The run ----------------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return bool(self.state.stopped) or self.state.epoch >= self._end

    @property
    def _end(self) -> int:
        """The epoch at which the run ends, if no stage ends before its time."""
        return self.state.stage_epoch + sum(stage.epochs for stage in self.stages[self.state.stage :])

    @property
    def _stage_end(self) -> int:
        return self.state.stage_epoch + self.stages[self.state.stage].epochs

    def run(self) -> LoopState:
        """Train to the end, or to an interruption; returns where training stands."""
        self.processes.share(self.model)
        began = time.monotonic() - self.state.seconds
        self.stream(
            RunStarted(
                self.folder,
                self.plan.epochs,
                self.loader.steps_per_epoch,
                self.loader.samples_per_epoch,
                self.state.step,
                self.state.epoch,
                self.details,
            )
        )
        if self.plan.judge_first and self.state.step == 0 and not self.state.best:
            self._judge(-1)
        if self.stages[0].name and self.state.step == 0:
            self._say_stage()
        reason = self.state.stopped or "done"
        while not self.finished:
            if not self._epoch(began):
                reason = "interrupted"
                break
            reason = self.state.stopped or "done"
        self.state.seconds = time.monotonic() - began
        self.stream(Finished(self.state.step, self.state.epoch, reason, self.state.seconds, dict(self.state.best)))
        return self.state

    def _epoch(self, began: float) -> bool:
        state, started = self.state, time.monotonic()
        self.model.train()
        for batch in self.loader.epoch(state.epoch, state.step_in_epoch):
            self._step(batch)
            if self._should_stop():
                state.seconds = time.monotonic() - began
                self.save()
                return False
            if self._checkpoint_is_due() and state.step_in_epoch < self.loader.steps_per_epoch:
                state.seconds = time.monotonic() - began
                self.save()
        metrics = {name: total / max(count, 1e-12) for name, (total, count) in self._global_sums().items()}
        self.stream(
            EpochDone(state.step, state.epoch, metrics, time.monotonic() - started, self.loader.samples_per_epoch)
        )
        self._sums.clear()
        stage_over = self._validate()
        state.epoch, state.step_in_epoch = state.epoch + 1, 0
        if stage_over or state.epoch >= self._stage_end:
            self._next_stage()
        state.seconds = time.monotonic() - began
        self.save()
        return True

    def _next_stage(self) -> None:
        """Go on from the best weights so far with the parameters, optimizers and schedule of the next stage."""
        state = self.state
        if state.stage + 1 >= len(self.stages) or self.begin_stage is None:
            return
        self.processes.barrier()  # the best weights are on disk
        if self.load_best is not None and state.best:
            disk.load_strictly(self.model, self.load_best(), "the best weights")
            if self.average is not None:
                self.average.reset()
        state.stage, state.stage_epoch, state.stage_step = state.stage + 1, state.epoch, state.step
        state.worse_in_a_row = 0
        self._use(*self.begin_stage(state.stage))
        self._say_stage()

    def _say_stage(self) -> None:
        state, stage = self.state, self.stages[self.state.stage]
        self.stream(StageStarted(state.step, state.epoch, state.stage + 1, len(self.stages), stage.name, stage.trained))

    # One step ---------------------------------------------------------------------------------------------------------

    def _step(self, batch: Batch) -> None:
        state = self.state
        factor = self.schedule(state.step - state.stage_step)
        with torch.no_grad():
            batch = self.task.augment(replace(batch.to(self.device), done=state.epoch / self._end))
        parts: dict[str, Tensor] = {}
        norm: Tensor | None = None
        rate = next(iter(self.base_rates.values()))[0] * factor  # of the first group, which `optimizer.lr` names
        for phase, optimizer in self.optimizers.items():
            for group, base in zip(optimizer.param_groups, self.base_rates[phase]):
                group["lr"] = base * factor
            parts.update(self._backward(batch, phase))
            norm = self._update(optimizer, phase)
        if self.average is not None:
            self.average.update()
        state.step += 1
        state.step_in_epoch += 1
        state.samples += len(batch)
        self.stream(StepDone(state.step, state.epoch, state.step_in_epoch, len(batch), parts, rate, norm))

    def _backward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Gradients of one phase over all micro-batches; returns its loss parts divided by their global counts."""
        plan, optimizer = self.plan, self.optimizers[phase]
        optimizer.zero_grad(set_to_none=True)
        split = plan.micro_batch is not None and not self.task.coupled
        chunks = batch.split(plan.micro_batch) if split and plan.micro_batch else [batch]
        counts = self._global_counts(self.task.counts(batch, phase))
        # Processes may have unequal numbers of micro-batches, so all of them defer, or none.
        defers = len(chunks) > 1 or (self.processes.world > 1 and split)
        deferred = _Deferred(self._trained[phase]) if defers else None
        values: dict[str, Tensor] = {}
        bad: tuple[Batch, Loss] | None = None
        for number, chunk in enumerate(chunks):
            seeding.seed_torch(plan.seed, "forward", self.state.step, phase, self.processes.rank, number)
            with self.precision.autocast():
                loss = self.task.training_step(self.forward, chunk, phase)
            total = self._total(loss, counts, deferred, values)
            if not self._remember(loss) and bad is None:
                bad = (chunk, loss)
            if bad is None and total is not None and total.requires_grad:
                scaled = self.precision.scaler.scale(total) if self.precision.scaler else total
                scaled.backward()  # type: ignore[no-untyped-call]
        if self.processes.any(bad is not None, self.device):
            chunk, loss = bad or (chunks[-1], {})
            raise explain_nonfinite(self.task, self.model, chunk, phase, self.state.step, loss, self.precision)
        if deferred is not None:
            values.update(deferred.finish(self.processes))
        self.processes.sum_gradients(self._trained[phase])
        if self.regularizer is not None:
            values.update(self._penalize(self.regularizer, phase))
        return values

    def _penalize(self, regularizer: Regularizer, phase: str) -> dict[str, Tensor]:
        """Add the gradients of the penalties, which are the same in every process; returns their values."""
        found = regularizer.penalties(self._trained[phase])
        if found:
            total = torch.stack(list(found.values())).sum()
            (self.precision.scaler.scale(total) if self.precision.scaler else total).backward()  # type: ignore[no-untyped-call]
            self._remember({name: Part(value, 1.0) for name, value in found.items()})
        return {name: value.detach() for name, value in found.items()}

    def _total(
        self, loss: Loss, counts: Mapping[str, float], deferred: _Deferred | None, values: dict[str, Tensor]
    ) -> Tensor | None:
        total: Tensor | None = None
        for name, part in loss.items():
            if name in counts:
                term = part.sum * (1.0 / counts[name] if counts[name] else 0.0)
            elif deferred is None:
                count = self.processes.sum(torch.as_tensor(part.count, dtype=torch.float64, device=self.device).clone())
                term = part.sum / torch.where(count > 0, count, 1.0).to(part.sum.dtype)
            else:
                deferred.add(name, part, self.precision.scaler)
                continue
            detached = term.detach()
            values[name] = values[name] + detached if name in values else detached
            weighted = term if part.weight == 1.0 else term * part.weight
            total = weighted if total is None else total + weighted
        return total

    def _global_counts(self, counts: Mapping[str, float]) -> dict[str, float]:
        if self.processes.world == 1 or not counts:
            return dict(counts)
        summed = self.processes.sum(torch.tensor(list(counts.values()), dtype=torch.float64, device=self.device))
        return dict(zip(counts, summed.tolist()))

    def _update(self, optimizer: torch.optim.Optimizer, phase: str) -> Tensor | None:
        scaler, norm = self.precision.scaler, None
        if scaler is not None:
            scaler.unscale_(optimizer)
        if self.plan.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(self._trained[phase], self.plan.clip_norm, foreach=True)
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        if self.regularizer is not None:
            self.regularizer.limit(self._trained[phase])
        return norm

    def _remember(self, loss: Loss) -> bool:
        """Add a micro-batch to the epoch's sums; whether all of it is finite."""
        finite = True
        for name, part in loss.items():
            value = float(part.sum.detach())  # waits for the forward pass
            finite = finite and math.isfinite(value)
            entry = self._sums.setdefault(name, [0.0, 0.0])
            entry[0] += value
            entry[1] += float(part.count)
        return finite

    def _global_sums(self) -> dict[str, list[float]]:
        """Sum and count of every loss part in this epoch, over all processes."""
        names = sorted(self._sums)
        own = [self._sums[name] for name in names]
        if self.processes.world > 1 and names:
            own = self.processes.sum(torch.tensor(own, dtype=torch.float64, device=self.device)).tolist()
        return {name: list(entry) for name, entry in zip(names, own)}

    # Judging and keeping ----------------------------------------------------------------------------------------------

    def _validate(self) -> bool:
        """Judge the model if it is time to; whether the stage ends here because nothing gets better."""
        state, last = self.state, self.state.epoch + 1 >= self._stage_end
        if self.validate is None or not (last or (state.epoch + 1) % self.plan.validate_every == 0):
            return False
        undefined = self._judge(state.epoch)
        if undefined and not state.warned:
            state.warned = True
            text = (
                f"{self.task.monitor.name} cannot be computed on the validation part (nan), so no epoch can be called the best: the "
                "latest weights are kept. See that the validation part has labels of every kind."
            )
            self.stream(Warned("undefined-monitor", text))
        patience = self.stages[state.stage].patience
        if patience is None or state.worse_in_a_row < patience:
            return False
        if state.stage + 1 >= len(self.stages):
            state.stopped = "early stopping"
        return True

    def _judge(self, epoch: int) -> bool:
        """Validate, and keep the weights if they are the best so far; whether nothing could be judged yet."""
        if self.validate is None:
            return False
        state = self.state
        if self.average is not None:
            self.average.swap()
        self.model.eval()
        metrics = dict(self.validate(self.model))
        monitor = self.task.monitor
        value = metrics.get(monitor.name, math.nan)
        held = state.best.get(monitor.name, math.nan)
        better = not math.isnan(value) and (
            math.isnan(held) or (value > held if monitor.higher_is_better else value < held)
        )
        undefined = math.isnan(value) and math.isnan(held)
        if better or undefined:
            state.best, state.best_epoch, state.worse_in_a_row = metrics, epoch, 0
            if self.save_best is not None and self.processes.is_main:
                self.save_best(self.model.state_dict())
        else:
            state.worse_in_a_row += 1
        if self.average is not None:
            self.average.swap()
        self.model.train()
        self.stream(Evaluated(state.step, epoch, "val", metrics, better, monitor.name))
        return undefined

    def _should_stop(self) -> bool:
        if self.processes.world == 1:
            return self.interrupted()
        return self.state.step % 10 == 0 and self.processes.any(self.interrupted(), self.device)

    def _checkpoint_is_due(self) -> bool:
        due = time.monotonic() - self._last_saved >= self.plan.checkpoint_seconds
        if self.processes.world == 1:
            return due
        return self.state.step % 10 == 0 and self.processes.any(due, self.device)

    def save(self) -> None:
        """Write a checkpoint of everything the loop needs to go on."""
        sums = self._global_sums()
        self._last_saved = time.monotonic()
        if self.store is None or not self.processes.is_main:
            return
        self.state.sums = sums
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        plain: dict[str, Any] = {}
        for phase, optimizer in self.optimizers.items():
            found, plain[phase] = disk.optimizer_tensors(optimizer, f"optimizer.{phase}")
            tensors.update(found)
        if self.average is not None:
            tensors.update({f"average.{name}": t for name, t in self.average.state_dict().items()})
        record = {
            "loop": asdict(self.state),
            "optimizers": plain,
            "average_updates": self.average.updates if self.average else 0,
            "scaler": self.precision.scaler.state_dict() if self.precision.scaler else None,
            "listeners": self.stream.state(),
        }
        path = self.store.save(self.state.step, tensors, record)
        self.stream(CheckpointSaved(self.state.step, self.state.epoch, path))

    def resume(self) -> bool:
        """Go back to the latest checkpoint; False (and logs cut to nothing) when there is none."""
        found = self.store.load() if self.store is not None else None
        if found is None:
            self.stream.restore({})
            return False
        tensors, record = found
        state = LoopState(**record["loop"])
        if state.stage and self.begin_stage is not None:
            self._use(*self.begin_stage(state.stage))
        where = str(self.store.list()[-1]) if self.store else ""
        disk.load_strictly(self.model, _under("model.", tensors), where)
        for phase, optimizer in self.optimizers.items():
            disk.restore_optimizer(optimizer, f"optimizer.{phase}", tensors, record["optimizers"][phase])
        if self.average is not None:
            self.average.load_state_dict(_under("average.", tensors), record["average_updates"])
        if self.precision.scaler is not None and record["scaler"]:
            self.precision.scaler.load_state_dict(record["scaler"])
        self.state = state
        # The sums are global already: the first process goes on with them, the others from zero under the same names.
        self._sums = {n: list(v) if self.processes.is_main else [0.0, 0.0] for n, v in self.state.sums.items()}
        self.stream.restore(record["listeners"])
        return True


class _Deferred:
    """Gradients of loss parts whose global count is known only after the last micro-batch.

    Each such part has a gradient buffer of its own, which is divided by the part's global count at the end. One count
    for several parts, or a mean of means, would be wrong.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.gradients: dict[str, list[Tensor | None]] = {}
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}

    def add(self, name: str, part: Any, scaler: Any) -> None:
        """Take one micro-batch's sum of a part."""
        total = scaler.scale(part.sum) if scaler else part.sum
        found: tuple[Tensor | None, ...] = (None,) * len(self.parameters)
        if total.requires_grad:
            found = torch.autograd.grad(total, self.parameters, retain_graph=True, allow_unused=True)
        held = self.gradients.get(name, [None] * len(found))
        self.gradients[name] = [g if h is None else h if g is None else h + g for h, g in zip(held, found)]
        count = torch.as_tensor(part.count, dtype=torch.float64, device=part.sum.device)
        self.sums[name] = self.sums.get(name, 0.0) + part.sum.detach()
        self.counts[name] = self.counts.get(name, 0.0) + count
        self.weights[name] = part.weight

    @torch.no_grad()
    def finish(self, processes: Processes) -> dict[str, Tensor]:
        """Add weight * gradient / global count to the parameters; returns the divided sums."""
        values = {}
        for name, gradients in self.gradients.items():
            count = processes.sum(self.counts[name].clone())
            count = torch.where(count > 0, count, 1.0)
            for p, gradient in zip(self.parameters, gradients):
                if gradient is not None:
                    share = gradient * (self.weights[name] / count).to(gradient.dtype)
                    p.grad = share if p.grad is None else p.grad + share
            values[name] = self.sums[name] / count.to(self.sums[name].dtype)
        return values


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
