"""The main job on real handwritten digits (1,797 pictures that scikit-learn carries, UCI optical digits, CC BY 4.0).

A leak, a wrong label and a broken file are planted and must be found; training is killed in the middle and must resume to
the same weights; the sealed test part is opened once; the model is exported and compared with itself.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from opsin.analyze.check import check
from opsin.data.formats import load_data
from opsin.demo.story import Say, Story, fresh, killed_and_resumed
from opsin.recipe import Layer
from opsin.run import Run, start
from opsin.run.evaluating import evaluate_run
from opsin.run.exporting import export_run
from opsin.run.predicting import predict_files
from opsin.run.reporting import report_run
from opsin.seeding import numpy_generator

NAMES = ("classify",)
SIDE = 16
SETTINGS = {
    "model": {"name": "smallnet", "kwargs": {"stem": 16, "widths": [24, 48, 96]}},
    "optimizer": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.02},
    "schedule": {"name": "one-cycle"},
    "task": {"augment": {"rotate": 10.0, "scale": 0.1, "shift": 0.0625}, "label_smoothing": 0.05},
    "run": {"epochs": 24, "batch_size": 64, "checkpoint_seconds": 0.5, "validate_every": 4},
}
FAULTS = {
    "leak": "exact-duplicate-across-splits",
    "wrong label": "suspect-label",
    "broken file": "unreadable-file",
}


def classify(folder: Path, say: Say) -> Story:
    """Play the demonstration in a folder of its own, made anew.

    Args:
        folder: is emptied if an earlier demonstration made it.
        say: called with lines for people.

    Raises:
        ConfigError: if the folder exists and is not from a demonstration.
    """
    started, story = time.monotonic(), Story(folder)
    fresh(folder)
    say(f"Writing 1,797 real handwritten digits to {folder / 'digits'}, and a copy with three planted faults.")
    faulty, planted = write_digits(folder)
    story.found = _doctor(faulty, planted, say)
    say("Training on the sound copy, once without interruption and once killed in the middle.")
    whole = _train(folder, "whole")
    story.resumed_identically = killed_and_resumed(folder, whole, say)
    say("Opening the sealed test part, once.")
    story.evaluation = evaluate_run(whole)
    _say_metrics(story.evaluation, say)
    story.report = str(report_run(whole))
    say(f"Report: {story.report}")
    exported = export_run(whole, "onnx")[0]
    story.export = exported.to_dict()
    parity = exported.parity
    pictures = sum(parity.compared.values())
    compared = f"compared on {pictures} inputs, largest relative difference {parity.max_relative:.1e}"
    say(f"Exported to {exported.folder}: {compared}, {len(parity.flipped)} decisions flipped.")
    some = [str(p) for p in sorted((folder / "digits" / "test").rglob("*.png"))[::90]]
    found = predict_files(whole.bundle, some, save=folder / "predicted")
    story.predictions = found.to_dict()["predictions"]
    for one in story.predictions:
        say(f"  {Path(one['file']).name}: {one['class']}  ({one['score']:.1%})")
    story.seconds = time.monotonic() - started
    say(f"Done in {story.seconds:.0f} s. Now your own pictures, one folder per class:")
    say("  opsin data check MY_FOLDER      then      opsin train classify --data MY_FOLDER")
    return story


def write_digits(folder: Path) -> tuple[Path, dict[str, str]]:
    """Write `digits/` and `digits-with-faults/`; returns the latter and the name of each planted file."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = numpy_generator(0, "digits").permutation(len(data.target))
    cuts = {"train": order[:1150], "val": order[1150:1350], "test": order[1350:]}
    places: dict[int, Path] = {}
    for part, chosen in cuts.items():
        for i in chosen.tolist():
            place = Path(part) / str(data.target[i]) / f"{i:04d}.png"
            (folder / "digits" / place).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.round(data.images[i] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / "digits" / place)
            places[i] = place
    faulty = folder / "digits-with-faults"
    shutil.copytree(folder / "digits", faulty)
    leaked = faulty / places[int(cuts["test"][0])]
    copy = faulty / "train" / leaked.parent.name / "holiday.png"
    shutil.copy(leaked, copy)
    victim = faulty / places[int(cuts["train"][0])]
    wrong = faulty / "train" / str((int(victim.parent.name) + 5) % 10) / victim.name
    shutil.move(victim, wrong)
    broken = faulty / places[int(cuts["train"][1])]
    broken.write_bytes(broken.read_bytes()[:90])
    planted = {"leak": copy, "wrong label": wrong, "broken file": broken}
    return faulty, {name: path.relative_to(faulty).as_posix() for name, path in planted.items()}


def _doctor(faulty: Path, planted: dict[str, str], say: Say) -> dict[str, bool]:
    findings = check(load_data(faulty))
    found = {}
    for fault, code in FAULTS.items():
        found[fault] = code in findings and planted[fault] in findings[code].ids
        say(
            f"  {'found' if found[fault] else 'MISSED'}: {fault} ({planted[fault]})"
            + (f" - {findings[code].text}" if found[fault] else "")
        )
    return found


def _train(folder: Path, name: str) -> Run:
    layer = Layer("demo", {**SETTINGS, "data": {"path": str(folder / "digits")}})
    return start("classify", [layer], out=folder / name)


def _say_metrics(evaluation: dict[str, Any], say: Say) -> None:
    one = evaluation["metrics"]["accuracy"]
    say(
        f"  accuracy {one['value']:.4f} on {evaluation['samples']} unseen digits (95 % interval {one['low']:.4f} to {one['high']:.4f})"
    )
    for method, other in evaluation["baselines"].items():
        say(f"  {method}: {other['metrics']['accuracy']['value']:.4f}")
