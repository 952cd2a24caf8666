"""Synchronized batch norm in two and three gloo processes against nn.BatchNorm on the joined batch, in float64."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from opsin.errors import ConfigError
from opsin.layers.sync_batchnorm import SyncBatchNorm, convert

C = 3
SHAPES = {"BatchNorm1d-rows": (), "BatchNorm1d": (4,), "BatchNorm2d": (4, 5), "BatchNorm3d": (2, 3, 2)}
# name of the case: (layer, its arguments, local batch sizes)
CASES = {
    **{name: (name.partition("-")[0], {}, (5, 2)) for name in SHAPES},
    "an empty process": ("BatchNorm2d", {}, (4, 0, 3)),
    "one sample each": ("BatchNorm1d", {}, (1, 1)),
    "cumulative": ("BatchNorm2d", {"momentum": None}, (1, 4)),
    "not affine": ("BatchNorm2d", {"affine": False}, (2, 3)),
    "no statistics": ("BatchNorm2d", {"track_running_stats": False}, (2, 3)),
}


def _layer(case: str) -> nn.Module:
    kind, kwargs, _ = CASES[case]
    torch.manual_seed(0)
    layer = getattr(nn, kind)(C, **kwargs).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def _batches(case: str) -> list[torch.Tensor]:
    """Three global batches far from zero, so that a sum of squares would lose digits."""
    kind, _, sizes = CASES[case]
    shape = SHAPES.get(case, SHAPES[kind])
    torch.manual_seed(1)
    return [1000.0 + 5 * torch.randn(sum(sizes), C, *shape, dtype=torch.float64) for _ in range(3)]


def _process(rank: int, world: int, folder: str) -> None:
    """All cases in one start of processes: those with two parts run in the group of the first two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    pair = dist.new_group([0, 1])
    out = {}
    for case, (_, _, sizes) in CASES.items():
        if rank >= len(sizes):
            continue
        layer = convert(nn.Sequential(_layer(case)), group=pair if len(sizes) == 2 else None)
        start = sum(sizes[:rank])
        steps = []
        for x in _batches(case):
            local = x[start : start + sizes[rank]].clone().requires_grad_()
            y = layer(local)
            layer.zero_grad()
            (y * torch.sin(local.detach()) + y.square() * local.detach() / 1000).sum().backward()
            grads = [p.grad for p in layer.parameters()]
            steps.append((y.detach(), local.grad, grads))
        buffers = dict(layer[0].named_buffers())
        layer.eval()
        out[case] = (steps, buffers, layer(_batches(case)[0]).detach())
    if rank < 2:
        out["timm"] = _timm_in_bf16(rank, pair)
    torch.save(out, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _timm_in_bf16(rank: int, group: dist.ProcessGroup) -> dict[str, object]:
    """A timm network, whose norms hold their activation, on 4 + 2 pictures."""
    import timm

    torch.manual_seed(0)
    plain = timm.create_model("mobilenetv2_035", pretrained=False, num_classes=3)
    model = convert(copy.deepcopy(plain), group)
    x = torch.randn(6, 3, 64, 64)
    mine = slice(0, 4) if rank == 0 else slice(4, 6)
    with torch.no_grad():
        out = {"together": model(x[mine]), "joined": plain(x)[mine]}
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x[mine]).square().sum()
    loss.backward()
    out["finite"] = all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    out["same keys"] = list(model.state_dict()) == list(plain.state_dict())
    out["classes"] = {type(m).__name__ for m in model.modules()}
    out["buffers"] = list(model.buffers())
    return out


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(_process, (3, str(folder)), nprocs=3)
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(3)]
    return {case: [rank[case] for rank in ranks if case in rank] for case in ranks[0]}


@pytest.mark.parametrize("case", CASES)
def test_equals_batch_norm_on_the_joined_batch(results, case):
    layer = _layer(case)
    ranks = results[case]
    for step, x in enumerate(_batches(case)):
        x.requires_grad_()
        y = layer(x)
        layer.zero_grad()
        (y * torch.sin(x.detach()) + y.square() * x.detach() / 1000).sum().backward()
        close = {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(torch.cat([rank[0][step][0] for rank in ranks]), y.detach(), **close)
        torch.testing.assert_close(torch.cat([rank[0][step][1] for rank in ranks]), x.grad, **close)
        for i, parameter in enumerate(layer.parameters()):  # local gradients sum up to the global one
            torch.testing.assert_close(
                sum(rank[0][step][2][i] for rank in ranks), parameter.grad, rtol=1e-12, atol=1e-11
            )
    layer.eval()
    expected = layer(_batches(case)[0]).detach()
    for _, buffers, evaluated in ranks:
        assert list(buffers) == [name for name, _ in layer.named_buffers()]
        for name, buffer in layer.named_buffers():
            torch.testing.assert_close(buffers[name], buffer, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(evaluated, expected, rtol=1e-12, atol=1e-12)


def test_a_timm_network_in_bf16(results):
    first, second = results["timm"]
    for rank in (first, second):
        torch.testing.assert_close(rank["together"], rank["joined"], rtol=1e-3, atol=1e-3)
        assert rank["finite"]
        assert rank["same keys"]
        assert "BatchNormAct2d" not in rank["classes"]
    assert all(torch.equal(a, b) for a, b in zip(first["buffers"], second["buffers"], strict=True))


@pytest.mark.parametrize("case", ["BatchNorm2d", "cumulative", "no statistics", "not affine"])
def test_in_one_process_it_is_batch_norm(case):
    plain = _layer(case)
    ours = convert(copy.deepcopy(plain))
    assert type(ours) is SyncBatchNorm
    assert list(ours.state_dict()) == list(plain.state_dict())
    for x in _batches(case):
        assert torch.equal(ours(x), plain(x))
    for name, buffer in plain.named_buffers():
        assert torch.equal(ours.get_buffer(name), buffer)
    assert torch.equal(ours.eval()(x), plain.eval()(x))


def test_parameters_stay_the_same_objects():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    before = [id(p) for p in net.parameters()]
    assert convert(net) is net
    assert [id(p) for p in net.parameters()] == before
    assert [type(m) for m in net.modules() if "Norm" in type(m).__name__] == [SyncBatchNorm, SyncBatchNorm]
    assert convert(net) is net  # a second time changes nothing


def test_a_norm_of_its_own_kind_is_refused():
    class Twice(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(ConfigError, match="Twice is a batch norm of its own kind"):
        convert(nn.Sequential(Twice(3)))
