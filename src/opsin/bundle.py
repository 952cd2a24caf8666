"""A bundle: one folder with weights, architecture, task, preprocessing, class names, metrics, license and lineage.

    bundle.json            everything but the weights, as plain JSON
    weights.safetensors    the weights; no code in it

Nothing here knows a task: the task's settings are rebuilt through its own class.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from opsin import __version__
from opsin.durable import sync_folder, write_durably, write_json
from opsin.errors import CheckpointError, ConfigError
from opsin.layers.layout import channels_last_hint
from opsin.models import ModelSpec, build
from opsin.models.builder import build_with
from opsin.runtimes.torch import TorchRuntime
from opsin.task import ImageSpec, Sample, Task, as_arrays, tasks

VERSION = 1
ROUNDING = 1e-3  # floats may leave [0, 1] by so much, as resizing makes them


@dataclass
class Bundle:
    """A model that can predict: load one with `opsin.load(folder)`.

    Args:
        task: with its settings.
        spec: how the network is built.
        model: the assembled model (network and pixel normalization).
        info: free of code: data card, metrics, license, lineage, conversions, precision.
        folder: where it was loaded from.
    """

    task: Task[Any]
    task_name: str
    spec: ModelSpec
    model: nn.Module
    info: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    # On disk ---------------------------------------------------------------------------------------------------------

    def save(self, folder: Path | str, *, half: bool = False) -> Path:
        """Write the bundle; an existing one is replaced as a whole, never half.

        Args:
            folder: where to.
            half: keep weights as float16, in half the bytes; they are float32 again when loaded. A tensor with a value
                beyond float16's range stays float32.

        Raises:
            ConfigError: if the folder exists and is no bundle, or is the one that the program runs in.
        """
        folder = Path(folder)
        require_place(folder)
        whole = folder.resolve()
        aside = whole.with_name(f".{whole.name}.{os.getpid()}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in self.model.state_dict().items()}
        if half:
            tensors = {name: _halved(t) for name, t in tensors.items()}
        data = dump_tensors(tensors)
        write_durably(aside / "weights.safetensors", data)
        record = {
            "format": "opsin-bundle",
            "version": VERSION,
            "opsin": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "task": {"name": self.task_name, "settings": self.task.settings.model_dump(mode="json")},
            "model": self.spec.to_dict(),
            "weights": {"file": "weights.safetensors", "sha256": hashlib.sha256(data).hexdigest()},
            **self.info,
        }
        write_json(aside / "bundle.json", record)
        if whole.exists():
            shutil.rmtree(whole)
        aside.rename(whole)
        sync_folder(whole.parent)
        self.folder = folder
        return folder

    @classmethod
    def load(cls, folder: Path | str, model: nn.Module | None = None) -> Bundle:
        """Read a bundle.

        Args:
            folder: holds `bundle.json`.
            model: the network, when it was given to training as an object and cannot be built by name.

        Raises:
            CheckpointError: if files are missing or damaged, or the weights do not fit.
        """
        folder = Path(folder)
        try:
            record = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder} is not a bundle: it has no bundle.json.") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder / 'bundle.json'} cannot be read: {error}") from error
        if not isinstance(record, dict):
            raise CheckpointError(f"{folder / 'bundle.json'} is damaged: it holds no object.")
        if record.get("format") != "opsin-bundle" or record.get("version", 0) > VERSION:
            raise CheckpointError(
                f"{folder / 'bundle.json'} has version {record.get('version')!r}; this opsin reads up to {VERSION}."
            )
        try:
            kind = tasks.get(record["task"]["name"])
            task: Task[Any] = kind(kind.settings_type.model_validate(record["task"]["settings"]))
            spec = ModelSpec.from_dict(record["model"])
            file, checksum = record["weights"]["file"], record["weights"]["sha256"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / 'bundle.json'} is damaged ({type(error).__name__}: {error}). Restore it from a copy."
            ) from error
        if model is None and spec.name.startswith("object:"):
            raise CheckpointError(
                f"{folder}: the model was given as an object ({spec.name[7:]}); load it with opsin.load(path, model=...)."
            )
        network = build_with(model, spec, check=False) if model is not None else build(spec, check=False)
        assembled = task.assemble(network)
        tensors = read_weights(folder / file, checksum)
        try:
            assembled.load_state_dict(tensors, strict=True)
        except RuntimeError as error:
            raise CheckpointError(f"{folder}: the weights do not fit the model '{spec.name}': {error}") from error
        info = {
            k: v
            for k, v in record.items()
            if k not in ("format", "version", "opsin", "created", "task", "model", "weights")
        }
        return cls(task, record["task"]["name"], spec, assembled.eval(), info, folder)

    # Predicting ------------------------------------------------------------------------------------------------------

    def runner(self, precision: str = "fp32", device: str | torch.device = "cpu") -> TorchRuntime:
        """The model, moved to a device, as a function from inputs to arrays."""
        return TorchRuntime(self.model, precision, torch.device(device))

    def predict(self, images: Any, *, batch_size: int = 32, runner: Any = None) -> Any:
        """Predict one picture or several.

        Args:
            images: a path, Pillow image, array (H, W, C) or (H, W), tensor (C, H, W), or a sequence or iterator of them.
                Arrays and tensors are uint8, uint16, or floats (in [0, 1] for a model of integer pixels).
            batch_size: pictures per pass; the answers do not depend on it.
            runner: another runtime of the same model.

        Returns:
            One result for one picture, a list for several.
        """
        single = isinstance(images, str | Path | Image.Image | np.ndarray | Tensor)
        found = list(self.stream([images] if single else images, batch_size=batch_size, runner=runner))
        return found[0] if single else found

    def stream(self, images: Iterable[Any], *, batch_size: int = 32, runner: Any = None) -> Iterator[Any]:
        """Predict pictures as they come, one result each, in order."""
        reduce_to, spec = self.task.reduce_to, self.task.spec
        source = (as_sample(image, number, reduce_to, spec) for number, image in enumerate(images))
        while samples := list(islice(source, batch_size)):
            yield from self.predict_samples(samples, runner)

    def predict_samples(self, samples: Sequence[Sample], runner: Any = None) -> list[Any]:
        """Results of samples that are read already."""
        prepared = [self.task.prepare(replace(s, target={}), 0, train=False) for s in samples]
        batch = self.task.collate(prepared, np.zeros(len(prepared), np.uint64))
        if runner is not None:
            outputs = runner(batch.inputs)
        else:
            with torch.inference_mode():
                outputs = as_arrays(self.model(batch.inputs.to(next(self.model.parameters()).device)))
        return self.task.predict_step(outputs, batch.ids, batch.geometry)

    @property
    def input_words(self) -> str | None:
        """What pictures the model takes, in words; None when the task does not say."""
        from opsin.data.classes import spec_words

        return None if self.task.spec is None else spec_words(self.task.spec)

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Metrics with intervals that the bundle carries, as `metrics` in its JSON."""
        found: Mapping[str, Any] = self.info.get("metrics", {})
        return found


def require_place(folder: Path) -> None:
    """Check that a bundle can be written there as a whole: nothing is there yet, an empty folder, or another bundle.

    Raises:
        ConfigError: if not.
    """
    if folder.exists() and (not folder.is_dir() or (not (folder / "bundle.json").exists() and any(folder.iterdir()))):
        raise ConfigError(f"{folder} exists and is not a bundle. Choose another folder.")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"{folder} is the folder that this runs in; a bundle takes the place of a whole folder. Name a new one, "
            f"e.g. {folder / 'model'}."
        )


def read_weights(path: Path, checksum: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        CheckpointError: if the file is missing, damaged, or its checksum is another.
    """
    try:
        data_checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing.") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    if checksum is not None and data_checksum != checksum:
        raise CheckpointError(f"{path} is damaged: its checksum differs from the one in bundle.json.")
    return tensors


def _halved(values: Tensor) -> Tensor:
    if values.dtype != torch.float32 or (values.numel() and float(values.abs().max()) > torch.finfo(torch.float16).max):
        return values
    return values.half()


def as_sample(image: Any, number: int = 0, reduce_to: int | None = None, spec: ImageSpec | None = None) -> Sample:
    """A sample from whatever a person has: path, Pillow image, array or tensor.

    Args:
        image: Pillow images are turned as their EXIF orientation says; arrays and tensors are uint8, uint16, or floats.
        number: names pictures that have no path.
        reduce_to: see `opsin.data.image.read_image`.
        spec: what the model takes; where that is integers, floats must lie in [0, 1].

    Raises:
        ConfigError: for anything else, other number types, or floats outside [0, 1] for a model of integers.
        DataError: if a file cannot be read.
    """
    from opsin.data.image import read_image, read_original

    if isinstance(image, Sample):
        return image
    if isinstance(image, str | Path):
        pixels, _, size = read_original(Path(image), reduce_to=reduce_to)
        return Sample(str(image), pixels, original_size=size)
    name = f"picture-{number}"
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        turned = ImageOps.exif_transpose(image)
        turned.save(file, "PNG" if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else "TIFF")
        return Sample(name, _in_range(read_image(file.getvalue())[0], name, spec))
    if isinstance(image, np.ndarray):
        array = image[:, :, None] if image.ndim == 2 else image
        if array.ndim != 3 or array.shape[2] > 4:
            first = array.ndim == 3 and array.shape[0] <= 4
            hint = " This looks like (C, H, W): give image.transpose(1, 2, 0), or a tensor." if first else ""
            raise ConfigError(f"An array must be (H, W) or (H, W, C) with up to 4 channels; got {image.shape}.{hint}")
        dtype = _number_type(array.dtype.name, name)
        pixels = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1), dtype))
        return Sample(name, _in_range(pixels, name, spec))
    if isinstance(image, Tensor):
        if image.ndim != 3:
            raise ConfigError(f"A tensor must be one picture (C, H, W); got {tuple(image.shape)}.")
        if image.shape[0] > 4 and image.shape[2] in (1, 3, 4):
            hint = channels_last_hint(image.shape, image.shape[2], "image.permute(2, 0, 1), or a NumPy array")
            raise ConfigError(f"A tensor must be one picture (C, H, W); got {tuple(image.shape)}.{hint}")
        dtype = _number_type(str(image.dtype).removeprefix("torch."), name)
        return Sample(name, _in_range(image.to(getattr(torch, dtype)), name, spec))
    raise ConfigError(f"Cannot predict a {type(image).__name__}: give a path, a Pillow image, an array or a tensor.")


def _number_type(have: str, name: str) -> str:
    """The type that pixels of a type are taken as: the same, or float32 for float64."""
    if have not in ("uint8", "uint16", "float32", "float64"):
        raise ConfigError(
            f"{name}: pixels of type {have} do not say what their range is. Give uint8 (0 to 255), uint16 (0 to 65535) or "
            "float32, e.g. image.astype(np.uint8)."
        )
    return "float32" if have == "float64" else have


def _in_range(image: Tensor, name: str, spec: ImageSpec | None) -> Tensor:
    """The image itself, if floats can be turned into the integers that the model takes."""
    if spec is None or spec.dtype == "float32" or image.dtype != torch.float32 or image.numel() == 0:
        return image
    low, high = float(image.min()), float(image.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ConfigError(
            f"{name}: its floats go from {low:g} to {high:g}, and this model takes {spec.dtype}, for which floats must lie "
            "in [0, 1]. Divide by the largest possible value, or give integers (image.astype(np.uint8))."
        )
    return image
