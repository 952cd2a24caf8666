"""One head of a classifier judged: metrics, operating points, what a report shows, and what a reader must be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.errors import ConfigError, DataError
from opsin.metrics import thresholds as sweep
from opsin.metrics.classification import binary_counts, class_counts, confusion_matrix
from opsin.metrics.intervals import Interval
from opsin.metrics.multilabel import label_counts
from opsin.metrics.summary import classification_metrics, multilabel_metrics
from opsin.metrics.warnings import MetricsContext, MetricWarning, all_warnings, not_held_out, train_better_than_test
from opsin.results.section import Curve, Gallery, Matrix, Note, Picture, Section, Table

Array = NDArray[Any]
SHOWN = 24  # worst errors
BINS = 10


def _known(scores: Array, target: Array, weights: Array | None, multi: bool) -> tuple[Array, Array, Array | None]:
    if multi:
        return scores, target, weights
    known = target >= 0
    if known.all():
        return scores, target, weights
    return scores[known], target[known], None if weights is None else np.asarray(weights)[..., known]


def metrics(
    scores: Array,
    target: Array,
    weights: Array | None,
    *,
    multi: bool,
    thresholds: Sequence[float] | None,
    said: Array | None = None,
) -> dict[str, Array]:
    """All metrics of one head; rows without a label (-1, nan) do not count. Without any label all of them are nan.

    Args:
        scores: (n, K).
        target: (n,) class or -1, or (n, K) of 0, 1 and nan.
        weights: None, (n,) or (R, n).
        thresholds: (K,) operating points; for two classes the second counts, and adds `*_at_point`.
        said: (n,) class that is said of each row, by default the one with the best score.
    """
    if said is not None and not multi:
        said = said[target >= 0]
    scores, target, weights = _known(scores, target, weights, multi)
    if multi:
        return dict(multilabel_metrics(scores, target, weights, 0.5 if thresholds is None else np.asarray(thresholds)))
    found = dict(classification_metrics(scores, target, weights, decided=said))
    if scores.shape[1] == 2 and thresholds is not None:
        counts = binary_counts(scores[:, 1], target, thresholds[1], weights)
        found |= {
            "sensitivity_at_point": counts.sensitivity(),
            "specificity_at_point": counts.specificity(),
            "ppv_at_point": counts.ppv(),
            "npv_at_point": counts.npv(),
        }
    return found


def operating_points(scores: Array, target: Array, rule: str, *, multi: bool) -> tuple[float, ...] | None:
    """Thresholds by a rule, one per class; None when a head has more than two exclusive classes.

    Args:
        rule: `f1`, `recall=0.95` (or `sensitivity=`), `specificity=0.9`, `fpr=0.05`, `cost=1:5` (a false alarm to a miss).

    Raises:
        ConfigError: for another rule.
    """
    scores, target, _ = _known(scores, target, None, multi)
    if multi:
        return tuple(_point(scores[:, k], target[:, k], rule) for k in range(scores.shape[1]))
    if scores.shape[1] != 2:
        return None
    point = _point(scores[:, 1], target, rule)
    return (1.0 - point, point)


def _point(scores: Array, target: Array, rule: str) -> float:
    name, _, text = rule.partition("=")
    rules = {
        "recall": sweep.point_by_recall,
        "sensitivity": sweep.point_by_recall,
        "specificity": sweep.point_by_specificity,
        "fpr": sweep.point_by_fpr,
    }
    known = ~np.isnan(target.astype(np.float64))
    scores, target = scores[known], target[known].astype(np.int64)
    if name not in rules and name not in ("f1", "cost"):
        raise ConfigError(
            f"task.operating_point = '{rule}': use f1, recall=0.95, specificity=0.9, fpr=0.05 or cost=1:5."
        )
    if not (0 < target.sum() < len(target)):
        return 0.5  # nothing to choose from: all known rows are of one kind
    table = sweep.threshold_table(scores, target)
    try:
        if name == "cost":
            alarm, miss = map(float, text.split(":"))
            point = sweep.point_by_cost(table, fp=alarm, fn=miss)
        else:
            point = sweep.point_by_f1(table) if name == "f1" else rules[name](table, float(text))
    except ValueError as error:
        wanted = "two numbers such as 1:5" if name == "cost" else "a number"
        raise ConfigError(f"task.operating_point = '{rule}': '{text}' is not {wanted}.") from error
    except DataError:
        return 0.5
    below = scores[scores < point.threshold]
    middle = (
        (point.threshold + float(below.max())) / 2 if len(below) and np.isfinite(point.threshold) else point.threshold
    )
    return float(min(max(middle, 0.0), 1.0))


def sections(
    head: str,
    class_names: Sequence[str],
    ids: Array,
    scores: Array,
    target: Array,
    *,
    multi: bool,
    thresholds: Sequence[float] | None,
    said: Array | None = None,
) -> list[Section]:
    """Per-class table, confusions, worst errors, calibration and, for two classes, ROC and precision against recall; args as `metrics`."""
    title = f" ({head})" if head else ""
    if multi:
        return _multi_sections(title, class_names, scores, target, thresholds)
    known = target >= 0
    said = (scores.argmax(1) if said is None else said)[known]
    ids, scores, target = ids[known], scores[known], target[known]
    if len(ids) == 0:
        return []
    matrix = np.asarray(confusion_matrix(said, target, scores.shape[1]))
    found: list[Section] = [_per_class_table(title, class_names, said, target)]
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    if len(class_names) <= 50:
        names = tuple(class_names)
        found.append(
            Matrix(
                f"Confusion matrix{title}",
                names,
                names,
                share,
                "true class",
                "predicted class",
                "Share of each true class (rows sum to 100 %).",
            )
        )
    found += _confused(title, class_names, matrix, ids, scores, target, said)
    found.append(_worst(title, class_names, ids, scores, target, said))
    found.append(_reliability(title, scores, target))
    if len(class_names) == 2 and len(np.unique(target)) == 2:
        curve = sweep.roc_curve(scores[:, 1], target)
        found.append(
            Curve(
                f"ROC{title}: '{class_names[1]}' against '{class_names[0]}'",
                "1 - specificity",
                "sensitivity",
                {"ROC": (curve.fpr, curve.tpr)},
                True,
            )
        )
        precision = sweep.pr_curve(scores[:, 1], target)
        lines = {"model": (precision.recall, precision.precision)}
        found.append(Curve(f"Precision and recall{title}: '{class_names[1]}'", "recall", "precision", lines))
    return found


def _per_class_table(title: str, class_names: Sequence[str], said: Array, target: Array) -> Table:
    each = class_counts(said, target, len(class_names))
    rows = tuple(
        (name, int(n), _number(p), _number(r), _number(f))
        for name, n, p, r, f in zip(
            class_names,
            np.asarray(each.support),
            np.asarray(each.precision_per_class()),
            np.asarray(each.recall_per_class()),
            np.asarray(each.f1_per_class()),
        )
    )
    return Table(
        f"Classes{title}", ("class", "pictures", "precision", "recall", "F1"), rows, "An empty cell is undefined (0/0)."
    )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def _confused(
    title: str, names: Sequence[str], matrix: Array, ids: Array, scores: Array, target: Array, said: Array
) -> list[Section]:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = [i for i in np.argsort(-wrong, axis=None, kind="stable")[:8] if wrong.flat[i] > 0]
    if not order:
        return []
    rows, pictures = [], []
    for i in order:
        true, answer = divmod(int(i), len(names))
        rows.append(
            (names[true], names[answer], int(wrong[true, answer]), _number(wrong[true, answer] / matrix[true].sum()))
        )
        which = np.flatnonzero((target == true) & (said == answer))
        for j in which[np.argsort(-scores[which, answer], kind="stable")][:3]:
            pictures.append(
                Picture(str(ids[j]), f"{names[true]} taken for {names[answer]}", f"{scores[j, answer]:.0%} sure")
            )
    table = Table(
        f"Most confused pairs{title}", ("true class", "predicted", "pictures", "share of the class"), tuple(rows)
    )
    if wrong.sum() <= SHOWN:  # all of them stand under the errors
        return [table]
    return [table, Gallery(f"Confused pictures{title}", tuple(pictures[:SHOWN]))]


def _worst(title: str, names: Sequence[str], ids: Array, scores: Array, target: Array, said: Array) -> Gallery:
    wrong = np.flatnonzero(said != target)
    every = len(wrong) <= SHOWN
    wrong = wrong[np.argsort(-scores[wrong, said[wrong]], kind="stable")][:SHOWN]
    pictures = tuple(
        Picture(str(ids[j]), f"{names[target[j]]} taken for {names[said[j]]}", f"{scores[j, said[j]]:.0%} sure")
        for j in wrong
    )
    note = "Most confident first: a wrong label, a leak or a hard case?" if pictures else "No errors."
    return Gallery(f"{'All' if every else 'Worst'} errors{title}", pictures, note)


def _reliability(title: str, scores: Array, target: Array) -> Curve:
    sure, right = scores.max(1), (scores.argmax(1) == target).astype(np.float64)
    groups = [g for g in np.array_split(np.argsort(sure, kind="stable"), BINS) if len(g)]
    x, y = np.array([sure[g].mean() for g in groups]), np.array([right[g].mean() for g in groups])
    return Curve(
        f"Calibration{title}",
        "confidence",
        "share that is right",
        {"model": (x, y)},
        True,
        "Ten groups of equal size; on the diagonal, 80 % sure means right in 80 % of cases.",
    )


def _multi_sections(
    title: str, names: Sequence[str], scores: Array, target: Array, thresholds: Sequence[float] | None
) -> list[Section]:
    limits = np.full(len(names), 0.5) if thresholds is None else np.asarray(thresholds)
    counts = label_counts(scores, target, None, limits)
    known = (~np.isnan(target)).sum(0)
    yes = np.nansum(target, axis=0)
    rows = tuple(
        (name, int(n), int(p), round(float(t), 3), _number(a), _number(b), _number(c))
        for name, n, p, t, a, b, c in zip(
            names,
            known,
            yes,
            limits,
            np.asarray(counts.ppv()),
            np.asarray(counts.sensitivity()),
            np.asarray(counts.f1()),
        )
    )
    columns = ("label", "known", "has it", "threshold", "precision", "recall", "F1")
    return [Table(f"Labels{title}", columns, rows, "Thresholds were chosen on the validation part.")]


def warnings(
    head: str,
    class_names: Sequence[str],
    scores: Array,
    target: Array,
    *,
    multi: bool,
    found: Mapping[str, Interval],
    train_metrics: Mapping[str, float],
    split: str,
    said: Array | None = None,
) -> list[Note]:
    """What could mislead in the metrics of one head, as notes; other args as `metrics`.

    Args:
        found: metrics of these rows; without them intervals are made from counts.
        train_metrics: values on the training part that `found` is compared with.
        split: the part that the rows are from.
    """
    prefix = f"{head}: " if head else ""
    size = len(class_names)
    if multi:
        empty = [name for name, n in zip(class_names, np.nansum(target, axis=0)) if n == 0]
        text = (
            f"{', '.join(empty[:5])}: no picture of the part has it, so nothing is known of how well it is recognized."
        )
        notes = [Note("absent_class", text)] if empty else []
        context = MetricsContext(class_names, np.zeros((size, size)), found, train_metrics, split)
        checks = [*not_held_out(context), *train_better_than_test(context)]
        return [*notes, *(_note(one, prefix) for one in checks)]
    known = target >= 0
    if not known.any():
        return [Note("tiny_test_set", f"No picture of the part has a label for '{head}': there is nothing to measure.")]
    said = scores.argmax(1) if said is None else said
    context = MetricsContext(
        class_names,
        np.asarray(confusion_matrix(said[known], target[known], size)),
        found,
        train_metrics,
        split,
    )
    return [_note(one, prefix) for one in all_warnings(context)]


def _note(one: MetricWarning, prefix: str) -> Note:
    """The warning with the head's name, unless it is about the part and so the same for all heads."""
    return Note(one.code, one.message if one.code == "not_held_out" else prefix + one.message)
