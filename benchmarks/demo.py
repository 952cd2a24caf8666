"""A demonstration as a person runs it, in a process of its own: time, faults found, its metric beside the baselines.

python benchmarks/demo.py [classify|detect] [--record]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recorded import record

BARS = {"classify": ("accuracy", 0.985, 90), "detect": ("map50", 0.98, 360)}
"""Task to metric, its bar, and seconds: of all of classify, of the training alone of detect."""


def main() -> None:
    """Run `python -m opsin demo --json`, check it against the bars, store."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("task", nargs="?", default="classify", choices=list(BARS))
    words.add_argument("--record", action="store_true")
    given = words.parse_args()
    metric, bar, bar_seconds = BARS[given.task]
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "opsin", "demo", given.task, "--json", "--out", str(Path(folder) / "demo")],
            stdout=subprocess.PIPE,
            check=False,  # what did not happen as promised stands in the result
            env={**os.environ, "OPSIN_HOME": str(Path(folder) / "home")},
        )
        wall = time.monotonic() - started
        training = json.loads((Path(folder) / "demo" / "whole" / "run.json").read_text())["seconds"]
    story = json.loads(done.stdout)
    value = story["metrics"][metric]
    identical, exported = story["resumed_identically"], story["export"].get("passed")
    all_found = all(story["faults_found"].values()) and len(story["faults_found"]) == 3
    result = {
        "demo": given.task,
        metric: value,
        "bar": bar,
        "seconds": wall,
        "training_seconds": training,
        "bar_seconds": bar_seconds,
        "samples": story["samples"],
        "baselines": {name: one[metric] for name, one in story["baselines"].items()},
        "faults_found": story["faults_found"],
        "resumed_identically": identical,
        "export_verified": exported,
        "met": value["value"] >= bar
        and (wall if given.task == "classify" else training) <= bar_seconds
        and all_found
        and identical
        and exported is not False,
    }
    print(json.dumps(result, indent=2))
    if given.record:
        if given.task == "classify":
            record("demo", result, "python benchmarks/demo.py --record")
        else:
            record(f"demo-{given.task}", result, f"python benchmarks/demo.py {given.task} --record")


if __name__ == "__main__":
    main()
