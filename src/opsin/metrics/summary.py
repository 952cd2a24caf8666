"""Every headline metric of a task at once, under its JSON name: what `bootstrap` and the reports are given.

Example:
    >>> import numpy as np
    >>> from opsin.metrics.intervals import bootstrap
    >>> scores, target = np.array([[.9, .1], [.2, .8], [.4, .6], [.7, .3]]), np.array([0, 1, 0, 0])
    >>> intervals = bootstrap(lambda weights: classification_metrics(scores, target, weights), 4, seed=0)
    >>> intervals["accuracy"].value
    0.75
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opsin.metrics import multilabel, regression
from opsin.metrics.classification import class_counts, top_k_accuracy
from opsin.metrics.inputs import FloatArray, Weights, check_classified, mean_of_defined
from opsin.metrics.probability import brier, ece, log_loss
from opsin.metrics.ranking import binary_areas, class_areas


def classification_metrics(
    scores: npt.ArrayLike,
    target: npt.ArrayLike,
    weights: Weights = None,
    ranking: bool = True,
    decided: npt.ArrayLike | None = None,
) -> dict[str, FloatArray]:
    """All metrics of one-label-per-row classification, each () or (R,).

    Precision, recall and F1 are macro averages, `*_weighted` weighted by support. With two classes, class 1 is the
    positive one: AUROC and average precision are of its score, and sensitivity, specificity, PPV and NPV are added;
    with more, AUROC and average precision are means over classes against the rest. `top5` needs more than 5 classes.

    Args:
        scores: probabilities (n, K).
        target: class indices, (n,).
        weights: None, (n,) or (R, n).
        ranking: False leaves out AUROC and average precision, which cost a pass over rows for each class.
        decided: the class that is said of each row, (n,); by default the one with the largest score.

    Raises:
        ShapeError: shapes that do not fit.
        DataError: rows that are not probabilities, class indices outside [0, K).
    """
    checked, labels = check_classified(scores, target)
    num_classes = checked.shape[1]
    counts = class_counts(checked.argmax(1) if decided is None else decided, labels, num_classes, weights)
    precisions, recalls, f1s = counts.precision_per_class(), counts.recall_per_class(), counts.f1_per_class()
    values = {
        "accuracy": counts.accuracy(),
        "balanced_accuracy": counts.balanced_accuracy(),
        "precision": mean_of_defined(precisions),
        "recall": mean_of_defined(recalls),
        "f1": mean_of_defined(f1s),
        "precision_weighted": counts.average(precisions, "weighted"),
        "f1_weighted": counts.average(f1s, "weighted"),
        "mcc": counts.mcc(),
        "kappa": counts.kappa(),
        "log_loss": log_loss(checked, labels, weights),
        "brier": brier(checked, labels, weights),
        "ece": ece(checked, labels, weights),
    }
    if num_classes > 5:
        values["top5"] = top_k_accuracy(checked, labels, 5, weights)
    if num_classes == 2:
        values |= {
            "sensitivity": recalls[..., 1],
            "specificity": recalls[..., 0],
            "ppv": precisions[..., 1],
            "npv": precisions[..., 0],
        }
        if ranking:
            values["auroc"], values["average_precision"] = binary_areas(checked[:, 1], labels, weights)
    elif ranking:
        aurocs, precisions_at_ranks = class_areas(checked, labels, weights)
        values["auroc"], values["average_precision"] = mean_of_defined(aurocs), mean_of_defined(precisions_at_ranks)
    return values


def multilabel_metrics(
    scores: npt.ArrayLike,
    target: npt.ArrayLike,
    weights: Weights = None,
    threshold: npt.ArrayLike = 0.5,
    mask: npt.ArrayLike | None = None,
) -> dict[str, FloatArray]:
    """All metrics of several labels per row, each () or (R,); precision, recall, F1, AUROC and AP are macro.

    Args:
        scores: (n, L).
        target: 0, 1 or nan (missing), (n, L).
        weights: None, (n,) or (R, n).
        threshold: a score at or above it says yes; one number, or one per label (L,).
        mask: True where a label is known, (n, L).

    Raises:
        ShapeError: shapes that do not fit.
        DataError: nan scores, an observed target other than 0 and 1.
    """
    counts = multilabel.label_counts(scores, target, weights, threshold, mask)
    together = multilabel.pooled(counts)
    aurocs, precisions = multilabel.label_areas(scores, target, weights, mask)
    return {
        "exact_match": multilabel.exact_match(scores, target, weights, threshold, mask),
        "hamming": np.asarray(1 - together.accuracy(), dtype=np.float64),
        "precision": mean_of_defined(counts.ppv()),
        "recall": mean_of_defined(counts.sensitivity()),
        "f1": mean_of_defined(counts.f1()),
        "f1_micro": together.f1(),
        "auroc": mean_of_defined(aurocs),
        "average_precision": mean_of_defined(precisions),
    }


def regression_metrics(
    predicted: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None
) -> dict[str, FloatArray]:
    """R2, RMSE and MAE, each () or (R,); predicted and target (n,) or (n, D)."""
    return {
        "r2": regression.r2(predicted, target, weights),
        "rmse": regression.rmse(predicted, target, weights),
        "mae": regression.mae(predicted, target, weights),
    }
