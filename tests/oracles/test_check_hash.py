"""The perceptual hash against scipy's DCT, and the banded search against all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.analyze.check.hashing import candidate_pairs, dct_hash, dct_rows, hamming


def test_dct_rows_are_those_of_scipy() -> None:
    whole = scipy.fft.dct(np.eye(32), axis=0, norm="ortho")
    np.testing.assert_allclose(dct_rows(), whole[1:9], atol=1e-6)


def test_hash_is_the_sign_of_scipys_low_frequencies() -> None:
    thumbnails = np.random.default_rng(0).integers(0, 256, (50, 32, 32), dtype=np.uint8)
    ours = dct_hash(thumbnails)
    for picture, value in zip(thumbnails, ours):
        low = scipy.fft.dctn(picture.astype(np.float64), norm="ortho")[1:9, 1:9].ravel()
        middle = max(float(np.median(low)), 1e-3)
        clear = np.abs(low - middle) > 1e-2  # float32 may decide the others differently
        bits = np.array([(int(value) >> (63 - k)) & 1 for k in range(64)], bool)
        np.testing.assert_array_equal(bits[clear], (low > middle)[clear])


def test_flat_pictures_have_no_bits() -> None:
    flat = np.full((3, 32, 32), 1, np.uint8) * np.array([0, 77, 255], np.uint8)[:, None, None]
    assert dct_hash(flat).tolist() == [0, 0, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 7))
def test_banded_search_finds_exactly_the_pairs_that_brute_force_finds(seed: int, radius: int) -> None:
    generator = np.random.default_rng(seed)
    hashes = generator.integers(0, 2**64, 60, dtype=np.uint64)
    for i in range(30):  # relatives at 0 to 9 bits
        flips = generator.permutation(64)[: generator.integers(0, 10)]
        hashes[30 + i] = hashes[i] ^ np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0))
    left, right = np.triu_indices(60, 1)
    near = hamming(hashes[left], hashes[right]) <= radius
    expected = set(zip(left[near].tolist(), right[near].tolist()))
    found = [(int(i), int(j)) for block in candidate_pairs(hashes, radius) for i, j in block]
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_radius_beyond_the_bands_is_refused() -> None:
    with pytest.raises(ValueError, match="radius 8"):
        next(candidate_pairs(np.zeros(2, np.uint64), 8))
