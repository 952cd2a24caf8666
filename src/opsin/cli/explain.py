"""`opsin explain`: which parts of a picture an answer comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from opsin.cli._frame import Json, console, emit

NAMES = ("explain",)
HELP = "Show which parts of a picture an answer comes from."
ORDER = 55
SHOWN = 20


def command(
    run: Annotated[str, typer.Argument(help="A run, a bundle, fetched weights, or last.")],
    images: Annotated[list[str], typer.Argument(help="Pictures, folders or archives.")],
    method: Annotated[
        str | None, typer.Option(help="Name of the method; by default grad-cam, for detectors occlusion.")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Whose score is explained; by default the class that is said.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="Which question, when the model answers several.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer, for methods that look at one.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the method as NAME=VALUE, e.g. steps=128; may be repeated.")
    ] = None,
    save: Annotated[str, typer.Option(help="Folder for drawn pictures, maps and numbers.")] = "explanations",
    sanity: Annotated[bool, typer.Option(help="Make the weights random: does the map change?")] = False,
    faithful: Annotated[bool, typer.Option(help="Take pixels away in the map's order: does the score fall?")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    json: Json = False,
) -> int:
    """Show which parts of a picture an answer comes from.

    For every picture a drawing, the map (.npy) and the numbers (.json) are written into a folder. Methods: grad-cam,
    integrated-gradients, occlusion, saliency, smooth-grad, input-x-gradient.
    """
    from opsin.engine.precision import choose_device
    from opsin.run import load
    from opsin.run.explaining import explain_files

    bundle = load(run)
    bundle.model.to(choose_device(device))
    found = explain_files(
        bundle,
        images,
        method,
        class_name=class_name,
        head=head,
        options=_options(option or [], layer),
        save=Path(save),
        sanity=sanity,
        faithful=faithful,
    )
    for name, reason in found.failed.items():
        console().print(f"Not read: {reason if name in reason else f'{name}: {reason}'}", style="yellow", markup=False)
    emit(found.to_dict(), json, lambda: _table(found))
    return 0 if found.results else 2


def _options(words: list[str], layer: str | None) -> dict[str, str]:
    from opsin.errors import ConfigError

    found = {} if layer is None else {"layer": layer}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"--option {word}: expected NAME=VALUE, e.g. steps=128.")
        found[name] = value
    return found


def _table(found: Any) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("file", overflow="fold")
    for name in ("class", "probability", "strongest region (x1 y1 x2 y2)", "its share"):
        table.add_column(name, justify="left" if name == "class" else "right")
    parts: list[Any] = [table]
    for one in found.results[:SHOWN]:
        region = next(iter(one.result.regions(1)), None)
        box, share = ("", "") if region is None else (" ".join(map(str, region.box_xyxy)), f"{region.share:.0%}")
        table.add_row(one.file, one.result.class_name, f"{one.result.probability:.6f}", box, share)
    if len(found.results) > SHOWN:
        parts.append(Text(f"... and {len(found.results) - SHOWN} more"))
    for one in found.results[:SHOWN]:
        details, numbers = one.result.details, one.faithful
        if details.get("completeness_error", 0) > 0.05:
            share = f"{details['completeness_error']:.0%}"
            parts.append(
                Text(f"{one.file}: the map misses {share} of the score; try --option steps={2 * details['steps']}")
            )
        if one.sanity is not None:
            parts.append(Text(f"{one.file}: {one.sanity.verdict}"))
        if numbers is not None:
            parts.append(
                Text(
                    f"{one.file}: deletion {numbers.deletion:.3f} (random order {numbers.random_deletion:.3f}, lower is "
                    f"better), insertion {numbers.insertion:.3f} (random order {numbers.random_insertion:.3f}, higher is better)"
                )
            )
    parts.append(Text(f"Drawn into {found.folder}"))
    return Group(*parts)
