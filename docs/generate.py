"""Write the parts of the documentation that come from the code and from `results/`.

    python docs/generate.py            write them
    python docs/generate.py --check    exit with 1 if a page is out of date

A generated part stands between `<!-- generated: WHAT ARGUMENTS -->` and `<!-- end -->`; nothing else of a page is
touched. WHAT is a function of this file that is listed in PARTS. The test tests/structure/test_docs.py does the check.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
_PART = re.compile(r"(<!-- generated: ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Every page that may hold generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def renewed(text: str) -> str:
    """The page with its generated parts made anew."""

    def renew(found: re.Match[str]) -> str:
        what, *arguments = found[2].split()
        return f"{found[1]}{PARTS[what](*arguments).rstrip()}\n{found[3]}"

    return _PART.sub(renew, text)


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table in Markdown."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


# From the command line --------------------------------------------------------------------------------------------------


def verbs() -> str:
    """The verbs that `opsin --help` lists."""
    from opsin.cli import verbs as known

    return table(("verb", "what it does"), ((f"`opsin {verb.name}`", verb.help) for verb in known().values()))


def flags(*words: str) -> str:
    """Arguments and options of one command."""
    command = command_of(words)[0]
    return table(("argument or option", "default", "meaning"), (_flag(parameter) for parameter in command.params))


def command_of(words: Iterable[str]) -> tuple[Any, list[str]]:
    """The command that words call (`data check ...`), and the words that are left for it.

    Raises:
        KeyError: if there is no such verb, or no such command below it.
    """
    from opsin import cli

    name, *rest = words
    command = cli.load(next(verb for verb in cli.verbs().values() if name in (verb.name, *verb.aliases)))
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    return command, rest


def _flag(parameter: Any) -> tuple[str, str, str]:
    if not parameter.opts[0].startswith("-"):
        name = f"`{parameter.name.upper()}{'...' if parameter.nargs == -1 else ''}`"
    else:
        value = "" if parameter.is_flag else f" {_kind(parameter)}"
        name = ", ".join(f"`{option}{value}`" for option in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    if parameter.required:
        shown = "required"
    elif default is None or default is False or default == () or callable(default) or "UNSET" in repr(default).upper():
        shown = ""
    else:
        shown = "on" if default is True else f"`{default}`"
    return name, shown, parameter.help or ""


def _kind(parameter: Any) -> str:
    kind = parameter.type_descriptor.annotation
    return "N" if kind is int else "X" if kind is float else parameter.name.upper().replace("_", "-")


# From settings and registries -------------------------------------------------------------------------------------------


def settings(section: str, task: str = "classify") -> str:
    """Keys of one section of the settings (`task`: of which task), from the docstrings of their fields."""
    from opsin import recipe
    from opsin.data.box_transforms import DetectAugment
    from opsin.data.point_settings import PointSettings
    from opsin.data.point_transforms import PointAugment
    from opsin.data.transforms import AugmentSettings
    from opsin.tasks.classify import ClassifySettings, HeadSettings
    from opsin.tasks.detect import DetectSettings
    from opsin.tasks.keypoints import KeypointsSettings

    own = {
        "classify": {"task": ClassifySettings, "task.augment": AugmentSettings, "task.heads": HeadSettings},
        "detect": {"task": DetectSettings, "task.augment": DetectAugment, "task.points": PointSettings},
        "keypoints": {"task": KeypointsSettings, "task.augment": PointAugment, "task.points": PointSettings},
    }
    models = {**recipe.SECTIONS, "data.split": recipe.SplitSettings, **own[task]}
    rows = []
    for key, field in models[section].model_fields.items():
        default = "from the data" if field.is_required() else _default(field.get_default(call_default_factory=True))
        rows.append((f"`{section}.{key}`", _type(field), default, field.description or ""))
    return table(("setting", "values", "default", "meaning"), rows)


def _default(value: Any) -> str:
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, float) and 0 < value < 0.01:
        return f"`{value:g}`"
    if isinstance(value, tuple):
        return f"`{json.dumps([round(v, 4) if isinstance(v, float) else v for v in value])}`"
    return "" if value is None else f"`{json.dumps(value)}`"


def _type(field: Any) -> str:
    text = field.annotation.__name__ if isinstance(field.annotation, type) else str(field.annotation)
    text = re.sub(r"(?:[a-z_]+\.)+([A-Z])", r"\1", text)
    text = re.sub(r"Literal\[([^\]]*)\]", lambda found: found[1].replace("'", "").replace(",", " or"), text)
    text = re.sub(r"Union\[(.*), ([^,]*)\]$", r"\1 or \2", text).replace(" | None", "").replace(" | ", " or ")
    if text.endswith("Settings") or "Settings," in text:
        return "section"
    bounds = [f"{words} {getattr(m, name)}" for m in field.metadata for name, words in _BOUNDS if hasattr(m, name)]
    words = {"str": "text", "bool": "true or false", "int": "whole number", "float": "number", "Any": "anything"}
    text = re.sub(r"\b(str|bool|int|float|Any)\b", lambda found: words[found[1]], text)
    text = re.sub(
        r"(tuple|dict)\[(.*)\]",
        lambda found: "list of " * (found[1] == "tuple") + "mapping of " * (found[1] == "dict") + found[2],
        text,
    )
    return ", ".join([text.replace(", ...", ""), *bounds])


_BOUNDS = (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"))


def metrics() -> str:
    """The table of metric names."""
    from opsin.metrics.names import METRICS

    rows = ((f"`{name}`", one.description, one.range, one.better, one.source) for name, one in METRICS.items())
    return table(("name", "meaning", "range", "better", "formula or source"), rows)


def models() -> str:
    """Networks that have a name of ours."""
    from opsin.models import models as known

    return _by_module(known, "models")


def detectors() -> str:
    """Detectors by family, with sizes that were counted and the license of the published weights."""
    from opsin.models import answer_of
    from opsin.models import models as known

    stored = RESULTS / "detector-costs.json"
    costs = json.loads(stored.read_text(encoding="utf-8"))["detector_costs"] if stored.exists() else {}
    rows = []
    names = [name for name in known if answer_of(name) == "detected"]
    for name in sorted(names, key=lambda name: (known._modules[name], costs.get(name, {}).get("parameters", 0))):
        text = ast.get_docstring(ast.parse(_file(known._modules[name]).read_text(encoding="utf-8"))) or ""
        weights = re.search(r"^Weights: (.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
        said = weights[1] if weights and f"none is published of {name}" not in weights[1] else ""
        license = re.search(r"\b(Apache-2\.0|BSD-3-Clause|MIT)\b", said)
        cost = costs.get(name, {})
        size = f"{cost['parameters'] / 1e6:.2f} M" if cost else ""
        work = "" if not cost else f"{cost['macs'] / 1e9:.1f} G" if cost["macs"] else "depends on the picture"
        merged = "" if not cost else "yes" if cost["merged"] else "not needed"
        rows.append((f"`{name}`", _first(text), size, work, merged, license[1] if license else "none published"))
    heads = ("name", "what it is", "parameters", "multiply-adds", "merging", "license of published weights")
    return table(heads, rows)


def checks() -> str:
    """Checks of `opsin data check`, with the codes of their findings."""
    from opsin.analyze.check import checks as known

    rows = []
    for name in known:
        path = _file(known._modules[name])
        tree = ast.parse(path.read_text(encoding="utf-8"))
        build = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "build")
        codes = re.findall(r"`([a-z0-9-]+)`", ast.get_docstring(build) or "")
        rows.append((f"`{name}`", _first(ast.get_docstring(tree)), ", ".join(f"`{code}`" for code in codes)))
    return table(("check", "looks for", "codes"), rows)


def formats() -> str:
    """Formats of data sets."""
    from opsin.data.formats import formats as known

    rows = []
    for name in known:
        text = _file(known._modules[name]).read_text(encoding="utf-8")
        can = [word for word in ("read", "write") if re.search(rf"^def {word}\(", text, re.MULTILINE)]
        rows.append(
            (f"`{name}`", _first(ast.get_docstring(ast.parse(text))), " and ".join(can) or "recognized, refused")
        )
    return table(("format", "what it is", "can"), rows)


def catalog() -> str:
    """Data sets that `opsin data get` knows."""
    from opsin.data.catalog import catalog as known

    entries = [known.get(name)() for name in known]
    rows = ((f"`{e.name}`", e.title, sum(e.counts.values()), e.license) for e in entries)
    return table(("name", "what it is", "pictures", "license"), rows)


def recipes() -> str:
    """Named recipes with the bar each is measured against."""
    from opsin.run.settings import recipes as known

    rows = []
    for name in known:
        one = known.get(name)()
        rows.append((f"`{name}`", one.data, f"{one.metric} {one.bar}", one.source))
    return table(("recipe", "data", "bar", "where the bar comes from"), rows)


def listeners() -> str:
    """Listeners by name."""
    from opsin.engine.listeners import listeners as known

    return _by_module(known, "listener")


def events() -> str:
    """Events of training and what they carry."""
    from opsin.engine import events as module

    kinds = [
        value for value in vars(module).values() if inspect.isclass(value) and hasattr(value, "__dataclass_fields__")
    ]
    rows = (
        (f"`{k.__name__}`", _first(inspect.getdoc(k)), ", ".join(f"`{name}`" for name in k.__dataclass_fields__))
        for k in kinds
    )
    return table(("event", "when", "fields"), rows)


def _by_module(registry: Any, head: str) -> str:
    rows: dict[str, list[str]] = {}
    for name in registry:
        rows.setdefault(registry._modules[name], []).append(name)
    about = {module: _first(ast.get_docstring(ast.parse(_file(module).read_text(encoding="utf-8")))) for module in rows}
    return table(
        (head, "what it is"), ((", ".join(f"`{n}`" for n in names), about[module]) for module, names in rows.items())
    )


def _file(module: str) -> Path:
    return ROOT / "src" / Path(*module.split(".")).with_suffix(".py")


def _first(text: str | None) -> str:
    """The first sentence or paragraph of a docstring."""
    return " ".join((text or "").partition("\n\n")[0].split())


# From results/ ----------------------------------------------------------------------------------------------------------


def results() -> str:
    """Every recorded number, as tables."""
    found = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(RESULTS.glob("*.json"))]
    found = [(path, values) for path, values in found if isinstance(values, dict)]
    if not found:
        return "Nothing is recorded yet; see [what is pending](pending.md)."
    parts = []
    for title, belongs, show in SHOWN:
        chosen = [(path, values) for path, values in found if belongs(values)]
        found = [one for one in found if one not in chosen]
        if chosen:
            parts.append(f"## {title}\n\n{show(chosen)}\n\n{_origins(chosen)}")
    if found:
        parts.append(f"## Other\n\n{_other(found)}\n\n{_origins(found)}")
    return "\n\n".join(parts)


Found = list[tuple[Path, Mapping[str, Any]]]


def _recipes(found: Found) -> str:
    rows = []
    for _, one in found:
        summary = one["summary"]
        low, high = summary.get("low"), summary.get("high")
        interval = "" if low is None or high is None else f"{_number(low)} to {_number(high)}"
        if not interval and one["runs"]:
            test = one["runs"][0].get("test", {})
            interval = (
                ""
                if test.get("low") is None
                else f"{_number(test['low'])} to {_number(test['high'])} (one seed, over pictures)"
            )
        minutes = (
            f"{_number(one.get('longest_minutes'))} of {_number(one['bar_minutes'])}"
            if one.get("bar_minutes")
            else _number(one.get("longest_minutes"))
        )
        bar = f"{_number(one['bar'])} ({one.get('source', '')})"
        rows.append(
            (
                _name(one),
                one.get("metric"),
                _number(summary["mean"]),
                interval,
                len(one["runs"]),
                bar,
                minutes,
                _yes(one.get("met")),
            )
        )
    return table(("recipe", "metric", "test, mean", "95 % interval", "seeds", "bar", "longest minutes", "met"), rows)


def _training(found: Found) -> str:
    rows = []
    for _, one in found:
        for name, case in one["cases"].items():
            rates = case.get("images_per_second", {})
            cells = (_number(rates.get(who)) for who in ("ours", "bare bf16", "plain fp32"))
            rows.append(
                (
                    name,
                    *cells,
                    _number(case.get("of_bare_bf16")),
                    _number(case.get("bar")),
                    _number(case.get("of_plain_fp32")),
                    _yes(case.get("met")),
                )
            )
    heads = (
        "case",
        "opsin, images/s",
        "by hand, bf16",
        "by hand, fp32",
        "opsin / by hand bf16",
        "bar",
        "opsin / by hand fp32",
        "met",
    )
    return table(heads, rows)


def _overhead(found: Found) -> str:
    rows = (
        (
            one.get("device"),
            one.get("optimizer"),
            *(_number(one.get(key)) for key in ("engine_us", "by_hand_us", "difference_us", "bar_us")),
            _yes(one.get("within_bar")),
        )
        for _, one in found
    )
    return table(("device", "optimizer", "engine, us/step", "by hand", "difference", "bar", "met"), rows)


def _input(found: Found) -> str:
    rows = []
    for _, one in found:
        for case in ("photos", "large", "small"):
            values = one.get(case) or {}
            for name, ratio in values.get("ratio", {}).items():
                bars, speeds = values.get("bar", {}), values.get("pictures_per_second", {})
                bar, rate = bars.get(name), bars.get(f"{name}, pictures_per_second")
                rates = ", ".join(f"{who} {_number(speed)}/s" for who, speed in speeds.items())
                met = None if bar is None else ratio >= bar
                if rate is not None:
                    met = speeds[name] >= rate
                wanted = f"{_number(rate)} pictures/s" if rate is not None else _number(bar)
                rows.append((case, name, _number(ratio), wanted, rates, _yes(met)))
    return table(("case", "part", "ratio to the peer", "bar", "pictures per second", "met"), rows)


def _kills(found: Found) -> str:
    rows = []
    for _, one in found:
        trials = one.get("trials", [])
        rows.append(
            (
                one["kills"],
                sum(bool(t["weights"]) for t in trials),
                sum(bool(t["log"]) for t in trials),
                len(trials),
                _yes(one.get("all_identical")),
            )
        )
    return table(("kills that hit", "same weights", "same log", "trials", "all identical"), rows)


def _memory(found: Found) -> str:
    rows = (
        (
            one.get("epochs"),
            _number(one["mebibytes"][0]),
            _number(max(one["mebibytes"][1:], default=0)),
            f"{one['growth']:+.2%}",
            f"{one['bar']:.0%}",
            _yes(one.get("met")),
        )
        for _, one in found
    )
    return table(("epochs", "MiB after the first", "largest later", "growth", "bar", "met"), rows)


def _demo(found: Found) -> str:
    rows = []
    for _, one in found:
        metric = next(name for name in ("accuracy", "map50") if name in one)
        value = one[metric]
        rows.append(
            (
                one["demo"],
                f"{metric} {value['value']:.4f} ({value['low']:.4f} to {value['high']:.4f})",
                ", ".join(f"{name} {other['value']:.4f}" for name, other in one["baselines"].items()),
                _number(one["bar"]),
                ", ".join(fault for fault, seen in one["faults_found"].items() if seen),
                _yes(one["resumed_identically"]),
                f"{one['seconds']:.0f} of {one['bar_seconds']}"
                if one["demo"] == "classify"
                else f"{one['training_seconds']:.0f} of {one['bar_seconds']} (training)",
                _yes(one["met"]),
            )
        )
    heads = ("demo", "result", "baselines", "bar", "faults found", "resumed identically", "seconds", "met")
    return table(heads, rows)


def _transfer(found: Found) -> str:
    parts = []
    for _, one in found:
        draws = one.get("draws") or [one["rows"]]
        donor = one["donor"]
        first = (
            f"{one['name'].removeprefix('transfer-')}: {one['pictures']} pictures; weights of {donor['minutes']:.0f} minutes on "
            f"{donor['data']}; {one['epochs']['scratch']} epochs from scratch, {one['epochs']['others']} for plans with steps."
        )
        for number, rows in enumerate(draws, 1):
            title = first if number == 1 else f"Another {one['pictures']} pictures ({number} of {len(draws)})."
            lines = (
                (
                    row["plan"],
                    f"{row['accuracy']['value']:.4f}",
                    f"{row['accuracy']['low']:.4f} to {row['accuracy']['high']:.4f}",
                    f"{row['seconds']:.1f}",
                    "" if row["p"] is None else f"{row['p']:.2g}",
                )
                for row in rows
            )
            heads = ("plan", "accuracy", "95 % interval", "seconds", "p against scratch (McNemar, Holm)")
            parts.append(f"{title}\n\n{table(heads, lines)}")
    return "\n\n".join(parts)


def transfer() -> str:
    """The measurements of transfer, as tables."""
    files = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(RESULTS.glob("transfer-*.json"))]
    return _transfer(files) if files else "Not measured yet; see [pending](pending.md)."


def peers() -> str:
    """Detectors of other projects: accuracy on the same data and time, and latency, as tables."""
    parts = []
    for name, show in (("detection-peers", _peers), ("detection-latency", _latency)):
        path = RESULTS / f"{name}.json"
        if path.exists():
            parts.append(show([(path, json.loads(path.read_text(encoding="utf-8")))]))
    return "\n\n".join(parts) or "Not measured yet; see [pending](pending.md)."


def _peers(found: Found) -> str:
    rows = (
        (
            f"{row['peer']} {row['version']} ({row['license']})",
            row["model"],
            row["image_size"],
            row["epochs"],
            f"{row['minutes_of_free_cores']:.1f}",
            f"{row['ap50']:.3f}",
            f"{row['map']:.3f}",
            ", ".join(f"{name} {value:.3f}" for name, value in row["ap50_by_class"].items()),
        )
        for _, one in found
        for row in one["detection_peers"]
    )
    heads = ("project", "model", "input", "epochs", "minutes of the cores", "test AP50", "mAP", "AP50 by class")
    return table(heads, rows)


def _latency(found: Found) -> str:
    rows = (
        (
            f"{one['image_size']} px, {one['race_threads']} threads, {mode}",
            name,
            f"{values['parameters_of_80_classes'] / 1e6:.2f} M",
            f"{values['milliseconds']:.1f}",
            f"{values['of_ours']:.2f}",
        )
        for _, one in found
        for mode, contestants in one["detection_latency"].items()
        for name, values in contestants.items()
    )
    return table(("case", "network", "parameters", "milliseconds, median", "times ours"), rows)


def _costs(found: Found) -> str:
    rows = (
        (name, f"{cost['parameters']:,}", f"{cost['macs']:,}" if cost["macs"] else "depends on the picture")
        for _, one in found
        for name, cost in one["detector_costs"].items()
    )
    return table(("detector", "parameters", "multiply-adds"), rows)


def _other(found: Found) -> str:
    rows = []
    for path, one in found:
        plain = {
            key: value
            for key, value in one.items()
            if isinstance(value, int | float | str) and key not in ("name", "command", "date", "commit")
        }
        rows.append(
            (
                f"[{path.stem}](../results/{path.name})",
                ", ".join(f"{key} {_number(value)}" for key, value in plain.items()),
            )
        )
    return table(("result", "values"), rows)


def _origins(found: Found) -> str:
    rows = []
    for path, one in found:
        made = one.get("environment") or {
            **one,
            **one.get("versions", {}),
            "processor": one.get("hardware", {}).get("cpu", one.get("processor")),
        }
        torch = made.get("packages", made).get("torch")
        where = made.get("accelerator") or made.get("processor")
        threads = made.get("threads")
        cells = (
            where,
            f"{threads} threads" if threads else "",
            f"torch {torch}" if torch else "",
            (made.get("date") or "")[:10],
            f"commit {made['commit']}" if made.get("commit") else "",
        )
        rows.append(
            (
                f"[{path.name}](../results/{path.name})",
                f"`{one['command']}`" if one.get("command") else "",
                ", ".join(str(c) for c in cells if c),
            )
        )
    return table(("file", "command", "measured on"), rows)


def _name(one: Mapping[str, Any]) -> str:
    return str(one.get("name", "")).removeprefix("recipe-")


def _number(value: Any) -> str:
    if value is None or isinstance(value, bool | str):
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return (
        f"{value:,.0f}"
        if abs(value) >= 1000
        else f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.4f}".rstrip("0").rstrip(".")
    )


def _yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "**no**"


SHOWN: tuple[tuple[str, Callable[[Mapping[str, Any]], bool], Callable[[Found], str]], ...] = (
    ("The demonstration", lambda one: "faults_found" in one, _demo),
    ("Recipes against their bars", lambda one: "summary" in one and "runs" in one, _recipes),
    ("Training speed against a loop by hand", lambda one: "cases" in one and "rounds" in one, _training),
    ("What the engine adds to a step", lambda one: "engine_us" in one, _overhead),
    ("Speed of the input path", lambda one: any(case in one for case in ("photos", "large", "small")), _input),
    ("Killed and resumed", lambda one: "kills" in one, _kills),
    ("Transfer on few pictures", lambda one: "donor" in one, _transfer),
    ("Detectors of other projects", lambda one: "detection_peers" in one, _peers),
    ("Latency of detectors", lambda one: "detection_latency" in one, _latency),
    ("What detectors cost", lambda one: "detector_costs" in one, _costs),
    ("Memory over many epochs", lambda one: "mebibytes" in one, _memory),
)

PARTS: dict[str, Callable[..., str]] = {
    part.__name__: part
    for part in (
        verbs,
        flags,
        transfer,
        settings,
        metrics,
        models,
        detectors,
        peers,
        checks,
        formats,
        catalog,
        recipes,
        listeners,
        events,
        results,
    )
}


def main() -> int:
    """Write the pages, or say which are out of date."""
    words = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    words.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is out of date")
    given = words.parse_args()
    old = [path for path in pages() if renewed(text := path.read_text(encoding="utf-8")) != text]
    for path in old:
        if not given.check:
            path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
        sys.stdout.write(f"{'out of date' if given.check else 'written'}: {path.relative_to(ROOT)}\n")
    return 1 if old and given.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
