"""Runs in a line each; nothing but their JSON files is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opsin.run.folder import RunFolder, all_runs


def listing(root: Path) -> list[dict[str, Any]]:
    """Runs below a folder, oldest first."""
    return [_line(run) for run in all_runs(root)]


def _line(run: RunFolder) -> dict[str, Any]:
    recipe, state, test = _json(run, "recipe.json"), _json(run, "run.json"), _json(run, "evaluation-test.json")
    metric = test.get("monitor") or next(iter(state.get("validation", {})), None)
    return {
        "run": str(run.path),
        "status": state.get("status", "new"),
        "task": recipe.get("task_name"),
        "data": recipe.get("data", {}).get("path"),
        "model": state.get("model", {}).get("name"),
        "epochs": state.get("effective", {}).get("epochs"),
        "metric": metric,
        "val": state.get("validation", {}).get(metric, {}).get("value"),
        "test": test.get("metrics", {}).get(metric, {}).get("value"),
        "seconds": state.get("seconds"),
        "date": _json(run, "environment.json").get("date"),
    }


def _json(run: RunFolder, name: str) -> dict[str, Any]:
    path = run.path / name
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {"status": "damaged"}
    return found
