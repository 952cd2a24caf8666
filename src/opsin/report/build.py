"""From inputs to a page."""

from __future__ import annotations

from opsin.report import words
from opsin.report.content import Chapter, Page
from opsin.report.history import History, read_history
from opsin.report.inputs import ReportInputs
from opsin.report.judgement import errors_chapter, metrics_chapter, warnings_chapter
from opsin.report.origin import (
    data_chapter,
    model_chapter,
    reproduce_chapter,
    settings_chapter,
    training_chapter,
)
from opsin.report.verdict import headline, sentences, verdict


def build_page(inputs: ReportInputs) -> Page:
    """Everything that a report says, in the order in which it is read."""
    history = read_history(inputs.metrics)
    chapters: list[Chapter | None] = [
        warnings_chapter(inputs, history),
        metrics_chapter(inputs),
        training_chapter(inputs, history),
        errors_chapter(inputs),
        data_chapter(inputs),
        model_chapter(inputs, history),
        settings_chapter(inputs),
        reproduce_chapter(inputs),
    ]
    name = inputs.data.get("name") or inputs.recipe.get("data", {}).get("path") or inputs.run
    made = inputs.judged.get("environment", inputs.environment).get("date")
    when = f", {words.moment(made)}" if made else ""
    return Page(
        title=f"{str(inputs.recipe.get('task_name', 'run')).capitalize()}: {name}",
        subtitle=f"Run {inputs.run}{when}",
        verdict=verdict(inputs),
        sentences=tuple(sentences(inputs)),
        headline=headline(inputs),
        tiles=tuple(_tiles(inputs, history)),
        chapters=tuple(chapter for chapter in chapters if chapter is not None),
        footer=f"Made by opsin {inputs.state.get('opsin') or inputs.environment.get('opsin', '')} from {inputs.run}.",
    )


def _tiles(inputs: ReportInputs, history: History) -> list[tuple[str, str]]:
    tiles = []
    heads = inputs.data.get("heads", [])
    if inputs.data.get("samples") is not None:
        tiles.append((f"{inputs.data['samples']:,}", "pictures"))
    if heads and heads[0].get("class_names"):
        of = "classes" if len(heads) == 1 else f"classes of {heads[0]['name']}"
        tiles.append((f"{len(heads[0]['class_names']):,}", of))
    model = (inputs.state.get("model") or {}).get("name")
    if model:
        tiles.append((str(model), "model"))
    if inputs.state.get("parameters") is not None:
        tiles.append((words.compact(inputs.state["parameters"]), "parameters"))
    seconds = inputs.state.get("seconds") or sum(e.get("seconds") or 0 for e in history.epochs)
    if seconds:
        tiles.append((words.duration(seconds), "training time"))
    tiles.append(
        (str(len(inputs.looks)), "look at the test part" if len(inputs.looks) == 1 else "looks at the test part")
    )
    return tiles
