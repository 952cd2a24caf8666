"""Training speed against loops written by hand, interleaved in one process: bf16 channels-last, and plain fp32.

    python benchmarks/training_speed.py [--record] [--rounds 7] [--device cpu]

Cases: ResNet-18 (3x3 stem) at 32 px and MobileNetV2 (timm) at 96 px, batch 32; the B2 MNIST net with augmentation, batch
128, against its bare loop without any. Ours is the whole engine: loader, augmentation, loop, events. Each round times all
contestants one after the other; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from recorded import record
from torch import Tensor, nn

from opsin.data.build import from_arrays
from opsin.data.loader import TrainLoader
from opsin.data.transforms import AugmentSettings
from opsin.engine.loop import Loop, Plan
from opsin.engine.optimizers import build_optimizer
from opsin.engine.precision import Precision
from opsin.models import ModelSpec, build
from opsin.recipe import OptimizerSettings
from opsin.task import Batch
from opsin.tasks.classify import Classify, ClassifySettings, HeadSettings


def pictures(channels: int, size: int, count: int) -> tuple[Any, Any]:
    """Random pictures (N, H, W, C) or (N, H, W), and labels (N,)."""
    draw = np.random.default_rng(0)
    shape = (count, size, size) if channels == 1 else (count, size, size, channels)
    return draw.integers(0, 256, shape, dtype=np.uint8), draw.integers(0, 10, count)


def waited(device: torch.device) -> float:
    """The clock, when everything that was queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def bare(
    model: nn.Module, images: Tensor, labels: Tensor, batch: int, bf16: bool, device: torch.device
) -> Callable[[int], float]:
    """The loop an expert would write; returns a function that trains some steps and gives seconds per step."""
    model = model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=bf16)
    loss_of = nn.CrossEntropyLoss()
    mean, std = torch.tensor(0.5, device=device), torch.tensor(0.25, device=device)
    if bf16:
        model = model.to(memory_format=torch.channels_last)
    order = torch.randperm(len(images))

    def run(steps: int) -> float:
        model.train()
        began = waited(device)
        for i in range(steps):
            at = order[(i * batch) % (len(order) - batch) :][:batch]
            x = (images[at].to(device).float() / 255 - mean) / std
            if bf16:
                x = x.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                logits = model(x).logits
            loss = loss_of(logits.float(), labels[at].to(device))
            loss.backward()
            optimizer.step()
        return (waited(device) - began) / steps

    return run


class Cut:
    """A loader that stops after some steps, so that a round has a fixed length."""

    def __init__(self, loader: TrainLoader) -> None:
        self.loader, self.steps = loader, 1

    @property
    def steps_per_epoch(self) -> int:
        return self.steps

    @property
    def samples_per_epoch(self) -> int:
        return self.steps * self.loader.batch_size

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        done = 0
        while done < self.steps:
            for batch in self.loader.epoch(number):
                if done == self.steps:
                    return
                done += 1
                yield batch


def ours(
    network: nn.Module,
    images: Any,
    labels: Any,
    channels: int,
    size: int,
    batch: int,
    augment: AugmentSettings,
    device: torch.device,
) -> Callable[[int], float]:
    """The same work through opsin."""
    names = tuple(str(i) for i in range(10))
    settings = ClassifySettings(
        heads=(HeadSettings(name="label", class_names=names),), image_size=(size, size), channels=channels, mean=(0.5,) * channels,
        std=(0.25,) * channels, small=True, flip=True, augment=augment,
    )  # fmt: skip
    task = Classify(settings)
    data = from_arrays(images, labels, class_names=names)
    precision = Precision("bf16", device, True)
    model = precision.place(task.assemble(network))
    loader = Cut(TrainLoader(data, np.arange(len(data)), task, batch_size=batch, seed=0))
    optimizer = build_optimizer(OptimizerSettings(lr=0.05), model.named_parameters(), batch)

    def run(steps: int) -> float:
        loader.steps = steps
        loop = Loop(task, model, {"main": optimizer}, lambda step: 1.0, loader, Plan(1), precision=precision)
        began = waited(device)
        loop.run()
        return (waited(device) - began) / steps

    return run


def measure(contestants: dict[str, Callable[[int], float]], steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per step of every contestant in every round, after one round to warm up."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            seconds = run(steps)
            if number:
                found[name].append(seconds)
    return found


def main() -> None:
    """Read the command line, measure, store."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--rounds", type=int, default=7)
    words.add_argument("--device", default="cpu")
    words.add_argument("--record", action="store_true")
    given = words.parse_args()
    device = torch.device(given.device)
    cases: dict[str, tuple[ModelSpec, int, int, AugmentSettings, float]] = {
        "resnet18 @32": (ModelSpec("resnet18", {"stem": "cifar"}, 3, 10, (32, 32)), 32, 12, AugmentSettings(), 0.95),
        "mobilenetv2 @96": (ModelSpec("timm/mobilenetv2_100", {}, 3, 10, (96, 96)), 32, 12, AugmentSettings(), 0.95),
        "B2 MNIST net, augmented": (
            ModelSpec("b2-mnist", {}, 1, 10, (28, 28)),
            128,
            24,
            AugmentSettings(shift=0.125, rotate=10.0),
            0.90,
        ),
    }
    table = {}
    for name, (spec, batch, steps, augment, bar) in cases.items():
        images, labels = pictures(spec.in_channels, spec.image_size[0], 2048)
        tensor = torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2).contiguous()
        target = torch.from_numpy(labels)
        contestants = {
            "ours": ours(build(spec), images, labels, spec.in_channels, spec.image_size[0], batch, augment, device),
            "bare bf16": bare(build(spec), tensor, target, batch, True, device),
            "plain fp32": bare(build(spec), tensor, target, batch, False, device),
        }
        seconds = measure(contestants, steps, given.rounds)
        of_bare = statistics.median(b / o for o, b in zip(seconds["ours"], seconds["bare bf16"]))
        of_plain = statistics.median(p / o for o, p in zip(seconds["ours"], seconds["plain fp32"]))
        rates = {who: batch / statistics.median(times) for who, times in seconds.items()}
        table[name] = {
            "images_per_second": rates,
            "of_bare_bf16": of_bare,
            "of_plain_fp32": of_plain,
            "bar": bar,
            "met": of_bare >= bar,
        }
        shown = ", ".join(f"{who} {rate:.0f}/s" for who, rate in rates.items())
        print(f"{name}: {shown}; {of_bare:.3f} of bare (bar {bar}), {of_plain:.2f} x plain fp32", flush=True)
    if given.record:
        suffix = "" if device.type == "cpu" else f"-{device.type}"
        record(
            f"training-speed{suffix}",
            {"device": str(device), "rounds": given.rounds, "cases": table},
            f"python benchmarks/training_speed.py --rounds {given.rounds} --device {device} --record",
        )


if __name__ == "__main__":
    main()
