"""The chapters about how good the model is: warnings, looks at the test part, metrics, baselines, errors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from opsin.report import words
from opsin.report.content import Block, Chapter, Interval, Intervals, Text
from opsin.report.history import History, progress
from opsin.report.inputs import ReportInputs
from opsin.report.marks import LEGEND
from opsin.report.verdict import evaluate_command, outcome, sealed
from opsin.results.section import Gallery, Note, Section, Table

MANY_LOOKS = 3
PART_WORDS = {"test": "test", "val": "validation", "train": "training"}


def warnings_chapter(inputs: ReportInputs, history: History) -> Chapter:
    """What to know before believing a number, and who looked at the test part when."""
    notes = list(_notes(inputs, history))
    blocks: list[Block] = [*notes] if notes else [Text("Nothing was found that could mislead.")]
    blocks.append(_looks(inputs))
    return Chapter("warnings", "Before you believe the numbers", tuple(blocks))


def _notes(inputs: ReportInputs, history: History) -> Iterator[Note]:
    status = inputs.state.get("status", "new")
    if status == "done" and inputs.state.get("stopped") not in (None, "done"):
        yield Note(
            "stopped", f"Training ended early: {inputs.state['stopped']} ({progress(history, inputs.state)}).", "info"
        )
    elif status != "done":
        resume = f"opsin train --resume {shlex.quote(inputs.run)}"
        said = {"failed": "failed", "interrupted": "was interrupted", "running": "is running, or was killed"}.get(
            status, "has not begun"
        )
        yield Note(
            "unfinished",
            f"Training {said} after {progress(history, inputs.state)}; this page shows what there is. Go on: `{resume}`",
        )
    if inputs.finished and "test" not in inputs.evaluations and inputs.data.get("sizes", {}).get("test"):
        size = inputs.data["sizes"]["test"]
        held = " The numbers on this page are of the validation part." if inputs.part == "val" else ""
        text = f"The test part ({words.count(size, 'picture')}) is {sealed(inputs)}.{held} Open it: "
        yield Note("sealed", f"{text}`{evaluate_command(inputs)}`", "info")
    if len(inputs.looks) > MANY_LOOKS:
        yield Note(
            "many_looks",
            f"This test part has been looked at {len(inputs.looks)} times. Every choice made after a look makes "
            "the number a little too good. Choose between models on the validation part.",
        )
    yield from inputs.notes
    for one in inputs.judged.get("warnings", []):
        yield Note(one["code"], one["text"], one.get("level", "warning"))
    skipped = inputs.judged.get("skipped") or {}
    if skipped:
        yield Note("skipped", f"{words.count(len(skipped), 'picture')} could not be read and are not in these numbers.")
    for one in inputs.state.get("preflight", []):
        if one.get("level") != "info":
            yield Note(one["code"], f"Before step 1: {one['text']}", one["level"])
    told = {note.get("text") for note in inputs.state.get("preflight", [])}
    for text, code in dict.fromkeys((str(w.get("text")), str(w.get("code"))) for w in history.warnings):
        if text not in told:
            yield Note(code, f"During training: {text}")


def _looks(inputs: ReportInputs) -> Block:
    title = "Looks at the test part"
    if not inputs.looks:
        return Table(title, ("when", "run", "result"), (), "Nobody has looked at this test part yet.")
    rows = tuple(
        (
            words.moment(look["date"]),
            look["run"],
            look["command"],
            f"{look['metric']} {words.number(look['value'])}" if look.get("metric") else "",
        )
        for look in inputs.looks
    )
    note = "The count belongs to the data, not to this run: every evaluation of any run on this test part is in it."
    return Table(f"{title}: {len(rows)}", ("when", "run", "command", "result"), rows, note)


def metrics_chapter(inputs: ReportInputs) -> Chapter | None:
    """All metrics with intervals, on training, too; other data; the simple methods."""
    judged = inputs.judged
    if not judged.get("metrics"):
        return None
    blocks: list[Block] = [_metrics_table(inputs, judged)]
    blocks += _baselines(inputs)
    others = {part: one for part, one in inputs.evaluations.items() if part not in PART_WORDS}
    if others:
        blocks.append(_other_data(inputs, others))
    return Chapter("metrics", "How good it is", tuple(blocks))


def _metrics_table(inputs: ReportInputs, judged: Mapping[str, Any]) -> Table:
    part = PART_WORDS[inputs.part or "val"]
    validation = inputs.state.get("validation", {}) if inputs.part == "test" else {}
    train, gap = judged.get("train", {}), judged.get("gap", {})
    columns = ["metric", part, words.LEVEL, *(["validation"] if validation else [])]
    columns += ["training", f"training {chr(0x2212)} {part}"] if train else []
    columns.append("what it is")
    rows = []
    ordered = sorted(judged["metrics"], key=lambda name: name != inputs.monitor)
    for name in ordered:
        one, info = judged["metrics"][name], words.metric_info(name)
        row: list[Any] = [name, words.number(one["value"]), words.interval(one) or "none"]
        if validation:
            row.append(words.number(validation[name]["value"]) if name in validation else "")
        if train:
            row += [words.number(train[name]) if name in train else "", words.signed(gap.get(name))]
        better = "" if info is None else f"{info.description}{' (lower is better)' if info.better == 'lower' else ''}"
        rows.append((*row, better))
    n, groups = judged.get("samples"), next((m.get("groups") for m in judged["metrics"].values()), None)
    drawn = f" in {words.count(groups, 'group')}, which are drawn whole" if groups else ""
    note = f"On {words.count(int(n or 0), 'picture')}{drawn}. Intervals: {_methods(judged['metrics'], ordered)}."
    return Table("Metrics", tuple(columns), tuple(rows), note)


def _methods(metrics: Mapping[str, Any], ordered: list[str]) -> str:
    """How the intervals were made: the method of each metric, the most frequent one for the rest."""
    by_method: dict[str, list[str]] = {}
    for name in ordered:
        method = re.sub(r", \d+ undefined", "", str(metrics[name].get("method")).partition(";")[0])
        by_method.setdefault(method, []).append(name)
    *few, (most, _) = sorted(by_method.items(), key=lambda item: len(item[1]))
    said = [f"{method} ({', '.join(names)})" for method, names in few]
    return "; ".join([*said, f"{most} (the others)" if few else most])


def _baselines(inputs: ReportInputs) -> list[Block]:
    name, tried = inputs.monitor or "", inputs.judged.get("baselines") or {}
    if not tried or name not in inputs.judged["metrics"]:
        return []
    shares = words.is_share(name)
    entries = []
    for method, one in tried.items():
        metric, difference = one["metrics"].get(name, {}), one["difference"]
        if words.known(metric.get("value")):
            verdict = {"better": "the model is better", "worse": "the model is worse"}.get(
                outcome(inputs, difference), "may be chance"
            )
            entries.append(
                Interval(
                    method,
                    metric["value"],
                    metric["low"],
                    metric["high"],
                    detail=f"{_difference(difference, shares)}: {verdict}",
                )
            )
    own = inputs.judged["metrics"][name]
    if not entries or not words.known(own["value"]):
        return []
    entries.sort(key=lambda entry: entry.value if inputs.higher_is_better else -entry.value)
    entries.append(Interval("this model", own["value"], own["low"], own["high"], strong=True))
    ends = [v for e in entries for v in (e.value, e.low, e.high) if v is not None]
    least, most = (0.0, 1.0) if shares else (min(ends), max(ends))
    note = (
        "Simple methods learned from the same training part and judged on the same pictures; differences are paired. "
        "Strokes are values, bands 95 % intervals."
    )
    return [
        Intervals(f"Against simple methods: {name}", tuple(entries), least, most, shares, "the model is ahead by", note)
    ]


def _difference(difference: Mapping[str, Any], shares: bool) -> str:
    if not words.known(difference.get("value")):
        return "undefined"
    show = words.points if shares else words.signed
    ends = (
        f" ({show(difference['low'])} to {show(difference['high'])})"
        if words.known(difference.get("low")) and words.known(difference.get("high"))
        else ""
    )
    return f"{show(difference['value'])}{' points' if shares else ''}{ends}"


def _other_data(inputs: ReportInputs, others: Mapping[str, Mapping[str, Any]]) -> Table:
    name, rows = inputs.monitor or "", []
    for part, one in others.items():
        metric = one["metrics"].get(name, {})
        rows.append(
            (
                part.removeprefix("other-"),
                one.get("samples"),
                words.number(metric.get("value")),
                words.interval(metric) or "none",
            )
        )
    return Table("On other data", ("data", "pictures", name, words.LEVEL), tuple(rows))


def errors_chapter(inputs: ReportInputs) -> Chapter | None:
    """The task's own sections, galleries last."""
    rows = inputs.rows.get(inputs.part or "")
    if rows is None or inputs.task is None:
        return None
    sections: list[Section] = sorted(inputs.task.sections(rows), key=lambda section: isinstance(section, Gallery))
    if any(inputs.task.marks(rows.row(i)) for i in range(len(rows))):
        sections = [_with_legend(section) for section in sections]
    return Chapter("errors", "Where it goes wrong", tuple(sections)) if sections else None


def _with_legend(section: Section) -> Section:
    if not isinstance(section, Gallery) or not section.pictures:
        return section
    return replace(section, note=" ".join(filter(None, [section.note, LEGEND])))
