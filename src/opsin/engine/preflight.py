"""Before step 1: is anything wrong with model, batch, loss and optimizer.

Checks run on a copy of the model, and leave no trace.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from opsin import seeding
from opsin.engine.capacity import generators_kept, out_of_memory, total_loss
from opsin.engine.precision import Precision
from opsin.results.section import Note
from opsin.task import Batch, Loss, Task

SAMPLES = 32  # of the batch, for all checks but the next
OVERFIT_SAMPLES, OVERFIT_STEPS, OVERFIT_SECONDS = 8, 30, 3.0
OVERFIT_LEAST, OVERFIT_LIMIT = 10, 60.0  # steps tried even if they take longer, unless they take so many seconds
STUCK = 0.02  # of the loss at the start; a fall by less is none
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
_LEARNED = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, *_NORMS)
_LEVELS = ("error", "warning", "info")


def preflight(
    task: Task[Any],
    model: nn.Module,
    batch: Batch,
    optimizers: Mapping[str, torch.optim.Optimizer],
    *,
    precision: Precision,
    train_ids: Iterable[str] = (),
    val_ids: Iterable[str] = (),
    seed: int = 0,
) -> list[Note]:
    """Check everything that one batch can show; runs on one process alone.

    Args:
        model: on its device; untouched afterwards, like the optimizers and torch's generators.
        batch: a training batch as the loader gives it.
        optimizers: one per phase of the task.
        train_ids, val_ids: samples of the two parts, which must not meet.

    Returns:
        Findings, errors first, each with the fix in its text; empty when all is well.
    """
    notes = [*_shared_ids(train_ids, val_ids), *_optimizer_notes(task, model, optimizers), *_frozen(model)]
    joined = task.__dict__.pop("gather", None)  # the loop's, which would wait for the other processes
    try:
        with generators_kept(next(model.parameters()).device):
            notes += _Check(task, copy.deepcopy(model), batch, precision, seed).notes()
    finally:
        if joined is not None:
            task.gather = joined  # type: ignore[method-assign]
    return sorted(notes, key=lambda note: _LEVELS.index(note.level))


# Without a forward pass -----------------------------------------------------------------------------------------------


def _shared_ids(train_ids: Iterable[str], val_ids: Iterable[str]) -> Iterator[Note]:
    shared = sorted(set(train_ids) & set(val_ids))
    if shared:
        text = (
            f"{len(shared)} samples are in both train and val: {_some(shared)}. Metrics on val would be too good. "
            "Split again (`opsin data split`), or remove them from one part."
        )
        yield Note("shared-ids", text, "error", {"count": len(shared), "ids": shared[:100]})


def _optimizer_notes(
    task: Task[Any], model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]
) -> Iterator[Note]:
    names = {id(p): name for name, p in model.named_parameters()}
    wanted_by_any: set[int] = set()
    for phase, optimizer in optimizers.items():
        held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
        wanted = {id(p): name for name, p in task.parameters(model, phase) if p.requires_grad}
        wanted_by_any |= set(wanted)
        missing = [name for key, name in wanted.items() if key not in held]
        foreign = [tuple(p.shape) for key, p in held.items() if key not in names]
        extra = [names[key] for key, p in held.items() if key in names and key not in wanted and p.requires_grad]
        where = f"The optimizer of phase '{phase}'" if len(optimizers) > 1 else "The optimizer"
        if missing:
            text = (
                f"{where} does not hold {_some(missing)}, which would stay as they are. Build it from task.parameters."
            )
            yield Note("optimizer-missing", text, "error", {"parameters": missing})
        if foreign:
            text = (
                f"{where} holds {len(foreign)} parameters that are not in the model (shapes {_some(foreign)}). It was "
                "built before the model was moved or changed; build it afterwards."
            )
            yield Note("optimizer-foreign", text, "error", {"shapes": foreign})
        if extra:
            text = f"{where} also updates {_some(extra)}, which the task does not train there. Leave them out."
            yield Note("optimizer-extra", text, "error", {"parameters": extra})
    never = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in wanted_by_any]
    if never:
        text = f"No phase trains {_some(never)}. Return them from task.parameters, or set requires_grad_(False)."
        yield Note("never-trained", text, "warning", {"parameters": never})


def _frozen(model: nn.Module) -> Iterator[Note]:
    every = list(model.named_parameters())
    frozen = [name for name, p in every if not p.requires_grad]
    if len(frozen) == len(every):
        text = "All parameters are frozen; nothing would be learned. Call requires_grad_(True) on what should learn."
        yield Note("all-frozen", text, "error", {"parameters": frozen})
    elif frozen:
        text = (
            f"{len(frozen)} of {len(every)} parameters are frozen: {_some(frozen)}. Fine if you froze them on purpose."
        )
        yield Note("frozen", text, "info", {"parameters": frozen})


# With a copy of the model ---------------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What hooks noted in a forward pass."""

    outputs: list[Any] = field(default_factory=list)
    first: tuple[str, nn.Module, Tensor] | None = None  # the first learned layer, and what it was given


class _Check:
    """The checks that run the model, on a copy that may be spoiled."""

    def __init__(self, task: Task[Any], trial: nn.Module, batch: Batch, precision: Precision, seed: int) -> None:
        self.task, self.trial, self.precision, self.seed = task, trial, precision, seed
        self.device = next(trial.parameters()).device
        with torch.no_grad():
            whole = task.augment(batch.to(self.device))
        self.batch = whole if task.coupled else whole.split(SAMPLES)[0]

    def notes(self) -> Iterator[Note]:
        """All findings, in the order in which they depend on each other."""
        yield from self._inputs()
        self.trial.train()
        yield from self._modes()
        while True:
            try:
                losses, seen = self._train_pass()
                break
            except Exception as error:
                if out_of_memory(error) and len(self.batch) > 1 and not self.task.coupled:
                    self.trial.zero_grad(set_to_none=True)
                    self.batch = self.batch.split((len(self.batch) + 1) // 2)[0]
                    continue
                text = (
                    f"The training step fails on the first batch: {error} Check the model against inputs and targets."
                )
                yield Note("step-fails", text, "error", {"error": type(error).__name__})
                return
        yield from self._first_layer(seen)
        for outputs in seen.outputs[:1]:
            yield from output_notes(outputs)
        yield from self._losses(losses)
        yield from self._unused()
        self.trial.zero_grad(set_to_none=True)
        yield from self._eval_passes()
        self.trial.train()
        yield from self.task.check_batch(self.trial, self.batch)
        if all(_finite(loss) for loss in losses.values()):
            yield from self._overfit()

    def _step(self, batch: Batch, phase: str, number: int = 0) -> Loss:
        seeding.seed_torch(self.seed, "preflight", phase, number)
        with self.precision.autocast():
            return self.task.training_step(self.trial, batch, phase)

    def _train_pass(self) -> tuple[dict[str, Loss], _Seen]:
        """One step of every phase with gradients of all phases left in place."""
        losses: dict[str, Loss] = {}
        with _watched(self.trial) as seen:
            for phase in self.task.phases:
                losses[phase] = self._step(self.batch, phase)
                total = total_loss(losses[phase])
                own = [p for _, p in self.task.parameters(self.trial, phase) if p.requires_grad]
                if total.requires_grad and own:
                    total.backward(inputs=own)  # type: ignore[no-untyped-call]
        return losses, seen

    def _inputs(self) -> Iterator[Note]:
        inputs, wanted = self.batch.inputs, self.task.example_inputs(1)
        if not isinstance(inputs, Tensor):
            return
        same_rank = inputs.ndim == wanted.ndim
        if not same_rank or inputs.shape[1] != wanted.shape[1]:
            text = (
                f"The batch has inputs of shape {tuple(inputs.shape)}; the task's example has "
                f"{('B', *wanted.shape[1:])}. Make the data's channels and the task's settings agree."
            ).replace("'B'", "B")
            yield Note("inputs-shape", text, "error", {"shape": list(inputs.shape)})
        if inputs.is_floating_point() and not _finite_tensor(inputs):
            text = (
                "The inputs hold NaN or infinite values. Find them with `opsin data check`, mend or remove the files."
            )
            yield Note("inputs-nonfinite", text, "error")
        elif inputs.numel() and bool((inputs == inputs.flatten()[0]).all()):
            text = (
                "All input values of the batch are the same; the pictures are blank. Look at the data and its reading."
            )
            yield Note("inputs-constant", text, "error")
        elif len(inputs) > 1 and bool((inputs == inputs[:1]).all()):
            text = (
                "All pictures of the batch are the same one. Look at the loader or at the function that reads a sample."
            )
            yield Note("inputs-repeated", text, "error")

    def _first_layer(self, seen: _Seen) -> Iterator[Note]:
        if seen.first is None or isinstance(seen.first[1], _NORMS):
            return
        name, _, given = seen.first
        low, high = float(given.min()), float(given.max())
        if max(abs(low), abs(high)) > 30 and float(given.float().std()) > 10:
            text = (
                f"The first learned layer '{name}' is given values from {low:.4g} to {high:.4g}: unscaled inputs. "
                "Scale them to about zero mean and unit variance (put the model behind opsin's Normalized)."
            )
            yield Note("inputs-unscaled", text, "warning", {"low": low, "high": high, "layer": name})

    def _modes(self) -> Iterator[Note]:
        for module in self.trial.modules():
            module.eval()
        self.trial.train()
        stuck = [n for n, m in self.trial.named_modules() if isinstance(m, _MODAL) and not m.training]
        if stuck:
            text = (
                f"{_some(stuck)} stay in evaluation mode while training. Fine if you froze them; else let train() pass."
            )
            yield Note("mode-train", text, "info", {"modules": stuck})
        self.trial.eval()
        active = [n for n, m in self.trial.named_modules() if isinstance(m, _MODAL) and m.training]
        if active:
            text = f"{_some(active)} stay in training mode after model.eval(): predictions would vary. Let eval() pass."
            yield Note("mode-eval", text, "error", {"modules": active})
        self.trial.train()

    def _losses(self, losses: Mapping[str, Loss]) -> Iterator[Note]:
        for phase, loss in losses.items():
            bad = [name for name, part in loss.items() if not _finite_tensor(part.sum)]
            if bad:
                text = (
                    f"The loss {_some(bad)} is not finite before the first step (phase '{phase}'). Look for "
                    "divisions by zero, logarithms of zero and unscaled inputs."
                )
                yield Note("loss-nonfinite", text, "error", {"parts": bad})
            elif not total_loss(loss).requires_grad:
                text = (
                    f"The loss of phase '{phase}' does not depend on any trainable parameter: nothing is learned. "
                    "Look for detach(), no_grad() or argmax between model and loss, or a frozen model."
                )
                yield Note("loss-detached", text, "error")

    def _unused(self) -> Iterator[Note]:
        trained = {
            n for phase in self.task.phases for n, p in self.task.parameters(self.trial, phase) if p.requires_grad
        }
        unused = [n for n, p in self.trial.named_parameters() if n in trained and p.grad is None]
        if unused and len(unused) < len(trained):
            text = (
                f"{len(unused)} of {len(trained)} trainable parameters get no gradient: {_some(unused)}. The loss does "
                "not use them. Use them in forward, or set requires_grad_(False)."
            )
            yield Note("no-gradient", text, "warning", {"parameters": unused})

    def _predict(self, number: int) -> None:
        """A pass as in evaluation, of the pictures alone; as in training for models that need more than pictures.

        Losses may be random in evaluation mode too (two-stage detectors draw the boxes that count).
        """
        phase = self.task.phases[0]
        seeding.seed_torch(self.seed, "preflight", phase, number)
        try:
            with self.precision.autocast():
                self.trial(self.batch.inputs)
        except TypeError:
            self._step(self.batch, phase, number)

    @torch.no_grad()
    def _eval_passes(self) -> Iterator[Note]:
        """Two passes in evaluation mode under other random numbers must give the same outputs."""
        self.trial.eval()
        before = {n: t.clone() for n, t in self.trial.named_buffers()}
        found = []
        for number in (0, 1):
            with _watched(self.trial) as seen:
                self._predict(1 + number)
            found.append([t.float() for t in _tensors(seen.outputs[:1])])
        if any(not torch.allclose(a, b, 1e-3, 1e-4, equal_nan=True) for a, b in zip(*found) if a.shape == b.shape):
            text = (
                "Two predictions of one batch in evaluation mode differ: something random stays switched on (such as "
                "F.dropout without training=self.training). Switch it off when not self.training."
            )
            yield Note("eval-random", text, "error")
        moved = [n for n, t in self.trial.named_buffers() if n in before and not _same(t, before[n])]
        if moved:
            text = f"Predicting changes the buffers {_some(moved)}: predictions depend on what was predicted before."
            yield Note("eval-changes", f"{text} Update them only when self.training.", "error", {"buffers": moved})

    def _overfit(self) -> Iterator[Note]:
        """A few Adam steps on a few samples must bring the loss down; nothing that cannot do this can learn."""
        if len(self.task.phases) > 1:
            text = "The task has several phases that work against each other, so overfitting one batch was not tried."
            yield Note("overfit-skipped", text, "info")
            return
        few = self.batch if self.task.coupled else self.batch.split(OVERFIT_SAMPLES)[0]
        try:
            losses, seconds = self._fit_few(few)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            losses, seconds = [], 0.0
        if _fell(losses):
            return
        if not losses:
            yield Note("overfit-skipped", "Overfitting a small batch needs more memory than there is.", "info")
            return
        lowest, whole = min(losses), len(losses) >= OVERFIT_STEPS
        stuck = not lowest < losses[0] - STUCK * abs(losses[0])
        fall = f"{len(losses)} steps brought the loss from {losses[0]:.4g} to {lowest:.4g} only"
        if not whole and math.isfinite(losses[-1]) and (not stuck or len(losses) < OVERFIT_LEAST):
            text = f"Overfitting a small batch was not tried to the end: {fall}, and took {seconds:.1f} s."
            yield Note("overfit-skipped", text, "info")
            return
        text = (
            f"A batch of {len(few)} samples cannot be overfitted: {fall}. Targets that do not belong to their "
            "inputs, dead or detached layers, or a wrong loss do this. See the other findings, then the batch."
        )
        if whole and stuck:
            text += " run.preflight=false trains all the same."
        level: Literal["error", "warning"] = "error" if whole and stuck else "warning"
        yield Note("cannot-overfit", text, level, {"first": losses[0], "lowest": lowest})

    def _fit_few(self, few: Batch) -> tuple[list[float], float]:
        for module in self.trial.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        phase = self.task.phases[0]
        trained = [p for _, p in self.task.parameters(self.trial, phase) if p.requires_grad]
        losses: list[float] = []
        started = time.monotonic()
        if not trained:
            return losses, 0.0
        optimizer = torch.optim.Adam(trained)
        steps, number = OVERFIT_STEPS, 0
        while number < steps:
            rates = (1e-3, 1e-2, 5e-2)  # a small net moves too little at the usual rate
            optimizer.param_groups[0]["lr"] = rates[number * len(rates) // steps]
            total = total_loss(self._step(few, phase))
            losses.append(float(total.detach()))
            if not total.requires_grad or not math.isfinite(losses[-1]) or _fell(losses):
                break
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            number += 1
            seconds = time.monotonic() - started
            steps = min(OVERFIT_STEPS, max(OVERFIT_LEAST, int(OVERFIT_SECONDS * number / seconds)))
            if seconds + seconds / number > OVERFIT_LIMIT:
                break
        return losses, time.monotonic() - started


def output_notes(outputs: Any) -> Iterator[Note]:
    """What is wrong with outputs that a loss will take for logits (B, K, ...): a bare tensor, or fields named `logits`.

    Found are: softmax or sigmoid inside the model, softmax over a single unit, ReLU as the last layer.
    """
    named = (
        outputs._asdict()
        if hasattr(outputs, "_asdict")
        else outputs
        if isinstance(outputs, Mapping)
        else {"logits": outputs}
    )
    for name, value in named.items():
        if isinstance(value, Mapping):
            yield from output_notes({f"{name}.{key} logits": one for key, one in value.items()})
        elif (
            isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2 and str(name).endswith("logits")
        ):
            yield from _logit_notes(str(name).removesuffix(" logits"), value.detach().float())


def _logit_notes(name: str, logits: Tensor) -> Iterator[Note]:
    low, high = float(logits.min()), float(logits.max())
    if not math.isfinite(low) or not math.isfinite(high) or low < 0 or high == 0:
        return
    what = f"The model's '{name}'"
    zeros = float((logits == 0).float().mean())
    tolerance = 2e-2 if logits.shape[1] > 1 else 1e-6
    if bool(((logits.sum(1) - 1).abs() < tolerance).all()):
        if logits.shape[1] == 1:
            text = f"{what} is 1 for every sample: softmax over a single unit. Remove it, or give one unit per class."
            yield Note("one-unit-softmax", text, "error")
        else:
            text = f"{what} are probabilities (rows sum to 1), but the loss takes logits. Remove the softmax."
            yield Note("probabilities", text, "error")
    elif zeros >= 0.02:
        text = f"{what} are never negative and {zeros:.0%} of them are 0: a ReLU after the last layer. Remove it."
        yield Note("relu-logits", text, "error", {"zeros": zeros})
    elif high <= 1 and logits.numel() >= 16:
        text = f"{what} all lie in [0, 1]: a sigmoid inside the model? The loss takes logits. Remove it."
        yield Note("sigmoid", text, "warning", {"low": low, "high": high})


# Small things the checks share ----------------------------------------------------------------------------------------


def _some(names: Collection[Any]) -> str:
    shown = ", ".join(f"'{n}'" if isinstance(n, str) else str(n) for n in list(names)[:5])
    return shown + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


def _finite_tensor(value: Tensor) -> bool:
    return bool(torch.isfinite(value.detach()).all())


def _finite(loss: Loss) -> bool:
    return all(_finite_tensor(part.sum) for part in loss.values())


def _fell(losses: list[float]) -> bool:
    if not losses or not math.isfinite(losses[0]):
        return False
    return losses[0] < 0.02 or min(losses) < losses[0] - 0.2 * abs(losses[0])


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)


@contextmanager
def _watched(model: nn.Module) -> Iterator[_Seen]:
    """Note the model's outputs and what its first learned layer is given."""
    seen = _Seen()
    handles = [model.register_forward_hook(lambda _module, _given, outputs: seen.outputs.append(outputs))]

    def note(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            if seen.first is None and given and isinstance(given[0], Tensor) and given[0].is_floating_point():
                seen.first = (name, module, given[0].detach())

        return hook

    handles += [m.register_forward_pre_hook(note(n)) for n, m in model.named_modules() if isinstance(m, _LEARNED)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
