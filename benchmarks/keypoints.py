"""Measure keypoint models: landmarks of faces by leaving folds out, and persons of a few pictures learned by heart.

python benchmarks/keypoints.py landmarks --data face-landmarks [--box hull]
python benchmarks/keypoints.py overfit --data tiny-coco
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from recorded import record

from opsin.recipe import Layer
from opsin.run import start
from opsin.run.evaluating import evaluate_run
from opsin.run.folder import RunFolder
from opsin.run.repeating import evaluate_repeated, train_repeated

FOLDS = 5
AP_BAR = 0.95
LANDMARKS: dict[str, Any] = {
    "model": {
        "name": "heatmap_net",
        "kwargs": {"backbone": "resnet18", "backbone_kwargs": {"width": 32}, "channels": 128},
    },
    "run": {"epochs": 80, "batch_size": 14, "validate_every": 10},
}
OVERFIT: dict[str, Any] = {
    "model": {
        "name": "heatmap_net",
        "kwargs": {"backbone": "resnet18", "backbone_kwargs": {"width": 32}, "channels": 128},
    },
    "run": {"epochs": 150, "batch_size": 16, "validate_every": 150},  # what is kept is what was learned by heart
    "task": {"augment_preset": "plain", "image_size": [128, 96]},
    "optimizer": {"weight_decay": 0.0, "ema": 0.95},
}


def landmarks(data: str, box: str, out: Path) -> None:
    """NME, divided by the distance of the outer corners of the eyes, of faces that the model has not seen."""
    columns = {"columns": {"box": "hull"}} if box == "hull" else {}
    layer = Layer("benchmark", {**LANDMARKS, "data": {"path": data, **columns}})
    runs = train_repeated("keypoints", [layer], out=out, folds=FOLDS)
    found = evaluate_repeated(RunFolder(out))
    flag = " --box hull" if box == "hull" else ""
    record(
        f"keypoints-landmarks-{box}",
        {
            "metric": "nme",
            "divided_by": "distance of the outer corners of the eyes",
            "box": "of the labeled points" if box == "hull" else "the whole picture",
            "folds": FOLDS,
            "metrics": found["metrics"],
            "train": [run.state["train"]["nme"] for run in runs.runs],
            "minutes": [run.state["seconds"] / 60 for run in runs.runs],
            "parameters": runs.runs[0].state["parameters"],
        },
        f"python benchmarks/keypoints.py landmarks --data {Path(data).name}{flag}",
    )
    print(f"NME {found['metrics']['nme']}")


def overfit(data: str, out: Path) -> None:
    """OKS-AP of persons on the very pictures that were learned, which has to reach 0.95."""
    layer = Layer("benchmark", {**OVERFIT, "data": {"path": data, "columns": {"annotations": "person_keypoints"}}})
    run = start("keypoints", [layer], out=out)
    found = evaluate_run(run, "train")
    value = found["metrics"]["oks_map"]["value"]
    record(
        "keypoints-overfit",
        {
            "metric": "oks_map",
            "bar": AP_BAR,
            "met": value >= AP_BAR,
            "objects": found["samples"],
            "metrics": found["metrics"],
            "minutes": run.state["seconds"] / 60,
            "parameters": run.state["parameters"],
        },
        f"python benchmarks/keypoints.py overfit --data {Path(data).name}",
    )
    print(f"OKS-AP {value:.4f} of {found['samples']} persons (bar {AP_BAR})")


def main() -> None:
    """Read the command line and measure."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("what", choices=("landmarks", "overfit"))
    words.add_argument("--data", required=True)
    words.add_argument("--box", choices=("whole", "hull"), default="whole")
    words.add_argument("--out", help="keep the runs here")
    given = words.parse_args()
    out = Path(given.out or Path(tempfile.mkdtemp(prefix="opsin-keypoints-")) / "run")
    if given.what == "landmarks":
        landmarks(given.data, given.box, out)
    else:
        overfit(given.data, out)


if __name__ == "__main__":
    main()
