"""The table of metric names: what stands under "metrics" in JSON, and how to read it."""

from __future__ import annotations

from typing import Literal, NamedTuple


class MetricInfo(NamedTuple):
    """What a metric name means: description, range, which way is better, formula or source."""

    description: str
    range: str
    better: Literal["higher", "lower"]
    source: str


METRICS: dict[str, MetricInfo] = {
    "accuracy": MetricInfo("share of rows decided right", "[0, 1]", "higher", "right / all"),
    "balanced_accuracy": MetricInfo(
        "mean recall over classes that have rows", "[0, 1]", "higher", "mean_k TP_k / support_k"
    ),
    "top5": MetricInfo(
        "share of rows whose class is among the 5 largest scores", "[0, 1]", "higher", "ties: lower index first"
    ),
    "precision": MetricInfo(
        "of what was called a class, the share that is; mean over classes", "[0, 1]", "higher", "TP / (TP + FP), macro"
    ),
    "precision_weighted": MetricInfo(
        "precision, each class weighted by its rows", "[0, 1]", "higher", "TP / (TP + FP), weighted by support"
    ),
    "recall": MetricInfo(
        "of the rows of a class, the share found; mean over classes", "[0, 1]", "higher", "TP / (TP + FN), macro"
    ),
    "f1": MetricInfo(
        "harmonic mean of precision and recall; mean over classes", "[0, 1]", "higher", "2TP / (2TP + FP + FN), macro"
    ),
    "f1_weighted": MetricInfo(
        "F1, each class weighted by its rows", "[0, 1]", "higher", "2TP / (2TP + FP + FN), weighted by support"
    ),
    "f1_micro": MetricInfo(
        "F1 of all labels counted together (multi-label)", "[0, 1]", "higher", "2TP / (2TP + FP + FN), pooled"
    ),
    "mcc": MetricInfo("correlation of decided and true class", "[-1, 1]", "higher", "Matthews 1975, Gorodkin 2004"),
    "kappa": MetricInfo("agreement beyond chance", "[-1, 1]", "higher", "(p_o - p_e) / (1 - p_e), Cohen 1960"),
    "log_loss": MetricInfo("mean -log probability of the true class", "[0, inf)", "lower", "mean -ln p_y"),
    "brier": MetricInfo(
        "mean squared distance of the probabilities from the truth",
        "[0, 2]; two classes [0, 1]",
        "lower",
        "mean sum_k (p_k - y_k)^2, halved for two classes; Brier 1950",
    ),
    "ece": MetricInfo(
        "gap between confidence and accuracy", "[0, 1]", "lower", "15 equal-mass bins; Guo 2017, Nixon 2019"
    ),
    "auroc": MetricInfo(
        "chance that a positive scores above a negative; over 2 classes: mean of class against rest",
        "[0, 1]",
        "higher",
        "Hanley and McNeil 1982, ties one half",
    ),
    "average_precision": MetricInfo(
        "mean precision as the threshold falls; over 2 classes: mean of class against rest",
        "[0, 1]",
        "higher",
        "sum_t (R_t - R_(t-1)) P_t",
    ),
    "sensitivity": MetricInfo("of the positives, the share called positive", "[0, 1]", "higher", "TP / (TP + FN)"),
    "specificity": MetricInfo("of the negatives, the share called negative", "[0, 1]", "higher", "TN / (TN + FP)"),
    "ppv": MetricInfo("of those called positive, the share that is", "[0, 1]", "higher", "TP / (TP + FP)"),
    "npv": MetricInfo("of those called negative, the share that is", "[0, 1]", "higher", "TN / (TN + FN)"),
    "exact_match": MetricInfo("share of rows with every known label right", "[0, 1]", "higher", "subset accuracy"),
    "hamming": MetricInfo("share of known labels that are wrong", "[0, 1]", "lower", "Hamming loss"),
    "r2": MetricInfo("share of the target's variance explained", "(-inf, 1]", "higher", "1 - SS_residual / SS_total"),
    "rmse": MetricInfo("typical error, in units of the target", "[0, inf)", "lower", "sqrt(mean (y' - y)^2)"),
    "mae": MetricInfo("mean absolute error, in units of the target", "[0, inf)", "lower", "mean |y' - y|"),
}

_COCO = "COCO: 101 recalls, 100 detections a picture and class"
_SMALL, _MEDIUM, _LARGE = "area up to 32^2 pixels", "area from 32^2 to 96^2 pixels", "area from 96^2 pixels"
METRICS |= {
    "map": MetricInfo(
        "mean average precision of boxes over classes and IoU .50, .55 ... .95", "[0, 1]", "higher", _COCO
    ),
    "map50": MetricInfo("mean average precision of boxes at IoU .5", "[0, 1]", "higher", _COCO),
    "map75": MetricInfo("mean average precision of boxes at IoU .75", "[0, 1]", "higher", _COCO),
    "map_small": MetricInfo(f"map of objects with an {_SMALL}", "[0, 1]", "higher", _COCO),
    "map_medium": MetricInfo(f"map of objects with an {_MEDIUM}", "[0, 1]", "higher", _COCO),
    "map_large": MetricInfo(f"map of objects with an {_LARGE}", "[0, 1]", "higher", _COCO),
    "ar1": MetricInfo(
        "mean recall of the best detection a picture and class, IoU .50 to .95", "[0, 1]", "higher", "COCO"
    ),
    "ar10": MetricInfo("mean recall of 10 detections a picture and class, IoU .50 to .95", "[0, 1]", "higher", "COCO"),
    "ar100": MetricInfo(
        "mean recall of 100 detections a picture and class, IoU .50 to .95", "[0, 1]", "higher", "COCO"
    ),
    "ar_small": MetricInfo(f"ar100 of objects with an {_SMALL}", "[0, 1]", "higher", "COCO"),
    "ar_medium": MetricInfo(f"ar100 of objects with an {_MEDIUM}", "[0, 1]", "higher", "COCO"),
    "ar_large": MetricInfo(f"ar100 of objects with an {_LARGE}", "[0, 1]", "higher", "COCO"),
    "voc07": MetricInfo(
        "mean average precision at IoU .5 by 11 points, without difficult objects",
        "[0, 1]",
        "higher",
        "PASCAL VOC to 2009",
    ),
    "voc": MetricInfo(
        "mean average precision at IoU .5 by area, without difficult objects",
        "[0, 1]",
        "higher",
        "PASCAL VOC from 2010",
    ),
    "froc": MetricInfo(
        "mean share of objects found at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false detections a picture; IoU .5",
        "[0, 1]",
        "higher",
        "competition metric of LUNA16, without interpolation",
    ),
    "localization_error": MetricInfo(
        "share of pictures with objects where none of 5 detections has the class and an IoU of .5",
        "[0, 1]",
        "lower",
        "ILSVRC",
    ),
    "localization_error1": MetricInfo("the same, of the best detection", "[0, 1]", "lower", "ILSVRC"),
    "mean_iou": MetricInfo(
        "IoU of the best detection with the object that it overlaps most, mean over pictures",
        "[0, 1]",
        "higher",
        "0 if nothing is found",
    ),
    "oks_map": MetricInfo(
        "mean average precision of poses over OKS .50, .55 ... .95", "[0, 1]", "higher", "COCO: 20 poses a picture"
    ),
    "oks_map50": MetricInfo("mean average precision of poses at OKS .5", "[0, 1]", "higher", "COCO"),
    "oks_map75": MetricInfo("mean average precision of poses at OKS .75", "[0, 1]", "higher", "COCO"),
    "oks_map_medium": MetricInfo(f"oks_map of objects with an {_MEDIUM}", "[0, 1]", "higher", "COCO"),
    "oks_map_large": MetricInfo(f"oks_map of objects with an {_LARGE}", "[0, 1]", "higher", "COCO"),
    "oks_ar": MetricInfo("mean recall of 20 poses a picture, OKS .50 to .95", "[0, 1]", "higher", "COCO"),
    "nme": MetricInfo(
        "mean distance of points from their places over the object's size; objects that were found",
        "[0, inf)",
        "lower",
        "the size is that of the box, or the distance of the eyes",
    ),
    "failure_rate": MetricInfo("share of objects with an NME above .1, or not found", "[0, 1]", "lower", "300-W"),
    "failure_rate_08": MetricInfo("share of objects with an NME above .08", "[0, 1]", "lower", "300-W"),
    "auc_ced": MetricInfo("area under the curve of cumulative errors up to NME .1", "[0, 1]", "higher", "300-W"),
    "pck": MetricInfo("share of points within .2 of the object's size of their place", "[0, 1]", "higher", "Yang 2013"),
    "pckh": MetricInfo("share of points within half a head of their place", "[0, 1]", "higher", "Andriluka 2014"),
}
