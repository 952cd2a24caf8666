"""Memory of the training process over many epochs: resident size at the end of each, which must stay flat.

python benchmarks/memory.py [--epochs 20] [--record]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import psutil
from recorded import record

from opsin.data.build import from_arrays
from opsin.engine.events import EpochDone, Event
from opsin.run import train


def main() -> None:
    """Train on 20,000 pictures, note the memory, store."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--epochs", type=int, default=20)
    words.add_argument("--record", action="store_true")
    given = words.parse_args()
    draw = np.random.default_rng(0)
    data = from_arrays(
        draw.integers(0, 256, (20000, 28, 28), dtype=np.uint8),
        np.arange(20000) % 10,
        class_names=[str(i) for i in range(10)],
    )
    process, sizes = psutil.Process(), []

    def note(event: Event) -> None:
        if isinstance(event, EpochDone):
            children = sum(child.memory_info().rss for child in process.children(recursive=True))
            sizes.append((process.memory_info().rss + children) / 2**20)

    with tempfile.TemporaryDirectory() as folder:
        train(
            "classify", data=data, model="linear", epochs=given.epochs, out=Path(folder) / "run", callbacks=[note], quiet=True,
            task={"augment_preset": "strong"},
        )  # fmt: skip
    growth = max(sizes[1:]) / sizes[0] - 1
    print(f"MiB after each epoch: {', '.join(f'{size:.0f}' for size in sizes)}; growth {growth:+.2%} (bar < 2 %)")
    if given.record:
        record(
            "memory",
            {"epochs": given.epochs, "mebibytes": sizes, "growth": growth, "bar": 0.02, "met": growth < 0.02},
            f"python benchmarks/memory.py --epochs {given.epochs} --record",
        )


if __name__ == "__main__":
    main()
