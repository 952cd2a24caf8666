"""What the data doctor says: findings with a stable code, plain words, the samples concerned and how to mend them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from opsin.recipe import Settings

Level = Literal["error", "warning", "info"]

LEVELS: tuple[Level, ...] = ("error", "warning", "info")
_IDS_IN_TEXT = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Args:
        code: stable name for machines, e.g. "exact-duplicate-across-splits".
        level: an error makes `opsin data check` exit with 1, a warning does so under `--strict`.
        text: what was found, with counts.
        groups: the samples concerned: one tuple of ids per pair or cluster, of one id where samples stand alone. Worst
            first; at most `CheckOptions.listed` of them, `data["groups"]` has the full count.
        fix: what to do, with the exact flag or command.
        captions: a few words per group, for the page; empty, or as long as `groups`.
        data: further numbers, JSON-safe.
        marks: for findings on boxes, which objects of the picture of each group are meant; empty, or as long as `groups`.
    """

    code: str
    level: Level
    text: str
    groups: tuple[tuple[str, ...], ...] = ()
    fix: str = ""
    captions: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[tuple[int, ...], ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """All sample ids concerned, each once, in the order of `groups`."""
        return tuple(dict.fromkeys(name for group in self.groups for name in group))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "code": self.code,
            "level": self.level,
            "text": self.text,
            "fix": self.fix,
            "ids": [list(group) for group in self.groups],
            "captions": list(self.captions),
            "data": dict(self.data),
            **({"objects": [list(group) for group in self.marks]} if self.marks else {}),
        }


@dataclass(frozen=True)
class Findings:
    """All that a check found, worst first, and the profile of the data set.

    Args:
        findings: errors, then warnings, then remarks.
        profile: counts, classes, parts, sizes, brightness; JSON-safe.
        ran: checks that ran, with the seconds each took.
    """

    findings: tuple[Finding, ...]
    profile: Mapping[str, Any]
    ran: Mapping[str, float]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, code: str) -> Finding:
        for finding in self.findings:
            if finding.code == code:
                return finding
        raise KeyError(code)

    def __contains__(self, code: object) -> bool:
        return any(finding.code == code for finding in self.findings)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that must be mended."""
        return tuple(f for f in self.findings if f.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that should be looked at."""
        return tuple(f for f in self.findings if f.level == "warning")

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings per level."""
        return {level: sum(f.level == level for f in self.findings) for level in LEVELS}

    def exit_code(self, strict: bool = False) -> int:
        """1 if there are errors (with `strict`, or warnings), else 0."""
        return int(bool(self.errors or (strict and self.warnings)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "counts": self.counts,
            "findings": [finding.to_dict() for finding in self.findings],
            "profile": dict(self.profile),
            "seconds": dict(self.ran),
        }


class CheckOptions(Settings):
    """How closely the data doctor looks."""

    only: tuple[str, ...] = ()
    """Run only these checks; all by default."""
    skip: tuple[str, ...] = ()
    """Leave these checks out."""
    threads: int = 0
    """Threads that decode; 0 takes one per processor."""
    hash_distance: int = 6
    """Near duplicates: at most so many of the 64 bits of the hash differ (at most 7)."""
    correlation: float = 0.97
    """Near duplicates: the 32 x 32 thumbnails correlate at least so much."""
    edge_correlation: float = 0.9
    """Near duplicates: so do the differences between neighboring pixels of the thumbnails."""
    edge_correlation_small: float = 0.98
    """The same for pictures with a short side below 64, where different drawings of one thing look much alike."""
    group: str | None = None
    """Groups whose straddling of parts is looked for: a column, `parent`, `regex:...` or `time:5min`."""
    imbalance: float = 10.0
    """Warn when the largest class has so many times the samples of the smallest."""
    few: int = 20
    """Warn when a class has fewer samples than this."""
    small_side: int = 8
    """Pictures with a shorter side are called tiny."""
    large_pixels: float = 50e6
    """Pictures with more pixels are called enormous."""
    aspect: float = 5.0
    """Pictures longer than so many times their width (or the reverse) are called odd."""
    probe_kappa: float = 0.8
    """Suspect labels are named only if the quick probe does at least so much better than the largest class alone."""
    suspect_confidence: float = 0.8
    """A label is suspect only if the probe gives another class at least this probability."""
    train_side: int = 640
    """Longer side, in pixels, at which objects are judged to be tiny: that of the model's input."""
    tiny_object: float = 8.0
    """Objects with a shorter side, at that size, are called tiny."""
    probe_limit: int = 100_000
    """Largest number of samples that the probe looks at (an even choice of them)."""
    listed: int = 200
    """Most groups of ids that one finding lists."""


def names_text(ids: tuple[str, ...] | list[str], limit: int = _IDS_IN_TEXT) -> str:
    """A few ids for a sentence: "a.png, b.png and 12 more"."""
    shown = ", ".join(ids[:limit])
    return f"{shown} and {len(ids) - limit} more" if len(ids) > limit else shown


def verb(count: int, one: str, many: str) -> str:
    """The form of a verb that goes with a count."""
    return one if count == 1 else many


def of_all(count: int, total: int, noun: str, one: str, many: str) -> str:
    """The start of a sentence: "1 of 1,641 files holds", "3 of 1,641 files hold"."""
    nouns = f"{noun}es" if noun.endswith(("s", "x")) else f"{noun}s"
    return f"{count:,} of {counted(total, noun, nouns)} {verb(count, one, many)}"


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 picture", "2 pictures", "1,200 pictures"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
