"""A network described, two networks compared, and the tables of both in the forms that people save."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import nn

from opsin.analyze.chain import Chain
from opsin.analyze.cost import Cost, LayerCost, cost
from opsin.durable import write_durably
from opsin.errors import ConfigError
from opsin.models import ModelSpec, models

Table = list[tuple[str, ...]]  # the heads first

ROWS = 12  # of a table that nobody asked to be longer or shorter
HEADS = ("layer", "type", "output", "parameters", "frozen", "buffers", "MACs", "stored", "receptive field")
_FIELDS = re.compile(r"^([A-Z][a-z ]+): (.*(?:\n[ \t]+.*)*)", re.MULTILINE)


def describe(network: nn.Module, spec: ModelSpec) -> tuple[dict[str, Any], Cost]:
    """What a network is, where it comes from and what it costs.

    Args:
        network: built from the spec; hollow or with weights, assembled with its preprocessing or bare.
        spec: name, channels, picture size.

    Returns:
        JSON values (`name`, `about`, `paper`, `weights`, totals, `layers`, ...) and the cost itself.
    """
    found = cost(network, (spec.in_channels, *spec.image_size))
    about = (models.module(spec.name).__doc__ or "").strip() if spec.name in models else ""
    notes = {key.lower(): " ".join(text.split()) for key, text in _FIELDS.findall(about)}
    published = getattr(network, "pretrained_cfg", None) or {}
    weights = notes.get("weights")
    if weights is None and isinstance(published, dict) and published.get("license"):
        weights = f"published by timm under {published['license']}; none shipped"
    facts = {**spec.to_dict(), "about": about, "paper": notes.get("paper"), "weights": weights}
    return {**facts, **found.to_dict()}, found


def totals(found: Cost) -> list[str]:
    """The totals in a few lines for people."""
    shape = " x ".join(map(str, found.image))
    parameters, frozen = found.total("parameters"), found.total("frozen")
    kept = f" ({frozen:,} frozen)" if frozen else ""
    lines = [
        f"{parameters:,} parameters{kept}, {found.total('buffers'):,} buffers: {in_bytes(found.weight_bytes)}",
        f"{in_units(found.total('macs'))} multiply-adds for one picture of {shape}",
        f"inference: at most {in_bytes(found.peak_bytes)} of activations alive for one picture, besides the weights",
        f"training: {in_bytes(found.stored_bytes)} of activations for each picture, and "
        + ", ".join(f"{in_bytes(found.training_bytes(0, name))} ({name})" for name in ("sgd", "momentum", "adam"))
        + " for weights, gradients and optimizer",
    ]
    if found.seen is not None:
        height = found.seen.height
        lines.append(f"receptive field: {height} before the whole picture is seen")
    return lines


def table(layers: Iterable[LayerCost]) -> Table:
    """The table of layers."""
    rows: Table = [HEADS]
    for one in layers:
        counts = (one.parameters, one.frozen, one.buffers)
        shape = " x ".join(map(str, one.shape))
        cells = (*(f"{count:,}" if count else "" for count in counts), in_units(one.macs), in_bytes(one.stored_bytes))
        rows.append((one.name or "(network)", one.kind, shape, *cells, one.field))
    return rows


def difference(first: Cost, second: Cost) -> dict[str, Any]:
    """Layers added, removed and changed from one network to another, and both totals.

    Layers are the same when their names are; a layer changed when type, output or counts differ.
    """
    keys = ("type", "shape", "trainable", "frozen", "buffers", "macs")
    left, right = ({layer["name"]: layer for layer in one.to_dict()["layers"]} for one in (first, second))
    changed = {
        name: {key: [left[name][key], right[name][key]] for key in keys if left[name][key] != right[name][key]}
        for name in left
        if name in right
    }
    counts = ("parameters", "buffers", "macs", "values")
    return {
        "removed": [left[name] for name in left if name not in right],
        "added": [right[name] for name in right if name not in left],
        "changed": {name: one for name, one in changed.items() if one},
        "same": sum(not one for one in changed.values()),
        "totals": {
            **{key: [one.values if key == "values" else one.total(key) for one in (first, second)] for key in counts},
            "peak_bytes": [first.peak_bytes, second.peak_bytes],
            "weight_bytes": [first.weight_bytes, second.weight_bytes],
        },
    }


def difference_table(found: dict[str, Any]) -> Table:
    """A row for each layer that is not the same."""
    rows: Table = [("", "layer", "what")]
    rows += [("-", layer["name"], _layer(layer)) for layer in found["removed"]]
    rows += [("+", layer["name"], _layer(layer)) for layer in found["added"]]
    for name, changes in found["changed"].items():
        rows.append(
            (
                "~",
                name or "(network)",
                ", ".join(f"{key} {_shown(a)} -> {_shown(b)}" for key, (a, b) in changes.items()),
            )
        )
    return rows


def totals_table(found: dict[str, Any], first: str, second: str) -> Table:
    """Both totals, and how much larger the second is."""
    rows: Table = [("total", first, second, "ratio")]
    for key, (a, b) in found["totals"].items():
        rows.append((key.replace("_", " "), f"{a:,}", f"{b:,}", f"{b / a:.2f}" if a else ""))
    return rows


def _layer(layer: dict[str, Any]) -> str:
    return f"{layer['type']} {_shown(layer['shape'])}, {layer['trainable'] + layer['frozen']:,} parameters"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " x ".join(map(str, value)) or "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def shown_layers(found: Cost, depth: int | None, *, every: bool = False) -> list[LayerCost]:
    """The rows that a person sees: all, those of a depth, or those of the least depth that gives a dozen."""
    if every:
        return found.layers
    if depth is not None:
        return found.grouped(depth)
    deepest = max((layer.name.count(".") + 1 for layer in found.layers), default=1)
    choices = (found.grouped(level) for level in range(1, deepest + 1))
    return next((rows for rows in choices if len(rows) >= ROWS), found.layers)


def chain_table(found: Chain) -> Table:
    """The table of a chain of layers, with each layer's share of all multiply-adds."""
    rows: Table = [("layer", "output", "parameters", "MACs", "share of MACs", "stored", "receptive field")]
    for row in found.rows:
        share = f"{row.macs / found.macs:.1%}" if row.macs else ""
        cells = (f"{row.parameters:,}" if row.parameters else "", in_units(row.macs), share, in_bytes(4 * row.values))
        rows.append((row.layer, " x ".join(map(str, row.shape)), *cells, str(row.field)))
    return rows


def chain_totals(found: Chain, batch: int) -> str:
    """The totals of a chain of layers for people."""
    memory = ", ".join(f"{in_bytes(found.memory(batch, name))} ({name})" for name in ("sgd", "momentum", "adam"))
    return (
        f"{found.parameters:,} parameters, {found.buffers:,} buffers, {in_units(found.macs) or 0} multiply-adds\n"
        f"inference: at most {in_bytes(4 * found.peak)} of activations alive for one picture\n"
        f"training with {batch} picture{'s' if batch > 1 else ''} per step: {memory}"
    )


def in_units(count: float) -> str:
    """A count in thousands, millions or thousand millions; nothing for 0."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:g}" if count else ""


def in_bytes(count: float) -> str:
    """Bytes in KiB, MiB or GiB; nothing for 0."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:g} B" if count else ""


# Files ----------------------------------------------------------------------------------------------------------------


def save_table(rows: Table, path: Path, title: str = "") -> Path:
    """Write a table as .csv, .md, .html, .svg or .png, by the ending of the name.

    Raises:
        ConfigError: for another ending.
    """
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise ConfigError(f"--save {path}: unknown ending '{path.suffix}'. Expected {', '.join(_WRITERS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, writer(rows, title))
    return path


def _csv(rows: Table, _: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _markdown(rows: Table, title: str) -> bytes:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (rows[0], ("---",) * len(rows[0]), *rows[1:])]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([*([f"# {title}", ""] if title else []), *lines, ""]).encode()


def _html(rows: Table, title: str) -> bytes:
    def line(row: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    body = "\n".join([line(rows[0], "th"), *(line(row, "td") for row in rows[1:])])
    style = "body{font-family:sans-serif}td,th{padding:2px 10px;text-align:left;border-bottom:1px solid #ddd}"
    name = html.escape(title)
    head = f"<!doctype html>\n<html lang='en'><meta charset='utf-8'><title>{name}</title><style>{style}</style>"
    return f"{head}\n<h1>{name}</h1>\n<table>\n{body}\n</table></html>\n".encode()


def _lines(rows: Table, title: str) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return [*([title, ""] if title else []), text[0], "-" * max(map(len, text)), *text[1:]]


def _svg(rows: Table, title: str) -> bytes:
    lines = _lines(rows, title)
    width, height = 20 + 8 * max(map(len, lines)), 20 + 18 * len(lines)
    texts = "\n".join(
        f"<text x='10' y='{24 + 18 * i}' xml:space='preserve'>{html.escape(line)}</text>"
        for i, line in enumerate(lines)
    )
    start = f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}'"
    return f"{start} font-family='monospace' font-size='13'><rect width='100%' height='100%' fill='white'/>\n{texts}\n</svg>\n".encode()


def _png(rows: Table, title: str) -> bytes:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lefts = [12 + sum(8 * width + 16 for width in widths[:i]) for i in range(len(widths))]
    font = ImageFont.load_default(13)
    image = Image.new("RGB", (lefts[-1] + 8 * widths[-1] + 12, 44 + 18 * len(rows)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((12, 8), title, "black", font=font)
    for number, row in enumerate(rows):
        for left, cell in zip(lefts, row):
            draw.text((left, 34 + 18 * number), cell, "black", font=font)
    draw.line((12, 51, image.width - 12, 51), "gray")
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


_WRITERS: dict[str, Callable[[Table, str], bytes]] = {
    ".csv": _csv,
    ".md": _markdown,
    ".html": _html,
    ".svg": _svg,
    ".png": _png,
}
