"""When a loss is not finite: which samples, which layer, and what to do about it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from opsin.engine.precision import Precision
from opsin.errors import TrainingError
from opsin.task import Batch, Loss, Task


def explain_nonfinite(
    task: Task[Any], model: nn.Module, batch: Batch, phase: str, step: int, loss: Loss, precision: Precision
) -> TrainingError:
    """The error that stops training: names the step, the loss part, the first layer and the samples at fault."""
    parts = [name for name, part in loss.items() if not bool(torch.isfinite(part.sum.detach()).all())]
    layer = _first_layer(task, model, batch, phase, precision)
    guilty, judged = _guilty_samples(task, model, batch, phase, precision)
    shown = ", ".join((guilty or batch.ids)[:8]) + (", ..." if len(guilty or batch.ids) > 8 else "")
    who = (
        f"{len(guilty)} of the {len(batch)} samples cause it"
        if guilty
        else "no single sample causes it alone; the batch holds"
        if not parts or judged & set(parts)
        else "which sample causes it cannot be told, since one sample alone has no such loss; the batch holds"
    )
    advice = (
        "Look at these samples with `opsin data check`; if they are sound, lower optimizer.lr, set optimizer.clip_norm=1, "
        "or use run.precision=fp32."
    )
    return TrainingError(
        f"The loss is not finite at step {step + 1} ({', '.join(parts) or 'on another process'}). {layer} "
        f"{who}: {shown}. Training stopped before the weights changed. {advice}"
    )


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, tuple | list):
        return all(_finite(v) for v in value)
    return True


def _first_layer(task: Task[Any], model: nn.Module, batch: Batch, phase: str, precision: Precision) -> str:
    for name, p in model.named_parameters():
        if not _finite(p.detach()):
            return f"The weights of '{name}' are not finite already (the last update broke them)."
    if not _finite(batch.inputs):
        return "The inputs themselves are not finite."
    seen: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if next(module.children(), None) is None:

            def note(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
                if not seen and not _finite(output):
                    seen.append(f"The first layer with such values is '{name}' ({type(module).__name__}).")

            handles.append(module.register_forward_hook(note))
    try:
        with torch.no_grad(), precision.autocast():
            task.training_step(model, batch, phase)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0] if seen else "Every layer's output is finite; the loss itself is not."


@torch.no_grad()
def _guilty_samples(
    task: Task[Any], model: nn.Module, batch: Batch, phase: str, precision: Precision
) -> tuple[list[str], set[str]]:
    """Samples whose loss alone is not finite, unless all are, and the names of the loss parts that were looked at.

    One sample has no batch statistics, so the model is in evaluation mode, where auxiliary heads give no loss.
    """
    if task.coupled:
        return [], set()
    found: list[str] = []
    judged: set[str] = set()
    model = copy.deepcopy(model).eval()
    for module in model.modules():  # the pass that failed has spoiled running statistics as well
        if isinstance(module, _BatchNorm) and not all(_finite(buffer) for buffer in module.buffers(recurse=False)):
            module.reset_running_stats()
    for one in batch.split(1)[:256]:
        with precision.autocast():
            loss = task.training_step(model, one, phase)
        judged |= set(loss)
        if not all(_finite(part.sum) for part in loss.values()):
            found.append(one.ids[0])
    return ([] if len(found) == len(batch) else found), judged
