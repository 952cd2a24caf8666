"""The patches of a data set that most excite a channel, cut out by its receptive field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opsin.analyze.receptive import Wiring, as_map, effective, effective_window
from opsin.bundle import Bundle
from opsin.data.dataset import Dataset
from opsin.data.loader import EvalLoader
from opsin.errors import ConfigError
from opsin.models.builder import evaluating
from opsin.results.sheet import Cell, Row, Sheet
from opsin.run.seeing import chosen_rows
from opsin.task import Batch, Geometry
from opsin.transfer.features import tapped

SEEN = 16  # pictures that the effective field is averaged over


@dataclass(frozen=True)
class Patches:
    """What excites channels.

    Args:
        channels: per channel its patches, the strongest first, and the share of pictures in which it is above 0.
        field: theoretical and effective size (H, W) of the middle cell, in pixels of the input.
        sheet: the same as pictures.
    """

    channels: list[dict[str, Any]]
    field: dict[str, Any]
    sheet: Sheet


def patches(
    bundle: Bundle,
    data: Dataset,
    layer: str,
    channels: Sequence[int] = (),
    *,
    count: int = 8,
    limit: int | None = 1000,
    seed: int = 0,
) -> Patches:
    """The strongest place of a channel in each picture, and of these the strongest, cut out as the model saw them.

    Args:
        bundle: the model.
        data: pictures.
        layer: gives a map.
        channels: numbers; by default the eight that vary most.
        count: patches per channel, each of another picture.
        limit: pictures, drawn with the seed.

    Raises:
        UnknownName: if there is no such layer.
        ConfigError: if it gives no map, or has no such channel.
    """
    rows = chosen_rows(len(data), limit, seed)
    if len(rows) == 0:
        raise ConfigError(f"{data.name} holds no picture.")
    best, places = _strongest(bundle, data, rows, layer)  # (N, D) each
    wanted = list(channels) or sorted(np.argsort(-best.std(0), kind="stable")[:8].tolist())
    checked_channels(wanted, best.shape[1], layer)
    excited = {
        c: np.flatnonzero(best[:, c] != 0).tolist() for c in wanted
    }  # 0 is what a rectifier lets through of nothing
    tops = {c: [excited[c][k] for k in np.argsort(-best[excited[c], c], kind="stable")[:count]] for c in wanted}
    needed = sorted({i for top in tops.values() for i in top})
    if not needed:
        raise ConfigError(f"None of the channels {wanted} of '{layer}' responds to any of the {len(rows)} pictures.")
    inputs: dict[int, tuple[Tensor, Geometry]] = {}
    for start, batch in _batches(bundle, data, rows[needed]):
        for k in range(len(batch)):
            inputs[needed[start + k]] = (batch.inputs[k], batch.geometry[k])
    shape = next(iter(inputs.values()))[0].shape
    wiring = Wiring(bundle.model, layer, (shape[0], shape[1], shape[2]))
    table, shown = [], []
    for channel in wanted:
        found, cells = [], []
        for i in tops[channel]:
            cell = divmod(int(places[i, channel]), wiring.cells[1])
            window = wiring.window(*cell)
            pixels, geometry = inputs[i]
            found.append({
                "id": data.id(int(rows[i])),
                "value": float(best[i, channel]),
                "cell": list(cell),
                "input_xyxy": list(window),
                "box_xyxy": _original(window, geometry),
            })  # fmt: skip
            part = pixels[:, window.top : window.bottom, window.left : window.right]
            cells.append(Cell(as_picture(part, bundle), f"{best[i, channel]:.3g}"))
        share = float((best[:, channel] > 0).mean())
        table.append({"channel": channel, "patches": found, "active": share})
        shown.append(Row(f"channel {channel}: above 0 in {share:.0%} of the pictures", tuple(cells)))
    field = _field(bundle, layer, wiring, torch.stack([inputs[i][0] for i in needed[:SEEN]]))
    note = (
        f"{layer}: the strongest places in {len(rows)} pictures, as the model saw them. A cell is wired to "
        f"{field['theoretical'][0]} x {field['theoretical'][1]} pixels of the input and depends mostly on "
        f"{field['effective'][0]} x {field['effective'][1]} (gradient above 4.55 % of its largest)."
    )
    return Patches(table, field, Sheet(tuple(shown), note))


def checked_channels(channels: Sequence[int], count: int, layer: str) -> None:
    """Refuse numbers of channels that a layer does not have.

    Raises:
        ConfigError: for such a number.
    """
    for channel in channels:
        if not 0 <= channel < count:
            raise ConfigError(f"Layer '{layer}' has no channel {channel}; it has 0 to {count - 1}.")


def as_picture(pixels: Tensor, bundle: Bundle) -> Image.Image:
    """Part of a model's input (C, h, w) as a picture."""
    low, high = (0.0, 255.0) if bundle.task.spec is None else bundle.task.spec.range
    share = ((pixels.float() - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    return Image.fromarray(np.ascontiguousarray(share[:3].transpose(1, 2, 0)) if len(share) >= 3 else share[0])


def _strongest(bundle: Bundle, data: Dataset, rows: Any, layer: str) -> tuple[Any, Any]:
    """Largest value of each channel in each picture (N, D), and the number of the cell, row by row, that has it."""
    values, places = [], []
    device = next(bundle.model.parameters()).device
    with tapped(bundle.model, layer) as seen, evaluating(bundle.model), torch.inference_mode():
        for _, batch in _batches(bundle, data, rows):
            seen.clear()
            bundle.model(batch.inputs.to(device))
            best = as_map(seen, layer).float().flatten(2).max(2)  # over (B, D, h * w)
            values.append(best.values.cpu().numpy())
            places.append(best.indices.cpu().numpy())
    return np.concatenate(values), np.concatenate(places)


def _batches(bundle: Bundle, data: Dataset, rows: Any) -> Iterator[tuple[int, Batch]]:
    with _loader(bundle, data, rows) as loader:
        start = 0
        for batch in loader:
            yield start, batch
            start += len(batch)


@contextmanager
def _loader(bundle: Bundle, data: Dataset, rows: Any) -> Iterator[EvalLoader]:
    loader = EvalLoader(data, rows, bundle.task, batch_size=64)
    try:
        yield loader
    finally:
        loader.close()


def _original(window: Any, geometry: Geometry) -> list[float]:
    """A window of the input in pixels of the original picture, cut at its border."""
    height, width = geometry.original_size
    corners = [
        min(max(value * geometry.scale[k % 2] + geometry.offset[k % 2], 0.0), float((width, height)[k % 2]))
        for k, value in enumerate(window)
    ]
    return [round(value, 2) for value in corners]


def _field(bundle: Bundle, layer: str, wiring: Wiring, pictures: Tensor) -> dict[str, Any]:
    middle = wiring.window(wiring.cells[0] // 2, wiring.cells[1] // 2)
    weights = effective(bundle.model, layer, pictures)
    return {"theoretical": list(middle.size), "effective": list(effective_window(weights).size)}
