"""`opsin see`: what lies inside a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from opsin.cli._frame import Json, emit, group

NAMES = ("see",)
HELP = "See inside a network: neighbors, separation, projections, patches, filters, maps, ideal pictures."
ORDER = 66
app = group(HELP)

Model = Annotated[str, typer.Argument(help="A run, a bundle, or last.")]
Data = Annotated[str, typer.Argument(help="A data set: folder, file or archive.")]
Layers = Annotated[list[str] | None, typer.Option("--layer", help="Layer; may be repeated. By default one per stage.")]
Out = Annotated[str, typer.Option(help="File to write; nothing is written over.")]
Limit = Annotated[int, typer.Option(min=2, help="Pictures, drawn with the seed.")]
Seed = Annotated[int, typer.Option(help="Of all that is drawn at random.")]


@app.callback()
def _group() -> None:
    """See inside a network: neighbors, separation, projections, patches, filters, maps, ideal pictures."""


@app.command("neighbors")
def see_neighbors(
    run: Model,
    data: Data,
    picture: Annotated[list[str], typer.Option(help="Picture to compare with; may be repeated.")],
    layer: Layers = None,
    count: Annotated[int, typer.Option(min=1, help="Neighbors.")] = 8,
    out: Out = "neighbors.png",
    json: Json = False,
) -> None:
    """The pictures of a data set that are most like others, by the features of several layers, side by side."""
    from opsin.data.formats import load_data
    from opsin.run import load
    from opsin.run.seeing import free, neighbors

    path = free(out, ".png")
    found = neighbors(load(run), load_data(data), [Path(one) for one in picture], layer or (), count=count)
    found.sheet.save(path)
    emit({"neighbors": found.rows, "out": str(path)}, json, lambda: _neighbors(found.rows, path))


def _neighbors(rows: list[dict[str, Any]], path: Path) -> Any:
    from rich.console import Group
    from rich.table import Table

    table = Table("picture", "layer", "nearest", "cosine")
    for row in rows:
        for first in row["neighbors"][:1]:
            table.add_row(row["picture"], row["layer"], first["id"], f"{first['cosine']:.4f}")
    return Group(table, f"Drawn: {path}")


@app.command("separation")
def see_separation(
    run: Model,
    data: Data,
    layer: Layers = None,
    limit: Limit = 1000,
    seed: Seed = 0,
    out: Out = "separation.svg",
    json: Json = False,
) -> None:
    """How far apart the classes lie in each layer: early layers are general, late ones specific."""
    from opsin.data.formats import load_data
    from opsin.run import load
    from opsin.run.seeing import free, separation, separation_chart

    path = free(out, ".svg")
    found = separation(load(run), load_data(data), layer or (), limit=limit, seed=seed)
    path.write_text(separation_chart(found), encoding="utf-8")
    emit({**found, "out": str(path)}, json, lambda: _separation(found, path))


def _separation(found: dict[str, Any], path: Path) -> Any:
    from rich.console import Group
    from rich.table import Table

    title = (
        f"{found['data']}: {found['samples']} pictures, {found['classes']} classes; out of fold; the largest class is "
        f"{found['largest_class']:.1%}"
    )
    table = Table(title=title, title_justify="left")
    for name in ("layer", "width", "nearest neighbors", "95 % interval", "logistic", "95 % interval", "silhouette"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    for row in found["layers"]:
        cells = []
        for probe in ("nearest", "logistic"):
            one = row[probe]
            cells += [f"{one['value']:.4f}", f"{one['low']:.4f} to {one['high']:.4f}"]
        table.add_row(row["layer"], str(row["width"]), *cells, f"{row['silhouette']:.4f}")
    return Group(table, f"Drawn: {path}")


@app.command("projection")
def see_projection(
    run: Model,
    data: Data,
    out: Annotated[
        str, typer.Option(help="Page to write (.html); TensorBoard's files go beside it.")
    ] = "projection.html",
    by: Annotated[str, typer.Option(help="pca, tsne, or umap where umap-learn is installed.")] = "tsne",
    dimensions: Annotated[int, typer.Option(min=2, max=3, help="2 or 3.")] = 2,
    layer: Annotated[str, typer.Option(help="Layer; head-input is what the last layer is given.")] = "head-input",
    limit: Limit = 1000,
    seed: Seed = 0,
    perplexity: Annotated[float, typer.Option(help="Of t-SNE: neighbors that each point keeps, 5 to 50.")] = 30.0,
    json: Json = False,
) -> None:
    """Features as points on a page to walk through: pictures, labels, search, neighbors; also for TensorBoard."""
    from opsin.data.formats import load_data
    from opsin.run import load
    from opsin.run.projecting import projector

    found = projector(
        load(run), load_data(data), Path(out), layer=layer, by=by, dimensions=dimensions, limit=limit, seed=seed,
        perplexity=perplexity,
    )  # fmt: skip
    words = (
        f"{found['samples']} pictures, {found['width']} features of {layer}: trustworthiness "
        f"{found['trustworthiness']:.3f} (1: what lies near in the drawing is near in the features).\n"
        f"Distances between clusters are not meaningful.\n"
        f"Page: {found['page']}   tensorboard --logdir {found['tensorboard']}"
    )
    emit(found, json, lambda: words)


@app.command("patches")
def see_patches(
    run: Model,
    data: Data,
    layer: Annotated[str, typer.Option(help="Layer that gives a map.")],
    channel: Annotated[
        str | None, typer.Option(help="Numbers of channels, e.g. 3,7; by default the eight that vary most.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Patches per channel.")] = 8,
    limit: Limit = 1000,
    seed: Seed = 0,
    out: Out = "patches.png",
    json: Json = False,
) -> None:
    """The patches of a data set that most excite channels, cut out by the receptive field, and how large that is."""
    from opsin.data.formats import load_data
    from opsin.run import load
    from opsin.run.patching import patches
    from opsin.run.seeing import free

    path = free(out, ".png")
    numbers = _numbers(channel)
    found = patches(load(run), load_data(data), layer, numbers, count=count, limit=limit, seed=seed)
    found.sheet.save(path)
    values = {"layer": layer, "field": found.field, "channels": found.channels, "out": str(path)}
    emit(values, json, lambda: f"{found.sheet.note}\nDrawn: {path}")


def _numbers(words: str | None) -> list[int]:
    """Numbers of channels as they are typed.

    Raises:
        ConfigError: for anything else, such as a class.
    """
    from opsin.errors import ConfigError

    try:
        return [int(word) for word in words.split(",")] if words else []
    except ValueError as error:
        raise ConfigError(
            f"--channel {words}: expected numbers such as 3,7. A class is no channel: it has a name and goes to --class."
        ) from error


@app.command("ideal")
def see_ideal(
    run: Model,
    layer: Annotated[str | None, typer.Option(help="Layer whose channels are excited.")] = None,
    channel: Annotated[
        str | None, typer.Option(help="Numbers of channels of --layer, e.g. 3,7; by default its first sixteen.")
    ] = None,
    cell: Annotated[str | None, typer.Option(help="ROW,COLUMN: one unit of each channel, not its mean.")] = None,
    class_name: Annotated[
        list[str] | None, typer.Option("--class", help="Name of a class whose score is excited; may be repeated.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="Which question, when the model answers several.")] = None,
    steps: Annotated[int, typer.Option(help="Steps along the gradient.")] = 20,
    step_size: Annotated[float, typer.Option(help="Change of a pixel in a step, of 255.")] = 1.0,
    jitter: Annotated[int, typer.Option(help="Largest random shift before a step, in pixels.")] = 0,
    blur: Annotated[float, typer.Option(help="Sigma of a blur every fourth step, in pixels.")] = 0.0,
    variation: Annotated[float, typer.Option(help="Weight of differences between neighboring pixels.")] = 0.0,
    decay: Annotated[float, typer.Option(help="Share that each step takes the picture back to gray.")] = 0.0,
    size: Annotated[int | None, typer.Option(help="Height and width; by default what the model takes.")] = None,
    seed: Seed = 0,
    out: Out = "ideal.png",
    json: Json = False,
) -> None:
    """Pictures made to excite channels, single units or classes (activation maximization).

    The defaults are the setting of textbooks. For deep layers and classes try --steps 256 --jitter 4 --blur 0.5.
    """
    from opsin.explain.maximize import Recipe
    from opsin.run import load
    from opsin.run.picturing import ideals
    from opsin.run.seeing import free

    path = free(out, ".png")
    recipe = Recipe(steps, step_size, jitter, blur, variation, decay, seed)
    rows, sheet = ideals(
        load(run), layer=layer, channels=_numbers(channel), cell=_cell(cell), class_names=class_name or (), head=head,
        size=None if size is None else (size, size), recipe=recipe,
    )  # fmt: skip
    sheet.save(path)
    emit({"ideals": rows, "out": str(path)}, json, lambda: f"{sheet.note}\nDrawn: {path}")


def _cell(words: str | None) -> tuple[int, int] | None:
    from opsin.errors import ConfigError

    if words is None:
        return None
    parts = words.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ConfigError(f"--cell {words}: expected ROW,COLUMN, e.g. 3,3.")
    return int(parts[0]), int(parts[1])


@app.command("filters")
def see_filters(
    run: Model,
    layer: Annotated[str | None, typer.Option(help="A convolution; by default the first.")] = None,
    most: Annotated[int, typer.Option(min=1, help="Filters to show.")] = 64,
    out: Out = "filters.png",
    json: Json = False,
) -> None:
    """The weights of a convolution as pictures on one scale, with their norms; the first layer in color."""
    from opsin.run import load
    from opsin.run.picturing import filters
    from opsin.run.seeing import free

    path = free(out, ".png")
    values, sheet = filters(load(run), layer, most=most)
    sheet.save(path)
    emit({**values, "out": str(path)}, json, lambda: f"{values['layer']}: {sheet.note}\nDrawn: {path}")


@app.command("maps")
def see_maps(
    run: Model,
    picture: Annotated[str, typer.Argument(help="A picture.")],
    layer: Layers = None,
    count: Annotated[int, typer.Option(min=1, help="Channels per layer.")] = 8,
    out: Out = "maps.png",
    json: Json = False,
) -> None:
    """What the layers say of one picture: the strongest channels as maps, each layer on one scale."""
    from opsin.run import load
    from opsin.run.picturing import maps
    from opsin.run.seeing import free

    path = free(out, ".png")
    rows, sheet = maps(load(run), Path(picture), layer or (), count=count)
    sheet.save(path)
    emit({"layers": rows, "out": str(path)}, json, lambda: _maps(rows, path))


def _maps(rows: list[dict[str, Any]], path: Path) -> Any:
    from rich.console import Group
    from rich.table import Table

    table = Table("layer", "output", "range", "zeros", "strongest channels")
    for row in rows:
        low, high = row["range"]
        channels = " ".join(str(one["channel"]) for one in row["channels"])
        shape = " x ".join(map(str, row["shape"]))
        table.add_row(row["layer"], shape, f"{low:.3g} to {high:.3g}", f"{row['zeros']:.0%}", channels)
    return Group(table, f"Drawn: {path}")
