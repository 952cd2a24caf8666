"""YOLOX against its published layout, torchvision's box losses, and slow scalar assignments written from the papers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou, complete_box_iou, generalized_box_iou, nms

from opsin.errors import ConfigError
from opsin.losses.set_prediction import varifocal
from opsin.models import ModelSpec, build
from opsin.models.detectors import Targets
from opsin.models.detectors.yolox import (
    BOX_LOSSES,
    YOLOX,
    decode_boxes,
    distribution_loss,
    encode,
    pairwise_iou,
    places_of,
    simota,
    task_aligned,
)

PUBLISHED = Path(__file__).with_name("yolox_published.json")
LAYOUT = Path(__file__).with_name("yolox_layout.txt")
SMALL = {"width": 0.125, "depth": 0.33}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small pictures are fastest on one thread, above all where tests share the processor with other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def _spec(name: str, classes: int = 80, size: tuple[int, int] = (64, 64), **kwargs: object) -> ModelSpec:
    return ModelSpec(name, kwargs, 3, classes, size, "detected")


def _lively(model: nn.Module) -> nn.Module:
    """Weights with which what flows keeps its size, so that no two places say nearly the same."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="linear")
            if "preds" in name:
                nn.init.normal_(parameter, std=0.5 / parameter.shape[1] ** 0.5)
    return model


def _places(height: int = 96, width: int = 64) -> Tensor:
    return torch.cat([places_of(height // s, width // s, s) for s in (8, 16, 32)])


def _boxes(*shape: int, size: tuple[int, int] = (96, 64), least: float = 6.0, most: float = 60.0) -> Tensor:
    """Random boxes (*shape, 4) xyxy whose centers lie in a picture of `size` (H, W)."""
    center = torch.rand(*shape, 2) * torch.tensor([size[1], size[0]])
    half = (torch.rand(*shape, 2) * (most - least) + least) / 2
    return torch.cat([center - half, center + half], -1)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("yolox_nano", 912_159),
        ("yolox_tiny", 5_055_855),
        ("yolox_s", 8_968_255),
        ("yolox_m", 25_326_495),
        ("yolox_l", 54_208_895),
        ("yolox_x", 99_071_455),
    ],
)
def test_published_parameter_counts(name, count):
    with torch.device("meta"):
        model = build(_spec(name), check=False)
    assert sum(p.numel() for p in model.parameters()) == count


def test_our_own_size_stays_below_a_megabyte_in_half_precision():
    model = build(_spec("yolox_pico", 3), check=False)
    assert sum(p.numel() for p in model.parameters()) == 411_200
    assert 2 * sum(value.numel() for value in model.state_dict().values()) < 1_000_000


def _layout(name: str) -> dict[str, tuple[int, ...]]:
    section = LAYOUT.read_text().split(f"[{name}]\n")[1].split("[")[0]
    found: dict[str, tuple[int, ...]] = {}
    for line in section.splitlines():
        layer, shape, then = line.split()
        found[f"{layer}.weight"] = tuple(int(n) for n in shape.split("x"))
        channels = found[f"{layer}.weight"][:1]
        if then == "+bias":
            found[f"{layer}.bias"] = channels
            continue
        norm = layer.removesuffix("conv") + "bn"
        found |= {f"{norm}.{part}": channels for part in ("weight", "bias", "running_mean", "running_var")}
        found[f"{norm}.num_batches_tracked"] = ()
    return found


@pytest.mark.parametrize("name", ["yolox_nano", "yolox_s"])
def test_published_names_and_shapes(name):
    model = build(_spec(name), check=False)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == _layout(name)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}


def _waves(model: nn.Module) -> None:
    """Weights from cosines, the same wherever they are computed."""
    with torch.no_grad():
        for k, (name, value) in enumerate(sorted(model.state_dict().items())):
            if not value.is_floating_point():
                continue
            steps = torch.arange(value.numel(), dtype=torch.float64)
            wave = torch.cos(steps * (1.0 + 0.37 * (k % 11)) + k).reshape(value.shape)
            if value.ndim == 4:
                value.copy_(wave * (2.0 / value[0].numel()) ** 0.5)
            elif name.endswith(("bn.weight", "running_var")):
                value.copy_(1 + 0.2 * wave)
            else:
                value.copy_(0.1 * wave)


@pytest.mark.parametrize("kind", ["plain", "depthwise"])
def test_published_code_says_the_same(kind):
    """`yolox_published.json` holds what the published code gave for these weights and pictures, in double precision."""
    published = json.loads(PUBLISHED.read_text())[kind]
    model = YOLOX(3, depthwise=kind == "depthwise", l1_weight=1.0, **SMALL).double()
    _waves(model)
    images = torch.sin(torch.arange(2 * 3 * 96 * 64, dtype=torch.float64) * 0.7071).reshape(2, 3, 96, 64) * 2
    images[:, :, ::3] += torch.cos(torch.arange(64, dtype=torch.float64))
    with torch.no_grad():
        raw = model.eval().raw(images)
    boxes = decode_boxes(raw.boxes, raw.places)
    low, high = boxes[..., :2], boxes[..., 2:]
    scores = [raw.objectness.sigmoid().unsqueeze(2), raw.classes.sigmoid()]
    every = torch.cat([(low + high) / 2, high - low, *scores], 2)
    for (picture, place), expected in zip(((0, 0), (0, 50), (1, 97), (1, 121), (0, 125)), published["outputs"]):
        assert every[picture, place].tolist() == pytest.approx(expected, abs=1e-6)

    rows = [[0, 20, 30, 24, 28], [2, 44, 70, 30, 20], [1, 30, 60, 9, 11], [1, 32, 48, 50, 70]]  # class, center, size
    labels, center, half = torch.tensor(rows).split([1, 2, 2], 1)
    objects = torch.cat([center - half / 2, center + half / 2], 1)
    targets = Targets([objects[:3], objects[3:]], [labels[:3, 0], labels[3:, 0]])
    losses = model.train()(images, targets).losses
    for name, part in losses.items():
        assert float(part.sum.detach() / part.count) == pytest.approx(published[name], rel=1e-6)
    assert {float(part.count) for part in losses.values()} == {4 * published["places_per_object"]}


def test_first_answers_are_at_the_prior():
    model = YOLOX(5, **SMALL)
    biases = [layer.bias for layer in [*model.head.cls_preds, *model.head.obj_preds]]
    assert all(torch.allclose(bias.sigmoid(), torch.tensor(0.01)) for bias in biases)


def test_encode_and_decode_are_inverse():
    places = _places()
    boxes = _boxes(len(places))
    assert torch.allclose(decode_boxes(encode(boxes, places), places), boxes, atol=1e-4)
    said = torch.tensor([[0.25, 0.5, math.log(2.0), math.log(4.0)]])
    place = torch.tensor([[3.0, 1.0, 16.0]])  # the cell from (48, 16) to (64, 32)
    assert decode_boxes(said, place).tolist() == [[pytest.approx(v) for v in (36.0, -8.0, 68.0, 56.0)]]


def test_distributions_over_distances():
    place = torch.tensor([[3.0, 1.0, 16.0]])  # middle (56, 24)
    logits = torch.full((1, 4, 8), -100.0)
    for side, distance in enumerate([1, 0, 3, 7]):
        logits[0, side, distance] = 100.0
    box = decode_boxes(logits.flatten(1), place)
    assert torch.allclose(box, torch.tensor([[40.0, 24.0, 104.0, 136.0]]))
    distances = torch.rand(5, 4) * 6.9
    best = torch.full((5, 4, 8), -30.0)  # logits of the two bins around a distance, in the shares that give it
    low = distances.floor().long()
    share = distances - low
    best.scatter_(2, low.unsqueeze(2), (1 - share).log().unsqueeze(2)).scatter_(
        2, low.unsqueeze(2) + 1, share.log().unsqueeze(2)
    )
    said = (best.softmax(2) * torch.arange(8)).sum(2)
    assert torch.allclose(said, distances, atol=1e-5)
    least = -(share * share.log() + (1 - share) * (1 - share).log()).mean(1)  # the entropy of the shares
    assert torch.allclose(distribution_loss(best, distances), least, atol=1e-5)
    assert (distribution_loss(best + torch.randn(5, 4, 8) / 5, distances) > least).all()


def test_box_losses_are_torchvisions():
    a, b = _boxes(200).double(), _boxes(200).double()
    iou = box_iou(a, b).diagonal()
    assert torch.allclose(BOX_LOSSES["iou"](a, b), 1 - iou**2, atol=1e-8)
    assert torch.allclose(BOX_LOSSES["giou"](a, b), 1 - generalized_box_iou(a, b).diagonal(), atol=1e-6)
    assert torch.allclose(BOX_LOSSES["ciou"](a, b), 1 - complete_box_iou(a, b).diagonal(), atol=1e-6)
    many, others = _boxes(3, 7), _boxes(3, 11)
    expected = torch.stack([box_iou(x, y) for x, y in zip(many, others)])
    assert torch.allclose(pairwise_iou(many, others), expected, atol=1e-6)
    assert torch.equal(pairwise_iou(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)), torch.zeros(1, 1, 1))


def test_varifocal_is_its_formula():
    logits, target = torch.randn(50), (torch.rand(50) - 0.5).clamp(min=0)
    losses = [varifocal(x, q, q > 0).item() for x, q in zip(logits, target)]
    for loss, x, q in zip(losses, logits.tolist(), target.tolist()):
        p = 1 / (1 + math.exp(-x))
        positive = -q * (q * math.log(p) + (1 - q) * math.log(1 - p))
        assert loss == pytest.approx(positive if q > 0 else -0.75 * p**2 * math.log(1 - p), rel=1e-4)


def _iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


def _simota_of_one(boxes, scores, places, truth, labels, radius):
    """SimOTA of one picture, place by place."""
    cost, ious, near = [], [], []
    for box, label in zip(truth, labels):
        middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
        rows: tuple[list[float], list[float], list[bool]] = ([], [], [])
        for said, chances, (x, y, stride) in zip(boxes, scores, places):
            iou = _iou(box, said)
            entropy = -sum(
                math.log(math.sqrt(p)) if k == label else math.log(1 - math.sqrt(p)) for k, p in enumerate(chances)
            )
            rows[0].append(entropy - 3 * math.log(iou + 1e-8))
            rows[1].append(iou)
            offsets = [abs((x + 0.5) * stride - middle[0]), abs((y + 0.5) * stride - middle[1])]
            rows[2].append(max(offsets) < radius * stride)
        cost.append(rows[0])
        ious.append(rows[1])
        near.append(rows[2])
    candidates = [place for place in range(len(places)) if any(row[place] for row in near)]
    wish: dict[int, list[int]] = {}
    for m in range(len(truth)):
        k = max(1, int(sum(sorted((ious[m][place] for place in candidates), reverse=True)[:10])))
        own = sorted((place for place in candidates if near[m][place]), key=lambda place: cost[m][place])[:k]
        for place in own:
            wish.setdefault(place, []).append(m)
    owner, score = [-1] * len(places), [0.0] * len(places)
    for place, objects in wish.items():
        owner[place] = min(objects, key=lambda m: cost[m][place])
        score[place] = ious[owner[place]][place]
    return owner, score


def _aligned_of_one(boxes, scores, places, truth, labels, count):
    """Task-aligned assignment of one picture, place by place."""
    aligned, ious = [], []
    wish: dict[int, list[int]] = {}
    for m, (box, label) in enumerate(zip(truth, labels)):
        ious.append([_iou(box, said) for said in boxes])
        aligned.append([chances[label] * iou**6 for chances, iou in zip(scores, ious[m])])
        inside = [
            place
            for place, (x, y, stride) in enumerate(places)
            if box[0] <= (x + 0.5) * stride <= box[2]
            and box[1] <= (y + 0.5) * stride <= box[3]
            and aligned[m][place] > 0
        ]
        for place in sorted(inside, key=lambda place: -aligned[m][place])[:count]:
            wish.setdefault(place, []).append(m)
    owner, score = [-1] * len(places), [0.0] * len(places)
    for place, objects in wish.items():
        owner[place] = max(objects, key=lambda m: ious[m][place])
    for m in range(len(truth)):
        own = [place for place, who in enumerate(owner) if who == m]
        if own:
            top = max(aligned[m][place] for place in own)
            for place in own:
                score[place] = aligned[m][place] / top * max(ious[m][p] for p in own)
    return owner, score


def _case(counts: list[int], classes: int = 4):
    """Objects, and predictions that partly fit them: (boxes, scores, places, truth, labels, real)."""
    places, most = _places(), max(1, *counts)
    truth, labels = _boxes(len(counts), most, least=9.0), torch.randint(classes, (len(counts), most))
    real = torch.arange(most) < torch.tensor(counts).unsqueeze(1)
    near = torch.randint(most, (len(counts), len(places)))
    boxes = truth.gather(1, near.unsqueeze(2).expand(-1, -1, 4)) + torch.randn(len(counts), len(places), 4)
    return boxes, torch.rand(len(counts), len(places), classes) * 0.9 + 0.01, places, truth, labels, real


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rule", ["simota", "tal"])
def test_assignment_is_that_of_the_paper(rule, seed):
    torch.manual_seed(seed)
    counts = [5, 0, 1, 12]
    boxes, scores, places, truth, labels, real = _case(counts)
    args = (boxes, scores, places, truth, labels, real)
    got = simota(*args, radius=1.5) if rule == "simota" else task_aligned(*args, count=5)
    several = 0
    for b, count in enumerate(counts):
        one = (boxes[b].tolist(), scores[b].tolist(), places.tolist(), truth[b, :count].tolist(), labels[b].tolist())
        owner, score = _simota_of_one(*one, 1.5) if rule == "simota" else _aligned_of_one(*one, 5)
        assert got.owner[b].tolist() == owner
        assert torch.allclose(got.score[b], torch.tensor(score), atol=1e-5)
        several += sum(who >= 0 for who in owner)
    assert several > 30


def test_an_object_smaller_than_a_cell_has_a_place():
    truth = torch.tensor([[[9.0, 9.0, 11.0, 10.0]]])  # holds no middle of a cell
    places = _places()
    boxes = decode_boxes(torch.zeros(1, len(places), 4), places)
    given = (boxes, torch.full((1, len(places), 2), 0.01), places, truth, torch.zeros(1, 1).long())
    for rule in (simota, task_aligned):
        assert (rule(*given, torch.ones(1, 1, dtype=torch.bool)).owner == 0).any()


def _targets(size: tuple[int, int] = (64, 64)) -> Targets:
    """Four pictures: of 2, 0, 1 and 3 objects of 3 classes."""
    counts = (2, 0, 1, 3)
    boxes = [_boxes(n, size=size, least=14.0, most=30.0).clamp(0, min(size)) for n in counts]
    return Targets(boxes, [torch.arange(n) for n in counts])


OPTIONS = [
    {},
    {"l1_weight": 1.0, "box_loss": "giou", "activation": "relu"},
    {"assignment": "tal", "objectness": False, "box_loss": "ciou", "reg_max": 8, "activation": "hardswish"},
    {"assignment": "tal", "objectness": False, "class_loss": "varifocal", "activation": "leaky_relu"},
    {"objectness": False, "depthwise": True},
    {"backbone": "resnet18", "backbone_kwargs": {"width": 8}},
    {"levels": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options)) or "published")
def test_options(options):
    model = _lively(build(_spec("yolox_tiny", 3, **SMALL, **options)))
    images, targets = torch.randn(4, 3, 64, 64), _targets()
    losses = model.train()(images, targets).losses
    assert all(torch.isfinite(part.sum) for part in losses.values())
    total = sum(part.sum * part.weight / max(float(part.count), 1.0) for part in losses.values())
    total.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    assert idle == []

    model.eval()
    with torch.no_grad():
        together = model(images)
        alone = [model(image[None]) for image in images]
        places = 80 if options.get("levels") == 2 else 84  # 64 + 16 + 4
        assert together.boxes.shape == (4, places, 4)
        assert together.losses is None
        assert float(together.overlap) == pytest.approx(0.65)
        assert bool((together.scores[:, :-1] >= together.scores[:, 1:]).all())
        for field in ("boxes", "scores"):
            one_by_one = torch.cat([getattr(found, field) for found in alone])
            assert torch.allclose(getattr(together, field), one_by_one, atol=1e-4)
        program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        for got, expected in zip(program.module()(images[:3])[:3], model(images[:3])[:3]):
            assert torch.allclose(got, expected, atol=1e-4)


def test_a_batch_without_objects_teaches_that_there_are_none():
    model = YOLOX(3, **SMALL)
    nothing = Targets([torch.zeros(0, 4)] * 2, [torch.zeros(0).long()] * 2)
    losses = model(torch.randn(2, 3, 64, 64), nothing).losses
    assert all(float(part.count) == 0 for part in losses.values())
    assert {name for name, part in losses.items() if float(part.sum.detach()) > 0} == {"objectness"}


def test_decode_gives_the_best_class_of_the_best_places():
    model = _lively(YOLOX(3, candidates=5, **SMALL)).eval()
    with torch.no_grad():
        raw = model.raw(torch.randn(2, 3, 64, 64))
    boxes, scores, labels = model.decode(raw, (64, 64))
    every = raw.classes.sigmoid() * raw.objectness.sigmoid().unsqueeze(2)
    for b in range(2):
        best = sorted(range(84), key=lambda place: -float(every[b, place].max()))[:5]
        assert torch.allclose(scores[b], every[b, best].max(1).values)
        assert torch.equal(labels[b], every[b, best].argmax(1))
        assert torch.allclose(boxes[b], decode_boxes(raw.boxes[b], raw.places)[best])


def test_half_precision_ends_where_boxes_and_losses_begin():
    model, images, targets = YOLOX(3, **SMALL).train(), torch.randn(4, 3, 64, 64), _targets()
    with torch.autocast("cpu", torch.bfloat16):
        raw = model.raw(images)
        boxes, scores, _ = model.decode(raw, (64, 64))
        losses = model.losses(raw, targets)
    assert raw.boxes.dtype == torch.bfloat16
    exact = raw._replace(boxes=raw.boxes.float(), classes=raw.classes.float(), objectness=raw.objectness.float())
    for got, expected in zip((boxes, scores), model.decode(exact, (64, 64))):
        assert torch.equal(got, expected)
    for name, part in model.losses(exact, targets).items():
        assert losses[name].sum.dtype == torch.float32
        assert torch.equal(losses[name].sum, part.sum)
    double = model.double()(images.double(), targets).losses
    assert {part.sum.dtype for part in double.values()} == {torch.float64}


@pytest.mark.parametrize("options", [{}, {"assignment": "tal", "objectness": False, "reg_max": 8, "box_loss": "giou"}])
def test_four_pictures_are_learned_by_heart(options):
    targets = _targets()
    images = torch.randn(4, 3, 64, 64) / 4
    for image, boxes, labels in zip(images, targets.boxes, targets.labels):
        for (x0, y0, x1, y1), label in zip(boxes.round().int().tolist(), labels.tolist()):
            image[label, y0:y1, x0:x1] = 2.0
    model = YOLOX(3, **SMALL, **options).train()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(100):
        losses = model(images, targets).losses
        sum(p.sum * p.weight / p.count for p in losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        found = model.train()(images)  # the batch's own statistics
    for boxes, labels, said, scores, classes in zip(*targets[:2], found.boxes, found.scores, found.labels):
        kept = nms(said, scores, 0.5)
        kept = kept[scores[kept] > 0.3]
        assert sorted(classes[kept].tolist()) == sorted(labels.tolist())
        for box, label in zip(boxes, labels):
            assert float(box_iou(box[None], said[kept[classes[kept] == label]]).max()) > 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "gelu"}, "activation = 'gelu'; expected 'silu', 'relu', 'hardswish' or 'leaky_relu'"),
        ({"assignment": "hungarian"}, "assignment = 'hungarian'; expected 'simota' or 'tal'"),
        ({"box_loss": "l2"}, "box_loss = 'l2'"),
        ({"class_loss": "varifocal"}, "set objectness = false"),
        ({"reg_max": 8, "l1_weight": 1.0}, "l1_weight 0 with it"),
        ({"width": 0.01}, "a width of at least 1/32"),
        ({"backbone": "mlp"}, "backbone = 'mlp' has no feature pyramid"),
        ({"backbone": "smallnet"}, r"has features at strides \(8,\); it needs \(8, 16, 32\)"),
        ({"widht": 0.5}, "did you mean 'width'"),
    ],
)
def test_messages(options, message):
    with pytest.raises(ConfigError, match=message):
        build(_spec("yolox_nano", 3, **options))
