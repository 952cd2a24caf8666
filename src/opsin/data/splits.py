"""Splits: which samples are for training, validation and testing; decided once, by sample id, and stored.

What the data set gives decides: nothing given, all three parts are made; train and test given, val is cut from train;
train and val given, test is cut from train (and that is said); all given, they are taken as they are.

Every id has a hash key of (split seed, id), so the result does not depend on the order of files, and a picture that is
added moves few others. Random and stratified splits take the test part from one end of the order of keys and the train
part from the other; `opsin.data.dealing` says how many each part gets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.data.columns import StringColumn, ids_fingerprint
from opsin.data.dataset import PARTS, Dataset, Problem
from opsin.data.dealing import deal, deal_groups, deal_in_time, id_keys, strata_of
from opsin.data.objects import ObjectColumn
from opsin.errors import ConfigError, DataError
from opsin.recipe import SplitSettings

Parts = NDArray[np.int8]


@dataclass(frozen=True)
class SplitFile:
    """A split as it is stored: ids by part, the fingerprint of the data it was made for, and how it was made."""

    parts: Mapping[str, tuple[str, ...]]
    fingerprint: str
    method: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "version": 1,
            "fingerprint": self.fingerprint,
            "method": self.method,
            "parts": {part: list(ids) for part, ids in self.parts.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SplitFile:
        """Rebuild from `to_json`.

        Raises:
            DataError: if it is no split of version 1, or an id stands in two parts.
        """
        if values.get("version") != 1 or set(values.get("parts", {})) != set(PARTS):
            raise DataError(f"Not a split file of version 1 with the parts {', '.join(PARTS)}.")
        parts = {part: tuple(values["parts"][part]) for part in PARTS}
        every = [i for ids in parts.values() for i in ids]
        if len(set(every)) != len(every):
            raise DataError("The split file names an id in more than one part.")
        return cls(parts, values["fingerprint"], values["method"])

    def save(self, path: Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(self.to_json(), ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> SplitFile:
        """Read what `save` wrote.

        Raises:
            DataError: if the file is missing or no split file.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as a split file ({error}).") from error


@dataclass(frozen=True)
class Split:
    """The part of every sample of a data set.

    Args:
        ids: N sample ids, in the order of the data set.
        assignment: (N,) int8, positions in `PARTS` (0 train, 1 val, 2 test).
        method: how it was made, in a sentence.
        fingerprint: of the data set it was made for.
        counts: part to class name to samples (of the first head); "" counts all samples of the part.
        problems: what a person should know.
    """

    ids: StringColumn
    assignment: Parts
    method: str
    fingerprint: str
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def indices(self, part: str) -> NDArray[np.int64]:
        """Positions in the data set of the samples of a part, in ascending order.

        Raises:
            ConfigError: if `part` is not train, val or test.
        """
        if part not in PARTS:
            raise ConfigError(f"Unknown part '{part}'. Parts: {', '.join(PARTS)}.")
        return np.flatnonzero(self.assignment == PARTS.index(part))

    def ids_of(self, part: str) -> StringColumn:
        """Ids of the samples of a part."""
        return self.ids.take(self.indices(part))

    @property
    def test_fingerprint(self) -> str:
        """Short name of the set of test ids; the ledger of looks is kept under it."""
        return ids_fingerprint(self.ids_of("test"))

    def to_file(self) -> SplitFile:
        """The split as it is stored: ids, not positions."""
        return SplitFile({part: tuple(self.ids_of(part)) for part in PARTS}, self.fingerprint, self.method)

    def to_json(self) -> dict[str, Any]:
        """Plain values: ids by part, fingerprint, method, counts."""
        return {
            **self.to_file().to_json(),
            "counts": {part: dict(c) for part, c in self.counts.items()},
            "test_fingerprint": self.test_fingerprint,
        }

    @classmethod
    def from_file(cls, dataset: Dataset, file: SplitFile) -> Split:
        """A stored split applied to the very data it was made for.

        Raises:
            DataError: if a sample of the data set is not in the file; the message says how many.
        """
        place = {i: code for code, part in enumerate(PARTS) for i in file.parts[part]}
        assignment = np.fromiter((place.get(i, -1) for i in dataset.ids), np.int8, len(dataset))
        if missing := int((assignment < 0).sum()):
            first = dataset.id(int(np.flatnonzero(assignment < 0)[0]))
            raise DataError(
                f"{dataset.root}: {missing} samples are not in the stored split (e.g. {first}). Assign them with "
                "--split-from RUN."
            )
        return _finished(dataset, assignment, file.method, [])


def make_split(dataset: Dataset, settings: SplitSettings | None = None, earlier: SplitFile | None = None) -> Split:
    """Divide a data set into train, val and test.

    Args:
        dataset: N samples.
        settings: seed, fractions, by, group, folds; the defaults of the recipe when not given.
        earlier: a stored split: old ids keep their part, only new ids are assigned.

    Raises:
        DataError: if a part would be empty, groups are too few, times are missing or parts overlap in time.
        ConfigError: if settings contradict each other or what the data set gives.
    """
    settings = settings or SplitSettings.model_validate({})
    _check_settings(dataset, settings, earlier)
    problems: list[Problem] = []
    given = _given(dataset)
    groups = dataset.groups(settings.group) if settings.group else None
    if earlier is not None:
        assignment, method = _continued(dataset, settings, earlier, groups)
    else:
        assignment, method = _made(dataset, settings, given, groups)
    if groups is not None and (torn := _torn(assignment, groups)):
        problems.append(
            Problem(
                dataset.root,
                f"{torn} group(s) of '{settings.group}' lie in more than one given part: results will look better "
                "than they are.",
            )
        )
    return _finished(dataset, assignment, method, problems)


def _made(
    dataset: Dataset, settings: SplitSettings, given: Parts, groups: NDArray[np.int64] | None
) -> tuple[Parts, str]:
    train, val, test = settings.fractions
    present = {int(code) for code in np.unique(given)}
    if settings.folds is not None:
        return _folded(dataset, settings, given, groups)
    if {0, 1, 2} <= present:
        return given.copy(), "as given"
    if 1 in present:
        shares, said = (
            (train, 0.0, test),
            f"train and val as given; test cut from train ({test / (train + test):.0%} of it)",
        )
    elif 2 in present:
        shares, said = (
            (train, val, 0.0),
            f"train and test as given; val cut from train ({val / (train + val):.0%} of it)",
        )
    else:
        shares, said = (train, val, test), f"made with the shares {train:g}/{val:g}/{test:g}"
    open_rows = np.flatnonzero(given <= 0)
    assignment = given.copy()
    assignment[open_rows] = _dealt(dataset, settings, open_rows, shares, groups)
    return assignment, f"{said}, {_how(settings)}"


def _dealt(
    dataset: Dataset,
    settings: SplitSettings,
    rows: NDArray[np.int64],
    shares: tuple[float, float, float],
    groups: NDArray[np.int64] | None,
) -> Parts:
    """Parts (M,) of the samples at `rows` (M,)."""
    total = sum(shares)
    fractions = np.array([share / total for share in shares])
    part_keys = id_keys(dataset.ids.take(rows), settings.seed)
    if settings.by == "chronological":
        return deal_in_time(_times(dataset)[rows], fractions, None if groups is None else groups[rows])
    strata = strata_of(dataset)[rows] if settings.by == "stratified" else np.zeros(len(rows), np.int64)
    if groups is not None:
        return deal_groups(groups[rows], strata, part_keys, fractions)
    return deal(strata, part_keys, fractions)


def _folded(
    dataset: Dataset, settings: SplitSettings, given: Parts, groups: NDArray[np.int64] | None
) -> tuple[Parts, str]:
    folds = settings.folds or 0
    rows = np.arange(len(given))
    equal = np.full(folds, 1.0 / folds)
    part_keys = id_keys(dataset.ids, settings.seed)
    strata = strata_of(dataset) if settings.by == "stratified" else np.zeros(len(rows), np.int64)
    if groups is not None:
        fold_of = deal_groups(groups, strata, part_keys, equal)
    else:
        fold_of = deal(strata, part_keys, equal, keep_first=False)
    assignment = np.full(len(given), 2, np.int8)
    rest = np.flatnonzero(fold_of != settings.fold)
    train, val, _ = settings.fractions
    assignment[rest] = _dealt(dataset, settings, rest, (train, val, 0.0), groups)
    return assignment, f"fold {settings.fold} of {folds} is the test part, val cut from the rest, {_how(settings)}"


def _continued(
    dataset: Dataset, settings: SplitSettings, earlier: SplitFile, groups: NDArray[np.int64] | None
) -> tuple[Parts, str]:
    place = {i: code for code, part in enumerate(PARTS) for i in earlier.parts[part]}
    assignment = np.fromiter((place.get(i, -1) for i in dataset.ids), np.int8, len(dataset))
    old = assignment >= 0
    if not old.any():
        raise DataError(
            f"{dataset.root}: none of its {len(dataset)} ids is in the earlier split. Is it the same data, from the "
            "same root?"
        )
    if groups is not None:
        home: dict[int, int] = {}
        for group, code in zip(groups[old].tolist(), assignment[old].tolist()):
            if home.setdefault(group, code) != code:
                raise DataError(
                    f"{dataset.root}: the earlier split tears a group of '{settings.group}' apart. Make a new split "
                    "with --group."
                )
        for row in np.flatnonzero(~old).tolist():
            assignment[row] = home.get(int(groups[row]), -1)
    fresh = assignment < 0
    joined = int((~old).sum() - fresh.sum())
    if fresh.any():
        # What is given decides for new ids too.
        assignment[fresh] = dataset.given_split[fresh]
    if settings.by == "chronological":
        assignment = _after(dataset, assignment, old, groups)
    elif (rows := np.flatnonzero(assignment < 0)).size and groups is None:
        assignment[rows] = _dealt(dataset, settings, rows, settings.fractions, None)
    elif rows.size and groups is not None:
        strata = strata_of(dataset) if settings.by == "stratified" else np.zeros(len(dataset), np.int64)
        keys = id_keys(dataset.ids, settings.seed)
        assignment = deal_groups(groups, strata, keys, np.array(settings.fractions), assignment)
    gone = sum(len(ids) for ids in earlier.parts.values()) - int(old.sum())
    said = f"{int(old.sum())} ids as in the earlier split, {int(fresh.sum())} new ids assigned"
    said += f", {joined} new ids joined their groups" if joined else ""
    said += f", {gone} ids of the earlier split are gone" if gone else ""
    return assignment, f"{said}; {_how(settings)}"


def _after(dataset: Dataset, assignment: Parts, old: NDArray[np.bool_], groups: NDArray[np.int64] | None) -> Parts:
    """Give new samples the part that their time lies in: what is later than the start of test goes to test."""
    new = ~old & (dataset.given_split < 0)
    if not new.any():
        return assignment
    times = _times(dataset)
    test = times[old & (assignment == 2)].min(initial=np.inf)
    val = times[old & (assignment == 1)].min(initial=np.inf)
    by_time = np.where(times >= test, 2, np.where(times >= val, 1, 0)).astype(np.int8)
    result = np.where(assignment < 0, by_time, assignment)
    wrong = new & (result != by_time)
    if groups is not None:
        first, last = np.full(int(groups.max()) + 1, 2), np.zeros(int(groups.max()) + 1, np.int64)
        np.minimum.at(first, groups[new], by_time[new])
        np.maximum.at(last, groups[new], by_time[new])
        wrong |= new & (first < last)[groups]
    if wrong.any():
        raise DataError(
            f"{dataset.root}: {int(wrong.sum())} new samples (e.g. {dataset.id(int(np.flatnonzero(wrong)[0]))}) are of "
            "groups that reach over the border in time between two parts of the earlier split. Leave these samples "
            "out, or make a new split without --split-from."
        )
    return result


def _finished(dataset: Dataset, assignment: Parts, method: str, problems: list[Problem]) -> Split:
    for code, part in enumerate(PARTS):
        if not (assignment == code).any():
            raise DataError(
                f"{dataset.root}: no sample is left for the {part} part ({len(dataset)} samples in all, {method}). "
                f"Add samples, or change data.split.fractions (for little data: --folds 5)."
            )
    counts: dict[str, dict[str, int]] = {}
    for code, part in enumerate(PARTS):
        chosen = assignment == code
        counts[part] = {"": int(chosen.sum())}
        if dataset.heads and dataset.heads[0].kind != "regression":
            counts[part] |= _class_counts(dataset, chosen)
    if dataset.heads and dataset.heads[0].kind != "regression":
        problems = problems + _rare(dataset, counts)
    return Split(dataset.ids, assignment, method, dataset.fingerprint, counts, tuple(problems))


def _class_counts(dataset: Dataset, chosen: NDArray[np.bool_]) -> dict[str, int]:
    head = dataset.heads[0]
    values = dataset.targets[head.name][chosen]
    if isinstance(values, ObjectColumn):
        values = values.objects.labels
    sums = (
        np.nansum(values, axis=0)
        if head.kind == "multi"
        else np.bincount(values[values >= 0], minlength=len(head.class_names))
    )
    return {name: int(count) for name, count in zip(head.class_names, sums)}


def _rare(dataset: Dataset, counts: Mapping[str, Mapping[str, int]]) -> list[Problem]:
    problems = []
    for name in dataset.heads[0].class_names:
        total = sum(counts[part][name] for part in PARTS)
        absent = [part for part in PARTS if not counts[part][name]]
        if total < 3:
            problems.append(
                Problem(
                    dataset.root,
                    f"Class '{name}' has {total} sample(s): fewer than one for each part. Add samples, or drop the "
                    "class.",
                )
            )
        elif absent:
            problems.append(
                Problem(dataset.root, f"Class '{name}' ({total} samples) has none in: {', '.join(absent)}.")
            )
    return problems


def _check_settings(dataset: Dataset, settings: SplitSettings, earlier: SplitFile | None) -> None:
    if len(settings.fractions) != 3 or min(settings.fractions) <= 0 or not 0.999 <= sum(settings.fractions) <= 1.001:
        raise ConfigError(
            f"data.split.fractions are {settings.fractions}; expected three positive shares that add up to 1."
        )
    if settings.folds is None:
        return
    if settings.fold >= settings.folds:
        raise ConfigError(
            f"data.split.fold is {settings.fold}; with {settings.folds} folds it goes from 0 to {settings.folds - 1}."
        )
    if earlier is not None:
        raise ConfigError(
            "--folds and --split-from cannot be used together: each says which samples are the test part."
        )
    if settings.by == "chronological":
        raise ConfigError(
            "Folds in time would train on the future. Use --folds with by=stratified, or by=chronological without "
            "folds."
        )
    if (dataset.given_split > 0).any():
        raise ConfigError(
            f"{dataset.root} comes with a val or test part, so --folds has nothing to choose. Leave --folds out, or "
            "give the train part only."
        )
    if settings.folds > len(dataset):
        raise ConfigError(f"{settings.folds} folds of {len(dataset)} samples: expected at least one sample per fold.")


def _given(dataset: Dataset) -> Parts:
    given = dataset.given_split
    present = {int(code) for code in np.unique(given)}
    if -1 in present and present - {-1}:
        raise DataError(
            f"{dataset.root}: {int((given < 0).sum())} of {len(dataset)} samples belong to no part, the others do. "
            f"Give every sample a part, or none."
        )
    if present and 0 not in present and -1 not in present:
        if len(present) == 1:
            return np.full(len(given), -1, np.int8)
        raise DataError(
            f"{dataset.root}: val and test are given, but no train part. Add one, or put everything into one folder."
        )
    _check_learnable(dataset, given)
    return given


def _check_learnable(dataset: Dataset, given: Parts) -> None:
    """An exclusive class of the given val or test part must stand in the given train part."""
    if not ((given == 0).any() and (given > 0).any()):
        return
    for head in dataset.heads:
        if head.kind != "single":
            continue
        values = dataset.targets[head.name]
        learned, asked = (np.unique(values[rows & (values >= 0)]) for rows in (given == 0, given > 0))
        if len(unknown := np.setdiff1d(asked, learned)):
            names = ", ".join(repr(head.class_names[k]) for k in unknown[:10].tolist())
            raise DataError(
                f"{dataset.root}: {len(unknown)} of {len(head.class_names)} classes of '{head.name}' stand in the given "
                f"val or test part but not in train, so they cannot be learned: {names}. Correct the names (a "
                "spelling?), add training pictures, or remove the classes."
            )


def _times(dataset: Dataset) -> NDArray[np.float64]:
    times = dataset.times()
    if missing := int(np.isnan(times).sum()):
        first = dataset.id(int(np.flatnonzero(np.isnan(times))[0]))
        raise DataError(
            f"{dataset.root}: {missing} of {len(dataset)} samples have no time (e.g. {first}). A chronological split "
            "needs EXIF dates "
            f"in the pictures or a table with a time column (--columns time=COLUMN)."
        )
    return times


def _torn(assignment: Parts, groups: NDArray[np.int64]) -> int:
    pairs = np.unique(np.stack([groups, assignment.astype(np.int64)]), axis=1)  # (2, pairs)
    return int((np.bincount(pairs[0]) > 1).sum())


def _how(settings: SplitSettings) -> str:
    group = f", groups of '{settings.group}' kept together" if settings.group else ""
    seed = "" if settings.by == "chronological" else f", split seed {settings.seed}"
    return f"{settings.by}{group}{seed}"
