"""`opsin evaluate`: judge a run on its sealed test part, or on other data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from opsin.cli._frame import Json, console, emit

NAMES = ("evaluate",)
HELP = "Judge a run on its sealed test part, or on other data."
ORDER = 40


def command(
    run: Annotated[str, typer.Argument(help="Folder of the run, or of the runs of --repeat or --folds; or last.")],
    split: Annotated[str, typer.Option(help="Part of the run's split: test, val or train.")] = "test",
    data: Annotated[str | None, typer.Option(help="Judge on all of these data instead.")] = None,
    baselines: Annotated[
        bool, typer.Option(help="Compare with majority, logistic regression and nearest neighbor.")
    ] = True,
    skip_bad: Annotated[bool, typer.Option(help="Leave out and count pictures that cannot be read.")] = False,
    json: Json = False,
) -> None:
    """Judge a run on its sealed test part, or a run or a bundle on other data.

    Every metric comes with a 95 % interval. Each look at the test part is written into a ledger that belongs to the data,
    and the report shows how many there were.
    """
    from opsin.errors import ConfigError
    from opsin.run import Run, find_bundle, load
    from opsin.run.evaluating import evaluate_bundle, evaluate_run
    from opsin.run.repeating import evaluate_repeated, find_repeat

    several = find_repeat(run)
    if several is not None:
        together = evaluate_repeated(several, split, data=data, with_baselines=baselines, skip_bad=skip_bad)
        emit(together, json, lambda: _table_of_runs(together))
        return
    folder = find_bundle(run)
    if folder is not None:
        if data is None:
            raise ConfigError(f"{run} is a bundle without its data; say on which to judge it: --data FOLDER")
        found = evaluate_bundle(load(run), data, name=run, skip_bad=skip_bad)
        emit(found, json, lambda: _table(found))
        return
    found = evaluate_run(Run(run), split, data=data, with_baselines=baselines, skip_bad=skip_bad)
    if not json:
        for warning in found["warnings"]:
            console().print(f"Note: {warning['text']}", style="yellow")
    emit(found, json, lambda: _table(found))


def _table(found: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from opsin.metrics.warnings import part_words

    title = f"{found['run']}, {part_words(found['split'])}, {found['samples']} pictures"
    table = Table(title=title, title_justify="left")
    for name in ("metric", "value", "95 % interval", "train"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, one in found["metrics"].items():
        train = found["train"].get(name)
        table.add_row(name, _number(one["value"]), _interval(one), "" if train is None else _number(train))
    parts: list[Any] = [table]
    if found.get("baselines"):
        other = Table(title="Simple methods on the same split", title_justify="left")
        for name in ("method", found["monitor"], "95 % interval", "the model is better by"):
            other.add_column(name, justify="left" if name == "method" else "right")
        for method, one in found["baselines"].items():
            metric, difference = one["metrics"][found["monitor"]], one["difference"]
            other.add_row(
                method,
                _number(metric["value"]),
                _interval(metric),
                f"{_number(difference['value'])} ({_interval(difference)})",
            )
        parts.append(other)
    looks = len(found["looks_at_test"])
    if looks:
        parts.append(
            Text(
                f"Looks at this test part so far: {looks}."
                + (" Choose between models on the val part, not here." if looks > 3 else "")
            )
        )
    if found["train"]:
        parts.append(Text(f"Next: opsin report {found['run']}"))
    return Group(*parts)


def _table_of_runs(found: dict[str, Any]) -> Any:
    from rich.table import Table

    title = f"{found['folder']}, {found['split']} part, {len(found['runs'])} {found['differ_in']}s"
    table = Table(title=title, title_justify="left")
    names = [Path(one["run"]).name for one in found["runs"]]
    for name in ("metric", "mean", f"95 % interval over {found['interval']}", *names):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, one in found["metrics"].items():
        each = [_number(run["metrics"][name]["value"]) for run in found["runs"]]
        table.add_row(name, _number(one.get("mean", one.get("value"))), _interval(one), *each)
    return table


def _number(value: float | None) -> str:
    return "undefined" if value is None or value != value else f"{value:.4f}"


def _interval(one: dict[str, Any]) -> str:
    return "" if one["low"] is None else f"{one['low']:.4f} to {one['high']:.4f}"
