"""The data doctor: every check provoked on a small made data set, and quiet on a clean one."""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from opsin.analyze.check import CheckOptions, Finding, Findings, check, checks, rules
from opsin.analyze.check.page import page_html
from opsin.analyze.check.table import render
from opsin.data import Dataset, load_data, make_split
from opsin.data.build import from_arrays
from opsin.errors import ShapeError, UnknownName
from opsin.recipe import overrides
from opsin.run import new_recipe

FAST = CheckOptions(skip=("suspect-labels",))


def scene(seed: int, side: int = 96) -> NDArray[np.uint8]:
    """A smooth colored random picture that resembles no other."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with 12 different pictures each, PNG."""
    for k in range(24):
        path = tmp_path / "data" / ("cat", "dog")[k % 2] / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(k)).save(path)
    return tmp_path / "data"


def codes(findings: Findings) -> set[str]:
    return {f.code for f in findings if f.level != "info"}


def found(folder: Path, code: str, split: NDArray[np.int8] | None = None, options: CheckOptions = FAST) -> Finding:
    finding = check(load_data(folder), split, options=options)[code]
    assert finding.text
    json.dumps(finding.to_dict())
    return finding


def test_a_clean_folder_has_no_errors_and_only_says_that_classes_are_small(folder: Path) -> None:
    findings = check(load_data(folder), options=FAST)
    assert codes(findings) == {"few-samples"}
    assert findings.exit_code() == 0
    assert findings.exit_code(strict=True) == 1
    assert findings.profile["samples"] == findings.profile["readable"] == 24
    assert findings.profile["heads"][0]["effective_classes"] == 2.0
    json.dumps(findings.to_dict())


def test_truncated_empty_and_wrong_files(folder: Path) -> None:
    whole = (folder / "cat" / "00.png").read_bytes()
    (folder / "cat" / "00.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cat" / "02.png").write_bytes(b"")
    (folder / "cat" / "04.png").write_text("<html>404</html>")
    findings = check(load_data(folder), options=FAST)
    assert set(findings["unreadable-file"].ids) == {"cat/00.png", "cat/04.png"}
    assert findings["empty-file"].ids == ("cat/02.png",)
    assert "truncated" in findings["unreadable-file"].captions[0]
    assert "--skip-bad" in findings["unreadable-file"].fix
    assert findings.exit_code() == 1
    assert "reader-error" not in findings  # one file, one finding


def test_truncated_jpeg(folder: Path) -> None:
    path = folder / "dog" / "cut.jpg"
    Image.fromarray(scene(99, 300)).save(path)
    path.write_bytes(path.read_bytes()[:-4000])
    assert found(folder, "unreadable-file").ids == ("dog/cut.jpg",)


def test_wrong_extension(folder: Path) -> None:
    Image.fromarray(scene(50)).save(folder / "cat" / "liar.png", format="JPEG")
    finding = found(folder, "wrong-extension")
    assert finding.ids == ("cat/liar.png",)
    assert finding.captions == ("named .png, holds JPEG",)


def test_sizes(folder: Path) -> None:
    Image.fromarray(scene(50, 4)).save(folder / "cat" / "tiny.png")
    Image.fromarray(scene(51, 1000)).save(folder / "cat" / "wide.png")
    Image.fromarray(scene(52).repeat(7, axis=1)).save(folder / "cat" / "long.png")
    findings = check(load_data(folder), options=CheckOptions(skip=("suspect-labels",), large_pixels=1e5))
    assert findings["tiny-picture"].ids == ("cat/tiny.png",)
    assert findings["enormous-picture"].ids == ("cat/wide.png",)
    assert findings["odd-shape"].ids == ("cat/long.png",)
    assert found(folder, "size-outlier").ids == ("cat/wide.png",)


def test_mixed_channels_depth_and_cmyk(folder: Path) -> None:
    Image.fromarray(scene(50)[..., 0]).save(folder / "cat" / "grey.png")
    Image.fromarray(scene(51)[..., 0].astype(np.uint16) * 257).save(folder / "cat" / "deep.png")
    Image.fromarray(scene(52)).convert("CMYK").save(folder / "cat" / "inks.jpg")
    findings = check(load_data(folder), options=FAST)
    assert findings["mixed-depth"].ids == ("cat/deep.png",)
    assert set(findings["mixed-channels"].ids) == {"cat/deep.png", "cat/grey.png"}
    assert findings["cmyk-picture"].ids == ("cat/inks.jpg",)


def test_constant_pictures(folder: Path) -> None:
    Image.new("RGB", (96, 96), (7, 90, 200)).save(folder / "dog" / "blank.png")
    assert found(folder, "constant-picture").ids == ("dog/blank.png",)


def test_nan() -> None:
    images = np.random.default_rng(0).random((30, 1, 16, 16)).astype(np.float32)
    images[3, 0, 2, 2] = np.nan
    findings = check(from_arrays(images, np.arange(30) % 2, layout="NCHW", name="x"), options=FAST)
    assert findings["nonfinite-values"].ids == ("x#3",)
    assert findings.errors


def parts_of(dataset: Dataset, test: set[str]) -> NDArray[np.int8]:
    return np.array([2 if name in test else 0 for name in dataset.ids], np.int8)


def test_identical_files_within_and_across_parts(folder: Path) -> None:
    (folder / "cat" / "copy.png").write_bytes((folder / "cat" / "00.png").read_bytes())
    Image.open(folder / "dog" / "01.png").save(folder / "dog" / "same-pixels.bmp")
    dataset = load_data(folder)
    inside = check(dataset, options=FAST)["exact-duplicate"]
    assert set(inside.groups) == {("cat/00.png", "cat/copy.png"), ("dog/01.png", "dog/same-pixels.bmp")}
    findings = check(dataset, parts_of(dataset, {"cat/copy.png", "dog/03.png"}), options=FAST)
    leak = findings["exact-duplicate-across-splits"]
    assert leak.level == "error"
    assert leak.groups == (("cat/00.png", "cat/copy.png"),)
    assert "1 of 2 test pictures (50.0%) are also in train" in leak.text
    assert findings["exact-duplicate"].groups == (("dog/01.png", "dog/same-pixels.bmp"),)


@pytest.mark.parametrize(
    "change",
    [
        lambda picture, path: picture.save(path.with_suffix(".jpg"), quality=60),
        lambda picture, path: picture.resize((70, 70), Image.Resampling.LANCZOS).save(path.with_suffix(".png")),
        lambda picture, path: picture.point(lambda v: v * 0.85 + 10).save(path.with_suffix(".png")),
    ],
    ids=["saved as JPEG", "scaled", "darker"],
)
def test_near_duplicates_are_found(folder: Path, change: Callable[[Image.Image, Path], None]) -> None:
    change(Image.open(folder / "cat" / "06.png"), folder / "cat" / "again")
    dataset = load_data(folder)
    copy = next(name for name in dataset.ids if "again" in name)
    assert found(folder, "near-duplicate").groups == (("cat/06.png", copy),)
    leak = check(dataset, parts_of(dataset, {copy}), options=FAST)["near-duplicate-across-splits"]
    assert leak.groups == (("cat/06.png", copy),)
    assert leak.level == "warning"


def test_group_that_explains_near_duplicates_is_proposed(tmp_path: Path) -> None:
    """Frames of videos v00 to v19, two classes: the first word of the file name is the group."""
    for video in range(20):
        picture = Image.fromarray(scene(video))
        for frame in range(3):
            path = tmp_path / ("a", "b")[video % 2] / f"v{video:02d}_{frame}.jpg"
            path.parent.mkdir(exist_ok=True)
            picture.point(lambda v, f=frame: v * (1 - 0.05 * f)).save(path, quality=90)
    dataset = load_data(tmp_path)
    finding = check(dataset, make_split(dataset), options=FAST)["near-duplicate-across-splits"]
    proposed = finding.data["group"]
    assert str(proposed).startswith("regex:")
    assert "--group" in finding.fix
    assert len(np.unique(dataset.groups(str(proposed)))) == 20
    mended = CheckOptions(skip=("suspect-labels",), group=str(proposed))
    assert "group-leak" in check(dataset, make_split(dataset), options=mended)
    from opsin.recipe import SplitSettings

    grouped = make_split(dataset, SplitSettings(group=str(proposed)))
    findings = check(dataset, grouped, options=mended)
    assert not {"group-leak", "near-duplicate-across-splits"} & {f.code for f in findings}


def test_same_picture_with_different_labels(folder: Path) -> None:
    (folder / "dog" / "copy.png").write_bytes((folder / "cat" / "00.png").read_bytes())
    Image.open(folder / "dog" / "01.png").save(folder / "cat" / "again.jpg", quality=70)
    findings = check(load_data(folder), options=FAST)
    assert findings["duplicate-with-different-labels"].groups == (("cat/00.png", "dog/copy.png"),)
    assert findings["duplicate-with-different-labels"].level == "error"
    assert findings["near-duplicate-with-different-labels"].groups == (("cat/again.jpg", "dog/01.png"),)


def made(labels: list[int], names: tuple[str, ...] = ("a", "b", "c")) -> Dataset:
    images = np.stack([scene(k, 32) for k in range(len(labels))])
    return from_arrays(images, np.array(labels), names, layout="NHWC", name="m")


def test_balance() -> None:
    findings = check(made([0] * 40 + [1] * 3), options=FAST)
    assert findings["empty-class"].data["classes"] == ["c"]
    assert findings["class-imbalance"].data["ratio"] == pytest.approx(40 / 3)
    assert findings["few-samples"].data["classes"] == {"b": 3}
    assert check(made([0] * 30, ("a",)), options=FAST)["one-class"].level == "error"


def test_settings_that_are_advised_can_be_typed() -> None:
    advised = set()
    for path in Path(rules.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "fix":
                texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
                advised |= {word for text in texts for word in re.findall(r"[a-z_]+(?:\.[a-z_]+)+=\w+", text)}
    assert {"task.balance=effective", "data.split.by=stratified"} <= advised
    for word in advised:
        new_recipe("classify", [overrides([word])])


def test_class_missing_from_a_part() -> None:
    dataset = made([0] * 30 + [1] * 30, ("a", "b"))
    parts = np.zeros(60, np.int8)
    parts[:10] = 2
    findings = check(dataset, parts, options=FAST)
    assert findings["class-missing-from-split"].data == {"head": "label", "part": "test", "classes": ["b"]}
    assert findings["class-missing-from-split"].level == "warning"
    parts[30:] = 1
    assert any(f.code == "class-missing-from-split" and f.level == "error" for f in check(dataset, parts, options=FAST))


def test_missing_labels() -> None:
    finding = check(made([0] * 30 + [1] * 29 + [-1], ("a", "b")), options=FAST)["missing-label"]
    assert finding.ids == ("m#59",)


def test_label_that_follows_the_file_format(folder: Path) -> None:
    for path in (folder / "dog").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    for k in range(100, 120):
        Image.fromarray(scene(k)).save(folder / ("cat/x{}.png", "dog/x{}.jpg")[k % 2].format(k))
    assert found(folder, "label-follows-file").data["clue"] == "file format"


def digits(wrong: int, seed: int) -> tuple[Dataset, set[str]]:
    bunch = load_digits()
    generator = np.random.default_rng(seed)
    labels = bunch.target.copy()
    chosen = generator.permutation(len(labels))[:wrong]
    labels[chosen] = (labels[chosen] + generator.integers(1, 10, wrong)) % 10
    images = (bunch.images * 15.9375).astype(np.uint8)
    names = tuple("0123456789")
    return from_arrays(images, labels, names, layout="NHW", name="d"), {f"d#{i}" for i in chosen}


def test_clean_digits_have_few_suspects() -> None:
    findings = check(digits(0, 0)[0])
    finding = findings["suspect-label"]
    assert finding.data["accuracy"] > 0.99
    assert finding.data["count"] <= 6
    assert codes(findings) <= {"suspect-label"}


def planted_and_named(wrong: int, seed: int) -> int:
    """How many of the planted wrong labels stand among the first wrong + 2 names."""
    dataset, planted = digits(wrong, seed)
    finding = check(dataset, options=CheckOptions(only=("suspect-labels",)))["suspect-label"]
    assert finding.data["count"] <= wrong + 6
    assert all(entry["given"] != entry["suggested"] for entry in finding.data["suspects"])
    return len(planted & set(finding.ids[: wrong + 2]))


def test_one_planted_wrong_digit_is_named_first() -> None:
    # Every draw counts, not those that pass: seed 4 is a known miss (25 of 26 draws measured, see suspects.py).
    assert sum(planted_and_named(1, seed) for seed in range(6)) >= 5


@pytest.mark.parametrize("seed", range(6))
def test_ten_planted_wrong_digits_are_named_first(seed: int) -> None:
    assert planted_and_named(10, seed) >= 8


def test_labels_of_noise_are_not_judged() -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (200, 16, 16), dtype=np.uint8)
    findings = check(from_arrays(images, generator.integers(0, 2, 200), layout="NHW", name="n"))
    assert "probe-too-weak" in findings
    assert "suspect-label" not in findings


def test_planted_leak_in_digits() -> None:
    bunch = load_digits()
    images = (bunch.images * 15.9375).astype(np.uint8)
    images[1700] = images[3]
    dataset = from_arrays(images, bunch.target, layout="NHW", name="d")
    parts = np.where(np.arange(len(images)) < 1500, 0, 2).astype(np.int8)
    assert check(dataset, parts, options=FAST)["exact-duplicate-across-splits"].groups == (("d#3", "d#1700"),)


def test_files_and_arrays_are_measured_alike(tmp_path: Path) -> None:
    from opsin.analyze.check.scan import measure

    images = np.stack([scene(k, 40) for k in range(6)])
    for k, image in enumerate(images):
        path = tmp_path / ("a", "b")[k // 3] / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    one = measure(load_data(tmp_path), CheckOptions())
    other = measure(from_arrays(images, [0, 0, 0, 1, 1, 1], layout="NHWC"), CheckOptions())
    np.testing.assert_array_equal(one.hashes, other.hashes)
    np.testing.assert_array_equal(one.thumbnails, other.thumbnails)
    assert one.tints is not None
    assert other.tints is not None
    np.testing.assert_array_equal(one.tints, other.tints)


def test_threads_change_nothing(folder: Path) -> None:
    (folder / "dog" / "copy.png").write_bytes((folder / "cat" / "00.png").read_bytes())
    results = [check(load_data(folder), options=CheckOptions(threads=t)).to_dict()["findings"] for t in (1, 4)]
    assert results[0] == results[1]


def test_wrong_use_is_an_error(folder: Path) -> None:
    dataset = load_data(folder)
    with pytest.raises(UnknownName, match="Did you mean 'copies'"):
        check(dataset, options=CheckOptions(only=("copie",)))
    with pytest.raises(ShapeError, match="24 samples"):
        check(dataset, np.zeros(3, np.int8))


def test_page_and_table_show_every_finding(folder: Path) -> None:
    from rich.console import Console

    (folder / "dog" / "<b>.png").write_bytes((folder / "cat" / "00.png").read_bytes())
    (folder / "dog" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
    dataset = load_data(folder)
    findings = check(dataset, options=FAST)
    text = page_html(findings, dataset)
    assert all(f.code in text for f in findings)
    assert "data:image/jpeg;base64," in text
    assert "<b>.png" not in text
    assert "http" not in text
    assert "cannot be read" in text
    small = page_html(findings, dataset, budget=1)
    assert len(small) < len(text)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(findings))
    shown = console.export_text()
    assert all(f.code in shown for f in findings)


def test_every_check_has_one_file_and_one_name() -> None:
    assert len(checks) == len(list(Path(checks.module("copies").__file__ or "").parent.glob("[a-z]*.py")))
