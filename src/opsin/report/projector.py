"""The embedding projector: one page that needs nothing else, and the files of TensorBoard's projector.

TensorBoard's rules: one line of numbers per vector in the tensor file; the metadata has a header line only when it has
several columns; the sprite sheet holds thumbnails of one size, row by row, in the order of the vectors.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from opsin.durable import write_durably
from opsin.errors import ConfigError
from opsin.report.svg import clean

LARGEST_SPRITE = 8192  # pixels along a side that browsers and TensorBoard take


def sprite(pictures: Sequence[Image.Image], side: int) -> tuple[Image.Image, int]:
    """Thumbnails of side x side on one sheet, row-major, and the number of columns. Each picture keeps its proportions.

    Raises:
        ConfigError: if the sheet would be larger than browsers take.
    """
    columns = max(1, math.ceil(math.sqrt(len(pictures))))
    if columns * side > LARGEST_SPRITE:
        most = (LARGEST_SPRITE // side) ** 2
        raise ConfigError(f"{len(pictures)} thumbnails of {side} pixels do not fit on one sheet; take at most {most}.")
    sheet = Image.new("RGB", (columns * side, math.ceil(len(pictures) / columns) * side))
    for i, picture in enumerate(pictures):
        small = picture.convert("RGB")
        scale = side / max(small.size)
        small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))))
        x, y = i % columns * side, i // columns * side
        sheet.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))
    return sheet, columns


def page(title: str, facts: str, values: dict[str, Any], sheet: Image.Image) -> str:
    """The page as HTML.

    Args:
        title: heading.
        facts: one line below it.
        values: `points`, `ids`, `labels` (-1: none), `names`, `neighbors` ([position, cosine] of each), `by`, `side`,
            `columns` of the sprite.
        sheet: from `sprite`.
    """
    file = io.BytesIO()
    colored = bool(np.ptp(np.asarray(sheet), axis=2).any())
    (sheet if colored else sheet.convert("L")).save(file, "PNG", optimize=True)
    address = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    data = json.dumps({**values, "facts": facts, "sprite": address}, separators=(",", ":"), allow_nan=False)
    for sign, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):  # no name can end the block it lies in
        data = data.replace(sign, code)
    text = (Path(__file__).parent / "projector.html").read_text(encoding="utf-8")
    head, tail = text.split("__DATA__")
    return head.replace("__TITLE__", clean(title)) + data + tail


def tensorboard_files(
    folder: Path,
    values: NDArray[np.float32],
    ids: Sequence[str],
    labels: Sequence[str] | None,
    sheet: Image.Image,
    side: int,
) -> list[Path]:
    """Write tensor.tsv, metadata.tsv, sprite.png and projector_config.pbtxt into a folder that TensorBoard can be given.

    Args:
        folder: made if it is not there.
        values: (N, D).
        ids: of the vectors.
        labels: of the vectors; without, the metadata has one column and so no header.
        sheet: from `sprite`.
        side: of a thumbnail.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vectors = "".join("\t".join(f"{v:.7g}" for v in row) + "\n" for row in values)
    if labels is None:
        metadata = "".join(f"{_cell(name)}\n" for name in ids)
    else:
        metadata = "id\tlabel\n" + "".join(f"{_cell(name)}\t{_cell(label)}\n" for name, label in zip(ids, labels))
    config = (
        'embeddings {\n  tensor_name: "features"\n  tensor_path: "tensor.tsv"\n  metadata_path: "metadata.tsv"\n'
        f'  sprite {{\n    image_path: "sprite.png"\n    single_image_dim: {side}\n    single_image_dim: {side}\n  }}\n}}\n'
    )
    picture = io.BytesIO()
    sheet.save(picture, "PNG", optimize=True)
    contents = {
        "tensor.tsv": vectors.encode(),
        "metadata.tsv": metadata.encode("utf-8", "replace"),
        "sprite.png": picture.getvalue(),
        "projector_config.pbtxt": config.encode(),
    }
    for name, content in contents.items():
        write_durably(folder / name, content)
    return [folder / name for name in contents]


def _cell(words: str) -> str:
    return " ".join(words.split()) or "-"
