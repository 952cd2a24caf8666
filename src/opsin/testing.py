"""Public contract checks: what opsin asks of a network, for our own and for other people's.

Example:
    >>> from opsin.testing import check_model
    >>> check_model("my_package.nets:my_net", image_sizes=((32, 32),))
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.errors import OpsinError, ShapeError
from opsin.models import Classified, ModelSpec, build
from opsin.models.builder import build_with, evaluating
from opsin.models.weights import load_weights, save_safetensors
from opsin.seeding import torch_generator, torch_seeded

Size = tuple[int, int]


class ContractError(OpsinError, AssertionError):
    """Something does not do what opsin's contract asks; the message says what was expected and what came."""


def check_model(
    builder: str | Callable[..., nn.Module],
    kwargs: Mapping[str, Any] | None = None,
    *,
    in_channels: Sequence[int] = (1, 3),
    image_sizes: Sequence[Size] = ((32, 32), (40, 32)),
    num_outputs: int = 5,
    overfit_steps: int = 100,
    export: bool = True,
) -> None:
    """Try everything that training, evaluation, saving and export rely on; a few seconds for a small network.

    For every number of channels and size: the logits' type and shape with 1 and 2 pictures, in training and in
    evaluation; a picture's logits do not depend on its batch; the feature pyramid is as declared. For every number of
    channels, at the first size: a finite gradient, not always zero, for every parameter; double precision gives the same
    logits, and bfloat16 (autocast) nearly the same. Once: the named head is what depends on the number of classes; saved
    and loaded weights give the same bits; 8 pictures can be learned by heart; torch.export gives the same logits.

    Args:
        builder: a name for `opsin.models.build`, or a function or class.
        kwargs: the builder's keyword arguments.
        in_channels: numbers of channels to try.
        image_sizes: (H, W) to try.
        num_outputs: K.
        overfit_steps: most steps in which 8 pictures have to be learned; 0 leaves that out.
        export: whether torch.export is tried.

    Raises:
        ContractError: at the first thing that is not as it should be.
        ConfigError, ShapeError: if the network cannot be built or takes no such pictures.
    """
    name = builder if isinstance(builder, str) else f"{builder.__module__}:{getattr(builder, '__qualname__', builder)}"

    def made(channels: int, size: Size, seed: int = 0, outputs: int = num_outputs) -> nn.Module:
        spec = ModelSpec(name, dict(kwargs or {}), channels, outputs, size)
        with torch_seeded("check_model", seed):
            return build(spec) if isinstance(builder, str) else build_with(builder, spec)

    for channels in in_channels:
        for size in image_sizes:
            images = _pictures(8, channels, size)
            model = made(channels, size)
            check_outputs(copy.deepcopy(model), images, num_outputs)
            check_independence(model, images[:3])
            check_pyramid(model, images[:2])
            if size == image_sizes[0]:
                check_bfloat16(model, images[:4])
                check_double(copy.deepcopy(model), images[:2])
                check_gradients(copy.deepcopy(model), images)
    channels, size = in_channels[0], image_sizes[0]
    images = _pictures(8, channels, size)
    check_saving(made(channels, size), made(channels, size, seed=1), images[:2])
    check_head(made(channels, size), made(channels, size, outputs=num_outputs + 1))
    if overfit_steps:
        check_overfits(made(channels, size), images, num_outputs, overfit_steps)
    if export:
        check_export(made(channels, size), images)


def check_outputs(model: nn.Module, images: Tensor, num_outputs: int) -> None:
    """The model returns one NamedTuple with `logits` (B, K), the same in training and evaluation.

    A training batch of one picture may be refused by batch norm on a 1x1 map; nothing else may be.
    """
    for training in (False, True):
        model.train(training)
        for size in (1, 2):
            try:
                output = model(images[:size])
            except ValueError as error:
                if training and size == 1 and "more than 1 value per channel" in str(error):
                    continue
                raise
            mode = f"with {size} pictures in {'training' if training else 'evaluation'}"
            logits = getattr(output, "logits", None)
            if not hasattr(output, "_asdict") or not isinstance(logits, Tensor):
                raise ContractError(
                    f"forward {mode} returned {type(output).__name__}; expected a NamedTuple with logits."
                )
            if tuple(logits.shape) != (size, num_outputs):
                raise ContractError(f"logits {mode}: {tuple(logits.shape)}; expected ({size}, {num_outputs}).")
            if not bool(logits.isfinite().all()):
                raise ContractError(f"logits {mode} are not finite.")


def check_gradients(model: nn.Module, images: Tensor) -> None:
    """Every trainable parameter gets a finite gradient from the logits (of auxiliary heads too), not zero on two batches.

    Parameters that are zero throughout (residual scales, new heads) hide those before them, so they get small random
    values first; a unit that never fires does not matter, a parameter of which no value ever counts does.
    """
    model.train()
    generator = torch_generator("check_gradients")
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    idle = set(trained)
    for batch in (images, images.flip(2) * 2 + 0.5):
        model.zero_grad(set_to_none=True)
        output = model(batch)
        outputs = [output.logits, *getattr(output, "auxiliary", ())]
        torch.autograd.backward(outputs, [torch.randn(one.shape, generator=generator) for one in outputs])
        for name, parameter in trained.items():
            if parameter.grad is None:
                raise ContractError(
                    f"parameter '{name}' gets no gradient. Is it used in forward, and is nothing detached?"
                )
            if not parameter.grad.isfinite().all():
                raise ContractError(f"the gradient of parameter '{name}' is not finite.")
            if parameter.grad.any():
                idle.discard(name)
        if not idle:
            return
    raise ContractError(
        f"the gradient of parameter '{min(idle)}' is zero on two batches. Does it change the logits at all, or is a ReLU "
        f"behind it never active?"
    )


def check_independence(model: nn.Module, images: Tensor) -> None:
    """In evaluation a picture's logits do not depend on the pictures beside it."""
    with evaluating(model), torch.no_grad():
        together = _logits(model, images)
        alone = torch.cat([_logits(model, image[None]) for image in images])
    _close("logits of pictures one by one", alone, "of the same pictures in one batch", together, 1e-5)


def check_double(model: nn.Module, images: Tensor) -> None:
    """In double precision the logits are double, and agree with those in single precision."""
    with evaluating(model), torch.no_grad():
        single = _logits(model, images)
        double = _logits(model.double(), images.double())
    if double.dtype != torch.float64:
        raise ContractError(f"after model.double() the logits are {double.dtype}; expected torch.float64.")
    _close("logits in single precision", single.double(), "in double precision", double, 1e-3)


def check_bfloat16(model: nn.Module, images: Tensor) -> None:
    """Under bfloat16 autocast the logits are finite, and within 5 % of the largest one from those in float32.

    bfloat16 keeps 8 bits, a relative error of 0.4 % per rounding; in networks of up to 200 layers as they are built the
    roundings add up to less than 5 %, where a sum or an exponential that needs float32 goes wrong altogether.
    """
    with evaluating(model), torch.no_grad():
        single = _logits(model, images).float()
        try:
            with torch.autocast(images.device.type, torch.bfloat16):
                half = _logits(model, images).float()
        except RuntimeError as error:
            raise ContractError(f"forward under bfloat16 autocast fails: {error}") from error
    if not bool(half.isfinite().all()):
        raise ContractError("logits under bfloat16 autocast are not finite.")
    scale = max(float(single.abs().max()), torch.finfo(torch.float32).tiny)
    _close("logits under bfloat16 autocast", half / scale, "in float32", single / scale, 5e-2)


def check_pyramid(model: nn.Module, images: Tensor) -> None:
    """If there is `forward_pyramid`, its features have the channels and strides of `feature_info`.

    A map is at most H / stride cells high (convolutions without padding lose some), and a picture that is `n * stride`
    pixels higher has a map that is `n` cells higher; likewise its width. A network for pictures of one size alone
    (it raises ShapeError on others) has maps of just H / stride.
    """
    if not hasattr(model, "forward_pyramid"):
        return
    info = list(model.feature_info)  # type: ignore[arg-type]
    more = math.lcm(*(stride for _, stride in info))
    with evaluating(model), torch.no_grad():
        features = model.forward_pyramid(images)  # type: ignore[operator]
        try:
            larger = model.forward_pyramid(F.pad(images, (0, more, 0, more)))  # type: ignore[operator]
        except ShapeError:
            larger = None
    if len(features) != len(info):
        raise ContractError(f"forward_pyramid gave {len(features)} levels; feature_info declares {len(info)}.")
    for level, (feature, (channels, stride)) in enumerate(zip(features, info, strict=True)):
        fits = [cells <= math.ceil(pixels / stride) for pixels, cells in zip(images.shape[2:], feature.shape[2:])]
        if larger is None:
            fits += [cells >= pixels // stride for pixels, cells in zip(images.shape[2:], feature.shape[2:])]
        else:
            fits += [a + more // stride == b for a, b in zip(feature.shape[2:], larger[level].shape[2:])]
        if feature.shape[:2] != (len(images), channels) or not all(fits):
            beside = "" if larger is None else f" and {tuple(larger[level].shape)} for those {more} pixels larger"
            raise ContractError(
                f"level {level} of the pyramid is {tuple(feature.shape)} for pictures {tuple(images.shape)}{beside}; "
                f"feature_info declares {channels} channels and stride {stride}."
            )


def check_head(model: nn.Module, other: nn.Module) -> None:
    """If there are `head_names`, they name the layers whose shapes follow the number of classes, and no others.

    Args:
        model: the network.
        other: the same for another number of classes.
    """
    names = getattr(model, "head_names", None)
    if names is None:
        return
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    differing = {name for name, tensor in model.state_dict().items() if tensor.shape != shapes.get(name)}
    starts = tuple(f"{name}." for name in names)
    if strangers := sorted(name for name in differing if not name.startswith(starts)):
        raise ContractError(f"'{strangers[0]}' depends on the number of classes; head_names {names} leaves it out.")
    if idle := [start for start in starts if not any(name.startswith(start) for name in differing)]:
        raise ContractError(
            f"head_names has '{idle[0][:-1]}'; no weight of that name depends on the number of classes."
        )


def check_saving(model: nn.Module, other: nn.Module, images: Tensor) -> None:
    """Weights that are saved and loaded into a second model give the same logits, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_safetensors(model, path)
        report = load_weights(other, path)
    if not report.complete or report.unexpected:
        raise ContractError(f"saved weights do not fit a second model of the same builder: {report.summary()}")
    with evaluating(model), evaluating(other), torch.no_grad():
        if not torch.equal(_logits(model, images), _logits(other, images)):
            raise ContractError(
                "a second model with the saved weights gives other logits; is part of the state not saved?"
            )


def check_overfits(model: nn.Module, images: Tensor, num_outputs: int, steps: int) -> None:
    """8 pictures can be learned by heart: the training loss falls below 0.1, with a small or a large learning rate."""
    labels = torch.arange(len(images)) % num_outputs
    loss = math.inf
    for lr in (2e-3, 2e-2):
        learner = copy.deepcopy(model).train()
        optimizer = torch.optim.Adam(learner.parameters(), lr=lr)
        with torch_seeded("check_overfits"):
            for _ in range(steps):
                value = F.cross_entropy(_logits(learner, images), labels)
                loss = float(value.detach())
                if loss < 0.1:
                    return
                optimizer.zero_grad()
                torch.autograd.backward(value)
                optimizer.step()
    raise ContractError(
        f"{len(images)} pictures were not learned in {steps} steps: the loss is {loss:.3f}, expected < 0.1."
    )


def check_export(model: nn.Module, images: Tensor) -> None:
    """torch.export takes the evaluation forward with any batch size, and the program gives the same logits."""
    with evaluating(model), torch.no_grad():
        expected = _logits(model, images[:3])
        try:
            program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        except Exception as error:
            raise ContractError(f"torch.export refuses the model: {type(error).__name__}: {error}") from error
        got = program.module()(images[:3])
    _close("logits of the exported program", getattr(got, "logits", got), "of the model", expected, 1e-5)


def _pictures(count: int, channels: int, size: Size) -> Tensor:
    return torch.randn((count, channels, *size), generator=torch_generator("pictures", count, channels, *size))


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    output: Classified = model(images)
    return output.logits


def _close(name: str, a: Tensor, other: str, b: Tensor, tolerance: float) -> None:
    scale = max(1.0, float(b.detach().abs().max()))
    difference = float((a - b).abs().max()) / scale
    if not difference <= tolerance:
        raise ContractError(
            f"{name} differ from those {other} by {difference:.1e} of their scale; at most {tolerance:.0e}."
        )
