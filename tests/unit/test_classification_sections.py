"""What the report says about a classifier: which pictures are shown, and none of them twice."""

from __future__ import annotations

import numpy as np
import pytest

from opsin.errors import ConfigError
from opsin.metrics.classification_report import SHOWN, operating_points, sections
from opsin.results.section import Curve, Gallery


@pytest.mark.parametrize(("errors", "titles"), [(0, ["All errors"]), (SHOWN, ["All errors"])])
def test_few_errors_are_shown_once(errors: int, titles: list[str]) -> None:
    galleries = shown(errors)
    assert [one.title for one in galleries] == titles
    assert len(galleries[0].pictures) == errors


def test_many_errors_are_shown_by_pair_and_by_confidence() -> None:
    confused, worst = shown(SHOWN + 40)
    assert (confused.title, worst.title) == ("Confused pictures", "Worst errors")
    assert len(worst.pictures) == SHOWN
    sure = [float(one.detail.split("%")[0]) for one in worst.pictures]
    assert sure == sorted(sure, reverse=True)


def test_two_classes_have_both_curves_when_both_are_there() -> None:
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    curves = []
    for target in ([0, 0, 1, 1], [0, 0, 0, 0]):
        found = sections(
            "", ("no", "yes"), np.array(list("abcd")), scores, np.array(target), multi=False, thresholds=None
        )
        curves.append({one.x_title: one for one in found if isinstance(one, Curve)})
    recall, precision = curves[0]["recall"].lines["model"]
    assert (recall[-1], precision[-1]) == (1.0, 0.5)
    assert [set(each) for each in curves] == [{"confidence", "1 - specificity", "recall"}, {"confidence"}]


def test_an_operating_point_by_cost() -> None:
    scores = np.stack([1 - (p := np.array([0.1, 0.3, 0.4, 0.5, 0.8])), p], 1)
    target = np.array([0, 1, 0, 0, 1])
    for rule, threshold in (("cost=1:5", 0.2), ("cost=5:1", 0.65)):
        points = operating_points(scores, target, rule, multi=False)
        assert points == pytest.approx((1 - threshold, threshold))
    with pytest.raises(ConfigError, match="two numbers such as 1:5"):
        operating_points(scores, target, "cost=5", multi=False)


def shown(errors: int) -> list[Gallery]:
    draw = np.random.default_rng(0)
    target = np.arange(300) % 3
    said = np.where(np.arange(300) < errors, (target + 1) % 3, target)
    scores = draw.uniform(0, 0.2, (300, 3))
    scores[np.arange(300), said] += draw.uniform(0.5, 1, 300)
    scores /= scores.sum(1, keepdims=True)
    found = sections(
        "",
        ("a", "b", "c"),
        np.array([f"{i}.png" for i in range(300)]),
        scores,
        target,
        multi=False,
        thresholds=None,
    )
    return [one for one in found if isinstance(one, Gallery)]
