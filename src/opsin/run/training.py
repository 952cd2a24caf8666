"""Wire a recipe to the engine: data, model, optimizer, loop; then the bundle of the best model."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from opsin import __version__, seeding
from opsin.analyze.measure import as_json, measure, values
from opsin.bundle import Bundle, read_weights
from opsin.data.cache import make_cache
from opsin.data.loader import EvalLoader, TrainLoader
from opsin.data.shrink import shrunk
from opsin.durable import write_durably
from opsin.engine.capacity import epochs_for_minutes, find_micro_batch
from opsin.engine.checkpoint import Store, contiguous
from opsin.engine.distributed import Processes
from opsin.engine.evaluate import evaluate
from opsin.engine.events import Event, Stream, Warned
from opsin.engine.listeners import open_listeners
from opsin.engine.loop import Loop, LoopState, Plan
from opsin.engine.optimizers import Average
from opsin.engine.precision import Precision, choose_device
from opsin.engine.preflight import preflight
from opsin.engine.regularize import Regularizer
from opsin.engine.schedules import Schedule, schedule
from opsin.errors import ConfigError, TrainingError
from opsin.layers.initializers import initialize
from opsin.layers.sync_batchnorm import convert as synchronize
from opsin.models import ModelSpec, build, resolve
from opsin.models.builder import build_with
from opsin.models.licenses import OWN, UNKNOWN
from opsin.models.weights import load_weights
from opsin.recipe import Recipe
from opsin.run.data import RunData
from opsin.run.folder import RunFolder, differences, environment
from opsin.run.prior import begin_at_prior
from opsin.run.starting import Start, class_names, hint, starting_point
from opsin.run.transferring import Transfer
from opsin.runtimes.torch import TorchRuntime
from opsin.task import Task, tasks

EVALUATED_OF_TRAIN = 2000  # training samples whose metrics show the gap to the test part

Callback = Callable[[Event], None]


class Trainer:
    """Trains one run.

    Args:
        folder: of the run, existing.
        recipe: all settings.
        data: with its split.
        network: a person's own module or builder, instead of a name.
        callbacks: called with every event.
        quiet: nothing on the terminal.
    """

    def __init__(
        self,
        folder: RunFolder,
        recipe: Recipe,
        data: RunData,
        *,
        network: nn.Module | Callable[..., nn.Module] | None = None,
        callbacks: Sequence[Callback] = (),
        quiet: bool = False,
    ) -> None:
        self.folder, self.recipe, self.data, self.network = folder, recipe, data, network
        self.callbacks, self.quiet = callbacks, quiet
        self.start_from = recipe.model.weights
        if recipe.model.weights == "none":
            given = isinstance(network, nn.Module)
            self.start_from = "the weights of the given module" if given else "new weights (no --weights given)"
        self.transfer = Transfer(recipe, trained=isinstance(network, nn.Module))
        run = recipe.run
        self.device = choose_device(run.device)
        self.processes = Processes.join(self.device.type)
        self.precision = Precision.choose(run, self.device)

    def train(self, resume: bool) -> LoopState:
        """Train from the start or from the latest checkpoint; makes the bundle when training ends."""
        state = self.folder.read("run.json") if resume and (self.folder.path / "run.json").exists() else {}
        task = self._task(state)
        spec, model = self._model(task, state)
        train, val, evaluation = self._loaders(task)
        stream = self._stream()
        try:
            with _interruptible() as interrupted:
                if self.data.skipped:
                    stream(Warned("skipped", _skipped(self.data.skipped)))
                self.transfer.check(task, model)
                fitting = 0.0
                if not Store(self.folder.checkpoints).list():
                    if self.processes.is_main:
                        fitting = self.transfer.fit_head(task, model, self.data.dataset, self._train_indices(), stream)
                    self.processes.share(model)
                loop = self._loop(task, spec, model, train, val, stream, state, interrupted)
                loop.state.seconds = fitting
                if resume:
                    self._warn_about_other_bits(stream)
                    loop.resume()
                reached = loop.run()
                stream.state()  # logs are on disk before the run says that it is done
                if loop.finished:
                    self._finish(task, spec, model, evaluation, reached)
                else:
                    self.folder.update("run.json", status="interrupted")
        except BaseException:
            if self.processes.is_main and (self.folder.path / "run.json").exists():
                self.folder.update("run.json", status="failed")
            raise
        finally:
            stream.close()
            train.close()
            evaluation.close()
            self.processes.leave()
        return reached

    @cached_property
    def _start(self) -> Start | None:
        return starting_point(self.recipe.model)

    # Parts -----------------------------------------------------------------------------------------------------------

    def _task(self, state: Mapping[str, Any]) -> Task[Any]:
        kind = tasks.get(self.recipe.task_name)
        if "task_settings" in state:
            return kind(kind.settings_type.model_validate(state["task_settings"]))  # type: ignore[no-any-return]
        channels = self.data.dataset.spec.channels
        wanted = self.recipe.task.get("channels", {2: 4}.get(channels, channels))
        brought = {} if self._start is None else self._start.settings(wanted)
        return kind(kind.infer(self.data.dataset, self.data.indices("train"), {**brought, **self.recipe.task}))  # type: ignore[no-any-return]

    def _model(self, task: Task[Any], state: Mapping[str, Any]) -> tuple[ModelSpec, nn.Module]:
        given = self.recipe.model
        if "model" in state:
            spec = ModelSpec.from_dict(state["model"])
        elif self._start is not None:
            spec = resolve(self._start.spec(given, task.model_facts))
        else:
            spec = resolve(ModelSpec(name=given.name, kwargs=given.kwargs, **task.model_facts))
        with seeding.torch_seeded(self.recipe.run.seed, "initialization"):
            network = build(spec) if self.network is None else build_with(self.network, spec)
            initialize(network, given.init)
        if given.weights != "none" and not Store(self.folder.checkpoints).list():  # a checkpoint holds all weights
            self._take_over(network, task)
        elif given.weights == "none" and self.network is None:
            self.start_from += hint(spec.name)
        if given.bias_prior:
            begin_at_prior(network, task, self.data.dataset, self._train_indices())
        with seeding.torch_seeded(self.recipe.run.seed, "transfer"):
            self.transfer.adapt(network)
        model = task.assemble(network)
        if self.processes.world > 1 and self.recipe.run.sync_batch_norm:
            model = synchronize(model)
        return spec, self.precision.place(model)

    def _take_over(self, network: nn.Module, task: Task[Any]) -> None:
        """Give the network its starting weights, and write down what became of them."""
        start = self._start
        if start is None:
            return
        settings, given = task.settings.model_dump(), self.recipe.model
        others = start.classes is not None and start.classes != class_names(settings)
        if others and self.transfer.keeps_head:
            raise ConfigError(
                f"transfer.head = 'keep', but the head of the weights is for other classes ({_some(start.classes)}; these data "
                f"have {_some(class_names(settings))}). Leave it out to begin with a new head."
            )
        report = load_weights(
            network,
            start.file,
            rename=given.rename,
            only=given.restore,
            new_head=self.transfer.new_head if self.transfer.on else others,
        )
        report = replace(report, license=start.license)
        self.transfer.check_head(network, report)
        kept = bool(start.preprocessing) and all(
            tuple(settings.get(n) or ()) == tuple(start.preprocessing[n]) for n in ("mean", "std")
        )
        own = " Mean and deviation of the pixels are those of the weights." if kept else ""
        if kept and self.data.dataset.spec.channels == 1 and settings.get("channels") == 3:
            own += " Gray pictures are repeated into 3 channels for them."
        self.start_from = report.summary() + own
        if self.processes.is_main:
            found = {"file": self.recipe.model.weights, "report": report.to_dict(), "license": start.license}
            self.folder.update("run.json", weights={**found, "lineage": dict(start.lineage), "preprocessing": kept})

    def _loaders(self, task: Task[Any]) -> tuple[TrainLoader, EvalLoader | None, EvalLoader]:
        run, settings, dataset = self.recipe.run, self.recipe.data, self.data.dataset
        cache = make_cache(settings.cache, dataset, 1.0 / self.processes.world)
        shard: dict[str, Any] = {
            "rank": self.processes.rank,
            "world": self.processes.world,
            "workers": settings.workers,
            "cache": cache,
        }
        indices = self._train_indices()
        pictures = shrunk(dataset, settings.shrink, task.reduce_to)
        least = 1 if run.sync_batch_norm else 2
        weights = task.weights(dataset, indices)
        train = TrainLoader(
            pictures, indices, task, batch_size=run.batch_size, seed=run.seed, least=least, weights=weights, **shard
        )
        size = max(min(run.batch_size, 256), self.processes.world)
        held = self.data.indices("val")
        val = EvalLoader(dataset, held, task, batch_size=size, **shard) if len(held) else None
        some = indices[np.linspace(0, len(indices) - 1, min(EVALUATED_OF_TRAIN, len(indices))).astype(np.int64)]
        full = cache if pictures is dataset else None  # what is kept of these samples is shrunk
        evaluation = EvalLoader(dataset, some, task, batch_size=size, workers=0, cache=full)
        return train, val, evaluation

    def _train_indices(self) -> NDArray[np.int64]:
        settings, indices = self.recipe.data, self.data.indices("train")
        if len(indices) == 0:
            raise ConfigError(
                "The training part of the split is empty. Give more pictures, or other data.split.fractions."
            )
        if settings.limit is not None and settings.limit < len(indices):
            order = seeding.numpy_generator(settings.split.seed, "limit").permutation(len(indices))
            indices = np.sort(indices[order[: settings.limit]])
        return indices

    def _stream(self) -> Stream:
        if not self.processes.is_main:
            return Stream({})
        listeners = open_listeners(self.recipe.run.listeners, self.folder.path, quiet=self.quiet)
        return Stream({**listeners, **{f"callback-{i}": one for i, one in enumerate(self.callbacks)}})

    def _loop(
        self,
        task: Task[Any],
        spec: ModelSpec,
        model: nn.Module,
        train: TrainLoader,
        val: EvalLoader | None,
        stream: Stream,
        state: Mapping[str, Any],
        interrupted: Callable[[], bool],
    ) -> Loop:
        run, transfer = self.recipe.run, self.transfer
        regularizer = Regularizer(self.recipe.regularize, model)
        optimizers = transfer.optimizers(task, model, transfer.largest(model))
        effective = dict(state.get("effective") or self._effective(task, model, train, val, stream, optimizers))
        if self.processes.is_main:
            self.folder.update(
                "run.json",
                status="running",
                opsin=__version__,
                task=self.recipe.task_name,
                task_settings=task.settings.model_dump(mode="json"),
                model=spec.to_dict(),
                effective=effective,
            )
        stages = transfer.stages(model, effective["epochs"])

        def begin_stage(number: int) -> tuple[dict[str, torch.optim.Optimizer], Schedule]:
            epochs = stages[number].epochs if stages else plan.epochs
            total = max(epochs * train.steps_per_epoch, 1)
            found = transfer.optimizers(task, model, number)
            return found, schedule(self.recipe.schedule, train.steps_per_epoch, total)

        plan = Plan(
            epochs=effective["epochs"],
            seed=run.seed,
            micro_batch=effective["micro_batch"],
            clip_norm=self.recipe.optimizer.clip_norm,
            patience=run.patience,
            validate_every=run.validate_every,
            checkpoint_seconds=run.checkpoint_seconds,
            judge_first=transfer.judged_first,
            stages=stages,
        )
        optimizers, curve = begin_stage(0) if plan.epochs else (optimizers, lambda _step: 1.0)
        return Loop(
            task,
            model,
            optimizers,
            curve,
            train,
            plan,
            precision=self.precision,
            forward=torch.compile(model) if run.compile else None,  # type: ignore[arg-type]
            processes=self.processes,
            stream=stream,
            validate=self._validation(task, val) if val is not None else None,
            store=Store(self.folder.checkpoints, run.keep),
            save_best=self._save_best,
            average=Average(model, self.recipe.optimizer.ema) if self.recipe.optimizer.ema else None,
            begin_stage=begin_stage,
            load_best=lambda: read_weights(self.folder.best),
            regularizer=regularizer,
            interrupted=interrupted,
            folder=self.folder.path,
            details={
                "recipe": self.recipe.to_dict(),
                "model": spec.name,
                "weights": self.start_from,
                "device": str(self.device),
                "precision": self.precision.name,
            },
        )

    def _effective(
        self,
        task: Task[Any],
        model: nn.Module,
        train: TrainLoader,
        val: EvalLoader | None,
        stream: Stream,
        optimizers: Mapping[str, torch.optim.Optimizer],
    ) -> dict[str, Any]:
        """What is found before step 1: the micro-batch that fits, the epochs that fit into the minutes."""
        run = self.recipe.run
        batch = next(iter(train.epoch(0)))
        if run.preflight and self.processes.is_main and not self.transfer.without_steps:
            shared = (
                (self.data.dataset.ids[i] for i in self.data.indices("train")),
                (self.data.dataset.ids[i] for i in self.data.indices("val")),
            )
            notes = preflight(
                task, model, batch, optimizers, precision=self.precision, train_ids=shared[0], val_ids=shared[1]
            )
            self.folder.update("run.json", preflight=[vars(note) for note in notes])
            if (sheet := task.draw_targets(task.augment(batch.to(torch.device("cpu"))))) is not None:
                (self.folder.path / "check").mkdir(exist_ok=True)
                sheet.save(self.folder.path / "check" / "targets.png")
            wrong = [note.text for note in notes if note.level == "error"]
            if wrong:
                raise TrainingError("Stopped before step 1:\n" + "\n".join(f"  - {text}" for text in wrong))
            for note in notes:
                if note.level == "warning":
                    stream(Warned(note.code, note.text))
        micro = run.micro_batch or find_micro_batch(
            task, model, batch, precision=self.precision, optimizers=optimizers, processes=self.processes
        )
        normalized = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        if normalized and micro is not None and micro < len(batch) and not task.coupled:
            text = (
                f"Batch normalization takes its statistics from micro-batches of {micro} samples, not from the {len(batch)} of "
                "this process: the result differs from that without micro-batches. A smaller run.batch_size needs none."
            )
            stream(Warned("micro-batch-statistics", text))
        epochs = run.epochs
        if run.minutes is not None:
            epochs = epochs_for_minutes(
                task, model, train, run.minutes, precision=self.precision, optimizers=optimizers, micro_batch=micro,
                validate=self._validation(task, val) if val is not None else None,
                validate_every=run.validate_every, processes=self.processes,
            )  # fmt: skip
        if self.transfer.on:
            epochs = sum(stage.epochs for stage in self.transfer.stages(model, epochs))
        found = {"epochs": epochs, "micro_batch": micro, "precision": self.precision.name, "device": str(self.device)}
        return dict(self.processes.gather_objects(found)[0])

    def _validation(self, task: Task[Any], val: EvalLoader) -> Callable[[nn.Module], Mapping[str, float]]:
        def validate(model: nn.Module) -> Mapping[str, float]:
            rows = evaluate(task, TorchRuntime(model, self.precision.name), val, self.processes)
            return values(task, rows)

        return validate

    def _save_best(self, tensors: Mapping[str, Tensor]) -> None:
        self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
        write_durably(self.folder.best, dump_tensors(contiguous(tensors)))

    def _warn_about_other_bits(self, stream: Stream) -> None:
        changed = differences(self.folder.read("environment.json"), environment())
        if changed:
            stream(Warned("other-machine", f"Resuming where the last bits may differ: {'; '.join(changed)}."))

    def _license(self, started: Mapping[str, Any]) -> str:
        """What weights were trained from nothing belong to who trained them; a given module may come with anybody's."""
        if self.recipe.model.weights != "none":
            return str(started.get("license", UNKNOWN))
        return UNKNOWN if isinstance(self.network, nn.Module) else OWN

    # The end ---------------------------------------------------------------------------------------------------------

    def _finish(
        self, task: Task[Any], spec: ModelSpec, model: nn.Module, evaluation: EvalLoader, state: LoopState
    ) -> None:
        """Judge the best model on train and val, choose operating points on val, write the bundle."""
        if not self.processes.is_main:
            return
        if self.folder.best.exists():
            model.load_state_dict(read_weights(self.folder.best))
        self.transfer.finish(model)
        runner = TorchRuntime(model, _judged(self.precision.name))
        (self.folder.path / "predictions").mkdir(exist_ok=True)
        train_rows = evaluate(task, runner, evaluation)
        metrics: dict[str, Any] = {}
        held = self.data.indices("val")
        if len(held):
            rows = evaluate(task, runner, EvalLoader(self.data.dataset, held, task, batch_size=128))
            task = type(task)(task.calibrate(rows))
            rows.save(self.folder.predictions("val"))
            metrics = as_json(measure(task, rows, groups=self.data.groups(self.recipe.data.split.group, rows.ids)))
        train_metrics = values(task, train_rows)  # judged by the same rule as the other parts
        started = self.folder.read("run.json").get("weights", {})
        info = {
            "license": self._license(started),
            "lineage": {
                "data": self.data.dataset.name,
                "fingerprint": self.data.dataset.fingerprint,
                "weights": self.recipe.model.weights,
                "transfer": self.recipe.transfer.plan,
                **({"start": started["lineage"]} if "lineage" in started else {}),
            },
            "precision": _judged(self.precision.name),
            "validation": metrics,
            "best_epoch": state.best_epoch,
        }
        Bundle(task, self.recipe.task_name, spec, model, info).save(self.folder.bundle)
        self.folder.update(
            "run.json",
            status="done",
            task_settings=task.settings.model_dump(mode="json"),
            best={"epoch": state.best_epoch, "metrics": state.best},
            validation=metrics,
            train=train_metrics,
            seconds=state.seconds,
            steps=state.step,
            stopped=state.stopped or "done",
            parameters=sum(p.numel() for p in model.parameters()),
        )


def _some(heads: Any) -> str:
    names = [name for head in heads or () for name in head]
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _judged(precision: str) -> str:
    """Precision of evaluation and prediction: full, so that answers do not depend on what shares the batch."""
    return "fp64" if precision == "fp64" else "fp32"


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a wish that the loop can see; the second one interrupts at once."""
    wished = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield wished.is_set
        return

    def note(_number: int, _frame: Any) -> None:
        if wished.is_set():
            raise KeyboardInterrupt
        wished.set()

    names = [signal.SIGINT, signal.SIGTERM]
    before = [signal.signal(name, note) for name in names]
    try:
        yield wished.is_set
    finally:
        for name, handler in zip(names, before):
            signal.signal(name, handler)


def _skipped(names: Mapping[str, str]) -> str:
    first, reason = next(iter(names.items()))
    count = "1 picture" if len(names) == 1 else f"{len(names)} pictures"
    return f"Left out because of --skip-bad: {count}, e.g. {first} ({reason}). data.json names all of them."
