"""The typed settings of a run, where each value came from, and every mistake in them at once.

A run is described by six sections: data, model, task, optimizer, schedule, run. Values come in layers, each later one
winning: defaults, a preset, a recipe, flags, `section.key=value`. Who set a value is kept, so that no setting is
replaced in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model, field_validator

from opsin.durable import write_json
from opsin.errors import ConfigError, nearest


class Settings(BaseModel):
    """Base of all settings: unknown keys and wrong types are errors, nothing is converted in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def over(cls, base: Settings | Mapping[str, Any], given: Settings | Mapping[str, Any] | None) -> Self:
        """`base` with what was given on top of it; of settings, only what was set."""
        known = base.model_dump() if isinstance(base, Settings) else base
        own = given.model_dump(exclude_unset=True) if isinstance(given, Settings) else given
        return cls.model_validate({**known, **(own or {})})


class SplitSettings(Settings):
    """How samples are divided into train, val and test."""

    seed: int = 0
    """Seed of the split; not the training seed."""
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Shares of train, val and test for what has to be made."""
    by: Literal["stratified", "random", "chronological"] = "stratified"
    """How samples are dealt out: keeping class shares, at random, or oldest first."""
    group: str | None = None
    """Samples of one group never straddle parts: a column, `parent`, `regex:...` or `time:5min`."""
    folds: int | None = Field(None, ge=2)
    """Cross-validation: number of folds."""
    fold: int = Field(0, ge=0)
    """Which fold is the test part."""
    earlier: str | None = None
    """A run whose assignments and split settings are kept; only new ids are assigned (`--split-from`)."""


class DataSettings(Settings):
    """Which pictures, and how they are read."""

    path: str | None = None
    """Folder, file or archive."""
    format: str | None = None
    """Format name; recognized when not given."""
    columns: dict[str, str] = {}
    """For tables: role to column, e.g. image=path label=dx group=patient."""
    split: SplitSettings = SplitSettings()
    """How samples are divided."""
    skip_bad: bool = False
    """Skip and count samples that cannot be read, instead of stopping before step 1."""
    tile: int | None = Field(None, ge=32)
    """Cut pictures with objects into tiles of so many pixels, before the split (all tiles of a picture stay in one part); predict
    with `--tile` then. For small objects in large pictures."""
    tile_overlap: float = Field(0.2, ge=0, lt=0.9)
    """Share of a tile that the next one repeats."""
    cache: str = "auto"
    """Keep decoded pictures in memory: `auto`, `none`, or a budget such as `2GB`."""
    shrink: int | None = Field(None, ge=1)
    """Bring larger training pictures to this shorter side when they are read, before the cache: epochs from the cache
    are faster and more pictures fit, but small crops lose detail. 256 suits crops of 224."""
    workers: int | Literal["auto"] = "auto"
    """Processes that decode; 0 decodes in the training process."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many training samples (drawn with the split seed)."""


class ModelSettings(Settings):
    """Which network."""

    name: str = "auto"
    """Registered name, `timm/NAME`, or `pkg.module:builder`; `auto` chooses by picture size."""
    kwargs: dict[str, Any] = {}
    """Keyword arguments of the builder."""
    weights: str = "none"
    """Starting weights: a published name that was fetched (`opsin models get`), a run, bundle or file, or `none`."""
    accept_license: str | None = None
    """Name of a license that is not permissive, by which you take the starting weights over; `unknown` for none."""
    restore: tuple[str, ...] = ()
    """Patterns of names that are taken from the weights, e.g. `["layer1.*", "conv1"]`; all by default."""
    rename: dict[str, str] = {}
    """Regular expressions that turn names in the weights into the model's, e.g. `{"^trunk\\\\.": "features."}`."""
    init: dict[str, str] = {}
    """Initializers by pattern of layers, e.g. `{"*": "he", "head": "normal:0.01"}`: zeros, normal, truncated-normal,
    uniform, xavier, he, orthogonal; by default the network's own."""
    bias_prior: bool = False
    """Start the biases of the last layer at the logarithm of each class's share of the training part (of each label's odds),
    so that the model begins with what it would say without looking. For rare classes."""


class StageSettings(Settings):
    """One stage of fine-tuning."""

    name: str
    """For people."""
    train: str = "all"
    """What is trained: `head`, `all`, `bias`, `lora` (with plan lora), `last:N` (the N last blocks and the head), `from:BLOCK`,
    or comma-separated patterns of parameter names such as `layer4.*,*.bias`."""
    share: float = Field(1.0, gt=0)
    """Share of the run's epochs, beside those of the other stages."""
    rate: float = Field(1.0, gt=0)
    """Factor of all learning rates of the stage."""
    patience: int | None = Field(None, ge=1)
    """The next stage begins after this many validations without a better metric; by default run.patience."""


class TransferSettings(Settings):
    """How a model learns from weights that were trained on something else (`--transfer`)."""

    plan: Literal["none", "head", "staged", "full", "lora", "bias"] = "none"
    """head: the last layer alone. staged: head, then the last blocks, then everything. full: everything at once. lora: head and
    low-rank changes of all other weights (Hu et al. 2021). bias: head, biases and norms (BitFit, Ben Zaken et al. 2021). none:
    no plan, everything at one rate."""
    head: Literal["auto", "features", "steps", "keep"] = "auto"
    """How the last layer begins: fitted to the features of the training pictures, computed once (features); at random (steps);
    as the weights have it (keep). auto: features, except for the plans full and none."""
    top: int = Field(1, ge=1)
    """For staged: how many of the last blocks the middle stage trains."""
    trunk_rate: float = Field(0.1, gt=0)
    """Learning rate of what comes from the weights, as a factor of optimizer.lr."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Further factor for each block further from the head."""
    freeze_statistics: bool | Literal["auto"] = "auto"
    """Keep the running statistics of batch norms also in blocks that are trained (in frozen blocks they are always kept). auto:
    keep them where the head was fitted to features, which would not fit other statistics."""
    rank: int = Field(8, ge=1)
    """For lora: rank of the changes."""
    alpha: float | None = Field(None, gt=0)
    """For lora: changes are scaled by alpha / rank; by default alpha = rank."""
    stages: tuple[StageSettings, ...] = ()
    """Stages of your own, instead of the plan's."""


class OptimizerSettings(Settings):
    """How weights are updated."""

    name: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    """Update rule."""
    lr: float | None = Field(None, gt=0)
    """Peak learning rate for the global batch; by default 0.05 per 128 samples for sgd, 0.1 for muon, 0.001 for
    adam and adamw."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """For sgd and muon."""
    other_lr: float = Field(0.05, gt=0)
    """For muon: rate of what is not a hidden layer (first and last layer, biases, norms), which SGD updates."""
    nesterov: bool = True
    """For sgd: Nesterov's momentum."""
    betas: tuple[float, float] = (0.9, 0.999)
    """For adam and adamw."""
    weight_decay: float = Field(5e-4, ge=0)
    """Decay of weights; biases and normalization parameters are left out."""
    clip_norm: float | None = Field(None, gt=0)
    """Clip the gradient to this global L2 norm."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the running average of weights that is evaluated and kept; 0 is off."""


class RegularizeSettings(Settings):
    """Penalties on weights, each a loss term of its own, and limits; `l1` with `l2` is the elastic net.

    A number counts for all weights; a mapping says it by pattern of layers or parameters, later patterns winning, e.g.
    `{"*": 1e-4, "head*": 0}`. Biases and norms are left out unless a pattern ends in their name (`*.bias`).
    """

    l1: float | dict[str, float] = 0.0
    """Added to the loss: this times the sum of absolute weights."""
    l2: float | dict[str, float] = 0.0
    """Added to the loss: this times the sum of squared weights (optimizer.weight_decay is there beside it)."""
    max_norm: float | dict[str, float] = 0.0
    """Largest L2 norm of the weights of each unit or filter, kept after every step; 0 is off."""

    @field_validator("l1", "l2", "max_norm")
    @classmethod
    def _not_negative(cls, given: float | dict[str, float]) -> float | dict[str, float]:
        if not all(0 <= one < math.inf for one in (given.values() if isinstance(given, dict) else [given])):
            raise ValueError("expected 0 or positive numbers")
        return given


class ScheduleSettings(Settings):
    """How the learning rate changes over the run."""

    name: Literal["constant", "step", "linear", "cosine", "one-cycle"] = "cosine"
    """Shape of the curve after warm-up."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Epochs of linear warm-up from a hundredth of the rate (all but one-cycle)."""
    final: float = Field(0.0, ge=0, le=1)
    """Last value as a share of the peak (linear, cosine, one-cycle)."""
    milestones: tuple[float, ...] = (1 / 3, 2 / 3)
    """For step: shares of the run at which the rate drops."""
    gamma: float = Field(0.1, gt=0, le=1)
    """For step: factor of each drop."""
    peak: float = Field(0.25, gt=0, lt=1)
    """For one-cycle: share of the run at which the rate is highest."""


class RunSettings(Settings):
    """How long, how precisely and on what."""

    epochs: int = Field(10, ge=0)
    """Passes over the training part."""
    minutes: float | None = Field(None, gt=0)
    """Train for about this long instead: epochs are set from a timing before step 1, and stored."""
    batch_size: int = Field(128, ge=1)
    """Samples per step, over all processes."""
    micro_batch: int | None = Field(None, ge=1)
    """Samples per forward pass and process; found before step 1 when not given."""
    seed: int = 0
    """Seed of initialization, order, augmentation and dropout."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = "auto"
    """Arithmetic of the forward pass; auto takes bf16 where the processor has it."""
    channels_last: bool | Literal["auto"] = "auto"
    """Memory layout of pictures and convolutions."""
    compile: bool = False
    """Use torch.compile."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of the training process; all by default."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many validations without a better metric."""
    validate_every: int = Field(1, ge=1)
    """Epochs between validations; the last epoch is always validated."""
    checkpoint_seconds: float = Field(60.0, ge=0)
    """Longest time between checkpoints inside an epoch; there is one at each epoch's end."""
    keep: int = Field(2, ge=1)
    """Latest checkpoints that are kept."""
    listeners: tuple[str, ...] = ("terminal", "jsonl", "tensorboard")
    """Who listens to the events of training: names, or `pkg.module:factory`."""
    preflight: bool = True
    """Check data, model and optimizer on one batch before step 1."""
    sync_batch_norm: bool = True
    """With several processes: batch statistics over all of them."""


SECTIONS: dict[str, type[Settings]] = {
    "data": DataSettings,
    "model": ModelSettings,
    "transfer": TransferSettings,
    "optimizer": OptimizerSettings,
    "regularize": RegularizeSettings,
    "schedule": ScheduleSettings,
    "run": RunSettings,
}


@dataclass(frozen=True)
class Layer:
    """Values from one source: nested as {section: {key: value}}; `source` is shown to people, e.g. "flag --epochs"."""

    source: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """All settings of a run; `task` holds the task's name and its own settings as given (validated by the task)."""

    task_name: str
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    transfer: TransferSettings = TransferSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    regularize: RegularizeSettings = RegularizeSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    run: RunSettings = RunSettings()
    task: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def build(cls, task_name: str, task_settings: type[Settings], layers: Sequence[Layer]) -> Recipe:
        """Merge layers, later ones winning, and validate everything.

        Args:
            task_name: registered name of the task.
            task_settings: the task's own settings class; its fields are the keys of the section `task`.
            layers: from weakest to strongest.

        Raises:
            ConfigError: with *all* unknown keys, wrong types and values out of range, each with its source.
        """
        merged: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for layer in layers:
            for name in layer.values:
                merged.setdefault(name, {})
            for path, value in _leaves(layer.values):
                _put(merged, path, value)
                sources[".".join(path)] = layer.source
        known = {**SECTIONS, "task": task_settings}
        problems = _unknown_keys(merged, known, sources)
        values: dict[str, Any] = {}
        for name, model in known.items():
            section = merged.get(name, {})
            if not isinstance(section, dict):
                problems.append(f"{name}: expected a section with keys, got {section!r}{_by(sources, name)}.")
                continue
            if name == "task":
                values[name] = _validated(name, _partial(task_settings), section, sources, problems)
            else:
                values[name] = _validated(name, model, section, sources, problems)
        if problems:
            raise ConfigError(_listed(problems))
        task = values.pop("task")
        given = {key: getattr(task, key) for key in task.model_fields_set}
        return cls(task_name=task_name, task=given, sources=sources, **values)

    def to_dict(self) -> dict[str, Any]:
        """Every value but those that a task infers, and who set those that are not defaults."""
        sections = {name: getattr(self, name).model_dump(mode="json") for name in SECTIONS}
        # Of the task only what was given: the rest is inferred from the data and from presets, each time anew.
        task = TypeAdapter(dict[str, Any]).dump_python(dict(self.task), mode="json", exclude_unset=True)
        return {"version": 1, "task_name": self.task_name, **sections, "task": task, "sources": dict(self.sources)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Rebuild a recipe from `to_dict`.

        Raises:
            ConfigError: if the recipe was written by a newer version of opsin.
        """
        if values.get("version") != 1:
            raise ConfigError(f"This recipe has version {values.get('version')!r}; this opsin reads version 1.")
        sections = {name: model.model_validate(values.get(name, {})) for name, model in SECTIONS.items()}
        return cls(task_name=values["task_name"], task=values["task"], sources=values["sources"], **sections)  # type: ignore[arg-type]

    def with_values(self, source: str, **dotted: Any) -> Recipe:
        """A copy with some values replaced, e.g. `with_values("preflight", **{"run.micro_batch": 32})`."""
        sections: dict[str, Any] = {}
        for path, value in dotted.items():
            section, _, rest = path.partition(".")
            current = sections.get(section) or getattr(self, section).model_dump()
            _put(current, tuple(rest.split(".")), value)
            sections[section] = current
        built = {name: SECTIONS[name].model_validate(values) for name, values in sections.items()}
        new = {**{name: getattr(self, name) for name in SECTIONS}, **built}
        return Recipe(self.task_name, task=self.task, sources={**self.sources, **dict.fromkeys(dotted, source)}, **new)

    def save(self, path: Path) -> None:
        """Write `recipe.json`."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a `recipe.json`.

        Raises:
            ConfigError: if it is damaged, or was written by a newer version of opsin.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path} is damaged ({type(error).__name__}: {error}). Restore it from a copy, or train a new run."
            ) from error


def overrides(words: Iterable[str]) -> Layer:
    """Read `section.key=value` words of a command line; values are JSON where they parse as such, else text.

    Raises:
        ConfigError: for every word without a key or `=`.
    """
    values: dict[str, Any] = {}
    bad: list[str] = []
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or "." not in path:
            bad.append(f"'{word}' is not of the form section.key=value (e.g. optimizer.lr=0.1).")
            continue
        _put(values, tuple(path.split(".")), parse_value(text))
    if bad:
        raise ConfigError(_listed(bad))
    return Layer("command line", values)


_SHORT_DECIMAL = re.compile(r"[+-]?(\d+\.|\.\d+)(e[+-]?\d+)?")
"""Decimals without a digit on one side, which JSON does not take."""


def parse_value(text: str) -> Any:
    """Read a value typed by a person: JSON, `.5`, `true/false/none`, or the text itself."""
    low = text.strip().lower()
    if low in ("none", "null"):
        return None if low == "null" else "none"
    if low in ("true", "false"):
        return low == "true"
    if _SHORT_DECIMAL.fullmatch(low):
        return float(low)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _leaves(values: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    for name, value in values.items():
        path = (*prefix, name)
        deep = (isinstance(value, Mapping) and len(path) < 2) or (
            path == ("data", "split") and isinstance(value, Mapping)
        )
        if deep:
            yield from _leaves(value, path)
        else:
            yield path, value


def _put(target: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        target = target.setdefault(name, {})
    target[path[-1]] = value


def _unknown_keys(
    merged: dict[str, Any], known: Mapping[str, type[BaseModel]], sources: Mapping[str, str]
) -> list[str]:
    problems = []
    every = {f"{section}.{key}": section for section, model in known.items() for key in model.model_fields}
    for name in merged:
        if name not in known:
            keys = [
                path
                for path in every
                if path.rpartition(".")[2] in nearest(name, {p.rpartition(".")[2] for p in every}, n=1)
            ]
            hint = (
                f" Did you mean {' or '.join(keys)}?"
                if keys and not nearest(name, known, n=1)
                else _suggest(name, known)
            )
            problems.append(f"Unknown section '{name}'.{hint} Sections: {', '.join(known)}.")
    for section, model in known.items():
        given = merged.get(section)
        for key in list(given) if isinstance(given, dict) else []:
            if key not in model.model_fields:
                path = f"{section}.{key}"
                elsewhere = [p for p in every if p.endswith(f".{key}")]
                hint = f" Did you mean {' or '.join(elsewhere)}?" if elsewhere else _suggest(path, every)
                problems.append(f"Unknown setting '{path}'{_by(sources, path)}.{hint}")
                del given[key]  # type: ignore[union-attr]
    return problems


def _partial(settings: type[Settings]) -> type[BaseModel]:
    """The same settings with no required field: what is inferred from the data (classes, size) is not given yet."""
    fields: dict[str, Any] = {}
    for name, info in settings.model_fields.items():
        fields[name] = (info.annotation, Field(None, validate_default=False) if info.is_required() else info)
    return create_model(f"{settings.__name__}Given", __config__=settings.model_config, **fields)


def _validated(
    name: str, model: type[BaseModel], section: dict[str, Any], sources: Mapping[str, str], problems: list[str]
) -> Any:
    try:
        return model.model_validate(section)
    except ValidationError as error:
        for item in error.errors():
            path = ".".join([name, *(str(part) for part in item["loc"])])
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                fields = _fields_at(model, item["loc"][:-1])
                message = f"unknown key.{_suggest(str(item['loc'][-1]), fields)}"
                problems.append(f"{path}{_by(sources, path)}: {message}")
            else:
                problems.append(f"{path} = {item['input']!r}{_by(sources, path)}: {message}.")
        return None


def _fields_at(model: type[BaseModel], loc: Sequence[int | str]) -> Iterable[str]:
    current: Any = model
    for part in loc:
        info = getattr(current, "model_fields", {}).get(part)
        current = info.annotation if info is not None else None
    return list(getattr(current, "model_fields", {}))


def _by(sources: Mapping[str, str], path: str) -> str:
    while path:
        if path in sources:
            return f" (set by {sources[path]})"
        path = path.rpartition(".")[0]
    return ""


def _suggest(name: str, choices: Iterable[str]) -> str:
    near = nearest(name, choices, n=2)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _listed(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} settings are wrong:\n" + "\n".join(f"  - {problem}" for problem in problems)
