"""What the reader of the format complained about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from opsin.analyze.check.findings import Finding, counted
from opsin.analyze.check.scan import Scan

NAMES = ("reader",)


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `reader-error`, `reader-warning`, `reader-info`; files that cannot be decoded are left to `unreadable`."""
    bad = set(scan.ids(scan.facts.errors))
    levels: tuple[Literal["error", "warning", "info"], ...] = ("error", "warning", "info")
    for level in levels:
        problems = [p for p in scan.dataset.problems if p.level == level and not (p.sample_id in bad or p.where in bad)]
        if problems:
            listed = problems[: scan.options.listed]
            messages = " ".join(map(str, listed[:3]))
            named = [p for p in listed if p.sample_id is not None]
            yield Finding(
                f"reader-{level}",
                level,
                f"{counted(len(problems), 'note' if level == 'info' else 'problem')} while reading ({scan.dataset.format}): {messages}",
                tuple((str(p.sample_id),) for p in named),
                "Nothing to do, unless these should be pictures."
                if level == "info"
                else "Mend the files or lines named, or pass --skip-bad to leave them out.",
                tuple(p.message for p in named),
                {"count": len(problems), "groups": len(named), "messages": [f"{p.where}: {p.message}" for p in listed]},
            )
