"""Measure transfer on few pictures: from scratch, probe, head, staged, full, LoRA, each with interval, time and paired test.

python benchmarks/transfer.py cats-dogs --donor cifar10-subset.tar.gz --data cats-dogs
python benchmarks/transfer.py fashion --data fashion-mnist
python benchmarks/transfer.py cache --data cats-dogs

cats-dogs: a net trained here on a subset of CIFAR-10 is moved to 400 pictures of cats and dogs at the same 32 x 32 pixels;
every picture is judged once, out of fold. fashion: a net trained on five classes of Fashion-MNIST is moved to 200 pictures of
the other five, and judged on their 5,000 test pictures. cache: how much faster a second head is trained.

The settings of the plans are opsin's defaults, epochs aside; nothing was chosen by these numbers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recorded import record

import opsin
from opsin.data.dataset import PARTS, Dataset
from opsin.metrics.intervals import wilson
from opsin.metrics.paired import holm, mcnemar
from opsin.recipe import Layer
from opsin.results.rows import Rows
from opsin.run import Run, start
from opsin.run.evaluating import evaluate_run
from opsin.run.featuring import deal_folds, out_of_fold
from opsin.run.settings import recipe_layer
from opsin.transfer.bottleneck import features_of

PLANS = ("scratch", "head", "staged", "full", "lora")
SIZE, FOLDS, EPOCHS, SCRATCH_EPOCHS = 32, 5, 40, 60
NET = {"name": "smallnet", "kwargs": {"stem": 16, "widths": [48, 128, 256]}}


def main() -> None:
    """Read the command line, measure, store."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("part", choices=["cats-dogs", "fashion", "cache"])
    words.add_argument("--data", required=True)
    words.add_argument("--donor", help="CIFAR-10 subset, for cats-dogs")
    words.add_argument("--minutes", type=float, default=8.0, help="of training the donor")
    words.add_argument("--draws", type=int, default=3, help="for fashion: how often 200 pictures are drawn")
    words.add_argument("--out", help="keep the runs here; a donor that lies there is used again")
    given = words.parse_args()
    out = Path(given.out or tempfile.mkdtemp(prefix="opsin-transfer-"))
    out.mkdir(parents=True, exist_ok=True)
    os.environ["OPSIN_HOME"] = str(out / "home")
    {"cats-dogs": cats_dogs, "fashion": fashion, "cache": cache}[given.part](given, out)


def settings(plan: str, weights: Path) -> dict[str, Any]:
    """What a plan gets; from scratch gets more epochs."""
    if plan == "scratch":
        return {"model": NET, "run": {"epochs": SCRATCH_EPOCHS, "batch_size": 32}}
    epochs = {} if plan == "head" else {"epochs": EPOCHS}
    return {"model": {**NET, "weights": str(weights)}, "transfer": {"plan": plan}, "run": epochs}


def table(right: dict[str, NDArray[np.bool_]], seconds: dict[str, float]) -> list[dict[str, Any]]:
    """Accuracy with interval, seconds, and an exact paired test against scratch (Holm over the plans)."""
    tests = {plan: mcnemar(one, right["scratch"]) for plan, one in right.items() if plan != "scratch"}
    adjusted = holm({plan: test.p_value for plan, test in tests.items()})
    rows = []
    for plan, one in right.items():
        found = wilson(int(one.sum()), len(one))
        accuracy = {"value": found.value, "low": found.low, "high": found.high, "n": len(one)}
        rows.append({"plan": plan, "accuracy": accuracy, "seconds": seconds[plan], "p": adjusted.get(plan)})
    return rows


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print a table."""
    print(title)
    for row in rows:
        one = row["accuracy"]
        p = "" if row["p"] is None else f"  p {row['p']:.2g}"
        print(
            f"  {row['plan']:8} {one['value']:.4f} ({one['low']:.4f} to {one['high']:.4f})  {row['seconds']:.0f} s{p}"
        )


def met(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether a plan that opsin trains is above scratch by a significant paired test."""
    base = rows[0]["accuracy"]["value"]
    return any(row["p"] < 0.05 and row["accuracy"]["value"] > base for row in rows if row["plan"] in PLANS[1:])


# Cats and dogs --------------------------------------------------------------------------------------------------------


def cats_dogs(given: argparse.Namespace, out: Path) -> None:
    """A backbone of the CIFAR-10 subset, moved to 400 photos at 32 x 32, out of fold."""
    weights = donor(out, lambda: cifar_donor(given.donor, given.minutes, out / "donor"))
    data = together(Path(given.data), out / "pictures")
    right, seconds = {}, {}
    for plan in PLANS:
        parts, spent = [], 0.0
        for fold in range(FOLDS):
            layers = [
                Layer("benchmark", settings(plan, weights)),
                Layer("benchmark", {"data": {"path": str(data), "split": {"folds": FOLDS, "fold": fold}}}),
                Layer("benchmark", {"task": {"image_size": [SIZE, SIZE]}}),
            ]
            run = start("classify", layers, out=fresh(out / f"cats-dogs-{plan}-{fold}"), quiet=True)
            found, took = judged(run)
            parts.append(found)
            spent += took
        right[plan], seconds[plan] = joined(parts), spent
        print(f"{plan}: {right[plan].mean():.4f}, {spent:.0f} s", flush=True)
    right["probe"], seconds["probe"] = probed(run, data, {name: i for i, name in enumerate(sorted_ids(parts))})
    rows = table({plan: right[plan] for plan in ("scratch", "probe", *PLANS[1:])}, seconds)
    show("cats and dogs, 400 pictures out of fold", rows)
    record(
        "transfer-cats-dogs",
        {
            "donor": donor_facts(out),
            "pictures": 400,
            "folds": FOLDS,
            "epochs": {"scratch": SCRATCH_EPOCHS, "others": EPOCHS},
            "rows": rows,
            "met": met(rows),
        },
        f"python benchmarks/transfer.py cats-dogs --donor {Path(given.donor).name} --data {Path(given.data).name}",
    )


def cifar_donor(data: str, minutes: float, out: Path) -> Run:
    """The net of the recipe cifar-subset, trained for some minutes."""
    more = {"data": {"path": data}, "model": NET, "run": {"minutes": minutes}}
    return start("classify", [recipe_layer("classify", "cifar-subset"), Layer("benchmark", more)], out=out)


def donor(out: Path, train: Callable[[], Run]) -> Path:
    """The donor's bundle, trained if it is not there."""
    if not (out / "donor" / "bundle" / "bundle.json").exists():
        evaluate_run(train(), with_baselines=False)
    return out / "donor" / "bundle"


def donor_facts(out: Path) -> dict[str, Any]:
    """What the donor was and how good it is on its own data."""
    run = Run(out / "donor")
    return {
        "data": run.folder.read("data.json")["name"],
        "minutes": run.state["seconds"] / 60,
        "validation_accuracy": run.state["validation"]["accuracy"]["value"],
    }


def together(data: Path, folder: Path) -> Path:
    """All pictures of the given parts in one folder per class, so that folds can be dealt."""
    if not folder.exists():
        for file in sorted(p for part in ("train", "val") for p in (data / part).rglob("*") if p.is_file()):
            target = folder / file.parent.name / f"{file.parent.parent.name}-{file.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return folder


def fresh(folder: Path) -> Path:
    """The folder, without what an earlier measurement left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def judged(run: Run) -> tuple[tuple[list[str], NDArray[np.bool_]], float]:
    """Ids and whether each test picture is answered right, and the seconds of training."""
    evaluate_run(run, with_baselines=False)
    rows = Rows.load(run.folder.predictions("test"))
    found = run.bundle.task.correct(rows)
    return (rows.ids.tolist(), found == 1), float(run.state["seconds"])


def sorted_ids(parts: Sequence[tuple[list[str], NDArray[np.bool_]]]) -> list[str]:
    """All ids in order."""
    return sorted(name for ids, _ in parts for name in ids)


def joined(parts: Sequence[tuple[list[str], NDArray[np.bool_]]]) -> NDArray[np.bool_]:
    """Answers of all folds in the order of ids; every picture once."""
    found = {name: bool(right) for ids, answers in parts for name, right in zip(ids, answers)}
    return np.array([found[name] for name in sorted(found)])


def probed(run: Run, data: Path, order: dict[str, int]) -> tuple[NDArray[np.bool_], float]:
    """A logistic probe on the donor's features, out of fold, beside the networks' answers."""
    started = time.monotonic()
    dataset = opsin.load_data(data)
    head = Run(run.folder.path.parent / f"cats-dogs-head-{FOLDS - 1}").bundle  # trunk and preparation of the donor
    labels = dataset.targets[dataset.heads[0].name].astype(np.int64)
    found = features_of(head.task, head.model, dataset, np.arange(len(dataset)))
    answers, _ = out_of_fold("logistic", found.features.values, labels, deal_folds(labels, FOLDS))
    right = np.zeros(len(labels), bool)
    right[[order[name] for name in found.features.ids]] = answers == labels
    return right, time.monotonic() - started


# Fashion --------------------------------------------------------------------------------------------------------------


def fashion(given: argparse.Namespace, out: Path) -> None:
    """A backbone of five Fashion-MNIST classes, moved to 200 pictures of the other five."""
    data = opsin.load_data(given.data)
    label = data.targets[data.heads[0].name]
    weights = donor(out, lambda: fashion_donor(data.select(np.flatnonzero(label < 5)), given.minutes, out / "donor"))
    train, test = (
        np.flatnonzero((label >= 5) & (data.given_split == part))
        for part in (PARTS.index("train"), PARTS.index("test"))
    )
    draws = []
    for draw in range(given.draws):
        rng = np.random.default_rng(draw)
        some = np.concatenate([rng.permutation(train[label[train] == kind])[:40] for kind in range(5, 10)])
        view = data.select(np.sort(np.concatenate([some, test])))
        right, seconds = {}, {}
        for plan in PLANS:
            layer = Layer("benchmark", settings(plan, weights))
            run = start("classify", [layer], dataset=view, out=fresh(out / f"fashion-{plan}-{draw}"), quiet=True)
            found, seconds[plan] = judged(run)
            right[plan] = joined([found])
            print(f"draw {draw}, {plan}: {right[plan].mean():.4f}, {seconds[plan]:.0f} s", flush=True)
        right["probe"], seconds["probe"] = fashion_probe(out, view, draw)
        rows = table({plan: right[plan] for plan in ("scratch", "probe", *PLANS[1:])}, seconds)
        show(f"Fashion-MNIST, 200 pictures of five classes, draw {draw}", rows)
        draws.append(rows)
    record(
        "transfer-fashion",
        {
            "donor": donor_facts(out),
            "pictures": 200,
            "test": len(test),
            "epochs": {"scratch": SCRATCH_EPOCHS, "others": EPOCHS},
            "draws": draws,
            "met": all(met(rows) for rows in draws),
        },
        f"python benchmarks/transfer.py fashion --data {Path(given.data).name}",
    )


def fashion_donor(data: Dataset, minutes: float, out: Path) -> Run:
    """The net, trained on half of the classes with the recipe fashion-small."""
    more = {"model": NET, "run": {"minutes": minutes}}
    return start(
        "classify", [recipe_layer("classify", "fashion-small"), Layer("benchmark", more)], dataset=data, out=out
    )


def fashion_probe(out: Path, view: Dataset, draw: int) -> tuple[NDArray[np.bool_], float]:
    """A logistic probe fitted to all 200 pictures, judged on the test pictures."""
    from opsin.models.fitted.probes import probe

    started = time.monotonic()
    head = Run(out / f"fashion-head-{draw}", dataset=view)
    labels = view.targets[view.heads[0].name].astype(np.int64)
    split = view.given_split
    train, test = np.flatnonzero(split == PARTS.index("train")), np.flatnonzero(split == PARTS.index("test"))
    values = [features_of(head.bundle.task, head.bundle.model, view, one).features for one in (train, test)]
    answers, _ = probe("logistic", values[0].values, labels[train], values[1].values)
    order = np.argsort(np.array(values[1].ids))
    return (answers == labels[test])[order], time.monotonic() - started


# The cache ------------------------------------------------------------------------------------------------------------


def cache(given: argparse.Namespace, out: Path) -> None:
    """A head trained on features that have to be computed, and a second one on those in the cache, ResNet-50 at 224."""
    from opsin.models import ModelSpec, build
    from opsin.models.weights import save_safetensors
    from opsin.seeding import torch_seeded

    data = together(Path(given.data), out / "pictures")
    weights = out / "resnet50.safetensors"
    with torch_seeded("transfer benchmark"):
        save_safetensors(build(ModelSpec("resnet50"), check=False), weights, {"license": "apache-2.0"})
    dataset = opsin.load_data(data)
    found = {}
    for name, smoothing in (("first", 0.0), ("second", 0.1)):
        given_settings = {
            "model": {"name": "resnet50", "weights": str(weights)},
            "transfer": {"plan": "head"},
            "task": {"label_smoothing": smoothing},
        }
        run = start("classify", [Layer("benchmark", given_settings)], dataset=dataset, out=fresh(out / f"cache-{name}"))
        task, model, indices = run.bundle.task, run.bundle.model, run.data.indices("train")
        if name == "first":
            shutil.rmtree(out / "home" / "features", ignore_errors=True)
        started = time.monotonic()
        features = features_of(task, model, run.data.dataset, indices)
        fitted = task.fit_head(features.features.values, run.data.dataset, indices)
        found[name] = {"seconds": time.monotonic() - started, "from_cache": features.hit, "fit": fitted[2]}
    ratio = found["first"]["seconds"] / found["second"]["seconds"]
    print(
        f"first {found['first']['seconds']:.2f} s, second {found['second']['seconds']:.3f} s: {ratio:.0f} times faster"
    )
    record(
        "bottleneck-cache",
        {
            "network": "resnet50 at 224",
            "pictures": len(indices),
            **found,
            "ratio": ratio,
            "bar": 20,
            "met": ratio >= 20,
        },
        f"python benchmarks/transfer.py cache --data {Path(given.data).name}",
    )


if __name__ == "__main__":
    main()
