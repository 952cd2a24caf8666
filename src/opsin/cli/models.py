"""`opsin models`: which networks there are."""

from __future__ import annotations

from typing import Annotated

import typer

from opsin.cli._frame import Json, emit, group

NAMES = ("models",)
HELP = "List the networks, or show one."
ORDER = 80
app = group(HELP)


@app.callback()
def _group() -> None:
    """List the networks, or show one."""


@app.command("list")
def list_models(
    match: Annotated[
        str | None, typer.Argument(help="Only names with this in them; timm/... searches timm's networks.")
    ] = None,
    json: Json = False,
) -> None:
    """List the names that --model takes."""
    from opsin.models import models

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
