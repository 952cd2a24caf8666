"""Losses of classifiers against torch.nn.functional and torchvision.ops."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from opsin.errors import ShapeError
from opsin.losses.classification import (
    binary_count,
    binary_cross_entropy_sum,
    binary_focal_sum,
    cross_entropy_count,
    cross_entropy_sum,
    focal_sum,
)

B, K = 12, 5


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def _logits(rng):
    return (3 * torch.randn(B, K, generator=rng, dtype=torch.float64)).requires_grad_()


def _same(a, b, logits):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    (grad_a,) = torch.autograd.grad(a, logits, retain_graph=True)
    (grad_b,) = torch.autograd.grad(b, logits, retain_graph=True)
    torch.testing.assert_close(grad_a, grad_b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [0, 4])
def test_cross_entropy_of_classes(rng, smoothing, weighted, ignored):
    logits = _logits(rng)
    target = torch.randint(K, (B,), generator=rng)
    target[:ignored] = -1
    weights = torch.rand(K, generator=rng, dtype=torch.float64) + 0.1 if weighted else None
    part = cross_entropy_sum(logits, target, label_smoothing=smoothing, class_weights=weights)
    expected = F.cross_entropy(logits, target, weights, ignore_index=-1, label_smoothing=smoothing)
    _same(part.sum / part.count, expected, logits)
    assert part.count == cross_entropy_count(target, weights)
    if not weighted:
        assert part.count == B - ignored


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_of_shares(rng, smoothing, weighted):
    logits = _logits(rng)
    target = torch.rand(B, K, generator=rng, dtype=torch.float64).softmax(1)
    weights = torch.rand(K, generator=rng, dtype=torch.float64) + 0.1 if weighted else None
    part = cross_entropy_sum(logits, target, label_smoothing=smoothing, class_weights=weights)
    _same(part.sum, F.cross_entropy(logits, target, weights, reduction="sum", label_smoothing=smoothing), logits)
    if not weighted:
        _same(part.sum / part.count, F.cross_entropy(logits, target, label_smoothing=smoothing), logits)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_one_hot_row_counts_as_its_integer(rng, weighted):
    logits = _logits(rng)
    target = torch.randint(K, (B,), generator=rng)
    weights = torch.rand(K, generator=rng, dtype=torch.float64) + 0.1 if weighted else None
    a = cross_entropy_sum(logits, target, label_smoothing=0.1, class_weights=weights)
    b = cross_entropy_sum(logits, F.one_hot(target, K).double(), label_smoothing=0.1, class_weights=weights)
    _same(a.sum, b.sum, logits)
    torch.testing.assert_close(a.count, b.count)


def test_a_row_without_shares_is_ignored(rng):
    logits = _logits(rng)
    target = torch.randint(K, (B,), generator=rng)
    target[:4] = -1
    shares = F.one_hot(target.clamp_min(0), K).double() * (target >= 0).double()[:, None]
    a, b = (cross_entropy_sum(logits, t, label_smoothing=0.1) for t in (target, shares))
    _same(a.sum, b.sum, logits)
    assert a.count == b.count == B - 4


def test_all_ignored_gives_zero_and_no_nan(rng):
    logits = _logits(rng)
    for loss in (cross_entropy_sum, focal_sum):
        part = loss(logits, torch.full((B,), -1))
        assert part.sum == 0
        assert part.count == 0
        assert torch.autograd.grad(part.sum, logits)[0].abs().sum() == 0


@pytest.mark.parametrize("weighted", [False, True])
def test_binary_cross_entropy_with_missing_entries(rng, weighted):
    logits = _logits(rng)
    target = torch.randint(2, (B, K), generator=rng).double()
    missing = torch.rand(B, K, generator=rng) < 0.3
    weights = torch.rand(K, generator=rng, dtype=torch.float64) * 3 if weighted else None
    part = binary_cross_entropy_sum(logits, target.masked_fill(missing, torch.nan), positive_weights=weights)
    every = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights, reduction="none")
    _same(part.sum, every[~missing].sum(), logits)
    assert part.count == (~missing).sum() == binary_count(target.masked_fill(missing, torch.nan))
    assert not torch.autograd.grad(part.sum, logits)[0][missing].any()


@pytest.mark.parametrize("alpha", [0.25, 0.7, None])
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_binary_focal(rng, alpha, gamma):
    logits = _logits(rng)
    target = torch.randint(2, (B, K), generator=rng).double()
    part = binary_focal_sum(logits, target, gamma=gamma, alpha=alpha)
    expected = sigmoid_focal_loss(logits, target, -1 if alpha is None else alpha, gamma, reduction="sum")
    _same(part.sum, expected, logits)
    target[0] = torch.nan
    masked = binary_focal_sum(logits, target, gamma=gamma, alpha=alpha)
    rest = sigmoid_focal_loss(logits[1:], target[1:], -1 if alpha is None else alpha, gamma, reduction="sum")
    _same(masked.sum, rest, logits)
    assert masked.count == (B - 1) * K


def test_focal_of_classes(rng):
    logits = _logits(rng)
    target = torch.randint(K, (B,), generator=rng)
    target[:2] = -1
    _same(focal_sum(logits, target, gamma=0.0).sum, cross_entropy_sum(logits, target).sum, logits)
    # two classes with logits (0, z): softmax is the sigmoid of z, and the loss that of torchvision
    two = torch.stack([torch.zeros(B, dtype=torch.float64), logits[:, 0]], 1)
    truth = torch.randint(2, (B,), generator=rng)
    expected = sigmoid_focal_loss(logits[:, 0], truth.double(), 0.3, 2.0, reduction="sum")
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64)
    _same(focal_sum(two, truth, gamma=2.0, class_weights=weights).sum, expected, logits)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_gradient_is_finite_for_certain_pictures(gamma):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    part = focal_sum(logits, torch.tensor([0, 0]), gamma=gamma)
    part.sum.backward()
    assert part.sum == 400
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_summed_in_float32(rng, dtype):
    logits = _logits(rng).detach().to(dtype)
    target = torch.randint(K, (B,), generator=rng)
    part = cross_entropy_sum(logits, target)
    assert part.sum.dtype == torch.float32
    torch.testing.assert_close(part.sum, F.cross_entropy(logits.float(), target, reduction="sum"))
    assert binary_cross_entropy_sum(logits, torch.ones(B, K)).sum.dtype == torch.float32


@pytest.mark.parametrize(
    ("loss", "target", "message"),
    [
        (cross_entropy_sum, torch.zeros(B + 1, dtype=torch.long), "one class per row"),
        (cross_entropy_sum, torch.zeros(B), "expected integers"),
        (cross_entropy_sum, torch.zeros(B, K + 1), "the shape of the logits"),
        (focal_sum, torch.zeros(B, K, dtype=torch.long), "one class per row"),
        (binary_cross_entropy_sum, torch.zeros(B), "the shape of the logits"),
        (binary_focal_sum, torch.zeros(B), "the shape of the logits"),
    ],
)
def test_wrong_shapes(loss, target, message):
    with pytest.raises(ShapeError, match=message):
        loss(torch.zeros(B, K), target)
