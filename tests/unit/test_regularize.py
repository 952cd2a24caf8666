"""Penalties and limits of weights: against a bare loop in torch, whatever the micro-batches, and after resume.

Two processes are in tests/contracts/test_engine.py.
"""

from __future__ import annotations

import pytest
import torch
from tests.toys import ToyLoader, make
from torch import nn

from opsin import seeding
from opsin.engine.checkpoint import Store
from opsin.engine.events import EpochDone, Stream
from opsin.engine.loop import Loop, Plan
from opsin.engine.precision import Precision
from opsin.engine.regularize import Regularizer
from opsin.errors import ConfigError
from opsin.recipe import Layer, Recipe, RegularizeSettings, Settings

BATCH, EPOCHS, LARGEST = 4, 2, 0.7
SPARED = {"heads": "a", "gan": "discriminator"}  # the layer without l1


def _settings(name):
    return RegularizeSettings(l1={"*": 0.01, SPARED[name]: 0.0}, l2=0.03, max_norm=LARGEST)


def _optimizers(task, model):
    return {p: torch.optim.SGD([w for _, w in task.parameters(model, p)], lr=0.1, momentum=0.9) for p in task.phases}


def _loop(name, micro=None, listener=None, store=None, stop_at=10**9):
    task, model, _, x, targets = make(name)
    left = iter(range(stop_at - 1))
    return model, Loop(
        task, model, _optimizers(task, model), lambda step: 1.0 - 0.1 * step, ToyLoader(task, x, targets, BATCH),
        Plan(EPOCHS, micro_batch=micro, clip_norm=2.0, checkpoint_seconds=1e9),
        precision=Precision("fp64", torch.device("cpu"), False), store=store,
        stream=Stream({"one": listener} if listener else {}), regularizer=Regularizer(_settings(name), model),
        interrupted=lambda: next(left, None) is None,
    )  # fmt: skip


def _bare(name):
    """Weights after training, and the penalties of each step."""
    task, model, reference, x, targets = make(name)
    loader, optimizers = ToyLoader(task, x, targets, BATCH), _optimizers(task, model)
    step, penalties = 0, []
    for epoch in range(EPOCHS):
        for i in range(loader.steps_per_epoch):
            at = loader.positions(i)
            given = {n: t[at] for n, t in targets.items()} | {"keys": seeding.keys(0, epoch, at)}
            for phase, optimizer in optimizers.items():
                own = {id(w) for _, w in task.parameters(model, phase)}
                weights = [(n, w) for n, w in model.named_parameters() if n.endswith("weight") and id(w) in own]
                optimizer.param_groups[0]["lr"] = 0.1 * (1.0 - 0.1 * step)
                optimizer.zero_grad()
                l1 = 0.01 * sum(w.abs().sum() for n, w in weights if n.partition(".")[0] != SPARED[name])
                l2 = 0.03 * sum((w**2).sum() for _, w in weights)
                (reference(model, x[at], given, phase) + l1 + l2).backward()
                nn.utils.clip_grad_norm_([w for _, w in task.parameters(model, phase)], 2.0)
                optimizer.step()
                for _, w in weights:
                    w.data.copy_(torch.renorm(w.data, 2, 0, LARGEST))
                penalties.append([float(torch.as_tensor(one).detach()) for one in (l1, l2)])
            step += 1
    return model.state_dict(), penalties


def _difference(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("micro", [None, 1, 3])
@pytest.mark.parametrize("name", ["heads", "gan"])
def test_equals_a_bare_loop_for_any_micro_batch(name, micro):
    seen = []
    model, loop = _loop(name, micro, listener=seen.append)
    loop.run()
    wanted, penalties = _bare(name)
    assert _difference(model.state_dict(), wanted) <= 1e-6  # renorm of torch divides by norm + 1e-7
    if name == "heads":
        epochs = [e.metrics for e in seen if isinstance(e, EpochDone)]
        steps = len(penalties) // EPOCHS
        for epoch, metrics in enumerate(epochs):
            l1, l2 = torch.tensor(penalties[epoch * steps : (epoch + 1) * steps]).mean(0).tolist()
            assert metrics["penalty.l1"] == pytest.approx(l1, rel=1e-5)
            assert metrics["penalty.l2"] == pytest.approx(l2, rel=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    whole, loop = _loop("heads", 2)
    loop.run()
    _, first = _loop("heads", 2, store=Store(tmp_path, 2), stop_at=2)
    first.run()
    second, loop = _loop("heads", 2, store=Store(tmp_path, 2))
    assert loop.resume()
    assert loop.state.step == 2
    loop.run()
    assert all(torch.equal(t, second.state_dict()[name]) for name, t in whole.state_dict().items())


def test_limits_hold_for_each_filter():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 3, groups=2), nn.Linear(4, 5), nn.BatchNorm1d(5))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
        model[0].weight[0] *= 0.01
    before = {name: t.clone() for name, t in model.state_dict().items()}
    Regularizer(RegularizeSettings(max_norm=0.5), model).limit(model.parameters())
    after = model.state_dict()
    torch.testing.assert_close(after["0.weight"], torch.renorm(before["0.weight"], 2, 0, 0.5))
    assert torch.equal(after["0.weight"][0], before["0.weight"][0])
    # A transposed convolution of two groups is two of one: inputs 0-3 reach outputs 0-2, inputs 4-7 outputs 3-5.
    for half in (slice(0, 4), slice(4, 8)):
        torch.testing.assert_close(after["1.weight"][half], torch.renorm(before["1.weight"][half], 2, 1, 0.5))
    for name in ("0.bias", "3.weight", "3.bias"):
        assert torch.equal(after[name], before[name])


def test_patterns_choose_weights_and_biases_only_by_name():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 3))
            self.twin = self.net[2]  # the same weights twice are penalized once

    model = Net()
    weights = dict(model.named_parameters())

    def l2(given):
        found = Regularizer(RegularizeSettings(l2=given), model).penalties(model.parameters())
        return float(found["penalty.l2"].detach())

    squares = {name: float(w.detach().square().sum()) for name, w in weights.items()}
    conv, dense, bias = squares["net.0.weight"], squares["net.2.weight"], squares["net.2.bias"]
    assert l2(0.5) == pytest.approx(0.5 * (conv + dense))
    assert l2({"2": 1.0}) == pytest.approx(dense)
    assert l2({"*": 1.0, "0": 2.0}) == pytest.approx(2 * conv + dense)
    assert l2({"2.bias": 1.0, "2.weight": 3.0}) == pytest.approx(bias + 3 * dense)
    model.net[0].requires_grad_(False)
    assert l2(1.0) == pytest.approx(dense)
    with pytest.raises(
        ConfigError, match=r"regularize.max_norm: no weight matches '2.weigth'. Did you mean '2.weight'"
    ):
        Regularizer(RegularizeSettings(max_norm={"2.weigth": 1.0}), model)


def test_settings_of_a_recipe():
    recipe = Recipe.build("classify", Settings, [Layer("here", {"regularize": {"l2": {"head*": 0.1}}})])
    assert recipe.regularize.l2 == {"head*": 0.1}
    assert Recipe.from_dict({**recipe.to_dict(), "regularize": {}}).regularize == RegularizeSettings()
    with pytest.raises(ConfigError, match=r"regularize.l1"):
        Recipe.build("classify", Settings, [Layer("here", {"regularize": {"l1": -1}})])
