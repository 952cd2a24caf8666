"""The demonstration does what it promises, from the command line, with sockets blocked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opsin.cli import main


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    assert main(["demo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["faults_found"] == {"leak": True, "wrong label": True, "broken file": True}
    assert found["resumed_identically"]
    assert found["metrics"]["accuracy"]["value"] >= 0.98
    assert found["metrics"]["accuracy"]["low"] < found["metrics"]["accuracy"]["value"]
    assert {"majority", "logistic regression", "1-nearest neighbor"} == set(found["baselines"])
    assert Path(found["report"]).stat().st_size > 10_000
    assert found["export"]["passed"]
    assert found["predictions"]
    assert main(["demo", "--out", str(tmp_path / "other"), "nothing"]) == 2


def test_demo_keeps_its_hands_off_other_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    assert main(["demo", "--out", str(tmp_path / "mine")]) == 2
    assert (tmp_path / "mine" / "file").read_text() == "precious"
