"""What training starts from: the file behind `--weights`, with its license, lineage and preprocessing.

`--weights` takes published weights that were fetched (`resnet18.imagenet1k_v1`, or `imagenet` beside `--model`), a run
or bundle, or a file. Nothing is fetched here. Weights want the pictures that they were trained on: a published file and
a bundle bring mean and deviation of the pixels along; what the person sets wins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opsin.data.fetch import checksum
from opsin.errors import CheckpointError, UnknownName
from opsin.models import ModelSpec, licenses, resolve
from opsin.models.published import DEFAULTS, find, is_published
from opsin.models.published import of as published_of
from opsin.models.weights import read_weights
from opsin.recipe import ModelSettings
from opsin.run.fetching import fetched
from opsin.run.folder import find_run, is_run

FLAG = "--accept-license"
PREPARING = ("mean", "std", "channels", "crop_share", "interpolation")


@dataclass(frozen=True)
class Start:
    """Starting weights.

    Args:
        file: that holds them.
        license: as its record or the file says; `unknown` when neither does.
        lineage: where they come from, for run.json and the bundle.
        model: the network that they were made for, as in bundle.json; None for a bare file.
        preprocessing: settings of the pictures they were trained on: `mean`, `std`, `channels`, `crop_share`, `interpolation`.
        classes: class names of each head; None where they are not known.
    """

    file: Path
    license: str
    lineage: Mapping[str, Any]
    model: Mapping[str, Any] | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[tuple[str, ...], ...] | None = None

    def settings(self, channels: int) -> dict[str, Any]:
        """The task settings that the weights bring along for pictures of so many channels; gray ones become RGB for them."""
        wanted = self.preprocessing.get("channels")
        if wanted != channels and (wanted, channels) != (3, 1):
            return {}
        return dict(self.preprocessing)

    def spec(self, given: ModelSettings, facts: Mapping[str, Any]) -> ModelSpec:
        """The network to build: the one asked for, or (`auto`) the one that the weights were made for."""
        own = self.model or {}
        name = own.get("name", given.name) if given.name == "auto" else given.name
        kwargs = own.get("kwargs", {}) if _network(name) == _network(own.get("name", "")) else {}
        return ModelSpec(name=name, kwargs={**kwargs, **given.kwargs}, **facts)


def starting_point(model: ModelSettings) -> Start | None:
    """The starting weights that a recipe names; None for `none`.

    Raises:
        UnknownName: if there is no such file, run, bundle or published name.
        CheckpointError: if they are not on this machine, damaged, or made for another network.
        ConfigError: if their license is not permissive and was not accepted (`--accept-license`).
    """
    if model.weights == "none":
        return None
    start = _found(model)
    licenses.require(f"--weights {model.weights}", start.license, model.accept_license, FLAG)
    return start


def hint(network: str) -> str:
    """What would help a training from scratch, for people; "" where nothing is published for the network."""
    try:
        one = find(network) if is_published(network) else None
    except (CheckpointError, UnknownName):
        return ""
    if one is None or not licenses.is_permissive(one.license):
        return ""
    size = f"{one.megabytes:.0f} MB, " if one.megabytes else ""
    return f"; published ones learn faster from photos: opsin models get {one.name} ({size}{one.license}), then --weights {one.name}"


def _found(model: ModelSettings) -> Start:
    path = Path(model.weights)
    if path.is_file():
        return _of_bundle(path.parent, str(path)) if _is_of_bundle(path) else _of_file(path)
    if (path / "bundle.json").is_file():
        return _of_bundle(path, str(path))
    network = resolve(ModelSpec(model.name)).name
    run_comes_first = is_run(model.weights)
    if not run_comes_first and (model.weights.lower() in DEFAULTS or is_published(model.weights)):
        one = find(model.weights, network)
        if model.name != "auto" and _network(model.name) != _network(one.architecture):
            fitting = [other.name for other in published_of(_network(model.name))]
            raise CheckpointError(
                f"--weights {model.weights} is made for {one.architecture}, and --model is {model.name}. "
                f"Published for {model.name}: {', '.join(fitting[:8]) or 'nothing'}."
            )
        return _of_bundle(fetched(model.weights, network), one.name)
    if path.suffix and not run_comes_first:
        raise CheckpointError(
            f"--weights {path}: no such file. Give a .safetensors, .pt or .pth file, a run or bundle, or a published name "
            "(opsin models list --weights)."
        )
    run = find_run(model.weights)
    if not run.bundle.exists():
        raise CheckpointError(f"--weights {model.weights}: the run {run.path} has no model yet.")
    return _of_bundle(run.bundle, model.weights)


def _is_of_bundle(path: Path) -> bool:
    """Whether a file is one of the two that make up the bundle in its folder, and does not just lie beside it."""
    if path.name == "bundle.json":
        return True
    try:
        record = json.loads((path.parent / "bundle.json").read_text(encoding="utf-8"))
        return bool(record["weights"]["file"] == path.name)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _of_file(path: Path) -> Start:
    _, metadata, _ = read_weights(path)
    lineage = {"source": str(path), "sha256": checksum(path, "sha256")}
    return Start(path, metadata.get("license") or licenses.UNKNOWN, lineage)


def _network(name: str) -> str:
    """A network's name without the tag of published weights."""
    return name.partition(".")[0] if ":" not in name else name


def _of_bundle(folder: Path, source: str) -> Start:
    try:
        record = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        settings, model = record["task"]["settings"], record["model"]
        file, sha256 = folder / record["weights"]["file"], record["weights"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'bundle.json'} is damaged ({type(error).__name__}: {error}).") from error
    if not file.is_file() or checksum(file, "sha256") != sha256:
        raise CheckpointError(
            f"{file} is missing, or not the file that {folder / 'bundle.json'} describes. Restore it."
        )
    preprocessing = {name: settings[name] for name in PREPARING if name in settings}
    lineage = {"source": source, "sha256": sha256, "from": record.get("lineage", {})}
    classes = class_names(settings)
    return Start(file, record.get("license") or licenses.UNKNOWN, lineage, model, preprocessing, classes)


def class_names(settings: Mapping[str, Any]) -> tuple[tuple[str, ...], ...] | None:
    """Class names of each head in task settings; None for a task without."""
    heads = settings.get("heads")
    return None if heads is None else tuple(tuple(head["class_names"]) for head in heads)
