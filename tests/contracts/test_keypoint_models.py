"""What every keypoint network and the localizer promise: shapes, decoding, losses, gradients, export, parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import TINY
from torch.nn import functional as F

from opsin.errors import ConfigError, ShapeError
from opsin.models import ModelSpec, answer_of, build, models
from opsin.models.detectors.localizer import Localizer
from opsin.models.keypoints.heatmap_net import HeatmapNet, gaussians, peaks, smoothed
from opsin.models.keypoints.mtfl_net import ATTRIBUTES, MTFLNet
from opsin.models.keypoints.regression_net import RegressionNet, measured
from opsin.models.keypoints.simcc_net import Raw as SimCCRaw
from opsin.models.keypoints.simcc_net import SimCCNet
from opsin.models.trunk import Trunk

SMALL = {"backbone_kwargs": {"width": 8}}
LOCATING = [name for name in models if answer_of(name) == "located"]


def net(name: str, points: int = 5, size: tuple[int, int] = (64, 96), **kwargs: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(ModelSpec(name, {**TINY[name].kwargs, **kwargs}, 3, 1, size, "located", points))


@pytest.mark.parametrize("name", LOCATING)
def test_shapes_scores_and_modes(name: str) -> None:
    model = net(name)
    images = torch.randn(3, 3, 64, 96)
    for mode in (True, False):
        found = model.train(mode)(images)
        assert found.points.shape == (3, 5, 2)
        assert found.scores.shape == (3, 5)
        assert found.losses is None
        assert bool(((found.scores >= 0) & (found.scores <= 1)).all())
    alone = torch.cat([model(image[None]).points for image in images])
    torch.testing.assert_close(alone, found.points, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", LOCATING)
def test_losses_reach_every_parameter_and_leave_unlabeled_points_out(name: str) -> None:
    model = net(name)
    images = torch.randn(4, 3, 64, 96)
    points = torch.rand(4, 5, 3) * torch.tensor([96.0, 64, 0]) + torch.tensor([0.0, 0, 2])
    found = model(images, {"points": list(points)}).losses
    total = sum(part.weight * part.sum / part.count for part in found.values())
    total.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    points[1, 2, 2] = 0
    model.eval()
    before = model(images, {"points": points}).losses
    moved = points.clone()
    moved[1, 2, :2] = 7.0
    after = model(images, {"points": moved}).losses
    for part in before:
        assert torch.equal(before[part].sum, after[part].sum)
    main = next(iter(before.values()))
    assert float(main.count) == 19


@pytest.mark.parametrize("name", LOCATING)
def test_wrong_number_of_points_is_refused(name: str) -> None:
    with pytest.raises(ShapeError, match="points"):
        net(name)(torch.randn(2, 3, 64, 96), {"points": torch.zeros(2, 4, 3)})


@pytest.mark.parametrize("name", LOCATING)
def test_export(name: str) -> None:
    model = net(name).eval()
    images = torch.randn(2, 3, 64, 96)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images,), dynamic_shapes={"images": {0: batch}})
    others = torch.randn(3, 3, 64, 96)
    torch.testing.assert_close(program.module()(others).points, model(others).points, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["heatmap_net", "simcc_net", "regression_net"])
def test_points_of_few_pictures_are_learned_by_heart(name: str) -> None:
    model = net(name, 3)
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 64, 96, generator=draws)
    points = torch.rand(4, 3, 3, generator=draws) * torch.tensor([80.0, 48, 0]) + torch.tensor([8.0, 8, 2])
    steps = 200 if name == "simcc_net" else 120
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps) + 1e-5
        loss = next(iter(model(images, {"points": points}).losses.values()))
        optimizer.zero_grad()
        (loss.sum / loss.count).backward()
        optimizer.step()
    error = (model(images).points - points[..., :2]).norm(dim=-1)
    assert float(error.max()) < 4.0, error


# Heat maps ---------------------------------------------------------------------------------------------------------------


def test_heat_maps_give_points_back_to_a_hundredth_of_a_pixel() -> None:
    draws = torch.Generator().manual_seed(0)
    points = torch.rand(8, 17, 2, generator=draws) * torch.tensor([192.0, 256.0])
    points[0, 0], points[0, 1] = torch.tensor([0.0, 0.0]), torch.tensor([192.0, 256.0])
    maps = gaussians(points, torch.Size((64, 48)), (256, 192), 2.0)
    assert float(((peaks(maps) + 0.5) * 4 - points).abs().max()) < 0.01
    inner = (points > 40).all(-1) & (points < torch.tensor([152.0, 216.0])).all(-1)
    assert int(inner.sum()) > 20
    away = ((peaks(smoothed(maps, 2.0)) + 0.5) * 4 - points).abs().amax(-1)
    assert float(away[inner].max()) < 0.02


def test_a_gaussian_in_closed_form() -> None:
    maps = gaussians(torch.tensor([[[10.0, 6.0]]]), torch.Size((8, 8)), (32, 32), 2.0)[0, 0]
    # The point lies in the middle of cell (1, 2): 6 / 4 - 1 / 2 = 1 and 10 / 4 - 1 / 2 = 2.
    assert float(maps[1, 2]) == pytest.approx(1.0)
    assert float(maps[4, 6]) == pytest.approx(math.exp(-(3**2 + 4**2) / 8))


def test_an_empty_map_has_loss_one_and_a_flat_one_no_place_between_cells() -> None:
    model = HeatmapNet(1, 3, (64, 64), **SMALL)
    points = torch.tensor([[[32.0, 32.0, 2.0]]])
    raw = model.raw(torch.zeros(1, 3, 64, 64))._replace(maps=torch.zeros(1, 1, 32, 32))
    part = model.losses(raw, {"points": points}, (64, 64))["heat_map"]
    assert float(part.sum / part.count) == pytest.approx(1.0, abs=1e-3)
    assert torch.equal(peaks(torch.zeros(1, 1, 8, 8)), torch.zeros(1, 1, 2))


def test_heat_map_network_has_the_published_number_of_parameters() -> None:
    model = HeatmapNet(17, backbone="resnet50")
    assert sum(p.numel() for p in model.parameters()) == 33_999_697


def test_sizes_and_trunks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 32"):
        HeatmapNet(3, 3, (100, 100))
    with pytest.raises(ConfigError, match="feature pyramid"):
        HeatmapNet(3, 3, (64, 64), backbone="linear")
    with pytest.raises(ConfigError, match=r"expected one of \[2\]"):
        Trunk("resnet18", None, 3, (64, 64), (2,))


# SimCC, regression, MTFL -------------------------------------------------------------------------------------------------


def test_simcc_reads_places_between_bins() -> None:
    model = SimCCNet(4, 3, (64, 96), **SMALL)
    points = torch.tensor([[[10.3, 20.7], [95.6, 0.3], [0.2, 63.9], [48.0, 32.0]]])

    def logits(axis: int, bins: int, side: int) -> torch.Tensor:
        middles = torch.arange(bins) + 0.5
        return -((middles - points[..., axis : axis + 1] * bins / side) ** 2) / (2 * 6.0**2)

    raw = SimCCRaw(logits(0, 192, 96), logits(1, 128, 64))
    found, scores = model.decode(raw, (64, 96))
    torch.testing.assert_close(found, points, rtol=0, atol=1e-3)
    assert float(scores.min()) > 0.9
    # The best that can be said is the target itself.
    seen = torch.cat([points, torch.full((1, 4, 1), 2.0)], -1)
    assert float(model.losses(raw, {"points": seen}, (64, 96))["simcc"].sum) == pytest.approx(0.0, abs=1e-4)


def test_losses_of_coordinates() -> None:
    apart = torch.tensor([-30.0, -10.0, -0.5, 0.0, 0.3, 1.0, 9.9, 12.0])
    zeros = torch.zeros_like(apart)
    torch.testing.assert_close(measured(apart, "l1"), F.l1_loss(apart, zeros, reduction="none"))
    torch.testing.assert_close(measured(apart, "smooth_l1"), F.smooth_l1_loss(apart, zeros, reduction="none"))
    torch.testing.assert_close(measured(apart, "l2"), F.mse_loss(apart, zeros, reduction="none"))
    wing = [10 * math.log(1 + abs(d) / 2) if abs(d) < 10 else abs(d) - (10 - 10 * math.log(6)) for d in apart.tolist()]
    torch.testing.assert_close(measured(apart, "wing"), torch.tensor(wing))


def test_regressed_points_may_lie_outside() -> None:
    model = RegressionNet(1, 3, (64, 64), **SMALL).eval()
    with torch.no_grad():
        model.places.weight.zero_()
        model.places.bias.copy_(torch.tensor([-0.75, 0.9]))
    found = model(torch.randn(1, 3, 64, 64)).points[0, 0]
    torch.testing.assert_close(found, torch.tensor([-16.0, 89.6]))


def test_textbook_face_network() -> None:
    model = MTFLNet(attributes=ATTRIBUTES)
    assert sum(p.numel() for p in model.parameters()) == 1_732_709
    images, points = torch.randn(3, 1, 40, 40), torch.rand(3, 5, 3) + 1
    attributes = {name: torch.tensor([0, 1, -1]) for name in ATTRIBUTES}
    model.eval()
    found = model(images, {"points": points, **attributes}).losses
    assert set(found) == {"points", *ATTRIBUTES}
    smile = F.cross_entropy(model.attributes(images)["smile"][:2], torch.tensor([0, 1]))
    torch.testing.assert_close(found["smile"].sum / found["smile"].count, smile)
    shares = model(images).points / 40
    expected = 0.5 * ((shares - points[..., :2] / 40) ** 2).sum(-1).mean()
    torch.testing.assert_close(found["points"].sum / found["points"].count, expected)


# The localizer -----------------------------------------------------------------------------------------------------------


def test_textbook_localizer() -> None:
    model = Localizer(1, 3, (240, 320), backbone="textbook")
    assert sum(p.numel() for p in model.parameters()) == 296_933
    found = model.eval()(torch.randn(2, 3, 240, 320))
    assert found.boxes.shape == (2, 1, 4)
    assert float(found.overlap) == 1.0
    assert found.labels.tolist() == [[0], [0]]


@pytest.mark.parametrize("kind", ["huber", "smooth_l1", "l1", "l2"])
def test_loss_of_the_localizer_is_presence_plus_ratio_times_location(kind: Any) -> None:
    torch.manual_seed(0)
    model = Localizer(3, 3, (64, 96), box_loss=kind, delta=0.1, **SMALL).eval()
    images = torch.randn(4, 3, 64, 96)
    boxes = [
        torch.tensor([[0.0, 0, 9, 9], [8, 8, 60, 50]]),
        torch.zeros(0, 4),
        torch.tensor([[30.0, 10, 90, 60]]),
        torch.zeros(0, 4),
    ]
    labels = [
        torch.tensor([0, 2]),
        torch.zeros(0, dtype=torch.long),
        torch.tensor([1]),
        torch.zeros(0, dtype=torch.long),
    ]
    found = model(images, {"boxes": boxes, "labels": labels}).losses
    total = sum(part.weight * part.sum / part.count for part in found.values())
    raw = model.raw(images)
    sides = torch.tensor([96.0, 64, 96, 64])
    wanted = torch.stack([boxes[0][1], boxes[2][0]]) / sides
    difference = {"huber": F.huber_loss, "smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss, "l2": F.mse_loss}[kind]
    own = {"huber": {"delta": 0.1}, "smooth_l1": {"beta": 0.1}}.get(kind, {})
    box = difference(raw.edges[[0, 2]], wanted, reduction="none", **own).sum(1).mean()
    label = F.cross_entropy(raw.classes[[0, 2]], torch.tensor([2, 1]))
    presence = F.binary_cross_entropy_with_logits(raw.presence, torch.tensor([1.0, 0, 1, 0]))
    torch.testing.assert_close(total, presence + 0.5 * (label + box))
    assert float(found["left_out"].sum) == 1
    assert found["left_out"].weight == 0


def test_localizer_learns_one_box_and_its_class() -> None:
    torch.manual_seed(0)
    model = Localizer(2, 3, (64, 64), channels=8, **SMALL)
    images = torch.zeros(4, 3, 64, 64)
    spots = np.array([[8, 8, 24, 24], [32, 30, 60, 60], [4, 30, 40, 50]])
    for i, (left, top, right, bottom) in enumerate(spots.tolist()):
        images[i, i % 2, top:bottom, left:right] = 2.0
    boxes = [*(torch.tensor([box], dtype=torch.float32) for box in spots.tolist()), torch.zeros(0, 4)]
    labels = [*(torch.tensor([i % 2]) for i in range(3)), torch.zeros(0, dtype=torch.long)]
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(100):
        losses = model(images, {"boxes": boxes, "labels": labels}).losses
        optimizer.zero_grad()
        sum(part.weight * part.sum / part.count for part in losses.values()).backward()
        optimizer.step()
    found = model(images)
    assert float((found.boxes[:3, 0] - torch.cat(boxes)).abs().max()) < 5
    assert found.labels[:3, 0].tolist() == [0, 1, 0]
    assert bool((found.scores[:3] > 0.8).all())
    assert float(found.scores[3]) < 0.2


def test_localizer_exports() -> None:
    model = Localizer(3, 3, (64, 96), **SMALL).eval()
    program = torch.export.export(model, (torch.randn(2, 3, 64, 96),))
    images = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(program.module()(images).boxes, model(images).boxes)


def test_a_batch_without_objects_has_a_finite_loss_with_gradient() -> None:
    model = Localizer(3, 3, (64, 64), **SMALL)
    nothing = {"boxes": [torch.zeros(0, 4)] * 2, "labels": [torch.zeros(0, dtype=torch.long)] * 2}
    total = sum(
        part.weight * part.sum / part.count for part in model(torch.randn(2, 3, 64, 64), nothing).losses.values()
    )
    total.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
