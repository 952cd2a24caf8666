"""Who listens to a run, one per file.

A listener's module has `build(folder, *, quiet) -> Listener`. With several processes only the first one opens any:
`open_listeners(names, folder, main=processes.is_main)` gives the others none.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opsin.errors import ConfigError
from opsin.registry import Registry

if TYPE_CHECKING:
    from opsin.engine.events import Event, Listener

listeners = Registry("listener", "opsin.engine.listeners")

LINES_PER_EPOCH = 50


def open_listeners(
    names: Iterable[str | Listener], folder: Path | None, *, quiet: bool = False, main: bool = True
) -> dict[str, Listener]:
    """Open listeners by name, for `Stream`.

    Args:
        names: registered names, `pkg.module:factory` or `file.py:factory` (called with the run folder, or with nothing
            when it takes no argument), or callables that take an event.
        folder: the run folder; None for listeners that keep no files.
        quiet: nothing but warnings on the terminal.
        main: whether this process talks and writes; the others get no listener.

    Raises:
        UnknownName: for a name that nothing registers.
        ConfigError: for a name given twice, or a factory that gives no callable.
        MissingExtra: if a listener's package is not installed.
    """
    found: dict[str, Listener] = {}
    for number, name in enumerate(names if main else ()):
        key = name if isinstance(name, str) else f"callable-{number}"
        if key in found:
            raise ConfigError(f"The listener '{key}' is given twice in run.listeners. Leave one of them out.")
        found[key] = _open(name, folder, quiet) if isinstance(name, str) else name
        if not callable(found[key]):
            kind = type(found[key]).__name__
            raise ConfigError(f"The listener '{key}' gives a {kind}; expected a callable that takes an event.")
    return found


def _open(name: str, folder: Path | None, quiet: bool) -> Listener:
    builder = listeners.get(name)
    if ":" not in name:
        listener: Listener = builder(folder, quiet=quiet)
        return listener
    if not callable(builder):
        kind = type(builder).__name__
        raise ConfigError(f"The listener '{name}' is a {kind}; expected a function that returns a listener.")
    given: Any = builder(folder) if inspect.signature(builder).parameters else builder()
    return given  # type: ignore[no-any-return]


def step_interval(steps_per_epoch: int) -> int:
    """Steps between two lines of a log: about 50 lines an epoch, the same in every run of the same length."""
    return max(1, steps_per_epoch // LINES_PER_EPOCH)


def run_folder(folder: Path | None, name: str) -> Path:
    """The folder, for a listener that cannot do without.

    Raises:
        ConfigError: if there is none.
    """
    if folder is None:
        raise ConfigError(f"The listener '{name}' writes into a run folder. Give the run one, or leave '{name}' out.")
    return Path(folder)


def scalars(event: Event) -> dict[str, float]:
    """Numbers of an event under the names that dashboards show: `step/...`, `train/...`, `val/...`; reads tensors."""
    from opsin.engine.events import EpochDone, Evaluated, StepDone

    if isinstance(event, StepDone):
        values = {f"step/{name}": float(part) for name, part in event.parts.items()}
        values["step/learning_rate"] = event.lr
        if event.gradient_norm is not None:
            values["step/gradient_norm"] = float(event.gradient_norm)
        return values
    if isinstance(event, EpochDone):
        values = {f"train/{name}": float(value) for name, value in event.metrics.items()}
        values["train/images_per_second"] = event.samples / max(event.seconds, 1e-9)
        return values
    if isinstance(event, Evaluated):
        return {f"{event.part}/{name}": float(value) for name, value in event.metrics.items()}
    return {}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level with dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found
