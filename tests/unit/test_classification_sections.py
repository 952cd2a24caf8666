"""What the report says about a classifier: which pictures are shown, and none of them twice."""

from __future__ import annotations

import numpy as np
import pytest

from opsin.metrics.classification_report import SHOWN, sections
from opsin.results.section import Gallery


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
