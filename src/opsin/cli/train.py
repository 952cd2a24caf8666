"""`opsin train`: train a model, or go on with a run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from opsin.cli._frame import Json, console, emit

NAMES = ("train",)
HELP = "Train a model on your pictures, or resume a run."
ORDER = 30


def command(
    task: Annotated[str | None, typer.Argument(help="What to learn, e.g. classify.")] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Any setting as section.key=value, e.g. optimizer.lr=0.1.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder, file or archive with pictures.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Registered name, timm/NAME, pkg.module:builder or file.py:builder.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Start from fetched published weights, a run, bundle or file (.safetensors, .pt), or none."),
    ] = None,
    accept_license: Annotated[
        str | None, typer.Option(help="Take over weights under this license, though it is not permissive (or unknown).")
    ] = None,
    transfer: Annotated[
        str | None,
        typer.Option(
            help="How to learn from --weights: head, staged, full, lora or bias; advise measures several first."
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A named recipe (docs/results.md lists them), or a recipe.json.")
    ] = None,
    augment: Annotated[str | None, typer.Option(help="plain, standard or strong.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training part.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train for about this long instead.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step, over all processes.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of initialization, order and augmentation.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Train this many seeds and report mean and interval.")] = 1,
    format: Annotated[str | None, typer.Option(help="Format of the data, when it is not recognized.")] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="For tables: role=column, e.g. image=path (repeat the flag).")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Keep groups in one part: a column, parent, regex:..., time:5min.")
    ] = None,
    split_seed: Annotated[int | None, typer.Option(help="Seed of the split; not the training seed.")] = None,
    split_from: Annotated[str | None, typer.Option(help="Keep a run's split; only new pictures are assigned.")] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Cross-validation with this many folds.")] = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave out and count pictures that cannot be read.")] = False,
    out: Annotated[str | None, typer.Option(help="Folder of the run; by default runs/TASK-DATA-N.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on with this run, or with these runs of --repeat or --folds (a folder, or last)."),
    ] = None,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
    json: Json = False,
) -> Any:
    """Train a model on your pictures, or resume a run that was stopped.

    The data are checked before step 1, split into train, val and test (unless they come split), and the best model by the
    validation part is kept as a bundle. Ctrl-C saves a checkpoint; `opsin train --resume RUN` goes on to exactly the result
    of the uninterrupted run.
    """
    from opsin.errors import ConfigError

    flags = {
        "data.path": data, "data.format": format, "data.columns": pairs(columns), "data.skip_bad": skip_bad or None,
        "data.split.group": group, "data.split.seed": split_seed, "data.split.earlier": split_from, "data.split.folds": folds,
        "model.name": model, "model.weights": weights, "model.accept_license": accept_license, "task.augment_preset": augment,
        "transfer.plan": None if transfer == "advise" else transfer,
        "run.epochs": epochs, "run.minutes": minutes, "run.batch_size": batch_size, "run.seed": seed,
    }  # fmt: skip
    if resume is not None:
        words = [task, recipe, out, *flags.values(), *(settings or [])]
        return _resume(resume, quiet, json, fresh=repeat == 1 and all(value is None for value in words))
    if task is None:
        raise ConfigError("What should be trained? e.g. opsin train classify --data FOLDER (or --resume RUN)")
    if epochs is not None and minutes is not None:
        raise ConfigError("--epochs and --minutes both say how long to train. Give one of them.")
    from opsin.recipe import overrides
    from opsin.run.repeating import train_repeated
    from opsin.run.settings import flag_layers

    layers = [*flag_layers(task, recipe, flags), overrides(settings or [])]
    if transfer == "advise":
        if repeat > 1 or folds is not None:
            raise ConfigError("--transfer advise takes neither --repeat nor --folds.")
        from opsin.run.advising import advise

        advice = advise(task, layers, out=out, quiet=quiet, progress=None if quiet else _progress)
        emit(advice.to_dict(), json, lambda: _advice(advice))
        return 0
    runs = train_repeated(
        task, layers, out=out, repeat=repeat, folds=folds, quiet=quiet, progress=None if quiet else _progress
    )
    found = runs.to_dict()
    emit(found, json, lambda: runs.text())
    return 130 if runs.interrupted else 0


def _advice(advice: Any) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("plan", f"validation {advice.metric}", "95 % interval", "seconds")
    for row in advice.plans:
        one = row["metric"]
        interval = "" if one["low"] is None else f"{one['low']:.4f} to {one['high']:.4f}"
        table.add_row(row["plan"], f"{one['value']:.4f}", interval, f"{row['seconds']:.0f}")
    return Group(table, Text(advice.text()))


def _resume(reference: str, quiet: bool, json: bool, fresh: bool) -> int:
    from opsin.errors import ConfigError
    from opsin.run import Run
    from opsin.run.repeating import find_repeat, resume_repeated, summary, summary_text

    if not fresh:
        raise ConfigError(
            "--resume goes on with the settings of the run; leave out the other settings, or start a new run."
        )
    several = find_repeat(reference)
    if several is not None:
        runs = resume_repeated(several, quiet=quiet, progress=None if quiet else _progress)
        emit(runs.to_dict(), json, runs.text)
        return 130 if runs.interrupted else 0
    run = Run(reference)
    if run.state.get("status") == "done":
        console().print(f"{run.path} is finished; nothing to do.")
    run = run.resume(quiet=quiet)
    emit(summary(run), json, lambda: summary_text(run))
    return 130 if run.state.get("status") == "interrupted" else 0


def pairs(columns: list[str] | None) -> dict[str, str] | None:
    """Read `role=column` words of `--columns`."""
    from opsin.errors import ConfigError

    if not columns:
        return None
    found = {}
    for word in [part for text in columns for part in text.split()]:
        role, equals, column = word.partition("=")
        if not equals:
            raise ConfigError(f"--columns {word}: expected role=column, e.g. --columns image=path --columns label=dx")
        found[role] = column
    return found


def _progress(done: int, every: int) -> None:
    if done == every:
        console().print(f"Read {every} pictures.", style="dim")
