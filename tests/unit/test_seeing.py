"""Seeing inside a network, against scikit-learn, TensorBoard's own reader, torchvision's extractor and closed forms."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from opsin import load_data
from opsin.analyze.cost import cost
from opsin.analyze.receptive import Wiring, effective, effective_window
from opsin.bundle import Bundle
from opsin.cli import main
from opsin.data.splits import make_split
from opsin.errors import ConfigError, ShapeError, UnknownName
from opsin.explain.maximize import Recipe, maximize
from opsin.models import ModelSpec, build
from opsin.recipe import SplitSettings
from opsin.report.projector import page, sprite, tensorboard_files
from opsin.results.sheet import Cell, Row, Sheet
from opsin.run.data import unsealed
from opsin.run.patching import patches
from opsin.run.picturing import filters, ideals, maps
from opsin.run.seeing import neighbors, separation
from opsin.seeding import torch_seeded
from opsin.tasks.classify import Classify, ClassifySettings, HeadSettings
from opsin.transfer.neighbors import nearest
from opsin.transfer.projection import project


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three classes: a bright square at three places, in three colors."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(30):
        array = rng.integers(0, 60, (24, 24, 3), np.uint8)
        array[4 + 4 * (i % 3) : 12 + 4 * (i % 3), 4:12, i % 3] += 150
        (folder / f"class-{i % 3}").mkdir(exist_ok=True)
        Image.fromarray(array).save(folder / f"class-{i % 3}" / f"{i}.png")
    return load_data(folder)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    heads = (HeadSettings(name="label", class_names=("cat", "dog", "7")),)
    task = Classify(
        ClassifySettings(heads=heads, image_size=(24, 24), channels=3, mean=(0.5,), std=(0.3,), small=True, flip=False)
    )
    spec = ModelSpec("smallnet", {"stem": 8, "widths": (8, 16), "depths": (0, 1)}, 3, 3, (24, 24))
    with torch_seeded("see"):
        return Bundle(task, "classify", spec, task.assemble(build(spec)).eval())


def inputs(data: Any, count: int) -> torch.Tensor:
    return torch.stack([data.read(i).image for i in range(count)]).float()


def outside(bundle: Bundle, pictures: torch.Tensor, *layers: str) -> dict[str, torch.Tensor]:
    """What torchvision's extractor says of layers, for pictures normalized by hand."""
    extractor = create_feature_extractor(bundle.model.net.eval(), {name: name for name in layers})
    return {name: value.detach() for name, value in extractor((pictures / 255 - 0.5) / 0.3).items()}


# Neighbors and separation ---------------------------------------------------------------------------------------------


def test_neighbors_equal_scikit_learns():
    rng = np.random.default_rng(0)
    values, queries = rng.normal(size=(50, 7)).astype(np.float32), rng.normal(size=(9, 7)).astype(np.float32)
    far, places = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(values).kneighbors(queries)
    found, cosines = nearest(values, queries, 5)
    np.testing.assert_array_equal(found, places)
    np.testing.assert_allclose(cosines, 1 - far, atol=1e-6)
    values[3] = 0
    assert nearest(values, values[3:4], 50)[1].tolist() == [[0.0] * 50]
    with pytest.raises(ConfigError, match="expected 1 to 50"):
        nearest(values, queries, 51)
    values[0, 0] = np.nan
    with pytest.raises(ShapeError, match="not finite"):
        nearest(values, queries, 1)


def test_neighbors_of_a_picture_in_several_layers(bundle, data):
    place = Path(data.root) / data.id(0)
    found = neighbors(bundle, data, [place], ["stages.0", "head-input"], count=4)
    assert [row["layer"] for row in found.rows] == ["stages.0", "head-input"]
    values = outside(bundle, inputs(data, len(data)), "stages.0")["stages.0"].mean((2, 3)).numpy()
    _, places = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(values).kneighbors(values[:1])
    expected = [data.id(int(i)) for i in places[0] if i != 0]
    assert [one["id"] for one in found.rows[0]["neighbors"]] == expected[:4]  # and not the picture itself
    drawn = found.sheet.draw()
    assert drawn.width >= 4 * 96
    with pytest.raises(UnknownName, match=r"stages\.0"):
        neighbors(bundle, data, [place], ["stages.00"])


def test_separation_equals_scikit_learns_measures(bundle, data):
    found = separation(bundle, data, ["stem", "stages.1"], limit=None)
    sight = unsealed(data)
    assert (found["samples"], found["classes"]) == (len(sight), 3)
    assert 0 < len(sight) < len(data) == 30, "the part that training would seal is left out"
    assert not set(sight) & set(make_split(data, SplitSettings()).indices("test"))
    given, labels = outside(bundle, inputs(data, len(data))[sight], "stem", "stages.1"), data.targets["label"][sight]
    for row in found["layers"]:
        values = StandardScaler().fit_transform(given[row["layer"]].mean((2, 3)).numpy())
        assert row["silhouette"] == pytest.approx(silhouette_score(values, labels), abs=1e-3)
        assert row["width"] == values.shape[1]
        assert row["logistic"]["low"] < row["logistic"]["value"] == 1  # colors tell these classes apart in any layer


# Projection -----------------------------------------------------------------------------------------------------------


def test_pca_equals_scikit_learns():
    values = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32) * np.arange(1, 7, dtype=np.float32)
    found, reference = project(values, "pca", 3), PCA(3).fit(values)
    np.testing.assert_allclose(found.details["explained_variance"], reference.explained_variance_ratio_, rtol=1e-5)
    expected = reference.transform(values)
    np.testing.assert_allclose(found.points, expected / np.abs(expected).max(), atol=1e-5)


def test_tsne_keeps_neighbors_of_mnist(shared_data):
    data = load_data(shared_data / "mnist" / "t10k-images-idx3-ubyte.gz")
    values = data.arrays[:1000].reshape(1000, -1).astype(np.float32) / 255
    found = project(values, "tsne")
    assert found.trustworthiness >= 0.95
    assert found.details["perplexity"] == 30


def test_projections_follow_the_seed_and_refuse_what_cannot_be():
    values = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    one, again = project(values, "tsne", seed=3), project(values, "tsne", seed=3)
    np.testing.assert_array_equal(one.points, again.points)
    assert one.details["perplexity"] == pytest.approx(19 / 3)  # lowered for few points
    with pytest.raises(UnknownName, match="tsne"):
        project(values, "tsnee")
    with pytest.raises(ConfigError, match="too few"):
        project(values[:3])
    with pytest.raises(ConfigError, match="2 or 3 dimensions"):
        project(values, dimensions=4)


def test_tensorboards_own_reader_takes_the_files(tmp_path):
    pictures = [Image.new("RGB", (20, 10), (10 * i, 0, 255 - 10 * i)) for i in range(7)]
    sheet, columns = sprite(pictures, 16)
    assert (columns, sheet.size) == (3, (48, 48))
    for i in range(7):  # row by row, centered, black around
        assert sheet.getpixel((i % 3 * 16 + 8, i // 3 * 16 + 8)) == (10 * i, 0, 255 - 10 * i)
        assert sheet.getpixel((i % 3 * 16, i // 3 * 16)) == (0, 0, 0)
    values = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    ids, labels = [f"a\tb{i}" for i in range(7)], list("xyxyxyx")
    tensorboard_files(tmp_path / "two", values, ids, labels, sheet, 16)
    config = text_format.Parse((tmp_path / "two" / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (one,) = config.embeddings
    assert list(one.sprite.single_image_dim) == [16, 16]
    np.testing.assert_allclose(np.loadtxt(tmp_path / "two" / one.tensor_path, delimiter="\t"), values, rtol=1e-6)
    rows = (tmp_path / "two" / one.metadata_path).read_text().splitlines()
    assert rows[:2] == ["id\tlabel", "a b0\tx"]
    assert len(rows) == 8
    assert Image.open(tmp_path / "two" / one.sprite.image_path).size == (48, 48)
    tensorboard_files(tmp_path / "one", values, ids, None, sheet, 16)
    assert len((tmp_path / "one" / "metadata.tsv").read_text().splitlines()) == 7  # one column has no header
    with pytest.raises(ConfigError, match="at most 64"):
        sprite([Image.new("L", (1, 1))] * 65, 1024)


def test_a_name_cannot_break_the_page():
    bad = "</script><img src=x onerror=alert(1)>&amp;.png"
    values = {"ids": [bad], "points": [[0, 0]], "names": [bad]}
    text = page(bad, "facts", values, Image.new("RGB", (8, 8)))
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert json.loads(block[1])["ids"] == [bad]
    assert text.count("<script") == 2
    assert "<img" not in text
    assert not re.findall(r"https?://", text)


# Receptive fields -----------------------------------------------------------------------------------------------------


def test_fields_in_closed_form():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3, padding=2, dilation=2)
    )
    wiring = Wiring(net, "4", (1, 34, 38))
    assert wiring.cells == (16, 18)
    middle = wiring.window(8, 9)
    assert middle.size == (12, 12)  # 3, then 4, then + 2 * 2 * 2
    assert (middle.left, middle.top) == (14, 12)  # cells 7 9 11 of the pooled map, each from pixel 2 * cell on
    assert wiring.window(0, 0) == (0, 0, 8, 8)  # cut at the border
    assert net[1].weight.mean() == 1  # the network is left as it was


@pytest.mark.parametrize(
    ("name", "kwargs", "layer"),
    [
        ("resnet18", {"width": 8}, "layer2"),
        ("vgg11", {"width": 8, "hidden": 16}, "features.18"),
        ("smallnet", {"stem": 8, "widths": (8, 16), "depths": (0, 1)}, "stages.1"),
    ],
)
def test_fields_equal_what_the_operations_say(name, kwargs, layer):
    net = build(ModelSpec(name, kwargs, 3, 5, (224, 224))).eval()
    rows = {row.name: row for row in cost(net, (3, 224, 224)).layers}
    row = next(row for path, row in reversed(rows.items()) if path == layer or path.startswith(f"{layer}."))
    wiring = Wiring(net, layer, (3, 224, 224))
    size = wiring.window(wiring.cells[0] // 2, wiring.cells[1] // 2).size
    assert size == (row.seen.height.size, row.seen.width.size)


def test_nothing_outside_the_window_matters_and_its_corners_do(bundle, data):
    model, pictures = bundle.model, inputs(data, 4)
    wiring = Wiring(model, "stages.0", (3, 24, 24))
    window = wiring.window(5, 5)
    assert (window.left, window.top) > (0, 0)

    def at(x: torch.Tensor) -> torch.Tensor:
        return outside(bundle, x, "stages.0")["stages.0"][:, :, 5, 5]

    other = torch.rand_like(pictures) * 255
    rows, columns = slice(window.top, window.bottom), slice(window.left, window.right)
    other[:, :, rows, columns] = pictures[:, :, rows, columns]
    torch.testing.assert_close(at(other), at(pictures), rtol=1e-5, atol=1e-5)
    weights = effective(model, "stages.0", pictures)
    assert weights.max() == 1
    inner = effective_window(weights)
    middle = wiring.window(wiring.cells[0] // 2, wiring.cells[1] // 2)
    assert middle.left <= inner.left < inner.right <= middle.right
    assert effective_window((weights > 0).float()) == middle


def test_effective_field_of_two_boxes_is_a_triangle():
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1))
    for conv in net:
        nn.init.constant_(conv.weight, 1.0)
    found = effective(net, "1", torch.rand(2, 1, 9, 9))
    triangle = torch.tensor([0.0, 0, 1, 2, 3, 2, 1, 0, 0]) / 3
    torch.testing.assert_close(found, triangle[:, None] * triangle[None, :])
    with pytest.raises(ConfigError, match="expected a map"):
        effective(nn.Sequential(nn.Flatten(), nn.Linear(81, 2)), "1", torch.rand(1, 1, 9, 9))


def test_patches_are_where_a_channel_is_strongest(bundle, data):
    found = patches(bundle, data, "stages.0", [2, 5], count=3)
    values = outside(bundle, inputs(data, len(data)), "stages.0")["stages.0"]
    for row in found.channels:
        best = values[:, row["channel"]].flatten(1).max(1).values
        order = best.argsort(descending=True)[:3]
        assert [one["id"] for one in row["patches"]] == [data.id(int(i)) for i in order]
        for one, i in zip(row["patches"], order):
            assert one["value"] == pytest.approx(float(best[i]), rel=1e-4)
            assert float(values[i, row["channel"]][tuple(one["cell"])]) == pytest.approx(float(best[i]), rel=1e-4)
            left, top, right, bottom = one["input_xyxy"]
            assert one["box_xyxy"] == [left, top, right, bottom]  # the pictures have the model's own size
    with pytest.raises(ConfigError, match="no channel 8; it has 0 to 7"):
        patches(bundle, data, "stages.0", [8])
    with pytest.raises(ConfigError, match="expected a map"):
        patches(bundle, data, "head", [0])


# Ideal pictures -------------------------------------------------------------------------------------------------------


def linear(weights: torch.Tensor) -> Any:
    return lambda _, x: (x * weights).sum((1, 2, 3))


def test_a_linear_goal_is_climbed_straight():
    torch.manual_seed(0)
    weights, net = torch.randn(1, 3, 8, 8), nn.Identity()
    given = {"size": (3, 8, 8), "bounds": (0.0, 255.0)}
    start = maximize(net, linear(torch.zeros(1, 3, 8, 8) + 1e-30), **given, recipe=Recipe(1, 1e-9)).pixels
    assert ((start - 127.5).abs() <= 10).all()
    found = maximize(net, linear(weights), **given, recipe=Recipe(7, 2.0))
    expected = start + 14 * weights[0] / weights.square().mean().sqrt()
    torch.testing.assert_close(found.pixels, expected, rtol=1e-3, atol=1e-2)
    assert found.after - found.before == pytest.approx(14 * float(weights.square().mean().sqrt()) * 192, rel=1e-3)
    weights = weights.sign()
    far = maximize(net, linear(weights), **given, recipe=Recipe(20, 20.0)).pixels
    torch.testing.assert_close(far, torch.where(weights[0] > 0, 255.0, 0.0))  # stays in the range


def test_every_regularizer_does_its_part():
    torch.manual_seed(0)
    weights, given = torch.randn(1, 1, 16, 16), {"size": (1, 16, 16), "bounds": (0.0, 255.0)}

    def made(**recipe: Any) -> torch.Tensor:
        return maximize(nn.Identity(), linear(weights), **given, recipe=Recipe(**{"steps": 30, **recipe})).pixels

    def rough(x: torch.Tensor) -> float:
        return float((x[..., 1:] - x[..., :-1]).abs().mean())

    plain = made()
    assert rough(made(blur=1.0)) < 0.7 * rough(plain)
    assert rough(made(variation=1e5)) < 0.7 * rough(plain)
    assert float((made(decay=0.2) - 127.5).abs().mean()) < 0.5 * float((plain - 127.5).abs().mean())
    assert not torch.equal(made(jitter=3), plain)
    assert not torch.equal(made(seed=1), plain)
    assert torch.equal(made(), plain)
    with pytest.raises(ConfigError, match="steps = 0"):
        Recipe(steps=0)
    with pytest.raises(ConfigError, match="decay = 1"):
        Recipe(decay=1)


def test_classes_and_channels_cannot_be_confused(bundle):
    rows, sheet = ideals(bundle, class_names=["dog", "7"], recipe=Recipe(8, 4.0))
    assert [row["class"] for row in rows] == ["dog", "7"]  # the class that is named so, not the eighth of anything
    assert all(row["after"] > row["before"] for row in rows)
    assert sheet.draw().width >= 2 * 128
    rows, _ = ideals(bundle, layer="stages.0", channels=[1, 3], cell=(2, 2), recipe=Recipe(8, 4.0))
    assert [row["channel"] for row in rows] == [1, 3]
    assert all(row["after"] > row["before"] for row in rows)
    for given, message in (
        ({"class_names": ["3"]}, "Unknown class"),
        ({"channels": [3]}, "Say what to excite"),
        ({"class_names": ["dog"], "channels": [3]}, "A class has a name"),
        ({"layer": "stages.0", "class_names": ["dog"]}, "not both"),
        ({"layer": "stages.0", "channels": [8]}, "no channel 8"),
        ({"layer": "stages.0", "cell": (99, 0)}, "no cell 99,0"),
    ):
        with pytest.raises((ConfigError, UnknownName), match=message):
            ideals(bundle, **given)


def test_what_responds_to_nothing_is_left_out(bundle):
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)
            nn.init.constant_(self.conv.weight, 1.0)
            with torch.no_grad():
                self.conv.bias.copy_(torch.tensor([0.0, -1e6]))
            self.act = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.conv(x))

    half = Bundle(bundle.task, "classify", bundle.spec, Half())
    rows, sheet = ideals(half, layer="act", recipe=Recipe(2))
    assert [row["dead"] for row in rows] == [False, True]
    assert len(sheet.rows[0].cells) == 1
    assert "Left out: 1" in sheet.note
    with pytest.raises(ConfigError, match="responds to the start"):
        ideals(half, layer="act", channels=[1])


# Filters and maps -----------------------------------------------------------------------------------------------------


def test_filters_are_shown_on_one_scale(bundle):
    weights = bundle.model.net.stem[0].weight
    before = weights.detach().clone()
    with torch.no_grad():
        weights[2] = 0
    try:
        values, sheet = filters(bundle)
        assert values["dead"] == [2]
        np.testing.assert_allclose(values["norms"], weights.detach().flatten(1).norm(dim=1), atol=1e-5)
        shown = np.stack([np.asarray(cell.picture) for cell in sheet.rows[0].cells]).astype(float)  # (D, kh, kw, 3)
        expected = weights.detach().permute(0, 2, 3, 1).numpy() / values["largest_weight"] * 127.5 + 127.5
        assert np.abs(shown - expected).max() <= 0.51
        deep, rows = filters(bundle, "stages.1.entry.0")
        assert deep["shape"] == list(bundle.model.net.stages[1].entry[0].weight.shape[1:])
        assert len(rows.rows[0].cells) == 8
        with pytest.raises(ConfigError, match=r"no convolution. Name one, e.g. 'stem.0'"):
            filters(bundle, "head")
    finally:
        with torch.no_grad():
            weights.copy_(before)


def test_maps_equal_torchvisions_extractor(bundle, data):
    rows, sheet = maps(bundle, Path(data.root) / data.id(4), ["stages.0"], count=3)
    values = outside(bundle, inputs(data, 5)[4:], "stages.0")["stages.0"][0]
    (row,) = rows
    assert row["range"] == pytest.approx([float(values.min()), float(values.max())], rel=1e-4)
    assert row["zeros"] == pytest.approx(float((values == 0).float().mean()))
    order = values.abs().mean((1, 2)).argsort(descending=True)[:3].tolist()
    assert [one["channel"] for one in row["channels"]] == order
    shown = np.asarray(sheet.rows[1].cells[0].picture).astype(float)
    np.testing.assert_allclose(shown / 127.5 - 1, values[order[0]] / values.abs().max(), atol=0.01)


def test_a_sheet_breaks_rows_and_enlarges_whole():
    dot = Image.new("RGB", (2, 2), (200, 0, 0))
    one = Sheet((Row("a", tuple(Cell(dot, str(i)) for i in range(5))),), side=9, columns=2).draw()
    whole = Sheet((Row("a", (Cell(dot),)), Row("nothing", ())), side=9).draw()
    assert (np.asarray(whole)[..., 1] == 0).sum() == 8 * 8  # a factor of 4 fits into 9
    assert (np.asarray(one)[..., 1] == 0).sum() == 5 * 8 * 8
    assert one.height > 2 * whole.height - 40
    with pytest.raises(ShapeError, match="without any picture"):
        Sheet((Row("a", ()),))


# The command line -----------------------------------------------------------------------------------------------------


def test_every_view_from_the_command_line(bundle, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bundle.save(tmp_path / "model")
    picture = str(Path(data.root) / data.id(0))

    def call(*words: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert main(["see", *words, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    found = call("neighbors", "model", data.root, "--picture", picture, "--layer", "stem", "--count", "2")
    assert len(found["neighbors"][0]["neighbors"]) == 2
    found = call("separation", "model", data.root, "--limit", "12")
    assert [row["layer"] for row in found["layers"]] == ["stem", "stages.0", "stages.1", "head-input"]
    assert Path("separation.svg").read_text().startswith("<svg")
    found = call("projection", "model", data.root, "--by", "pca", "--dimensions", "3")
    assert sum(found["details"]["explained_variance"]) <= 1
    contents = json.loads(re.search(r'id="data">(.*?)</script>', Path(found["page"]).read_text(), re.DOTALL)[1])
    assert [len(point) for point in contents["points"]] == [3] * 30
    assert len(contents["neighbors"][0]) == 8
    assert all(i not in [j for j, _ in near] for i, near in enumerate(contents["neighbors"]))
    found = call("patches", "model", data.root, "--layer", "stages.0", "--channel", "1,2", "--count", "2")
    assert found["field"]["theoretical"][0] >= found["field"]["effective"][0] > 0
    assert len(call("ideal", "model", "--layer", "stages.0", "--channel", "0,1", "--steps", "2")["ideals"]) == 2
    assert call("filters", "model")["layer"] == "stem.0"
    assert len(call("maps", "model", picture)["layers"]) == 3
    for name in ("neighbors", "patches", "ideal", "filters", "maps"):
        assert Image.open(f"{name}.png").width > 100
    for words, message in (
        (("filters", "model"), "filters.png exists already"),
        (("ideal", "model", "--layer", "stem", "--channel", "dog", "--out", "a.png"), "goes to --class"),
        (("ideal", "model", "--class", "3", "--out", "a.png"), "Unknown class"),
        (("ideal", "model", "--layer", "stem", "--cell", "3", "--out", "a.png"), "expected ROW,COLUMN"),
        (("maps", "model", picture, "--out", "a.jpg"), "ends in .png"),
        (("projection", "model", data.root), "exists already"),
        (("projection", "model", data.root, "--out", "b.html", "--by", "umapp"), "Did you mean 'umap'"),
    ):
        assert message in call(*words, code=2)["error"]["message"]
