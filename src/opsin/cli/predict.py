"""`opsin predict`: what a model says of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from opsin.cli._frame import Json, console, emit

NAMES = ("predict",)
HELP = "Say what a model sees in pictures, folders or archives."
ORDER = 50
SHOWN = 20


def command(
    run: Annotated[str, typer.Argument(help="A run, a bundle, or last.")],
    inputs: Annotated[list[str], typer.Argument(help="Pictures, folders or archives.")],
    save: Annotated[str | None, typer.Option(help="Draw the results into this folder.")] = None,
    sort_into: Annotated[str | None, typer.Option(help="Copy pictures into one folder per class here.")] = None,
    review_below: Annotated[
        float | None, typer.Option(min=0, max=1, help="List pictures whose score is lower, to look at again.")
    ] = None,
    table: Annotated[str | None, typer.Option(help="Where to write the table (CSV).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    json: Json = False,
) -> int:
    """Say what a model sees in pictures, folders or archives.

    For a folder a table predictions.csv is always written. Pictures that cannot be read are listed, and the others
    predicted.
    """
    from opsin.engine.precision import choose_device
    from opsin.run import load
    from opsin.run.predicting import predict_files

    bundle = load(run)
    found = predict_files(
        bundle,
        inputs,
        runner=bundle.runner(bundle.info.get("precision", "fp32"), choose_device(device)),
        save=None if save is None else Path(save),
        sort_into=None if sort_into is None else Path(sort_into),
        table=None if table is None else Path(table),
        review_below=review_below,
    )
    for name, reason in found.failed.items():
        console().print(f"Not read: {reason if name in reason else f'{name}: {reason}'}", style="yellow")
    for words, count in found.converted.items():
        console().print(f"{count} pictures were converted: {words}.", style="yellow")
    emit(found.to_dict(), json, lambda: _table(found))
    return 0 if found.results else 2


def _table(found: Any) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("file", overflow="fold")
    heads = found.results[0][1].columns() if found.results else {}
    shown = [name for name in heads if not name.endswith("top5")]
    for name in shown:
        table.add_column(name, justify="right" if name.endswith("score") else "left")
    for name, result, _ in found.results[:SHOWN]:
        cells = result.columns()
        table.add_row(name, *(cells[key] for key in shown))
    parts: list[Any] = [table]
    if len(found.results) > SHOWN:
        parts.append(Text(f"... and {len(found.results) - SHOWN} more"))
    if found.review:
        parts.append(
            Text(
                f"{len(found.review)} to look at again: {', '.join(found.review[:5])}{' ...' if len(found.review) > 5 else ''}"
            )
        )
    if found.table is not None:
        parts.append(Text(f"All of them: {found.table}"))
    return Group(*parts)
