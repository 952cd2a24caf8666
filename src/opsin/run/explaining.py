"""Explain pictures from files and folders: maps drawn over them, numbers beside them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from opsin.bundle import Bundle
from opsin.data.dataset import Dataset
from opsin.data.image import read_original
from opsin.errors import ConfigError, DataError
from opsin.explain import Asked, asking, checked, defaults, explanation
from opsin.results.explanation import Explanation
from opsin.run.predicting import pictures_at, safe_path
from opsin.task import Sample


@dataclass
class Explained:
    """One explained picture.

    Args:
        file: path or id of the picture.
        result: its explanation.
        drawn: the picture with the map over it; beside it lie the numbers (`.json`) and the map itself (`.npy`).
        sanity: what came of the sanity check, if it was asked for.
        faithful: deletion and insertion, if they were asked for.
    """

    file: str
    result: Explanation
    drawn: Path
    sanity: Any = None
    faithful: Any = None

    def to_dict(self) -> dict[str, Any]:
        """For `--json`, and for the file beside the picture."""
        values = {k: v for k, v in self.result.to_dict().items() if k != "id"}
        values |= {"drawn": str(self.drawn), "map": str(self.drawn.with_suffix(".npy"))}
        checks = {"sanity": self.sanity, "faithful": self.faithful}
        return {"file": self.file, **values, **{k: v.to_dict() for k, v in checks.items() if v is not None}}


@dataclass
class Explanations:
    """What came of an `explain`.

    Args:
        results: in order.
        failed: name to reason, of pictures that could not be read.
        folder: where everything lies.
    """

    folder: Path
    results: list[Explained] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        found = [one.to_dict() for one in self.results]
        return {"explanations": found, "failed": self.failed, "folder": str(self.folder)}


def explain_files(
    bundle: Bundle,
    inputs: Sequence[str | Path],
    method: str | None = None,
    *,
    class_name: str | None = None,
    head: str | None = None,
    options: Mapping[str, Any] | None = None,
    save: Path = Path("explanations"),
    sanity: bool = False,
    faithful: bool = False,
) -> Explanations:
    """Explain what a model says of every picture among files, folders and archives.

    Args:
        bundle: the model.
        inputs: files, folders (with all below) or archives.
        method, class_name, head: see `opsin.explain.explain`.
        options: of the method.
        save: folder for the drawn pictures, maps and numbers; nothing in it is written over.
        sanity: make the weights random and see whether the map changes.
        faithful: measure deletion and insertion.

    Raises:
        ConfigError: if there is nothing at an input, no picture in any, or the method cannot explain this network.
        UnknownName: if there is no such method, class, head or layer.
    """
    options = dict(options or {})
    method = method or bundle.task.explained_by
    checked(method, options)  # before any picture is read
    sources = [pictures_at(Path(one)) for one in inputs]
    if sum(len(source) for source in sources) == 0:
        raise ConfigError(f"No picture found in {', '.join(map(str, inputs))}.")
    found = Explanations(save)
    for source in sources:
        for i in range(len(source)):
            try:
                sample, picture = _read(source, i, bundle.task.reduce_to)
            except DataError as error:
                found.failed[source.id(i)] = str(error)
                continue
            with asking(bundle, sample, i, class_name, head) as asked:
                asked = asked._replace(original_size=(picture.height, picture.width))
                found.results.append(_explained(asked, picture, method, options, save, sanity, faithful))
    return found


def _read(source: Dataset, i: int, reduce_to: int | None) -> tuple[Sample, Image.Image]:
    """A picture as `opsin predict` reads it, and the original to draw over, turned as EXIF says.

    Raises:
        DataError: if it cannot be read.
    """
    data, _ = source.bytes_of(i)
    if source.arrays is not None:
        sample = source.read(i)
    else:
        pixels, _, size = read_original(data, reduce_to=reduce_to, name=source.id(i))
        sample = Sample(source.id(i), pixels, original_size=size)
    try:
        with Image.open(io.BytesIO(data)) as image:
            picture = ImageOps.exif_transpose(image)
            picture.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{source.id(i)}: cannot be drawn over ({error}).") from error
    return sample, picture


def _explained(
    asked: Asked, picture: Image.Image, method: str, options: dict[str, Any], save: Path, sanity: bool, faithful: bool
) -> Explained:
    from opsin.explain import faithful as faithfulness
    from opsin.explain import sanity as checks

    found = checked(method, options)(asked.question)
    result = explanation(asked, method, found)
    # A method that chose a layer keeps it when the weights are random.
    kept = {"layer"} & found.details.keys() & defaults(method).keys()
    same = {**options, **{name: found.details[name] for name in kept}}
    checked_sanity = checks.check(asked.question, checked(method, same)) if sanity else None
    measured = faithfulness.measure(asked.question, found) if faithful else None
    name = Path(safe_path(asked.id))
    label = re.sub(r"[^\w.-]+", "-", Path(method).name)  # a method of one's own is named by its file
    target = _free(save / name.with_name(f"{name.stem}-{label}.png"))
    target.parent.mkdir(parents=True, exist_ok=True)
    result.draw(picture).save(target)
    one = Explained(asked.id, result, target, checked_sanity, measured)
    np.save(target.with_suffix(".npy"), result.map)
    target.with_suffix(".json").write_text(json.dumps(one.to_dict(), indent=2) + "\n", encoding="utf-8")
    return one


def _free(path: Path) -> Path:
    """The path, or one with a number behind its stem, so that neither it nor the files beside it are written over."""
    number, other = 1, path
    while any(other.with_suffix(suffix).exists() for suffix in (".png", ".npy", ".json")):
        number += 1
        other = path.with_stem(f"{path.stem}-{number}")
    return other
