"""A small run trained, judged and reported; the page opened in Chromium on a narrow screen."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import opsin
from opsin.run.evaluating import evaluate_run
from opsin.run.reporting import report_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = ("<img src=x onerror=alert(1)>", "a_class_with_a_name_that_has_no_place_to_break_" + "x" * 60)
MEASURE = """
const frame = document.querySelector('iframe');
function measure() {
  const page = frame.contentDocument, root = page.documentElement;
  const wide = [...page.body.querySelectorAll('*')].filter(e => !e.closest('.scroll, svg, .name > bdi')
    && e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML.slice(0, 90));
  document.title = JSON.stringify({scroll: root.scrollWidth, client: root.clientWidth, wide: wide.slice(0, 5),
    tables: page.querySelectorAll('table').length});
}
const seen = () => frame.contentDocument?.querySelector('footer');
const ready = seen() && frame.contentDocument.readyState === 'complete';
ready ? measure() : frame.addEventListener('load', () => seen() && measure());
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    for k, name in enumerate(NAMES):
        (folder / "data" / name).mkdir(parents=True)
        for i in range(24):
            pixels = np.clip(random.normal(90 + 60 * k, 60, (8, 8)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"picture_{'long_' * 20}{i}.png")
    run = opsin.train(
        "classify", data=folder / "data", model="linear", out=folder / "run", quiet=True,
        epochs=2, batch_size=16, micro_batch=16, preflight=False, listeners=["jsonl"],
    )  # fmt: skip
    sealed = report_run(run).read_text(encoding="utf-8")
    assert "still sealed" in sealed
    assert "Nobody has looked" in sealed
    evaluate_run(run)
    return report_run(run)


def test_report_of_a_real_run(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    found = json.loads((report.parent / "evaluation-test.json").read_text())
    assert f"{found['metrics']['accuracy']['value']:.4f}" in text
    assert "Looks at the test part: 1" in text
    assert "<img src=x" not in text
    assert report.with_suffix(".md").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; the page's layout is not tried")
@pytest.mark.parametrize("width", [360, 390, 1600])
def test_nothing_is_wider_than_the_screen(report: Path, tmp_path: Path, width: int) -> None:
    inner = html.escape(report.read_text(encoding="utf-8"))
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f"<!doctype html><meta charset='utf-8'><iframe style='border:0;width:{width}px;height:900px' "
        f'srcdoc="{inner}"></iframe><script>{MEASURE}</script>',
        encoding="utf-8",
    )
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1700,1000", "--virtual-time-budget=4000", "--dump-dom", wrapper.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", shown, re.DOTALL)
    assert title, shown[-500:]
    measured = json.loads(html.unescape(title[1]))
    assert measured["client"] == width
    assert measured["tables"] > 5
    assert measured["scroll"] <= width, measured
    assert measured["wide"] == []
