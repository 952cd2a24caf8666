"""A run: a recipe carried out, in one folder, with the verbs as its methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opsin.bundle import Bundle
from opsin.data.dataset import Dataset
from opsin.engine.distributed import Processes
from opsin.engine.precision import choose_device
from opsin.errors import CheckpointError
from opsin.models.published import is_published
from opsin.models.shipped import folder_of
from opsin.recipe import Layer, Recipe
from opsin.run.data import Progress, RunData, continued, open_data, reopen_data
from opsin.run.fetching import fetched
from opsin.run.folder import RunFolder, environment, find_run, is_run, new_folder
from opsin.run.starting import starting_point
from opsin.run.training import Callback, Trainer
from opsin.run.transferring import transfer_defaults
from opsin.task import tasks

if TYPE_CHECKING:
    from torch import nn


class Run:
    """A trained (or half-trained) model with everything that led to it.

    Args:
        reference: the run's folder, its name below `runs/`, or `last`.
        dataset: the data set, when it was given to training as an object.
    """

    def __init__(self, reference: Path | str | RunFolder, *, dataset: Dataset | None = None) -> None:
        self.folder = reference if isinstance(reference, RunFolder) else find_run(reference)
        self._dataset = dataset
        self._data: RunData | None = None
        self._bundle: Bundle | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.folder.path)!r}, {self.state.get('status', 'new')})"

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder.path

    @property
    def recipe(self) -> Recipe:
        """All settings."""
        return Recipe.load(self.folder.recipe)

    @property
    def state(self) -> dict[str, Any]:
        """What `run.json` holds: status, effective values, validation metrics."""
        return self.folder.read("run.json") if (self.folder.path / "run.json").exists() else {"status": "new"}

    @property
    def data(self) -> RunData:
        """The data set with the run's split.

        Raises:
            DataError: if the data have changed since.
        """
        if self._data is None:
            recipe = self.recipe
            self._data = reopen_data(self.folder, recipe.data, self._dataset, tasks.get(recipe.task_name).view)
        return self._data

    @property
    def bundle(self) -> Bundle:
        """The best model.

        Raises:
            CheckpointError: if training has not ended yet.
        """
        if self._bundle is None:
            if not self.folder.bundle.exists():
                raise CheckpointError(
                    f"{self.path} has no model yet (status: {self.state.get('status')}). Finish it: opsin train --resume {self.path}"
                )
            self._bundle = Bundle.load(self.folder.bundle)
        return self._bundle

    def predict(self, images: Any, **options: Any) -> Any:
        """Predict one picture or several with the best model; see `Bundle.predict`."""
        return self.bundle.predict(images, **options)

    def explain(self, images: Any, method: str = "grad-cam", **options: Any) -> Any:
        """Show where in a picture the best model's answer comes from; see `opsin.explain.explain`."""
        from opsin.explain import explain

        return explain(self.bundle, images, method, **options)

    def evaluate(self, split: str = "test", **options: Any) -> dict[str, Any]:
        """Judge the best model; see `opsin.run.evaluating.evaluate_run`."""
        from opsin.run.evaluating import evaluate_run

        return evaluate_run(self, split, **options)

    def report(self, out: Path | None = None) -> Path:
        """Write the report; see `opsin.run.reporting.report_run`."""
        from opsin.run.reporting import report_run

        return report_run(self, out)

    def export(self, to: str, out: Path | str | None = None, **options: Any) -> list[Any]:
        """Export the best model; see `opsin.run.exporting.export_run`."""
        from opsin.run.exporting import export_run

        return export_run(self, to, out, **options)

    def compare(self, *others: Path | str | Run, **options: Any) -> dict[str, Any]:
        """Compare with other runs; see `opsin.run.comparing.compare`."""
        from opsin.run.comparing import compare

        return compare([self, *others], **options)

    def resume(
        self, *, network: nn.Module | None = None, callbacks: Sequence[Callback] = (), quiet: bool = False
    ) -> Run:
        """Go on from the latest checkpoint, to the result of the uninterrupted run; a finished run stays as it is."""
        if self.state.get("status") == "done":
            return self
        recipe = self.recipe
        _use_threads(recipe)
        if not (self.folder.path / "data.json").exists():  # killed before the data were written down
            return _train(self.folder, recipe, network, self._dataset, callbacks, quiet, None)
        Trainer(self.folder, recipe, self.data, network=network, callbacks=callbacks, quiet=quiet).train(resume=True)
        return self


def new_recipe(task: str, layers: Sequence[Layer]) -> Recipe:
    """A recipe for a task from layers of values, weakest first.

    Raises:
        UnknownName: if there is no such task.
        ConfigError: with everything that is wrong in the values.
    """
    kind = tasks.get(task)
    own = [Layer(f"task {task}", kind.defaults)] if kind.defaults else []
    recipe = Recipe.build(task, kind.settings_type, [*own, *transfer_defaults(layers), *layers])
    if recipe.data.tile is not None and recipe.data.split.group is None:
        recipe = recipe.with_values("data.tile", **{"data.split.group": "picture"})
    return recipe


def train(
    task: str,
    /,
    *,
    data: Path | str | Dataset | Mapping[str, Any],
    model: str | nn.Module | Callable[..., nn.Module] | Mapping[str, Any] = "auto",
    out: Path | str | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    progress: Progress | None = None,
    layers: Sequence[Layer] = (),
    **settings: Any,
) -> Run:
    """Train a model and return its run.

    Args:
        task: name of the task, e.g. "classify".
        data: folder, file, archive, a data set from `opsin.load_data`, or the section as a dictionary, e.g.
            `{"path": "photos", "split": {"group": "parent"}}`.
        model: registered name, `timm/NAME`, `pkg.module:builder`, your own module, a function that builds one, or the
            section as a dictionary, e.g. `{"name": "smallnet", "kwargs": {"widths": [24, 48, 96]}}`.
        out: folder of the run; by default the next free `runs/TASK-DATA-N`.
        callbacks: called with every event (`opsin.engine.events`).
        quiet: nothing on the terminal.
        progress: called with (done, all) while pictures are verified.
        layers: further settings, weaker than those given by name.
        settings: `epochs`, `batch_size`, `seed`, ... of the section run, or whole sections as dictionaries, e.g.
            `optimizer={"lr": 0.1}`.

    Raises:
        ConfigError: with everything that is wrong in the settings.
        DataError: if the data cannot be used.
    """
    from opsin.recipe import SECTIONS, RunSettings

    named: dict[str, Any] = {key: value for key, value in settings.items() if key in SECTIONS or key == "task"}
    named["run"] = {**named.get("run", {}), **{k: v for k, v in settings.items() if k in RunSettings.model_fields}}
    unknown = {k: v for k, v in settings.items() if k not in named and k not in RunSettings.model_fields}
    given = {**named, **unknown}
    if isinstance(data, Dataset):
        given["data"] = data.opened
    else:
        given["data"] = data if isinstance(data, Mapping) else {"path": str(data)}
    if isinstance(model, Mapping):
        given["model"], network = model, None
    elif isinstance(model, str):
        given["model"], network = {"name": model}, None
    else:
        given["model"], network = {"name": reference_of(model)}, model
    return start(
        task,
        [*layers, Layer("Python call", given)],
        out=out,
        network=network,
        dataset=data if isinstance(data, Dataset) else None,
        callbacks=callbacks,
        quiet=quiet,
        progress=progress,
    )


def start(
    task: str,
    layers: Sequence[Layer],
    *,
    out: Path | str | None = None,
    network: nn.Module | Callable[..., nn.Module] | None = None,
    dataset: Dataset | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Begin a run from layers of settings; with several processes, all of them share the folder that the first one makes."""
    recipe = continued(new_recipe(task, layers))
    starting_point(recipe.model)  # what is wrong with it is said before there is a folder
    name = dataset.name if dataset is not None else Path(recipe.data.path or "data").resolve().name
    processes = Processes.join(choose_device(recipe.run.device).type)
    path = str(new_folder(out, task, name).path) if processes.is_main else ""
    folder = RunFolder(processes.gather_objects(path)[0])
    return _train(folder, recipe, network, dataset, callbacks, quiet, progress)


def reference_of(model: Any) -> str:
    """How a bundle finds a person's own model again: `module:name` of a function or class, else `object:CLASS`."""
    import inspect

    if inspect.isfunction(model) or inspect.isclass(model):
        module = inspect.getmodule(model)
        file = getattr(module, "__file__", None)
        if "." in model.__qualname__:
            return f"object:{model.__qualname__}"
        if model.__module__ == "__main__" or model.__module__.startswith("opsin_user_"):
            return f"{Path(file).resolve()}:{model.__qualname__}" if file else f"object:{model.__qualname__}"
        return f"{model.__module__}:{model.__qualname__}"
    return f"object:{type(model).__qualname__}"


def _train(
    folder: RunFolder,
    recipe: Recipe,
    network: Any,
    dataset: Dataset | None,
    callbacks: Sequence[Callback],
    quiet: bool,
    progress: Progress | None,
) -> Run:
    _use_threads(recipe)
    processes = Processes.join(choose_device(recipe.run.device).type)
    if processes.is_main:
        recipe.save(folder.recipe)
        folder.write("environment.json", environment())
    data = open_data(recipe.data, given=dataset, view=tasks.get(recipe.task_name).view, progress=progress)
    if processes.is_main:
        folder.write("data.json", data.to_dict(recipe.data))
    processes.barrier()
    Trainer(folder, recipe, data, network=network, callbacks=callbacks, quiet=quiet).train(resume=False)
    return Run(folder, dataset=dataset)


def _use_threads(recipe: Recipe) -> None:
    """Before anything is computed or written down about this machine."""
    if recipe.run.threads:
        import torch

        torch.set_num_threads(recipe.run.threads)


def load(reference: Path | str, *, model: nn.Module | None = None) -> Bundle:
    """Load a model: of a run, a bundle folder, `last`, one that comes with opsin (`blood-cells`), or published weights that
    were fetched (`resnet18`).

    Raises:
        UnknownName: if there is no such run or bundle.
        CheckpointError: if it is damaged, has no model yet, or was not fetched.
    """
    bundle = find_bundle(reference)
    if bundle is not None:
        return Bundle.load(bundle, model)
    folder = find_run(reference)
    if model is not None:
        return Bundle.load(folder.bundle, model)
    return Run(folder).bundle


def find_bundle(reference: Path | str) -> Path | None:
    """The folder of a bundle, given by itself, as the name of a shipped model or of published weights; None for a run, or for
    nothing.

    Raises:
        CheckpointError: if the name is that of published weights which are not on this machine.
    """
    if (Path(reference) / "bundle.json").is_file():
        return Path(reference)
    if is_run(reference):
        return None
    if (own := folder_of(str(reference))) is not None:
        return own
    return fetched(str(reference)) if is_published(str(reference)) else None


__all__ = ["Run", "load", "new_recipe", "train"]
