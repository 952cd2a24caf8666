"""From a spec to a module: find the builder, hand it what it takes, make the output uniform, try two pictures."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opsin.errors import ConfigError, OpsinError, ShapeError, nearest
from opsin.models import Classified, Feature, ModelSpec, answer_of, models
from opsin.seeding import torch_generator

Builder = Callable[..., nn.Module]

# What the data say about a network, and the argument names under which a builder may take it, first match wins.
FACTS = {
    "num_outputs": ("num_classes", "num_outputs"),
    "in_channels": ("in_channels", "in_chans"),
    "image_size": ("image_size",),
    "num_points": ("num_points",),
}


class AsClassified(nn.Module):
    """Wraps a person's module so that it returns `Classified` in training and evaluation.

    Args:
        net: returns logits (B, K) as a tensor, under `logits` in a dict, or as the attribute `logits`.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, **given: Any) -> Classified:
        logits = _find_logits(self.net(images, **given))
        if logits is None:
            raise ConfigError(_no_logits(type(self.net).__name__))
        return Classified(logits)


def build_model(spec: ModelSpec, *, check: bool = True) -> nn.Module:
    """Build a resolved spec; see `opsin.models.build`."""
    answer = answer_of(spec.name)
    if answer is not None and answer != spec.answer:
        fitting = [name for name in models if answer_of(name) == spec.answer]
        raise ConfigError(
            f"model '{spec.name}' is of another kind ({answer}) than this task needs ({spec.answer}). "
            f"Those that fit: {', '.join(fitting)}."
        )
    if spec.name.startswith("timm/"):
        from opsin.models.timm_adapter import timm_model

        return build_with(partial(timm_model, spec.name.removeprefix("timm/")), spec, check=check)
    return build_with(models.get(spec.name), spec, check=check)


def build_with(builder: Builder | nn.Module, spec: ModelSpec, *, check: bool = True) -> nn.Module:
    """Build a spec with a given builder (a function, a module class, or a module that is built already)."""
    if isinstance(builder, nn.Module):
        if spec.kwargs:
            raise ConfigError(f"'{spec.name}' is a module built already; it takes no arguments {dict(spec.kwargs)}.")
        model = builder
    else:
        model = _called(builder, spec)
    ours = str(getattr(getattr(builder, "func", builder), "__module__", "")).startswith("opsin.models.")
    if spec.answer == "classified" and not ours and not _is_named_tuple_with_logits(_try_pictures(model, spec)):
        model = AsClassified(model)
    if check:
        checks = {"classified": _check_logits, "detected": _check_detected, "located": _check_located}
        checks[spec.answer](_try_pictures(model, spec), spec)
    return model


def build_backbone(
    name: str,
    kwargs: Mapping[str, Any],
    in_channels: int,
    image_size: tuple[int, int],
    strides: Sequence[int] | None,
) -> tuple[nn.Module, list[int], list[Feature]]:
    """Build a classification network for its feature pyramid: the layers behind the levels that are used are taken away.

    Args:
        name: a registered name or `timm/NAME`.
        kwargs: its builder's own keyword arguments.
        in_channels: C of the pictures.
        image_size: (H, W) of the pictures.
        strides: wanted; those that the network does not have are left out. None is the coarsest alone.

    Returns:
        A module with `forward_pyramid`; the positions of the levels used, finest first, of those with one stride the last;
        their channels and strides.

    Raises:
        ConfigError: if it has no pyramid, or no level with one of the strides.
    """
    if answer_of(name) not in ("classified", None):
        raise ConfigError(
            f"backbone = '{name}' is a detector or a keypoint network; expected a classification network."
        )
    net = build_model(ModelSpec(name, dict(kwargs), in_channels, 2, image_size), check=False)
    if not hasattr(net, "forward_pyramid"):
        fitting = [one for one in models if models.where(one).startswith("opsin.models.backbones.")]
        raise ConfigError(
            f"backbone = '{name}' has no feature pyramid. Those that do: {', '.join(fitting)}, timm/NAME."
        )
    info = [Feature(*level) for level in net.feature_info]  # type: ignore[union-attr]
    last = {level.stride: i for i, level in enumerate(info)}
    strides = (info[-1].stride,) if strides is None else strides
    levels = [last[stride] for stride in strides if stride in last]
    if not levels:
        raise ConfigError(f"backbone = '{name}' has strides {sorted(last)}; expected one of {sorted(strides)}.")
    _without_head(net, levels, in_channels, image_size)
    return net, levels, [info[level] for level in levels]


def _without_head(net: nn.Module, levels: Sequence[int], in_channels: int, image_size: tuple[int, int]) -> None:
    """Take away the modules that no level's features depend on."""
    shapes = copy.deepcopy(net).to("meta").eval()
    features = shapes.forward_pyramid(torch.empty((1, in_channels, *image_size), device="meta"))  # type: ignore[operator]
    named = dict(shapes.named_parameters())
    total = torch.stack([features[level].sum() for level in levels]).sum()
    gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    used = {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}

    def cut(module: nn.Module, path: str) -> None:
        for name, child in list(module.named_children()):
            inside = [f"{path}{name}.{parameter}" for parameter, _ in child.named_parameters()]
            if inside and not used.intersection(inside):
                setattr(module, name, nn.Identity())
            else:
                cut(child, f"{path}{name}.")

    cut(net, "")
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in used)


def _called(builder: Builder, spec: ModelSpec) -> nn.Module:
    arguments = dict(spec.kwargs)
    signature = _signature(builder, spec.name)
    names = [name for name, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for fact, aliases in FACTS.items():
        for alias in aliases:
            if alias in arguments:
                given = getattr(spec, fact)
                raise ConfigError(f"model '{spec.name}': '{alias}' is set from the data ({given}); leave it out.")
        taken = next((alias for alias in aliases if alias in names), None)
        if taken is not None:
            arguments[taken] = getattr(spec, fact)
    unknown = [name for name in spec.kwargs if name not in names]
    if unknown and not open_ended:
        raise ConfigError(_unknown_arguments(spec.name, unknown, names))
    # A builder that passes **kwargs on (torchvision's do) is offered num_classes, the one name nearly all of them take.
    offered = open_ended and not {"num_classes", "num_outputs"} & set(arguments)
    try:
        try:
            model = builder(**arguments, **({"num_classes": spec.num_outputs} if offered else {}))
        except TypeError as error:
            if not offered or "num_classes" not in str(error):
                raise
            model = builder(**arguments)
    except OpsinError:
        raise
    except Exception as error:
        raise ConfigError(_failed(spec, arguments, error)) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"The builder '{spec.name}' returned {type(model).__name__}; expected a torch.nn.Module.")
    return model


def _signature(builder: Builder, name: str) -> inspect.Signature:
    if not callable(builder):
        raise ConfigError(f"'{name}' is {type(builder).__name__}; expected a function, a class or a torch.nn.Module.")
    try:
        return inspect.signature(builder)
    except ValueError as error:
        raise ConfigError(f"The arguments of '{name}' cannot be read; wrap it in a Python function.") from error


def _unknown_arguments(name: str, unknown: list[str], names: list[str]) -> str:
    own = [n for n in names if not any(n in aliases for aliases in FACTS.values())]
    words = []
    for argument in unknown:
        near = nearest(argument, own)
        words.append(f"'{argument}'" + (f" (did you mean {' or '.join(repr(n) for n in near)}?)" if near else ""))
    return f"model '{name}' has no argument {', '.join(words)}. It takes: {', '.join(own) or 'none'}."


def _failed(spec: ModelSpec, arguments: Mapping[str, Any], error: Exception) -> str:
    shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"model '{spec.name}' could not be built with {shown or 'no arguments'}: {type(error).__name__}: {error}"


def _find_logits(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return found if isinstance(found, Tensor) else None


def _is_named_tuple_with_logits(output: Any) -> bool:
    return hasattr(output, "_asdict") and isinstance(getattr(output, "logits", None), Tensor)


def _no_logits(name: str) -> str:
    return f"{name}.forward must return logits (B, K): a tensor, or a NamedTuple or dict with 'logits'."


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside a block; every module's own mode comes back after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _try_pictures(model: nn.Module, spec: ModelSpec) -> Any:
    first = next(iter([*model.parameters(), *model.buffers()]), torch.zeros(()))
    dtype = first.dtype if first.is_floating_point() else torch.get_default_dtype()
    shape = (2, spec.in_channels, *spec.image_size)
    images = torch.randn(shape, generator=torch_generator("two pictures")).to(first.device, dtype)  # (2, C, H, W)
    try:
        with evaluating(model), torch.no_grad():
            return model(images)
    except OpsinError:
        raise
    except Exception as error:
        raise ShapeError(
            f"model '{spec.name}' cannot take pictures of shape {shape} (B, C, H, W): {type(error).__name__}: {error} "
            f"If channels or size are fixed in it, let its builder take in_channels and image_size."
        ) from error


def _check_logits(output: Any, spec: ModelSpec) -> None:
    logits = _find_logits(output)
    if logits is None:
        raise ConfigError(_no_logits(f"model '{spec.name}'"))
    if tuple(logits.shape) != (2, spec.num_outputs):
        raise ShapeError(
            f"model '{spec.name}' gave logits {tuple(logits.shape)} for 2 pictures; expected (2, {spec.num_outputs}). "
            f"Let its builder take num_classes and use it for the width of the last layer."
        )


def _check_detected(output: Any, spec: ModelSpec) -> None:
    boxes, scores, labels = (getattr(output, name, None) for name in ("boxes", "scores", "labels"))
    if not (isinstance(boxes, Tensor) and isinstance(scores, Tensor) and isinstance(labels, Tensor)):
        raise ConfigError(
            f"model '{spec.name}' returned {type(output).__name__}; a detector returns opsin.models.Detected."
        )
    shapes = [tuple(one.shape) for one in (boxes, scores, labels)]
    if shapes != [(2, boxes.shape[1], 4), (2, boxes.shape[1]), (2, boxes.shape[1])]:
        raise ShapeError(
            f"model '{spec.name}' gave boxes, scores and labels {shapes} for 2 pictures; expected (2, N, 4), (2, N), (2, N)."
        )
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < spec.num_outputs):
        raise ShapeError(
            f"model '{spec.name}' gave labels up to {int(labels.max())}; there are {spec.num_outputs} classes."
        )


def _check_located(output: Any, spec: ModelSpec) -> None:
    points = getattr(output, "points", None)
    if not isinstance(points, Tensor) or tuple(points.shape) != (2, spec.num_points, 2):
        had = tuple(points.shape) if isinstance(points, Tensor) else type(output).__name__
        raise ShapeError(f"model '{spec.name}' gave {had} for 2 pictures; expected points (2, {spec.num_points}, 2).")
