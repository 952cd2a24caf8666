"""Wilson against its closed form and scipy, the bootstrap against known variance, coverage and clusters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from opsin.metrics import intervals, repeats


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (198, 286), (9_990, 10_000)])
def test_wilson_equals_scipy_and_the_closed_form(successes, n, level):
    ours = intervals.wilson(successes, n, level)
    theirs = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=1e-12)
    z, p = stats.norm.ppf(0.5 + level / 2), successes / n
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    np.testing.assert_allclose((ours.low + ours.high) / 2, center, atol=1e-12)
    assert ours.value == p
    assert ours.low <= p <= ours.high


def mean_of(values):
    return lambda weights: {"mean": weights @ values / weights.sum(1)}


def test_bootstrap_of_a_mean_has_the_width_of_the_normal_interval():
    values = np.random.default_rng(0).normal(size=400)
    interval = intervals.bootstrap(mean_of(values), 400, replicates=4000, seed=1)["mean"]
    half = 1.96 * values.std() / math.sqrt(400)
    np.testing.assert_allclose([interval.low, interval.high], values.mean() + np.array([-half, half]), atol=0.1 * half)
    assert interval.value == pytest.approx(values.mean())


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(2)
    covered = {0.95: 0, 0.5: 0}
    for trial in range(300):
        values = random.normal(3.0, 1.0, 60)
        for level in covered:
            interval = intervals.bootstrap(mean_of(values), 60, replicates=300, seed=trial, level=level)["mean"]
            covered[level] += interval.low <= 3.0 <= interval.high
    assert 0.89 <= covered[0.95] / 300 <= 0.98
    assert 0.41 <= covered[0.5] / 300 <= 0.58


def test_copies_in_a_group_are_no_more_evidence_than_one():
    """60 rows, then each 9 times in one group: the cluster interval stays, the row interval shrinks by 3."""
    values = np.random.default_rng(4).normal(size=60)
    copies, groups = np.repeat(values, 9), np.repeat(np.arange(60), 9)
    once = intervals.bootstrap(mean_of(values), 60, replicates=2000, seed=0)["mean"]
    rows = intervals.bootstrap(mean_of(copies), 540, replicates=2000, seed=0)["mean"]
    clusters = intervals.bootstrap(mean_of(copies), 540, groups=groups, replicates=2000, seed=0)["mean"]
    assert (clusters.low, clusters.high) == pytest.approx((once.low, once.high), abs=1e-12)  # the same draws
    assert (rows.high - rows.low) * 2.5 < clusters.high - clusters.low
    assert (clusters.n, clusters.groups, rows.groups) == (540, 60, None)


def test_cluster_bootstrap_covers_where_the_row_bootstrap_does_not():
    random = np.random.default_rng(6)
    covered = {"rows": 0, "groups": 0}
    labels = np.repeat(np.arange(30), 5)
    for trial in range(150):
        values = random.normal(size=30)[labels] + 0.3 * random.normal(size=150)
        for name, groups in (("rows", None), ("groups", labels)):
            interval = intervals.bootstrap(mean_of(values), 150, groups=groups, replicates=200, seed=trial)["mean"]
            covered[name] += interval.low <= 0 <= interval.high
    assert covered["groups"] / 150 > 0.86
    assert covered["rows"] / 150 < 0.75


def test_proportion_of_copies_is_wilson_of_the_groups():
    right = np.random.default_rng(1).random(50) < 0.7
    copies, groups = np.repeat(right, 8), np.repeat(np.arange(50), 8)
    ours = intervals.proportion(copies, groups=groups)
    expected = intervals.wilson(right.sum(), 50)
    np.testing.assert_allclose([ours.low, ours.high], [expected.low, expected.high], atol=0.01)
    assert intervals.proportion(copies).high - intervals.proportion(copies).low < 0.6 * (ours.high - ours.low)
    np.testing.assert_allclose(
        intervals.proportion(right, groups=np.arange(50)).low, expected.low, atol=0.01
    )  # groups of one row: nearly rows
    all_right = intervals.proportion(np.ones(400), groups=groups)
    assert all_right.low == pytest.approx(intervals.wilson(50, 50).low)


def test_t_interval_of_repeats_equals_scipy():
    values = np.array([0.91, 0.93, 0.90, 0.95, 0.92])
    summary = repeats.summarize_repeats(values, level=0.9)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    np.testing.assert_allclose([summary.low, summary.high], [theirs.low, theirs.high], rtol=1e-10)
    assert (summary.minimum, summary.maximum, summary.seeds) == (0.90, 0.95, 5)
    assert summary.sd == pytest.approx(np.std(values, ddof=1))


def test_seed_noise_and_sample_noise_are_told_apart():
    """Values are difficulty of the rows (sd 1, 100 rows) plus an effect of the seed (sd 0.5) on all of them."""
    random = np.random.default_rng(8)
    rows, effect = random.normal(size=100), random.normal(0, 0.5, 40)
    draws = np.array(
        [intervals.replicate(mean_of(rows + shift), 100, replicates=500, seed=0).draws["mean"] for shift in effect]
    )
    parts = repeats.separate(rows.mean() + effect, draws)
    assert parts.seed_sd == pytest.approx(np.std(effect, ddof=1))
    assert parts.sample_sd == pytest.approx(rows.std() / 10, rel=0.15)
    assert (parts.seeds, parts.replicates) == (40, 500)
