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
        first = row["neighbors"][0] if row["neighbors"] else {"id": "none but itself", "cosine": float("nan")}
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
