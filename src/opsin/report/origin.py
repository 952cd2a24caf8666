"""The chapters about where a model comes from: data, model, cost, settings, how to make it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from opsin.errors import OpsinError
from opsin.recipe import Recipe
from opsin.report import words
from opsin.report.content import Block, Chapter, Commands, Counts, Facts
from opsin.report.history import History, charts, progress
from opsin.report.inputs import ReportInputs
from opsin.results.section import Note, Table

PARTS = ("train", "val", "test")
NAMES = {"train": "training", "val": "validation", "test": "test"}
SHOWN = 100  # problems and skipped files


def training_chapter(inputs: ReportInputs, history: History) -> Chapter | None:
    """Curves, and what training cost."""
    best = (inputs.state.get("best") or {}).get("epoch")
    blocks: list[Block] = list(charts(history, inputs.monitor, best))
    return Chapter("training", "How it learned", tuple(blocks)) if blocks else None


def data_chapter(inputs: ReportInputs) -> Chapter | None:
    """The data card."""
    data = inputs.data
    if not data:
        return None
    split = inputs.recipe.get("data", {}).get("split", {})
    spec = data.get("spec", {})
    sizes = data.get("sizes", {})
    pairs = [
        ("Source", str(data.get("path") or f"{data.get('name')} (given as an object)")),
        ("Format", str(data.get("format"))),
        ("Pictures", f"{data.get('samples', 0):,}: " + ", ".join(f"{sizes.get(p, 0):,} {NAMES[p]}" for p in PARTS)),
        ("Pixels", _pixels(spec)),
        (
            "Conversions when read",
            ", ".join(f"{name}: {n:,} of those sampled" for name, n in data.get("conversions", {}).items()) or "none",
        ),
        ("Split", str(data.get("split", {}).get("method", "unknown"))),
        ("Groups kept together", str(split.get("group") or "none declared")),
        ("Left out", words.count(len(data.get("skipped", {})), "file")),
        ("Problems found on reading", str(len(data.get("problems", [])))),
        ("Fingerprint", str(data.get("fingerprint"))),
    ]
    if split.get("folds"):
        pairs.insert(6, ("Fold", f"{split['fold'] + 1} of {split['folds']}"))
    blocks: list[Block] = [Facts("Data card", tuple(pairs)), *_counts(data)]
    skipped = list(data.get("skipped", {}).items())
    if skipped:
        blocks.append(
            Table("Files left out", ("file", "reason"), tuple(skipped[:SHOWN]), _rest(len(skipped), "data.json"))
        )
    problems = data.get("problems", [])
    if problems:
        rows = tuple((p["level"], p["where"], p["message"]) for p in problems[:SHOWN])
        blocks.append(Table("Problems", ("level", "where", "what"), rows, _rest(len(problems), "data.json")))
    return Chapter("data", "The data", tuple(blocks))


def _rest(total: int, file: str) -> str:
    return f"{total - SHOWN:,} more in {file}." if total > SHOWN else ""


def _pixels(spec: Mapping[str, Any]) -> str:
    channels = {1: "gray", 2: "gray with alpha", 3: "RGB", 4: "RGB with alpha"}.get(
        spec.get("channels", 0), f"{spec.get('channels')} channels"
    )
    low, high = spec.get("range", (0, 0))
    return f"{channels}, {spec.get('dtype')}, values {low:g} to {high:g}"


def _counts(data: Mapping[str, Any]) -> Iterator[Counts]:
    counts = data.get("counts", {})
    for head in data.get("heads", []):
        by_part = {part: counts.get(part, {}).get(head["name"], {}) for part in PARTS}
        parts = tuple(part for part in PARTS if any(by_part[part].values()))
        rows = tuple(
            (name, tuple(int(by_part[part].get(name, 0)) for part in parts)) for name in head.get("class_names") or ()
        )
        if rows and parts:
            counted = "Objects" if head.get("kind") == "objects" else "Pictures"
            title = f"{counted} per class" + (f": {head['name']}" if len(data["heads"]) > 1 else "")
            note = "Several labels may hold for one picture." if head.get("kind") == "multi" else ""
            yield Counts(title, parts, rows, note)


def model_chapter(inputs: ReportInputs, history: History) -> Chapter | None:
    """The model card, and what the model cost."""
    blocks = [*_model_card(inputs), *_cost(inputs, history)]
    return Chapter("model", "The model, and what it cost", tuple(blocks)) if blocks else None


def _model_card(inputs: ReportInputs) -> Iterator[Block]:
    state, bundle = inputs.state, inputs.bundle
    model = state.get("model") or bundle.get("model")
    if not model:
        return
    settings, effective = state.get("task_settings", {}), state.get("effective", {})
    size = model.get("image_size") or ()
    pairs = [
        ("Architecture", str(model.get("name")) + (f" {json.dumps(model['kwargs'])}" if model.get("kwargs") else "")),
        ("Task", str(inputs.recipe.get("task_name"))),
        ("Parameters", f"{state['parameters']:,}" if state.get("parameters") is not None else "not counted yet"),
        (
            "Input",
            f"{' × '.join(str(s) for s in size)} pixels (height × width), "
            f"{words.count(model.get('in_channels') or 0, 'channel')}",
        ),
        ("Starting weights", _weights(inputs)),
        (
            "Kept from",
            f"epoch {state['best']['epoch'] + 1}, the best on validation"
            if (state.get("best") or {}).get("epoch") is not None
            else "the end of training",
        ),
        ("Trained in", str(effective.get("precision", "unknown"))),
        ("Judged in", str(bundle.get("precision", "fp32"))),
        ("License of the weights", _license(bundle)),
    ]
    if settings.get("mean") and settings.get("std"):
        normal = [" ".join(f"{v:.4f}" for v in settings[name]) for name in ("mean", "std")]
        pairs.insert(
            4, ("Normalized inside the model", f"mean {normal[0]}, deviation {normal[1]} (shares of the range)")
        )
    if bundle.get("weights", {}).get("sha256"):
        pairs.append(("SHA-256 of the weights", bundle["weights"]["sha256"]))
    yield Facts("Model card", tuple(pairs))
    yield from _thresholds(settings)


def _weights(inputs: ReportInputs) -> str:
    named = inputs.recipe.get("model", {}).get("weights", "none")
    if named == "none":
        return "none: trained from scratch"
    record = inputs.state.get("weights") or {}
    report, lineage = record.get("report", {}), record.get("lineage", {})
    said = (
        f", {len(report['loaded'])} tensors loaded, {len(report['missing'])} new"
        if "loaded" in report and "missing" in report
        else ""
    )
    license_name = f", license {report['license']}" if report.get("license") else ""
    source = lineage.get("source")
    known = f" ({source})" if source and source != named else ""
    before = f", from {_ancestors(lineage)}" if lineage.get("from") else ""
    pixels = ", with their mean and deviation of pixels" if record.get("preprocessing") else ""
    return f"{named}{known}{said}{license_name}{before}{pixels}"


def _ancestors(lineage: Mapping[str, Any]) -> str:
    """What starting weights were themselves made from, nearest first."""
    found, one = [], lineage.get("from") or {}
    while one:
        words = one.get("library") or one.get("data")
        found.append(f"{one.get('entry')} of {words}" if one.get("library") else f"training on {words}")
        one = (one.get("start") or {}).get("from") or {}
    return ", from ".join(found)


def _license(bundle: Mapping[str, Any]) -> str:
    named = bundle.get("license")
    return "unknown: treat as non-commercial until you know" if named in (None, "unknown") else str(named)


def _thresholds(settings: Mapping[str, Any]) -> Iterator[Table]:
    for head in settings.get("heads") or ():
        if head.get("thresholds") and head.get("kind") == "single":
            rows = tuple(zip(head["class_names"], (round(float(t), 4) for t in head["thresholds"])))
            yield Table(
                f"Operating point: {head['name']}", ("class", "said from"), rows, "Chosen on the validation part."
            )


def _cost(inputs: ReportInputs, history: History) -> Iterator[Facts]:
    """Time and hardware."""
    state, place = inputs.state, inputs.environment
    if not place and not history.epochs:
        return
    seconds = state.get("seconds") or sum(e.get("seconds") or 0 for e in history.epochs) or None
    judged = inputs.judged.get("environment", place)
    where = ", ".join(str(v) for v in (place.get("accelerator"), place.get("processor")) if v)
    pairs = [
        ("Training time", words.duration(seconds)),
        ("Epochs", progress(history, state).removesuffix(" epochs")),
        (
            "Optimizer steps",
            f"{state['steps']:,}"
            if state.get("steps") is not None
            else f"{history.steps[-1]['step']:,}"
            if history.steps
            else "none",
        ),
        ("Training speed", f"{history.images_per_second:,.0f} images/s" if history.images_per_second else "unknown"),
        (
            "Hardware",
            f"{where}, {place.get('cores')} cores, {place.get('threads')} threads, {place.get('instructions')}",
        ),
        ("System", f"{place.get('system')}"),
    ]
    speed = inputs.judged.get("images_per_second")
    if speed:
        elsewhere = "" if judged.get("processor") == place.get("processor") else f" on {judged.get('processor')}"
        pairs.insert(4, ("Evaluation speed, pictures read included", f"{speed:,.0f} images/s{elsewhere}"))
    yield Facts("Cost", tuple(pairs))


def settings_chapter(inputs: ReportInputs) -> Chapter:
    """Every setting that is no default, and who set it; what was chosen automatically."""
    rows = tuple(_changed(inputs.recipe))
    note = "Everything else is a default; recipe.json holds every value."
    blocks: list[Block] = [
        Table("Settings that are no defaults", ("setting", "value", "default", "set by"), rows, note)
    ]
    chosen = tuple(_chosen(inputs))
    if chosen:
        blocks.append(Table("Chosen from data and machine", ("what", "value"), chosen))
    return Chapter("settings", "Settings", tuple(blocks))


def _changed(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Paths whose value was set by somebody or differs from the default."""
    now = dict(_flat({k: v for k, v in recipe.items() if isinstance(v, Mapping) and k != "sources"}))
    usual = dict(_flat({k: v for k, v in Recipe("").to_dict().items() if isinstance(v, Mapping) and k != "sources"}))
    sources = recipe.get("sources", {})
    for path, value in now.items():
        who = next((sources[p] for p in _upwards(path) if p in sources), None)
        if who is not None or (path in usual and usual[path] != value):
            yield path, _value(value), _value(usual[path]) if path in usual else "from the data", who or "opsin"


def _upwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}.")
        else:
            yield path, value


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_value(one) for one in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(one)}" for name, one in value.items()) or "none"
    return str(value)


def _chosen(inputs: ReportInputs) -> Iterator[tuple[str, str]]:
    """What was not given: by the data, the machine, or the task."""
    model = inputs.state.get("model") or {}
    if model:
        yield "model", str(model.get("name"))
    for name, value in inputs.state.get("effective", {}).items():
        if value is not None:
            yield name.replace("_", " "), _value(value)
    given = inputs.recipe.get("task", {})
    for name, value in inputs.state.get("task_settings", {}).items():
        if name not in ("heads", "mean", "std", "augment") and name not in given and value not in ("none", "", None):
            yield name.replace("_", " "), _value(value)
    augment = getattr(inputs.task.settings, "augment", None) if inputs.task is not None else None
    if isinstance(augment, BaseModel):
        yield (
            "augmentation",
            _value({k: v for k, v in augment.model_dump().items() if v != type(augment).model_fields[k].default}),
        )


def reproduce_chapter(inputs: ReportInputs) -> Chapter:
    """Commands, code version, packages."""
    place, run = inputs.environment, shlex.quote(inputs.run)
    again = shlex.quote(f"{inputs.run.rstrip('/')}-again")
    recipe = shlex.quote(f"{inputs.run.rstrip('/')}/recipe.json")
    lines = [
        f"opsin train {inputs.recipe.get('task_name')} --recipe {recipe} --out {again}",
        f"opsin evaluate {again} --split test",
        f"opsin compare {run} {again}",
    ]
    blocks: list[Block] = []
    if not (inputs.data.get("path") or inputs.recipe.get("data", {}).get("path")):
        blocks.append(
            Note(
                "no_path",
                "The data were given as an object in Python; the commands need a path: add --data PATH.",
                "info",
            )
        )
    blocks.append(
        Commands(
            "The same again",
            tuple(lines),
            "The same bits on the same machine with the same versions and threads; else nearly the same numbers.",
        )
    )
    if place.get("command"):
        blocks.append(Commands("As it was typed", (str(place["command"]),)))
    commit = place.get("commit")
    dirty = isinstance(commit, str) and commit.endswith("+")
    code = (
        "installed package"
        if commit is None
        else commit.rstrip("+") + (", with changes that were not committed" if dirty else "")
    )
    pairs = [
        ("opsin", str(place.get("opsin", "unknown"))),
        ("Code", code),
        ("Python", str(place.get("python", "unknown"))),
    ]
    pairs += [(name, version or "absent") for name, version in (place.get("packages") or {}).items()]
    pairs += [("Started", words.moment(place.get("date", "unknown"))), ("Seeds", _seeds(inputs.recipe))]
    blocks.append(Facts("Versions", tuple(pairs)))
    return Chapter("reproduce", "Make it again", tuple(blocks))


def _seeds(recipe: Mapping[str, Any]) -> str:
    try:
        return f"training {recipe['run']['seed']}, split {recipe['data']['split']['seed']}"
    except KeyError as error:
        raise OpsinError(f"recipe.json lacks {error}.") from error
