"""Store a measured number under `results/`, with everything it depends on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opsin.run.folder import environment

RESULTS = Path(__file__).resolve().parent.parent / "results"
STARTED = environment()  # the code that is measured is the code of the start, not what lies there at the end


def record(name: str, values: dict[str, Any], command: str) -> Path:
    """Write `results/NAME.json`: the values, the command, commit, hardware, versions and date."""
    made = {**environment(), "commit": STARTED["commit"]}
    del made["command"]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(
        json.dumps({"name": name, "command": command, **values, "environment": made}, indent=2) + "\n", encoding="utf-8"
    )
    return path
