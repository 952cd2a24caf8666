"""`opsin runs`: what has been trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from opsin.cli._frame import Json, emit, group

NAMES = ("runs",)
HELP = "List the runs below a folder."
ORDER = 75
app = group(HELP)


@app.callback()
def _group() -> None:
    """List the runs below a folder."""


@app.command("list")
def list_runs(
    root: Annotated[str, typer.Argument(help="Folder that holds runs.")] = "runs", json: Json = False
) -> None:
    """List runs, oldest first: status, data, model, metrics, looks at the test part."""
    from opsin.run.listing import listing

    found = listing(Path(root))
    emit({"runs": found}, json, lambda: _table(found, root))


def _table(found: list[dict[str, Any]], root: str) -> Any:
    from rich.table import Table

    if not found:
        return f"No runs below {root} yet. Train one: opsin train classify --data FOLDER"
    table = Table()
    for heading in ("run", "status", "task", "data", "model", "epochs", "metric", "val", "test"):
        table.add_column(heading, justify="right" if heading in ("epochs", "val", "test") else "left")
    for one in found:
        numbers = ["" if one[part] is None else f"{one[part]:.4f}" for part in ("val", "test")]
        cells = [one[key] for key in ("run", "status", "task", "data", "model", "epochs", "metric")]
        table.add_row(*("" if cell is None else str(cell) for cell in cells), *numbers)
    return table
