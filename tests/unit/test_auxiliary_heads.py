"""Losses of auxiliary heads: a part each, divided by the same counts, in training alone; the rest does not see them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.toys import ToyLoader
from torch import Tensor, nn
from torch.nn import functional as F

import opsin
from opsin.engine.distributed import Processes
from opsin.engine.loop import Loop, Plan
from opsin.engine.nonfinite import explain_nonfinite
from opsin.engine.precision import Precision
from opsin.engine.preflight import preflight
from opsin.export import trace
from opsin.models import Classified, ModelSpec, build
from opsin.recipe import Layer
from opsin.seeding import keys, torch_seeded
from opsin.task import Batch, as_arrays
from opsin.tasks.classify import Classify, ClassifySettings, HeadSettings

HEADS = (
    HeadSettings(name="kind", class_names=("a", "b", "c"), weight=0.7, class_weights=(1.0, 2.0, 0.5)),
    HeadSettings(name="traits", kind="multi", class_names=("x", "y")),
)
SAMPLES, SIZE, PIXELS = 11, 4, 4


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def task(*heads: HeadSettings, **given: Any) -> Classify:
    settings = {"image_size": (PIXELS, PIXELS), "channels": 1, "mean": (0.0,), "std": (1.0,), "small": True}
    return Classify(ClassifySettings.model_validate({"heads": heads or HEADS, "flip": False, **settings, **given}))


class Net(nn.Module):
    """Without batch statistics, so that micro-batches change nothing."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.trunk, self.fc = nn.Linear(PIXELS**2, 6), nn.Linear(6, 5)
        self.auxiliary = nn.ModuleList(nn.Linear(6, 5) for _ in range(count))

    def forward(self, images: Tensor) -> Classified:
        x = torch.tanh(self.trunk(images.flatten(1)))
        return Classified(self.fc(x), tuple(one(x) for one in self.auxiliary) if self.training else ())


def _made(count: int) -> tuple[Net, Tensor, dict[str, Tensor]]:
    with torch_seeded("auxiliary", count):
        model, x = Net(count).double(), torch.randn(SAMPLES, 1, PIXELS, PIXELS, dtype=torch.float64)
        kind = torch.randint(-1, 3, (SAMPLES,))
        traits = torch.randint(0, 2, (SAMPLES, 2)).double()
        traits[torch.rand(SAMPLES, 2) < 0.4] = torch.nan
    return model, x, {"kind": kind, "traits": traits}


def _by_hand(count: int, weight: float) -> dict[str, Tensor]:
    """The same training, written directly with torch's own means."""
    model, x, targets = _made(count)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for start in range(0, SAMPLES, SIZE):
        at = slice(start, start + SIZE)
        output = model(x[at])
        total = torch.zeros((), dtype=torch.float64)
        for logits, factor in [(output.logits, 1.0), *((one, weight) for one in output.auxiliary)]:
            kind = F.cross_entropy(
                logits[:, :3], targets["kind"][at], torch.tensor([1.0, 2.0, 0.5]).double(), ignore_index=-1
            )
            known = ~targets["traits"][at].isnan()
            traits = F.binary_cross_entropy_with_logits(logits[:, 3:][known], targets["traits"][at][known])
            total = total + factor * (0.7 * kind + traits)
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
    return model.state_dict()


def _by_loop(
    count: int, micro: int | None = None, processes: Processes | None = None, **given: Any
) -> dict[str, Tensor]:
    model, x, targets = _made(count)
    work = task(**given)
    loader = ToyLoader(work, x, targets, SIZE, processes)  # type: ignore[arg-type]
    loader.task = Collating()  # type: ignore[assignment]
    Loop(
        work, model, {"main": torch.optim.SGD(model.parameters(), lr=0.1)}, lambda step: 1.0, loader,
        Plan(1, micro_batch=micro), precision=Precision("fp64", torch.device("cpu"), False), processes=processes,
    ).run()  # fmt: skip
    return model.state_dict()


class Collating:
    """Puts prepared tensors into a batch as they are."""

    def collate(self, samples: Any, given: Any) -> Batch:
        targets = {name: torch.stack([one.target[name] for one in samples]) for name in ("kind", "traits")}
        return Batch(torch.stack([one.inputs for one in samples]), targets, [], [], [one.id for one in samples], given)


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("micro", [None, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_equals_a_bare_loop_with_any_micro_batch(count: int, micro: int | None) -> None:
    """Three heads are one more than are counted beforehand."""
    assert _distance(_by_loop(count, micro), _by_hand(count, 0.3)) < 1e-7  # weights of classes are in float32


def test_the_weight_counts() -> None:
    assert _distance(_by_loop(2, auxiliary_weight=1.1), _by_hand(2, 1.1)) < 1e-7
    assert _distance(_by_loop(2, auxiliary_weight=1.1), _by_hand(2, 0.3)) > 1e-3


def _worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    processes = Processes.join("cpu")
    for count in (2, 3):
        for micro in (None, 1):
            torch.save(_by_loop(count, micro, processes), Path(folder) / f"{count}-{micro}-{rank}.pt")
    processes.leave()


def test_two_processes_with_unequal_shares_change_nothing(tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    torch.multiprocessing.spawn(_worker, args=(port, str(tmp_path)), nprocs=2)
    for count in (2, 3):
        wanted = _by_loop(count)
        for path in tmp_path.glob(f"{count}-*.pt"):
            assert _distance(torch.load(path, weights_only=True), wanted) < 1e-9
    assert len(list(tmp_path.iterdir())) == 8


# The others that look at a model --------------------------------------------------------------------------------------


def _googlenet() -> tuple[Classify, nn.Module, Batch]:
    labels = HeadSettings(name="label", class_names=("a", "b", "c"))
    work = task(labels, image_size=(40, 40), channels=3, mean=(0.5,) * 3, std=(0.3,) * 3, augment_preset="plain")
    with torch_seeded("googlenet"):
        model = build(ModelSpec("googlenet", {"width": 0.125, "auxiliary": True}, 3, 3, (40, 40)))
        images = torch.randint(0, 256, (8, 3, 40, 40), dtype=torch.uint8)
    batch = Batch(
        images, {"label": torch.arange(8) % 3}, [], [], [f"{i}.png" for i in range(8)], keys(0, 0, np.arange(8))
    )
    return work, work.assemble(model), batch


def test_preflight_finds_nothing_wrong() -> None:
    work, model, batch = _googlenet()
    found = preflight(
        work, model, batch, {"main": torch.optim.SGD(model.parameters())},
        precision=Precision("fp32", torch.device("cpu"), False),
    )  # fmt: skip
    assert [note for note in found if note.level != "info"] == []


def test_preflight_names_auxiliary_heads_that_no_loss_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check before would also pass if the heads gave no loss at all and nobody looked."""
    work, model, batch = _googlenet()
    whole = type(model.net).forward
    monkeypatch.setattr(type(model.net), "forward", lambda self, x: Classified(whole(self, x).logits))
    found = preflight(
        work, model, batch, {"main": torch.optim.SGD(model.parameters())},
        precision=Precision("fp32", torch.device("cpu"), False),
    )  # fmt: skip
    unused = next(note for note in found if note.code == "no-gradient")
    assert {name.split(".")[1] for name in unused.data["parameters"]} == {"aux1", "aux2"}


def test_a_loss_that_is_not_finite_is_traced_to_the_auxiliary_head() -> None:
    work, model, batch = _googlenet()
    model.train()
    assert set(work.training_step(model, batch, "main")) == {"label", "label.auxiliary1", "label.auxiliary2"}
    with torch.no_grad():
        model.net.aux2.fc1.weight.fill_(3e38)
    loss = work.training_step(model, batch, "main")
    error = explain_nonfinite(work, model, batch, "main", 4, loss, Precision("fp32", torch.device("cpu"), False))
    assert "at step 5 (label.auxiliary2). The first layer with such values is 'net.aux2.fc1'" in str(error)
    assert "which sample causes it cannot be told" in str(error)
    assert "0.png" in str(error)
    assert model.training


def test_one_sample_that_breaks_the_main_loss_is_still_named() -> None:
    work, model, batch = _googlenet()
    images = batch.inputs.float()
    images[5] = torch.nan
    model.train()
    batch.inputs = images
    loss = work.training_step(model, batch, "main")
    error = explain_nonfinite(work, model, batch, "main", 0, loss, Precision("fp32", torch.device("cpu"), False))
    assert "1 of the 8 samples cause it: 5.png" in str(error)


def test_evaluation_and_export_see_the_logits_alone() -> None:
    work, model, batch = _googlenet()
    assert set(as_arrays(model.train()(batch.inputs))) == {"logits"}
    assert set(work.training_step(model.eval(), batch, "main")) == {"label"}
    traced = trace(work, model)
    assert traced.outputs == ("logits",)
    program = traced.program.module()
    (logits,) = program(batch.inputs[:3])
    torch.testing.assert_close(logits, model(batch.inputs[:3]).logits, rtol=1e-5, atol=1e-5)


def test_a_run_with_auxiliary_heads(tmp_path: Path) -> None:
    from opsin.run import start

    rng = np.random.default_rng(0)
    for i in range(30):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    settings = {
        "data": {"path": str(tmp_path / "data"), "workers": 0},
        "model": {"name": "googlenet", "kwargs": {"width": 0.0625, "auxiliary": True}},
        "run": {"epochs": 1, "batch_size": 12, "micro_batch": 6, "threads": 1, "listeners": ["jsonl"]},
    }
    start("classify", [Layer("test", settings)], out=str(tmp_path / "run"), quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line.get("loss", {})}
    assert names == {"label", "label.auxiliary1", "label.auxiliary2"}
    bundle = opsin.load(tmp_path / "run")
    assert bundle.predict(tmp_path / "data" / "a" / "0.png").heads[0].class_names == ("a", "b")
