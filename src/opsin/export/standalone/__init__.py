"""What an export needs to be used without torch and without opsin: a reader, copied from this package.

`write` puts `predict.py`, `requirements.txt` and the package `opsin_reader` into the export. The reader is made of
opsin's own files (the result types, the runtime, this folder), found by following their imports, so that there is one
version of each. None of them may import torch. A task is served when this folder has a file of its name with:

    prepare(pixels, settings) -> input of the graph, (C, H, W)
    results(outputs, settings, ids) -> one result per picture
"""

from __future__ import annotations

import ast
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from opsin import __version__

READER = "opsin_reader"
ROOT = Path(__file__).parents[2]  # folder of the package opsin
FLOORS = {"numpy": "2.0", "pillow": "13.0"}  # as in pyproject.toml

START = f'''"""Predict pictures with this model: python predict.py PICTURE_OR_FOLDER...

Needs what requirements.txt names; neither torch nor opsin. Part of opsin, Apache-2.0.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from {READER}.export.standalone.predict import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(HERE, sys.argv[1:]))
'''


def write(folder: Path, task: str, runtime: str) -> list[str]:
    """Put the reader for a task and a runtime into an export; returns notes, when there is none for them."""
    own = Path(__file__).parent
    if not (own / f"{task}.py").is_file() or not (ROOT / "runtimes" / f"{runtime}.py").is_file():
        return [f"There is no predict.py without torch for {task} on {runtime} yet; the graph itself needs no torch."]
    roots = [own / "predict.py", own / f"{task}.py", ROOT / "runtimes" / f"{runtime}.py"]
    for source in closure(roots):
        copy = folder / READER / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text(encoding="utf-8").replace("from opsin.", f"from {READER}.")
        copy.write_text(f"# Part of opsin {__version__}, Apache-2.0.\n{text}", encoding="utf-8")
        for package in copy.relative_to(folder).parents:
            if package != Path():
                (folder / package / "__init__.py").touch()
    (folder / "predict.py").write_text(START, encoding="utf-8")
    needs = {**FLOORS, runtime: importlib.metadata.version(runtime)}
    lines = "".join(f"{name}>={floor}\n" for name, floor in needs.items())
    (folder / "requirements.txt").write_text(lines, encoding="utf-8")
    return []


def closure(roots: list[Path]) -> list[Path]:
    """Those files of opsin and all that they import of opsin."""
    found: dict[Path, None] = {}
    waiting = list(roots)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = None
            waiting += imported(path)
    return list(found)


def imported(path: Path) -> Iterator[Path]:
    """Files of opsin that a file takes names from."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("opsin."):
            yield ROOT.joinpath(*str(node.module).split(".")[1:]).with_suffix(".py")
