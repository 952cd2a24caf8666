"""Killed without warning and resumed: the same weights and the same log as without the kill."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import kill_resume


@pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_bit_identical(tmp_path: Path, workers: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    given = kill_resume.settings(kill_resume.write_pictures(tmp_path / "digits", 120), workers)
    kill_resume.trial(tmp_path / "whole", given, [], spawn)
    folder = tmp_path / "killed"
    process = spawn.Process(target=kill_resume.train, args=(folder, given))
    process.start()
    while process.is_alive() and len(list(folder.glob("checkpoints/step-*"))) < 2:
        process.join(0.01)
    assert process.is_alive(), "training ended before it could be killed"
    process.kill()
    process.join()
    kill_resume.trial(folder, given, [], spawn)
    assert kill_resume.result(folder) == kill_resume.result(tmp_path / "whole")
