"""Folds asked for from Python are set in every run, as the command line does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opsin.recipe import Layer
from opsin.run import repeating


def test_every_run_of_folds_knows_how_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeating, "resume_repeated", lambda folder, **_: folder)
    folder: Any = repeating.train_repeated(
        "classify", [Layer("test", {"data": {"path": "x"}})], out=tmp_path / "runs", folds=4
    )
    record = json.loads((folder.path / "repeat.json").read_text())
    assert {"data": {"split": {"folds": 4}}} in [layer["values"] for layer in record["layers"]]
    assert record["values"] == [0, 1, 2, 3]
