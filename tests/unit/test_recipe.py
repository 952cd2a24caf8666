"""Settings: unknown keys, names and types are reported all at once, with the nearest valid choice and their source."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsin.errors import ConfigError
from opsin.recipe import SECTIONS, Layer, Recipe, overrides, parse_value
from opsin.tasks.classify import ClassifySettings


def _build(*layers: Layer) -> Recipe:
    return Recipe.build("classify", ClassifySettings, layers)


def test_all_mistakes_at_once_with_the_nearest_name_and_the_source() -> None:
    layers = [
        Layer("preset x", {"optimizer": {"lrr": 1}, "dta": {}}),
        overrides(
            ["run.batchsize=3", "run.epochs=x", "optimizer.lr=-1", "data.split.sed=4", "task.label_smothing=0.1"]
        ),
    ]
    with pytest.raises(ConfigError) as error:
        _build(*layers)
    text = str(error.value)
    parts = ["7 settings are wrong", "optimizer.lrr", "(set by preset x)", "optimizer.lr", "section 'dta'", "data"]
    parts += [
        "run.batch_size",
        "run.epochs = 'x'",
        "optimizer.lr = -1",
        "(set by command line)",
        "data.split.sed",
        "seed",
    ]
    for part in [*parts, "task.label_smoothing"]:
        assert part in text


def test_a_key_of_another_section_is_pointed_at() -> None:
    with pytest.raises(ConfigError, match=r"'run\.lr'.*Did you mean optimizer\.lr"):
        _build(overrides(["run.lr=0.1"]))


def test_later_layers_win_and_sources_are_kept() -> None:
    recipe = _build(Layer("recipe a", {"optimizer": {"lr": 1.0, "momentum": 0.5}}), overrides(["optimizer.lr=0.25"]))
    assert (recipe.optimizer.lr, recipe.optimizer.momentum) == (0.25, 0.5)
    assert recipe.sources == {"optimizer.lr": "command line", "optimizer.momentum": "recipe a"}


def test_nested_task_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"task\.augment\.shfit.*shift"):
        _build(overrides(["task.augment.shfit=0.1"]))


def test_words_that_are_no_settings() -> None:
    with pytest.raises(ConfigError, match=r"2 settings are wrong(.|\n)*'epochs=3'(.|\n)*'hello'"):
        overrides(["epochs=3", "hello"])


def test_round_trip_through_json() -> None:
    recipe = _build(
        overrides(["run.seed=5", "task.augment.shift=0.1", "model.kwargs.stem=8", "data.split.group=parent"])
    )
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again.to_dict() == recipe.to_dict()
    assert again.model.kwargs == {"stem": 8}


def test_a_newer_recipe_is_refused() -> None:
    with pytest.raises(ConfigError, match="version 2"):
        Recipe.from_dict({"version": 2})


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.5", 0.5), ("true", True), ("none", "none"), ("null", None), ("[1, 2]", [1, 2]), ("a b", "a b")],
)
def test_values_typed_by_people(text: str, value: object) -> None:
    assert parse_value(text) == value


@given(st.sampled_from(sorted(SECTIONS)), st.text("abcdefgh_", min_size=1, max_size=12))
def test_no_unknown_key_passes(section: str, key: str) -> None:
    if key in SECTIONS[section].model_fields:
        return
    with pytest.raises(ConfigError, match="Unknown setting"):
        _build(Layer("test", {section: {key: 1}}))
