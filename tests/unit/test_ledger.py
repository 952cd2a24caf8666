"""The ledger of looks: append-only, beside the data, safe against writers at the same time."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from opsin.data.home import home
from opsin.data.ledger import Ledger
from opsin.errors import DataError


def test_looks_are_kept_beside_the_data_by_test_ids(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.looks("t1") == []
    ledger.record("t1", "runs/a", "evaluate runs/a --split test", "accuracy", 0.5)
    ledger.record("t2", "runs/b", "evaluate runs/b")
    assert (tmp_path / ".opsin" / "test-looks.jsonl").is_file()
    (look,) = Ledger(tmp_path).looks("t1")
    assert (look.run, look.metric, look.value) == ("runs/a", "accuracy", 0.5)
    assert len(ledger.looks("t2")) == 1


def test_a_test_part_that_shares_pictures_goes_on_with_the_count(tmp_path: Path) -> None:
    old, grown = [f"{i}.png" for i in range(500)], [f"{i}.png" for i in range(560)]
    ledger = Ledger(tmp_path)
    ledger.record("t1", "runs/a", "evaluate", ids=old)
    ledger.record("t2", "runs/b", "evaluate", ids=grown)
    assert [look.run for look in ledger.looks("t2", grown)] == ["runs/a", "runs/b"]
    assert [look.run for look in ledger.looks("t3", grown[1:])] == ["runs/a", "runs/b"]
    assert ledger.looks("t4", [f"{i}.png" for i in range(1000, 1500)]) == []
    path = tmp_path / ".opsin" / "test-looks.jsonl"
    assert len(path.read_text().splitlines()[0]) < 2000
    path.write_text(
        '{"version": 1, "date": "2024", "test": "t5", "run": "r", "command": "c", "metric": null, "value": null}\n'
    )
    assert len(ledger.looks("t5", old)) == 1
    assert ledger.looks("t6", old) == []


def test_data_sets_that_share_a_ledger_are_not_taken_for_each_other(tmp_path: Path) -> None:
    ids = [f"{i}.png" for i in range(10)]
    for name in ("one.zip", "other.zip"):
        (tmp_path / name).write_bytes(b"")
    Ledger(tmp_path / "one.zip").record("t1", "r", "c", ids=ids)
    Ledger(None).record("t2", "r", "c", ids=ids)
    assert len(Ledger(tmp_path / "one.zip").looks("t3", ids[1:])) == 1
    assert Ledger(tmp_path / "other.zip").looks("t3", ids[1:]) == []
    assert Ledger(None).looks("t3", ids[1:]) == []


def test_archives_and_arrays_are_kept_at_home(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"")
    for place in (tmp_path / "data.zip", None):
        ledger = Ledger(place)
        assert ledger.beside is None
        ledger.record("t", "r", "c")
    assert len(Ledger(None).looks("t")) == 2
    assert (home() / "test-looks.jsonl").is_file()


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".opsin").write_text("a file stands in the way")
    ledger = Ledger(tmp_path)
    ledger.record("t", "r", "c")
    with pytest.raises(DataError, match="cannot be read"):
        ledger.looks("t")
    (tmp_path / ".opsin").unlink()
    assert len(ledger.looks("t")) == 1
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("OPSIN_HOME", str(blocked))
    with pytest.raises(DataError, match="Set OPSIN_HOME"):
        Ledger(None).record("t", "r", "c")


def test_a_broken_line_is_not_a_smaller_count(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.record("t", "r", "c")
    path = tmp_path / ".opsin" / "test-looks.jsonl"
    path.write_text(path.read_text() + '{"half": ')
    with pytest.raises(DataError, match="line 2: not a look"):
        ledger.looks("t")


def _write(place: str, count: int) -> None:
    for i in range(count):
        Ledger(place).record("t", f"run-{os.getpid()}-{i}", "x" * 3000)


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(str(tmp_path), 15)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    looks = Ledger(tmp_path).looks("t")
    assert len({look.run for look in looks}) == 60


def test_the_ledger_is_no_part_of_the_data(tmp_path: Path) -> None:
    from PIL import Image

    from opsin.data import load_data

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "1.png")
    before = load_data(tmp_path).fingerprint
    Ledger(tmp_path).record("t", "r", "c")
    after = load_data(tmp_path)
    assert (after.fingerprint, after.problems) == (before, [])
