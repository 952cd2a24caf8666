"""The cells of the notebooks, run one after the other in an empty folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SHORT = {"first-classifier"}
AS_IT_IS = {"digits-on-pages"}  # says something only of a model that has learned


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=() if path.stem in SHORT else pytest.mark.slow)
        for path in sorted(NOTEBOOKS.glob("*.ipynb"))
    ],
)
def test_cells_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 3
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, text in enumerate(code):
        plain = re.sub(r"^%.*$", "", text, flags=re.MULTILINE)
        if name not in AS_IT_IS:
            plain = re.sub(r"\bepochs=\d+", "epochs=2", plain)
        exec(compile(plain, f"{name}, cell {number}", "exec"), names)
