"""The last layer's biases at the shares of the classes: the best constant answer, found by torch's optimizer."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import opsin
from opsin.data.classes import prior_logits
from opsin.engine.events import EpochDone, StepDone
from opsin.errors import ConfigError
from opsin.recipe import Layer


def _best_constant(loss, k):
    logits = torch.zeros(k, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(logits)
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().numpy()


def test_the_prior_is_the_best_constant_answer():
    rng = np.random.default_rng(0)
    target = rng.choice(4, 200, p=[0.7, 0.2, 0.08, 0.02])
    target[:9] = -1
    known = torch.from_numpy(target[target >= 0])
    for weights in (None, (0.1, 0.5, 1.0, 0.7)):
        given = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        best = _best_constant(lambda z: F.cross_entropy(z.expand(len(known), 4), known, given), 4)  # noqa: B023
        found = prior_logits(target, 4, weights)
        np.testing.assert_allclose(found - found.mean(), best - best.mean(), atol=1e-4)
        assert float(np.exp(found).sum()) == pytest.approx(1, abs=1e-5)
    labels = (rng.random((150, 3)) < [0.05, 0.5, 0.9]).astype(np.float32)
    labels[rng.random((150, 3)) < 0.1] = np.nan
    mask = torch.from_numpy(np.isfinite(labels))
    wanted = torch.from_numpy(np.nan_to_num(labels)).double()
    best = _best_constant(
        lambda z: (F.binary_cross_entropy_with_logits(z.expand(150, 3), wanted, reduction="none") * mask).sum() / 100, 3
    )
    np.testing.assert_allclose(prior_logits(labels, 3), best, atol=1e-4)
    assert np.isfinite(prior_logits(np.array([0, 0, 2]), 4)).all()


def _pictures(folder):
    rng = np.random.default_rng(0)
    for name, count in (("many", 30), ("some", 12), ("few", 6)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (12, 12), np.uint8)).save(folder / name / f"{i}.png")
    return folder


def _train(tmp_path, out, network, **given):
    data = tmp_path / "data" if (tmp_path / "data").exists() else _pictures(tmp_path / "data")
    seen = []
    run = opsin.train(
        "classify", data={"path": str(data), "workers": 0}, model=network, out=tmp_path / out, callbacks=[seen.append],
        quiet=True, listeners=(), epochs=1, batch_size=64, preflight=False, device="cpu", precision="fp32", **given,
    )  # fmt: skip
    return run, seen


def test_a_described_network_trains_from_the_prior_with_its_penalties(tmp_path, monkeypatch):
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    chain = {"name": "layers", "kwargs": {"chain": "C3x4 same, P2, FC8, FC"}, "init": {"heads.*": "zeros!"}}
    run, seen = _train(tmp_path, "run", {**chain, "bias_prior": True}, regularize={"l2": {"*dense*": 0.5}})
    first = next(event for event in seen if isinstance(event, StepDone))
    split = json.loads((run.path / "data.json").read_text(encoding="utf-8"))["split"]
    ids = split["parts"]["train"]
    shares = np.unique([name.partition("/")[0] for name in ids], return_counts=True)[1] / len(ids)
    label = next(name for name in first.parts if not name.startswith("penalty."))
    assert float(first.parts[label]) == pytest.approx(float(-(shares * np.log(shares)).sum()), rel=1e-4)
    assert float(first.parts["penalty.l2"]) > 0
    done = next(event for event in seen if isinstance(event, EpochDone))
    assert set(done.metrics) == set(first.parts)
    assert opsin.load(run.path).predict(np.zeros((12, 12), np.uint8)).label in ("many", "some", "few")


class NoBias(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.last = nn.Linear(144, num_classes, bias=False)

    def forward(self, x):
        return self.last(x.flatten(1))


def test_a_head_without_biases_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match="no bias for each of the 3 outputs"):
        _train(tmp_path, "run", NoBias, layers=[Layer("here", {"model": {"bias_prior": True}})])
