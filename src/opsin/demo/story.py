"""What demonstrations share: their folder, what they tell, and a training that is killed and resumed."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opsin.errors import ConfigError, OpsinError
from opsin.run import Run

MARK = ".opsin-demo"

Say = Callable[[str], None]


@dataclass
class Story:
    """What the demonstration did and found."""

    folder: Path
    seconds: float = 0.0
    found: dict[str, bool] = field(default_factory=dict)
    resumed_identically: bool = False
    evaluation: dict[str, Any] = field(default_factory=dict)
    report: str = ""
    export: dict[str, Any] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def worked(self) -> bool:
        """Whether everything happened that was promised."""
        return all(self.found.values()) and self.resumed_identically and self.export.get("passed", True)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "folder": str(self.folder),
            "seconds": self.seconds,
            "faults_found": self.found,
            "resumed_identically": self.resumed_identically,
            "metrics": self.evaluation.get("metrics", {}),
            "baselines": {name: one["metrics"] for name, one in self.evaluation.get("baselines", {}).items()},
            "samples": self.evaluation.get("samples"),
            "report": self.report,
            "export": self.export,
            "predictions": self.predictions,
            "worked": self.worked,
        }


def fresh(folder: Path) -> None:
    """Make the folder of a demonstration anew.

    Raises:
        ConfigError: if the folder exists and is not from a demonstration.
    """
    if folder.exists():
        if not (folder / MARK).exists():
            raise ConfigError(
                f"{folder} exists and was not made by opsin demo. Choose another: opsin demo --out FOLDER"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).write_text("Made by opsin demo; the next one empties this folder.\n", encoding="utf-8")


def killed_and_resumed(folder: Path, whole: Run, say: Say, least: int = 40) -> bool:
    """Train again in a process that is killed without warning; resume; compare the weights bit by bit.

    It is killed at the first checkpoint after step `least`.
    """
    (folder / "recipe-killed.json").write_bytes(whole.folder.recipe.read_bytes())
    command = [
        sys.executable,
        "-m",
        "opsin",
        "train",
        whole.recipe.task_name,
        "--recipe",
        str(folder / "recipe-killed.json"),
        "--out",
        str(folder / "killed"),
        "--quiet",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
    try:
        step = next(_steps(folder / "killed" / "checkpoints", process, least), None)
    finally:
        if os.name == "nt":
            process.kill()
        else:
            process.send_signal(signal.SIGKILL)
        process.wait()
    if step is None:
        raise OpsinError(
            "The training that was to be killed ended by itself. Run the demo again; if it stays so, report it."
        )
    resumed = Run(folder / "killed").resume(quiet=True)
    same = _checksum(resumed) == _checksum(whole)
    say(
        f"Killed after step {step} of {whole.state['steps']}, resumed: weights {'identical to the last bit' if same else 'DIFFER'}."
    )
    return same


def _steps(checkpoints: Path, process: subprocess.Popen[bytes], least: int) -> Iterator[int]:
    """The step of a checkpoint that lies inside the run, as soon as there is one."""
    while process.poll() is None:
        for path in checkpoints.glob("step-*"):
            step = int(path.name.removeprefix("step-"))
            if step > least:
                yield step
        time.sleep(0.02)


def _checksum(run: Run) -> str:
    return hashlib.sha256((run.folder.bundle / "weights.safetensors").read_bytes()).hexdigest()
