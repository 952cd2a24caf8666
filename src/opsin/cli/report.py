"""`opsin report`: one page about a run, to read, to print, to send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opsin.cli._frame import Json, emit

NAMES = ("report",)
HELP = "Write one page about a run, to read and to send."
ORDER = 60


def command(
    run: Annotated[str, typer.Argument(help="Folder of the run, or last.")],
    out: Annotated[Path | None, typer.Option(help="HTML file; by default report.html in the run.")] = None,
    json: Json = False,
) -> None:
    """Write one page about a run: data, model, numbers, errors as pictures.

    The page is one HTML file that needs no network; the same words lie beside it as Markdown. It can be written at any
    time, before training has ended and while the test part is still sealed.
    """
    from opsin.run import Run
    from opsin.run.reporting import report_run

    opened = Run(run)
    path = report_run(opened, out)
    emit(
        {"run": str(opened.path), "report": path, "markdown": path.with_suffix(".md"), "bytes": path.stat().st_size},
        json,
        lambda: str(path),
    )
