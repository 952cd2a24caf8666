"""What a network looks for, without any data: its filters, the maps of one picture, and pictures made to excite it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from opsin.analyze.receptive import as_map
from opsin.bundle import Bundle
from opsin.errors import ConfigError
from opsin.explain import asking
from opsin.explain.maximize import Goal, Recipe, maximize
from opsin.models.builder import evaluating
from opsin.results.sheet import Cell, Row, Sheet
from opsin.run.patching import checked_channels
from opsin.run.seeing import default_layers
from opsin.task import as_arrays
from opsin.transfer.features import HEAD_INPUT, bare, find_layer, tapped

COLUMNS = 8
DEAD = 1e-6  # a filter whose norm is below this share of the largest of its layer does nothing


# Ideal pictures -------------------------------------------------------------------------------------------------------


def ideals(
    bundle: Bundle,
    *,
    layer: str | None = None,
    channels: Sequence[int] = (),
    cell: tuple[int, int] | None = None,
    class_names: Sequence[str] = (),
    head: str | None = None,
    size: tuple[int, int] | None = None,
    recipe: Recipe | None = None,
) -> tuple[list[dict[str, Any]], Sheet]:
    """Pictures that excite channels of a layer, one unit of them (`cell`), or the scores of classes.

    Args:
        bundle: the model.
        layer: with `channels`; by default its first sixteen.
        channels: numbers of channels.
        cell: (row, column) of one unit in the map of each channel; without, the mean over the map.
        class_names: names, never numbers; not together with a layer.
        head: which question, where a model answers several.
        size: (H, W) of the pictures; by default what the model takes.
        recipe: see `opsin.explain.maximize.Recipe`.

    Returns:
        One row of JSON values per picture, and the sheet; what no gradient reaches is in the rows only, as dead.

    Raises:
        ConfigError: for both or neither of layer and classes, or a channel or cell that is not there.
        UnknownName: for an unknown layer, class or head.
    """
    if (layer is None) == (not class_names):
        raise ConfigError("Say what to excite: --layer with --channel (numbers), or --class (names); not both.")
    if layer is None and (channels or cell is not None):
        raise ConfigError("--channel and --cell are of a layer: give --layer. A class has a name: --class.")
    recipe, model, spec = recipe or Recipe(), bundle.model, bundle.task.spec
    bounds = (0.0, 255.0) if spec is None else spec.range
    sample = bundle.task.example_inputs(1)
    shape = (int(sample.shape[1]), *(size or (int(sample.shape[2]), int(sample.shape[3]))))
    start = torch.zeros((1, *shape), device=next(model.parameters()).device)
    goals: list[tuple[dict[str, Any], Goal]] = []
    if layer is not None:
        with _taking(size):
            output = _once(model, layer, start)
        wanted = list(channels) or list(range(min(16, output.shape[1])))
        checked_channels(wanted, output.shape[1], layer)
        _check_cell(cell, output, layer)
        goals = [({"layer": layer, "channel": c}, _channel(layer, c, cell)) for c in wanted]
    else:
        with torch.inference_mode(), evaluating(model), _taking(size):
            outputs = as_arrays(model(start))
        for name in class_names:
            aim = bundle.task.aim(outputs, class_name=name, head=head)
            goals.append(({"class": name, "head": aim.head}, _class(aim.pick)))
    rows, cells = [], []
    for named, goal in goals:
        found = maximize(model, goal, shape, bounds, recipe)
        rows.append({**named, "before": found.before, "after": found.after, "dead": found.dead})
        if not found.dead:
            words = f"channel {named['channel']}" if "channel" in named else f"{named['class']}"
            words += f"\n{found.before:.2g} to {found.after:.2g}"
            cells.append(Cell(Image.fromarray(found.shown()), words))
    dead = len(rows) - len(cells)
    what = f"channels of {layer}" if layer is not None else f"classes of {rows[0]['head']}"
    if cell is not None:
        what += f", the unit at row {cell[0]}, column {cell[1]}"
    note = f"Pictures made to excite {what}: {recipe.steps} steps of {recipe.step_size:g}, seed {recipe.seed}."
    if dead:
        note += f" Left out: {dead} without response to the start."
    if not cells:
        raise ConfigError(
            f"None of these {what} responds to the start: no gradient reaches the pixels. Try another --seed."
        )
    return rows, Sheet((Row("", tuple(cells)),), note, side=128, columns=COLUMNS)


@contextmanager
def _taking(size: tuple[int, int] | None) -> Iterator[None]:
    """Say of a size that was asked for, and not of a matrix, that it does not fit."""
    try:
        yield
    except RuntimeError as error:
        if size is None:
            raise
        raise ConfigError(f"This network does not take pictures of {size[0]} x {size[1]}: {error}") from error


def _once(model: nn.Module, layer: str, pictures: Tensor) -> Tensor:
    with torch.inference_mode(), evaluating(model), tapped(model, layer) as seen:
        model(pictures)
    if not seen or seen[-1].ndim not in (2, 4):
        raise ConfigError(f"Layer '{layer}' gives no channels (a map or one number per unit); choose another.")
    return seen[-1]


def _check_cell(cell: tuple[int, int] | None, output: Tensor, layer: str) -> None:
    if cell is None:
        return
    if output.ndim != 4 or not (0 <= cell[0] < output.shape[2] and 0 <= cell[1] < output.shape[3]):
        size = f"{output.shape[2]} x {output.shape[3]} cells" if output.ndim == 4 else "no map"
        raise ConfigError(f"Layer '{layer}' has no cell {cell[0]},{cell[1]}; it gives {size}.")


def _class(pick: Callable[[Any], Tensor]) -> Goal:
    return lambda model, pictures: pick(model(pictures))


def _channel(layer: str, channel: int, cell: tuple[int, int] | None) -> Goal:
    def goal(model: nn.Module, pictures: Tensor) -> Tensor:
        with tapped(model, layer) as seen:
            model(pictures)
        values = seen[-1][:, channel]  # (B,) or (B, h, w)
        if values.ndim == 1:
            return values
        return values.mean((1, 2)) if cell is None else values[:, cell[0], cell[1]]

    return goal


# Filters --------------------------------------------------------------------------------------------------------------


def filters(bundle: Bundle, layer: str | None = None, *, most: int = 64) -> tuple[dict[str, Any], Sheet]:
    """The weights of a convolution as pictures: in color where it takes color, else one row per filter.

    All pictures of a sheet have one scale: gray is 0, white the largest size of a weight, black the same below 0.

    Args:
        bundle: the model.
        layer: of a convolution; by default the first.
        most: filters shown in color; of other layers an eighth of it, each with its eight strongest inputs.

    Raises:
        UnknownName: if there is no such layer.
        ConfigError: if it is no convolution.
    """
    name, module = _convolution(bundle.model, layer)
    weights = module.weight.detach().float().cpu()
    if isinstance(module, nn.ConvTranspose2d):
        weights = weights.transpose(0, 1)
    norms = weights.flatten(1).norm(dim=1)  # (D,)
    limit = float(weights.abs().max())
    share = (weights / (limit or 1.0) * 0.5 + 0.5).mul(255).round().to(torch.uint8).numpy()  # (D, C, kh, kw)
    if share.shape[1] in (1, 3):
        cells = [
            Cell(Image.fromarray(_channels_last(share[k])), f"{k}: {norms[k]:.2g}")
            for k in range(min(most, len(share)))
        ]
        rows: tuple[Row, ...] = (Row(f"{name}: filter and its norm", tuple(cells)),)
        columns = COLUMNS
    else:
        strongest = weights.flatten(2).norm(dim=2).argsort(dim=1, descending=True, stable=True)[:, :COLUMNS]
        rows = tuple(
            Row(
                f"{name}, filter {k}, norm {norms[k]:.2g}: its strongest inputs",
                tuple(Cell(Image.fromarray(share[k, j]), f"input {j}") for j in strongest[k].tolist()),
            )
            for k in range(min(max(1, most // COLUMNS), len(share)))
        )
        columns = 0
    dead = torch.nonzero(norms <= DEAD * float(norms.max())).flatten().tolist()
    values = {
        "layer": name,
        "filters": len(share),
        "shape": list(weights.shape[1:]),
        "norms": [round(float(norm), 6) for norm in norms],
        "dead": dead,
        "largest_weight": limit,
    }
    note = f"{len(share)} filters, {len(dead)} dead. Gray is 0, white {limit:.3g}, black {-limit:.3g}."
    return values, Sheet(rows, note, side=64, columns=columns)


def _convolution(model: nn.Module, layer: str | None) -> tuple[str, nn.Conv2d | nn.ConvTranspose2d]:
    if layer is not None:
        _, module = find_layer(model, layer)
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            kind = type(module).__name__
            raise ConfigError(
                f"Layer '{layer}' is {kind}, no convolution. Name one, e.g. '{_convolution(model, None)[0]}'."
            )
        return layer, module
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            return bare(name), module
    raise ConfigError("This network has no convolution, so no filters to show.")


def _channels_last(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values.transpose(1, 2, 0)) if len(values) == 3 else values[0]


# Feature maps ---------------------------------------------------------------------------------------------------------


def maps(
    bundle: Bundle, picture: Path, layers: Sequence[str] = (), *, count: int = 8
) -> tuple[list[dict[str, Any]], Sheet]:
    """What layers say of one picture: the channels with the largest mean size, each map on the scale of its layer.

    Args:
        bundle: the model.
        picture: a file.
        layers: names; by default one per stage.
        count: channels per layer.

    Returns:
        Per layer its size, range, share of zeros and the channels shown; and the sheet.

    Raises:
        UnknownName: if there is no such layer.
        ConfigError: if one that was named gives no map.
    """
    named = list(layers) or [name for name in default_layers(bundle) if name != HEAD_INPUT]
    table, shown = [], []
    with asking(bundle, picture) as asked, torch.no_grad():
        for layer in named:
            with tapped(bundle.model, layer) as seen:
                bundle.model(asked.question.pixels)
            if not layers and seen[-1].ndim != 4:
                continue
            values = as_map(seen, layer)[0].float().cpu()  # (D, h, w)
            limit = float(values.abs().max())
            strength = values.abs().mean((1, 2))
            order = strength.argsort(descending=True, stable=True)[:count].tolist()
            signed = bool((values < 0).any())
            share = values / (limit or 1.0)
            gray = (share * 0.5 + 0.5 if signed else share).mul(255).round().to(torch.uint8).numpy()
            table.append({
                "layer": layer,
                "shape": list(values.shape),
                "range": [float(values.min()), float(values.max())],
                "mean": float(values.mean()),
                "zeros": float((values == 0).float().mean()),
                "channels": [{"channel": c, "mean_size": float(strength[c])} for c in order],
            })  # fmt: skip
            low = f"black {-limit:.3g}, gray 0" if signed else "black 0"
            title = f"{layer}: {' x '.join(map(str, values.shape))}; {low}, white {limit:.3g}"
            shown.append(Row(title, tuple(Cell(Image.fromarray(gray[c]), f"channel {c}") for c in order)))
    if not shown:
        raise ConfigError("No layer of this network keeps a map of the picture.")
    with Image.open(picture) as image:
        first = Row(picture.name, (Cell(ImageOps.exif_transpose(image).convert("RGB"), asked.aim.class_name),))
    note = "The channels with the largest mean size. All maps of a row have one scale."
    return table, Sheet((first, *shown), note)
