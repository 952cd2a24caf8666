"""Pictures, objects and weights on which DETRs are compared with those of transformers."""

from __future__ import annotations

import torch
from tests.oracles.comparing import randomize
from torch import Tensor, nn
from torchvision.ops import box_convert

from opsin.models.detectors import Targets

TOLERANCE = 1e-4  # of the largest value of the tensor compared
TOLERANCE_IN_DOUBLE = 1e-6


def random_targets(size: tuple[int, int], counts: tuple[int, ...], num_classes: int, seed: int = 0) -> Targets:
    """Objects of pictures of `size` (H, W), as many as `counts` says for each."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([size[1], size[0], size[1], size[0]])
    boxes, labels = [], []
    for count in counts:
        center = torch.rand(count, 2, generator=generator) * 0.6 + 0.2
        side = torch.rand(count, 2, generator=generator) * 0.3 + 0.08
        boxes.append(box_convert(torch.cat([center, side], 1), "cxcywh", "xyxy") * scale)
        labels.append(torch.randint(0, num_classes, (count,), generator=generator))
    return Targets(boxes, labels)


def as_theirs(targets: Targets, size: tuple[int, int]) -> list[dict[str, Tensor]]:
    """The same objects as transformers wants them."""
    scale = torch.tensor([size[1], size[0], size[1], size[0]])
    return [
        {"class_labels": labels, "boxes": box_convert(boxes / scale, "xyxy", "cxcywh")}
        for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
    ]


def randomized(theirs: nn.Module, seed: int = 0) -> nn.Module:
    """Their network with weights that make every part matter: offsets of the attention, boxes that are refined."""
    generator = torch.Generator().manual_seed(seed)
    kept = {name: value.clone() for name, value in theirs.named_parameters() if name.endswith((".up", ".reg_scale"))}
    randomize(theirs, generator)
    with torch.no_grad():
        for name, value in [*theirs.named_parameters(), *theirs.named_buffers()]:
            if name in kept:
                value.copy_(kept[name])
            elif "norm" in name and name.endswith(".weight"):
                value.uniform_(0.5, 1.2, generator=generator)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("class_embed.weight", "class_embed.bias")) or "sampling_offsets.weight" in name:
                value.mul_(0.3)
    return theirs


def taken_over(ours: nn.Module, theirs: nn.Module) -> dict[str, str]:
    """Load their weights, every one of them; returns our name of each of their parameters."""
    state = theirs.state_dict()
    adapted, _ = ours.adapt_state(state)  # type: ignore[operator]
    own = ours.state_dict()
    missing = [name for name in own if name not in adapted and not name.endswith("num_batches_tracked")]
    assert not missing, missing
    assert not [name for name in adapted if name not in own]
    ours.load_state_dict(adapted, strict=False)
    marked = {name: torch.full((), i) for i, name in enumerate(state)}
    names = list(state)
    return {names[int(place)]: name for name, place in ours.adapt_state(marked)[0].items()}  # type: ignore[operator]


def assert_near(found: Tensor | None, expected: Tensor | None, what: str, least: float = 0.0) -> None:
    """The largest difference is at most that share of the largest value, or of `least` where that is more."""
    assert found is not None, f"{what}: missing in ours"
    assert expected is not None, f"{what}: missing in the oracle"
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)}, expected {tuple(expected.shape)}"
    scale = max(float(expected.detach().abs().max()), least)
    difference = float((found - expected).detach().abs().max())
    tolerance = TOLERANCE_IN_DOUBLE if expected.dtype == torch.float64 else TOLERANCE
    assert difference <= tolerance * scale, f"{what}: differs by {difference:.1e}; the largest value is {scale:.1e}"


def assert_same_gradients(ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> None:
    """Every parameter that has a gradient in one has the same in the other."""
    own = dict(ours.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    compared = 0
    for name, parameter in theirs.named_parameters():
        if name not in names or names[name] not in own:  # second names of shared heads; buffers of ours
            continue
        found = own[names[name]].grad
        if parameter.grad is None:
            assert found is None or not found.any(), name
            continue
        assert_near(found, parameter.grad, f"gradient of {name}", least=1e-4 * largest)
        compared += 1
    assert compared == sum(p.grad is not None for p in own.values())
