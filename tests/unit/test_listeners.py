"""Listeners: what each writes, what it costs a step, and that a resumed run continues its logs without a seam."""

from __future__ import annotations

import io
import json
import math
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from opsin.engine.events import (
    CheckpointSaved,
    EpochDone,
    Evaluated,
    Event,
    Finished,
    RunStarted,
    StepDone,
    Stream,
    Warned,
)
from opsin.engine.listeners import listeners, open_listeners, scalars, step_interval
from opsin.engine.listeners.jsonl import JsonLines
from opsin.engine.listeners.tensorboard import TensorBoard
from opsin.engine.listeners.terminal import Terminal, duration
from opsin.errors import ConfigError, MissingExtra, UnknownName

STEPS = 100
FOLDER = Path("runs/classify-1")


def _epoch(number: int, value: float = 0.5, best: bool = True) -> list[Event]:
    """The events of one epoch of 100 steps."""
    first = number * STEPS
    events: list[Event] = [
        StepDone(first + i, number, i, 32, {"classification": torch.tensor(value)}, 0.1, torch.tensor(2.0))
        for i in range(1, STEPS + 1)
    ]
    last = first + STEPS
    return [
        *events,
        EpochDone(last, number, {"classification": value}, 1.0, 3200),
        Evaluated(last, number, "val", {"log_loss": value, "accuracy": 1 - value}, best, "accuracy"),
    ]


def _started(step: int = 0, epoch: int = 0) -> RunStarted:
    return RunStarted(FOLDER, 3, STEPS, 3200, step, epoch, {"optimizer": {"lr": 0.1}, "seed": 7})


def _send(listener: Any, events: list[Event]) -> None:
    for event in events:
        listener(event)


# Opening --------------------------------------------------------------------------------------------------------------


def test_the_registered_names() -> None:
    assert list(listeners) == ["jsonl", "mlflow", "tensorboard", "terminal", "wandb"]


def test_listing_loads_no_torch() -> None:
    import subprocess

    code = "import sys; from opsin.engine.listeners import listeners; list(listeners); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def plain_factory() -> list[Event]:
    return _Recorder()


def folder_factory(folder: Path) -> list[Event]:
    return _Recorder(folder)


def wrong_factory() -> int:
    return 3


class _Recorder(list):
    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def __call__(self, event: Event) -> None:
        self.append(event)


def test_names_references_and_callables(tmp_path: Path) -> None:
    seen: list[Event] = []
    here = __name__
    found = open_listeners(["jsonl", f"{here}:plain_factory", f"{here}:folder_factory", seen.append], tmp_path)
    assert list(found) == ["jsonl", f"{here}:plain_factory", f"{here}:folder_factory", "callable-3"]
    assert found[f"{here}:folder_factory"].folder == tmp_path  # type: ignore[attr-defined]
    stream = Stream(found)
    stream(Warned("x", "y"))
    stream.close()
    assert seen == [Warned("x", "y")] == found[f"{here}:plain_factory"]  # type: ignore[comparison-overlap]


def test_mistakes_in_opening(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="terminal"):
        open_listeners(["terminl"], tmp_path)
    with pytest.raises(ConfigError, match="twice"):
        open_listeners(["jsonl", "jsonl"], tmp_path)
    with pytest.raises(ConfigError, match="run folder"):
        open_listeners(["jsonl"], None)
    with pytest.raises(ConfigError, match="expected a callable"):
        open_listeners([f"{__name__}:wrong_factory"], None)


def test_only_the_first_process_listens(tmp_path: Path) -> None:
    assert open_listeners(["jsonl", "terminal"], tmp_path, main=False) == {}


def test_the_interval_depends_on_the_length_of_an_epoch_alone() -> None:
    assert [step_interval(n) for n in (1, 49, 50, 99, 100, 5000)] == [1, 1, 1, 1, 2, 100]


# metrics.jsonl --------------------------------------------------------------------------------------------------------


def _lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON")) for line in text.splitlines()
    ]


def test_jsonl_lines(tmp_path: Path) -> None:
    log = JsonLines(tmp_path)
    _send(
        log,
        [
            _started(),
            *_epoch(0, math.nan),
            Warned("odd", "something"),
            Finished(STEPS, 1, "done", 2.0, {"accuracy": math.inf}),
        ],
    )
    log.close()
    lines = _lines(tmp_path)
    kinds = [line["event"] for line in lines]
    assert kinds.count("step") == 51  # step 1 and every second one
    assert kinds[-4:] == ["epoch", "evaluated", "warning", "finished"]
    assert lines[1] == {
        "event": "step",
        "step": 2,
        "epoch": 0,
        "loss": {"classification": None},
        "lr": 0.1,
        "gradient_norm": 2.0,
    }
    assert lines[-4]["samples"] == 3200
    assert lines[-4]["seconds"] == 1.0
    assert lines[-3]["metrics"] == {"log_loss": None, "accuracy": None}
    assert lines[-2]["code"] == "odd"
    assert lines[-1]["best"] == {"accuracy": None}
    assert all("time" in line for line in lines[-4:])


def test_jsonl_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    log = JsonLines(whole)
    _send(log, [_started(), *_epoch(0), *_epoch(1)])
    log.close()
    log = JsonLines(halves)
    _send(log, [_started(), *_epoch(0)])
    state = log.state()
    assert state == {"bytes": (halves / "metrics.jsonl").stat().st_size}
    _send(log, [*_epoch(1)[:30], Finished(130, 1, "interrupted", 1.0, {})])
    log.close()
    log = JsonLines(halves)
    log.restore(json.loads(json.dumps(state)))
    _send(log, [_started(STEPS, 1), *_epoch(1)])
    log.close()
    drop = {"time", "seconds"}
    one, other = (
        [{k: v for k, v in line.items() if k not in drop} for line in _lines(folder)] for folder in (whole, halves)
    )
    assert one == other


def test_jsonl_is_cut_to_nothing_without_a_checkpoint(tmp_path: Path) -> None:
    log = JsonLines(tmp_path)
    _send(log, [_started(), *_epoch(0)])
    log.restore({})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    log.close()


def test_jsonl_says_when_lines_were_lost(tmp_path: Path) -> None:
    log = JsonLines(tmp_path)
    log.restore({"bytes": 500})
    log.close()
    assert _lines(tmp_path)[0]["code"] == "log-shortened"


# The terminal ---------------------------------------------------------------------------------------------------------


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def _end() -> list[Event]:
    return [CheckpointSaved(200, 1, Path("c")), Finished(200, 2, "done", 65.0, {"accuracy": 0.75})]


def test_plain_lines_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    _send(
        Terminal(file=file),
        [_started(), *_epoch(0, 0.25), Warned("w", "mind [this]"), *_epoch(1, 0.5, best=False), *_end()],
    )
    lines = file.getvalue().splitlines()
    assert lines[0].startswith("training: 3 epochs, 100 steps")
    assert lines[1] == "warning: mind [this]"
    assert lines[2].startswith("epoch 1/3  train loss 0.25  val accuracy 0.75 log_loss 0.25  1.0 s  3,200 images/s")
    assert lines[2].endswith("* best")
    assert lines[3].startswith("epoch 2/3  train loss 0.5")
    assert "best" not in lines[3]
    assert lines[4] == "done, 200 steps in 1:05. Best: val accuracy 0.75 in epoch 1."
    assert len(lines) == 5
    assert "\x1b" not in file.getvalue()


def test_starting_weights_are_said_once() -> None:
    for step, expected in ((0, ["starting from new weights"]), (100, [])):
        file = io.StringIO()
        Terminal(file=file)(RunStarted(FOLDER, 3, STEPS, 3200, step, step // STEPS, {"weights": "new weights"}))
        assert file.getvalue().splitlines()[1:] == expected


def test_progress_lines_in_long_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("opsin.engine.listeners.terminal.time", types.SimpleNamespace(monotonic=lambda: now[0]))
    file = io.StringIO()
    terminal = Terminal(file=file)
    terminal(_started())
    for event in _epoch(0)[:STEPS]:
        now[0] += 1.0
        terminal(event)
    lines = file.getvalue().splitlines()[1:]
    assert [line.split("  ")[1] for line in lines] == ["step 30/100", "step 60/100", "step 90/100"]
    assert lines[0] == "epoch 1/3  step 30/100  loss 0.5  32 images/s  lr 0.1  left 1:10 of epoch, 4:30 in all"


def test_a_bar_and_permanent_lines_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = _Tty()
    _send(Terminal(file=file), [_started(), *_epoch(0), Warned("w", "mind this"), *_epoch(1), *_end()])
    text = file.getvalue()
    assert text.count("epoch 1/3  train loss") == 1
    assert "1/100" in text
    assert "\x1b[1;33mwarning: mind this" in text
    assert text.endswith("in epoch 1.\n") or "Best: val accuracy" in text


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    file = _Tty()
    _send(Terminal(file=file), [_started(), *_epoch(0), Warned("w", "mind this"), *_end()])
    assert "33m" not in file.getvalue()
    assert "38;5" not in file.getvalue()


def test_quiet_shows_warnings_only() -> None:
    file = io.StringIO()
    _send(Terminal(quiet=True, file=file), [_started(), *_epoch(0), Warned("w", "mind this"), *_end()])
    assert file.getvalue() == "warning: mind this\n"


def test_a_resumed_terminal_remembers_the_best() -> None:
    first = Terminal(file=io.StringIO())
    _send(first, [_started(), *_epoch(0, 0.25)])
    file = io.StringIO()
    second = Terminal(file=file)
    second.restore(json.loads(json.dumps(first.state())))
    _send(second, [_started(STEPS, 1), *_epoch(1, 0.5, best=False), *_end()])
    lines = file.getvalue().splitlines()
    assert lines[0].startswith("resuming at step 100, epoch 2:")
    assert lines[-1].endswith("Best: val accuracy 0.75 in epoch 1.")


def test_an_interruption_says_how_to_go_on() -> None:
    file = io.StringIO()
    _send(Terminal(file=file), [_started(), Finished(30, 0, "interrupted", 3.0, {})])
    assert (
        file.getvalue().splitlines()[-1]
        == "interrupted, 30 steps in 0:03. Go on with: opsin train --resume runs/classify-1"
    )


class _Unread:
    """A loss that must not be read."""

    reads = 0

    def __float__(self) -> float:
        type(self).reads += 1
        return 0.5


def test_steps_cost_almost_nothing_and_tensors_are_left_alone(tmp_path: Path) -> None:
    stream = Stream(
        {"terminal": Terminal(file=io.StringIO()), "jsonl": JsonLines(tmp_path), "tensorboard": TensorBoard(tmp_path)}
    )
    stream(RunStarted(FOLDER, 1, 50_000_000, 100))
    event = StepDone(3, 0, 3, 32, {"loss": _Unread()}, 0.1)  # type: ignore[dict-item]
    best = math.inf
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(1000):
            stream(event)
        best = min(best, (time.perf_counter() - began) / 1000)
    stream.close()
    assert _Unread.reads == 0
    assert best < 20e-6


def test_durations() -> None:
    assert [duration(s) for s in (-1, 7.4, 59.6, 3599.9, 11045)] == ["0:00", "0:07", "1:00", "1:00:00", "3:04:05"]


# TensorBoard ----------------------------------------------------------------------------------------------------------


def _events(folder: Path) -> dict[str, list[int]]:
    """Steps by tag, as TensorBoard itself reads the folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [e.step for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_tensorboard_events(tmp_path: Path) -> None:
    log = TensorBoard(tmp_path)
    _send(log, [_started(), *_epoch(0)])
    log.close()
    found = _events(tmp_path)
    assert set(found) == {
        "step/classification", "step/learning_rate", "step/gradient_norm",
        "train/classification", "train/images_per_second", "val/accuracy", "val/log_loss",
    }  # fmt: skip
    assert found["step/classification"] == [1, *range(2, 101, 2)]
    assert found["val/accuracy"] == [100]


def test_tensorboard_shows_no_step_twice_after_a_resume(tmp_path: Path) -> None:
    log = TensorBoard(tmp_path)
    _send(log, [_started(), *_epoch(0)])
    state = json.loads(json.dumps(log.state()))
    _send(log, _epoch(1)[:30])
    log.close()
    log = TensorBoard(tmp_path)
    log.restore(state)
    _send(log, [_started(STEPS, 1), *_epoch(1)])
    log.close()
    found = _events(tmp_path)
    assert found["step/classification"] == [1, *range(2, 201, 2)]
    assert found["val/accuracy"] == [100, 200]


def test_tensorboard_begins_anew_without_a_checkpoint(tmp_path: Path) -> None:
    log = TensorBoard(tmp_path)
    _send(log, [_started(), *_epoch(0)])
    log.restore({})
    assert not list(tmp_path.iterdir())
    _send(log, [_started(), *_epoch(0)])
    log.close()
    assert _events(tmp_path)["val/accuracy"] == [100]


def test_scalars_of_events() -> None:
    step = _epoch(0)[0]
    assert scalars(step) == {"step/classification": 0.5, "step/learning_rate": 0.1, "step/gradient_norm": 2.0}
    assert scalars(Warned("a", "b")) == {}


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow"), ("wandb", "wandb")]
)
def test_a_missing_package_is_named(name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=f"pip install 'opsin\\[{'all' if name == 'tensorboard' else name}\\]'"):
        open_listeners([name], tmp_path)


# MLflow and W&B, with small stand-ins ---------------------------------------------------------------------------------


class _Client:
    log: list[tuple[Any, ...]]

    def __init__(self, tracking_uri: str) -> None:
        self.log.append(("uri", tracking_uri))

    def get_experiment_by_name(self, name: str) -> None:
        self.log.append(("experiment", name))

    def create_experiment(self, name: str) -> str:
        return "e1"

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.log.append(("create", experiment, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

    def update_run(self, run: str, status: str) -> None:
        self.log.append(("update", run, status))

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        self.log += [("param", run, *p) for p in params]
        self.log += [("metric", run, m[0], m[1], m[3]) for m in metrics]

    def set_tag(self, run: str, key: str, value: str) -> None:
        self.log.append(("tag", run, key, value))

    def set_terminated(self, run: str, status: str) -> None:
        self.log.append(("end", run, status))


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    _Client.log = []
    fake, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    fake.MlflowClient = _Client  # type: ignore[attr-defined]
    entities.Metric = entities.Param = lambda *values: values  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_ALLOW_FILE_STORE",
        "MLFLOW_DISABLE_TELEMETRY",
    ):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    return _Client.log


def test_mlflow_logs_and_continues(mlflow: list[tuple[Any, ...]], tmp_path: Path) -> None:
    log: Any = open_listeners(["mlflow"], tmp_path)["mlflow"]
    _send(log, [_started(), *_epoch(0), Warned("odd", "text")])
    state = log.state()
    _send(log, [Finished(STEPS, 1, "interrupted", 1.0, {})])
    assert mlflow[0] == ("uri", (tmp_path / "mlruns").as_uri())
    assert ("create", "e1", tmp_path.name) in mlflow
    assert ("param", "r1", "optimizer.lr", "0.1") in mlflow
    assert ("metric", "r1", "val/accuracy", 0.5, 100) in mlflow
    assert ("tag", "r1", "warning.odd", "text") in mlflow
    assert mlflow[-1] == ("end", "r1", "KILLED")
    mlflow.clear()
    again: Any = open_listeners(["mlflow"], tmp_path)["mlflow"]
    again.restore(state)
    _send(again, [_started(STEPS, 1), *_epoch(1), Finished(200, 2, "done", 1.0, {})])
    kinds = [entry[0] for entry in mlflow]
    assert kinds[1] == "update"
    assert "create" not in kinds
    assert "param" not in kinds
    assert mlflow[-1] == ("end", "r1", "FINISHED")


def test_mlflow_goes_where_it_is_told(
    mlflow: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    open_listeners(["mlflow"], tmp_path)
    assert mlflow == [("uri", "http://server")]


class _WandbRun:
    def __init__(self, log: list[Any], id: str) -> None:
        self.records, self.id = log, id
        self.summary: dict[str, Any] = {}

    def log(self, values: dict[str, float], step: int) -> None:
        self.records.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.records.append(("finish", exit_code, dict(self.summary)))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    log: list[Any] = []
    fake = types.ModuleType("wandb")

    def init(**given: Any) -> _WandbRun:
        log.append(given)
        return _WandbRun(log, given["id"] or "w1")

    fake.init, fake.Settings = init, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    return log


def test_wandb_is_offline_and_continues(wandb: list[Any], tmp_path: Path) -> None:
    log: Any = open_listeners(["wandb"], tmp_path)["wandb"]
    _send(log, [_started(), *_epoch(0), Finished(STEPS, 1, "interrupted", 1.0, {"accuracy": 0.5})])
    assert (wandb[0]["mode"], wandb[0]["id"], wandb[0]["dir"]) == ("offline", None, str(tmp_path))
    assert wandb[0]["config"]["seed"] == 7
    assert (100, {"val/log_loss": 0.5, "val/accuracy": 0.5}) in wandb
    assert wandb[-1] == ("finish", 255, {"reason": "interrupted", "best/accuracy": 0.5})
    state = log.state()
    wandb.clear()
    again: Any = open_listeners(["wandb"], tmp_path)["wandb"]
    again.restore(state)
    _send(again, [_started(STEPS, 1)])
    assert (wandb[0]["id"], wandb[0]["resume"]) == ("w1", "allow")
    again.close()
    assert wandb[-1][:2] == ("finish", 1)


def test_wandb_mode_of_the_environment(wandb: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    _send(open_listeners(["wandb"], tmp_path)["wandb"], [_started()])
    assert wandb[0]["mode"] == "disabled"
