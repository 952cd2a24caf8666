"""Pictures of the data inside the page, as data addresses, up to a budget."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from opsin.report.svg import clean
from opsin.results.section import Picture

SIDE = 192  # pixels of the longer side; shown at about 120, so that it is sharp on fine screens
TINY = 64  # up to here a picture is kept as it is and enlarged pixel by pixel


class Thumbnails:
    """Draws pictures of galleries, each encoded once; what does not fit into the budget is said not to be shown.

    Args:
        picture: gives a picture or None.
        budget: characters that all pictures together may take.
    """

    def __init__(self, picture: Callable[[Picture], Image.Image | None], budget: int) -> None:
        self.picture, self.left = picture, budget
        self.made: dict[tuple[Any, ...], tuple[str, bool] | None] = {}

    def __call__(self, picture: Picture, alt: str) -> str:
        """`<img>` of a sample, or a box that says why there is none."""
        key = (picture.id, picture.box)
        if key not in self.made:
            if self.left <= 0:
                return _box("not shown: the page would get too large")
            self.made[key] = self._encode(picture)
        found = self.made[key]
        if found is None:
            return _box("no picture to show")
        address, tiny = found
        if len(address) > self.left:
            return _box("not shown: the page would get too large")
        self.left -= len(address)
        return (
            f"<img{' class=pixels' if tiny else ''} src='{address}' alt='{clean(alt)}' loading='lazy' decoding='async'>"
        )

    def _encode(self, picture: Picture) -> tuple[str, bool] | None:
        image = self.picture(picture)
        if image is None:
            return None
        if image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        tiny = max(image.size) <= TINY
        image.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        if tiny:
            image.save(file, "PNG", optimize=True)
        else:
            image.save(file, "JPEG", quality=82)
        kind = "png" if tiny else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}", tiny


def _box(text: str) -> str:
    return f"<span class='none'>{text}</span>"
