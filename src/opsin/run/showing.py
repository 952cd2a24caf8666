"""A network to look at: by name, or the one of a run or bundle with its own weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opsin import seeding
from opsin.analyze.activations import Activation, activations, noise
from opsin.analyze.cost import build_hollow
from opsin.analyze.network import Table
from opsin.bundle import Bundle
from opsin.data.resize import resize
from opsin.errors import ConfigError
from opsin.layers.initializers import initialize
from opsin.models import ModelSpec, answer_of, build, models, resolve
from opsin.run import load
from opsin.run.folder import RUNS
from opsin.run.predicting import pictures_at

POINTS = 17  # of a person in COCO, where a network by name finds points

PICTURES = 32  # enough for steady variances


@dataclass
class Shown:
    """What is looked at.

    Args:
        network: hollow for a name, with weights for a run or bundle.
        spec: how it was built.
        bundle: where it comes from; None for a name.
    """

    network: nn.Module
    spec: ModelSpec
    bundle: Bundle | None = None


def opened(name: str, *, classes: int = 10, channels: int = 3, size: int = 224) -> Shown:
    """The network of a name that `--model` takes, of a run, of a bundle, or of the `last` run.

    Args:
        name: what the person typed.
        classes, channels, size: of a network by name; runs and bundles have their own. `classes` counts the points of a
            keypoint network.
    """
    path = Path(name)
    if name == "last" or any((place / "recipe.json").is_file() for place in (path, RUNS / path)):
        bundle = load(name)
    elif (path / "bundle.json").is_file():
        bundle = load(path)
    else:
        if min(classes, channels, size) < 1:
            raise ConfigError(f"--classes {classes} --channels {channels} --size {size}; expected 1 or more for each.")
        answer = answer_of(name) or "classified"
        points = POINTS if name in models and "num_points" in signature(models.get(name)).parameters else 0
        spec = resolve(ModelSpec(name, {}, channels, classes, (size, size), answer, points))
        return Shown(build_hollow(spec), spec)
    return Shown(bundle.model, bundle.spec, bundle)


def shown_activations(shown: Shown, pictures: str, rules: Mapping[str, str], seed: int = 0) -> list[Activation]:
    """Statistics of activations: of new weights for a network by name, of its own weights for a run or bundle.

    Args:
        shown: from `opened`.
        pictures: `noise`, or a file, folder or archive; up to 32 pictures of it are resized and brought to zero mean
            and unit variance.
        rules: initializers by pattern; see `opsin.layers.initializers`.
        seed: of the new weights.

    Raises:
        ConfigError: if rules are given for a run or bundle, which has weights.
    """
    spec, network = shown.spec, shown.network
    if shown.bundle is None:
        with seeding.torch_seeded(seed, "initialization"):
            network = build(spec, check=False)
            initialize(network, rules)
    elif rules:
        raise ConfigError("--init is for networks by name; a run or bundle has its weights already.")
    else:
        network = getattr(network, "net", network)  # pictures come normalized
    images = noise(spec.in_channels, spec.image_size) if pictures == "noise" else _read(Path(pictures), spec)
    return activations(network, images)


def _read(path: Path, spec: ModelSpec) -> Tensor:
    dataset = pictures_at(path)
    every = max(1, len(dataset) // PICTURES)
    images = []
    for i in range(0, len(dataset), every)[:PICTURES]:
        image = resize(dataset.read(i).image, spec.image_size)[0].float()
        if image.shape[0] != spec.in_channels:
            image = image.mean(0, keepdim=True).expand(spec.in_channels, -1, -1)
        images.append(image)
    if not images:
        raise ConfigError(f"{path}: there are no pictures in it.")
    stacked = torch.stack(images)  # (B, C, H, W)
    return (stacked - stacked.mean()) / stacked.std().clamp_min(1e-6)


def activation_table(found: list[Activation]) -> Table:
    """The statistics for people."""
    rows: Table = [("layer", "type", "mean", "variance", "zeros")]
    rows += [(a.name or "(network)", a.kind, f"{a.mean:.3g}", f"{a.variance:.3g}", f"{a.zeros:.0%}") for a in found]
    return rows


def rules_of(words: list[str] | None) -> dict[str, str]:
    """Read `PATTERN=INITIALIZER` words.

    Raises:
        ConfigError: for a word without `=`.
    """
    rules: dict[str, Any] = {}
    for word in words or []:
        pattern, equals, name = word.rpartition("=")
        if not equals or not pattern:
            raise ConfigError(f"--init {word}: expected PATTERN=INITIALIZER, e.g. '*=he'.")
        rules[pattern] = name
    return rules
