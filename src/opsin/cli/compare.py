"""`opsin compare`: which of several runs is better, by a paired test on the same pictures."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from opsin.cli._frame import Json, emit

NAMES = ("compare",)
HELP = "Say which run is better, by a paired test on the same pictures."
ORDER = 70


def command(
    runs: Annotated[list[str], typer.Argument(help="Two runs or more.")],
    split: Annotated[str, typer.Option(help="Part on which they are compared: test or val.")] = "test",
    metric: Annotated[str | None, typer.Option(help="Metric to compare by; the task's own by default.")] = None,
    json: Json = False,
) -> None:
    """Say which run is better, by a paired test on the same pictures.

    All runs must have been evaluated on that part, and its sample ids must be the same. With more than two runs, p-values
    are corrected for the number of comparisons (Holm).
    """
    from opsin.run.comparing import compare

    found = compare(runs, split=split, metric=metric)
    emit(found, json, lambda: _table(found))


def _table(found: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table

    name = found["metric"]
    table = Table(title=f"{name} on the {found['split']} part, {found['samples']} pictures", title_justify="left")
    for heading in ("run", "model", name, "95 % interval", "parameters", "seconds"):
        table.add_column(heading, justify="left" if heading in ("run", "model") else "right")
    for one in found["runs"]:
        value = one["metric"]
        interval = "" if value["low"] is None else f"{value['low']:.4f} to {value['high']:.4f}"
        table.add_row(
            one["run"],
            one["model"],
            f"{value['value']:.4f}",
            interval,
            f"{one['parameters']:,}",
            f"{one['seconds']:.0f}",
        )
    pairs = Table(title="Paired differences", title_justify="left")
    for heading in ("first", "second", "first - second", "95 % interval", "p (Holm)", "verdict"):
        pairs.add_column(
            heading, justify="right" if heading in ("first - second", "95 % interval", "p (Holm)") else "left"
        )
    for pair in found["pairs"]:
        d = pair["difference"]
        interval = "" if d["low"] is None else f"{d['low']:+.4f} to {d['high']:+.4f}"
        p = "" if pair["p"] is None else "< 0.0001" if pair["p"] < 1e-4 else f"{pair['p']:.4f}"
        pairs.add_row(pair["first"], pair["second"], f"{d['value']:+.4f}", interval, p, pair["verdict"])
    return Group(table, pairs)
