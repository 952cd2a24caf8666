"""The report: everything escaped, nothing from outside, bounded, and the same numbers as the JSON."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opsin.analyze.measure import as_json, measure, values
from opsin.errors import ConfigError
from opsin.recipe import Recipe
from opsin.report import ReportInputs, build_page, page_html, page_markdown, write_report
from opsin.report.content import Line
from opsin.report.html import LIMIT
from opsin.report.svg import line_chart, log_ticks, nice_ticks
from opsin.report.words import percent
from opsin.results.rows import Rows
from opsin.tasks.classify import Classify, ClassifySettings, HeadSettings

HOSTILE = ("<script>alert(1)</script>", "\"' onload='x", "a" * 300, "שלום עולם", "a|b`c*_\x00\u202e", "plain")
VOID = {"meta", "img", "br", "hr", "link", "input", "line", "circle", "rect", "polyline"}


class Balance(HTMLParser):
    """Every element that is opened is closed, in order; collects tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def parsed(text: str) -> Balance:
    parser = Balance()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def head(names: tuple[str, ...], kind: str = "single", name: str = "label") -> HeadSettings:
    return HeadSettings(name=name, class_names=names, kind=kind)  # type: ignore[arg-type]


def task_of(*heads: HeadSettings) -> Classify:
    return Classify(
        ClassifySettings(heads=heads, image_size=(8, 8), channels=1, mean=(0.5,), std=(0.2,), small=True, flip=False)
    )


def rows_of(task: Classify, n: int = 60, seed: int = 0) -> Rows:
    random, rows = np.random.default_rng(seed), []
    for i in range(n):
        logits = random.normal(size=(1, task.slices[-1].stop))
        target: dict[str, Any] = {}
        for one, part in zip(task.settings.heads, task.slices):
            k = len(one.class_names)
            target[one.name] = (
                int(random.integers(k)) if one.kind == "single" else random.integers(0, 2, k).astype(np.float32)
            )
            if one.kind == "single":
                logits[0, part.start + target[one.name]] += 2.5
        result = task.predict_step({"logits": logits}, [f"dir/<b>{i:03d}.png"], [None])[0]  # type: ignore[list-item]
        rows.append(task.score(result, target))
    return Rows.collect(rows)


def log(path: Path, epochs: int = 3) -> Path:
    lines: list[dict[str, Any]] = []
    for epoch in range(epochs):
        lines += [
            {
                "event": "step",
                "step": epoch * 4 + i + 1,
                "epoch": epoch,
                "loss": {"label": 2.0 / (epoch * 4 + i + 1)},
                "lr": 0.1,
            }
            for i in range(4)
        ]
        lines.append(
            {
                "event": "epoch",
                "step": epoch * 4 + 4,
                "epoch": epoch,
                "loss": {"label": 1.0 / (epoch + 1)},
                "samples": 40,
                "seconds": 2.0,
            }
        )
        lines.append(
            {
                "event": "evaluated",
                "step": epoch * 4 + 4,
                "epoch": epoch,
                "part": "val",
                "metrics": {"accuracy": 0.5 + 0.1 * epoch, "log_loss": None},
                "best": True,
                "monitor": "accuracy",
            }
        )
    lines.append({"event": "warning", "code": "odd", "text": "<i>something odd</i>"})
    path.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"event": "step", "st', encoding="utf-8")
    return path


def evaluation_of(task: Classify, rows: Rows, part: str) -> dict[str, Any]:
    metrics, train = as_json(measure(task, rows, replicates=200)), values(task, rows_of(task, seed=1))
    few = {"n": 60, "groups": None}
    majority = {task.monitor.name: {"value": 0.2, "low": 0.1, "high": 0.3, "method": "wilson", **few}}
    difference = {"value": 0.3, "low": 0.1, "high": 0.5, "p_value": 0.004, "method": "paired", **few}
    return {
        "split": part,
        "samples": 60,
        "metrics": metrics,
        "monitor": task.monitor.name,
        "train": train,
        "gap": {k: train[k] - one["value"] for k, one in metrics.items() if one["value"] is not None and k in train},
        "skipped": {"x<y.png": "broken"},
        "warnings": [{"code": "tiny_test_set", "text": "Only <60> pictures.", "level": "warning"}],
        "baselines": {"majority": {"metrics": majority, "difference": difference}},
        "images_per_second": 100.0,
    }


def data_of(task: Classify) -> dict[str, Any]:
    heads = [{"name": h.name, "kind": h.kind, "class_names": list(h.class_names)} for h in task.settings.heads]
    counts = {h.name: dict.fromkeys(h.class_names, 10) for h in task.settings.heads}
    return {
        "name": HOSTILE[0],
        "path": "data/<x>",
        "format": "folder",
        "samples": 180,
        "fingerprint": "f" * 32,
        "spec": {"channels": 1, "dtype": "uint8", "range": [0.0, 255.0]},
        "conversions": {"RGBA to <RGB>": 3},
        "heads": heads,
        "counts": dict.fromkeys(("train", "val", "test"), counts),
        "sizes": {"train": 60, "val": 60, "test": 60},
        "skipped": {"bad&.png": "cut <off>"},
        "problems": [{"where": "w<", "message": "m>", "level": "warning"}],
        "split": {"method": "made"},
    }


def state_of(task: Classify, evaluation: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": "done",
        "stopped": "done",
        "seconds": 12.0,
        "steps": 12,
        "parameters": 1234,
        "effective": {"epochs": 3},
        "model": {"name": "smallnet", "kwargs": {}, "image_size": [8, 8], "in_channels": 1},
        "best": {"epoch": 1, "metrics": {}},
        "task_settings": task.settings.model_dump(mode="json"),
        "validation": evaluation["metrics"],
        "train": evaluation["train"],
    }


def inputs_of(tmp_path: Path, *heads: HeadSettings, part: str = "test", **changes: Any) -> ReportInputs:
    task = task_of(*(heads or (head(HOSTILE),)))
    rows = rows_of(task)
    evaluation = evaluation_of(task, rows, part)
    recipe = Recipe("classify").with_values("flag --epochs", **{"run.epochs": 3})
    place = {"opsin": "0.1.0", "commit": "abc+", "python": "3.11", "packages": {"torch": "2"}, "processor": "P"}
    look = {"date": "2026-01-02T03:04:05+00:00", "test": "t", "run": "r<", "command": "evaluate"}
    given = {
        "run": "runs/a <b>",
        "recipe": recipe.to_dict(),
        "data": data_of(task),
        "environment": {**place, "command": "opsin train <x>"},
        "state": state_of(task, evaluation),
        "evaluations": {part: evaluation},
        "looks": [{**look, "metric": task.monitor.name, "value": 0.5}],
        "rows": {part: rows},
        "metrics": log(tmp_path / "metrics.jsonl"),
        "task": task,
        "picture": lambda one: Image.new("L", (8, 8), len(one.id)),
    }
    return ReportInputs(**{**given, **changes})


def drawn(inputs: ReportInputs) -> str:
    return page_html(build_page(inputs), inputs.picture)


def test_everything_is_escaped_and_nothing_comes_from_outside(tmp_path: Path) -> None:
    text = drawn(inputs_of(tmp_path))
    tags = parsed(text).tags
    assert {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "embed", "b>"} == set()
    assert "alert(1)" in text  # shown, as words
    assert "\x00" not in text
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href"):
            if attributes.get(name):
                assert str(attributes[name]).startswith(("data:image/", "#")), attributes
    assert not re.search(r"https?://|url\(|@import", text)


def test_page_is_accessible(tmp_path: Path) -> None:
    text = drawn(inputs_of(tmp_path))
    tags = parsed(text).tags
    assert [tag for tag, _ in tags].count("h1") == 1
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    assert all(
        attributes.get("aria-label") or attributes.get("aria-hidden") for tag, attributes in tags if tag == "svg"
    )
    assert all("scope" in attributes or attributes.get("class") == "corner" for tag, attributes in tags if tag == "th")
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(a["href"])[1:] for tag, a in tags if tag == "a"} <= set(ids)


def test_numbers_are_those_of_the_json(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path)
    text = drawn(inputs).replace("\N{NO-BREAK SPACE}", " ")
    metrics = inputs.evaluations["test"]["metrics"]
    for name, one in metrics.items():
        row = re.search(rf"<th scope='row'[^>]*>{re.escape(name)}</th>(.*?)</tr>", text)
        assert row, name
        assert f">{one['value']:.4f}<" in row[1]
        if one["low"] is not None:
            assert f"{one['low']:.4f} to {one['high']:.4f}" in row[1]
        assert f">{inputs.evaluations['test']['train'][name]:.4f}<" in row[1]
    accuracy = metrics["accuracy"]
    assert f"Right in {100 * accuracy['value']:.1f} % of 60 unseen pictures" in text
    assert f"{100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f} %" in text
    assert "better by more than chance explains: +30.0 points" in text
    assert "Looks at the test part: 1" in text
    assert "2026-01-02 03:04 UTC" in text


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.1, 0.2, "can be chance"),
        (0.01, 0.2, "better by more than chance"),
        (-0.3, -0.1, "beats this model"),
        (None, None, "can be chance"),
    ],
)
def test_baseline_is_compared_honestly(tmp_path: Path, low: float | None, high: float | None, words: str) -> None:
    inputs = inputs_of(tmp_path)
    inputs.evaluations["test"]["baselines"]["majority"]["difference"].update(low=low, high=high)
    assert words in drawn(inputs)


def test_sealed_test_part_is_said_with_the_command(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, part="val", looks=[])
    text = drawn(inputs)
    assert "still sealed" in text
    assert "opsin evaluate &#x27;runs/a &lt;b&gt;&#x27; --split test" in text
    assert "unseen" not in text
    assert "Nobody has looked" in text


def test_validation_in_the_run_file_is_enough(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, evaluations={})
    inputs.rows = {"val": inputs.rows["test"]}
    text = drawn(inputs)
    assert "60 validation pictures" in text
    assert "Confusion matrix" in text


@pytest.mark.parametrize("status", ["new", "running", "interrupted", "failed"])
def test_unfinished_run_shows_what_there_is(tmp_path: Path, status: str) -> None:
    state = {"status": status, "effective": {"epochs": 9}}
    inputs = inputs_of(tmp_path, evaluations={}, state=state, rows={}, task=None)
    text = drawn(inputs)
    parsed(text)
    assert "no result" in text or "has not begun" in text
    assert "opsin train --resume" in text
    assert "3 of 9 epochs" in text
    assert "Loss" in text


def test_bare_minimum(tmp_path: Path) -> None:
    inputs = ReportInputs("r", Recipe("classify").to_dict(), metrics=tmp_path / "missing.jsonl")
    parsed(drawn(inputs))
    assert "Training has not begun" in page_markdown(build_page(inputs))


def test_several_heads_and_labels(tmp_path: Path) -> None:
    heads = head(("x", "y"), name="color"), head(("p", "q", "<r>"), "multi", name="marks")
    inputs = inputs_of(tmp_path, *heads)
    text = drawn(inputs)
    parsed(text)
    for words in (
        "Mean over heads",
        "Confusion matrix (color)",
        "ROC (color)",
        "Labels (marks)",
        "Pictures per class: marks",
        "&lt;r&gt;",
    ):
        assert words in text


def test_size_is_bounded(tmp_path: Path) -> None:
    heads = [head(tuple(f"class {i} {'x' * 200}" for i in range(50)), name=f"head{k}") for k in range(6)]
    noise = np.random.default_rng(0)
    inputs = inputs_of(
        tmp_path, *heads, picture=lambda one: Image.fromarray(noise.integers(0, 256, (400, 300, 3), dtype=np.uint8))
    )
    text = drawn(inputs)
    parsed(text)
    assert len(text.encode()) < 4_000_000
    assert text.count("<img") > 20
    small = page_html(build_page(inputs), inputs.picture, limit=0)
    assert "the page would get too large" in small
    assert len(small.encode()) < LIMIT


def test_thousand_classes(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, head(tuple(f"class {i}" for i in range(1000))))
    text = drawn(inputs)
    assert "more rows are not shown" in text
    assert "<summary>" in text
    assert len(text.encode()) < 2_000_000


def test_files_are_written_and_others_are_kept(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path)
    path = write_report(inputs, tmp_path / "new" / "report.html")
    assert path == tmp_path / "new" / "report.html"
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "report.md"]
    first = path.read_bytes()
    assert write_report(inputs, path).read_bytes() == first
    path.with_suffix(".md").write_text("# My own notes\n")
    with pytest.raises(ConfigError, match=r"report\.md exists and is not a report"):
        write_report(inputs, path)
    with pytest.raises(ConfigError, match=r"name it \*\.html"):
        write_report(inputs, tmp_path / "report.pdf")


def test_markdown_has_the_same_words(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path)
    text = page_markdown(build_page(inputs))
    assert "<script>" not in text
    assert f"{inputs.evaluations['test']['metrics']['accuracy']['value']:.4f}" in text
    widths = {
        line.count("|") - line.count("\\|")
        for line in text.split("### Metrics")[1].split("###")[0].splitlines()
        if line.startswith("|")
    }
    assert len(widths) == 1


def test_lines_with_gaps_and_odd_ranges() -> None:
    x = np.arange(5.0)
    for y in ([1, np.nan, 3, 4, np.nan], [np.nan] * 5, [0.5] * 5, [1e-9, 1e9, 1, 1, 1], [-3, -2, -1, 0, 1]):
        for log_axis in (False, True):
            text = line_chart([Line("a<b", x, np.array(y, float))], title="t", x_title="x", log=log_axis)
            parsed(text)
            assert "nan" not in text.split("aria-label")[1].split(">", 1)[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "100.0 %"),
        (0.99996, "99.996 %"),
        (0.98885, "98.9 %"),
        (0.0, "0.0 %"),
        (1 - 1e-9, "over 99.999 %"),
        (None, "undefined"),
    ],
)
def test_percent_never_rounds_up_to_perfect(value: float | None, text: str) -> None:
    assert percent(value).replace("\N{NO-BREAK SPACE}", " ") == text


def test_ticks_are_round() -> None:
    assert nice_ticks(0.0, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert log_ticks(0.002, 3.0) == pytest.approx([0.01, 0.1, 1.0])
    assert nice_ticks(2.0, 2.0) == [2.0]
