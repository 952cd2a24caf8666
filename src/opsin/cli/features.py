"""`opsin features`: what a layer of a model says of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from opsin.cli._frame import Json, emit

NAMES = ("features",)
HELP = "Features of pictures by any layer of a model, as a file; probes on them."
ORDER = 65


def command(
    run: Annotated[str, typer.Argument(help="A run, a bundle, fetched weights, or last.")],
    inputs: Annotated[list[str] | None, typer.Argument(help="Pictures, folders, archives or data sets.")] = None,
    layer: Annotated[
        str, typer.Option(help="Name of the layer; head-input is what the last layer is given.")
    ] = "head-input",
    pool: Annotated[str, typer.Option(help="Over the positions of a map: mean, max or none.")] = "mean",
    out: Annotated[str | None, typer.Option(help="File to write: .npz (ids, features) or .csv.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="List the layers and stop.")] = False,
    probe: Annotated[
        str | None,
        typer.Option(
            help="Say how much the features know of labeled data: all, or names such as logistic,rbf-svm,nearest."
        ),
    ] = None,
    all_parts: Annotated[
        bool,
        typer.Option("--all-parts", help="With --probe: take the test part too, because it will not be judged by."),
    ] = False,
    json: Json = False,
) -> None:
    """Features of pictures by any layer of a model, as a file; probes on them.

    Features are kept in a cache; they are computed again when weights, preparation or pictures change. With --probe, simple
    classifiers are judged out of fold on a labeled data set.
    """
    from opsin.errors import ConfigError
    from opsin.run import load
    from opsin.run.featuring import check_name, extract_files, layer_table, probe_data, save

    bundle = load(run)
    if layers:
        table = layer_table(bundle)
        emit({"layers": table}, json, lambda: _layers(table))
        return
    if not inputs:
        raise ConfigError("Which pictures? e.g. opsin features RUN photos/ --out features.npz (or --layers)")
    if pool not in ("mean", "max", "none"):
        raise ConfigError(f"--pool {pool}: expected mean, max or none.")
    how = cast(Literal["mean", "max", "none"], pool)
    if probe is not None:
        from opsin.data.formats import load_data
        from opsin.models.fitted.probes import PROBES

        if len(inputs) > 1:
            raise ConfigError("--probe takes one labeled data set.")
        names = list(PROBES) if probe == "all" else probe.split(",")
        result = probe_data(bundle, load_data(inputs[0]), names, layer=layer, pool=how, all_parts=all_parts)
        emit(result, json, lambda: _probes(result))
        return
    if out is not None:
        check_name(Path(out))
    found = extract_files(bundle, inputs, layer=layer, pool=how)
    if out is not None:
        save(found, Path(out))
    shape = list(found.values.shape)
    values = {"layer": layer, "pool": pool, "samples": shape[0], "shape": shape[1:], "out": out}
    if out is None:
        values["features"] = [{"id": name, "values": row.tolist()} for name, row in zip(found.ids, found.values)]
    words = f"{shape[0]} pictures, {' x '.join(map(str, shape[1:]))} numbers each, from layer {layer}"
    emit(values, json, lambda: f"{words}: {out}" if out else f"{words}. Keep them with --out NAME.npz or .csv.")


def _layers(table: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    shown = Table("layer", "output")
    for row in table:
        shown.add_row(row["layer"], " x ".join(map(str, row["shape"])))
    return shown


def _probes(found: dict[str, Any]) -> Any:
    from rich.table import Table

    left = f" ({found['left_out']} of the test part left out)" if found["left_out"] else ""
    title = (
        f"{found['data']}: {found['samples']} pictures{left}, {found['classes']} classes, {found['width']} features of layer "
        f"{found['layer']}; out of fold; the largest class is {found['largest_class']:.1%}"
    )
    table = Table(title=title, title_justify="left")
    for name in ("probe", "accuracy", "95 % interval", "chosen", "seconds"):
        table.add_column(name, justify="left" if name in ("probe", "chosen") else "right")
    for row in sorted(found["probes"], key=lambda row: -row["accuracy"]["value"]):
        one = row["accuracy"]
        interval = f"{one['low']:.4f} to {one['high']:.4f}"
        table.add_row(row["probe"], f"{one['value']:.4f}", interval, row["chosen"], f"{row['seconds']:.1f}")
    return table
