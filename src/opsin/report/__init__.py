"""One self-contained page about a run: what data, what model, how good, where it goes wrong, how to repeat it."""

from __future__ import annotations

from pathlib import Path

from opsin.durable import write_durably
from opsin.errors import ConfigError
from opsin.report.build import build_page
from opsin.report.html import MARK, page_html
from opsin.report.inputs import ReportInputs, no_picture
from opsin.report.markdown import MARK as MARKDOWN_MARK
from opsin.report.markdown import page_markdown

HEAD = 2000  # bytes in which an earlier report shows its mark


def write_report(inputs: ReportInputs, path: Path) -> Path:
    """Write the page, and the same words as Markdown beside it; an earlier report there is replaced.

    Args:
        inputs: what the report is about.
        path: the HTML file; the other one has the suffix `.md`.

    Raises:
        ConfigError: if the file is not named .html, or a file in its place is not a report.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {path}: a report is an HTML file; name it *.html.")
    beside = path.with_suffix(".md")
    for file, mark in ((path, MARK), (beside, MARKDOWN_MARK)):
        if file.exists() and not (file.is_file() and mark.encode() in file.read_bytes()[:HEAD]):
            raise ConfigError(f"{file} exists and is not a report of opsin. Name another file: --out FILE.html")
    page = build_page(inputs)
    text, words = page_html(page, inputs.picture), page_markdown(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(beside, words.encode())
    write_durably(path, text.encode())
    return path


__all__ = ["ReportInputs", "build_page", "no_picture", "page_html", "page_markdown", "write_report"]
