"""What a run can afford: the micro-batch that fits in memory, and the epochs that fit in the minutes.

Both are found by trying, before step 1; the model, optimizers and generators are as before afterwards.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opsin import seeding
from opsin.engine.distributed import Processes
from opsin.engine.events import Stream
from opsin.engine.loop import Epochs, Loop, Plan, Validate
from opsin.engine.precision import Precision
from opsin.errors import TrainingError
from opsin.memory import available_memory
from opsin.task import Batch, Loss, Task

# Memory ---------------------------------------------------------------------------------------------------------------


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, in any of the ways in which torch says so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = ("not enough memory", "DefaultCPUAllocator", "out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in said)


def find_micro_batch(
    task: Task[Any],
    model: nn.Module,
    batch: Batch,
    *,
    precision: Precision,
    optimizers: Mapping[str, torch.optim.Optimizer] | None = None,
    processes: Processes | None = None,
    seed: int = 0,
) -> int | None:
    """Samples per forward pass that fit in memory, found by trying; None when a process's whole share fits.

    Every process calls this and gets the same answer. Coupled tasks cannot be split: always None. Memory for what the
    optimizers will keep is reserved during the trial (without `optimizers`, as for adam).

    Raises:
        TrainingError: if not even one sample fits.
    """
    if task.coupled:
        return None
    device, whole, size = next(model.parameters()).device, len(batch), len(batch)
    with _untouched(model):
        model.train()
        held = _optimizer_memory(model, optimizers)
        try:
            with torch.no_grad():
                batch = task.augment(batch.to(device))
            size = _within_host_memory(task, model, batch, precision, seed) if device.type == "cpu" else size
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            size = 0
        while size and not _fits(task, model, batch.split(size)[0], precision, held, seed):
            model.zero_grad(set_to_none=True)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            size = (size + 1) // 2 if size > 1 else 0
    found = (processes or Processes()).gather_objects((size, whole))
    if any(one == 0 for one, _ in found):
        raise TrainingError(
            f"Not even one sample of this batch fits in the memory of {device}. Take a smaller model or smaller "
            "pictures, run.precision=bf16, or a smaller run.batch_size."
        )
    return None if all(one == share for one, share in found) else min(one for one, _ in found)


def _optimizer_memory(
    model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer] | None
) -> list[tuple[Tensor, int]]:
    """Parameters, and how many copies of each the optimizers will keep; 0 when they keep them already."""
    if optimizers is None:
        return [(p, 2) for p in model.parameters() if p.requires_grad]
    found = []
    for optimizer in optimizers.values():
        copies = 0 if optimizer.state else 2 if "betas" in optimizer.defaults else 1
        found += [(p, copies) for group in optimizer.param_groups for p in group["params"]]
    return found


def _fits(
    task: Task[Any], model: nn.Module, batch: Batch, precision: Precision, kept: list[tuple[Tensor, int]], seed: int
) -> bool:
    """Forward and backward of every phase, with the memory held that the optimizers will need."""
    try:
        held = [torch.empty_like(p).fill_(0.0) for p, copies in kept for _ in range(copies)]
        for phase in task.phases:
            seeding.seed_torch(seed, "micro-batch", phase)
            with precision.autocast():
                total = total_loss(task.training_step(model, batch, phase))
            if total.requires_grad:
                total.backward()  # type: ignore[no-untyped-call]
        del held
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    return True


def _within_host_memory(task: Task[Any], model: nn.Module, batch: Batch, precision: Precision, seed: int) -> int:
    """The largest halving of the batch whose activations fit in free memory; the system would swap, not raise."""
    free, size = available_memory(), len(batch)
    if free is None:
        return size
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    probe = batch.split(2)[0]
    seeding.seed_torch(seed, "micro-batch", task.phases[0])
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), precision.autocast():
        task.training_step(model, probe, task.phases[0])
    # Half as much again for what backward holds at one time.
    while size > 1 and 1.5 * size / len(probe) * sum(saved.values()) > 0.8 * free:
        size = (size + 1) // 2
    return size


# Time -----------------------------------------------------------------------------------------------------------------


class Timing(NamedTuple):
    """How long training takes here: `epochs` fit in the minutes asked for (at least one, even when it does not fit)."""

    epochs: int
    step_seconds: float
    validation_seconds: float
    total_seconds: float


def epochs_for_minutes(
    task: Task[Any],
    model: nn.Module,
    loader: Epochs,
    minutes: float,
    *,
    precision: Precision,
    optimizers: Mapping[str, torch.optim.Optimizer] | None = None,
    micro_batch: int | None = None,
    validate: Validate | None = None,
    validate_every: int = 1,
    processes: Processes | None = None,
) -> int:
    """How many epochs fit in `minutes`, by `steps_for_minutes`, for a loop that is not built yet."""
    if optimizers is None:
        optimizers = {
            phase: torch.optim.SGD([p for _, p in task.parameters(model, phase) if p.requires_grad], 1e-6, momentum=0.9)
            for phase in task.phases
        }
    plan = Plan(1, micro_batch=micro_batch, validate_every=validate_every)
    gather = task.__dict__.get("gather")
    loop = Loop(
        task, model, optimizers, lambda _step: 1.0, loader, plan,
        precision=precision, processes=processes, validate=validate,
    )  # fmt: skip
    try:
        return steps_for_minutes(loop, minutes).epochs
    finally:
        task.__dict__.pop("gather", None)
        if gather is not None:
            task.gather = gather  # type: ignore[method-assign]


def steps_for_minutes(loop: Loop, minutes: float, *, warmup: int = 3, seconds: float = 5.0) -> Timing:
    """Time steps and a validation of a loop that has not begun, and say how many epochs fit in `minutes`.

    Steps are timed with their loading, after `warmup`, for about `seconds` (at least 5 and at most 200 steps). Every
    process calls this; the loop is as it was before.
    """
    with _loop_kept(loop):
        step = _timed_steps(loop, warmup, min(seconds, 3.0 * minutes))
        validation = 0.0
        if loop.validate is not None:
            loop.model.eval()
            started = _clock(loop.device)
            loop.validate(loop.model)
            validation = _clock(loop.device) - started
    slowest = loop.processes.gather_objects((step, validation))
    step, validation = float(max(s for s, _ in slowest)), float(max(v for _, v in slowest))
    every = loop.plan.validate_every

    def cost(epochs: int) -> float:
        return epochs * loop.loader.steps_per_epoch * step + -(-epochs // every) * validation

    budget = minutes * 60.0
    epochs = max(1, int(budget / max(cost(every) / every, 1e-9)))
    while epochs > 1 and cost(epochs) > budget:
        epochs -= 1
    return Timing(epochs, step, validation, cost(epochs))


def _timed_steps(loop: Loop, warmup: int, seconds: float) -> float:
    loop.model.train()
    batches = _batches(loop)
    started, last = _clock(loop.device), 0.0
    done = -warmup
    for batch in batches:
        loop._step(batch)
        done += 1
        if done <= 0:
            started = _clock(loop.device)
        else:
            last = (_clock(loop.device) - started) / done
        if loop.processes.any(done >= 5 and (last * done > seconds or done >= 200), loop.device):
            break
    batches.close()
    return last


def _batches(loop: Loop) -> Generator[Batch, None, None]:
    """Batches of one epoch after the other: an epoch may be shorter than the warm-up."""
    for epoch in count(loop.state.epoch):
        yield from loop.loader.epoch(epoch)


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _loop_kept(loop: Loop) -> Iterator[None]:
    """Put everything that steps change back: weights, optimizers, average, scaler, counters, modes, generators."""
    weights = {name: t.detach().to("cpu", copy=True) for name, t in loop.model.state_dict().items()}
    optimizers = {phase: copy.deepcopy(opt.state_dict()) for phase, opt in loop.optimizers.items()}
    average = loop.average
    means = {name: t.clone() for name, t in average.state_dict().items()} if average else {}
    updates = average.updates if average else 0
    scaler = copy.deepcopy(loop.precision.scaler.state_dict()) if loop.precision.scaler else None
    state, sums, stream = copy.deepcopy(loop.state), loop._sums, loop.stream
    loop.stream, loop._sums = Stream({}), {}
    try:
        with _untouched(loop.model):
            yield
    finally:
        with torch.no_grad():
            for name, t in loop.model.state_dict().items():
                t.copy_(weights[name])
        for phase, optimizer in loop.optimizers.items():
            optimizer.load_state_dict(optimizers[phase])
        if average:
            average.load_state_dict(means, updates)
        if loop.precision.scaler and scaler is not None:
            loop.precision.scaler.load_state_dict(scaler)
        loop.state, loop._sums, loop.stream = state, sums, stream


# Leaving no trace ------------------------------------------------------------------------------------------------------


def total_loss(loss: Loss) -> Tensor:
    """The weighted loss of a batch that is whole: each part divided by its own count."""
    total: Tensor | None = None
    for part in loss.values():
        count = float(part.count) or 1.0
        term = part.sum * (part.weight / count)
        total = term if total is None else total + term
    if total is None:
        raise TrainingError("training_step returned no loss part; expected {name: Part(sum, count, weight)}.")
    return total


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    host = torch.default_generator.get_state()
    cuda = torch.cuda.get_rng_state_all() if device.type == "cuda" else []
    try:
        yield
    finally:
        torch.default_generator.set_state(host)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put buffers, gradients, modes and generators back; for what runs backward, but never a step, on the model."""
    buffers = [(t, t.clone()) for t in model.buffers()]
    gradients = [(p, p.grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    model.zero_grad(set_to_none=True)
    try:
        with generators_kept(next(model.parameters()).device):
            yield
    finally:
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)
        for p, gradient in gradients:
            p.grad = gradient
        for module, training in modes:
            module.training = training
