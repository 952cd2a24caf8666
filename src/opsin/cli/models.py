"""`opsin models`: networks and published weights, what they cost, how they differ; weights onto this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from opsin.cli._frame import Json, console, emit, group
from opsin.errors import ConfigError

NAMES = ("models",)
HELP = "List networks and published weights, fetch them, look into a network, compare two, calculate layers."
ORDER = 80
app = group(HELP)


@app.callback()
def _group() -> None:
    """List networks and published weights, fetch them, look into a network, compare two, calculate layers."""


@app.command("list")
def list_models(
    match: Annotated[
        str | None, typer.Argument(help="Only names with this in them; timm/... searches timm's networks.")
    ] = None,
    weights: Annotated[bool, typer.Option("--weights", help="List published weights instead.")] = False,
    json: Json = False,
) -> None:
    """List the names that --model takes, or (--weights) published weights, their licenses and published numbers."""
    from opsin.models import models
    from opsin.models.shipped import shipped

    if weights:
        _list_weights(match, json)
        return
    names = list(models)
    if match is not None and match.startswith("timm/"):
        import timm

        names = [f"timm/{name}" for name in timm.list_models(f"*{match.removeprefix('timm/')}*")]
    elif match is not None:
        names = [name for name in names if match in name]
    hint = (
        "\nAlso every timm/NAME (opsin models list timm/mobilenet), and your own pkg.module:builder or file.py:builder."
    )
    own = shipped()
    hint += f"\nTrained models that come with opsin, to predict with: {', '.join(own)}."
    emit({"models": names, "shipped": own}, json, lambda: "\n".join(names) + ("" if match else hint))


@app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="A name that --model takes, a run, a bundle, or last.")],
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    channels: Annotated[int, typer.Option(help="Channels of a picture.")] = 3,
    size: Annotated[int, typer.Option(help="Height and width of a picture.")] = 224,
    depth: Annotated[
        int | None, typer.Option(min=0, help="Sum up layers below this many dots; by default a dozen rows or more.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer.")] = False,
    activations: Annotated[
        str | None,
        typer.Option(help="Show how activations vary, layer by layer: on noise, or on pictures at this path."),
    ] = None,
    init: Annotated[
        list[str] | None, typer.Option(help="Initialize so for --activations: PATTERN=INITIALIZER (repeat the flag).")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the table: .csv, .md, .html, .svg or .png.")] = None,
    json: Json = False,
) -> None:
    """Show a network: layers, parameters, multiply-adds, memory, receptive field, and where it comes from.

    Nothing is computed but the shapes; with --activations, one pass over a few pictures.
    """
    from opsin.analyze.network import describe, save_table, shown_layers, table, totals
    from opsin.run.showing import activation_table, opened, rules_of, shown_activations

    if init and activations is None:
        raise ConfigError("--init is for --activations; training takes model.init instead.")
    shown = opened(name, classes=classes, channels=channels, size=size)
    facts, cost = describe(shown.network, shown.spec)
    if activations is None:
        rows = table(shown_layers(cost, depth, every=layers))
    else:
        found = shown_activations(shown, activations, rules_of(init))
        facts["activations"] = [one._asdict() for one in found]
        rows = activation_table(found)
    if save is not None:
        facts["saved"] = str(save_table(rows, save, shown.spec.name))
    text = "\n".join([f"{facts['about']}\n".lstrip(), f"{shown.spec.name}:", *(f"  {line}" for line in totals(cost))])
    if facts["weights"] and not facts["about"]:
        text += f"\n  weights: {facts['weights']}"
    emit(facts, json, lambda: _with_table(text.strip(), rows))


@app.command("diff")
def diff_models(
    first: Annotated[str, typer.Argument(help="A name that --model takes, a run, a bundle, or last.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    channels: Annotated[int, typer.Option(help="Channels of a picture.")] = 3,
    size: Annotated[int, typer.Option(help="Height and width of a picture.")] = 224,
    json: Json = False,
) -> None:
    """Compare two networks: layers added, removed and changed; totals side by side."""
    from opsin.analyze.network import describe, difference, difference_table, totals_table
    from opsin.run.showing import opened

    shown = [opened(name, classes=classes, channels=channels, size=size) for name in (first, second)]
    found = difference(*(describe(one.network, one.spec)[1] for one in shown))
    same = f"{found['same']} layers are the same."
    emit(
        {"first": first, "second": second, **found},
        json,
        lambda: _with_table(same, difference_table(found), totals_table(found, first, second)),
    )


@app.command()
def calculate(
    picture: Annotated[str, typer.Argument(help="Height x width x channels, e.g. 224x224x3.")],
    layers: Annotated[str, typer.Argument(help="A chain of layers, e.g. 'C3x64 same, P2, FC10'.")],
    padding: Annotated[str, typer.Option(help="Of convolutions that say nothing of it: valid or same.")] = "valid",
    batch: Annotated[int, typer.Option(min=1, help="Pictures per training step, for the memory.")] = 1,
    save: Annotated[Path | None, typer.Option(help="Write the table: .csv, .md, .html, .svg or .png.")] = None,
    json: Json = False,
) -> None:
    """Calculate sizes, parameters, multiply-adds and memory of a chain of layers by formula.

    Layers: C5x32 convolution 5x5 with 32 filters, T4x64 transposed, P2 and A3 max and average pooling, GAP global
    pooling, FC10 dense, BN, LRN, ReLU, drop .5, flatten; [C3x64, BN]x2 repeats. Options behind a layer: s2 stride,
    p1 padding, same, valid, d2 dilation, g2 groups, nobias.
    """
    from opsin.analyze.chain import evaluate
    from opsin.analyze.chain import picture as read
    from opsin.analyze.network import chain_table, chain_totals, save_table

    if padding not in ("valid", "same"):
        raise ConfigError(f"--padding {padding}: expected valid or same.")
    found = evaluate(read(picture), layers, "same" if padding == "same" else "valid")
    rows = chain_table(found)
    saved = {} if save is None else {"saved": str(save_table(rows, save, f"{picture}: {layers}"))}
    emit({**found.to_dict(batch), **saved}, json, lambda: _with_table(chain_totals(found, batch), rows))


def _with_table(text: str, *tables: list[tuple[str, ...]]) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(text)]
    for rows in tables:
        if len(rows) < 2:
            continue
        shown = Table(box=None, pad_edge=False)
        for i, head in enumerate(rows[0]):
            number = all(row[i][:1].isdigit() or row[i][:1] in ("", "-", "+") for row in rows[1:]) and head != "output"
            shown.add_column(head, justify="right" if number else "left", no_wrap=True)
        for row in rows[1:]:
            shown.add_row(*(Text(cell) for cell in row))
        parts += [Text(""), shown]
    return Group(*parts)


def _list_weights(match: str | None, json: bool) -> None:
    from opsin.models import licenses, models
    from opsin.models.published import of
    from opsin.run.fetching import is_fetched

    networks = list(models)
    if match is not None and match.startswith("timm/"):
        import timm

        wanted = match.removeprefix("timm/").partition(".")[0]
        networks = [f"timm/{name}" for name in timm.list_models(f"*{wanted}*")]
    found = [one for network in networks for one in of(network) if match is None or match.lower() in one.name.lower()]
    rows = [{**one.to_dict(), "fetched": is_fetched(one)} for one in found]

    def table() -> Any:
        from rich.table import Table

        shown = Table("weights", "license", "MB", "parameters", "published top-1", "input", "")
        for one, row in zip(found, rows):
            size = "" if one.megabytes is None else f"{one.megabytes:.0f}"
            count = "" if one.num_params is None else f"{one.num_params:,}"
            top1 = f"{one.metrics['acc@1']:.2f}" if "acc@1" in one.metrics else ""
            state = "fetched" if row["fetched"] else one.obstacle
            free = one.license if licenses.is_permissive(one.license) else f"{one.license} (refused unless accepted)"
            shown.add_row(one.name, free, size, count, top1, " x ".join(map(str, one.image_size)), state)
        return shown if found else "No published weights by that name; timm's: opsin models list timm/NAME --weights"

    emit({"weights": rows}, json, table)


@app.command("get")
def get_weights(
    name: Annotated[
        str,
        typer.Argument(help="Published weights, e.g. resnet18, resnet50.imagenet1k_v2, timm/NAME.TAG; or blood-cells."),
    ],
    to: Annotated[str | None, typer.Option(help="Folder of the bundle, e.g. on a stick; by default the cache.")] = None,
    accept_license: Annotated[
        str | None, typer.Option(help="Take over weights under this license, though it is not permissive (or unknown).")
    ] = None,
    json: Json = False,
) -> None:
    """Fetch published weights once, compare them with the library they come from, and make a bundle of them.

    A model that comes with opsin (blood-cells) is copied with its pictures: give --to.
    """
    from opsin.models.shipped import copy_to, shipped

    if name in shipped():
        if to is None:
            raise ConfigError(f"'{name}' comes with opsin and can be used as it is; say where to copy it: --to FOLDER")
        copied = copy_to(name, Path(to))
        use = f"{copied}\nUse it: opsin predict {copied} {copied / 'pictures'}"
        emit({"bundle": str(copied), "pictures": str(copied / "pictures")}, json, lambda: use)
        return
    from opsin.run.fetching import get
    from opsin.run.folder import RunFolder

    with _bar() as progress:
        folder = get(name, to, accept_license=accept_license, progress=progress, say=_say)
    record = RunFolder(folder).read("bundle.json")
    shown = {"bundle": str(folder), "license": record["license"], "lineage": record["lineage"]}
    agreed = {"difference": record["golden"]["difference"], "tolerance": record["golden"]["tolerance"]}
    model = to or record["lineage"]["source"]
    emit({**shown, "compared": agreed}, json, lambda: f"{folder}\nUse it: opsin predict {model} photo.jpg --top 5")


@app.command("import")
def import_file(
    file: Annotated[
        str, typer.Argument(help="A .safetensors file, a .pt/.pth state dict, or a file of Keras, ONNX or TensorFlow.")
    ],
    model: Annotated[str, typer.Option(help="The network that it is for.")],
    classes: Annotated[
        str, typer.Option(help="One name per line, a config.json with id2label, or a,b,c, in the order of the outputs.")
    ],
    to: Annotated[str, typer.Option(help="Folder of the bundle.")],
    size: Annotated[int, typer.Option(min=1, help="Height and width of the pictures that the network gets.")] = 224,
    mean: Annotated[str, typer.Option(help="Mean that is taken off the pixels, as shares: one, or R,G,B.")] = "0.5",
    std: Annotated[str, typer.Option(help="Deviation that they are divided by: one, or R,G,B.")] = "0.5",
    channels: Annotated[int, typer.Option(help="Channels of a picture: 1, 3 or 4.")] = 3,
    license: Annotated[str | None, typer.Option(help="License of the weights, e.g. apache-2.0.")] = None,
    from_prefix: Annotated[str, typer.Option(help="Use only names in the file that begin with this.")] = "",
    partial: Annotated[bool, typer.Option("--partial", help="Take what fits; the rest keeps new weights.")] = False,
    json: Json = False,
) -> None:
    """Make a bundle of your own weight file, and tell layer by layer what fits."""
    from opsin.run.importing import import_weights

    found = import_weights(
        file, model, to, classes=classes, size=size, mean=_numbers("mean", mean), std=_numbers("std", std),
        channels=channels, license=license, prefix=from_prefix, partial=partial,
    )  # fmt: skip
    emit(found.to_dict(), json, lambda: f"{found.report.summary()}\n{found.folder}")


def _numbers(flag: str, text: str) -> list[float]:
    from opsin.errors import ConfigError

    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--{flag} {text}: expected numbers with commas between, e.g. 0.485,0.456,0.406.") from error


def _say(text: str) -> None:
    console().print(text, markup=False)


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar on standard error for one file; nothing where that is no terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console(), transient=True, disable=not console().is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)
