"""Loaders: the same samples whatever the workers, cache, table and number of processes; errors that name the sample."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from opsin import seeding
from opsin.data import transforms
from opsin.data.cache import Cache
from opsin.data.loader import EvalLoader, TrainLoader, share
from opsin.data.resize import random_resized_crop, resize, stack
from opsin.errors import ConfigError, DataError
from opsin.task import Batch, Geometry, Prepared, Sample

N = 53


class Pictures:
    """Seeded pictures in memory, of one size or of many, that pretend to be files."""

    def __init__(self, count: int = N, sizes: int = 1, bad: int = -1, kill: int = -1, seconds: float = 0.0) -> None:
        self.count, self.sizes, self.bad, self.kill, self.seconds = count, sizes, bad, kill, seconds
        self.owner = os.getpid()

    def __len__(self) -> int:
        return self.count

    def id(self, i: int) -> str:
        return f"folder/{i:04}.jpg"

    def read(self, i: int, reduce_to: int | None = None) -> Sample:
        if i == self.bad:
            raise OSError("the file is cut off")
        if i == self.kill and os.getpid() != self.owner:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        side = 20 + 3 * (i % self.sizes)
        pixels = np.random.default_rng([i, reduce_to or 0]).integers(0, 256, (side, side + 4, 3), np.uint8)
        return Sample(
            self.id(i), torch.from_numpy(pixels).permute(2, 0, 1), {"label": i % 7, "box": np.array([i, 1.0])}
        )


class Crops:
    """A task whose prepared samples depend on the key, or not (static)."""

    def __init__(
        self, static: bool = False, mixes: bool = False, same_size: bool = True, reduce_to: int | None = None
    ) -> None:
        self.static_prepare, self.mixes, self.same_size, self.reduce_to = static, mixes, same_size, reduce_to

    def prepare(self, sample: Sample, key: int, train: bool) -> Prepared:
        if train and not self.static_prepare:
            image, geometry = random_resized_crop(sample.image, key, (16, 16))
        elif self.same_size:
            image, geometry = resize(sample.image, (16, 16))
        else:
            image, geometry = sample.image, Geometry(tuple(sample.image.shape[1:]), tuple(sample.image.shape[1:]))
        return Prepared(sample.id, image, sample.target, geometry, {"label": sample.target["label"]})

    def collate(self, samples: Sequence[Prepared], keys: np.ndarray) -> Batch:
        images = [s.inputs for s in samples]
        targets = {
            "label": torch.tensor([s.target["label"] for s in samples]),
            "box": torch.from_numpy(np.stack([s.target["box"] for s in samples])),
            "name": [s.id for s in samples],
        }
        inputs = stack(images) if self.same_size else images
        return Batch(
            inputs, targets, [s.geometry for s in samples], [s.original for s in samples], [s.id for s in samples], keys
        )

    def partners(self, keys: np.ndarray) -> np.ndarray | None:
        return transforms.partners(keys) if self.mixes else None


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return bool(type(a) is type(b) and a == b)


def equal(ours: Sequence[Batch], theirs: Sequence[Batch]) -> bool:
    return len(ours) == len(theirs) and all(same(vars(a), vars(b)) for a, b in zip(ours, theirs))


def loader(task: Any, dataset: Any = None, **options: Any) -> TrainLoader:
    dataset = dataset or Pictures()
    return TrainLoader(dataset, np.arange(len(dataset)), task, **{"batch_size": 8, "seed": 3, **options})


@pytest.fixture
def closing() -> Iterator[list[Any]]:
    opened: list[Any] = []
    yield opened
    for one in opened:
        one.close()


OPTIONS = {
    "two workers": {"workers": 2},
    "four workers": {"workers": 4},
    "cache": {"cache": 10**6},
    "small cache": {"cache": 20_000},
    "cache and workers": {"workers": 2, "cache": 10**6},
    "cache and spawned workers": {"workers": 2, "cache": 10**6, "start_method": "spawn"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_workers_and_cache_change_nothing(name: str, closing: list[Any]) -> None:
    options = dict(OPTIONS[name])
    if "cache" in options:
        options["cache"] = Cache(N, options["cache"])
    dataset = Pictures(sizes=3)
    task = Crops(mixes=True, reduce_to=5)
    plain, other = loader(task, dataset), loader(task, dataset, **options)
    closing.append(other)
    for epoch in (0, 1, 2):
        assert equal(list(other.epoch(epoch)), list(plain.epoch(epoch)))
    assert equal(list(other.epoch(1, start=4)), list(plain.epoch(1))[4:])
    if "cache" in options:
        assert options["cache"].info().samples == (
            N if options["cache"].budget_bytes == 10**6 else options["cache"].info().samples
        )
        assert 0 < options["cache"].info().used_bytes <= options["cache"].budget_bytes


def test_an_epoch_that_is_left_early_does_not_disturb_the_next(closing: list[Any]) -> None:
    plain, other = loader(Crops()), loader(Crops(), workers=2)
    closing.append(other)
    given = other.epoch(0)
    next(given)
    next(given)
    assert equal(list(other.epoch(1)), list(plain.epoch(1)))
    del given
    assert equal(list(other.epoch(2)), list(plain.epoch(2)))


@pytest.mark.parametrize("mixes", [False, True])
def test_table_gives_the_batches_of_the_decode_path(mixes: bool, closing: list[Any]) -> None:
    dataset = Pictures(sizes=3)
    slow = loader(Crops(static=True, mixes=mixes), dataset, table_bytes=0)
    for options in ({}, {"workers": 2}, {"cache": Cache(N, 10**6)}):
        fast = loader(Crops(static=True, mixes=mixes), dataset, **options)
        closing.append(fast)
        for epoch in (0, 5):
            assert equal(list(fast.epoch(epoch)), list(slow.epoch(epoch)))
        assert fast._batches.table is not None
        assert fast._batches.feed._loader is None  # no idle processes
    assert slow._batches.table is None
    batch = next(fast.epoch(0))
    batch.inputs.zero_()
    batch.targets["label"].zero_()
    assert equal(list(fast.epoch(0)), list(slow.epoch(0)))  # a batch is a copy


def test_no_table_where_it_would_be_wrong() -> None:
    for task, dataset in (
        (Crops(), Pictures()),
        (Crops(static=True, same_size=False), Pictures(sizes=3)),
    ):
        one = loader(task, dataset)
        assert len(list(one.epoch(0))) == 7
        assert one._batches.table is None


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_together_give_the_single_process_batch(world: int, mixes: bool, static: bool) -> None:
    task = Crops(static=static, mixes=mixes)
    single = list(loader(task).epoch(4))
    parts = [list(loader(task, rank=rank, world=world).epoch(4)) for rank in range(world)]
    assert [len(p) for p in parts] == [len(single)] * world
    for step, whole in enumerate(single):
        shares = [part[step] for part in parts]
        assert [len(s) for s in shares] == [b - a for a, b in (share(len(whole), r, world) for r in range(world))]
        for name in ("ids", "originals", "geometry"):
            assert [x for s in shares for x in getattr(s, name)] == getattr(whole, name)
        assert torch.equal(torch.cat([s.inputs[: len(s)] for s in shares]), whole.inputs)
        assert torch.equal(torch.cat([s.targets["label"][: len(s)] for s in shares]), whole.targets["label"])
        assert np.array_equal(np.concatenate([s.keys[: len(s)] for s in shares]), whole.keys)
        if mixes:
            chosen = torch.from_numpy(whole.partners)
            assert torch.equal(
                torch.cat([s.inputs[torch.from_numpy(s.partners)] for s in shares]), whole.inputs[chosen]
            )
            assert np.array_equal(np.concatenate([s.keys[s.partners] for s in shares]), whole.keys[whole.partners])
            assert [n for s in shares for n in np.array(s.targets["name"])[s.partners]] == [
                whole.targets["name"][i] for i in whole.partners
            ]
        else:
            assert all(s.partners is None for s in shares)


def test_order_and_keys() -> None:
    batches = list(loader(Crops()).epoch(0))
    assert [len(b) for b in batches] == [8] * 6 + [5]
    assert sorted(name for b in batches for name in b.ids) == [Pictures().id(i) for i in range(N)]
    assert np.array_equal(np.concatenate([b.keys for b in batches]), seeding.keys(3, 0, np.arange(N)))
    orders = [
        [n for b in loader(Crops(), seed=seed).epoch(epoch) for n in b.ids] for seed, epoch in ((3, 0), (3, 1), (4, 0))
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders[0] != sorted(orders[0])
    assert [n for b in loader(Crops(), batch_size=10).epoch(0) for n in b.ids] == orders[0]


@pytest.mark.parametrize(
    ("count", "batch", "world", "least", "sizes"),
    [
        (53, 8, 1, 1, [8] * 6 + [5]),
        (48, 8, 1, 1, [8] * 6),
        (17, 8, 1, 1, [8, 9]),
        (18, 8, 1, 1, [8, 8, 2]),
        (18, 8, 2, 1, [8, 8, 2]),
        (18, 8, 3, 1, [8, 10]),
        (19, 8, 2, 2, [8, 11]),
        (5, 8, 3, 1, [5]),
        (3, 8, 3, 1, [3]),
        (3, 1, 1, 1, [1, 1, 1]),
    ],
)
def test_a_rest_too_small_for_a_batch_lengthens_the_one_before(
    count: int, batch: int, world: int, least: int, sizes: list[int]
) -> None:
    options = {"batch_size": batch, "world": world, "least": least}
    loaders = [loader(Crops(), Pictures(count), rank=rank, **options) for rank in range(world)]
    parts = [list(one.epoch(0)) for one in loaders]
    assert [sum(map(len, shares)) for shares in zip(*parts, strict=True)] == sizes
    assert min(len(share) for part in parts for share in part) >= min(least, batch)
    assert len({name for part in parts for share in part for name in share.ids}) == count
    assert all((one.steps_per_epoch, one.samples_per_epoch) == (len(sizes), count) for one in loaders)
    assert equal(list(loaders[0].epoch(0, start=len(sizes) - 1)), parts[0][-1:])


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(129, 64, [43, 43, 43]), (10, 4, [4, 3, 3]), (4, 3, [2, 2]), (5, 2, [3, 2]), (3, 2, [3]), (3, 1, [1, 1, 1])],
)
def test_no_micro_batch_has_a_single_sample(count: int, size: int, sizes: list[int]) -> None:
    batch = next(loader(Crops(), Pictures(count), batch_size=count).epoch(0))
    parts = batch.split(size)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat([part.inputs for part in parts]), batch.inputs)
    assert [name for part in parts for name in part.ids] == batch.ids


def test_subset_of_the_data_set() -> None:
    chosen = np.array([5, 9, 2, 40])
    for static in (False, True):
        train = TrainLoader(Pictures(), chosen, Crops(static=static), batch_size=3, seed=0)
        assert sorted(n for b in train.epoch(0) for n in b.ids) == sorted(Pictures().id(i) for i in chosen)
        evaluate = EvalLoader(Pictures(), chosen, Crops(static=static), batch_size=3)
        assert [n for b in evaluate for n in b.ids] == [Pictures().id(i) for i in chosen]


@pytest.mark.parametrize("static", [False, True])
def test_evaluation_goes_in_order_over_contiguous_shares(static: bool, closing: list[Any]) -> None:
    dataset, indices = Pictures(sizes=2), np.arange(N)[::-1]
    whole = EvalLoader(dataset, indices, Crops(static=static), batch_size=10)
    batches = list(whole)
    assert len(batches) == len(whole) == 6
    assert [n for b in batches for n in b.ids] == [dataset.id(i) for i in indices]
    assert equal(list(whole), batches)  # again
    other = EvalLoader(dataset, indices, Crops(static=static), batch_size=10, workers=2, cache=Cache(N, 10**6))
    closing.append(other)
    assert equal(list(other), batches)
    parts = [EvalLoader(dataset, indices, Crops(static=static), batch_size=4, rank=r, world=3) for r in range(3)]
    found = [b for part in parts for b in part]
    assert [len(p) for p in parts] == [5, 5, 5]
    assert torch.equal(torch.cat([b.inputs for b in found]), torch.cat([b.inputs for b in batches]))
    assert np.array_equal(np.concatenate([b.keys for b in found]), np.concatenate([b.keys for b in batches]))
    empty = EvalLoader(dataset, indices[:1], Crops(static=static), batch_size=4, rank=1, world=2)
    assert len(EvalLoader(dataset, indices[:0], Crops(static=static), batch_size=4)) == 0
    assert len(list(empty)) == len(empty)


@pytest.mark.parametrize("workers", [0, 2])
def test_error_names_the_sample(workers: int, closing: list[Any]) -> None:
    one = loader(Crops(), Pictures(bad=17), workers=workers)
    closing.append(one)
    with pytest.raises(DataError, match=r"folder/0017\.jpg: OSError: the file is cut off"):
        list(one.epoch(0))
    assert one._batches.feed._loader is None
    whole = EvalLoader(Pictures(bad=17), np.arange(17), Crops(), batch_size=5, workers=workers)
    closing.append(whole)
    assert len(list(whole)) == 4


def test_killed_worker_is_a_clear_error(closing: list[Any]) -> None:
    one = loader(Crops(), Pictures(kill=30), workers=2)
    closing.append(one)
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(DataError, match=r"was killed .*data\.workers=1"):
        list(one.epoch(0))
    assert signal.getsignal(signal.SIGCHLD) == before


def test_close_ends_the_processes() -> None:
    import multiprocessing

    one = loader(Crops(), workers=2)
    batches = list(one.epoch(0))
    assert len(multiprocessing.active_children()) >= 2
    one.close()
    for _ in range(50):
        if not multiprocessing.active_children():
            break
        time.sleep(0.1)
    assert not multiprocessing.active_children()
    assert equal(list(one.epoch(0)), batches)
    one.close()


def test_small_shared_memory_is_not_needed(monkeypatch: pytest.MonkeyPatch, closing: list[Any]) -> None:
    from opsin.data import feed

    class Usage:
        free = 1000

    monkeypatch.setattr(feed.shutil, "disk_usage", lambda _: Usage)
    one = loader(Crops(mixes=True), workers=2)
    closing.append(one)
    assert equal(list(one.epoch(0)), list(loader(Crops(mixes=True)).epoch(0)))
    assert one._batches.feed._loader.dataset.by_value


def test_automatic_workers(monkeypatch: pytest.MonkeyPatch, closing: list[Any]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    for dataset, expected in ((Pictures(), 0), (Pictures(400, seconds=0.02), 3)):
        one = loader(Crops(), dataset, workers="auto")
        closing.append(one)
        next(one.epoch(0))
        assert one._batches.feed.workers == expected
    in_memory = Pictures(400, seconds=0.02)
    in_memory.arrays = np.zeros(1)
    one = loader(Crops(), in_memory, workers="auto")
    next(one.epoch(0))
    assert one._batches.feed.workers == 0


def test_impossible_settings() -> None:
    with pytest.raises(ConfigError, match="batch_size=2"):
        loader(Crops(), batch_size=2, world=3)
    with pytest.raises(ConfigError, match="at most one per sample"):
        loader(Crops(), Pictures(2), world=3)
    with pytest.raises(ConfigError, match="rank"):
        loader(Crops(), rank=3, world=3)
    with pytest.raises(ConfigError, match="batch_size=0"):
        EvalLoader(Pictures(), np.arange(5), Crops(), batch_size=0)
