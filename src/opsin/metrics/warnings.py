"""What could mislead in a set of metrics, said in plain words with the numbers (spec FND-24)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from opsin.errors import ShapeError
from opsin.metrics.intervals import Interval, wilson
from opsin.metrics.names import METRICS

BASE_RATE_PREVALENCE = 0.1  # below this share of positives, and
BASE_RATE_SENSITIVITY = 0.8  # with at least this share of them found, and
BASE_RATE_SPECIFICITY = 0.9  # at least this share of the others left alone,
BASE_RATE_PPV = 0.5  # a PPV below this is a matter of prevalence
IMBALANCE_RATIO = 10  # largest class over smallest
WIDE_INTERVAL = 0.1  # of the accuracy: plus or minus 5 points
TRAIN_GAP = 0.05  # train better than test by this much (share metrics), or by this part (unbounded ones)


@dataclass(frozen=True)
class MetricWarning:
    """One thing a reader of the numbers must know.

    Args:
        code: stable name, such as "accuracy_paradox".
        message: one or two sentences with the numbers.
    """

    code: str
    message: str

    def to_dict(self) -> dict[str, str]:
        """JSON-safe: code and message."""
        return {"code": self.code, "message": self.message}


@dataclass(frozen=True)
class MetricsContext:
    """What the warnings look at.

    Args:
        class_names: K names.
        confusion: rows of each true class (first axis) decided as each class, (K, K).
        metrics: name to interval, of the same rows.
        train_metrics: name to value on the training part, when it was measured.
        split: the part the rows are from.
        positive: index of the positive class when there are two.
    """

    class_names: Sequence[str]
    confusion: npt.NDArray[Any]
    metrics: Mapping[str, Interval] = field(default_factory=dict)
    train_metrics: Mapping[str, float] = field(default_factory=dict)
    split: str = "test"
    positive: int = 1

    def __post_init__(self) -> None:
        size = len(self.class_names)
        if np.shape(self.confusion) != (size, size) or size == 0:
            raise ShapeError(
                f"confusion has shape {np.shape(self.confusion)}; expected ({size}, {size}) for {size} class names."
            )

    @property
    def support(self) -> npt.NDArray[Any]:
        """Rows of each class, (K,)."""
        support: npt.NDArray[Any] = np.asarray(self.confusion).sum(1)
        return support


def all_warnings(context: MetricsContext) -> list[MetricWarning]:
    """Every warning that applies, the gravest kinds first."""
    checks: list[Callable[[MetricsContext], list[MetricWarning]]] = [
        not_held_out,
        accuracy_paradox,
        base_rate,
        absent_class,
        undefined_ratio,
        tiny_test_set,
        imbalanced_test_set,
        train_better_than_test,
    ]
    return [warning for check in checks for warning in check(context)]


def not_held_out(context: MetricsContext) -> list[MetricWarning]:
    """The numbers are of rows the model was trained on, or chosen on."""
    used = {"train": "trained on", "val": "chosen on (epoch, settings, threshold)"}
    if context.split not in used:
        return []
    message = (
        f"These numbers are of the {context.split} part, which the model was {used[context.split]}: they are too good. "
        "The number to report is the one of the test part."
    )
    return [MetricWarning("not_held_out", message)]


def accuracy_paradox(context: MetricsContext) -> list[MetricWarning]:
    """The model is not shown to beat always answering the most frequent class.

    Tested on the rows where exactly one of the two is right: the share the model wins must have its 95 % Wilson
    interval above one half.
    """
    table, support = np.asarray(context.confusion), context.support
    n = float(support.sum())
    if n == 0 or len(support) < 2:
        return []
    most = int(support.argmax())
    won = float(np.diag(table).sum() - table[most, most])
    lost = float(support[most] - table[most, most])
    share = wilson(won, won + lost)
    if share.low > 0.5:
        return []
    model, majority = float(np.diag(table).sum()) / n, float(support[most]) / n
    name = context.class_names[most]
    if won > lost:
        verdict = (
            f"is above that of always answering '{name}' ({majority:.1%}), but not by more than chance: of the "
            f"{won + lost:g} rows where only one of the two is right the model has {won:g} (50 % is within its "
            f"interval, {share.low:.0%} to {share.high:.0%})"
        )
    else:
        verdict = f"is no better than always answering '{name}', which gets {majority:.1%} without looking"
    message = f"Accuracy {model:.1%} {verdict}. Read balanced accuracy and recall per class instead."
    return [MetricWarning("accuracy_paradox", message)]


def base_rate(context: MetricsContext) -> list[MetricWarning]:
    """A good-looking detector of a rare class whose alarms are mostly false, because the class is rare."""
    table, support = np.asarray(context.confusion, dtype=np.float64), context.support
    n = float(support.sum())
    classes = [context.positive] if len(support) == 2 else range(len(support))
    found = []
    for index in classes:
        tp, fp = table[index, index], table[:, index].sum() - table[index, index]
        positives, negatives = float(support[index]), n - float(support[index])
        if not positives or not negatives or not tp + fp:
            continue
        prevalence, sensitivity, specificity, ppv = positives / n, tp / positives, 1 - fp / negatives, tp / (tp + fp)
        if (
            prevalence < BASE_RATE_PREVALENCE
            and sensitivity >= BASE_RATE_SENSITIVITY
            and specificity >= BASE_RATE_SPECIFICITY
            and ppv < BASE_RATE_PPV
        ):
            message = (
                f"'{context.class_names[index]}' is rare ({prevalence:.2%} of rows): {sensitivity:.1%} of its rows are "
                f"found and {specificity:.1%} of the others left alone, yet only {ppv:.1%} of the {tp + fp:g} alarms "
                f"are right ({fp:g} are false). Where it is rarer still, fewer are."
            )
            found.append(MetricWarning("base_rate", message))
    return found


def absent_class(context: MetricsContext) -> list[MetricWarning]:
    """A class has no rows, so nothing is known of it."""
    absent = [name for name, rows in zip(context.class_names, context.support) if not rows]
    if not absent:
        return []
    message = (
        f"{_names(absent)} {'has' if len(absent) == 1 else 'have'} no rows in {part_words(context.split)}: nothing is "
        f"known of how well {'it is' if len(absent) == 1 else 'they are'} recognised, and means over classes leave "
        f"{'it' if len(absent) == 1 else 'them'} out."
    )
    return [MetricWarning("absent_class", message)]


def undefined_ratio(context: MetricsContext) -> list[MetricWarning]:
    """A ratio is 0/0: a class that is never answered has no precision, a metric came out nan."""
    warnings = []
    predicted = np.asarray(context.confusion).sum(0)
    never = [name for name, rows, seen in zip(context.class_names, predicted, context.support) if not rows and seen]
    if never:
        message = (
            f"{_names(never)} {'is' if len(never) == 1 else 'are'} never answered: precision (PPV) is 0/0, undefined, "
            "not 0, and the mean precision leaves it out, which makes that mean look better."
        )
        warnings.append(MetricWarning("undefined_ratio", message))
    nan = [name for name, interval in context.metrics.items() if math.isnan(interval.value)]
    if nan:
        message = f"{_names(nan)} cannot be computed from these rows (0/0) and {_is(nan)} left empty, not set to 0."
        warnings.append(MetricWarning("undefined_ratio", message))
    return warnings


def tiny_test_set(context: MetricsContext) -> list[MetricWarning]:
    """So few rows (or groups) that the accuracy could be many points off."""
    n = int(context.support.sum())
    if n == 0:
        return [
            MetricWarning(
                "tiny_test_set", f"{sentence(part_words(context.split))} has no rows: there is nothing to measure."
            )
        ]
    interval = context.metrics.get("accuracy")
    if interval is None or not math.isfinite(interval.high - interval.low):
        interval = wilson(float(np.diag(np.asarray(context.confusion)).sum()), n)
    if interval.high - interval.low <= WIDE_INTERVAL:
        return []
    of = f"{n} rows" if interval.groups is None else f"{n} rows in {interval.groups} groups"
    message = (
        f"{sentence(part_words(context.split))} has only {of}: accuracy {interval.value:.1%} could be anywhere from "
        f"{interval.low:.1%} to {interval.high:.1%}. Differences smaller than that mean nothing here."
    )
    return [MetricWarning("tiny_test_set", message)]


def imbalanced_test_set(context: MetricsContext) -> list[MetricWarning]:
    """One class has so many more rows than another that accuracy is about the large one."""
    support = context.support
    seen = np.flatnonzero(support)
    if len(seen) < 2:
        return []
    most, least = int(support.argmax()), int(seen[support[seen].argmin()])
    if support[most] < IMBALANCE_RATIO * support[least]:
        return []
    message = (
        f"{sentence(part_words(context.split))} is imbalanced: '{context.class_names[most]}' has {support[most]:g} rows, "
        f"'{context.class_names[least]}' {support[least]:g} ({support[most] / support[least]:.0f} to 1). Accuracy is "
        "mostly about the frequent class; read balanced accuracy and the table per class."
    )
    return [MetricWarning("imbalanced_test_set", message)]


def train_better_than_test(context: MetricsContext) -> list[MetricWarning]:
    """Metrics are much better on the training part than here, beyond the interval: the model has overfitted."""
    found = []
    for name, train in context.train_metrics.items():
        here = context.metrics.get(name)
        if here is None or name not in METRICS or not math.isfinite(train) or not math.isfinite(here.value):
            continue
        higher = METRICS[name].better == "higher"
        gap = train - here.value if higher else here.value - train
        bounded = METRICS[name].range.startswith(("[0, 1]", "[-1, 1]"))
        edge = here.high if higher else here.low
        beyond = not math.isfinite(edge) or (train > edge if higher else train < edge)
        if beyond and gap > TRAIN_GAP * (1.0 if bounded else max(abs(here.value), 1e-12)):
            found.append((name, train, here))
    if not found:
        return []
    name, train, here = found[0]
    others = f" ({_some([other for other, _, _ in found[1:]])} alike)" if found[1:] else ""
    message = (
        f"{name} is {train:.3f} on the train part and {here.value:.3f} on {part_words(context.split)}{_range(here)}{others}: the "
        "model knows its training rows better than new ones (overfitting, or the parts differ)."
    )
    return [MetricWarning("train_better_than_test", message)]


def part_words(split: str) -> str:
    """A part of the data in words: `the test part`; for other data (`other-NAME`) their name."""
    return split.removeprefix("other-") if split.startswith("other-") else f"the {split} part"


def sentence(words: str) -> str:
    """Words at the start of a sentence."""
    return words[:1].upper() + words[1:] if words.startswith("the ") else words


def _some(names: Sequence[str], shown: int = 3) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _names(names: Sequence[str], shown: int = 5) -> str:
    quoted = [f"'{name}'" for name in names[:shown]]
    rest = len(names) - shown
    return ", ".join(quoted) + (f" and {rest} more" if rest > 0 else "")


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _range(interval: Interval) -> str:
    known = math.isfinite(interval.low) and math.isfinite(interval.high)
    return f" (interval {interval.low:.3f} to {interval.high:.3f})" if known else ""
