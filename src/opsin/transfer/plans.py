"""Plans of fine-tuning: which parameters are trained in which stage, at which rate, and what stays as it was.

A frozen block is frozen whole: its running statistics do not move and its dropout is off, as in prediction. How the plans
work on few pictures was measured: docs/transfer.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MethodType

from torch import nn

from opsin.engine.loop import Stage
from opsin.errors import ConfigError
from opsin.layers import lora
from opsin.models.blocks import HEAD, blocks_of, choose
from opsin.recipe import StageSettings, TransferSettings

_LATER = 0.3  # rate of the last stage of `staged`, which moves everything, beside that of the stage before


@dataclass(frozen=True)
class Prepared:
    """What a stage trains.

    Args:
        rates: factor of the learning rate by parameter name; nothing else is trained.
        words: for people, e.g. "2,104,842 of 11,181,642 parameters (layer4, head)".
    """

    rates: Mapping[str, float]
    words: str


def fits_features(settings: TransferSettings) -> bool:
    """Whether the last layer begins fitted to features."""
    return settings.head == "features" or (
        settings.head == "auto" and settings.plan in ("head", "staged", "lora", "bias")
    )


def stages_of(settings: TransferSettings) -> tuple[StageSettings, ...]:
    """The stages of a plan that take steps; none where fitting the head to features is all."""
    if settings.stages:
        return settings.stages
    fitted = fits_features(settings) or settings.head == "keep"
    first = () if fitted else (StageSettings(name="head", train=HEAD),)
    if settings.plan == "head":
        return () if fits_features(settings) else (StageSettings(name="head", train=HEAD),)
    if settings.plan == "staged":
        top = StageSettings(name="top", train=f"last:{settings.top}", share=1.0)
        return (*first, top, StageSettings(name="all", train="all", share=2.0, rate=_LATER))
    if settings.plan == "bias":
        return (StageSettings(name="bias", train="bias"),)
    if settings.plan == "lora":
        return (StageSettings(name="lora", train="lora"),)
    return (StageSettings(name="full", train="all"),)


def divide(stages: Sequence[StageSettings], epochs: int, patience: int | None) -> tuple[tuple[int, int | None], ...]:
    """Epochs and patience of each stage: one each, and the rest by share."""
    if not stages:
        return ()
    rest, whole = max(epochs - len(stages), 0), sum(stage.share for stage in stages)
    ends = [0] + [round(rest * sum(one.share for one in stages[: i + 1]) / whole) for i in range(len(stages))]
    return tuple((1 + end - start, stage.patience or patience) for start, end, stage in zip(ends, ends[1:], stages))


def engine_stages(model: nn.Module, settings: TransferSettings, epochs: int, patience: int | None) -> tuple[Stage, ...]:
    """The stages as the training loop takes them."""
    stages = stages_of(settings)
    return tuple(
        Stage(stage.name, count, own, prepared(model, settings, stage).words)
        for stage, (count, own) in zip(stages, divide(stages, epochs, patience))
    )


def prepared(model: nn.Module, settings: TransferSettings, stage: StageSettings) -> Prepared:
    """Which parameters a stage trains, at which rate.

    Raises:
        ConfigError: if what the stage names is not in the model.
    """
    blocks = [block for block in blocks_of(model) if block.name != HEAD]
    chosen = set(_chosen(model, stage.train))
    head = set(choose(model, HEAD))
    fitted = fits_features(settings) or settings.head == "keep"
    rates: dict[str, float] = {}
    for name in head & chosen:
        rates[name] = stage.rate * (settings.trunk_rate if fitted and stage.train != HEAD else 1.0)
    for depth, block in enumerate(reversed(blocks)):
        for name in block.parameters:
            if name in chosen:
                low = stage.train in ("lora", "bias")  # new parameters, or few, may move at the full rate
                rates[name] = stage.rate * (1.0 if low else settings.trunk_rate * settings.layer_decay**depth)
    touched = [block.name for block in blocks_of(model) if chosen & set(block.parameters)]
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    count, whole = sum(sizes[name] for name in rates), sum(sizes.values())
    listed = ", ".join(touched) if len(touched) <= 4 else f"{touched[0]} to {touched[-1]}"
    return Prepared(rates, f"{count:,} of {whole:,} parameters ({listed})")


def _chosen(model: nn.Module, words: str) -> tuple[str, ...]:
    head = choose(model, HEAD)
    if words == "lora":
        changes = tuple(
            n for n, _ in model.named_parameters() if ".parametrizations." in f".{n}" and not n.endswith("original")
        )
        if not changes:
            raise ConfigError("train = 'lora' needs the low-rank changes that transfer.plan=lora makes.")
        return (*changes, *head)
    if words == "bias":
        flat = tuple(name for name, p in model.named_parameters() if p.ndim <= 1)
        return (*flat, *head)
    return choose(model, words)


def adapt(model: nn.Module, settings: TransferSettings) -> None:
    """Give the model the new parameters that a plan needs (lora), before any weights of a checkpoint are loaded."""
    if settings.plan == "lora":
        lora.inject(model, settings.rank, settings.alpha, choose(model, HEAD))


def finish(model: nn.Module) -> None:
    """Take a plan's new parameters into the weights, and let every module follow train() and eval() again."""
    lora.merge(model)
    for module in model.modules():
        release(module)


def begin(model: nn.Module, settings: TransferSettings, stage: StageSettings) -> Mapping[str, float]:
    """Make exactly a stage's parameters trainable and hold the rest as in prediction; returns the rates by name.

    Raises:
        ConfigError: if nothing would be trained.
    """
    rates = prepared(model, settings, stage).rates
    if not rates:
        raise ConfigError(f"Stage '{stage.name}' (train = '{stage.train}') trains nothing.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in rates)
    still = settings.freeze_statistics
    still = fits_features(settings) or settings.head == "keep" if still == "auto" else still
    for module in model.modules():
        release(module)
    for module in model.modules():
        learned = list(module.parameters())
        frozen = bool(learned) and not any(p.requires_grad for p in learned)
        if frozen or (still and isinstance(module, nn.modules.batchnorm._BatchNorm)):
            hold(module)
    return rates


def hold(module: nn.Module) -> None:
    """Keep a module, and all in it, in evaluation mode whatever `train()` is called above it."""
    module.train = MethodType(_stay, module)  # type: ignore[method-assign]
    module.train(False)


def release(module: nn.Module) -> None:
    """Let a module follow `train()` and `eval()` again."""
    module.__dict__.pop("train", None)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    del mode
    return type(module).train(module, False)
