"""McNemar against scipy's exact binomial test, DeLong against the O(mn) definition and known values, Holm by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from opsin.metrics import paired


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_equals_the_exact_binomial_test(only_first, only_second):
    ours = paired.mcnemar_from_counts(only_first, only_second)
    total = only_first + only_second
    expected = stats.binomtest(only_first, total, 0.5).pvalue if total else 1.0
    assert ours.p_value == pytest.approx(expected, rel=1e-9)
    mid = paired.mcnemar_from_counts(only_first, only_second, mid_p=True).p_value
    if total:
        fewer = min(only_first, only_second)
        split = stats.binom.pmf(fewer, total, 0.5)
        assert mid == pytest.approx(2 * stats.binom.cdf(fewer, total, 0.5) - split, rel=1e-9)
    assert mid <= ours.p_value


def test_mcnemar_counts_the_rows_only_one_has_right():
    first, second = np.array([1, 1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 0, 0])
    result = paired.mcnemar(first, second)
    assert (result.only_first, result.only_second) == (3, 1)
    assert result.p_value == pytest.approx(0.625)  # 2 (1 + 4) / 16


def slow_delong(first, second, target):
    """DeLong et al. 1988 as written: every positive against every negative."""
    positive, negative = target == 1, target == 0
    areas, over_positives, over_negatives = [], [], []
    for scores in (first, second):
        wins = (scores[positive][:, None] > scores[negative]) + 0.5 * (scores[positive][:, None] == scores[negative])
        areas.append(wins.mean())
        over_positives.append(wins.mean(1))
        over_negatives.append(wins.mean(0))
    covariance = np.cov(over_positives) / positive.sum() + np.cov(over_negatives) / negative.sum()
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return areas, variance


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 60), st.integers(0, 2))
def test_delong_equals_the_slow_definition(seed, n, digits):
    random = np.random.default_rng(seed)
    target = random.integers(0, 2, n)
    target[:4] = 0, 0, 1, 1
    first, second = (np.round(random.normal(size=n) + target, digits) for _ in range(2))
    (one, two), variance = slow_delong(first, second, target)
    result = paired.delong(first, second, target)
    assert result.first == pytest.approx(one)
    assert result.second == pytest.approx(two)
    assert result.first == pytest.approx(roc_auc_score(target, first))
    assert result.standard_error == pytest.approx(math.sqrt(max(variance, 0)), abs=1e-7)
    if variance > 1e-10:
        z = (one - two) / math.sqrt(variance)
        assert result.z == pytest.approx(z, rel=1e-6)
        assert result.p_value == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-5)
        assert result.high - result.low == pytest.approx(2 * stats.norm.ppf(0.975) * math.sqrt(variance), rel=1e-6)


def test_delong_by_hand():
    """Positives 3, 4 against negatives 1, 2 (area 1), and the same with one pair swapped (area 3/4).

    The first has no variance. The second: positives beat (1/2, 1) of the negatives, negatives lose to (1/2, 1) of the
    positives; sample variance of (1/2, 1) is 1/8, so the variance of the difference is 1/8/2 + 1/8/2 = 1/8.
    """
    result = paired.delong([3, 4, 1, 2], [2, 4, 1, 3], [1, 1, 0, 0])
    assert (result.first, result.second) == (1.0, 0.75)
    assert result.standard_error == pytest.approx(math.sqrt(1 / 8))
    assert result.z == pytest.approx(0.25 / math.sqrt(1 / 8))


def test_delong_holds_its_level_and_finds_a_difference():
    random = np.random.default_rng(0)
    target = np.repeat([0, 1], 60)
    shared = random.normal(size=(300, 120)) + target
    noise = random.normal(size=(2, 300, 120)) * 0.7
    p_values = [paired.delong(s + a, s + b, target).p_value for s, a, b in zip(shared, *noise)]
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.09
    assert paired.delong(shared[0] + 2 * target, random.normal(size=120), target).p_value < 1e-6


def test_holm_by_hand():
    corrected = paired.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": math.nan})
    assert corrected["d"] == pytest.approx(0.02)
    assert corrected["a"] == pytest.approx(0.03)
    assert corrected["c"] == pytest.approx(0.06)
    assert corrected["b"] == pytest.approx(0.06)  # 1 x 0.04, but never below the one before
    assert math.isnan(corrected["e"])
    assert list(corrected) == ["a", "b", "c", "d", "e"]


def share(right):
    return lambda weights: {"accuracy": weights @ right / weights.sum(1)}


def test_paired_bootstrap_uses_the_same_rows_for_both():
    """Two models that share their mistakes differ by far less noise than two intervals side by side suggest."""
    random = np.random.default_rng(0)
    first = (random.random(1000) < 0.7).astype(float)
    second = first.copy()
    second[np.flatnonzero(first)[:25]] = 0
    result = paired.paired_bootstrap(share(first), share(second), 1000, seed=3)["accuracy"]
    assert result.value == pytest.approx(0.025)
    spread = 1.96 * math.sqrt(0.025 * 0.975 / 1000)
    assert result.low == pytest.approx(0.025 - spread, abs=0.003)
    assert result.high == pytest.approx(0.025 + spread, abs=0.003)
    assert result.p_value == pytest.approx(2 / 1001)
    reverse = paired.paired_bootstrap(share(second), share(first), 1000, seed=3)["accuracy"]
    assert (reverse.value, reverse.low) == pytest.approx((-result.value, -result.high))


def test_paired_bootstrap_with_groups_is_less_sure():
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), 10)
    first = (np.repeat(random.random(40) < 0.6, 10)).astype(float)
    second = (np.repeat(random.random(40) < 0.6, 10)).astype(float)
    rows = paired.paired_bootstrap(share(first), share(second), 400, seed=0)["accuracy"]
    clusters = paired.paired_bootstrap(share(first), share(second), 400, groups=groups, seed=0)["accuracy"]
    assert clusters.high - clusters.low > 2 * (rows.high - rows.low)
    assert clusters.p_value > rows.p_value
    assert (clusters.groups, clusters.method.split(",")[0]) == (40, "paired cluster bootstrap percentile")
