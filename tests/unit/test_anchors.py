"""Anchors by k-means: made clusters are found, and fits are measured as the IoU of boxes says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from opsin.analyze.anchors import cluster_sizes, judge, size_iou
from opsin.errors import DataError


def test_overlap_of_sizes_is_that_of_boxes_on_one_center() -> None:
    sizes = np.random.default_rng(0).uniform(1, 50, (2, 12, 2))
    boxes = [torch.from_numpy(np.concatenate([-one, one], axis=1)) / 2 for one in sizes]
    np.testing.assert_allclose(size_iou(*sizes), box_iou(*boxes).numpy(), atol=1e-12)


def test_made_clusters_are_found_whatever_the_seed() -> None:
    generator = np.random.default_rng(1)
    wanted = np.array([[10, 12], [40, 20], [30, 90], [200, 150]], float)
    sizes = np.concatenate([one * generator.uniform(0.93, 1.07, (60, 2)) for one in wanted])
    for seed in range(3):
        found = cluster_sizes(sizes, 4, seed)
        np.testing.assert_allclose(found.sizes, wanted, rtol=0.03)
        np.testing.assert_allclose(found.share, 0.25)
        assert found.mean_iou > 0.9
        assert found.recall == {0.5: 1.0, 0.75: 1.0}
    again = cluster_sizes(sizes, 4, 2)
    assert np.array_equal(again.sizes, found.sizes)


def test_more_anchors_fit_better_and_better_than_means_in_plain_distance() -> None:
    generator = np.random.default_rng(2)
    sizes = np.exp(generator.normal(3, 0.8, (2000, 2)))
    fits = [cluster_sizes(sizes, count).mean_iou for count in (1, 3, 6, 9)]
    assert fits == sorted(fits)
    from sklearn.cluster import KMeans

    plain = judge(sizes, KMeans(6, random_state=0, n_init=3).fit(sizes).cluster_centers_)
    assert cluster_sizes(sizes, 6).mean_iou > plain.mean_iou + 0.02


def test_what_cannot_be_clustered() -> None:
    with pytest.raises(DataError, match="different"):
        cluster_sizes(np.ones((5, 2)), 2)
    with pytest.raises(DataError, match="positive"):
        cluster_sizes(np.zeros((5, 2)), 1)
    with pytest.raises(DataError, match="none"):
        judge(np.zeros((0, 2)), np.ones((1, 2)))
