"""Edges of intervals, paired tests and repeats: one row, one group, undefined replicates, JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from opsin.errors import ConfigError, DataError, ShapeError
from opsin.metrics import intervals, paired, repeats, thresholds


def accuracy_of(right):
    right = np.asarray(right, dtype=float)
    return lambda weights: {"accuracy": weights @ right / weights.sum(1)}


def test_json_form_of_an_interval_is_exactly_the_designs():
    interval = intervals.bootstrap(accuracy_of([1, 0, 1, 1]), 4, replicates=50, seed=0)["accuracy"]
    assert list(interval.to_dict()) == ["value", "low", "high", "n", "groups", "method"]
    assert interval.to_dict()["value"] == 0.75
    undefined = intervals.wilson(0, 0).to_dict()
    assert undefined == {"value": None, "low": None, "high": None, "n": 0, "groups": None, "method": "wilson"}
    json.dumps([interval.to_dict(), undefined], allow_nan=False)


def test_same_seed_same_interval_other_seed_other_interval():
    statistic = accuracy_of(np.arange(50) % 3 == 0)

    def draw(seed):
        return intervals.replicate(statistic, 50, replicates=20, seed=seed).draws["accuracy"].tolist()

    assert draw(1) == draw(1) != draw(2)
    generator = np.random.Generator(np.random.Philox(1))
    assert draw(generator) == draw(1)
    assert draw(generator) != draw(1)  # it has moved on


def test_chunks_of_replicates_give_the_same_draws(monkeypatch):
    statistic = accuracy_of(np.arange(10) % 3 == 0)
    whole = intervals.replicate(statistic, 10, replicates=30, seed=1).draws["accuracy"]
    seen = []
    monkeypatch.setattr(intervals, "CHUNK_CELLS", 70)

    def watched(weights):
        seen.append(weights.shape)
        return statistic(weights)

    chunked = intervals.replicate(watched, 10, replicates=30, seed=1).draws["accuracy"]
    assert chunked.tolist() == whole.tolist()
    assert seen == [(1, 10), (7, 10), (7, 10), (7, 10), (7, 10), (2, 10)]


def test_resampled_weights_are_whole_groups_and_as_many_as_there_are():
    groups = np.array(["b", "a", "b", "c", "a"])
    taken = []

    def statistic(weights):
        taken.append(weights)
        return {"sum": weights.sum(1)}

    intervals.bootstrap(statistic, 5, groups=groups, replicates=100, seed=0)
    weights = taken[1]
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()
    assert weights[:, 3].std() > 0
    taken.clear()
    intervals.bootstrap(statistic, 5, weights=[0, 1, 2, 3, 4], replicates=100, seed=0)
    assert (taken[0] == [[0, 1, 2, 3, 4]]).all()
    assert (taken[1][:, 0] == 0).all()
    assert (taken[1][:, 4] % 4 == 0).all()


@pytest.mark.parametrize(
    ("right", "groups", "reason"),
    [
        ([1], None, "one row"),
        ([1, 0, 1], [4, 4, 4], "one group"),
        ([1, 1, 1, 1], None, "all replicates equal"),
    ],
)
def test_where_nothing_can_be_said_nothing_is_said(right, groups, reason):
    interval = intervals.bootstrap(accuracy_of(right), len(right), groups=groups, replicates=50, seed=0)["accuracy"]
    assert interval.value == np.mean(right)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert reason in interval.method


def test_undefined_replicates_are_left_out_and_counted():
    rare = np.zeros(30)
    rare[0] = 1

    def recall_of_rare(weights):
        support = weights @ rare
        return {
            "recall": np.divide(weights[:, 0] * 0.5 + weights[:, 1], support, where=support > 0, out=support * np.nan)
        }

    drawn = intervals.replicate(recall_of_rare, 30, replicates=400, seed=0)
    missing = int(np.isnan(drawn.draws["recall"]).sum())
    interval = intervals.bootstrap(recall_of_rare, 30, replicates=400, seed=0)["recall"]
    assert 100 < missing < 200  # a row is missed by (1 - 1/30)^30 = 36 %
    assert f"400 replicates, {missing} undefined" in interval.method
    assert interval.low < interval.high
    mostly = intervals.percentile(
        intervals.Replicates({"x": 1.0}, {"x": np.array([np.nan] * 6 + [1.0, 2.0, 3.0])}, 9, None), "x"
    )
    assert "6 undefined; no interval: too many undefined" in mostly.method
    never = intervals.bootstrap(lambda w: {"x": np.full(len(w), np.nan)}, 5, replicates=9, seed=0)["x"]
    assert math.isnan(never.value)
    assert math.isnan(never.low)


def test_higher_level_wider_interval():
    statistic = accuracy_of(np.arange(50) % 3 == 0)
    widths = []
    for level in (0.5, 0.9, 0.99):
        interval = intervals.bootstrap(statistic, 50, seed=0, level=level)["accuracy"]
        widths.append(interval.high - interval.low)
    assert widths == sorted(set(widths))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: intervals.wilson(3, 2), DataError, "3 successes of 2 rows"),
        (lambda: intervals.wilson(1, 2, level=95), ConfigError, "level=95"),
        (lambda: intervals.proportion([0.5]), DataError, "other than 0 and 1"),
        (lambda: intervals.proportion([[1]]), ShapeError, r"shape \(1, 1\)"),
        (lambda: intervals.bootstrap(accuracy_of([1]), 1, seed=0, level=0), ConfigError, "level=0"),
        (lambda: intervals.bootstrap(accuracy_of([1]), 1, seed=0, replicates=0), ConfigError, "replicates=0"),
        (lambda: intervals.bootstrap(accuracy_of([]), 0, seed=0), ConfigError, "n=0"),
        (lambda: intervals.bootstrap(accuracy_of([1, 0]), 2, seed=0, groups=[1]), ShapeError, r"groups have shape"),
        (lambda: intervals.bootstrap(accuracy_of([1, 0]), 2, seed=0, groups=[None, "a"]), DataError, "Give every row"),
        (lambda: intervals.bootstrap(accuracy_of([1, 0]), 2, seed=0, weights=[1]), ShapeError, "weights have shape"),
        (lambda: intervals.bootstrap(lambda w: {"x": 1.0}, 2, seed=0), ShapeError, "the statistic returned 'x'"),
        (lambda: paired.mcnemar([1, 0], [1]), ShapeError, "the same rows"),
        (lambda: paired.mcnemar([1, 2], [1, 0]), DataError, "is 2"),
        (lambda: paired.mcnemar_from_counts(-1, 2), DataError, "none below 0"),
        (lambda: paired.delong([1.0, 2.0], [1.0], [0, 1]), ShapeError, "1 rows"),
        (lambda: paired.delong([1.0], [1.0], [1], level=2), ConfigError, "level=2"),
        (lambda: paired.holm({"a": 1.5}), DataError, "'a' is 1.5"),
        (lambda: repeats.summarize_repeats([]), DataError, "at least one seed"),
        (lambda: repeats.summarize_repeats([1.0, np.inf]), DataError, "finite"),
        (lambda: repeats.summarize_repeats([[1.0]]), ShapeError, r"\(S,\)"),
        (lambda: repeats.separate([1.0], [1.0]), ShapeError, r"\(S, R\)"),
        (lambda: thresholds.threshold_table([1.0], [1], weights=[1, 2]), ShapeError, "weights have shape"),
        (lambda: thresholds.threshold_table([1.0], [1], weights=[-1]), DataError, "negative"),
        (lambda: thresholds.threshold_table([1.0], [1], thresholds=[np.nan]), DataError, "nan"),
    ],
)
def test_wrong_use_is_an_error_that_names_it(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_paired_bootstrap_needs_a_common_metric_and_keeps_only_those():
    right = accuracy_of([1, 0, 1])
    with pytest.raises(DataError, match="no metric in common"):
        paired.paired_bootstrap(right, lambda w: {"other": w.sum(1)}, 3, seed=0)
    both = paired.paired_bootstrap(right, lambda w: {"z": w.sum(1), **accuracy_of([0, 0, 1])(w)}, 3, seed=0)
    assert list(both) == ["accuracy"]


def test_equal_models_differ_by_nothing():
    right = accuracy_of(np.arange(40) % 2)
    difference = paired.paired_bootstrap(right, right, 40, seed=0, replicates=100)["accuracy"]
    assert (difference.value, difference.p_value) == (0, 1)
    assert math.isnan(difference.low)
    scores, target = np.arange(20.0), np.arange(20) % 2
    same = paired.delong(scores, scores, target)
    assert (same.value, same.p_value) == (0, 1)
    assert math.isnan(same.z)
    opposite = paired.delong(target, -target, target)  # areas 1 and 0, no variance: the test has nothing to say
    assert opposite.value == 1
    assert math.isnan(opposite.p_value)
    assert paired.mcnemar([1, 0], [1, 0]).p_value == 1
    assert paired.mcnemar_from_counts(0, 0, mid_p=True).p_value == 1


def test_undefined_comparisons_are_nan_and_json_safe():
    one_sided = paired.delong([1.0, 2.0], [2.0, 1.0], [1, 1])
    assert math.isnan(one_sided.first)
    single = paired.delong([1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [1, 0, 0])
    assert single.first == 0.5
    assert math.isnan(single.p_value)
    one_row = paired.paired_bootstrap(accuracy_of([1]), accuracy_of([0]), 1, seed=0, replicates=9)["accuracy"]
    assert one_row.value == 1
    assert math.isnan(one_row.p_value)
    for result in (one_sided, single, one_row, paired.mcnemar_from_counts(3, 4)):
        json.dumps(result.to_dict(), allow_nan=False)
    assert list(one_row.to_dict()) == ["value", "low", "high", "p_value", "n", "groups", "method"]


def test_mcnemar_of_many_rows_is_quick_and_finite():
    assert 0 < paired.mcnemar_from_counts(5_000, 6_000).p_value < 1e-20
    assert paired.mcnemar_from_counts(500_000, 500_100).p_value == pytest.approx(0.921, abs=0.01)


def test_holm_of_none_and_one():
    assert paired.holm({}) == {}
    assert paired.holm({"a": 0.3}) == {"a": 0.3}


def test_repeats_of_one_seed_have_no_spread_and_undefined_seeds_are_counted():
    one = repeats.summarize_repeats([0.9])
    assert one.mean == 0.9
    assert math.isnan(one.sd)
    assert math.isnan(one.low)
    some = repeats.summarize_repeats([0.9, np.nan, 0.8])
    assert (some.mean, some.seeds, some.undefined) == (pytest.approx(0.85), 2, 1)
    none = repeats.summarize_repeats([np.nan])
    assert (none.seeds, none.undefined) == (0, 1)
    apart = repeats.separate([0.9], [[0.8, np.nan, 1.0]])
    assert math.isnan(apart.seed_variance)
    assert (apart.sample_sd, apart.replicates) == (pytest.approx(math.sqrt(0.02)), 2)
    for result in (one, none, apart):
        json.dumps(result.to_dict(), allow_nan=False)


def test_thresholds_in_json_and_undefined_curves():
    table = thresholds.threshold_table([0.2, 0.9], [0, 1])
    columns = table.to_dict()
    assert columns["threshold"] == [None, 0.9, 0.2]  # None: nothing is called positive
    assert columns["ppv"] == [None, 1.0, 0.5]
    point = thresholds.point_by_fpr(thresholds.threshold_table([0.9, 0.2], [0, 1]), 0.0)
    assert point.threshold == math.inf
    assert point.to_dict()["threshold"] is None
    assert point.to_dict()["rule"] == "false positive rate at most 0"
    json.dumps([columns, point.to_dict()], allow_nan=False)
    assert math.isnan(thresholds.roc_curve([0.2, 0.9], [1, 1]).area())
    assert math.isnan(thresholds.pr_curve([0.2, 0.9], [0, 0]).area())
    assert math.isnan(thresholds.pr_curve([], []).area())


def test_a_cost_rules_the_threshold():
    table = thresholds.threshold_table([0.1, 0.4, 0.6, 0.9], [0, 1, 0, 1])
    assert thresholds.point_by_cost(table, fp=1, fn=10).threshold == 0.4
    assert thresholds.point_by_cost(table, fp=10, fn=1).threshold == 0.9
    assert thresholds.point_by_cost(table, fp=10, fn=0).threshold == math.inf
    assert thresholds.point_by_cost(table, fp=1, fn=1, tp=-10).threshold == 0.4
