"""What the reader of the format complained about."""

from __future__ import annotations

from collections.abc import Iterator

from opsin.analyze.check.findings import Finding, counted
from opsin.analyze.check.scan import Scan

NAMES = ("reader",)


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `reader-error` and `reader-warning`; files that cannot be decoded are left to `unreadable`."""
    bad = set(scan.ids(scan.facts.errors))
    for level in ("error", "warning"):
        problems = [p for p in scan.dataset.problems if p.level == level and not (p.sample_id in bad or p.where in bad)]
        if problems:
            listed = problems[: scan.options.listed]
            messages = " ".join(
                f"{p.where}: {p.message}" if p.where not in p.message else p.message for p in listed[:3]
            )
            named = [p for p in listed if p.sample_id is not None]
            yield Finding(
                f"reader-{level}",
                "error" if level == "error" else "warning",
                f"{counted(len(problems), 'problem')} while reading ({scan.dataset.format}): {messages}",
                tuple((str(p.sample_id),) for p in named),
                "Mend the files or lines named, or pass --skip-bad to leave them out.",
                tuple(p.message for p in named),
                {"count": len(problems), "groups": len(named), "messages": [f"{p.where}: {p.message}" for p in listed]},
            )
