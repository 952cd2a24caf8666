"""The models that come with the package: small, licensed, and at work seconds after installation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import opsin
from opsin.cli import main
from opsin.errors import ConfigError
from opsin.models.shipped import copy_to, folder_of, shipped


@pytest.mark.parametrize("name", shipped())
def test_it_is_small_and_says_what_it_may_be_used_for(name: str) -> None:
    folder = folder_of(name)
    assert folder is not None
    assert (folder / "weights.safetensors").stat().st_size < 1_000_000
    record = json.loads((folder / "bundle.json").read_text())
    assert record["license"] == "MIT"
    assert "Permission is hereby granted" in (folder / "README.md").read_text()
    assert opsin.load(name).task_name == record["task"]["name"]


def test_cells_are_found() -> None:
    folder = folder_of("blood-cells")
    assert folder is not None
    results = opsin.load("blood-cells").predict(sorted((folder / "pictures" / "JPEGImages").iterdir()))
    assert [result.size for result in results] == [(480, 640)] * 3
    assert all(result.counts().get("WBC") == 1 and result.counts()["RBC"] >= 5 for result in results)


def test_it_is_judged_on_its_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    copied = copy_to("blood-cells", tmp_path / "cells")
    assert main(["evaluate", "blood-cells", "--data", str(copied / "pictures"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 3
    assert found["metrics"]["map50"]["value"] > 0.8
    assert (
        main(
            [
                "predict",
                str(copied),
                str(copied / "pictures" / "JPEGImages"),
                "--save",
                str(tmp_path / "drawn"),
                "--json",
            ]
        )
        == 0
    )
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 3


def test_a_bundle_is_judged_on_data_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "blood-cells"]) == 2
    assert "--data" in capsys.readouterr().err


def test_copies_do_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "get", "blood-cells", "--to", str(tmp_path / "cells")]) == 0
    with pytest.raises(ConfigError, match="exists already"):
        copy_to("blood-cells", tmp_path / "cells")
    assert main(["models", "get", "blood-cells"]) == 2
    with pytest.raises(ConfigError, match="blood-cells"):
        copy_to("red-cells", tmp_path / "other")
