"""Splits: what is given decides; shares per class; groups, time, folds, continuation; independent of file order."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.data import Dataset, Split, SplitFile, make_split
from opsin.data.columns import StringColumn
from opsin.data.dataset import ArraySource, HeadSpec
from opsin.data.dealing import deal, deal_groups, shares_of
from opsin.errors import ConfigError, DataError
from opsin.recipe import SplitSettings


def dataset(
    labels: Sequence[int],
    *,
    ids: Sequence[str] | None = None,
    parts: Sequence[int] | None = None,
    **attributes: Sequence[str],
) -> Dataset:
    n, classes = len(labels), max([*labels, 0]) + 1
    return Dataset(
        "toy",
        ids or [f"{i:05d}.png" for i in range(n)],
        ArraySource(np.zeros((n, 1, 2, 2), np.uint8)),
        heads=(HeadSpec("label", "single", tuple(f"c{k}" for k in range(classes))),),
        targets={"label": np.array(labels, np.int64)},
        given_split=None if parts is None else np.array(parts, np.int8),
        attributes={name: StringColumn(cells) for name, cells in attributes.items()},
        roles={"time": "when"} if "when" in attributes else {},
    )


def sizes(split: Split) -> list[int]:
    return [len(split.indices(part)) for part in ("train", "val", "test")]


def test_nothing_given_makes_three_parts_with_exact_shares_per_class() -> None:
    split = make_split(dataset([0] * 100 + [1] * 40 + [2] * 20))
    assert {part: dict(c) for part, c in split.counts.items()} == {
        "train": {"": 112, "c0": 70, "c1": 28, "c2": 14},
        "val": {"": 24, "c0": 15, "c1": 6, "c2": 3},
        "test": {"": 24, "c0": 15, "c1": 6, "c2": 3},
    }
    assert split.problems == ()


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=30),
    st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (0.9, 0.05, 0.05)]),
)
def test_shares_are_within_one_of_ideal_and_nothing_is_lost(counts: list[int], fractions: tuple[float, ...]) -> None:
    shares = shares_of(np.array(counts), np.array(fractions))
    assert (shares.sum(axis=1) == counts).all()
    assert (shares >= 0).all()
    ideal = np.outer(counts, fractions)
    large = np.array(counts) * min(fractions) >= 1
    assert (abs(shares - ideal)[large] < 1 + 1e-9).all()
    enough = np.array(counts) >= 3
    assert (shares[enough] >= 1).all()
    assert (shares[(np.array(counts) > 0), 0] >= 1).all()


def test_many_small_classes_do_not_all_round_the_same_way() -> None:
    shares = shares_of(np.full(100, 10), np.array([0.7, 0.15, 0.15])).sum(axis=0)
    assert shares.tolist() == [700, 150, 150]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.randoms())
def test_order_of_files_does_not_matter_and_seed_does(seed: int, random: object) -> None:
    labels = [i % 3 for i in range(60)]
    ids = [f"p{i}.png" for i in range(60)]
    base = make_split(dataset(labels, ids=ids), SplitSettings(seed=seed, folds=None, fold=0)).to_file().parts
    order = list(range(60))
    random.shuffle(order)  # type: ignore[attr-defined]
    other = make_split(
        dataset([labels[i] for i in order], ids=[ids[i] for i in order]), SplitSettings(seed=seed, folds=None, fold=0)
    )
    assert {p: set(i) for p, i in other.to_file().parts.items()} == {p: set(i) for p, i in base.items()}
    third = make_split(dataset(labels, ids=ids), SplitSettings(seed=seed + 1, folds=None, fold=0)).to_file().parts
    assert set(third["test"]) != set(base["test"])


def test_adding_pictures_moves_few_others() -> None:
    old = make_split(dataset([0] * 1000))
    new = make_split(dataset([0] * 1010))
    before, after = dict(zip(old.ids, old.assignment)), dict(zip(new.ids, new.assignment))
    assert sum(before[i] != after[i] for i in before) <= 6


class TestGiven:
    def test_train_and_test(self) -> None:
        split = make_split(dataset([0, 1] * 50, parts=[0] * 80 + [2] * 20))
        assert sizes(split) == [66, 14, 20]
        assert split.indices("test").tolist() == list(range(80, 100))
        assert "val cut from train (18% of it)" in split.method

    def test_train_and_val(self) -> None:
        split = make_split(dataset([0, 1] * 50, parts=[0] * 80 + [1] * 20))
        assert sizes(split) == [66, 20, 14]
        assert "test cut from train (18% of it)" in split.method

    def test_all(self) -> None:
        split = make_split(dataset([0, 1] * 50, parts=[0] * 60 + [1] * 20 + [2] * 20))
        assert sizes(split) == [60, 20, 20]
        assert split.method == "as given"

    def test_only_one_part_or_a_mix(self) -> None:
        assert sizes(make_split(dataset([0] * 100, parts=[0] * 100))) == [70, 15, 15]
        with pytest.raises(DataError, match="40 of 100 samples belong to no part"):
            make_split(dataset([0] * 100, parts=[0] * 60 + [-1] * 40))
        with pytest.raises(DataError, match="no train part"):
            make_split(dataset([0] * 100, parts=[1] * 60 + [2] * 40))


class TestGroups:
    def test_groups_never_straddle_and_shares_are_kept(self) -> None:
        rng = np.random.default_rng(0)
        owner = rng.integers(0, 60, 900)
        labels = ((owner % 3 == 0) & (rng.random(900) < 0.8)).astype(int)
        data = dataset(labels.tolist(), patient=[f"p{p}" for p in owner])
        split = make_split(data, SplitSettings(group="patient", folds=None, fold=0))
        for patient in range(60):
            assert len(set(split.assignment[owner == patient].tolist())) <= 1
        share = [(split.assignment == code).mean() for code in range(3)]
        assert np.allclose(share, [0.7, 0.15, 0.15], atol=0.03)
        rates = [labels[split.assignment == code].mean() for code in range(3)]
        assert np.ptp(rates) < 0.06

    def test_class_is_the_group(self) -> None:
        data = dataset([i // 10 for i in range(400)], who=[f"g{i // 10}" for i in range(400)])
        assert sizes(make_split(data, SplitSettings(group="who", folds=None, fold=0))) == [280, 60, 60]

    def test_too_few_groups(self) -> None:
        with pytest.raises(DataError, match="There are 2 group"):
            make_split(dataset([0, 1] * 20, who=["a", "b"] * 20), SplitSettings(group="who", folds=None, fold=0))

    def test_three_unequal_groups_fill_three_parts(self) -> None:
        data = dataset([0, 1] * 50, who=["a"] * 90 + ["b"] * 6 + ["c"] * 4)
        assert sorted(sizes(make_split(data, SplitSettings(group="who", folds=None, fold=0)))) == [4, 6, 90]

    def test_torn_given_parts_are_a_problem(self) -> None:
        data = dataset([0, 1] * 30, parts=[0] * 30 + [1] * 15 + [2] * 15, who=["a", "b"] * 30)
        split = make_split(data, SplitSettings(group="who", folds=None, fold=0))
        assert any("2 group(s) of 'who' lie in more than one" in p.message for p in split.problems)

    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), min_size=9, max_size=80))
    def test_any_groups(self, pairs: list[tuple[int, int]]) -> None:
        groups, strata = np.array([g for g, _ in pairs]), np.array([s for _, s in pairs])
        fractions = np.array([0.6, 0.2, 0.2])
        if len(np.unique(groups)) < 3:
            with pytest.raises(DataError):
                deal_groups(groups, strata, np.arange(len(pairs), dtype=np.uint64), fractions)
            return
        parts = deal_groups(groups, strata, np.arange(len(pairs), dtype=np.uint64), fractions)
        assert set(parts.tolist()) == {0, 1, 2}
        for group in np.unique(groups):
            assert len(set(parts[groups == group].tolist())) == 1


class TestTime:
    def test_oldest_to_train_without_overlap(self) -> None:
        when = np.random.default_rng(1).integers(0, 40, 200)
        data = dataset([0] * 200, when=[str(t) for t in when])
        split = make_split(data, SplitSettings(by="chronological", folds=None, fold=0))
        train, val, test = (when[split.indices(p)] for p in ("train", "val", "test"))
        assert train.max() < val.min()
        assert val.max() < test.min()
        assert abs(len(train) - 140) <= 10

    def test_groups_across_the_border_and_missing_times(self) -> None:
        data = dataset([0] * 9, when=[str(i) for i in range(9)], who=["a", "b", "c"] * 3)
        with pytest.raises(DataError, match="reaches over the border"):
            make_split(data, SplitSettings(by="chronological", group="who", folds=None, fold=0))
        with pytest.raises(DataError, match="1 of 3 samples have no time"):
            make_split(dataset([0] * 3, when=["1", "", "2"]), SplitSettings(by="chronological", folds=None, fold=0))


class TestFolds:
    def test_every_sample_is_tested_once(self) -> None:
        data = dataset([i % 3 for i in range(50)])
        splits = [make_split(data, SplitSettings(folds=5, fold=f)) for f in range(5)]
        tested = np.concatenate([s.indices("test") for s in splits])
        assert sorted(tested.tolist()) == list(range(50))
        assert all(len(s.indices("test")) == 10 for s in splits)
        assert all(abs(s.counts["test"]["c0"] - 17 / 5) < 1 for s in splits)

    def test_grouped_folds(self) -> None:
        who = [f"g{i % 10}" for i in range(100)]
        data = dataset([i % 2 for i in range(100)], who=who)
        splits = [make_split(data, SplitSettings(folds=5, fold=f, group="who")) for f in range(5)]
        assert sorted(np.concatenate([s.indices("test") for s in splits]).tolist()) == list(range(100))
        for split in splits:
            test = {who[i] for i in split.indices("test")}
            assert not test & {who[i] for i in split.indices("train")}

    def test_contradictions(self) -> None:
        with pytest.raises(ConfigError, match="goes from 0 to 4"):
            make_split(dataset([0] * 20), SplitSettings(folds=5, fold=5))
        with pytest.raises(ConfigError, match="comes with a val or test part"):
            make_split(dataset([0] * 20, parts=[0] * 15 + [2] * 5), SplitSettings(folds=5, fold=0))
        with pytest.raises(ConfigError, match="future"):
            make_split(dataset([0] * 20), SplitSettings(folds=5, fold=0, by="chronological"))


class TestEarlier:
    def test_old_ids_keep_their_part(self) -> None:
        old = make_split(dataset([i % 2 for i in range(100)]))
        stored = SplitFile.from_json(json.loads(json.dumps(old.to_json())))
        new = make_split(dataset([i % 2 for i in range(160)]), SplitSettings(seed=9, folds=None, fold=0), stored)
        assert (new.assignment[:100] == old.assignment).all()
        assert sizes(new) == [112, 24, 24]
        assert "100 ids as in the earlier split, 60 new ids" in new.method

    def test_new_members_join_their_group(self) -> None:
        who = [f"g{i % 10}" for i in range(200)]
        old = make_split(dataset([0, 1] * 50, who=who[:100]), SplitSettings(group="who", folds=None, fold=0))
        new = make_split(dataset([0, 1] * 100, who=who), SplitSettings(group="who", folds=None, fold=0), old.to_file())
        for group in range(10):
            assert len(set(new.assignment[group::10].tolist())) == 1

    def test_a_few_new_groups_are_dealt_against_the_totals(self) -> None:
        who = [f"g{i // 10:02d}" for i in range(200)]
        settings = SplitSettings(group="who", folds=None, fold=0)
        old = make_split(dataset([0, 1] * 50, who=who[:100]), settings)
        one = make_split(dataset([0, 1] * 55, who=who[:110]), settings, old.to_file())
        assert (one.assignment[:100] == old.assignment).all()
        assert len(set(one.assignment[100:].tolist())) == 1
        many = make_split(dataset([0, 1] * 100, who=who), settings, old.to_file())
        assert sizes(many) == [140, 30, 30]
        given_test = dataset([0, 1] * 55, who=who[:110], parts=[*old.assignment.tolist(), *[2] * 10])
        assert (make_split(given_test, settings, old.to_file()).assignment[100:] == 2).all()

    def test_new_samples_keep_the_order_of_time(self) -> None:
        settings = SplitSettings(by="chronological", folds=None, fold=0)
        when = [str(10 * i) for i in range(100)]
        old = make_split(dataset([0] * 100, when=when), settings)
        val = min(old.indices("val"))
        new = make_split(dataset([0] * 103, when=[*when, "5", str(10 * val + 1), "99999"]), settings, old.to_file())
        assert new.assignment[100:].tolist() == [0, 1, 2]
        assert (new.assignment[:100] == old.assignment).all()
        who, grouped = [f"g{i}" for i in range(100)], SplitSettings(by="chronological", group="who", folds=None, fold=0)
        for later, owner in ((["99999"], ["g0"]), (["5", "99999"], ["new", "new"])):
            data = dataset([0] * (100 + len(later)), when=[*when, *later], who=[*who, *owner])
            with pytest.raises(DataError, match="reach over the border in time"):
                make_split(data, grouped, old.to_file())

    def test_other_data_is_an_error(self) -> None:
        old = make_split(dataset([0] * 50)).to_file()
        with pytest.raises(DataError, match="none of its 40 ids"):
            make_split(dataset([0] * 40, ids=[f"x{i}" for i in range(40)]), None, old)


def test_a_stored_split_is_applied_again(tmp_path: object) -> None:
    data = dataset([i % 2 for i in range(40)])
    split = make_split(data)
    split.to_file().save(tmp_path / "split.json")  # type: ignore[operator]
    again = Split.from_file(data, SplitFile.load(tmp_path / "split.json"))  # type: ignore[operator]
    assert (again.assignment == split.assignment).all()
    assert again.test_fingerprint == split.test_fingerprint
    with pytest.raises(DataError, match="10 samples are not in the stored split"):
        Split.from_file(dataset([i % 2 for i in range(50)]), split.to_file())


def test_rare_classes_are_said_and_too_little_data_is_an_error() -> None:
    split = make_split(dataset([0] * 40 + [1, 1]))
    assert any("Class 'c1' has 2 sample(s)" in p.message for p in split.problems)
    with pytest.raises(DataError, match="no sample is left for the"):
        make_split(dataset([0, 0]))


def test_unlabelled_multi_and_number_targets() -> None:
    base = ArraySource(np.zeros((60, 1, 2, 2), np.uint8))
    ids = [f"{i}" for i in range(60)]
    assert sizes(make_split(Dataset("u", ids, base))) == [42, 9, 9]
    multi = np.zeros((60, 2), np.float32)
    multi[:30, 0] = multi[20:26, 1] = 1
    data = Dataset("m", ids, base, heads=(HeadSpec("label", "multi", ("a", "b")),), targets={"label": multi})
    assert make_split(data).counts["test"]["b"] == 1
    numbers = Dataset("r", ids, base, heads=(HeadSpec("age", "regression"),), targets={"age": np.arange(60.0)})
    test = make_split(numbers).indices("test")
    assert np.ptp(test) > 40


def test_deal_covers_every_part() -> None:
    parts = deal(np.zeros(7, np.int64), np.arange(7, dtype=np.uint64), np.array([0.5, 0.25, 0.25]))
    assert np.bincount(parts).tolist() == [3, 2, 2] or np.bincount(parts).tolist() == [4, 2, 1]
