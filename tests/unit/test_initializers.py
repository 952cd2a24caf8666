"""Initializers: the variances of the literature, patterns, what is refused, and the setting that a run uses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from opsin.errors import ConfigError, UnknownName
from opsin.layers.initializers import initialize


def _net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(8, 32, 3), nn.BatchNorm2d(32), nn.ConvTranspose2d(32, 16, 4), nn.Flatten(), nn.Linear(400, 300)
    )


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("normal", 0.01**2),
        ("normal:0.3", 0.09),
        ("truncated-normal", 0.02**2 * 0.7737),  # of a normal cut off at two deviations
        ("uniform", 1 / 400 / 3),
        ("xavier", 2 / 700),
        ("he", 2 / 400),
        ("he:0.5", 0.25 * 2 / 400),
    ],
)
def test_variances(name, variance):
    torch.manual_seed(0)
    net = _net()
    assert initialize(net, {"4": name}) == {"4.weight": name, "4.bias": "zeros"}
    assert net[4].weight.var().item() == pytest.approx(variance, rel=0.02)
    assert abs(net[4].weight.mean().item()) < 4 * math.sqrt(variance / 120_000)
    assert not net[4].bias.any()


def test_convolutions_count_their_inputs():
    torch.manual_seed(0)
    net = _net()
    initialize(net, {"*": "he"})
    assert net[0].weight.var().item() == pytest.approx(2 / (8 * 9), rel=0.1)
    assert net[2].weight.var().item() == pytest.approx(2 / (32 * 16), rel=0.1)
    assert (net[1].weight == 1).all()


def test_orthogonal_and_later_rules_win():
    net = _net()
    initialize(net, {"*": "normal", "4": "orthogonal", "*.bias": "normal:2"})
    torch.testing.assert_close(net[4].weight @ net[4].weight.T, torch.eye(300), atol=1e-5, rtol=0)
    assert net[4].bias.std() > 1
    assert net[0].weight.std() < 0.02


def test_zeros_are_refused_unless_forced():
    net = _net()
    with pytest.raises(ConfigError, match=r"'4\.weight' would start with zeros"):
        initialize(net, {"4": "zeros"})
    assert net[4].weight.any()
    initialize(net, {"4": "zeros!"})
    assert not net[4].weight.any()
    initialize(net, {"0.bias": "zeros"})
    assert not net[0].bias.any()


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({"*": "hee"}, UnknownName, "Did you mean 'he'"),
        ({"5": "he"}, ConfigError, "matches '5'"),
        ({"1": "he"}, ConfigError, "matches '1'"),  # batch norm has no weights
        ({"*": "normal:wide"}, ConfigError, "expected a positive number"),
        ({"*": "normal:-1"}, ConfigError, "expected a positive number"),
    ],
)
def test_messages(rules, error, message):
    with pytest.raises(error, match=message):
        initialize(_net(), rules)
