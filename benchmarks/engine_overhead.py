"""What the engine costs a step: a two-layer net through `Loop`, against the same step written by hand.

Both sides do the same work: fused optimizer, learning-rate schedule, clipping of the gradient norm, a running average
of weights, bf16 autocast, a check that the loss is finite, a log as JSON lines. They take turns in one process, a block
of steps each, so that a busy machine slows both; every step is timed by itself. Bar: the medians differ by at most 0.3
ms a step. On a machine that does other work the 10th percentiles are what a quiet one would show: look at both.

Run: python benchmarks/engine_overhead.py [--steps 300] [--blocks 12] [--optimizer sgd] [--device cpu] [--json]
"""
# ruff: noqa: ARG003

from __future__ import annotations

import argparse
import io
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recorded import record
from torch import Tensor, nn
from torch.nn import functional as F

from opsin import seeding
from opsin.engine.events import Stream
from opsin.engine.listeners import open_listeners
from opsin.engine.loop import Loop, Plan
from opsin.engine.optimizers import Average, build_optimizer
from opsin.engine.precision import Precision
from opsin.recipe import OptimizerSettings
from opsin.results.rows import Rows
from opsin.task import Batch, Geometry, Loss, Monitor, Part, Prepared, Sample, Task, TaskSettings

BAR_MS = 0.3
SAMPLES, FEATURES, CLASSES, RATE, CLIP, DECAY = 32, 64, 10, 0.01, 1.0, 0.999


class Vectors(Task[TaskSettings]):
    """Cross-entropy over vectors, nothing else."""

    @classmethod
    def infer(cls, data: Any, indices: Any, given: Mapping[str, Any]) -> TaskSettings:
        return TaskSettings()

    @property
    def model_facts(self) -> dict[str, Any]:
        return {}

    def prepare(self, sample: Sample, key: int, train: bool) -> Prepared:
        raise NotImplementedError

    def collate(self, samples: Sequence[Prepared], keys: Any) -> Batch:
        raise NotImplementedError

    def counts(self, batch: Batch, phase: str) -> dict[str, float]:
        return {"loss": float(len(batch))}

    def training_step(self, model: nn.Module, batch: Batch, phase: str) -> Loss:
        logits = model(batch.inputs)
        total = F.cross_entropy(logits.float(), batch.targets["y"], reduction="sum")
        return {"loss": Part(total, float(len(batch)))}

    def predict_step(self, outputs: Any, ids: Any, geometry: Any) -> list[Any]:
        raise NotImplementedError

    def score(self, result: Any, target: Any) -> dict[str, Any]:
        raise NotImplementedError

    def summarize(self, rows: Rows, weights: Any = None) -> dict[str, Any]:
        return {}

    @property
    def monitor(self) -> Monitor:
        return Monitor("none")

    def example_inputs(self, batch_size: int = 1) -> Tensor:
        return torch.zeros(batch_size, FEATURES)


class Repeat:
    """One batch again and again, loading for free; notes when each is asked for."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch, self.steps_per_epoch, self.samples_per_epoch = batch, steps, steps * len(batch)
        self.times: list[float] = []

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        self.times = []
        for _ in range(start, self.steps_per_epoch):
            self.times.append(time.perf_counter())
            yield self.batch
        self.times.append(time.perf_counter())


def _net(device: torch.device) -> nn.Module:
    with seeding.torch_seeded("engine-overhead"):
        return nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.ReLU(), nn.Linear(FEATURES, CLASSES)).to(device)


def _batch(device: torch.device) -> Batch:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(SAMPLES, FEATURES, generator=g), torch.randint(0, CLASSES, (SAMPLES,), generator=g)
    where = [Geometry((1, 1), (1, 1))] * SAMPLES
    ids, keys = [str(i) for i in range(SAMPLES)], seeding.keys(0, 0, np.arange(SAMPLES))
    return Batch(x.to(device), {"y": y.to(device)}, where, [{}] * SAMPLES, ids, keys)


def _factor(step: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * (step % 1000) / 1000))


def engine(settings: OptimizerSettings, device: torch.device, steps: int, folder: Path) -> Callable[[], list[float]]:
    """A function that runs a block of steps through the engine and gives the moments between them."""
    model, loader = _net(device), Repeat(_batch(device), steps)
    stream = Stream(open_listeners(("jsonl", "terminal"), folder, quiet=True))
    loop = Loop(
        Vectors(TaskSettings()),
        model,
        {"main": build_optimizer(settings, model.named_parameters(), SAMPLES)},
        _factor,
        loader,
        Plan(epochs=0, clip_norm=CLIP),
        precision=Precision("bf16", device, False),
        stream=stream,
        average=Average(model, DECAY),
        folder=folder,
    )

    def block() -> list[float]:
        loop.plan = Plan(epochs=loop.state.epoch + 1, clip_norm=CLIP)
        loop.run()
        return loader.times

    return block


def by_hand(settings: OptimizerSettings, device: torch.device, steps: int) -> Callable[[], list[float]]:
    """The same block, as an expert would write it."""
    model, batch = _net(device), _batch(device)
    optimizer = build_optimizer(settings, model.named_parameters(), SAMPLES)
    parameters = list(model.parameters())
    live = [p.detach() for p in parameters]
    mean = [p.clone() for p in live]
    x, y = batch.inputs, batch.targets["y"]
    log, every, state = io.BytesIO(), max(1, steps // 50), {"step": 0}

    def block() -> list[float]:
        times = []
        model.train()
        running, count = torch.zeros((), device=device), 0
        for _ in range(steps):
            times.append(time.perf_counter())
            step = state["step"]
            factor = _factor(step)
            for group in optimizer.param_groups:
                group["lr"] = RATE * factor
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = model(x)
                loss = F.cross_entropy(logits.float(), y)
            if not math.isfinite(float(loss.detach())):
                raise RuntimeError("the loss is not finite")
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
            optimizer.step()
            torch._foreach_lerp_(mean, live, 1.0 - min(DECAY, (1 + step) / (10 + step)))
            running += loss.detach() * len(y)
            count += len(y)
            state["step"] = step = step + 1
            if step % every == 0:
                line = {"step": step, "loss": float(loss.detach()), "lr": RATE * factor, "gradient_norm": float(norm)}
                log.write((json.dumps(line) + "\n").encode())
        times.append(time.perf_counter())
        line = {"step": state["step"], "loss": float(running) / count}
        log.write((json.dumps(line) + "\n").encode())
        return times

    return block


def measure(steps: int, blocks: int, name: str, device: torch.device) -> dict[str, Any]:
    """Medians and 10th percentiles over all steps, in microseconds."""
    settings = OptimizerSettings(name=name, lr=RATE)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        sides = {"engine": engine(settings, device, steps, Path(folder)), "by_hand": by_hand(settings, device, steps)}
        for block in sides.values():
            block()
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(blocks):
            for side, block in sides.items():
                times[side] += (np.diff(block()) * 1e6).tolist()
    medians = {side: statistics.median(values) for side, values in times.items()}
    low = {side: float(np.percentile(values, 10)) for side, values in times.items()}
    difference = medians["engine"] - medians["by_hand"]
    return {
        "benchmark": "engine_overhead",
        "engine_us": round(medians["engine"], 1),
        "by_hand_us": round(medians["by_hand"], 1),
        "difference_us": round(difference, 1),
        "engine_p10_us": round(low["engine"], 1),
        "by_hand_p10_us": round(low["by_hand"], 1),
        "difference_p10_us": round(low["engine"] - low["by_hand"], 1),
        "bar_us": BAR_MS * 1000,
        "within_bar": difference <= BAR_MS * 1000,
        "optimizer": name,
        "steps": steps,
        "blocks": blocks,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
    }


def main() -> None:
    """Read options, measure, print."""
    parser = argparse.ArgumentParser(description="Microseconds that the engine adds to a training step.")
    parser.add_argument("--steps", type=int, default=300, help="steps in a block")
    parser.add_argument("--blocks", type=int, default=12, help="blocks of each side, taking turns")
    parser.add_argument("--optimizer", choices=("sgd", "adam", "adamw"), default="sgd")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--record", action="store_true", help="store it under results/")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    found = measure(given.steps, given.blocks, given.optimizer, torch.device(given.device))
    if given.record:
        record("engine-overhead", found, "python benchmarks/engine_overhead.py --record")
    if given.json:
        print(json.dumps(found, indent=2))
        return
    print(f"engine  {found['engine_us']:8.1f} us a step")
    print(f"by hand {found['by_hand_us']:8.1f} us a step")
    verdict = "within" if found["within_bar"] else "ABOVE"
    print(f"difference {found['difference_us']:.1f} us, {verdict} the bar of {found['bar_us']:.0f} us")
    print(f"10th percentiles: {found['engine_p10_us']:.1f} and {found['by_hand_p10_us']:.1f} us")


if __name__ == "__main__":
    main()
