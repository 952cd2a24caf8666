"""The demonstration as a person runs it, in a process of its own: time, faults found, accuracy beside the baselines.

python benchmarks/demo.py [--record]
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

BAR, BAR_SECONDS = 0.985, 90


def main() -> None:
    """Run `python -m opsin demo --json`, check it against the bars, store."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--record", action="store_true")
    given = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "opsin", "demo", "--json", "--out", str(Path(folder) / "demo")],
            stdout=subprocess.PIPE,
            check=True,
            env={**os.environ, "OPSIN_HOME": str(Path(folder) / "home")},
        )
        wall = time.monotonic() - started
    story = json.loads(done.stdout)
    accuracy = story["metrics"]["accuracy"]
    identical, exported = story["resumed_identically"], story["export"]["passed"]
    all_found = all(story["faults_found"].values()) and len(story["faults_found"]) == 3
    result = {
        "demo": "classify",
        "accuracy": accuracy,
        "bar": BAR,
        "seconds": wall,
        "bar_seconds": BAR_SECONDS,
        "samples": story["samples"],
        "baselines": {name: one["accuracy"] for name, one in story["baselines"].items()},
        "faults_found": story["faults_found"],
        "resumed_identically": identical,
        "export_verified": exported,
        "met": accuracy["value"] >= BAR and wall <= BAR_SECONDS and all_found and identical and exported,
    }
    print(json.dumps(result, indent=2))
    if given.record:
        record("demo", result, "python benchmarks/demo.py --record")


if __name__ == "__main__":
    main()
