"""`opsin demo`: the main job on built-in data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opsin.cli._frame import Json, console, emit

NAMES = ("demo",)
HELP = "See the main job on built-in data, in about a minute."
ORDER = 10


def command(
    task: Annotated[str, typer.Argument(help="Which demonstration.")] = "classify",
    out: Annotated[str, typer.Option(help="Folder for it; an earlier demonstration there is replaced.")] = "opsin-demo",
    json: Json = False,
) -> int:
    """See the main job on built-in data: find faults, train, be killed, resume, judge, report, export, predict."""
    from opsin.demo import demos

    def say(line: str) -> None:
        console().print(line, markup=False)

    story = demos.get(task)(Path(out), say)
    emit(story.to_dict(), json, lambda: None)
    return 0 if story.worked else 1
