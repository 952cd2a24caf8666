"""Every format: recognizes nothing in nothing, never crashes on junk, and reads back what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opsin.data import Dataset, HeadSpec, from_arrays, load_data
from opsin.data.formats import ENOUGH, format_module, formats, sniff
from opsin.data.objects import ObjectColumn, Objects
from opsin.data.places import Verdict, open_place
from opsin.errors import OpsinError


def toy(channels: int, size: int, labelled: bool, split: bool) -> Dataset:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (9, size, size) if channels == 1 else (9, channels, size, size)).astype(np.uint8)
    given = np.array([0] * 6 + [2] * 3, np.int8) if split else None
    labels = np.arange(9) % 3 if labelled else None
    return from_arrays(
        images,
        labels,
        ["ant", "bee", "cat"] if labelled else None,
        layout=None if channels == 1 else "NCHW",
        given_split=given,
    )


def toy_of_boxes(split: bool) -> Dataset:
    """Nine pictures with none to two boxes each."""
    plain = toy(3, 32, False, split)
    rng = np.random.default_rng(6)
    pictures = []
    for i in range(len(plain)):
        corners = rng.integers(0, 12, (i % 3, 2)).astype(np.float64)
        boxes = np.concatenate([corners, corners + rng.integers(4, 20, (i % 3, 2))], axis=1)
        pictures.append(Objects.of(boxes, rng.integers(0, 3, i % 3)))
    return Dataset(
        "boxes",
        plain.ids,
        plain.source,
        heads=(HeadSpec("objects", "objects", ("ant", "bee", "cat")),),
        targets={"objects": ObjectColumn.collect(pictures)},
        given_split=plain.given_split,
    )


TOYS = [
    toy(c, s, labelled, split)
    for c in (1, 3)
    for s in (32, 17)
    for labelled in (True, False)
    for split in (True, False)
] + [toy_of_boxes(split) for split in (True, False)]


@pytest.mark.parametrize("name", sorted(formats))
def test_has_the_functions_of_a_format(name: str) -> None:
    module = format_module(name)
    assert callable(module.sniff)
    assert callable(getattr(module, "read", None)) != isinstance(getattr(module, "REFUSAL", None), str)
    assert module.__doc__


@pytest.mark.parametrize("name", sorted(formats))
def test_nothing_and_junk_are_not_recognized(name: str, tmp_path: Path) -> None:
    module = format_module(name)
    assert module.sniff(open_place(tmp_path)).score < ENOUGH
    for file, content in (
        ("a.txt", b"hello"),
        ("b.csv", b"\xff\xfe\x00"),
        ("c.json", b"{"),
        ("d.xml", b"<"),
        ("e.bin", bytes(50)),
        ("f.jsonl", b"[1]"),
    ):
        (tmp_path / file).write_bytes(content)
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "sub" / file).write_bytes(content)
    verdict = module.sniff(open_place(tmp_path))
    assert isinstance(verdict, Verdict)
    assert verdict.score < ENOUGH
    for file in sorted(tmp_path.glob("*.*")):
        assert isinstance(module.sniff(open_place(file)), Verdict)


@pytest.mark.parametrize("name", sorted(formats))
def test_reading_what_it_is_not_is_an_error_of_ours(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(OpsinError):
        load_data(tmp_path, name)


@pytest.mark.parametrize("name", sorted(n for n in formats if hasattr(format_module(n), "write")))
def test_what_is_written_is_recognized_and_read_back(name: str, tmp_path: Path) -> None:
    module, written = format_module(name), 0
    for number, data in enumerate(TOYS):
        target = tmp_path / str(number)
        try:
            module.write(data, target)
        except OpsinError:
            assert not target.exists()
            continue
        written += 1
        candidates = sniff(open_place(target))
        assert candidates[0][0] == name
        again = load_data(target)
        assert again.heads == data.heads
        assert len(again) == len(data)
        order = matching(data, again)
        for head in data.targets:
            found, wanted = again.targets[head][order], data.targets[head]
            if isinstance(wanted, ObjectColumn):
                assert [one.tobytes() for one in found] == [one.tobytes() for one in wanted]
            else:
                assert np.array_equal(found, wanted)
        assert np.array_equal(again.given_split[order], data.given_split)
        assert not list(target.parent.glob("*.partial"))
    assert written >= 2


def matching(data: Dataset, again: Dataset) -> np.ndarray:
    """For every sample of `data`, the position of the same picture in `again`; fails when one is missing."""
    places = {}
    for j in range(len(again)):
        places[again[j].image.contiguous().numpy().tobytes()] = j
    return np.array([places[data[i].image.contiguous().numpy().tobytes()] for i in range(len(data))])


@pytest.mark.parametrize("name", sorted(n for n in formats if hasattr(format_module(n), "read")))
def test_reads_the_same_in_any_order_and_from_a_copy(name: str, tmp_path: Path) -> None:
    module = format_module(name)
    if not hasattr(module, "write"):
        pytest.skip("cannot be written")
    for number, data in enumerate(TOYS):
        target = tmp_path / str(number)
        try:
            module.write(data, target)
        except OpsinError:
            continue
        before = load_data(target).fingerprint
        target.rename(tmp_path / f"moved-{number}")
        moved = load_data(tmp_path / f"moved-{number}")
        assert moved.fingerprint == before
        order = np.random.default_rng(0).permutation(len(moved))
        shuffled = moved.select(order)
        assert shuffled.fingerprint == before
        assert all(torch.equal(shuffled[k].image, moved[int(i)].image) for k, i in enumerate(order))


def test_the_pictures_of_toys_differ() -> None:
    """So that `matching` means something."""
    for data in TOYS:
        assert len({data[i].image.numpy().tobytes() for i in range(len(data))}) == len(data)
    assert Image.MAX_IMAGE_PIXELS
