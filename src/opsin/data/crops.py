"""Objects of a data set cut out of their pictures: a folder per class, to look at them or to train a classifier."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from opsin.data.dataset import PARTS, Dataset
from opsin.data.spec import convert
from opsin.errors import DataError
from opsin.task import ImageSpec


def crop_objects(data: Dataset, to: Path, *, margin: float = 0.0, smallest: int = 8) -> dict[str, Any]:
    """Write every object as a PNG: `to/PART/CLASS/PICTURE-number.png` (without parts: `to/CLASS/...`).

    Crowds are left out. Beside the pictures lies `crops.json` with the picture and the box of every one of them.

    Args:
        data: with objects.
        to: a new folder, which appears when it is complete.
        margin: pixels around the box, as a share of its longer side.
        smallest: objects with a shorter side, in pixels, are left out.

    Returns:
        How many were cut out and left out, and per class.

    Raises:
        DataError: if there are no objects, or `to` exists.
    """
    heads = [head for head in data.heads if head.kind == "objects"]
    if not heads:
        raise DataError(
            f"{data.root} has no boxes to cut out. It has: {', '.join(h.name for h in data.heads) or 'no labels'}."
        )
    if to.exists():
        raise DataError(f"{to}: exists already. Give a new folder.")
    head, partial = heads[0], to.with_name(to.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    counts, left_out, listed = dict.fromkeys(head.class_names, 0), {"crowd": 0, "small": 0}, {}
    parts = (data.given_split >= 0).any()
    for i, objects in enumerate(data.targets[head.name]):
        sample = data.read(i)
        spec = data.spec
        pixels = convert(sample.image, spec, ImageSpec(3)).permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels)
        for number, (box, label) in enumerate(zip(objects.boxes_xyxy.tolist(), objects.labels.tolist())):
            cut = _around(box, margin, picture.size)
            if objects.crowd[number] or min(cut[2] - cut[0], cut[3] - cut[1]) < smallest:
                left_out["crowd" if objects.crowd[number] else "small"] += 1
                continue
            name = head.class_names[label]
            part = [PARTS[data.given_split[i]]] if parts and data.given_split[i] >= 0 else []
            stem = data.id(i).rpartition(".")[0].replace("/", "-") or data.id(i)
            path = Path(*part, name.replace("/", "-"), f"{stem}-{number}.png")
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            picture.crop(cut).save(partial / path)
            counts[name] += 1
            listed[path.as_posix()] = {"picture": data.id(i), "class": name, "box_xyxy": [round(v, 2) for v in box]}
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "crops.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(to)
    return {"out": str(to), "objects": sum(counts.values()), "left_out": left_out, "classes": counts}


def _around(box: list[float], margin: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    more = margin * max(right - left, bottom - top)
    return (
        max(math.floor(left - more), 0), max(math.floor(top - more), 0),
        min(math.ceil(right + more), size[0]), min(math.ceil(bottom + more), size[1]),
    )  # fmt: skip
