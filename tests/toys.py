"""Five toy tasks that bend the engine in all the ways that real ones will: the contract is proven on them first.

Each comes with `reference_loss`: the loss of a whole global batch written directly, without parts, counts or engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin import seeding
from opsin.engine.distributed import Processes
from opsin.results.rows import Rows
from opsin.task import Batch, Geometry, Loss, Monitor, Part, Prepared, Sample, Task, TaskSettings

DIM = 6


class Toy(Task[TaskSettings]):
    """What the five have in common: vectors as inputs, nothing to predict."""

    @classmethod
    def infer(cls, data: Any, indices: Any, given: Mapping[str, Any]) -> TaskSettings:
        return TaskSettings()

    @property
    def model_facts(self) -> dict[str, Any]:
        return {}

    def prepare(self, sample: Sample, key: int, train: bool) -> Prepared:
        geometry = Geometry((1, 1), (1, 1))
        return Prepared(sample.id, sample.image, sample.target, geometry, sample.target)

    def collate(self, samples: Sequence[Prepared], keys: seeding.Keys) -> Batch:
        targets = {name: torch.stack([s.target[name] for s in samples]) for name in samples[0].target}
        return Batch(
            torch.stack([s.inputs for s in samples]),
            targets,
            [s.geometry for s in samples],
            [s.original for s in samples],
            [s.id for s in samples],
            keys,
        )

    def predict_step(self, outputs: Mapping[str, Any], ids: Sequence[str], geometry: Sequence[Geometry]) -> list[Any]:
        return list(ids)

    def score(self, result: Any, target: Mapping[str, Any]) -> dict[str, Any]:
        return {"id": result}

    def summarize(self, rows: Rows, weights: Any = None) -> dict[str, Any]:
        return {"count": np.asarray(len(rows))}

    @property
    def monitor(self) -> Monitor:
        return Monitor("count")

    def example_inputs(self, batch_size: int = 1) -> Tensor:
        return torch.zeros(batch_size, DIM)


# Several heads with missing labels: a count per head, known from the targets ------------------------------------------


class HeadsOut(NamedTuple):
    a: Tensor
    b: Tensor


class HeadsNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.a, self.b = nn.Linear(DIM, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> HeadsOut:
        h = torch.tanh(self.trunk(x))
        return HeadsOut(self.a(h), self.b(h))


class Heads(Toy):
    def counts(self, batch: Batch, phase: str) -> dict[str, float]:
        return {name: float((batch.targets[name] >= 0).sum()) for name in ("a", "b")}

    def training_step(self, model: nn.Module, batch: Batch, phase: str) -> Loss:
        out = model(batch.inputs)
        loss = {}
        for name, weight in (("a", 1.0), ("b", 0.3)):
            target = batch.targets[name]
            total = F.cross_entropy(getattr(out, name), target, ignore_index=-1, reduction="sum")
            loss[name] = Part(total, float((target >= 0).sum()), weight)
        return loss


def heads_reference(model: nn.Module, x: Tensor, t: dict[str, Tensor], phase: str) -> Tensor:
    out = model(x)
    return F.cross_entropy(out.a, t["a"], ignore_index=-1) + 0.3 * F.cross_entropy(out.b, t["b"], ignore_index=-1)


# Set loss: matched boxes are counted over the whole batch ----------------------------------------------------------------


class SetOut(NamedTuple):
    logits: Tensor
    boxes: Tensor


class SetNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes, self.boxes = nn.Linear(DIM, 8), nn.Linear(8, 4), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> SetOut:
        h = torch.tanh(self.body(x))
        return SetOut(self.classes(h), self.boxes(h).view(len(x), 4, 2))


def _match(boxes: Tensor, wanted: Tensor) -> list[tuple[int, int]]:
    taken: list[tuple[int, int]] = []
    for j in range(len(wanted)):
        free = [q for q in range(len(boxes)) if q not in [i for i, _ in taken]]
        cost = (boxes[free] - wanted[j]).abs().sum(-1)
        taken.append((free[int(cost.argmin())], j))
    return taken


def _set_sums(out: SetOut, targets: dict[str, Tensor]) -> tuple[Tensor, Tensor, float]:
    present = torch.zeros_like(out.logits)
    distance = out.boxes.sum() * 0.0
    count = 0.0
    for i in range(len(out.logits)):
        wanted = targets["boxes"][i][: int(targets["number"][i])]
        for query, j in _match(out.boxes[i].detach(), wanted):
            present[i, query] = 1.0
            distance = distance + (out.boxes[i, query] - wanted[j]).abs().sum()
            count += 1.0
    return F.binary_cross_entropy_with_logits(out.logits, present, reduction="sum"), distance, count


class SetLoss(Toy):
    def counts(self, batch: Batch, phase: str) -> dict[str, float]:
        return {"classes": 4.0 * len(batch), "boxes": float(batch.targets["number"].sum())}

    def training_step(self, model: nn.Module, batch: Batch, phase: str) -> Loss:
        classes, distance, count = _set_sums(model(batch.inputs), batch.targets)
        return {"classes": Part(classes, 4.0 * len(batch)), "boxes": Part(distance, count, 5.0)}


def set_reference(model: nn.Module, x: Tensor, t: dict[str, Tensor], phase: str) -> Tensor:
    classes, distance, count = _set_sums(model(x), t)
    return classes / (4.0 * len(x)) + 5.0 * distance / count


# Two stages: how many proposals are kept depends on the outputs, so the count is known only after the forward pass -------


class StageOut(NamedTuple):
    objectness: Tensor
    values: Tensor


class StageNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(DIM, 3), nn.Linear(DIM, 3)

    def forward(self, x: Tensor) -> StageOut:
        return StageOut(self.first(x), self.second(x))


def _stage_sums(out: StageOut, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first = F.binary_cross_entropy_with_logits(out.objectness, (target > 0).to(target.dtype), reduction="sum")
    kept = (out.objectness.detach() > 0).to(target.dtype)
    return first, (kept * (out.values - target) ** 2).sum(), kept.sum()


class TwoStage(Toy):
    def counts(self, batch: Batch, phase: str) -> dict[str, float]:
        return {"first": 3.0 * len(batch)}

    def training_step(self, model: nn.Module, batch: Batch, phase: str) -> Loss:
        first, second, kept = _stage_sums(model(batch.inputs), batch.targets["y"])
        return {"first": Part(first, 3.0 * len(batch)), "second": Part(second, kept, 2.0)}


def stage_reference(model: nn.Module, x: Tensor, t: dict[str, Tensor], phase: str) -> Tensor:
    first, second, kept = _stage_sums(model(x), t["y"])
    return first / (3.0 * len(x)) + 2.0 * second / kept.clamp(min=1)


# A GAN: two phases with an optimizer each, noise from sample keys -----------------------------------------------------------


class GanOut(NamedTuple):
    real: Tensor
    fake: Tensor


class GanNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = nn.Linear(2, DIM), nn.Linear(DIM, 1)

    def forward(self, x: Tensor, noise: Tensor, phase: str) -> GanOut:
        fake = self.generator(noise)
        if phase == "discriminator":
            fake = fake.detach()
        return GanOut(self.discriminator(x), self.discriminator(fake))


def _noise(keys: seeding.Keys, phase: str, like: Tensor) -> Tensor:
    return torch.from_numpy(seeding.normal(keys, f"noise-{phase}", 2)).to(like)


class Gan(Toy):
    phases: ClassVar[tuple[str, ...]] = ("discriminator", "generator")

    def parameters(self, model: nn.Module, phase: str) -> Iterable[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in model.named_parameters() if n.startswith(phase)]

    def training_step(self, model: nn.Module, batch: Batch, phase: str) -> Loss:
        out = model(batch.inputs, noise=_noise(batch.keys, phase, batch.inputs), phase=phase)
        n = float(len(batch))
        if phase == "generator":
            return {"generator": Part(F.softplus(-out.fake).sum(), n)}
        return {"real": Part(F.softplus(-out.real).sum(), n), "fake": Part(F.softplus(out.fake).sum(), n)}


def gan_reference(model: nn.Module, x: Tensor, t: dict[str, Tensor], phase: str) -> Tensor:
    out = model(x, noise=_noise(t["keys"], phase, x), phase=phase)  # type: ignore[arg-type]
    if phase == "generator":
        return F.softplus(-out.fake).mean()
    return F.softplus(-out.real).mean() + F.softplus(out.fake).mean()


# Contrastive: every sample meets every other of the global batch ---------------------------------------------------------


class EmbedOut(NamedTuple):
    embedding: Tensor


class EmbedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(DIM, 4)

    def forward(self, x: Tensor) -> EmbedOut:
        return EmbedOut(F.normalize(self.layer(x), dim=1))


class Contrastive(Toy):
    coupled: ClassVar[bool] = True

    def training_step(self, model: nn.Module, batch: Batch, phase: str) -> Loss:
        own = model(batch.inputs).embedding
        every, labels = self.gather(own), self.gather(batch.targets["y"].to(own)).long()
        logits = own @ every.T / 0.5
        same = (batch.targets["y"][:, None] == labels[None]).to(own)
        total = -(same * F.log_softmax(logits, dim=1)).sum()
        return {"contrastive": Part(total, same.sum())}


def contrastive_reference(model: nn.Module, x: Tensor, t: dict[str, Tensor], phase: str) -> Tensor:
    own = model(x).embedding
    same = (t["y"][:, None] == t["y"][None]).to(own)
    return -(same * F.log_softmax(own @ own.T / 0.5, dim=1)).sum() / same.sum()


Reference = Callable[[nn.Module, Tensor, dict[str, Tensor], str], Tensor]


def _heads_targets(g: torch.Generator, n: int) -> dict[str, Tensor]:
    a, b = torch.randint(-1, 3, (n,), generator=g), torch.randint(-1, 2, (n,), generator=g)
    a[:2], b[:2] = torch.tensor([0, 1]), torch.tensor([1, 0])
    return {"a": a, "b": b}


def _set_targets(g: torch.Generator, n: int) -> dict[str, Tensor]:
    return {
        "boxes": torch.randn(n, 3, 2, generator=g, dtype=torch.float64),
        "number": torch.randint(1, 4, (n,), generator=g),
    }


TOYS: dict[str, tuple[type[Toy], type[nn.Module], Reference, Callable[[torch.Generator, int], dict[str, Tensor]]]] = {
    "heads": (Heads, HeadsNet, heads_reference, _heads_targets),
    "set": (SetLoss, SetNet, set_reference, _set_targets),
    "two-stage": (
        TwoStage,
        StageNet,
        stage_reference,
        lambda g, n: {"y": torch.randn(n, 3, generator=g, dtype=torch.float64)},
    ),
    "gan": (Gan, GanNet, gan_reference, lambda g, n: {"y": torch.zeros(n)}),
    "contrastive": (
        Contrastive,
        EmbedNet,
        contrastive_reference,
        lambda g, n: {"y": torch.randint(0, 3, (n,), generator=g)},
    ),
}


class ToyLoader:
    """Global batches of `size` in order; a rank takes a deliberately unequal share (the first gets more)."""

    def __init__(
        self,
        task: Toy,
        x: Tensor,
        targets: dict[str, Tensor],
        size: int,
        processes: Processes | None = None,
        seed: int = 0,
    ) -> None:
        self.task, self.x, self.targets, self.size, self.seed = task, x, targets, size, seed
        self.processes = processes or Processes()
        self.steps_per_epoch, self.samples_per_epoch = -(-len(x) // size), len(x)

    def positions(self, step: int) -> np.ndarray:
        return np.arange(step * self.size, min((step + 1) * self.size, len(self.x)))

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for step in range(start, self.steps_per_epoch):
            positions = self.positions(step)
            if self.processes.world == 2:
                cut = len(positions) - max(1, len(positions) // 3)
                positions = positions[:cut] if self.processes.rank == 0 else positions[cut:]
            keys = seeding.keys(self.seed, number, positions)
            samples = [
                Prepared(str(i), self.x[i], {n: t[i] for n, t in self.targets.items()}, Geometry((1, 1), (1, 1)), {})
                for i in positions
            ]
            yield self.task.collate(samples, keys)


def make(name: str, samples: int = 11) -> tuple[Toy, nn.Module, Reference, Tensor, dict[str, Tensor]]:
    """A toy task, its model (double precision, fixed weights), the reference loss, and data."""
    kind, net, reference, targets = TOYS[name]
    g = torch.Generator().manual_seed(5)
    with seeding.torch_seeded("toy", name):
        model = net().double()
    return (
        kind(TaskSettings()),
        model,
        reference,
        torch.randn(samples, DIM, generator=g, dtype=torch.float64),
        targets(g, samples),
    )
