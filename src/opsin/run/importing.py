"""A person's own weight file into a bundle: `opsin models import FILE --model NAME --classes a,b,c --to DIR`.

The file is read without running code from it; one of another framework is laid onto the network layer by layer. What was
loaded, missing, unexpected or of another shape is told layer by layer, and a file that leaves any layer without weights is
refused, unless that is asked for: such a model would answer at random.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opsin.bundle import Bundle, require_place
from opsin.errors import CheckpointError, ConfigError
from opsin.models import ModelSpec, answer_of, build, licenses
from opsin.models.importers.mapping import LayerMap, import_layers
from opsin.models.weights import Report, load_weights
from opsin.task import tasks


@dataclass(frozen=True)
class Imported:
    """What came of an import.

    Args:
        folder: of the bundle.
        report: which layers were loaded.
        license: as given, or as the file says.
    """

    folder: Path
    report: Report | LayerMap
    license: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"bundle": str(self.folder), "license": self.license, "layers": self.report.to_dict()}


def import_weights(
    file: Path | str,
    model: str,
    to: Path | str,
    *,
    classes: str | Sequence[str],
    kwargs: Mapping[str, Any] | None = None,
    size: int = 224,
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
    channels: int = 3,
    license: str | None = None,
    prefix: str = "",
    partial: bool = False,
) -> Imported:
    """Make a bundle of a weight file: a classifier, or a detector if the network is one.

    Args:
        file: .safetensors, a .pt/.pth state dict, or a file of Keras, ONNX or TensorFlow (opsin.models.importers).
        model: name of the network.
        to: folder of the bundle.
        classes: a file with one name per line, a config.json with `id2label` (as Hugging Face keeps it beside a file of
            weights), names with commas between, or a sequence of names, in the order of the network's outputs.
        kwargs: of the network's builder.
        size: height and width of the pictures that the network gets.
        mean: per channel (or one for all), as a share of the range.
        std: per channel (or one for all), as a share of the range.
        channels: of the pictures.
        license: of the weights; by default as the file says, else unknown.
        prefix: use only names in the file that begin with this.
        partial: take what fits; the rest of the network keeps new weights, and has to be trained before it is of use.

    Raises:
        ConfigError: if class names are missing or twice there, the folder is in use, or the file says another license.
        CheckpointError: if the file cannot be read or does not fit the network as a whole.
        MissingExtra: if the package that reads the file is not installed.
    """
    file, to = Path(file), Path(to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"--to {to} exists already. Choose another folder.")
    require_place(to)
    detects = answer_of(model) == "detected"
    names = read_classes(classes, least=1 if detects else 2)
    heads = [{"name": "label", "class_names": names}]
    values = {
        **({"class_names": names} if detects else {"heads": heads, "small": size <= 64}),
        "image_size": (size, size),
        "channels": channels,
        "mean": _per_channel("mean", mean, channels),
        "std": _per_channel("std", std, channels),
        "flip": True,
    }
    name = "detect" if detects else "classify"
    kind = tasks.get(name)
    task = kind(kind.settings_type.model_validate(values))
    spec = ModelSpec(model, dict(kwargs or {}), **task.model_facts)
    network = build(spec)
    shape = (channels, size, size)
    report = import_layers(network, file, shape, prefix=prefix, partial=partial) or load_weights(
        network, file, prefix=prefix, allow_head_mismatch=True
    )
    if isinstance(report, Report) and not partial:
        _require_all(report, file, model, len(names))
    said = _license(license, file, report.license)
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    lineage = {"source": str(file), "sha256": checksum, "layers": report.to_dict()}
    info = {"license": said, "lineage": lineage, "precision": "fp32"}
    folder = Bundle(task, name, spec, task.assemble(network).eval(), info).save(to)
    return Imported(folder, report, said)


def _require_all(report: Report, file: Path, model: str, classes: int) -> None:
    if report.mismatched:
        name, (found, wanted) = next(iter(report.mismatched.items()))
        raise CheckpointError(
            f"{file}: the classifier {name} is {found} in the file and {wanted} for {classes} classes. Give as many "
            "class names as the file has outputs."
        )
    if report.missing:
        raise CheckpointError(f"{file} does not fill '{model}': {report.summary()} Is it of another network?")


def read_classes(classes: str | Sequence[str], *, least: int = 2) -> tuple[str, ...]:
    """Class names from a file, from words with commas, or as they are.

    Raises:
        ConfigError: if there are fewer than `least`, one is there twice, or a JSON file has no names.
    """
    if not isinstance(classes, str):
        names = tuple(classes)
    elif classes.endswith(".json") and _is_file(classes):
        names = _names_of_config(Path(classes))
    elif _is_file(classes):
        names = tuple(n.strip() for n in Path(classes).read_text(encoding="utf-8").splitlines() if n.strip())
    else:
        names = tuple(name.strip() for name in classes.split(",") if name.strip())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"The class {twice[0]!r} is there twice. Every output needs a name of its own.")
    if len(names) < least:
        wanted = "a class name" if least == 1 else "two class names"
        raise ConfigError(f"Expected {wanted} or more, got {list(names)}: a file with one per line, or a,b,c.")
    return names


def _names_of_config(path: Path) -> tuple[str, ...]:
    try:
        named = json.loads(path.read_text(encoding="utf-8"))["id2label"]
        found = {int(place): str(name) for place, name in named.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: expected a config.json with 'id2label', numbers to class names. Give a text file with one per line."
        ) from error
    if sorted(found) != list(range(len(found))):
        raise ConfigError(f"{path}: the numbers of 'id2label' have holes; they are {sorted(found)[:10]} ...")
    return tuple(found[place] for place in sorted(found))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # many names with commas are longer than any name of a file
        return False


def _license(given: str | None, file: Path, said: str | None) -> str:
    """The license of the weights.

    Raises:
        ConfigError: if the file says another one.
    """
    in_file, by_person = licenses.normalized(said), licenses.normalized(given)
    if given and in_file not in (licenses.UNKNOWN, by_person):
        raise ConfigError(
            f"--license {given}, but {file} says of itself: {said}. Leave --license out to take that over."
        )
    return by_person if given else in_file


def _per_channel(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise ConfigError(f"--{name}: got {len(values)} values, expected 1 or {channels} (one per channel).")
    return tuple(values) * (channels // len(values))
