"""Features of a data set as a map that a person can walk through: a page, and files for TensorBoard's projector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from opsin.bundle import Bundle
from opsin.data.dataset import Dataset
from opsin.durable import write_durably
from opsin.errors import ConfigError
from opsin.report.projector import page, sprite, tensorboard_files
from opsin.run.seeing import chosen_rows, picture_of, single_labels
from opsin.transfer.bottleneck import features_of
from opsin.transfer.features import HEAD_INPUT
from opsin.transfer.neighbors import nearest
from opsin.transfer.projection import METHODS, project

SIDE = 32  # pixels of a thumbnail
NEIGHBORS = 8


def projector(
    bundle: Bundle,
    data: Dataset,
    out: Path,
    *,
    layer: str = HEAD_INPUT,
    by: str = "pca",
    dimensions: int = 2,
    limit: int | None = 1000,
    seed: int = 0,
    perplexity: float = 30.0,
) -> dict[str, Any]:
    """Write a page of projected features, and beside it a folder for TensorBoard.

    Args:
        bundle: the model.
        data: its pictures; the first head of exclusive classes colors them.
        out: NAME.html; the folder is NAME-tensorboard.
        layer: where the features are taken.
        by: "pca", "tsne" or "umap".
        dimensions: 2 or 3.
        limit: pictures, drawn with the seed.
        perplexity: of t-SNE.

    Raises:
        ConfigError: if `out` exists or is no .html, or there are too few pictures.
        UnknownName: for an unknown layer or method.
    """
    if out.suffix != ".html":
        raise ConfigError(f"--out {out}: expected a name that ends in .html.")
    folder = out.with_name(f"{out.stem}-tensorboard")
    for path in (out, folder):
        if path.exists():
            raise ConfigError(f"{path} exists already; give another --out, or remove it.")
    rows = chosen_rows(len(data), limit, seed)
    if len(rows) < 4:
        raise ConfigError(f"{data.name}: {len(rows)} pictures are too few to project; expected 4 or more.")
    values = features_of(bundle.task, bundle.model, data, rows, layer=layer).features.values
    values = values.reshape(len(values), -1)
    found = project(values, by, dimensions, seed=seed, perplexity=perplexity)
    places, cosines = nearest(values, values, min(NEIGHBORS + 1, len(values)))
    near = [
        [[int(j), round(float(c), 4)] for j, c in zip(*pair) if j != i][:NEIGHBORS]
        for i, pair in enumerate(zip(places, cosines))
    ]
    ids, known = [data.id(int(i)) for i in rows], single_labels(data)
    labels = np.full(len(rows), -1) if known is None else known[0][rows]
    names = () if known is None else known[1]
    sheet, columns = sprite([picture_of(data, int(i)) for i in rows], SIDE)
    facts = _facts(found, data, len(rows), layer, values.shape[1])
    contents = {
        "points": np.round(found.points.astype(float), 4).tolist(),
        "ids": ids,
        "labels": labels.tolist(),
        "names": list(names),
        "neighbors": near,
        "by": by,
        "side": SIDE,
        "columns": columns,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_durably(out, page(f"{data.name}: features of {layer}", facts, contents, sheet).encode())
    words = None if known is None else [names[k] if k >= 0 else "-" for k in labels]
    tensorboard_files(folder, values, ids, words, sheet, SIDE)
    return {
        "data": data.name,
        "samples": len(rows),
        "of": len(data),
        "layer": layer,
        "width": int(values.shape[1]),
        "by": by,
        "dimensions": dimensions,
        "seed": seed,
        "trustworthiness": found.trustworthiness,
        "trustworthiness_neighbors": found.neighbors,
        "details": found.details,
        "page": str(out),
        "tensorboard": str(folder),
    }


def _facts(found: Any, data: Dataset, count: int, layer: str, width: int) -> str:
    """What a reader must know, in one line."""
    name = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}[found.by]
    parts = [f"{count} of {len(data)} pictures", f"{width} features of {layer}", f"{name}, seed {found.seed}"]
    if found.by == "pca":
        shares = found.details["explained_variance"]
        parts.append(f"{sum(shares):.1%} of the variance ({' + '.join(f'{share:.1%}' for share in shares)})")
    if found.by == "tsne":
        parts.append(f"perplexity {found.details['perplexity']:g}")
    parts.append(f"trustworthiness {found.trustworthiness:.3f} ({found.neighbors} neighbors)")
    return " · ".join(parts)


__all__ = ["METHODS", "projector"]
