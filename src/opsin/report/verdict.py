"""The first lines of a report: how good, compared with what, and how sure that is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from opsin.report import words
from opsin.report.content import Headline
from opsin.report.inputs import ReportInputs

UNSEEN = {"test": "unseen pictures", "val": "validation pictures"}


def verdict(inputs: ReportInputs) -> str:
    """One sentence in plain words."""
    one, name = _headline(inputs), inputs.monitor or ""
    if inputs.part is None or one is None:
        status = inputs.state.get("status", "new")
        return {
            "running": "Still training: there is no result yet.",
            "interrupted": "Training was interrupted: there is no result yet.",
            "failed": "Training failed: there is no result.",
            "done": "Trained, but not judged: there is no validation part, and the test part is still sealed.",
        }.get(str(status), "Training has not begun.")
    pictures = _pictures(inputs)
    shares = words.is_share(name)
    value = words.percent(one["value"]) if shares else words.number(one["value"])
    low_high = words.interval(one, shares=shares)
    sure = f" ({words.LEVEL} {low_high})" if low_high else ""
    if name == "accuracy":
        return f"Right in {value} of {pictures}{sure}."
    return f"{words.metric_title(name)} {value} on {pictures}{sure}."


def sentences(inputs: ReportInputs) -> list[str]:
    """What a reader must know beside the number: the baseline, and whether the test part was used."""
    found = []
    compared = best_baseline(inputs)
    if compared is not None:
        found.append(_comparison(inputs, *compared))
    if inputs.part == "val":
        found.append(
            f"The model was chosen on these pictures, so expect a little less on new ones. The test part is {sealed(inputs)}; "
            f"open it once, when you have decided: `{evaluate_command(inputs)}`"
        )
    return found


def headline(inputs: ReportInputs) -> Headline | None:
    """The number at the top."""
    one, name = _headline(inputs), inputs.monitor or ""
    if inputs.part is None or one is None or not words.known(one["value"]):
        return None
    shares = words.is_share(name)
    share = None
    if shares and words.known(one["low"]) and words.known(one["high"]):
        share = (float(one["value"]), float(one["low"]), float(one["high"]))
    number = words.percent(one["value"]) if shares else words.number(one["value"])
    label = f"{words.metric_title(name)}, {'test' if inputs.part == 'test' else 'validation'} part"
    return Headline(
        number,
        label,
        share,
        f"test part {sealed(inputs)}" if inputs.part == "val" else "",
    )


def best_baseline(inputs: ReportInputs) -> tuple[str, Mapping[str, Any]] | None:
    """The simple method with the best headline metric, None when none was tried."""
    name = inputs.monitor or ""
    tried = {
        method: one for method, one in (inputs.judged.get("baselines") or {}).items()
        if words.known(one["metrics"].get(name, {}).get("value"))
    }  # fmt: skip
    if not tried:
        return None
    sign = 1.0 if inputs.higher_is_better else -1.0
    method = max(tried, key=lambda m: sign * float(tried[m]["metrics"][name]["value"]))
    return method, tried[method]


def outcome(inputs: ReportInputs, difference: Mapping[str, Any]) -> str:
    """`better`, `worse` or `not distinguishable` by the interval of a paired difference (model minus other)."""
    low, high = difference.get("low"), difference.get("high")
    if not words.known(low) or not words.known(high) or float(low or 0) <= 0 <= float(high or 0):
        return "not distinguishable"
    return "better" if (float(low or 0) > 0) == inputs.higher_is_better else "worse"


def sealed(inputs: ReportInputs) -> str:
    """In words, how untouched the test part is that this run has not been judged on."""
    others = len(inputs.looks)
    return f"still sealed for this run ({words.count(others, 'look')} by others)" if others else "still sealed"


def evaluate_command(inputs: ReportInputs) -> str:
    """What opens the test part."""
    return f"opsin evaluate {shlex.quote(inputs.run)} --split test"


def _headline(inputs: ReportInputs) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = inputs.judged.get("metrics", {}).get(inputs.monitor or "")
    return found


def _pictures(inputs: ReportInputs) -> str:
    noun = UNSEEN.get(inputs.part or "", "pictures")
    return words.count(int(inputs.judged.get("samples") or 0), noun.removesuffix("s"), noun)


def _comparison(inputs: ReportInputs, method: str, other: Mapping[str, Any]) -> str:
    name = inputs.monitor or ""
    value, difference = other["metrics"][name]["value"], other["difference"]
    shares, decided = words.is_share(name), outcome(inputs, difference)
    reached = words.percent(value) if shares else words.number(value)
    start = f"The best of the simple methods, {method}, reaches {reached}."
    if not words.known(difference.get("value")):
        return start
    if not shares:
        gap = f"{words.signed(difference['value'])} ({_ends(difference, words.signed)})"
    else:
        gap = f"{words.points(difference['value'])} points ({_ends(difference, words.points)})"
    if decided == "better":
        return f"{start} The model is better by more than chance explains: {gap}."
    if decided == "worse":
        return f"{start} It beats this model by more than chance explains: {gap}. Use it, or train longer."
    return f"{start} The difference, {gap}, can be chance: this model is not shown to be better."


def _ends(difference: Mapping[str, Any], show: Any) -> str:
    if not words.known(difference.get("low")) or not words.known(difference.get("high")):
        return "no interval"
    return f"{words.LEVEL} {show(difference['low'])} to {show(difference['high'])}"
