"""Files that are empty, cut off, damaged or no pictures."""

from __future__ import annotations

from collections.abc import Iterator

from opsin.analyze.check.findings import Finding, names_text, of_all
from opsin.analyze.check.scan import Scan

NAMES = ("unreadable",)

_FIX = "Replace or delete these files, or pass --skip-bad to leave them out (they are counted in the report)."


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `empty-file` and `unreadable-file`."""
    bad = sorted(scan.facts.errors)
    empty = [i for i in bad if "(0 bytes)" in scan.facts.errors[i] or "zero bytes" in scan.facts.errors[i]]
    broken = [i for i in bad if i not in set(empty)]
    for code, members, verbs, words in (
        ("empty-file", empty, ("holds", "hold"), "no data (0 bytes, or zeros only)"),
        ("unreadable-file", broken, ("cannot", "cannot"), "be decoded (cut off, damaged, or no pictures)"),
    ):
        if members:
            names = scan.ids(members)
            listed = members[: scan.options.listed]
            yield Finding(
                code,
                "error",
                f"{of_all(len(members), len(scan), 'file', *verbs)} {words}: {names_text(names)}.",
                tuple((name,) for name in names[: scan.options.listed]),
                _FIX,
                tuple(_reason(scan.facts.errors[i]) for i in listed),
                {"count": len(members), "groups": len(members)},
            )


def _reason(message: str) -> str:
    """The middle of "name: reason. Advice"."""
    return message.partition(": ")[2].partition(". ")[0] or message
