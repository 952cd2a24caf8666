"""Kill training without warning at random moments, resume, and compare with the uninterrupted run, bit by bit.

    python benchmarks/kill_resume.py [--kills 20] [--workers 0 2] [--record]

Checkpoints are written after every step, so that many kills fall inside a checkpoint write.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

from recorded import record

KEYS_OF_TIME = ("time", "seconds", "images_per_second")


def write_pictures(folder: Path, count: int = 240) -> Path:
    """Digits as PNG files in one folder per class."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    for i in range(count):
        path = folder / str(data.target[i]) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(data.images[i] * 15.9)).resize((40, 40)).save(path)
    return folder


def settings(data: Path, workers: int) -> dict[str, Any]:
    """A run in which everything that has state is switched on."""
    return {
        "data": {"path": str(data), "workers": workers, "cache": "none"},
        "model": {"name": "smallnet", "kwargs": {"stem": 16, "widths": [16, 32, 32]}},
        "optimizer": {"name": "adamw" if workers else "sgd", "ema": 0.9, "clip_norm": 1.0},
        "schedule": {"name": "one-cycle"},
        "task": {"small": False, "image_size": [32, 32], "augment_preset": "strong"},
        "run": {
            "epochs": 3,
            "batch_size": 32,
            "checkpoint_seconds": 0.0,
            "listeners": ["jsonl"],
            "threads": 1,
            "preflight": False,
        },
    }


def train(folder: Path, given: dict[str, Any]) -> None:
    """Start a run in a folder, or go on with the one that is there."""
    from opsin.recipe import Layer
    from opsin.run import Run, start

    if (folder / "recipe.json").exists():
        Run(folder).resume(quiet=True)
    else:
        start("classify", [Layer("kill test", given)], out=folder, quiet=True)


def result(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Checksum of the final weights, and the log without times."""
    weights = hashlib.sha256((folder / "bundle" / "weights.safetensors").read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return weights, [{k: v for k, v in line.items() if k not in KEYS_OF_TIME} for line in lines]


def trial(folder: Path, given: dict[str, Any], moments: list[float], fork: Any) -> int:
    """Train with a kill at each moment (seconds after each start), then to the end; returns how many kills hit."""
    hits = 0
    for moment in [*moments, None]:
        process = fork.Process(target=train, args=(folder, given))
        process.start()
        if moment is not None:
            process.join(moment)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                hits += 1
        process.join()
        if folder.exists() and not (folder / "recipe.json").exists():
            (folder / "recipe.json").unlink(missing_ok=True)
            for path in folder.iterdir():
                path.unlink()
    return hits


def main() -> None:
    """Read the command line, kill, compare, store."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--kills", type=int, default=20)
    words.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--record", action="store_true")
    given = words.parse_args()
    import opsin.run  # noqa: F401 - imported once, before the forks

    fork, draw = multiprocessing.get_context("fork"), random.Random(given.seed)
    found = []
    with tempfile.TemporaryDirectory() as name:
        data = write_pictures(Path(name) / "digits")
        for workers in given.workers:
            whole = Path(name) / f"whole-{workers}"
            began = time.monotonic()
            trial(whole, settings(data, workers), [], fork)
            length, wanted = time.monotonic() - began, result(whole)
            for number in range(given.kills):
                folder = Path(name) / f"killed-{workers}-{number}"
                moment = draw.uniform(0.0, 0.85 * length)  # the last tenth is the end of the process
                hits = trial(folder, settings(data, workers), [moment], fork)
                weights, log = result(folder)
                one = {
                    "workers": workers,
                    "moment": moment / length,
                    "killed": bool(hits),
                    "weights": weights == wanted[0],
                    "log": log == wanted[1],
                }
                found.append(one)
                print(one, flush=True)
                if log != wanted[1]:
                    odd = [pair for pair in zip_longest(log, wanted[1]) if pair[0] != pair[1]]
                    print(f"  first difference: {odd[0]}")
    same = all(one["weights"] and one["log"] for one in found)
    print(f"{sum(one['killed'] for one in found)} kills, all identical: {same}")
    if given.record:
        values = {"kills": sum(one["killed"] for one in found), "all_identical": same, "trials": found}
        record("kill-resume", values, f"python benchmarks/kill_resume.py --kills {given.kills} --record")
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    main()
