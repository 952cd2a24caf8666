"""Every error a person can meet, each saying what happened, what was expected and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OpsinError(Exception):
    """Base of every error that opsin raises on purpose; the command line prints it and exits with `exit_code`."""

    exit_code = 2


class ConfigError(OpsinError):
    """A setting, flag or recipe is unknown, of the wrong type or out of range."""


class DataError(OpsinError):
    """A file, an annotation or a data set cannot be used as it is."""


class ShapeError(OpsinError):
    """An array has another shape or type than the one the function documents."""


class UnknownName(OpsinError):
    """A name that no registry, column or class list holds; the message offers the nearest ones."""

    def __init__(self, kind: str, name: str, choices: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.choices = kind, name, sorted(choices)
        super().__init__(unknown_name(kind, name, self.choices) + (f" {hint}" if hint else ""))


class CheckpointError(OpsinError):
    """A checkpoint, bundle or weight file is missing, broken, or belongs to another model."""


class TrainingError(OpsinError):
    """Training cannot go on: a loss that is not finite, no trainable parameter, memory that does not suffice."""


class MissingExtra(OpsinError):
    """A feature needs an optional package that is not installed."""

    def __init__(self, package: str, extra: str, need: str) -> None:
        super().__init__(f"{need} needs the package '{package}'. Install it with: pip install 'opsin[{extra}]'")


def nearest(name: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """Give the names that look most like `name`, best first."""
    return difflib.get_close_matches(name, list(choices), n=n, cutoff=0.5)


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> str:
    """Say that `name` is unknown, with the nearest valid names, or all of them when they are few."""
    known = sorted(choices)
    near = nearest(name, known)
    if near:
        return f"Unknown {kind} '{name}'. Did you mean {' or '.join(repr(n) for n in near)}?"
    shown = ", ".join(known[:20]) + (f", ... ({len(known)} in all)" if len(known) > 20 else "")
    return f"Unknown {kind} '{name}'. Known: {shown or 'none'}."
