"""What all verbs share: results on standard output, everything else on standard error, JSON for machines.

Standard output carries the result of a verb and nothing else, so that `opsin VERB --json | jq` works; progress, notes
and warnings go to `console()`, which is standard error. Under `--json` the output is exactly one JSON object: the
result, or `{"error": {...}}`.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from datetime import date
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, for machines.")]
"""The type of the `json` parameter of a verb: `def command(..., json: Json = False)`."""

PIPE_WIDTH = 500  # columns of tables that go to a file or pipe, where cutting them off would lose values


class OutputClosed(Exception):
    """Whoever read standard output has gone (`opsin runs list | head -1`); nothing is left to say."""


@dataclass
class _Output:
    stream: TextIO | None = None  # None: whatever sys.stdout is now
    emitted: bool = False


_output = _Output()


def emit(data: Mapping[str, Any], json_mode: bool, human: Callable[[], Any]) -> None:
    """Give the result of a verb: one JSON object for machines, or what a person wants to see.

    Args:
        data: the result; numbers that are not finite become null; arrays, paths, dataclasses, named tuples and
            anything with `to_dict` are turned into plain values.
        json_mode: the verb's `--json`.
        human: called only for people; returns text, something that rich can draw, or None if nothing is to be said.

    Raises:
        RuntimeError: if a verb emits a second JSON object.
    """
    if json_mode:
        if _output.emitted:
            raise RuntimeError("emit() was called twice under --json; a verb prints exactly one JSON object.")
        stream = _stream()
        ascii_only = (getattr(stream, "encoding", None) or "").lower().replace("-", "") != "utf8"
        text = json.dumps(plain(data), indent=2, ensure_ascii=ascii_only, allow_nan=False)
        _output.emitted = True
        _write(text + "\n")
        return
    shown = human()
    if isinstance(shown, str):
        _write(shown if shown.endswith("\n") else shown + "\n")
    elif shown is not None:
        from rich.console import Console

        stream = _stream()
        with _closing_quietly():
            Console(file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False).print(shown)
            stream.flush()


def emitted() -> bool:
    """Whether the JSON object of this call is printed already."""
    return _output.emitted


@lru_cache(maxsize=1)
def console() -> Console:
    """Standard error, for progress, notes and warnings; plain when it is not a terminal or NO_COLOR is set."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def group(summary: str) -> typer.Typer:
    """An app for a verb that is a group, e.g. `opsin data inspect|check|...`.

    Args:
        summary: one line for `opsin VERB --help`.
    """
    return typer.Typer(help=summary, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


def plain(value: Any) -> Any:
    """Turn a value into what JSON knows; numbers that are not finite become null.

    Raises:
        TypeError: for a value that has no plain form, or a mapping whose keys are not names.
    """
    if value is None or isinstance(value, bool | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {_name(key): plain(part) for key, part in value.items()}
    return _plain_object(value)


def _plain_object(value: Any) -> Any:
    for method in ("to_dict", "_asdict", "model_dump", "tolist"):  # results, named tuples, pydantic, arrays and tensors
        if not isinstance(value, type) and callable(getattr(value, method, None)):
            return plain(getattr(value, method)())
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, set | frozenset):
        return [plain(part) for part in sorted(value)]
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    raise TypeError(
        f"A {type(value).__name__} cannot be written as JSON. Give it a to_dict method or convert it first."
    )


def _name(key: Any) -> str:
    if isinstance(key, Enum):
        return _name(key.value)
    if isinstance(key, str | int) and not isinstance(key, bool):
        return str(key)
    raise TypeError(f"The key {key!r} of a result cannot be written as JSON. Expected a name or an integer.")


@contextmanager
def results_only(json_mode: bool) -> Iterator[None]:
    """Under `--json`, keep standard output for `emit`: whatever else prints there goes to standard error.

    That holds for other libraries too, also those not written in Python and worker processes, because the file
    descriptor itself is replaced when standard output is the process's own.
    """
    _output.emitted = False
    if not json_mode:
        yield
        return
    before = sys.stdout
    with _moved(before) as stream:
        _output.stream, sys.stdout = stream, sys.stderr
        try:
            yield
        finally:
            _output.stream, sys.stdout = None, before


@contextmanager
def _moved(stream: TextIO) -> Iterator[TextIO]:
    """Another stream to the same place, while the descriptor of this one leads to standard error."""
    descriptor = _own_descriptor(stream)
    if descriptor is None:  # captured by a test or a notebook: there is no descriptor to move
        yield stream
        return
    stream.flush()
    moved = os.fdopen(os.dup(descriptor), "w", encoding=stream.encoding, errors=stream.errors)
    os.dup2(sys.stderr.fileno(), descriptor)
    try:
        yield moved
    finally:
        stream.flush()  # what others wrote to it meanwhile goes to standard error as well
        with suppress(OSError):
            moved.flush()
        os.dup2(moved.fileno(), descriptor)
        moved.close()


def _own_descriptor(stream: TextIO) -> int | None:
    captured = stream is not sys.__stdout__, sys.stderr is not sys.__stderr__
    if any(captured):
        return None
    with suppress(OSError, ValueError, AttributeError):  # e.g. a program without a console has no descriptors
        sys.stderr.fileno()
        return stream.fileno()
    return None


def _stream() -> TextIO:
    return _output.stream if _output.stream is not None else sys.stdout


def _write(text: str) -> None:
    stream = _stream()
    with _closing_quietly():
        stream.write(text)
        stream.flush()


@contextmanager
def _closing_quietly() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        forget_output()
        raise OutputClosed from error


def forget_output() -> None:
    """After a broken pipe, send the rest of standard output nowhere, so that Python can flush it at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError, AttributeError):  # not a file of the operating system: nothing to mend
        os.dup2(null, _stream().fileno())
    os.close(null)
