"""Classification metrics against scikit-learn, with row weights, ties and absent classes; the spec's unit values."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as oracle

from opsin.metrics import classification, probability

SETTINGS = settings(max_examples=60, deadline=None)


@st.composite
def classified(draw):
    """Probabilities of few levels (many ties), targets that may miss classes, integer weights with zeros."""
    n, num_classes = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    levels = draw(hnp.arrays(np.int64, (n, num_classes), elements=st.integers(0, 4)))
    target = draw(hnp.arrays(np.int64, n, elements=st.integers(0, num_classes - 1)))
    weights = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 3)))
    weights[draw(st.integers(0, n - 1))] += 1
    scores = (levels + 1.0) / (levels + 1.0).sum(1, keepdims=True)
    return scores, target, weights


def kept(scores, target, weights):
    """What the oracle is given: rows of weight 0 do not exist."""
    rows = weights > 0
    return scores[rows], target[rows], weights[rows].astype(float)


def agree(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the oracle warns of the undefined ratios that are under test
        yield


@SETTINGS
@given(classified())
def test_counted_metrics_equal_scikit_learn(case):
    scores, target, weights = case
    some, true, mass = kept(*case)
    decided = some.argmax(1)
    labels = np.arange(scores.shape[1])
    agree(classification.accuracy(scores, target, weights), oracle.accuracy_score(true, decided, sample_weight=mass))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agree(
            classification.balanced_accuracy(scores, target, weights),
            oracle.balanced_accuracy_score(true, decided, sample_weight=mass),
        )
        agree(
            classification.confusion_matrix(scores.argmax(1), target, len(labels), weights),
            oracle.confusion_matrix(true, decided, labels=labels, sample_weight=mass),
        )
        theirs = oracle.precision_recall_fscore_support(
            true, decided, labels=labels, sample_weight=mass, zero_division=np.nan
        )
        ours = classification.per_class(scores, target, weights)
        agree(ours.precision, theirs[0])
        agree(ours.recall, theirs[1])
        agree(ours.f1, theirs[2])
        agree(ours.support, np.bincount(true, mass, len(labels)))
        for average in ("macro", "micro", "weighted"):
            theirs = oracle.precision_recall_fscore_support(
                true, decided, labels=labels, sample_weight=mass, zero_division=np.nan, average=average
            )
            if average == "weighted" and not ours.support[~np.isnan(ours.precision)].any():
                assert np.isnan(classification.precision(scores, target, weights, average))  # the oracle drops weights
            else:
                agree(classification.precision(scores, target, weights, average), theirs[0])
            agree(classification.recall(scores, target, weights, average), theirs[1])
            agree(classification.f1(scores, target, weights, average), theirs[2])


@SETTINGS
@given(classified())
def test_macro_f1_equals_scikit_learns_default(case):
    scores, target, weights = case
    some, true, mass = kept(*case)
    agree(
        classification.f1(scores, target, weights),
        oracle.f1_score(true, some.argmax(1), sample_weight=mass, average="macro"),
    )


@SETTINGS
@given(classified())
def test_mcc_and_kappa_equal_scikit_learn_where_defined(case):
    scores, target, weights = case
    some, true, mass = kept(*case)
    decided = some.argmax(1)
    ours = classification.mcc(scores, target, weights)
    if len(set(true)) == 1 or len(set(decided)) == 1:
        assert np.isnan(ours)
    else:
        agree(ours, oracle.matthews_corrcoef(true, decided, sample_weight=mass))
    ours = classification.kappa(scores, target, weights)
    if len({*true, *decided}) == 1:
        assert np.isnan(ours)
    else:
        agree(ours, oracle.cohen_kappa_score(true, decided, sample_weight=mass))


@SETTINGS
@given(classified())
def test_probability_metrics_equal_scikit_learn(case):
    scores, target, weights = case
    some, true, mass = kept(*case)
    labels = np.arange(scores.shape[1])
    agree(probability.log_loss(scores, target, weights), oracle.log_loss(true, some, labels=labels, sample_weight=mass))
    theirs = oracle.brier_score_loss(true, some if len(labels) > 2 else some[:, 1], labels=labels, sample_weight=mass)
    agree(probability.brier(scores, target, weights), theirs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_loss_of_a_sure_mistake_equals_scikit_learn(dtype):
    scores = np.array([[1, 0], [0.3, 0.7]], dtype=dtype)
    ours = probability.log_loss(scores, [1, 1])
    np.testing.assert_allclose(ours, oracle.log_loss([1, 1], scores, labels=[0, 1]), rtol=1e-6)
    assert ours > 7


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.integers(3, 8), st.integers(1, 30), st.data())
def test_top_k_equals_scikit_learn_without_ties(seed, num_classes, n, data):
    random = np.random.default_rng(seed)
    scores = random.permuted(np.tile(np.arange(num_classes, dtype=float), (n, 1)), axis=1)
    target, weights = random.integers(0, num_classes, n), random.integers(1, 4, n)
    k = data.draw(st.integers(1, num_classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = oracle.top_k_accuracy_score(target, scores, k=k, labels=np.arange(num_classes), sample_weight=weights)
    agree(classification.top_k_accuracy(scores, target, k, weights), theirs)


@SETTINGS
@given(classified())
def test_top_1_is_accuracy_and_exactly_k_classes_are_in_whatever_the_ties(case):
    scores, target, weights = case
    num_classes = scores.shape[1]
    agree(classification.top_k_accuracy(scores, target, 1, weights), classification.accuracy(scores, target, weights))
    for k in range(1, num_classes + 1):
        each = [classification.top_k_accuracy(scores[:1], [label], k) for label in range(num_classes)]
        assert sum(each) == k


def test_ece_of_distinct_confidences_is_the_error_over_equal_slices():
    random = np.random.default_rng(5)
    n = 300  # 15 bins of 20
    confidence = random.permutation(np.linspace(0.51, 0.99, n))
    target = (random.random(n) > confidence**2).astype(int)
    scores = np.stack([confidence, 1 - confidence], 1)
    order = np.argsort(confidence)
    slices = order.reshape(15, 20)
    expected = np.mean([abs(confidence[rows].mean() - (target[rows] == 0).mean()) for rows in slices])
    agree(probability.ece(scores, target), expected)
    assert expected > 0.05
    assert probability.ece(scores, target, num_bins=1) < expected


def test_ece_of_calibrated_and_of_overconfident_scores():
    scores = np.tile([0.75, 0.25], (4, 1))
    assert probability.ece(scores, [0, 0, 0, 1]) == 0
    agree(probability.ece(np.tile([0.9, 0.1], (4, 1)), [0, 0, 1, 1]), 0.4)


@pytest.mark.parametrize(
    ("tp", "fp", "fn", "tn", "expected"),
    [
        (10, 13, 75, 188, {"accuracy": 0.692, "tpr": 0.118, "fpr": 0.065, "ppv": 0.435, "npv": 0.715}),
        (0, 0, 85, 201, {"accuracy": 0.703, "tpr": 0.0, "fpr": 0.0, "ppv": np.nan, "npv": 0.703}),
        (99, 999, 1, 98901, {"accuracy": 0.990, "tpr": 0.99, "fpr": 0.010, "ppv": 0.090, "npv": 1.000}),
    ],
)
def test_ratios_of_the_books(tp, fp, fn, tn, expected):
    scores = np.repeat([1.0, 1.0, 0.0, 0.0], [tp, fp, fn, tn])
    target = np.repeat([1, 0, 1, 0], [tp, fp, fn, tn])
    counts = classification.binary_counts(scores, target)
    ours = {
        "accuracy": counts.accuracy(),
        "tpr": counts.sensitivity(),
        "fpr": counts.fpr(),
        "ppv": counts.ppv(),
        "npv": counts.npv(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, atol=5e-4, err_msg=name)
    np.testing.assert_allclose(classification.specificity(scores, target), 1 - ours["fpr"])
    np.testing.assert_allclose(classification.sensitivity(scores, target), ours["tpr"])
    np.testing.assert_allclose(classification.ppv(scores, target), ours["ppv"])
    np.testing.assert_allclose(classification.npv(scores, target), ours["npv"])
    assert ours["npv"] > 0.9999 or tp != 99
