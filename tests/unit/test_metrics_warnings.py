"""Each warning fires where it should, stays silent where it should not, and says the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from opsin.errors import ShapeError
from opsin.metrics import warnings
from opsin.metrics.intervals import Interval


def binary(tp, fp, fn, tn, **more):
    return warnings.MetricsContext(("ham", "spam"), np.array([[tn, fp], [fn, tp]]), **more)


def codes(context):
    return [warning.code for warning in warnings.all_warnings(context)]


def test_nothing_to_warn_of():
    assert codes(binary(480, 20, 20, 480)) == []


def test_never_positive_is_a_paradox_with_undefined_ppv():
    context = binary(0, 0, 85, 201)
    assert {"accuracy_paradox", "undefined_ratio"} <= set(codes(context))
    (paradox,) = warnings.accuracy_paradox(context)
    assert "Accuracy 70.3% is no better than always answering 'ham', which gets 70.3%" in paradox.message
    (undefined,) = warnings.undefined_ratio(context)
    assert undefined.message.startswith("'spam' is never answered: precision (PPV) is 0/0, undefined")


def test_below_majority_and_barely_above_it():
    (below,) = warnings.accuracy_paradox(binary(10, 13, 75, 188))
    assert "Accuracy 69.2% is no better" in below.message
    (barely,) = warnings.accuracy_paradox(binary(15, 10, 70, 191))
    assert "is above that of always answering 'ham' (70.3%), but not by more than chance" in barely.message
    assert "of the 25 rows where only one of the two is right the model has 15" in barely.message
    assert warnings.accuracy_paradox(binary(60, 10, 25, 191)) == []
    assert warnings.accuracy_paradox(binary(0, 0, 0, 0)) == []


def test_base_rate():
    context = binary(99, 999, 1, 98901)
    assert "base_rate" in codes(context)
    (warning,) = warnings.base_rate(context)
    assert "'spam' is rare (0.10% of rows): 99.0% of its rows are found" in warning.message
    assert "only 9.0% of the 1098 alarms are right (999 are false)" in warning.message
    assert warning.to_dict() == {"code": "base_rate", "message": warning.message}
    assert warnings.base_rate(binary(99, 9, 1, 98901)) == []  # most alarms are right
    assert warnings.base_rate(binary(0, 0, 85, 201)) == []
    assert warnings.base_rate(binary(98901, 1, 999, 99, positive=0)) != []  # 'ham' is the rare one there
    assert warnings.base_rate(binary(98901, 1, 999, 99)) == []


def test_base_rate_of_one_class_among_several():
    table = np.array([[900, 0, 30], [0, 900, 30], [0, 0, 20]])
    (warning,) = warnings.base_rate(warnings.MetricsContext(("a", "b", "c"), table))
    assert "'c' is rare (1.06% of rows)" in warning.message


def test_absent_class():
    context = warnings.MetricsContext(("a", "b", "c", "d"), np.diag([200, 200, 0, 0]))
    (warning,) = warnings.absent_class(context)
    assert warning.message.startswith("'c', 'd' have no rows in the test part")
    one = warnings.absent_class(warnings.MetricsContext(("a", "b"), np.diag([200, 0]), split="val"))
    assert one[0].message.startswith("'b' has no rows in the val part")
    many = warnings.absent_class(warnings.MetricsContext([f"c{i}" for i in range(9)], np.diag([5] + [0] * 8)))
    assert "'c5' and 3 more have no rows" in many[0].message
    assert warnings.undefined_ratio(context) == []  # absent and never answered: said once


def test_undefined_metric():
    nothing = Interval(float("nan"), float("nan"), float("nan"), 100, None, "bootstrap")
    (warning,) = warnings.undefined_ratio(binary(50, 1, 1, 48, metrics={"auroc": nothing}))
    assert warning.message.startswith("'auroc' cannot be computed from these rows (0/0) and is left empty")


def test_tiny_test_set():
    (warning,) = warnings.tiny_test_set(binary(9, 1, 1, 9))
    assert "only 20 rows: accuracy 90.0% could be anywhere from 69.9% to 97.2%" in warning.message
    assert warnings.tiny_test_set(binary(480, 20, 20, 480)) == []
    assert "no rows" in warnings.tiny_test_set(binary(0, 0, 0, 0))[0].message
    wide = Interval(0.96, 0.8, 1.0, 1000, 7, "cluster bootstrap")
    (grouped,) = warnings.tiny_test_set(binary(480, 20, 20, 480, metrics={"accuracy": wide}))
    assert "1000 rows in 7 groups" in grouped.message
    unknown = Interval(0.96, float("nan"), float("nan"), 1000, None, "bootstrap")
    assert warnings.tiny_test_set(binary(480, 20, 20, 480, metrics={"accuracy": unknown})) == []


def test_imbalanced_test_set():
    (warning,) = warnings.imbalanced_test_set(binary(40, 2, 10, 948))
    assert "'ham' has 950 rows, 'spam' 50 (19 to 1)" in warning.message
    assert warnings.imbalanced_test_set(binary(90, 2, 10, 898)) == []  # 9 to 1
    assert warnings.imbalanced_test_set(binary(0, 0, 0, 50)) == []  # an absent class, said elsewhere


@pytest.mark.parametrize(
    ("name", "train", "test", "fires"),
    [
        ("accuracy", 0.99, (0.80, 0.75, 0.85), True),
        ("accuracy", 0.83, (0.80, 0.75, 0.85), False),  # inside the interval
        ("accuracy", 0.83, (0.80, 0.79, 0.81), False),  # outside, but 3 points only
        ("accuracy", 0.70, (0.80, 0.75, 0.85), False),  # worse on train
        ("accuracy", 0.99, (0.80, float("nan"), float("nan")), True),
        ("log_loss", 0.1, (0.9, 0.8, 1.0), True),
        ("log_loss", 1.5, (0.9, 0.8, 1.0), False),
        ("rmse", 1.0, (40.0, 39.0, 41.0), True),
        ("rmse", 39.5, (40.0, 39.8, 40.2), False),  # better by 1 %
        ("accuracy", float("nan"), (0.8, 0.7, 0.9), False),
        ("made_up", 0.99, (0.8, 0.7, 0.85), False),
    ],
)
def test_train_better_than_test(name, train, test, fires):
    context = binary(480, 20, 20, 480, metrics={name: Interval(*test, 1000, None, "x")}, train_metrics={name: train})
    found = warnings.train_better_than_test(context)
    assert [warning.code for warning in found] == ["train_better_than_test"] * fires
    if fires:
        assert f"{name} is {train:.3f} on the train part and {test[0]:.3f} on the test part" in found[0].message


def test_numbers_of_the_training_or_validation_part_are_no_headline():
    assert warnings.not_held_out(binary(480, 20, 20, 480)) == []
    assert "trained on" in warnings.not_held_out(binary(480, 20, 20, 480, split="train"))[0].message
    assert "chosen on" in warnings.not_held_out(binary(480, 20, 20, 480, split="val"))[0].message


def test_names_must_fit_the_table():
    with pytest.raises(ShapeError, match=r"expected \(1, 1\) for 1 class names"):
        warnings.MetricsContext(("a",), np.eye(2))
