"""What lies inside a network, seen through the pictures of a data set: neighbors and separation, layer by layer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from opsin.bundle import Bundle
from opsin.data.dataset import Dataset
from opsin.errors import ConfigError, DataError
from opsin.metrics.intervals import wilson
from opsin.report.svg import clean
from opsin.results.sheet import Cell, Row, Sheet
from opsin.run.data import unsealed
from opsin.run.featuring import FOLDS, deal_folds, layer_table, out_of_fold
from opsin.run.predicting import pictures_at
from opsin.seeding import numpy_generator
from opsin.transfer.bottleneck import features_of
from opsin.transfer.features import HEAD_INPUT, last_layer
from opsin.transfer.neighbors import nearest

PROBES = ("nearest", "logistic")


# What all views share -------------------------------------------------------------------------------------------------


def picture_of(dataset: Dataset, i: int) -> Image.Image:
    """Sample i as it is, turned as EXIF says.

    Raises:
        DataError: if it cannot be drawn.
    """
    data, name = dataset.bytes_of(i)
    try:
        with Image.open(io.BytesIO(data)) as image:
            found = ImageOps.exif_transpose(image)
            return found.convert("L" if found.mode in ("1", "L") else "RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{name}: cannot be drawn ({error}).") from error


def free(out: str, ending: str) -> Path:
    """The path of a file to write, with its folder made.

    Raises:
        ConfigError: if it exists, or ends in something else.
    """
    path = Path(out)
    if path.suffix != ending:
        raise ConfigError(f"--out {out}: expected a name that ends in {ending}.")
    if path.exists():
        raise ConfigError(f"--out {out} exists already; give another name, or remove it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def chosen_rows(count: int, limit: int | None, seed: int) -> NDArray[np.int64]:
    """All rows, or `limit` of them drawn with a seed, in order."""
    if limit is None or limit >= count:
        return np.arange(count)
    if limit < 2:
        raise ConfigError(f"--limit {limit}: expected 2 or more.")
    return np.sort(numpy_generator(seed, "see").permutation(count)[:limit])


def single_labels(dataset: Dataset) -> tuple[NDArray[np.int64], tuple[str, ...]] | None:
    """Class numbers (N,) of the first head of exclusive classes (-1: missing) and the names, or None without one."""
    heads = [head for head in dataset.heads if head.kind == "single"]
    if not heads:
        return None
    return dataset.targets[heads[0].name].astype(np.int64), heads[0].class_names


def default_layers(bundle: Bundle) -> list[str]:
    """One layer per stage, early to late, at most seven: the outermost modules that give a map or tokens, the last of each
    shape; where all have one shape, evenly many of them. Then what the head is given, if that is one linear layer."""
    maps = [(row["layer"], tuple(row["shape"])) for row in layer_table(bundle) if len(row["shape"]) >= 2]
    depth = min((name.count(".") for name, _ in maps), default=0)
    for deeper in (0, 1):  # stages may lie one level further in
        outer = [(name, shape) for name, shape in maps if name.count(".") <= depth + deeper]
        last = list({shape: name for name, shape in outer}.values())
        if len(last) >= 3:
            break
    order = [name for name, _ in outer if name in last] if len(last) >= 3 else [name for name, _ in outer]
    places = np.linspace(0, len(order) - 1, min(7, len(order))).round().astype(int).tolist()
    heads = [HEAD_INPUT] if last_layer(bundle.model) is not None else []
    return [*(order[i] for i in sorted(set(places))), *heads]


# Neighbors ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbors:
    """Nearest pictures of each query in each layer.

    Args:
        rows: per query and layer, the names and cosines of the neighbors, the most similar first.
        sheet: the same as pictures.
    """

    rows: list[dict[str, Any]]
    sheet: Sheet


def neighbors(
    bundle: Bundle, data: Dataset, queries: Sequence[Path], layers: Sequence[str] = (), *, count: int = 8
) -> Neighbors:
    """The pictures of a data set that are most like others, by the features of several layers.

    A picture that is compared with itself (the same bytes) is left out.

    Args:
        bundle: the model.
        data: what is searched.
        queries: picture files.
        layers: names; by default one per stage.
        count: neighbors.

    Raises:
        ConfigError: if there are fewer pictures than neighbors, or none.
        UnknownName: if there is no such layer.
    """
    if len(data) < 2:
        raise ConfigError(f"{data.name}: {len(data)} picture(s) to search; expected two or more.")
    asked = [(path, pictures_at(path)) for path in queries]
    if wrong := [str(path) for path, source in asked if len(source) != 1]:
        raise ConfigError(f"--picture {wrong[0]}: expected one picture file.")
    every, known = np.arange(len(data)), single_labels(data)
    rows: list[dict[str, Any]] = []
    shown: dict[str, list[Row]] = {str(path): [] for path in queries}
    for layer in layers or default_layers(bundle):
        values = _flat(features_of(bundle.task, bundle.model, data, every, layer=layer).features.values)
        for path, source in asked:
            one = _flat(
                features_of(bundle.task, bundle.model, source, np.zeros(1, np.int64), layer=layer).features.values
            )
            places, cosines = nearest(values, one, min(count + 1, len(data)))
            same = source.bytes_of(0)[0]
            kept = [(int(i), float(c)) for i, c in zip(places[0], cosines[0]) if data.bytes_of(int(i))[0] != same]
            kept = kept[:count]
            rows.append({
                "picture": str(path),
                "layer": layer,
                "neighbors": [{"id": data.id(i), "cosine": round(c, 6), **_class(known, i)} for i, c in kept],
            })  # fmt: skip
            cells = [Cell(picture_of(data, i), f"{c:.3f} {_class(known, i).get('class', '')}") for i, c in kept]
            shown[str(path)].append(Row(f"{layer}", tuple(cells)))
    sheets = []
    for path, source in asked:
        sheets += [Row(path.name, (Cell(picture_of(source, 0), "asked"),)), *shown[str(path)]]
    note = "Nearest first, by the cosine between features (averaged over positions); the number is the cosine."
    return Neighbors(rows, Sheet(tuple(sheets), note))


def _flat(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values.reshape(len(values), -1)


def _class(known: tuple[NDArray[np.int64], tuple[str, ...]] | None, i: int) -> dict[str, str]:
    return {} if known is None or known[0][i] < 0 else {"class": known[1][known[0][i]]}


# Separation -----------------------------------------------------------------------------------------------------------


def separation(
    bundle: Bundle, data: Dataset, layers: Sequence[str] = (), *, limit: int | None = 1000, seed: int = 0
) -> dict[str, Any]:
    """How far apart the classes lie in each layer, early to late.

    Accuracy of nearest neighbors and logistic regression is out of fold: what answers for a picture has not seen it, and
    what it chooses was chosen inside the other folds. The silhouette (Rousseeuw 1987) is -1 to 1, of features whose
    columns have unit variance. The test part, as the data come with it or as training would seal it, is left out.

    Args:
        bundle: the model; its own classes do not matter.
        data: with exclusive classes.
        layers: names; by default one per stage.
        limit: pictures, drawn with the seed.

    Returns:
        JSON values: one entry per layer.

    Raises:
        DataError: without two classes of two pictures or more.
    """
    from sklearn.metrics import silhouette_score

    known = single_labels(data)
    if known is None:
        raise DataError(f"{data.name} has no exclusive classes to tell apart.")
    sight = unsealed(data)  # layers are chosen by these numbers
    labeled = sight[known[0][sight] >= 0]
    rows = labeled[chosen_rows(len(labeled), limit, seed)]
    labels = known[0][rows]
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    if len(counts) < 2 or counts.min() < 2:
        raise DataError(f"{data.name}: expected two classes or more, with two pictures or more in each.")
    folds = deal_folds(labels, min(FOLDS, int(counts.min())))
    table = []
    for layer in layers or default_layers(bundle):
        x = _flat(features_of(bundle.task, bundle.model, data, rows, layer=layer).features.values)
        spread = x.std(0, dtype=np.float64)
        scaled = (x - x.mean(0, dtype=np.float64)) / np.where(spread > 1e-12, spread, np.inf)
        row: dict[str, Any] = {"layer": layer, "width": int(x.shape[1])}
        for name in PROBES:
            answers, _ = out_of_fold(name, x, labels, folds)
            found = wilson(int((answers == labels).sum()), len(labels))
            row[name] = {"value": found.value, "low": found.low, "high": found.high}
        row["silhouette"] = float(silhouette_score(scaled, labels))
        table.append(row)
    return {
        "data": data.name,
        "samples": len(labels),
        "classes": len(counts),
        "largest_class": float(counts.max() / counts.sum()),
        "layers": table,
    }


def separation_chart(found: dict[str, Any]) -> str:
    """What `separation` found as a drawing (SVG) that stands alone: accuracy and silhouette over the layers."""
    rows = found["layers"]
    long = max(
        len(row["layer"]) for row in rows
    )  # names stand slanted below their place: 0.6 em a letter, 12 pixels an em
    left, right, top, bottom = 30 + max(22, round(5.9 * len(rows[0]["layer"]))), 16, 34, 28 + round(4.2 * long)
    width, height = left + 560, 234 + bottom
    series = [
        ("logistic regression", "#1d4ed8", [row["logistic"]["value"] for row in rows]),
        ("nearest neighbors", "#b45309", [row["nearest"]["value"] for row in rows]),
        ("silhouette", "#0f766e", [row["silhouette"] for row in rows]),
    ]
    low = min(0.0, *(float(row["silhouette"]) for row in rows))

    def px(i: int) -> float:
        return left + i * (width - left - right) / max(len(rows) - 1, 1)

    def py(value: float) -> float:
        return height - bottom - (value - low) / (1 - low) * (height - top - bottom)

    parts = [f"<rect width='{width}' height='{height}' fill='#fff'/>"]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f"<line x1='{left}' x2='{width - right}' y1='{py(tick):.1f}' y2='{py(tick):.1f}' stroke='#e2e5ea'/>"
        )
        parts.append(f"<text x='{left - 6}' y='{py(tick) + 4:.1f}' text-anchor='end'>{tick:g}</text>")
    for i, row in enumerate(rows):
        y = height - bottom + 14
        parts.append(
            f"<text x='{px(i):.1f}' y='{y}' text-anchor='end' transform='rotate(-35 {px(i):.1f} {y})'>"
            f"{clean(row['layer'])}</text>"
        )
    for number, (name, color, values) in enumerate(series):
        points = " ".join(f"{px(i):.1f},{py(value):.1f}" for i, value in enumerate(values))
        parts.append(f"<polyline points='{points}' fill='none' stroke='{color}' stroke-width='2'/>")
        parts += [f"<circle cx='{px(i):.1f}' cy='{py(v):.1f}' r='3' fill='{color}'/>" for i, v in enumerate(values)]
        parts.append(f"<text x='{left + 170 * number}' y='18' fill='{color}'>{name}</text>")
    chance = found["largest_class"]
    parts.append(
        f"<line x1='{left}' x2='{width - right}' y1='{py(chance):.1f}' y2='{py(chance):.1f}' stroke='#6b7280' "
        f"stroke-dasharray='5 4'/><text x='{width - right}' y='{py(chance) - 5:.1f}' text-anchor='end'>largest class</text>"
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
        f"font-family='sans-serif' font-size='12' fill='#374151'><title>Separation of {clean(found['data'])}</title>"
        f"{''.join(parts)}</svg>\n"
    )
