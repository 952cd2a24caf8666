"""What holds of every metric: weights are repetitions, replicates are single calls, order and chunks change nothing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.coco_cases import rows_of

from opsin.errors import ConfigError, DataError, ShapeError
from opsin.metrics import classification, inputs, keypoints, multilabel, probability, ranking, regression, summary
from opsin.metrics.detection import detection_metrics, localization_metrics
from opsin.metrics.names import METRICS

SETTINGS = settings(max_examples=25, deadline=None)


def example(seed, n=24, num_classes=3):
    random = np.random.default_rng(seed)
    levels = random.integers(1, 5, (n, num_classes)).astype(float)
    target = random.integers(0, num_classes, n)
    labels = np.where(random.random((n, num_classes)) < 0.2, np.nan, random.integers(0, 2, (n, num_classes)))
    return levels / levels.sum(1, keepdims=True), target, labels, random.integers(0, 4, (5, n))


def every_metric(scores, target, labels, weights):
    """All names and also the arrays per class, of three tasks made from the same scores."""
    few = summary.classification_metrics(scores[:, :2] / scores[:, :2].sum(1, keepdims=True), target % 2, weights)
    parts = classification.per_class(scores, target, weights)
    return {
        **{f"many {name}": value for name, value in summary.classification_metrics(scores, target, weights).items()},
        **{f"two {name}": value for name, value in few.items()},
        **{f"labels {name}": value for name, value in summary.multilabel_metrics(scores, labels, weights).items()},
        **{f"numbers {name}": value for name, value in summary.regression_metrics(scores, 2 * scores, weights).items()},
        "top 2": classification.top_k_accuracy(scores, target, 2, weights),
        "confusion": classification.confusion_matrix(scores.argmax(1), target, 3, weights),
        "per class": np.stack([parts.precision, parts.recall, parts.f1, parts.support], -1),
        "per label": multilabel.f1_per_label(scores, labels, weights),
    }


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-9, atol=1e-12, err_msg=name)


@SETTINGS
@given(st.integers(0, 2**32 - 1))
def test_an_integer_weight_is_the_row_that_many_times(seed):
    scores, target, labels, weights = example(seed)
    repeated = [np.repeat(array, weights[0], axis=0) for array in (scores, target, labels)]
    same(every_metric(scores, target, labels, weights[0]), every_metric(*repeated, None))


@SETTINGS
@given(st.integers(0, 2**32 - 1))
def test_replicates_are_single_calls_stacked(seed):
    scores, target, labels, weights = example(seed)
    together = every_metric(scores, target, labels, weights)
    single = [every_metric(scores, target, labels, row) for row in weights]
    same(together, {name: np.array([values[name] for values in single]) for name in single[0]})
    assert together["many accuracy"].shape == (5,)
    assert single[0]["many accuracy"].shape == ()


@SETTINGS
@given(st.integers(0, 2**32 - 1))
def test_scale_of_weights_and_order_of_rows_do_not_matter(seed):
    scores, target, labels, weights = example(seed)
    order = np.random.default_rng(seed).permutation(len(target))
    before = every_metric(scores, target, labels, weights)
    after = every_metric(scores[order], target[order], labels[order], weights[:, order] * 4.0)
    after["confusion"] = after["confusion"] / 4
    after["per class"] = after["per class"] / [1, 1, 1, 4]
    same(before, after)


def test_chunks_change_nothing(monkeypatch):
    scores, target, labels, weights = example(0)
    whole = every_metric(scores, target, labels, weights)
    monkeypatch.setattr(inputs, "CHUNK_CELLS", 2 * len(target))
    same(whole, every_metric(scores, target, labels, weights))


def test_a_replicate_without_weight_is_undefined_everywhere():
    scores, target, labels, weights = example(1)
    weights[2] = 0
    for name, value in every_metric(scores, target, labels, weights).items():
        if name == "confusion":
            continue
        last = value[2] if name != "per class" else value[2, :, :3]
        assert np.isnan(last).all(), name
        assert not np.isnan(value[[0, 1]]).all(), name


def test_no_rows_are_undefined():
    empty = every_metric(np.zeros((0, 3)), np.zeros(0, np.int64), np.zeros((0, 3)), None)
    assert all(np.isnan(value).all() for name, value in empty.items() if name not in ("confusion", "per class"))
    replicates = every_metric(np.zeros((0, 3)), np.zeros(0, np.int64), np.zeros((0, 3)), np.zeros((4, 0)))
    assert replicates["many auroc"].shape == (4,)


def names_of_detection():
    """Names of what is said of boxes and of points."""
    points = np.ones((1, 2, 3))
    one = {"boxes": [[0, 0, 9, 9]], "labels": [0], "points": points}
    rows = rows_of(
        [{f"{side}_{name}": value for side in ("found", "true") for name, value in one.items()} | {"found_scores": [1]}]
    )
    points = keypoints.landmark_metrics(rows, ["a"], how="area", head=(0, 1))
    both = {**localization_metrics(rows), **detection_metrics(rows, ["a"]), **points}
    return {*both, *keypoints.oks_metrics(rows, ["a"], sigmas=[0.1, 0.1]), "failure_rate_08"}


def test_names_are_those_the_summaries_give():
    scores, target, labels, _ = example(2, n=60, num_classes=7)
    many = summary.classification_metrics(scores, target)
    two = summary.classification_metrics(np.tile([0.4, 0.6], (4, 1)), [0, 1, 0, 1])
    rest = {**summary.multilabel_metrics(scores, labels), **summary.regression_metrics(scores, scores)}
    named = {*many, *two, *rest, *names_of_detection()}
    assert named == set(METRICS)
    assert "top5" in many
    assert "top5" not in two
    for name, info in METRICS.items():
        assert all(info), name
        assert info.better in ("higher", "lower")
    worst = {name: value for name, value in many.items() if METRICS[name].better == "lower"}
    perfect = summary.classification_metrics(np.eye(7)[target], target)
    for name, value in worst.items():
        assert perfect[name] < value, name
    for name in many.keys() - worst.keys():
        assert perfect[name] > many[name], name
    assert "auroc" not in summary.classification_metrics(scores, target, ranking=False)
    assert "auroc" not in summary.classification_metrics(np.tile([0.4, 0.6], (4, 1)), [0, 1, 0, 1], ranking=False)


def test_two_classes_take_class_one_as_positive():
    scores = np.array([[0.9, 0.1], [0.3, 0.7], [0.4, 0.6], [0.8, 0.2], [0.2, 0.8]])
    values = summary.classification_metrics(scores, [0, 1, 0, 1, 1])
    expected = {"sensitivity": 2 / 3, "specificity": 1 / 2, "ppv": 2 / 3, "npv": 1 / 2, "auroc": 5 / 6}
    assert {name: float(values[name]) for name in expected} == pytest.approx(expected)
    assert values["brier"] == pytest.approx(np.mean([0.01, 0.09, 0.36, 0.64, 0.04]))


def test_a_score_at_the_threshold_is_positive_and_thresholds_may_differ_by_label():
    assert classification.binary_counts([0.5, 0.4], [1, 1]).tp == 1
    assert classification.binary_counts([7.0, -3.0], [1, 0], threshold=5).tn == 1
    scores, target = np.full((2, 2), 0.5), np.array([[1, 1], [0, 0]])
    counts = multilabel.label_counts(scores, target, threshold=[0.5, 0.6])
    assert counts.tp.tolist() == [1, 0]
    assert counts.tn.tolist() == [0, 1]


def test_a_mask_hides_labels_like_nan():
    scores, _, labels, weights = example(3)
    mask = ~np.isnan(labels)
    filled = np.where(mask, labels, 1.0)
    masked = summary.multilabel_metrics(scores, filled, weights, mask=mask)
    same(masked, summary.multilabel_metrics(scores, labels, weights))
    unmasked = summary.multilabel_metrics(scores, filled, weights)
    assert not np.allclose(masked["f1"], unmasked["f1"])
    known = np.ones_like(mask)  # a mask cannot make a label known that nan says is missing
    same(masked, summary.multilabel_metrics(scores, labels, weights, mask=known))


def test_exact_match_looks_at_known_labels_and_leaves_out_rows_without_any():
    nan = np.nan
    target = np.array([[1, nan], [0, nan], [nan, nan], [1, 0], [1, 1]])
    scores = np.array([[0.9, 0.9], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    assert multilabel.exact_match(scores, target) == 2 / 4
    assert multilabel.hamming(scores, target) == 2 / 6


def test_constant_scores_gain_nothing_by_ties():
    scores, target = np.full((10, 5), 0.2), np.arange(10) % 5
    assert classification.accuracy(scores, target) == pytest.approx(0.2)
    assert classification.top_k_accuracy(scores, target, 2) == pytest.approx(0.4)
    assert ranking.auroc_macro(scores, target) == 0.5


WRONG = [
    (lambda: classification.accuracy([0.1, 0.9], [0, 1]), ShapeError, r"scores have shape \(2,\); expected \(n, K\)"),
    (lambda: classification.accuracy(np.eye(3), [0, 1]), ShapeError, "3 rows, target has 2"),
    (lambda: classification.accuracy(np.eye(2), [[0], [1]]), ShapeError, r"target has shape \(2, 1\)"),
    (lambda: classification.accuracy(np.eye(2), [0, 2]), DataError, "target row 1 is 2; .* 0 to 1"),
    (lambda: classification.accuracy(np.eye(2), [0.0, 1.0]), DataError, "expected integer class indices"),
    (lambda: classification.accuracy([["a", "b"]], [0]), DataError, "expected numbers"),
    (lambda: classification.accuracy([[np.nan, 1]], [0]), DataError, "scores row 0 is nan"),
    (lambda: classification.accuracy(np.eye(2), [0, 1], np.ones(3)), ShapeError, r"weights have shape \(3,\)"),
    (lambda: classification.accuracy(np.eye(2), [0, 1], np.ones((0, 2))), ShapeError, "R at least 1"),
    (lambda: classification.accuracy(np.eye(2), [0, 1], np.array([1, -1])), DataError, "negative"),
    (lambda: classification.accuracy(np.eye(2), [0, 1], np.array([1, np.inf])), DataError, "non-finite"),
    (lambda: classification.accuracy(np.eye(2), [0, 1], np.array([1, np.nan])), DataError, "non-finite"),
    (lambda: classification.accuracy(np.eye(2), [0, 1], np.array(["1", "2"])), DataError, "integers or floats"),
    (lambda: classification.top_k_accuracy(np.eye(2), [0, 1], 3), ConfigError, "k=3 with 2 classes"),
    (lambda: classification.f1(np.eye(2), [0, 1], average="mean"), ConfigError, "'mean' is not known"),
    (lambda: classification.class_counts([0], [0, 1], 2), ShapeError, "predicted has 1 rows"),
    (lambda: classification.binary_counts([0.5], [2]), DataError, "expected 0 .negative. or 1"),
    (lambda: classification.binary_counts([0.5], [[1]]), ShapeError, "of 0 and 1"),
    (lambda: classification.binary_counts([0.5], [1], threshold=np.nan), DataError, "nan"),
    (lambda: probability.log_loss([[2.0, -1.0]], [0]), DataError, "apply softmax first"),
    (lambda: probability.brier([[0.5, 0.4]], [0]), DataError, "sum 0.9"),
    (lambda: probability.ece(np.eye(2), [0, 1], num_bins=0), ConfigError, "num_bins=0"),
    (lambda: multilabel.exact_match(np.eye(2), [[0, 1]]), ShapeError, "for all"),
    (lambda: multilabel.exact_match(np.eye(2), [[0, 1], [3, 0]]), DataError, "row 1, label 0 is 3"),
    (lambda: multilabel.exact_match(np.eye(2), np.eye(2), threshold=[1.0]), ShapeError, "one per label"),
    (lambda: multilabel.exact_match(np.eye(2), np.eye(2), threshold=np.nan), DataError, "threshold holds nan"),
    (lambda: regression.r2([1.0], [[1.0]]), ShapeError, r"predicted has shape \(1,\), target \(1, 1\)"),
    (lambda: regression.mae([1.0, np.inf], [1.0, 2.0]), DataError, "predicted row 1"),
    (lambda: regression.mae([1.0, 0.0], [np.nan, 2.0]), DataError, "target row 0"),
]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_wrong_input_is_an_error_that_says_what_was_expected(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def test_importing_the_metrics_loads_no_torch():
    modules = "classification, intervals, multilabel, names, paired, probability, ranking, regression, repeats"
    code = (
        f"from opsin.metrics import {modules}, summary, thresholds, warnings\n"
        "import sys; sys.exit(any(name in sys.modules for name in ('torch', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
