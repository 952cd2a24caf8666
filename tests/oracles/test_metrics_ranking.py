"""AUROC, average precision, ROC and precision-recall curves against scikit-learn, with weights and ties."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as oracle

from opsin.errors import ConfigError, DataError
from opsin.metrics import multilabel, ranking, thresholds
from opsin.metrics.classification import BinaryCounts

SETTINGS = settings(max_examples=60, deadline=None)


@st.composite
def ranked(draw, both=True):
    n = draw(st.integers(2, 40))
    scores = draw(hnp.arrays(np.int64, n, elements=st.integers(-3, 8))) * 0.7
    target = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 1)))
    weights = draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 0.3, 1.0, 2.0, 7.1])))
    if both:
        target[:2], weights[:2] = (0, 1), 1.0
    return scores, target, weights


def agree(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@SETTINGS
@given(ranked())
def test_areas_equal_scikit_learn(case):
    scores, target, weights = case
    agree(ranking.auroc(scores, target, weights), oracle.roc_auc_score(target, scores, sample_weight=weights))
    agree(
        ranking.average_precision(scores, target, weights),
        oracle.average_precision_score(target, scores, sample_weight=weights),
    )


@SETTINGS
@given(ranked(both=False))
def test_areas_are_undefined_exactly_where_a_side_is_missing(case):
    scores, target, weights = case
    positive, negative = weights[target == 1].sum() > 0, weights[target == 0].sum() > 0
    auroc, ap = ranking.binary_areas(scores, target, weights)
    assert np.isnan(auroc) == (not (positive and negative))
    assert np.isnan(ap) == (not positive)
    if positive and not negative:
        agree(ap, 1)


def test_class_areas_equal_scikit_learn_class_by_class():
    random = np.random.default_rng(3)
    scores, target = random.random((50, 4)).round(1), random.integers(0, 3, 50)  # class 3 has no rows
    weights = random.integers(0, 3, (5, 50))
    auroc, ap = ranking.class_areas(scores, target, weights)
    for row, mass in enumerate(weights):
        for label in range(3):
            agree(auroc[row, label], oracle.roc_auc_score(target == label, scores[:, label], sample_weight=mass))
            theirs = oracle.average_precision_score(target == label, scores[:, label], sample_weight=mass)
            agree(ap[row, label], theirs)
    assert np.isnan(auroc[:, 3]).all()
    assert np.isnan(ap[:, 3]).all()
    agree(ranking.auroc_macro(scores, target, weights), auroc[:, :3].mean(1))
    agree(ranking.average_precision_macro(scores, target, weights), ap[:, :3].mean(1))


@SETTINGS
@given(ranked())
def test_curves_equal_scikit_learn(case):
    scores, target, weights = case
    ours = thresholds.roc_curve(scores, target, weights)
    fpr, tpr, at = oracle.roc_curve(target, scores, sample_weight=weights, drop_intermediate=False)
    theirs = {float(t): (f, s) for f, s, t in zip(fpr, tpr, at)}
    for f, s, t in zip(ours.fpr, ours.tpr, ours.threshold):
        if t in theirs:  # rows of weight 0 make thresholds of ours that the oracle leaves out
            agree((f, s), theirs[float(t)])
    assert set(theirs) <= set(ours.threshold.tolist())
    agree(ours.area(), oracle.roc_auc_score(target, scores, sample_weight=weights))

    curve = thresholds.pr_curve(scores, target, weights)
    agree(curve.area(), oracle.average_precision_score(target, scores, sample_weight=weights))
    precision, recall, at = oracle.precision_recall_curve(target, scores, sample_weight=weights)
    theirs = {float(t): (p, r) for p, r, t in zip(precision, recall, at)}
    for p, r, t in zip(curve.precision, curve.recall, curve.threshold):
        if t in theirs:
            agree((p, r), theirs[float(t)])


@SETTINGS
@given(ranked())
def test_table_equals_counting_at_each_threshold(case):
    scores, target, weights = case
    table = thresholds.threshold_table(scores, target, weights)
    for index, threshold in enumerate(table.threshold):
        called = scores >= threshold
        agree(table.counts.tp[index], weights[called & (target == 1)].sum())
        agree(table.counts.fp[index], weights[called & (target == 0)].sum())
        agree(table.counts.fn[index], weights[~called & (target == 1)].sum())
        agree(table.counts.tn[index], weights[~called & (target == 0)].sum())


@SETTINGS
@given(ranked(), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
def test_operating_points_are_the_best_of_all_thresholds(case, share):
    scores, target, weights = case
    table = thresholds.threshold_table(scores, target, weights)
    counts = table.counts
    best = thresholds.point_by_f1(table)
    assert best.f1 == np.nanmax(counts.f1())
    cheap = thresholds.point_by_cost(table, fp=1, fn=5)
    agree(cheap.fp + 5 * cheap.fn, (counts.fp + 5 * counts.fn).min())
    point = thresholds.point_by_recall(table, share)
    assert point.tpr >= share
    assert not (counts.sensitivity()[table.threshold > point.threshold] >= share).any()
    point = thresholds.point_by_fpr(table, share)
    assert point.fpr <= share
    assert point.tp == counts.tp[counts.fpr() <= share].max()
    point = thresholds.point_by_specificity(table, share)
    assert point.tn / (point.tn + point.fp) >= share
    assert point.tp == counts.tp[counts.specificity() >= share].max()


def test_best_f1_at_a_threshold_above_one():
    """494 positives, 990 negatives, scores beyond 1: the spec's cat table has its best F1, .917, at 1.06."""
    asked = np.array([1.9, 1.6, 1.3, 1.06, 0.8, 0.5, 0.2])
    tp, fp = np.array([100, 250, 400, 453, 480, 490, 494]), np.array([0, 3, 15, 41, 200, 500, 990])
    positives = np.repeat(asked, np.diff(tp, prepend=0))
    negatives = np.repeat(asked, np.diff(fp, prepend=0))
    scores = np.concatenate([positives, negatives])
    target = np.repeat([1, 0], [494, 990])
    point = thresholds.point_by_f1(thresholds.threshold_table(scores, target, thresholds=asked))
    assert point.threshold == 1.06
    assert round(point.f1, 3) == 0.917
    assert (point.tp, point.fp, point.fn, point.tn) == (453, 41, 41, 949)


def test_point_that_no_threshold_reaches_is_an_error():
    table = thresholds.threshold_table([0.1, 0.9], [1, 0], thresholds=[0.5])
    with pytest.raises(DataError, match=r"no threshold of the table gives recall at least 0\.5"):
        thresholds.point_by_recall(table, 0.5)
    with pytest.raises(ConfigError, match="share from 0 to 1"):
        thresholds.point_by_fpr(table, 5)
    with pytest.raises(ConfigError, match="finite"):
        thresholds.point_by_cost(table, fp=np.nan, fn=1)
    counts = BinaryCounts(*np.zeros((4, 1)))
    with pytest.raises(DataError, match="largest F1"):
        thresholds.point_by_f1(thresholds.ThresholdTable(np.array([0.5]), counts))


def test_roc_is_read_at_the_top_of_a_step_and_the_band_holds_the_curve():
    random = np.random.default_rng(0)
    target = random.integers(0, 2, 200)
    scores = random.normal(size=200) + target
    curve = thresholds.roc_curve(scores, target)
    assert curve.tpr_at(0.0) == curve.tpr[curve.fpr == 0].max()
    assert curve.tpr_at(1.0) == 1
    weights = random.multinomial(200, np.full(200, 1 / 200), size=200)
    grid = np.array([0.1, 0.3, 0.6])
    low, high = thresholds.roc_band(scores, target, weights, grid)
    assert (low < curve.tpr_at(grid)).all()
    assert (curve.tpr_at(grid) < high).all()
    narrow_low, narrow_high = thresholds.roc_band(scores, target, weights, grid, level=0.5)
    assert (narrow_high - narrow_low < high - low).all()
    assert np.isnan(thresholds.roc_band(scores, np.ones(200), weights, grid)[0]).all()


@st.composite
def labelled(draw):
    n, num_labels = draw(st.integers(1, 25)), draw(st.integers(1, 4))
    scores = draw(hnp.arrays(np.int64, (n, num_labels), elements=st.integers(0, 6))) / 6
    values = st.sampled_from([0.0, 1.0, np.nan])
    target = draw(hnp.arrays(np.float64, (n, num_labels), elements=values))
    weights = draw(hnp.arrays(np.int64, n, elements=st.integers(1, 3)))
    return scores, target, weights


@SETTINGS
@given(labelled())
def test_missing_labels_are_as_if_the_row_were_not_there(case):
    scores, target, weights = case
    f1 = multilabel.f1_per_label(scores, target, weights)
    auroc, ap = multilabel.label_areas(scores, target, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for label in range(scores.shape[1]):
            rows = ~np.isnan(target[:, label])
            true, score, mass = target[rows, label], scores[rows, label], weights[rows]
            if len(true) == 0:
                assert np.isnan([f1[label], auroc[label], ap[label]]).all()
                continue
            agree(f1[label], oracle.f1_score(true, score >= 0.5, sample_weight=mass, zero_division=np.nan))
            if len(set(true)) == 2:
                agree(auroc[label], oracle.roc_auc_score(true, score, sample_weight=mass))
            if true.any():
                agree(ap[label], oracle.average_precision_score(true, score, sample_weight=mass))


@SETTINGS
@given(labelled())
def test_complete_labels_equal_scikit_learn(case):
    scores, target, weights = case
    target = np.nan_to_num(target)
    called = scores >= 0.5
    agree(
        multilabel.exact_match(scores, target, weights),
        oracle.accuracy_score(target, called, sample_weight=weights)
        if scores.shape[1] > 1
        else np.average(target[:, 0] == called[:, 0], weights=weights),
    )
    if scores.shape[1] > 1:
        agree(multilabel.hamming(scores, target, weights), oracle.hamming_loss(target, called, sample_weight=weights))
        for average, function in (("macro", multilabel.f1_macro), ("micro", multilabel.f1_micro)):
            theirs = oracle.f1_score(target, called, sample_weight=weights, average=average, zero_division=np.nan)
            agree(function(scores, target, weights), theirs)
    auroc, ap = multilabel.label_areas(scores, target, weights)
    if not np.isnan(auroc).any():
        agree(multilabel.auroc_macro(scores, target, weights), auroc.mean())
        agree(multilabel.average_precision_macro(scores, target, weights), ap.mean())
