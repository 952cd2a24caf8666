"""Several questions about one picture: a table with one column per question, some answers missing.

    python examples/attributes.py

`digit` and `parity` have exactly one answer each; `shape` may have several (`loop|round`), or none. Every column becomes
a head of one network. Missing answers are left out of the loss and the metrics, each head with its own count.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import opsin

SHAPES = {0: ["loop", "round"], 2: ["round"], 3: ["round"], 6: ["loop", "round"], 8: ["loop", "round"], 9: ["loop", "round"]}
COLUMNS = {"image": "file", "digit": "digit", "parity": "parity", "shape": "shape:multi", "separator": "|"}


def write_table(folder: Path) -> Path:
    """Pictures and `labels.csv`; every tenth parity is left empty."""
    data = load_digits()
    (folder / "pictures").mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "digit", "parity", "shape"])
        for i in range(600):
            digit = int(data.target[i])
            name = f"pictures/{i:04d}.png"
            Image.fromarray(np.round(data.images[i] * (255 / 16)).astype(np.uint8)).save(folder / name)
            parity = "" if i % 10 == 0 else ("even", "odd")[digit % 2]
            shape = "|".join(SHAPES.get(digit, [])) or "|"  # the bare separator says: none of them
            table.writerow([name, digit, parity, shape])
    return folder / "labels.csv"


def main() -> None:
    """Train one network with three heads and ask it all three questions."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        table = write_table(place / "digits")
        run = opsin.train(
            "classify", data=table, model="smallnet", epochs=8, out=place / "run", quiet=True,
            data_settings={},
        )  # fmt: skip
        print(run)


if __name__ == "__main__":
    main()
