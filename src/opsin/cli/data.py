"""`opsin data`: what a folder is, what is wrong with it, splits, other formats, known data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from opsin.cli._frame import Json, console, emit, group

NAMES = ("data",)
HELP = "Look at pictures: what they are, what is wrong with them; split, convert, download."
ORDER = 20
app = group(HELP)

Columns = Annotated[list[str] | None, typer.Option(help="For tables: role=column, e.g. image=path (repeat the flag).")]
Place = Annotated[str, typer.Argument(help="Folder, file or archive.")]
Format = Annotated[str | None, typer.Option(help="Format, when it is not recognized.")]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave out and count rows and boxes that cannot be used, instead of stopping."),
]


@app.command()
def inspect(
    path: Place, format: Format = None, columns: Columns = None, skip_bad: SkipBad = False, json: Json = False
) -> None:
    """Say what is at PATH: format, pictures, classes, sizes, parts."""
    from opsin.analyze.inspect import inspect_data
    from opsin.cli.train import pairs
    from opsin.data.formats import load_data

    data = load_data(path, format, pairs(columns) or {}, skip_bad=skip_bad)
    found = inspect_data(data)
    emit(found, json, lambda: _inspected(found, path))


def _inspected(found: dict[str, Any], path: str) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    lines = [f"{path}: {found['samples']:,} pictures, format '{found['format']}', {found['pictures']}"]
    if found["sizes"]:
        lines.append(f"sizes (height x width): {found['sizes']}")
    lines += [
        f"converted when read: {words} ({count} of the pictures looked at)"
        for words, count in found["conversions"].items()
    ]
    lines += [_objects_line(facts) for facts in found["objects"].values()]
    parts: list[Any] = [Text("\n".join(lines))]
    for head, counts in found["classes"].items():
        parts.append(Text(f"{head}: {len(counts)} classes"))
        table = Table()
        table.add_column("class")
        names = list(next(iter(counts.values()), {}))
        for name in names:
            table.add_column(name, justify="right")
        for name, row in list(counts.items())[:60]:
            table.add_row(name, *(f"{row[part]:,}" for part in names))
        parts.append(table)
    parts += [Text(f"Note: {problem}") for problem in found["problems"][:10]]
    parts.append(Text(found["next"]))
    return Group(*parts)


def _objects_line(facts: dict[str, Any]) -> str:
    line = f"objects: {facts['objects']:,}"
    if "per_picture" in facts:
        per = facts["per_picture"]
        line += f", {per['least']} to {per['most']} per picture (median {per['median']:g})"
    line += f"; {facts['empty_pictures']:,} pictures without any"
    if "side" in facts:
        side = facts["side"]
        line += f"; side {side['least']:.0f} to {side['most']:.0f} pixels (median {side['median']:.0f})"
    line += "".join(f"; {facts[mark]:,} {mark}" for mark in ("crowd", "difficult") if facts[mark])
    return line + (f"; {len(facts['points'])} points each" if "points" in facts else "")


@app.command()
def check(
    path: Place,
    format: Format = None,
    columns: Columns = None,
    group: Annotated[
        str | None, typer.Option(help="Groups that must not straddle parts: a column, parent, regex:..., time:5min.")
    ] = None,
    html: Annotated[str | None, typer.Option(help="Write a page with the pictures here.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run only these checks (repeat the flag).")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Leave these checks out (repeat the flag).")] = None,
    strict: Annotated[bool, typer.Option(help="Exit with 1 on warnings too.")] = False,
    json: Json = False,
) -> int:
    """Look for what spoils training: broken files, duplicates, leaks between parts, wrong labels, imbalance.

    Exit code 1 when errors were found.
    """
    from opsin.analyze.check import CheckOptions
    from opsin.analyze.check import check as run_check
    from opsin.analyze.check.page import write_page
    from opsin.analyze.check.table import render
    from opsin.cli.train import pairs
    from opsin.data.formats import load_data

    data = load_data(path, format, pairs(columns) or {}, skip_bad=True)
    options = CheckOptions(only=tuple(only or ()), skip=tuple(skip or ()), group=group)
    found = run_check(data, options=options)
    result = found.to_dict()
    if html is not None:
        write_page(found, data, Path(html))
        result["page"] = html
    emit(result, json, lambda: render(found))
    if html is not None:
        console().print(f"Page with the pictures: {html}")
    return found.exit_code(strict)


@app.command()
def split(
    path: Place,
    out: Annotated[str, typer.Option(help="Where to write the split (JSON).")] = "split.json",
    format: Format = None,
    columns: Columns = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the split; 0 by default.")] = None,
    by: Annotated[str | None, typer.Option(help="stratified (the default), random or chronological.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Keep groups in one part: a column, parent, regex:..., time:5min.")
    ] = None,
    split_from: Annotated[
        str | None, typer.Option(help="Keep a run's assignments; only new pictures are assigned.")
    ] = None,
    json: Json = False,
) -> None:
    """Divide pictures into train, val and test, and write the ids of each part."""
    from opsin.cli.train import pairs
    from opsin.data.formats import load_data
    from opsin.data.splits import SplitFile, make_split
    from opsin.errors import ConfigError
    from opsin.recipe import SplitSettings
    from opsin.run.data import inherited
    from opsin.run.folder import find_run

    if by not in (None, "stratified", "random", "chronological"):
        raise ConfigError(f"--by {by}: expected stratified, random or chronological.")
    if Path(out).exists():
        raise ConfigError(f"--out {out} exists already; give another name.")
    data = load_data(path, format, pairs(columns) or {})
    settings = {k: v for k, v in (("seed", seed), ("by", by), ("group", group)) if v is not None}
    earlier = None
    if split_from is not None:
        folder = find_run(split_from)
        earlier = SplitFile.from_json(folder.read("data.json")["split"])
        settings |= inherited(folder, settings)
    made = make_split(data, SplitSettings.model_validate(settings), earlier)
    made.to_file().save(Path(out))
    found = {
        "out": out,
        "method": made.method,
        "counts": {part: dict(counts) for part, counts in made.counts.items()},
        "problems": [str(problem) for problem in made.problems],
    }
    for problem in made.problems:
        console().print(f"Note: {problem.message}", style="yellow", markup=False)
    sizes = ", ".join(f"{part} {counts['']}" for part, counts in made.counts.items())
    emit(found, json, lambda: f"{out}: {sizes} ({made.method})")


@app.command()
def convert(
    path: Place,
    to: Annotated[str, typer.Option(help="Format to write: folder, csv, coco, voc, yolo, tfrecord, idx, ...")],
    out: Annotated[str, typer.Option(help="Folder to write; must not exist.")],
    format: Format = None,
    columns: Columns = None,
    skip_bad: SkipBad = False,
    json: Json = False,
) -> None:
    """Write pictures and labels in another format; what that format cannot hold is counted and said."""
    from opsin.cli.train import pairs
    from opsin.data.formats import format_module, load_data
    from opsin.data.writing import losses
    from opsin.errors import ConfigError

    module = format_module(to)
    if not hasattr(module, "write"):
        raise ConfigError(f"--to {to}: this format can be read but not written.")
    data = load_data(path, format, pairs(columns) or {}, skip_bad=skip_bad)
    notes = [str(problem).removesuffix(".") for problem in data.problems if problem.level == "error"]
    notes += losses(data, getattr(module, "LOSES", ())) + list(module.write(data, out) or ())
    for note in notes:
        console().print(f"Note: {note}.", style="yellow", markup=False)
    found = {"out": out, "format": to, "samples": len(data), "notes": notes}
    emit(found, json, lambda: f"{out}: {len(data):,} pictures as '{to}'")


@app.command()
def crop(
    path: Place,
    out: Annotated[str, typer.Option(help="Folder to write; must not exist.")],
    margin: Annotated[float, typer.Option(min=0, help="Pixels around the box, as a share of its longer side.")] = 0.0,
    smallest: Annotated[int, typer.Option(min=1, help="Leave out objects with a shorter side (pixels).")] = 8,
    format: Format = None,
    columns: Columns = None,
    skip_bad: SkipBad = False,
    json: Json = False,
) -> None:
    """Cut every object out of its picture, into one folder per class."""
    from opsin.cli.train import pairs
    from opsin.data.crops import crop_objects
    from opsin.data.formats import load_data

    data = load_data(path, format, pairs(columns) or {}, skip_bad=skip_bad)
    found = crop_objects(data, Path(out), margin=margin, smallest=smallest)
    left = found["left_out"]
    words = f"{found['objects']:,} objects; left out: {left['crowd']} crowds, {left['small']} too small"
    emit(found, json, lambda: f"{out}: {words}\nNext: opsin data check {out}")


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="Name of a known data set (opsin data known lists them).")],
    to: Annotated[str | None, typer.Option(help="Folder; by default the cache of opsin.")] = None,
    json: Json = False,
) -> None:
    """Download a known data set, with checksum and license; OPSIN_MIRROR names a mirror."""
    from opsin.data.catalog import card
    from opsin.data.catalog import get as fetch

    about = card(name)
    console().print(f"{name}: license: {about['license']}")
    path = fetch(name, None if to is None else Path(to))
    emit({**about, "path": path}, json, lambda: f"{path}\nNext: opsin data check {path}")


@app.command()
def known(json: Json = False) -> None:
    """List the data sets that `opsin data get` knows."""
    from opsin.data.catalog import card, catalog

    found = {name: card(name) for name in catalog}
    emit({"data": found}, json, lambda: "\n".join(f"{name:24} {one['about']}" for name, one in found.items()))
