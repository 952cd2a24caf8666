"""`opsin predict`: what a model says of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from opsin.cli._frame import Json, console, emit
from opsin.errors import ConfigError

NAMES = ("predict",)
HELP = "Say what a model sees in pictures, folders, archives or videos."
ORDER = 50
SHOWN = 20


def command(
    run: Annotated[str, typer.Argument(help="A run, a bundle, last, or fetched weights, e.g. resnet18.")],
    inputs: Annotated[list[str], typer.Argument(help="Pictures, folders, archives, videos, or a camera (camera:0).")],
    save: Annotated[
        str | None, typer.Option(help="Draw the results into this folder; a video becomes a video.")
    ] = None,
    sort_into: Annotated[str | None, typer.Option(help="Copy pictures into one folder per class here.")] = None,
    review_below: Annotated[
        float | None, typer.Option(min=0, max=1, help="List pictures whose score is lower, to look at again.")
    ] = None,
    crops: Annotated[
        str | None, typer.Option(help="Cut every object found out, into one folder per class here.")
    ] = None,
    score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Show objects from this score on, not from the model's own.")
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(min=32, help="See large pictures in overlapping tiles of so many pixels (and as a whole)."),
    ] = None,
    tile_overlap: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of a tile that the next one repeats.")
    ] = 0.2,
    every: Annotated[int, typer.Option(min=1, help="Of a video, every n-th frame.")] = 1,
    frames: Annotated[int | None, typer.Option(min=1, help="Of a video or camera, so many frames.")] = None,
    coco: Annotated[str | None, typer.Option(help="Write all boxes as a COCO results file here.")] = None,
    table: Annotated[str | None, typer.Option(help="Where to write the table (CSV).")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Show this many classes per picture.")] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(help="Another model for the same pictures (repeat the flag); shows both answers."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    json: Json = False,
) -> int:
    """Say what a model sees in pictures, folders, archives, videos or a camera.

    For a folder or a video a table predictions.csv is always written. Pictures that cannot be read are listed, and the others
    predicted.

    With --beside two models or more see the same pictures, each with its own preprocessing; where they disagree is
    marked, with ! where two of them are sure (0.8 and more) of different classes.
    """
    if beside:
        others = (save, sort_into, review_below, table, crops, score, tile, frames, coco)
        if every != 1 or any(one is not None for one in others):
            raise ConfigError(
                "--beside shows answers side by side; leave out --save, --sort-into, --crops, --review-below, --score, "
                "--tile, --every, --frames, --coco and --table."
            )
        return _beside([run, *beside], inputs, top or 3, device, json)
    from opsin.engine.precision import choose_device
    from opsin.run import load
    from opsin.run.predicting import predict_files
    from opsin.run.tiling import Tiling

    bundle = load(run)
    if top is not None and bundle.task.model_facts.get("answer", "classified") != "classified":
        raise ConfigError(f"--top is for classifiers; the task of this model is {bundle.task_name}.")
    found = predict_files(
        bundle,
        inputs,
        runner=bundle.runner(bundle.info.get("precision", "fp32"), choose_device(device)),
        save=None if save is None else Path(save),
        sort_into=None if sort_into is None else Path(sort_into),
        crops=None if crops is None else Path(crops),
        score=score,
        tiling=None if tile is None else Tiling((tile, tile), tile_overlap),
        every=every,
        frames=frames,
        coco=None if coco is None else Path(coco),
        table=None if table is None else Path(table),
        review_below=review_below,
    )
    for name, reason in found.failed.items():
        console().print(f"Not read: {reason if name in reason else f'{name}: {reason}'}", style="yellow")
    for words, count in found.converted.items():
        console().print(f"{count} pictures were converted: {words}.", style="yellow")
    values = found.to_dict()
    if top is not None:
        for one, (_, result, _) in zip(values["predictions"], found.results):
            if hasattr(result, "top"):
                one["top"] = [{"class": name, "score": round(score, 6)} for name, score in result.top(top)]
    emit(values, json, lambda: _table(found, top))
    return 0 if found.results else 2


def _beside(references: list[str], inputs: list[str], top: int, device: str, json: bool) -> int:
    from opsin.engine.precision import choose_device
    from opsin.run import load
    from opsin.run.beside import side_by_side

    if len(set(references)) < len(references):
        raise ConfigError("--beside names a model that is there already; give each model once.")
    bundles = {reference: load(reference) for reference in references}
    found = side_by_side(bundles, inputs, top=top, device=choose_device(device))
    for name, reason in found.failed.items():
        console().print(f"Not read: {reason if name in reason else f'{name}: {reason}'}", style="yellow")
    emit(found.to_dict(), json, lambda: _columns(references, found))
    return 0 if found.pictures else 2


def _columns(references: list[str], found: Any) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in ("file", *references, ""):
        table.add_column(name, overflow="fold")
    for one in found.pictures[:SHOWN]:
        cells = ["\n".join(f"{label} {score:.3f}" for label, score in one.answers[name]) for name in references]
        mark = "" if one.agree else "differ!" if one.confident_disagreement else "differ"
        table.add_row(one.file, *cells, mark)
    counts = found.to_dict()
    said = f"{counts['disagreements']} of {len(found.pictures)} pictures: the models differ"
    sure = f"; {counts['confident_disagreements']} with two models sure of different classes (at least one is wrong)"
    return Group(table, Text(said + sure + "."))


def _table(found: Any, top: int | None = None) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("file", overflow="fold")
    heads = found.results[0][1].columns() if found.results else {}
    shown = [name for name in heads if not name.endswith(("top5", "boxes"))]
    for name in shown:
        table.add_column(name, justify="right" if name.endswith("score") else "left")
    for name, result, _ in found.results[:SHOWN]:
        cells = result.columns()
        if top is not None and hasattr(result, "top") and "class" in cells:
            best = result.top(top)
            cells |= {"class": "\n".join(n for n, _ in best), "score": "\n".join(f"{s:.6f}" for _, s in best)}
        table.add_row(name, *(str(cells[key]) for key in shown))
    parts: list[Any] = [table] if found.results else []
    if len(found.results) > SHOWN:
        parts.append(Text(f"... and {len(found.results) - SHOWN} more"))
    if found.review:
        parts.append(
            Text(
                f"{len(found.review)} to look at again: {', '.join(found.review[:5])}{' ...' if len(found.review) > 5 else ''}"
            )
        )
    for source, drawn in found.videos.items():
        parts.append(Text(f"{source}: drawn in {drawn}"))
    if found.crops:
        parts.append(Text(f"{found.crops} objects cut out."))
    if found.results:
        parts.append(Text(f"{len(found.results) / max(found.seconds, 1e-9):.1f} pictures a second, reading included."))
    if found.table is not None:
        parts.append(Text(f"All of them: {found.table}"))
    return Group(*parts)
