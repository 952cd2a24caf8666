"""The findings for a person at a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from opsin.analyze.check.findings import Finding, Findings

_COLORS = {"error": "red", "warning": "yellow", "info": "cyan"}
_WORDS = {"error": "Error", "warning": "Warning", "info": "Note"}
_SHOWN = 3


def render(findings: Findings) -> RenderableType:
    """A rich renderable: what the data hold, then every finding with examples and what to do."""
    profile = findings.profile
    facts = Table.grid(padding=(0, 2))
    facts.add_row("pictures", f"{profile['samples']:,} ({profile['format']})")
    if profile["split_known"]:
        facts.add_row("parts", ", ".join(f"{part} {count:,}" for part, count in profile["parts"].items() if count))
    for head in profile["heads"]:
        counts = [entry["total"] for entry in head["classes"]]
        if counts:
            facts.add_row(
                f"classes ({head['name']})", f"{len(counts):,}, with {min(counts):,} to {max(counts):,} {head['noun']}s"
            )
    for about in profile["objects"]:
        facts.add_row("objects", f"{about['count']:,} in {about['pictures']:,} pictures, {about['empty']:,} without")
    if profile["height"]:
        facts.add_row(
            "median size", f"{profile['width']['median']:.0f} x {profile['height']['median']:.0f} (width x height)"
        )
    levels = findings.counts
    words = [
        f"{n} {word}{'s' if n != 1 else ''}"
        for word, n in (("error", levels["error"]), ("warning", levels["warning"]))
        if n
    ]
    verdict = Text(", ".join(words) or "no errors, no warnings", style="bold")
    return Group(
        Panel(facts, title=str(profile["name"]), title_align="left", expand=False), *map(_entry, findings), verdict
    )


def _entry(finding: Finding) -> RenderableType:
    color = _COLORS[finding.level]
    body = Text()
    body.append(f"{_WORDS[finding.level]} ", style=f"bold {color}")
    body.append(f"{finding.code}\n", style="bold")
    body.append(finding.text + "\n")
    captions = finding.captions or ("",) * len(finding.groups)
    if finding.level != "info":
        for group, caption in list(zip(finding.groups, captions))[:_SHOWN]:
            shown = " = ".join(group[:4]) + (f" and {len(group) - 4} more" if len(group) > 4 else "")
            body.append(f"  {shown}" + (f"  ({caption})" if caption and len(group) <= 4 else "") + "\n", style="dim")
    if finding.fix:
        body.append("  -> ", style=color)
        body.append(finding.fix + "\n")
    return body
