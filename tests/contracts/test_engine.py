"""The proof of the engine's contract: five toy tasks, one or two processes, micro-batches, all in double precision.

The oracle is a bare loop over whole global batches with the loss written directly (`tests/toys.py`).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.toys import TOYS, ToyLoader, make
from torch import Tensor, nn

from opsin import seeding
from opsin.engine.distributed import Processes
from opsin.engine.events import EpochDone, Event, Stream
from opsin.engine.loop import Loop, Plan
from opsin.engine.precision import Precision
from opsin.engine.regularize import Regularizer
from opsin.recipe import RegularizeSettings

BATCH, EPOCHS = 4, 2
REGULARIZE = RegularizeSettings(l1=0.01, l2=0.03, max_norm=0.7)


def _optimizers(task: object, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    return {
        phase: torch.optim.SGD([p for _, p in task.parameters(model, phase)], lr=0.1, momentum=0.9)  # type: ignore[attr-defined]
        for phase in task.phases  # type: ignore[attr-defined]
    }


def _train(
    name: str,
    processes: Processes | None = None,
    micro: int | None = None,
    listener: object = None,
    regularize: RegularizeSettings | None = None,
) -> dict[str, Tensor]:
    task, model, _, x, targets = make(name)
    loader = ToyLoader(task, x, targets, BATCH, processes)
    loop = Loop(
        task, model, _optimizers(task, model), lambda step: 1.0 - 0.1 * step, loader, Plan(EPOCHS, micro_batch=micro),
        precision=Precision("fp64", torch.device("cpu"), False), processes=processes,
        stream=Stream({"one": listener} if listener else {}),
        regularizer=Regularizer(regularize, model) if regularize else None,
    )  # fmt: skip
    loop.run()
    return model.state_dict()


def _bare(name: str) -> tuple[dict[str, Tensor], list[float]]:
    task, model, reference, x, targets = make(name)
    loader, optimizers = ToyLoader(task, x, targets, BATCH), _optimizers(task, model)
    step, losses = 0, []
    for epoch in range(EPOCHS):
        for i in range(loader.steps_per_epoch):
            at = loader.positions(i)
            given = {n: t[at] for n, t in targets.items()} | {"keys": seeding.keys(0, epoch, at)}
            for phase, optimizer in optimizers.items():
                optimizer.param_groups[0]["lr"] = 0.1 * (1.0 - 0.1 * step)
                optimizer.zero_grad()
                loss = reference(model, x[at], given, phase)
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            step += 1
    return model.state_dict(), losses


def _same(one: dict[str, Tensor], other: dict[str, Tensor], limit: float = 1e-12) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert float((one[name] - other[name]).abs().max()) <= limit, name


@pytest.mark.parametrize("name", TOYS)
def test_equals_a_bare_loop(name: str) -> None:
    _same(_train(name), _bare(name)[0])


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("name", TOYS)
def test_micro_batches_change_nothing(name: str, micro: int) -> None:
    _same(_train(name, micro=micro), _bare(name)[0])


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    processes = Processes.join("cpu")
    for name in TOYS:
        for micro in (None, 1):
            state = _train(name, processes, micro)
            torch.save(state, Path(folder) / f"{name}-{micro}-{rank}.pt")
    torch.save(_train("heads", processes, 1, regularize=REGULARIZE), Path(folder) / f"regularized-{rank}.pt")
    processes.leave()


def test_two_processes_with_unequal_shares_change_nothing(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, args=(_free_port(), str(tmp_path)), nprocs=2)
    for name in TOYS:
        wanted = _bare(name)[0]
        for micro in (None, 1):
            for rank in (0, 1):
                state = torch.load(tmp_path / f"{name}-{micro}-{rank}.pt", weights_only=True)
                _same(state, wanted, 1e-9)
    alone = _train("heads", regularize=REGULARIZE)
    for rank in (0, 1):
        _same(torch.load(tmp_path / f"regularized-{rank}.pt", weights_only=True), alone, 1e-9)


def test_the_epoch_loss_is_the_mean_over_samples() -> None:
    seen: list[Event] = []
    _train("heads", listener=seen.append)
    task, model, _, x, targets = make("heads")
    done = [e for e in seen if isinstance(e, EpochDone)]
    assert len(done) == EPOCHS
    # With learning rate zero the epoch's mean equals the loss of the whole set at once.
    loader = ToyLoader(task, x, targets, BATCH)
    frozen = {"main": torch.optim.SGD(model.parameters(), lr=0.0)}
    events: list[Event] = []
    loop = Loop(
        task,
        model,
        frozen,
        lambda step: 1.0,
        loader,
        Plan(1),
        precision=Precision("fp64", torch.device("cpu"), False),
        stream=Stream({"l": events.append}),
    )
    loop.run()
    epoch = next(e for e in events if isinstance(e, EpochDone))
    out = model(x)
    for head in ("a", "b"):
        wanted = torch.nn.functional.cross_entropy(getattr(out, head), targets[head], ignore_index=-1)
        assert np.isclose(epoch.metrics[head], float(wanted.detach()), atol=1e-12)
