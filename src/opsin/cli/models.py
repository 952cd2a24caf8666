"""`opsin models`: which networks and published weights there are; weights onto this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from opsin.cli._frame import Json, console, emit, group

NAMES = ("models",)
HELP = "List networks and published weights, fetch weights, show a network."
ORDER = 80
app = group(HELP)


@app.callback()
def _group() -> None:
    """List networks and published weights, fetch weights, show a network."""


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
    emit({"models": names}, json, lambda: "\n".join(names) + ("" if match else hint))


@app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="A name that --model takes.")],
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    channels: Annotated[int, typer.Option(help="Channels of a picture.")] = 3,
    size: Annotated[int, typer.Option(help="Height and width of a picture.")] = 224,
    json: Json = False,
) -> None:
    """Show a network: parameters, multiply-adds, and where it comes from."""
    from opsin.models import ModelSpec, build, models, resolve

    spec = resolve(ModelSpec(name, {}, channels, classes, (size, size)))
    network = build(spec)
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, channels, size, size))
    found = {
        **spec.to_dict(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "macs": counter.get_total_flops() // 2,
        "about": (models.module(spec.name).__doc__ or "").strip() if spec.name in models else "",
    }
    size_text = f"{channels} x {size} x {size}"
    numbers = f"{found['parameters']:,} parameters, {found['macs'] / 1e6:,.1f} M multiply-adds at {size_text}"
    text = f"{found['about']}\n\n{spec.name}: {numbers}"
    emit(found, json, lambda: text.strip())


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
        str, typer.Argument(help="Published weights, e.g. resnet18, resnet50.imagenet1k_v2, timm/NAME.TAG.")
    ],
    to: Annotated[str | None, typer.Option(help="Folder of the bundle, e.g. on a stick; by default the cache.")] = None,
    accept_license: Annotated[
        str | None, typer.Option(help="Take over weights under this license, though it is not permissive (or unknown).")
    ] = None,
    json: Json = False,
) -> None:
    """Fetch published weights once, compare them with the library they come from, and make a bundle of them."""
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
    file: Annotated[str, typer.Argument(help="A .safetensors file, or a .pt/.pth state dict.")],
    model: Annotated[str, typer.Option(help="The network that it is for.")],
    classes: Annotated[str, typer.Option(help="A file with one name per line, or a,b,c, in the order of the outputs.")],
    to: Annotated[str, typer.Option(help="Folder of the bundle.")],
    size: Annotated[int, typer.Option(min=1, help="Height and width of the pictures that the network gets.")] = 224,
    mean: Annotated[str, typer.Option(help="Mean that is taken off the pixels, as shares: one, or R,G,B.")] = "0.5",
    std: Annotated[str, typer.Option(help="Deviation that they are divided by: one, or R,G,B.")] = "0.5",
    channels: Annotated[int, typer.Option(help="Channels of a picture: 1, 3 or 4.")] = 3,
    license: Annotated[str | None, typer.Option(help="License of the weights, e.g. apache-2.0.")] = None,
    from_prefix: Annotated[str, typer.Option(help="Use only names in the file that begin with this.")] = "",
    json: Json = False,
) -> None:
    """Make a bundle of your own weight file, and tell layer by layer what fits."""
    from opsin.run.importing import import_weights

    found = import_weights(
        file, model, to, classes=classes, size=size, mean=_numbers("mean", mean), std=_numbers("std", std),
        channels=channels, license=license, prefix=from_prefix,
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
