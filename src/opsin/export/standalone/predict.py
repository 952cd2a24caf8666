"""Predict pictures with an exported model, without torch and without opsin.

As a command: `python predict.py PICTURE_OR_FOLDER... [--threads N]` prints the predictions as JSON, the same as
`opsin predict --json`. From Python:

    from opsin_reader.export.standalone.predict import Model
    Model("path/of/the/export").predict(["cat.jpg"])
"""

from __future__ import annotations

import argparse
import json
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from opsin.errors import CheckpointError, DataError, OpsinError
from opsin.export.standalone.pictures import read_picture

ROOT = __name__.partition(".")[0]  # opsin, or what the copy beside an export is called
SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
    ".pgm",
    ".ppm",
    ".jp2",
    ".avif",
)


class Model:
    """An exported model.

    Args:
        folder: of the export.
        threads: processor threads of the runtime.

    Raises:
        CheckpointError: if files are missing or do not belong together.
    """

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        folder = Path(folder)
        try:
            self.record: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder / 'model.json'} cannot be read: {error}") from error
        self.settings: dict[str, Any] = self.record["settings"]
        self.task = import_module(f"{__name__.rpartition('.')[0]}.{self.record['task']}")
        runtime = import_module(f"{ROOT}.runtimes.{self.record['runtime']}")
        self.runtime = runtime.build(folder / self.record["file"], threads=threads)
        if self.runtime.metadata.get("fingerprint") != self.record["fingerprint"]:
            raise CheckpointError(f"{folder}: model.json and {self.record['file']} are of different models.")

    def predict(self, paths: Sequence[str | Path]) -> list[dict[str, Any]]:
        """The predictions for some pictures, as JSON values.

        Raises:
            DataError: if a picture cannot be read.
        """
        return [self._predict(str(path), Path(path)) for path in paths]

    def predict_files(self, inputs: Sequence[str | Path]) -> dict[str, Any]:
        """Predictions for files and for all pictures below folders; what cannot be read stands under `failed`."""
        found, failed = [], {}
        for name, path in list(_files(inputs)):
            try:
                found.append(self._predict(name, path))
            except DataError as error:
                failed[name] = str(error)
        return {"predictions": found, "failed": failed}

    def _predict(self, name: str, path: Path) -> dict[str, Any]:
        picture = read_picture(path, self.record["reduce_to"])
        inputs = self.task.prepare(picture.pixels, self.settings)[None]  # (1, C, H, W)
        (result,) = self.task.results(self.runtime(inputs), self.settings, [name])
        values = {key: value for key, value in result.to_dict().items() if key != "id"}
        return {"file": name, **values, "time": picture.taken or None}


def _files(inputs: Sequence[str | Path]) -> Iterator[tuple[str, Path]]:
    """Name and path of every picture: a file's own name, or its path inside the folder that was given."""
    for one in map(Path, inputs):
        if not one.exists():
            raise OpsinError(f"{one}: there is no such file or folder.")
        if one.is_file():
            yield unicodedata.normalize("NFC", one.name), one
            continue
        for path in sorted(one.rglob("*")):
            if path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                yield unicodedata.normalize("NFC", path.relative_to(one).as_posix()), path


def main(folder: Path, arguments: Sequence[str]) -> int:
    """The command; 0 when pictures were predicted, 2 when none could be."""
    parser = argparse.ArgumentParser(prog="predict.py", description="Predict pictures with this model; prints JSON.")
    parser.add_argument("inputs", nargs="+", help="pictures or folders")
    parser.add_argument("--threads", type=int, help="processor threads")
    given = parser.parse_args(arguments)
    try:
        found = Model(folder, given.threads).predict_files(given.inputs)
    except OpsinError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=sys.stdout.encoding.lower() != "utf-8") + "\n")
    return 0 if found["predictions"] else 2
