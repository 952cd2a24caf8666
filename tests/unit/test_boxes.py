"""Boxes: overlaps against plain arithmetic and torchvision, rotated ones against half-planes; losses; merging."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision.ops as ops
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull, HalfspaceIntersection

from opsin.errors import ConfigError, ShapeError
from opsin.losses import boxes as losses
from opsin.metrics import boxes
from opsin.metrics.merging import hard_nms, matrix_nms, merge, soft_nms, weighted_box_fusion

SETTINGS = settings(max_examples=60, deadline=None)
number = st.one_of(st.integers(-20, 20).map(float), st.floats(-100, 100, width=32))
corners = st.tuples(number, number, number, number)


def scalar_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """IoU of two boxes, number by number."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0 or scalar_area(a) == 0 or scalar_area(b) == 0:
        return 0.0
    shared = width * height
    return shared / (scalar_area(a) + scalar_area(b) - shared)


def scalar_area(a: tuple[float, ...]) -> float:
    """Area of a box, 0 if it is upside down."""
    return max(0.0, a[2] - a[0]) * max(0.0, a[3] - a[1])


@SETTINGS
@given(st.lists(corners, min_size=1, max_size=5), st.lists(corners, min_size=1, max_size=5))
def test_iou_is_the_scalar_one_and_exactly_0_for_what_is_apart(first: list, second: list) -> None:
    table = boxes.pairwise(boxes.iou, first, second)
    expected = np.array([[scalar_iou(a, b) for b in second] for a in first])
    np.testing.assert_allclose(table, expected, rtol=1e-9, atol=1e-12)
    assert (table[expected == 0] == 0).all()
    assert ((table >= 0) & (table <= 1 + 1e-12)).all()


@SETTINGS
@given(st.lists(corners, min_size=1, max_size=5))
def test_layouts_go_there_and_back(given_boxes: list) -> None:
    array = np.array(given_boxes)
    np.testing.assert_allclose(boxes.xywh_to_xyxy(boxes.xyxy_to_xywh(array)), array, atol=1e-9)
    np.testing.assert_allclose(boxes.cxcywh_to_xyxy(boxes.xyxy_to_cxcywh(array)), array, atol=1e-9)
    np.testing.assert_allclose(boxes.absolute(boxes.normalized(array, (48, 64)), (48, 64)), array, atol=1e-9)
    for layout, there in (("xywh", boxes.xyxy_to_xywh), ("cxcywh", boxes.xyxy_to_cxcywh)):
        converted = ops.box_convert(torch.from_numpy(array), "xyxy", layout).numpy()
        np.testing.assert_allclose(there(array), converted, atol=1e-9)


def some_boxes(count: int, seed: int = 0, size: float = 100) -> np.ndarray:
    """Boxes of positive size, many of which overlap."""
    draw = np.random.default_rng(seed)
    corner = draw.uniform(0, size, (count, 2))
    return np.concatenate([corner, corner + draw.uniform(1, size / 2, (count, 2))], 1)


@pytest.mark.parametrize(
    ("kind", "function", "oracle"),
    [
        ("iou", boxes.iou, ops.box_iou),
        ("giou", boxes.giou, ops.generalized_box_iou),
        ("diou", boxes.diou, ops.distance_box_iou),
        ("ciou", boxes.ciou, ops.complete_box_iou),
    ],
)
def test_overlaps_are_torchvisions(kind, function, oracle) -> None:
    first, second = some_boxes(30), some_boxes(20, 1)
    expected = oracle(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    np.testing.assert_allclose(boxes.pairwise(function, first, second), expected, atol=1e-6)
    a, b = torch.from_numpy(first[:20]).requires_grad_(), torch.from_numpy(second)
    np.testing.assert_allclose(losses.overlap(a, b, kind).detach(), np.diag(expected[:20]), atol=1e-5)
    shares = losses.overlap(a / 1e4, b / 1e4, kind, 1e-12).detach()
    np.testing.assert_allclose(shares, np.diag(expected[:20]), atol=1e-5)


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_losses_are_finite_for_any_boxes(kind) -> None:
    odd = torch.tensor([[5.0, 5, 5, 5], [0, 0, 0, 3], [1, 1, 4, 4], [9, 9, 3, 3]], requires_grad=True)
    target = torch.tensor([[5.0, 5, 5, 5], [50, 50, 60, 60], [1, 1, 4, 4], [0, 0, 10, 10]])
    found = losses.overlap(odd, target, kind)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(odd.grad).all()
    none = torch.zeros(0, 4, requires_grad=True)
    losses.overlap(none, torch.zeros(0, 4), kind).sum().backward()
    assert none.grad.shape == (0, 4)
    with pytest.raises(ShapeError):
        losses.overlap(odd, target[:2], kind)


def test_degenerate_boxes_overlap_with_nothing() -> None:
    flat = [[5, 5, 5, 9], [5, 5, 5, 5], [9, 9, 3, 3]]
    for function in (boxes.iou, boxes.crowd_iou):
        assert (boxes.pairwise(function, flat, [[0, 0, 10, 10], [5, 5, 5, 5]]) == 0).all()
    assert boxes.pairwise(boxes.iou, [], [[0, 0, 1, 1]]).shape == (0, 1)
    with pytest.raises(ShapeError):
        boxes.area([[1, 2, 3]])


def test_crowd_overlap_is_the_share_of_the_detection() -> None:
    assert boxes.crowd_iou([0, 0, 10, 10], [5, 0, 100, 100]) == 0.5
    assert boxes.crowd_iou([0, 0, 10, 10], [-5, -5, 100, 100]) == 1


def test_wasserstein_in_closed_form() -> None:
    a, b = [0, 0, 4, 4], [3, 0, 7, 8]  # centers (2, 2), (5, 4); halves differ by (0, 2)
    assert boxes.wasserstein(a, b, 10) == pytest.approx(math.exp(-math.sqrt(9 + 4 + 4) / 10))
    assert boxes.wasserstein(a, a) == 1


# Rotated ------------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rotated_iou_is_the_area_between_half_planes(seed: int) -> None:
    draw = np.random.default_rng(seed)
    first, second = (
        np.concatenate([draw.uniform(-3, 3, (6, 2)), draw.uniform(0.5, 6, (6, 2)), draw.uniform(-360, 360, (6, 1))], 1)
        for _ in range(2)
    )
    found = boxes.rotated_iou(first, second)
    for a, b, value in zip(first, second, found):
        assert value == pytest.approx(by_half_planes(a, b), abs=1e-6)
    np.testing.assert_allclose(found, boxes.rotated_iou(second, first), atol=1e-12)


def by_half_planes(a: np.ndarray, b: np.ndarray) -> float:
    """IoU by intersecting the eight half-planes of two rectangles."""
    planes = []
    for box in (a, b):
        points = boxes.rotated_corners(box)
        middle = points.mean(0)
        for one, other in zip(points, np.roll(points, -1, 0)):
            normal = np.array([other[1] - one[1], one[0] - other[0]])
            normal = normal if normal @ (middle - one) < 0 else -normal
            planes.append([*normal, -(normal @ one)])
    grid = np.stack(np.meshgrid(*[np.linspace(-8, 8, 81)] * 2), -1).reshape(-1, 2)
    slack = (np.array(planes)[:, :2] @ grid.T + np.array(planes)[:, 2:]).max(0)
    inside = grid[slack.argmin()]
    if slack.min() >= -1e-3:  # nothing, or a sliver between the points of the grid
        return float(boxes.rotated_iou(a, b)) if boxes.rotated_iou(a, b) < 0.03 else 0.0
    shared = ConvexHull(HalfspaceIntersection(np.array(planes), inside).intersections).volume
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def test_rotated_boxes_in_closed_form() -> None:
    square = [0, 0, 2, 2, 0]
    octagon = 8 * (math.sqrt(2) - 1)  # what a square of side 2 shares with itself turned by 45 degrees
    assert boxes.rotated_iou(square, [0, 0, 2, 2, 45]) == pytest.approx(octagon / (8 - octagon))
    assert boxes.rotated_iou([5, 5, 4, 2, 0], [5, 5, 2, 4, 90]) == pytest.approx(1)
    assert boxes.rotated_iou(square, square) == pytest.approx(1)
    for apart in ([10, 0, 2, 2, 30], [0, 0, 0, 2, 0], [2.9, 2.9, 2, 2, 45]):
        assert boxes.rotated_iou(square, apart) == 0
    first, second = some_boxes(20), some_boxes(20, 1)
    turned = [np.concatenate([boxes.xyxy_to_cxcywh(one), np.zeros((20, 1))], 1) for one in (first, second)]
    np.testing.assert_allclose(boxes.rotated_iou(*turned), boxes.iou(first, second), atol=1e-12)
    # Counter-clockwise as seen: the right end of a lying bar goes up, where y is smaller
    tip = boxes.rotated_corners([0, 0, 10, 0.001, 30])[1]
    np.testing.assert_allclose(tip, [5 * math.cos(math.pi / 6), -5 * math.sin(math.pi / 6)], atol=1e-3)


# Merging ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 50, 900, 3000])
def test_nms_is_torchvisions(count: int) -> None:
    draw = np.random.default_rng(count)
    found, scores = some_boxes(count, count).astype(np.float32), draw.random(count).astype(np.float32)
    labels = draw.integers(0, 5, count)
    given_tensors = torch.from_numpy(found), torch.from_numpy(scores)
    expected = ops.batched_nms(*given_tensors, torch.from_numpy(labels), 0.4).numpy()
    merged = merge(found, scores, labels, overlap=0.4)
    np.testing.assert_array_equal(merged.positions, expected)
    np.testing.assert_array_equal(merged.scores, scores[expected])
    agnostic = merge(found, scores, labels, overlap=0.4, floor=0.3, top=7, agnostic=True)
    chosen = ops.nms(*given_tensors, 0.4).numpy()
    np.testing.assert_array_equal(agnostic.positions, chosen[scores[chosen] >= 0.3][:7])
    np.testing.assert_array_equal(hard_nms(found, scores, None, 0.4), chosen)
    every = merge(found, scores, labels, overlap=1.0, top=10)
    np.testing.assert_array_equal(every.positions, np.argsort(-scores, kind="stable")[:10])
    np.testing.assert_array_equal(every.boxes, found[every.positions])


def scalar_soft_nms(found, scores, overlap: float, linear: bool, sigma: float) -> list[float]:
    """The pseudo code of the paper, figure 3."""
    left, result = list(range(len(scores))), [0.0] * len(scores)
    current = [float(s) for s in scores]
    while left:
        best = max(left, key=lambda i: current[i])
        result[best] = current[best]
        left.remove(best)
        for i in left:
            shared = scalar_iou(tuple(found[best]), tuple(found[i]))
            if linear:
                current[i] *= 1 - shared if shared > overlap else 1
            else:
                current[i] *= math.exp(-(shared**2) / sigma)
    return result


@pytest.mark.parametrize("linear", [False, True])
def test_soft_nms_is_the_papers(linear: bool) -> None:
    found, scores = some_boxes(40), np.random.default_rng(0).random(40)
    labels = np.random.default_rng(1).integers(0, 2, 40)
    result = soft_nms(found, scores, labels, overlap=0.3, linear=linear)
    for label in (0, 1):
        own = labels == label
        np.testing.assert_allclose(result[own], scalar_soft_nms(found[own], scores[own], 0.3, linear, 0.5), rtol=1e-9)
    merged = merge(found, scores, labels, overlap=0.3, floor=0.1, method="soft-linear" if linear else "soft")
    assert (np.diff(merged.scores) <= 0).all()
    assert (merged.scores >= 0.1).all()
    np.testing.assert_allclose(merged.scores, result[merged.positions])


@pytest.mark.parametrize("linear", [False, True])
def test_matrix_nms_is_the_papers(linear: bool) -> None:
    found, scores = some_boxes(25), np.random.default_rng(0).random(25)
    result = matrix_nms(found, scores, np.zeros(25, int), linear=linear)
    order = np.argsort(-scores)

    def decay(shared: float) -> float:
        return 1 - shared if linear else math.exp(-(shared**2) / 0.5)

    def alike(i: int, j: int) -> float:
        return scalar_iou(tuple(found[i]), tuple(found[j]))

    for place, j in enumerate(order):
        factors = [
            decay(alike(i, j)) / decay(max((alike(k, i) for k in order[:at]), default=0.0))
            for at, i in enumerate(order[:place])
        ]
        assert result[j] == pytest.approx(scores[j] * min([1.0, *factors]))


def test_weighted_box_fusion_in_closed_form() -> None:
    found = np.array([[0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60], [0, 0, 10, 10]], float)
    scores, labels = np.array([0.9, 0.6, 0.8, 0.5]), np.array([0, 0, 0, 1])
    merged = merge(found, scores, labels, overlap=0.55, method="wbf")
    np.testing.assert_allclose(merged.scores, (0.8, 0.75, 0.5))
    np.testing.assert_allclose(merged.boxes[1], (0, 0, 10, (0.9 * 10 + 0.6 * 12) / 1.5))
    np.testing.assert_array_equal(merged.labels, (0, 0, 1))
    np.testing.assert_array_equal(merged.positions, (2, 0, 3))
    _, twice, _ = weighted_box_fusion(found, scores, labels, sources=2)
    np.testing.assert_allclose(twice, (0.75, 0.4, 0.25))  # found by both, by one, by one of two sources


def test_merging_refuses_what_does_not_fit() -> None:
    one = np.zeros((1, 4)), np.ones(1), np.zeros(1, int)
    with pytest.raises(ConfigError, match="expected one of nms, soft"):
        merge(*one, overlap=0.5, method="hard")
    with pytest.raises(ConfigError, match="overlap=50"):
        merge(*one, overlap=50)
    with pytest.raises(ShapeError):
        merge(np.zeros((2, 4)), *one[1:], overlap=0.5)
