"""The cache of decoded pictures: gives back what was read, within its budget, in every process."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from opsin import memory
from opsin.data import cache as module
from opsin.data.cache import Cache, make_cache, parse_bytes
from opsin.data.shrink import Shrunk, shrunk
from opsin.errors import ConfigError
from opsin.task import Sample


class Pictures:
    """Pictures of many sizes, types and memory layouts, counting how often each is read."""

    def __init__(self, count: int = 40) -> None:
        self.count, self.reads = count, [0] * count

    def __len__(self) -> int:
        return self.count

    def read(self, i: int, reduce_to: int | None = None) -> Sample:
        self.reads[i] += 1
        generator = np.random.default_rng([i, reduce_to or 0])
        side, channels = 8 + i, (1, 3, 3, 4)[i % 4]
        pixels = torch.from_numpy(generator.integers(0, 256, (side, side + 5, channels), np.uint8))
        image = pixels.permute(2, 0, 1)
        if i % 4 == 2:
            image = image.contiguous()
        if i % 5 == 1:
            image = image.to(torch.float32) / 255
        if i % 5 == 2:
            image = (image.to(torch.int32) * 257).to(torch.uint16)
        if i % 7 == 3:
            image = image[:, ::2, 1:]  # a view with gaps
        return Sample(f"p/{i}.png#0", image, {"label": i, "mask": torch.full((3, 2), i), "name": f"n{i}"})


def same(ours: Sample, theirs: Sample) -> bool:
    return (
        ours.id == theirs.id
        and ours.image.dtype == theirs.image.dtype
        and torch.equal(ours.image, theirs.image)
        and ours.target.keys() == theirs.target.keys()
        and torch.equal(ours.target["mask"], theirs.target["mask"])
        and (ours.target["label"], ours.target["name"]) == (theirs.target["label"], theirs.target["name"])
    )


def test_gives_what_was_read_and_reads_once() -> None:
    dataset, plain, cache = Pictures(), Pictures(), Cache(40, 10**6)
    for _ in range(3):
        for i in np.random.default_rng(0).permutation(40).tolist():
            assert same(cache.read(dataset, i), plain.read(i))
    assert dataset.reads == [1] * 40
    assert cache.info().samples == 40
    hit, fresh = cache.read(dataset, 1).image, plain.read(1).image
    assert hit.stride() == fresh.stride()  # interleaved pixels stay interleaved


def test_another_reduction_is_not_mixed_up() -> None:
    dataset, plain, cache = Pictures(), Pictures(), Cache(40, 10**6)
    for reduce_to in (None, 5, None, 9, 5):
        assert same(cache.read(dataset, 3, reduce_to), plain.read(3, reduce_to))
    assert cache.info().samples == 1


@pytest.mark.parametrize("budget", [0, 500, 5_000, 30_000])
def test_budget_is_kept_and_memory_stays_flat(budget: int) -> None:
    dataset, plain, cache = Pictures(), Pictures(), Cache(40, budget)
    used = []
    for _ in range(4):
        for i in range(40):
            assert same(cache.read(dataset, i), plain.read(i))
        used.append(cache.info())
    assert used[0] == used[-1]
    assert used[0].used_bytes <= budget
    assert used[0].samples < 40
    assert budget < 5_000 or used[0].samples > 2
    again = sum(reads > 1 for reads in dataset.reads)
    assert again == 40 - used[0].samples


def _fill(cache: Cache, start: int, queue: Any) -> None:
    dataset, plain = Pictures(), Pictures()
    order = np.roll(np.arange(40), start).tolist()
    good = all(same(cache.read(dataset, i), plain.read(i)) for _ in range(3) for i in order)
    queue.put((good, sum(dataset.reads)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_it(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot start processes by {method}")
    context = multiprocessing.get_context(method)
    cache, queue = Cache(40, 10**6), context.Queue()
    processes = [context.Process(target=_fill, args=(cache, 10 * i, queue)) for i in range(2)]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert all(good for good, _ in answers)
    assert cache.info().samples == 40
    here = Pictures()
    assert all(same(cache.read(here, i), Pictures().read(i)) for i in range(40))
    assert here.reads == [0] * 40  # others have read them
    assert sum(reads for _, reads in answers) <= 2 * 40


def test_systems_without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module.os, "memfd_create")
    dataset, plain, cache = Pictures(), Pictures(), Cache(40, 10**6)
    for _ in range(2):
        for i in range(40):
            assert same(cache.read(dataset, i), plain.read(i))
    assert dataset.reads == [1] * 40


@given(st.integers(0, 10**6), st.sampled_from(["", "B", "KB", "MB", "GB", "KiB", "MiB", "GiB", "kb", "g", "M"]))
def test_amounts_of_memory(number: int, unit: str) -> None:
    factor = {"": 1, "B": 1, "K": 1000, "M": 10**6, "G": 10**9}
    binary = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    upper = unit.upper()
    expected = number * (binary[upper] if upper in binary else factor[upper.rstrip("B") or upper])
    assert parse_bytes(f"{number}{unit}") == parse_bytes(f" {number} {unit} ") == expected


@pytest.mark.parametrize("text", ["much", "-1GB", "1XB", "GB", "", "1 2", "1iB"])
def test_not_an_amount_of_memory(text: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.cache"):
        parse_bytes(text)


def test_setting() -> None:
    dataset = Pictures()
    assert make_cache("none", dataset) is None
    assert make_cache("2MB", dataset).budget_bytes == 2_000_000
    assert make_cache("2MB", dataset, share=0.25).budget_bytes == 500_000
    assert 0 < make_cache("auto", dataset).budget_bytes < memory.assumed_memory()
    with pytest.raises(ConfigError):
        make_cache("lots", dataset)
    dataset.arrays = np.zeros(1)
    assert make_cache("auto", dataset) is None


def test_limit_of_a_container_is_respected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "unlimited").write_text("max\n")
    files = [
        (tmp_path / "unlimited", tmp_path / "memory.current"),
        (tmp_path / "memory.max", tmp_path / "memory.current"),
    ]
    monkeypatch.setattr(memory, "_container_files", lambda: iter(files))
    assert memory.available_memory() == memory.assumed_memory() == 600_000


def test_cannot_be_sent_to_strangers() -> None:
    with pytest.raises((RuntimeError, AssertionError)):
        pickle.dumps(Cache(4, 1000))


def test_shrunk_pictures_are_small_before_they_are_kept() -> None:
    small, cache, plain = Shrunk(Pictures(), 20), Cache(40, 10**6), Pictures()
    for i in range(40):
        fresh, kept = cache.read(small, i, 10), cache.read(small, i, 10)
        assert same(fresh, kept)
        whole = plain.read(i, 20)  # never asked for fewer pixels than the shrunk picture has
        short = min(whole.image.shape[1:])
        assert min(fresh.image.shape[1:]) == min(short, 20)
        if short <= 20:
            assert torch.equal(fresh.image, whole.image)
        elif whole.image.dtype == torch.uint8:
            peer = v2.functional.resize(whole.image, 20, antialias=True)
            assert torch.equal(fresh.image, peer)
    assert sum(small.dataset.reads) == 40


def test_shrinking_is_refused_where_it_would_do_harm() -> None:
    dataset = Pictures()
    assert shrunk(dataset, None, None) is dataset
    with pytest.raises(ConfigError, match=r"data\.shrink=200 .* at least 256"):
        shrunk(dataset, 200, 256)
    with pytest.raises(ConfigError, match=r"data\.shrink is for photographs"):
        shrunk(dataset, 200, None)
