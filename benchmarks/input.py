"""Speed of the input path against torchvision + ImageFolder, side by side in one sitting.

    python benchmarks/input.py [--data FOLDER] [--only photos large small] [--repeats 7] [--json]

* photos: 500x375 JPEG files to 224x224 random resized crops, one process, one thread; first epoch (decode) and second
  (from the cache, also with `data.shrink=256`). Peer: `ImageFolder` with `RandomResizedCrop` and `ToImage` of
  torchvision's v2 in a `DataLoader`.
* large: 12-megapixel JPEG files to the same crops (decoded smaller by us, in full by the peer).
* small: training steps of a small network on 28x28 pictures (batch 128, bf16) fed by the loader with standard
  augmentation, against the bare loop that only indexes a tensor.

Pictures are generated from a seed unless --data names class folders. Repeats alternate between the contestants; ratios
are medians over repeats. `bar` is what the project promises.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from recorded import record
from torch import nn
from torch.nn import functional as F
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from opsin.data import load_data, transforms
from opsin.data.cache import Cache
from opsin.data.loader import TrainLoader
from opsin.data.resize import random_resized_crop, stack
from opsin.data.shrink import Shrunk
from opsin.task import Batch, Geometry, Prepared, Sample

SIZE, BATCH = 224, 32


class Crops:
    """What a classification task does with a photo while it trains."""

    reduce_to = 256  # as `opsin train classify` at 224

    def prepare(self, sample: Sample, key: int, train: bool) -> Prepared:
        image, geometry = random_resized_crop(sample.image, key, (SIZE, SIZE))
        return Prepared(sample.id, image, sample.target, geometry, sample.target)

    def collate(self, samples: Sequence[Prepared], keys: Any) -> Batch:
        labels = torch.tensor([sample.target["label"] for sample in samples])
        geometry, originals = [s.geometry for s in samples], [s.original for s in samples]
        return Batch(
            stack([s.inputs for s in samples]), {"label": labels}, geometry, originals, [s.id for s in samples], keys
        )

    def partners(self, keys: Any) -> None:
        return None


def photo(seed: int, height: int, width: int) -> Image.Image:
    """Something like a photo: detail at every scale, smooth parts, edges, and a little noise."""
    generator = np.random.default_rng(seed)
    small = (1, 3, -(-height // 4), -(-width // 4))
    total, scale = torch.zeros(small), 1
    while scale < max(small):
        coarse = generator.normal(size=(1, 3, small[2] // scale + 2, small[3] // scale + 2)).astype(np.float32)
        total += F.interpolate(torch.from_numpy(coarse), small[2:], mode="bilinear") * (scale / max(small)) ** 0.9
        scale *= 2
    total = torch.where(total > 0.1, total + 0.3, total)  # edges
    pixels = F.interpolate(118 + 75 * total, (height, width), mode="bilinear")[0].permute(1, 2, 0).numpy()
    pixels = pixels + generator.integers(-9, 10, pixels.shape, np.int8)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def make_photos(folder: Path, count: int, height: int, width: int) -> Path:
    for i in range(count):
        place = folder / f"class{i % 4}"
        place.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        photo(i, height, width).save(file, "JPEG", quality=90)
        (place / f"{i:04}.jpg").write_bytes(file.getvalue())
    return folder


def seconds(work: Callable[[], int]) -> tuple[float, float]:
    """Pictures per second of wall time and of processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    count = work()
    return count / (time.perf_counter() - wall), count / (time.process_time() - cpu)


def drained(batches: Iterator[Any]) -> int:
    return sum(len(batch[0]) if isinstance(batch, list | tuple) else len(batch) for batch in batches)


def compare(contestants: dict[str, Callable[[int], int]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Run all of them in turn, `repeats` times after one warm-up; (wall, cpu) rates by name."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, work in contestants.items():
            rate = seconds(lambda work=work, repeat=repeat: work(repeat))  # type: ignore[misc]
            if repeat:
                rates[name].append(rate)
    return rates


def ratio(rates: dict[str, list[tuple[float, float]]], ours: str, theirs: str) -> float:
    return statistics.median(a[0] / b[0] for a, b in zip(rates[ours], rates[theirs], strict=True))


def files(folder: Path, repeats: int, large: bool) -> dict[str, Any]:
    torch.set_num_threads(1)
    dataset = load_data(folder)
    indices = np.arange(len(dataset))
    transform = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.ToImage()])
    peer = torch.utils.data.DataLoader(ImageFolder(str(folder), transform), batch_size=BATCH, shuffle=True)
    plain = TrainLoader(dataset, indices, Crops(), batch_size=BATCH, seed=0)  # type: ignore[arg-type]
    contestants: dict[str, Callable[[int], int]] = {
        "torchvision": lambda _: drained(iter(peer)),
        "first epoch": lambda repeat: drained(plain.epoch(repeat)),
    }
    if not large:
        room = sum(int(np.prod(dataset.size(i))) * 3 + 4096 for i in range(len(dataset)))
        kept = TrainLoader(dataset, indices, Crops(), batch_size=BATCH, seed=0, cache=Cache(len(dataset), room))  # type: ignore[arg-type]
        drained(kept.epoch(0))
        contestants["second epoch"] = lambda repeat: drained(kept.epoch(repeat))
        little = Shrunk(dataset, Crops.reduce_to)
        fewer = TrainLoader(little, indices, Crops(), batch_size=BATCH, seed=0, cache=Cache(len(dataset), room))  # type: ignore[arg-type]
        drained(fewer.epoch(0))
        contestants["second epoch, data.shrink=256"] = lambda repeat: drained(fewer.epoch(repeat))
    rates = compare(contestants, repeats)
    result: dict[str, Any] = {
        "pictures": len(dataset),
        "bytes_per_picture": int(np.mean([p.stat().st_size for p in folder.rglob("*.jpg")] or [0])),
        "pictures_per_second": {name: round(statistics.median(r[0] for r in rate), 1) for name, rate in rates.items()},
        "pictures_per_cpu_second": {
            name: round(statistics.median(r[1] for r in rate), 1) for name, rate in rates.items()
        },
        "ratio": {"first epoch": round(ratio(rates, "first epoch", "torchvision"), 2)},
        "bar": {"first epoch": 3.0 if large else 1.6},
    }
    if not large:
        for name in ("second epoch", "second epoch, data.shrink=256"):
            result["ratio"][name] = round(ratio(rates, name, "torchvision"), 2)
            result["bar"][f"{name}, pictures_per_second"] = 5000
    return result


class Digits:
    """28x28 pictures in memory."""

    def __init__(self, count: int) -> None:
        self.arrays = np.random.default_rng(0).integers(0, 256, (count, 1, 28, 28), np.uint8)

    def __len__(self) -> int:
        return len(self.arrays)

    def id(self, i: int) -> str:
        return f"train#{i:05}"

    def read(self, i: int, reduce_to: int | None = None) -> Sample:
        return Sample(self.id(i), torch.from_numpy(self.arrays[i]), {"label": i % 10})


class AsTheyAre(Crops):
    static_prepare = True

    def prepare(self, sample: Sample, key: int, train: bool) -> Prepared:
        size = (sample.image.shape[1], sample.image.shape[2])
        return Prepared(sample.id, sample.image, sample.target, Geometry(size, size), sample.target)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, nn.Linear(3200, 1024), nn.ReLU(), nn.Dropout(0.4), nn.Linear(1024, 10))


def small(repeats: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    dataset, steps, chosen = Digits(128 * 15), 15, transforms.preset("standard", small=True, flip=False)
    images, labels = torch.from_numpy(dataset.arrays), torch.arange(len(dataset)) % 10
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = network().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    loader = TrainLoader(dataset, np.arange(len(dataset)), AsTheyAre(), batch_size=128, seed=0)  # type: ignore[arg-type]

    def step(inputs: torch.Tensor, target: torch.Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(model(inputs.float() / 255), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def bare(_: int) -> int:
        order = torch.randperm(len(dataset))
        for i in range(steps):
            chosen_rows = order[128 * i : 128 * (i + 1)]
            step(images[chosen_rows].to(device), labels[chosen_rows].to(device))
        return steps * 128

    def fed(epoch: int) -> int:
        for batch in loader.epoch(epoch):
            moved = batch.to(device)
            step(transforms.augment(moved.inputs, moved.keys, chosen), moved.targets["label"])
        return steps * 128

    def input_only(epoch: int) -> int:
        return sum(len(transforms.augment(b.to(device).inputs, b.keys, chosen)) for b in loader.epoch(epoch))

    rates = compare({"bare loop": bare, "loader and augmentation": fed, "input only": input_only}, repeats)
    per_second = {name: round(statistics.median(r[0] for r in rate), 1) for name, rate in rates.items()}
    return {
        "threads": threads,
        "device": str(device),
        "pictures_per_second": per_second,
        "input_milliseconds_per_batch": round(128e3 / per_second["input only"], 3),
        "ratio": {"training": round(ratio(rates, "loader and augmentation", "bare loop"), 3)},
        "bar": {"training": 0.9},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="class folders with JPEG files, instead of generated photos")
    parser.add_argument("--only", nargs="+", choices=("photos", "large", "small"), default=("photos", "large", "small"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--record", action="store_true", help="store it under results/")
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    report: dict[str, Any] = {"seed": 0}
    with tempfile.TemporaryDirectory() as name:
        if "photos" in arguments.only:
            folder = arguments.data or make_photos(Path(name) / "photos", 96, 375, 500)
            report["photos"] = files(folder, arguments.repeats, large=False)
        if "large" in arguments.only:
            report["large"] = files(make_photos(Path(name) / "large", 4, 3000, 4000), arguments.repeats, large=True)
    if "small" in arguments.only:
        report["small"] = small(arguments.repeats, threads)
    if arguments.record:
        record("input-speed", report, f"python benchmarks/input.py --repeats {arguments.repeats} --record")
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    for part in arguments.only:
        print(part)
        for key, value in report[part].items():
            print(f"  {key:<30}{value}")


if __name__ == "__main__":
    main()
