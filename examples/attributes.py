"""Several questions about one picture: a table with one column per question, some answers missing.

    python examples/attributes.py

`digit` and `parity` have exactly one answer each; `shape` may have several (`loop|round`), or none. Every column becomes
a head of one network. Missing answers are left out of the loss and the metrics, each head with its own count. On the
command line the roles of columns are flags: `--columns image=file --columns shape=shape:multi ...`.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import opsin

ROUND = ["loop", "round"]
SHAPES = {0: ROUND, 2: ["round"], 3: ["round"], 6: ROUND, 8: ROUND, 9: ROUND}
COLUMNS = {"image": "file", "digit": "digit:classes", "parity": "parity", "shape": "shape:multi", "separator": "|"}


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
        data = opsin.load_data(write_table(place / "digits"), columns=COLUMNS)
        print(", ".join(f"{head.name} ({head.kind}: {' '.join(head.class_names)})" for head in data.heads))
        run = opsin.train(
            "classify", data=data, model="smallnet", epochs=8, batch_size=64, out=place / "run", quiet=True
        )
        for metric in ("digit.accuracy", "parity.accuracy", "shape.average_precision"):
            one = run.state["validation"][metric]
            print(f"{metric} {one['value']:.3f} on {one['n']} validation pictures")
        result = run.predict(place / "digits" / "pictures" / "0008.png")
        print("an eight is called", {head.name: head.labels for head in result.heads})


if __name__ == "__main__":
    main()
