"""`opsin export`: a model for another runtime, compared with the original."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin.cli._frame import Json, console, emit

if TYPE_CHECKING:
    from opsin.export import Report

NAMES = ("export",)
HELP = "Write a model for another runtime and compare it with the original."
ORDER = 70


def command(
    run: Annotated[str, typer.Argument(help="A run, a bundle, or last.")],
    to: Annotated[str, typer.Option(help="Target: onnx, openvino, or all.")],
    out: Annotated[str | None, typer.Option(help="Folder of the export; by default export/TARGET in the run.")] = None,
    batch: Annotated[str, typer.Option(help="Pictures per call: a number, or dynamic for any number.")] = "dynamic",
    tolerance: Annotated[
        float | None, typer.Option(help="Largest relative error that is accepted; by default 1e-4.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads during the comparison.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier export.")] = False,
    keep_failed: Annotated[bool, typer.Option(help="Keep a refused export beside its place, as NAME-refused.")] = False,
    json: Json = False,
) -> int:
    """Write a model for another runtime and compare it with the original.

    Preprocessing, class names and license travel with the weights. The export runs over validation pictures, random
    and edge inputs; above tolerance it is refused and the exit code is 1. It holds a predict.py that needs neither
    torch nor opsin.
    """
    from opsin.run.exporting import export_run

    reports = export_run(
        run,
        to,
        out,
        batch=_batch(batch),
        tolerance=tolerance,
        threads=threads,
        overwrite=overwrite,
        keep_failed=keep_failed,
    )
    for report in reports:
        for note in report.notes:
            console().print(f"{report.target}: {note}", style="yellow", markup=False)
    passed = all(report.passed for report in reports)
    emit({"passed": passed, "exports": [report.to_dict() for report in reports]}, json, lambda: _table(reports))
    return 0 if passed else 1


def _batch(text: str) -> int | None:
    from opsin.errors import ConfigError

    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--batch {text}: expected a positive number, or dynamic.")
    return int(text)


def _table(reports: list[Report]) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Compared with the model", title_justify="left")
    for name in ("target", "size", "largest relative error", "tolerance", "pictures", "other answers", ""):
        table.add_column(name, justify="left" if name in ("target", "") else "right")
    parts: list[Any] = [table]
    for report in reports:
        parity = report.parity
        table.add_row(
            report.target, f"{report.bytes / 1e6:.1f} MB", f"{parity.max_relative:.1e}", f"{parity.tolerance:.1e}",
            str(parity.compared.get("pictures", 0)), str(len(parity.flipped)), "passed" if report.passed else "refused",
        )  # fmt: skip
        if report.passed:
            parts.append(Text(f"{report.folder}: try it with  python {report.folder}/predict.py PICTURE"))
        else:
            kept = f"kept in {report.folder}" if report.folder else "removed (--keep-failed keeps it)"
            parts.append(Text(f"{report.target} was refused: {parity.reason}. It was {kept}."))
    return Group(*parts)
