"""Where the settings of a run come from: a recipe file or name, then flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opsin.errors import ConfigError
from opsin.recipe import Layer, Recipe
from opsin.registry import Registry

recipes = Registry("recipe", "opsin.recipes")
_FLAGS = {
    "path": "--data",
    "name": "--model",
    "earlier": "--split-from",
    "augment_preset": "--augment",
    "plan": "--transfer",
}


def flag_layers(task: str, recipe: str | None, flags: Mapping[str, Any]) -> list[Layer]:
    """Layers from a recipe and from flags (dotted key to value or None), weakest first."""
    layers = [] if recipe is None else [recipe_layer(task, recipe)]
    for path, value in flags.items():
        if value is None:
            continue
        nested: Any = value
        for name in reversed(path.split(".")):
            nested = {name: nested}
        key = path.rpartition(".")[2]
        layers.append(Layer(f"flag {_FLAGS.get(key, '--' + key.replace('_', '-'))}", nested))
    return layers


def recipe_layer(task: str, reference: str) -> Layer:
    """The settings of a named recipe, or of a `recipe.json` that an earlier run wrote.

    Raises:
        UnknownName: if there is no such recipe.
        ConfigError: if it is for another task.
    """
    path = Path(reference)
    if path.suffix == ".json":
        try:
            kept = Recipe.load(path)
        except OSError as error:
            raise ConfigError(f"--recipe {reference}: cannot be read ({error}).") from error
        name, values = (
            kept.task_name,
            {k: v for k, v in kept.to_dict().items() if k not in ("version", "task_name", "sources")},
        )
    else:
        found = recipes.get(reference)()
        name, values = found.task, found.settings
    if name != task:
        raise ConfigError(f"--recipe {reference} is for the task '{name}', not '{task}'.")
    return Layer(f"recipe {reference}", values)
