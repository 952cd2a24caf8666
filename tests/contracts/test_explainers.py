"""Every registered method explains every registered network, a few of timm's and a person's own, and leaves it as it was."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import CLASSIFIERS, TINY
from torch import Tensor, nn

from opsin.bundle import Bundle
from opsin.errors import ConfigError, ShapeError, UnknownName
from opsin.explain import asking, checked, explain, explainers, sanity
from opsin.explain.faithful import measure
from opsin.explain.grad_cam import map_view
from opsin.explain.question import Found, Question
from opsin.models import ModelSpec, build
from opsin.models.builder import build_with
from opsin.results.explanation import Explanation
from opsin.run import Run
from opsin.seeding import torch_seeded
from opsin.tasks.classify import Classify, ClassifySettings, HeadSettings

# Options that make a method cheap; a new one joins without.
CHEAP: dict[str, dict[str, Any]] = {
    "integrated-gradients": {"steps": 3},
    "smooth-grad": {"samples": 2},
    "occlusion": {"patch": 16, "stride": 16},
}
NO_MAP = {"linear", "mlp"}
OTHERS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "timm/mobilenetv2_050": ({}, (64, 64)),
    "timm/vit_tiny_patch16_224": ({"depth": 1, "embed_dim": 48}, (48, 32)),
    "timm/swin_tiny_patch4_window7_224": (
        {"depths": (1, 1), "embed_dim": 24, "num_heads": (1, 2), "window_size": 2},
        (64, 64),
    ),
}
HEADS = (
    HeadSettings(name="kind", class_names=("cat", "dog", "bird")),
    HeadSettings(name="marks", class_names=("tail", "wings"), kind="multi"),
)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small pictures are fastest on one thread, above all where tests share the processor with other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def task_of(size: tuple[int, int], heads: tuple[HeadSettings, ...] = HEADS, **settings: Any) -> Classify:
    given = {"mean": (0.4,), "std": (0.3,), "small": True, "flip": False, "channels": 3, **settings}
    return Classify(ClassifySettings(heads=heads, image_size=size, **given))


@cache
def bundle_of(name: str) -> Bundle:
    kwargs, size = OTHERS[name] if name in OTHERS else (TINY[name].kwargs, TINY[name].sizes[-1])
    task = task_of(size)
    spec = ModelSpec(name, kwargs, 3, 5, size)
    with torch_seeded("explainers"):
        model = task.assemble(build(spec, check=False))
        for parameter in model.parameters():  # as if trained: a classifier that starts at 0 has no gradient behind it
            if parameter.ndim > 1 and not bool(parameter.any()):
                nn.init.normal_(parameter, std=0.02)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:  # statistics of pictures, without which the answers of deep networks are all but equal
            norm.momentum = 1.0
        with torch.no_grad():
            model(torch.stack([torch.from_numpy(picture(*size, seed=i)).permute(2, 0, 1) for i in range(16)]))
    return Bundle(task, "classify", spec, model)  # in training mode


def picture(height: int = 70, width: int = 90, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def state(model: nn.Module) -> tuple[Any, ...]:
    tensors = {name: value.clone() for name, value in model.state_dict(keep_vars=True).items()}
    return (
        tensors,
        [
            (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ],
        [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        torch.get_rng_state(),
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("name", [*CLASSIFIERS, *OTHERS])
@pytest.mark.parametrize("method", explainers)
def test_every_method_explains_every_network(name, method):
    bundle = bundle_of(name)
    first = next(iter(bundle.model.parameters()))
    first.grad = torch.ones_like(first)
    before = state(bundle.model)
    try:
        if method == "grad-cam" and name in NO_MAP:
            with pytest.raises(ConfigError, match=r"no layer of this network keeps a map.*integrated-gradients"):
                explain(bundle, picture(), method)
            return
        found = explain(bundle, picture(), method, **CHEAP.get(method, {}))
    finally:
        assert same(state(bundle.model), before)
    assert isinstance(found, Explanation)
    assert found.map.shape == (70, 90)
    assert found.head == "kind"
    said = _logits(bundle, picture())[:3]
    assert HEADS[0].class_names[int(said.argmax())] == found.class_name
    assert found.score == pytest.approx(float(said.max()), rel=1e-4, abs=1e-5)
    assert found.probability == pytest.approx(float(said.softmax(0).max()), rel=1e-4)
    if method != "grad-cam":  # of random weights, it may find nothing that speaks for the class
        assert np.ptp(found.map) > 0


def _logits(bundle: Bundle, image: np.ndarray) -> Tensor:
    from opsin.bundle import as_sample
    from opsin.models.builder import evaluating

    prepared = bundle.task.prepare(as_sample(image), 0, train=False)
    with torch.no_grad(), evaluating(bundle.model):
        return bundle.model(prepared.inputs[None]).logits[0]


# What is planted is found ---------------------------------------------------------------------------------------------


class Corner(nn.Module):
    """The first class's logit sees brightness in the upper left quarter of the picture, and nothing else."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3, padding=1)
        nn.init.constant_(self.conv.weight, 0.1)
        self.outputs = num_classes
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1  # state that a person's module may keep
        x = torch.tanh(self.conv(images))
        part = x[:, :, : x.shape[2] // 2 - 1, : x.shape[3] // 2 - 1].mean((1, 2, 3))
        return torch.stack([part, *[-part] * (self.outputs - 1)], 1)


def corner(**settings: Any) -> Bundle:
    task = task_of((32, 32), HEADS[:1], **settings)
    spec = ModelSpec("object:Corner", {}, 3, 3, (32, 32))
    return Bundle(task, "classify", spec, task.assemble(build_with(Corner, spec)).eval())


@pytest.mark.parametrize("method", [name for name in explainers if name != "grad-cam"])
def test_what_the_score_depends_on_is_found(method):
    bundle, image = corner(), picture(32, 32)
    calls = float(bundle.model.net.net.calls)
    found = explain(bundle, image, method, class_name="cat", **({"patch": 2} if method == "occlusion" else {}))
    assert np.abs(found.map[:15, :15]).sum() > 0
    assert np.abs(found.map).sum() == pytest.approx(np.abs(found.map[:17, :17]).sum(), rel=1e-3)
    assert float(bundle.model.net.net.calls) == calls


@pytest.mark.parametrize("method", explainers)
def test_maps_lie_over_the_original_picture(method):
    # A bright spot in a dark photo of 60 x 100, of which the model sees the middle.
    image = np.full((60, 100, 3), 20, np.uint8)
    image[30:40, 35:45] = 230

    class Bright(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 3, padding=1)
            nn.init.constant_(self.conv.weight, 1.0)
            self.fc = nn.Linear(1, num_classes, bias=False)
            nn.init.constant_(self.fc.weight, 1.0)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(torch.relu(self.conv(images)).square().mean((2, 3)))

    task = task_of((56, 56), HEADS[:1], small=False)
    spec = ModelSpec("object:Bright", {}, 3, 3, (56, 56))
    bundle = Bundle(task, "classify", spec, task.assemble(build_with(Bright, spec)).eval())
    found = explain(bundle, image, method)
    assert found.size == (60, 100)
    assert found.seen_xyxy == pytest.approx((23.75, 3.75, 76.25, 56.25), abs=0.5)
    assert (found.map[:, :23] == 0).all()
    assert (found.map[:, 77:] == 0).all()
    (region, *_), center = found.regions(), np.average(np.indices((60, 100)), axis=(1, 2), weights=np.abs(found.map))
    assert center == pytest.approx((35, 40), abs=2.5)
    assert region.box_xyxy == pytest.approx((35, 30, 45, 40), abs=6)
    drawn = found.draw(Image.fromarray(image))
    assert drawn.width > 2 * 100
    before, after = (
        np.asarray(drawn)[: 60 * 5, start : start + 500].astype(int) for start in (0, 500 + drawn.width - 1000)
    )
    assert np.abs(before[::5, ::5] - image).max() == 0
    assert np.ptp(after[35 * 5, 40 * 5]) > 60  # colored where the spot is


def test_occlusion_of_a_linear_score_is_exact():
    class Mean(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.unused, self.count = nn.Parameter(torch.zeros(())), num_classes

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((1, 2, 3))[:, None] * torch.arange(1, self.count + 1) + 0 * self.unused

    task = task_of((8, 8), HEADS[:1], mean=(0.0,), std=(1.0,))
    spec = ModelSpec("object:Mean", {}, 3, 3, (8, 8))
    bundle = Bundle(task, "classify", spec, task.assemble(build_with(Mean, spec)).eval())
    image = picture(8, 8)
    found = explain(bundle, image, "occlusion", class_name="bird", patch=2, stride=2, fill="black")
    expected = 3 * image.reshape(4, 2, 4, 2, 3).sum((1, 3, 4)) / image.size / 255
    np.testing.assert_allclose(found.map[::2, ::2], expected, rtol=1e-4)
    np.testing.assert_array_equal(found.map[1::2, 1::2], found.map[::2, ::2])
    exact = explain(bundle, image, "integrated-gradients", class_name="bird", steps=1)
    np.testing.assert_allclose(exact.map, 3 * image.sum(2) / image.size / 255, rtol=1e-4)
    assert exact.details["completeness_error"] < 1e-4


# What is asked --------------------------------------------------------------------------------------------------------


def test_classes_heads_and_layers_are_chosen():
    bundle = bundle_of("resnet18")
    found = explain(bundle, [picture(), picture()], "saliency", class_name="wings", head="marks")
    assert [one.class_name for one in found] == ["wings", "wings"]
    assert found[0].score == pytest.approx(float(_logits(bundle, picture())[4]), rel=1e-4)
    assert found[0].probability == pytest.approx(float(_logits(bundle, picture())[4].sigmoid()), rel=1e-4)
    assert np.array_equal(found[0].map, found[1].map)
    top = explain(bundle, picture(), "saliency", head="marks")
    assert top.class_name == HEADS[1].class_names[int(_logits(bundle, picture())[3:].argmax())]
    assert explain(bundle, picture(), layer="layer1").details["layer"] == "layer1"


@pytest.mark.parametrize("block", [torch.inference_mode, torch.no_grad])
def test_gradients_are_found_inside_blocks_without(block):
    with block():
        found = explain(bundle_of("smallnet"), picture(), "saliency")
    assert np.array_equal(found.map, explain(bundle_of("smallnet"), picture(), "saliency").map)


def test_a_run_explains_with_its_best_model():
    run = Run.__new__(Run)
    run._bundle = bundle_of("smallnet")
    found = run.explain(picture(), "occlusion", patch=16, stride=16)
    assert np.array_equal(found.map, explain(run._bundle, picture(), "occlusion", patch=16, stride=16).map)


def test_a_persons_own_method(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from opsin.explain.question import Found\n"
        "def bright(question, *, power: float = 1.0):\n"
        "    return Found(question.pixels[0].mean(0) ** power, signed=False)\n"
    )
    found = explain(bundle_of("smallnet"), picture(), f"{tmp_path}/mine.py:bright", power=2)
    assert found.map.max() > 150**2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "gradcam"}, UnknownName, "Did you mean 'grad-cam'"),
        ({"class_name": "cats"}, UnknownName, "class of head 'kind' 'cats'. Did you mean 'cat'"),
        ({"head": "mark"}, UnknownName, "head 'mark'. Did you mean 'marks'"),
        ({"layer": "layer9"}, UnknownName, "Did you mean 'layer"),
        ({"layer": "fc"}, ConfigError, "the output of 'fc' is no map"),
        ({"method": "saliency", "layer": "fc"}, ConfigError, "saliency has no option 'layer'. It takes: none"),
        ({"method": "occlusion", "path": 3}, ConfigError, "no option 'path'. Did you mean 'patch'"),
        ({"method": "occlusion", "patch": "big"}, ConfigError, "patch = 'big'; expected a whole number"),
        ({"method": "occlusion", "patch": 2.5}, ConfigError, "patch = 2.5; expected a whole number"),
        ({"method": "occlusion", "patch": 99}, ConfigError, "expected a patch of 1 to"),
        ({"method": "occlusion", "fill": "red"}, ConfigError, "no baseline 'red'. Known: black, mean, gray, blur"),
        ({"method": "integrated-gradients", "steps": 0}, ConfigError, "steps = 0"),
        ({"method": "smooth-grad", "noise": -1}, ConfigError, "noise = -1"),
    ],
)
def test_messages_and_the_model_is_untouched_by_them(arguments, error, message):
    bundle = bundle_of("resnet18")
    before = state(bundle.model)
    with pytest.raises(error, match=message):
        explain(bundle, picture(), **arguments)
    assert same(state(bundle.model), before)


def test_a_task_without_scores_says_so():
    from opsin.task import Task

    with pytest.raises(ConfigError, match="classify cannot be explained"):
        Task.aim(bundle_of("linear").task, {})


def test_a_score_without_gradient_is_refused_but_occluded():
    class Cut(Corner):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).detach()

    task = task_of((32, 32), HEADS[:1])
    spec = ModelSpec("object:Cut", {}, 3, 3, (32, 32))
    bundle = Bundle(task, "classify", spec, task.assemble(build_with(Cut, spec)).eval())
    for method in ("saliency", "grad-cam"):
        with pytest.raises(ConfigError, match=r"no gradient.*occlusion"):
            explain(bundle, picture(), method)
    assert np.ptp(explain(bundle, picture(), "occlusion").map) > 0


@pytest.mark.parametrize(
    ("module", "shape", "grids", "expected"),
    [
        (nn.Conv2d(3, 6, 1), (1, 6, 4, 4), [], (1, 6, 4, 4)),
        (nn.Conv2d(3, 6, 1), (1, 6, 1, 1), [], None),
        (nn.Sequential(), (1, 4, 4, 96), [], (1, 96, 4, 4)),
        (nn.LayerNorm(4), (1, 4, 4, 4), [], (1, 4, 4, 4)),
        (nn.Identity(), (1, 3, 17, 17), [], None),
        (nn.LayerNorm(24), (1, 21, 24), [(4, 4)], (1, 24, 4, 4)),
        (nn.LayerNorm(24), (1, 17, 24), [], (1, 24, 4, 4)),
        (nn.LayerNorm(24), (1, 18, 24), [(32, 32)], (1, 24, 4, 4)),
        (nn.LayerNorm(24), (1, 19, 24), [], None),
        (nn.Linear(3, 24), (1, 16, 24), [(4, 4)], None),
    ],
)
def test_what_counts_as_a_map(module, shape, grids, expected):
    view = map_view(module, shape, (64, 64), grids)
    assert (None if view is None else tuple(view(torch.zeros(shape)).shape)) == expected


def test_tokens_of_places_are_kept_in_order():
    view = map_view(nn.LayerNorm(1), (1, 8, 1), (64, 96), [(2, 3)])
    assert view(torch.arange(8.0)[None, :, None])[0, 0].tolist() == [[2, 3, 4], [5, 6, 7]]


# Are explanations true ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> Bundle:
    """A small net that has learned on which side of noise a bright spot lies."""
    task = task_of((16, 16), (HeadSettings(name="side", class_names=("left", "right")),), channels=1)
    spec = ModelSpec("smallnet", {"stem": 8, "widths": (8, 16), "depths": (1, 0)}, 1, 2, (16, 16))
    with torch_seeded("trained"):
        model = task.assemble(build(spec)).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(30):
            images = torch.rand(32, 1, 16, 16) * 80
            labels = torch.arange(32) % 2
            for image, label in zip(images, labels):
                left = int(torch.randint(0, 5, ())) + 8 * int(label)
                image[0, 6:10, left : left + 3] = 240
            loss = nn.functional.cross_entropy(model(images).logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert float(loss.detach()) < 0.1
    return Bundle(task, "classify", spec, model.eval())


def spot() -> np.ndarray:
    image = np.random.default_rng(1).integers(0, 80, (16, 16), np.uint8)
    image[6:10, 10:13] = 240
    return image


@pytest.mark.parametrize("method", explainers)
def test_the_sanity_check_passes_for_a_model_that_has_learned(trained, method):
    with asking(trained, spot()) as asked:
        before = {name: value.clone() for name, value in trained.model.state_dict().items()}
        found = sanity.check(asked.question, checked(method, {}))
        assert all(torch.equal(before[name], value) for name, value in trained.model.state_dict().items())
        assert found == sanity.check(asked.question, checked(method, {}))
    assert asked.aim.class_name == "right"
    assert len(found.steps) == 5
    assert found.steps[-1][0] == "stem.0"
    assert found.passed, found
    assert "depends on what the model learned" in found.verdict


def test_the_sanity_check_finds_a_map_of_edges(trained):
    def edges(question: Question) -> Found:
        return Found((question.pixels[0, 0] - question.pixels[0, 0].roll(1, 1)).abs(), signed=False)

    with asking(trained, spot()) as asked:
        found = sanity.check(asked.question, edges)
    assert found.correlation == pytest.approx(1)
    assert not found.passed
    assert "hardly depends" in found.to_dict()["verdict"]


def test_taking_away_what_matters_is_noticed(trained):
    with asking(trained, spot()) as asked:
        good = measure(asked.question, checked("occlusion", {"patch": 3, "stride": 1})(asked.question))
        values = torch.zeros(16, 16)
        values[6:10, 10:13] = 1
        planted = measure(asked.question, Found(values, signed=False))
    for one in (good, planted):
        assert one.deletion < one.random_deletion - 0.05
        assert one.insertion > one.random_insertion


def test_a_result_is_validated():
    def result(values: np.ndarray, signed: bool = False) -> Explanation:
        return Explanation("a.png", "saliency", "label", "cat", 1.0, 0.5, values, signed, (0, 0, 4, 3))

    with pytest.raises(ShapeError, match=r"expected \(H, W\) float32"):
        result(np.zeros((3, 4)))
    with pytest.raises(ShapeError, match="not finite"):
        result(np.full((3, 4), np.nan, np.float32))
    with pytest.raises(ShapeError, match="below 0"):
        result(np.full((3, 4), -1, np.float32))
    flat = result(np.zeros((3, 4), np.float32))
    assert flat.regions() == []
    assert flat.to_dict(with_map=True)["map"] == [[0.0] * 4] * 3
    assert "map" not in flat.to_dict()
    with pytest.raises(ShapeError, match="picture is 4 x 4, the map 3 x 4"):
        flat.draw(Image.new("L", (4, 4)))
    for mode in ("1", "L", "RGBA", "I;16", "F", "P"):
        assert flat.draw(Image.new(mode, (4, 3))).mode == "RGB"
