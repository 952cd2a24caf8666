"""R2, RMSE and MAE against scikit-learn, with row weights and several outputs."""

from __future__ import annotations

import warnings

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as oracle

from opsin.metrics import regression


@st.composite
def predicted(draw):
    n, outputs = draw(st.integers(2, 30)), draw(st.integers(0, 3))
    shape = (n, outputs) if outputs else (n,)
    values = st.integers(-50, 50).map(lambda value: value / 8 + 100)
    guess, target = (draw(hnp.arrays(np.float64, shape, elements=values)) for _ in range(2))
    weights = draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 0.5, 1.0, 3.0])))
    weights[:2] = 1
    return guess, target, weights


@settings(max_examples=80, deadline=None)
@given(predicted())
def test_equal_scikit_learn(case):
    guess, target, weights = case
    rows = weights > 0
    given_rows = (target[rows], guess[rows])
    agree = np.testing.assert_allclose
    agree(
        regression.rmse(guess, target, weights),
        oracle.root_mean_squared_error(*given_rows, sample_weight=weights[rows]),
        rtol=1e-9,
    )
    agree(
        regression.mae(guess, target, weights),
        oracle.mean_absolute_error(*given_rows, sample_weight=weights[rows]),
        rtol=1e-9,
    )
    columns = target[rows].reshape(rows.sum(), -1)
    varied = (columns != columns[0]).any(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = np.atleast_1d(oracle.r2_score(*given_rows, sample_weight=weights[rows], multioutput="raw_values"))
    ours = regression.r2(guess, target, weights)
    if varied.any():
        agree(ours, theirs[varied].mean(), rtol=1e-7, atol=1e-9)
    else:
        assert np.isnan(ours)


def test_the_weighted_mean_scores_zero_and_replicates_have_their_own_mean():
    target = np.array([1.0, 2.0, 6.0, 7.0])
    weights = np.array([[1, 1, 1, 1], [3, 1, 0, 0], [0, 0, 5, 0]])
    for row, mass in enumerate(weights[:2]):
        mean = np.full(4, np.average(target, weights=mass))
        assert abs(regression.r2(mean, target, weights)[row]) < 1e-12
    assert np.isnan(regression.r2(target, target, weights)[2])  # one value: no variance to explain
    assert regression.rmse(target + 3, target) == 3


def test_a_constant_target_is_undefined_even_when_its_mean_is_rounded():
    target, drawn = np.full(7, 0.1), np.random.default_rng(0).random((200, 7))
    # Which sums are rounded depends on the processor.
    weights = next(row for row in drawn if (row @ target) / row.sum() != 0.1)
    assert np.isnan(regression.r2(target + 1, target, weights))
    two_outputs = np.stack([target, np.arange(7)], 1)
    assert regression.r2(two_outputs, two_outputs, weights) == 1  # the output that varies is what counts
