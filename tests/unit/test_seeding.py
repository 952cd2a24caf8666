"""Keys and numbers: the same in a batch and alone, spread evenly, apart for every purpose."""

from __future__ import annotations

from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from opsin import seeding


@given(st.integers(0, 2**64 - 1), st.sampled_from(["a", "random box", ""]))
def test_one_key_alone_gets_the_numbers_it_gets_in_a_batch(key: int, purpose: str) -> None:
    keys = np.array([key, 1, 2**64 - 1], np.uint64)
    assert list(islice(seeding.uniform_one(key, purpose), 6)) == seeding.uniform(keys, purpose, 6)[0].tolist()


def test_a_row_depends_on_its_key_alone() -> None:
    keys = seeding.keys(3, 1, np.arange(50))
    np.testing.assert_array_equal(seeding.uniform(keys, "x", 4)[7:9], seeding.uniform(keys[7:9], "x", 4))
    np.testing.assert_array_equal(keys[20:], seeding.keys(3, 1, np.arange(20, 50)))


def test_numbers_are_uniform_and_normal_and_not_alike() -> None:
    keys = seeding.keys(0, 0, np.arange(20000))
    assert kstest(seeding.uniform(keys, "a")[:, 0], "uniform").pvalue > 1e-3
    assert kstest(seeding.normal(keys, "a")[:, 0], "norm").pvalue > 1e-3
    for other in (seeding.uniform(keys, "b")[:, 0], seeding.uniform(seeding.keys(0, 1, np.arange(20000)), "a")[:, 0]):
        assert abs(np.corrcoef(seeding.uniform(keys, "a")[:, 0], other)[0, 1]) < 0.03


def test_every_part_of_a_key_counts() -> None:
    found = {seeding.key(*parts) for parts in ((1, 2), (2, 1), (1, 2, 0), ("1", 2), (1,), (1, "2"))}
    assert len(found) == 6
