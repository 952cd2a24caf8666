"""Handwritten digits found on pages: data with known boxes, a detector trained from nothing, judged, explained, applied.

Three faults are planted in the annotations and must be found; training is killed in the middle and must resume to the same
weights; the sealed test part is opened once.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from PIL import Image

from opsin.analyze.check import check
from opsin.data.formats import load_data
from opsin.demo.pages import write_pages
from opsin.demo.story import Say, Story, fresh, killed_and_resumed
from opsin.explain import explain
from opsin.recipe import Layer
from opsin.run import Run, start
from opsin.run.evaluating import evaluate_run
from opsin.run.predicting import predict_files
from opsin.run.reporting import report_run

NAMES = ("detect",)
SETTINGS: dict[str, Any] = {
    "model": {"name": "yolox_pico", "kwargs": {"width": 0.1875, "activation": "relu", "box_loss": "giou"}},
    "optimizer": {"lr": 3e-3, "betas": [0.9, 0.99], "ema": 0.998},
    "schedule": {"warmup_epochs": 2},
    "task": {
        "augment_preset": "plain",
        "augment": {"zoom": [0.85, 1.2], "shift": 1.0, "brightness": 0.15, "contrast": 0.15},
    },
    "run": {"epochs": 40, "batch_size": 16, "checkpoint_seconds": 2.0, "validate_every": 5},
}
SHORT_EPOCHS = 1  # of the training that is killed and resumed
FAULTS = {
    "a box that reaches out of its page": "box-outside-picture",
    "the same box twice": "doubled-box",
    "a box of another page": "box-without-picture",
}


def detect(folder: Path, say: Say) -> Story:
    """Play the demonstration in a folder of its own, made anew.

    Args:
        folder: is emptied if an earlier demonstration made it.
        say: called with lines for people.

    Raises:
        ConfigError: if the folder exists and is not from a demonstration.
    """
    started, story = time.monotonic(), Story(folder)
    fresh(folder)
    pages = write_pages(folder / "pages")
    say(f"Pages with real handwritten digits, boxes known, in {pages}; and a copy with three planted faults.")
    story.found = _doctor(_spoiled(pages, folder / "pages-with-faults"), say)
    say("Training a small detector from nothing.")
    whole = _train(folder, "whole", SETTINGS["run"]["epochs"])
    say("Training again for a moment, once without interruption and once killed in the middle.")
    story.resumed_identically = killed_and_resumed(folder, _train(folder, "short", SHORT_EPOCHS), say, least=2)
    say("Opening the sealed test part, once.")
    story.evaluation = evaluate_run(whole)
    for name in ("map50", "map"):
        one = story.evaluation["metrics"][name]
        say(f"  {name} {one['value']:.4f} (95 % interval {one['low']:.4f} to {one['high']:.4f})")
    story.report = str(report_run(whole))
    say(f"Report: {story.report}")
    some = [str(path) for path in sorted((pages / "test").glob("*.png"))[:6]]
    found = predict_files(whole.bundle, some, save=folder / "predicted", crops=folder / "crops")
    story.predictions = found.to_dict()["predictions"]
    for one in story.predictions:
        say(f"  {Path(one['file']).name}: {' '.join(f'{n}x{k}' for k, n in one['counts'].items()) or 'nothing found'}")
    _explained(whole, some, folder / "explained.png", say)
    story.seconds = time.monotonic() - started
    say(f"Done in {story.seconds:.0f} s. Drawn pages: {folder / 'predicted'}. Now your own pictures with boxes:")
    say("  opsin data check MY_FOLDER      then      opsin train detect --data MY_FOLDER")
    return story


def _train(folder: Path, name: str, epochs: int) -> Run:
    run = {**SETTINGS["run"], "epochs": epochs}
    layer = Layer("demo", {**SETTINGS, "run": run, "data": {"path": str(folder / "pages")}})
    return start("detect", [layer], out=folder / name)


def _spoiled(pages: Path, to: Path) -> Path:
    shutil.copytree(pages, to)
    path = to / "annotations" / "instances_train.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    boxes = record["annotations"]
    boxes[0]["bbox"][0] = -boxes[0]["bbox"][2] / 2
    boxes.append({**boxes[5], "id": len(boxes) + 1})
    boxes[9]["bbox"][0] = 500
    path.write_text(json.dumps(record), encoding="utf-8")
    return to


def _doctor(faulty: Path, say: Say) -> dict[str, bool]:
    findings = check(load_data(faulty, skip_bad=True))
    found = {}
    for fault, code in FAULTS.items():
        found[fault] = code in findings
        say(
            f"  {'found' if found[fault] else 'MISSED'}: {fault}"
            + (f" - {findings[code].text}" if found[fault] else "")
        )
    return found


def _explained(run: Run, pictures: list[str], to: Path, say: Say) -> None:
    """Where the surest digit of the first page with one comes from."""
    for name in pictures:
        if len(run.bundle.predict(name)):
            one = explain(run.bundle, name, "occlusion", patch=16)
            with Image.open(name) as image:
                one.draw(image).save(to)
            say(f"Why '{one.class_name}' is seen on {Path(name).name}: {to}")
            return
