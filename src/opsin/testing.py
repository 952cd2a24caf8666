"""Public contract checks: what opsin asks of a classifier and of a detector, for our own and for other people's.

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
from torchvision.ops import batched_nms, box_iou

from opsin.errors import OpsinError, ShapeError
from opsin.models import Classified, Detected, ModelSpec, build
from opsin.models.builder import build_with, evaluating
from opsin.models.weights import load_weights, save_safetensors
from opsin.seeding import torch_generator, torch_seeded
from opsin.task import Part

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
    """8 pictures can be learned by heart: the training loss falls below 0.1, with one of three learning rates."""
    labels = torch.arange(len(images)) % num_outputs
    loss = math.inf
    for lr in (2e-3, 2e-2, 5e-4):
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


def check_detector(
    builder: str | Callable[..., nn.Module],
    kwargs: Mapping[str, Any] | None = None,
    *,
    in_channels: Sequence[int] = (1, 3),
    image_sizes: Sequence[Size] = ((64, 64), (64, 96)),
    num_outputs: int = 3,
    num_points: int = 0,
    overfit_steps: int = 200,
    export: bool = True,
) -> None:
    """Try everything that training, evaluation, saving and export rely on, for a network that returns `Detected`.

    For every number of channels and size: shapes and ranges of the candidates with 1 and 2 pictures; those of a picture do
    not depend on its batch; losses are finite, also of pictures without objects, and those of pictures add up. For every
    number of channels, at the first size: a finite gradient for every parameter; bfloat16 (autocast) gives nearly the same
    scores. Once: the named head is what depends on the number of classes; saved and loaded weights give the same bits; the
    objects of 4 pictures are found after some steps; torch.export gives the same candidates.

    Losses add up only if everything that can be drawn at random is: give two-stage networks a large enough draw.

    Args:
        builder: a name for `opsin.models.build`, or a function or class.
        kwargs: the builder's keyword arguments.
        in_channels: numbers of channels to try.
        image_sizes: (H, W) to try, at least 64 pixels, multiples of the network's stride.
        num_outputs: K.
        num_points: P, for networks that have points.
        overfit_steps: most steps in which 4 pictures have to be learned; 0 leaves that out.
        export: whether torch.export is tried.

    Raises:
        ContractError: at the first thing that is not as it should be.
        ConfigError, ShapeError: if the network cannot be built or takes no such pictures.
    """
    name = builder if isinstance(builder, str) else f"{builder.__module__}:{getattr(builder, '__qualname__', builder)}"

    def made(channels: int, size: Size, seed: int = 0, outputs: int = num_outputs) -> nn.Module:
        spec = ModelSpec(name, dict(kwargs or {}), channels, outputs, size, "detected", num_points)
        with torch_seeded("check_detector", seed):
            return build(spec) if isinstance(builder, str) else build_with(builder, spec)

    for channels in in_channels:
        for size in image_sizes:
            images, targets = _scenes(4, channels, size, num_outputs, num_points)
            model = made(channels, size)
            _wake(model)
            check_candidates(model, images[:2], num_outputs, num_points)
            check_candidates_independent(model, images[:3])
            check_losses(copy.deepcopy(model), images[:3], _chosen(targets, [0, 1, 2]))
            if size == image_sizes[0]:
                check_loss_gradients(copy.deepcopy(model), images, targets)
                check_candidates_bfloat16(model, images[:2], _chosen(targets, [0, 1]))
    channels, size = in_channels[-1], image_sizes[0]
    images, targets = _scenes(4, channels, size, num_outputs, num_points)
    check_candidates_saved(made(channels, size), made(channels, size, seed=1), images[:2])
    check_head(made(channels, size), made(channels, size, outputs=num_outputs + 1))
    if overfit_steps:
        check_finds(made(channels, size), images, targets, overfit_steps)
    if export:
        model = made(channels, size)
        _wake(model)
        check_candidates_export(model, images)


def check_candidates(model: nn.Module, images: Tensor, num_outputs: int, num_points: int = 0) -> None:
    """`Detected` of 1 and 2 pictures: shapes, finite boxes that are not inside out, scores in [0, 1], labels below K."""
    for size in (1, 2):
        with evaluating(model), torch.no_grad():
            found = model(images[:size])
        if not isinstance(found, Detected):
            raise ContractError(f"forward returned {type(found).__name__}; expected opsin.models.Detected.")
        many = found.boxes.shape[1]
        shapes = {"boxes": (size, many, 4), "scores": (size, many), "labels": (size, many), "overlap": ()}
        if num_points:
            shapes["points"] = (size, many, num_points, 3)
        for part, shape in shapes.items():
            value = getattr(found, part)
            if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                had = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ContractError(f"{part} of {size} pictures: {had}; expected {shape}.")
            if not bool(value.isfinite().all()):
                raise ContractError(f"{part} of {size} pictures are not finite.")
        if found.labels.dtype != torch.int64 or not bool(((found.labels >= 0) & (found.labels < num_outputs)).all()):
            raise ContractError(f"labels are {found.labels.dtype}; expected torch.int64 in [0, {num_outputs}).")
        chances = [found.scores, found.overlap] + ([] if found.points is None else [found.points[..., 2]])
        if not all(bool(((one >= 0) & (one <= 1)).all()) for one in chances):
            raise ContractError("scores and overlap have to be in [0, 1].")
        if not bool((found.boxes[..., 2:] >= found.boxes[..., :2]).all()):
            raise ContractError("a box ends before it begins; expected x1 <= x2 and y1 <= y2.")


def check_candidates_independent(model: nn.Module, images: Tensor) -> None:
    """In evaluation a picture's candidates do not depend on the pictures beside it."""
    with evaluating(model), torch.no_grad():
        together: Detected = model(images)
        for i, image in enumerate(images):
            _same_candidates("one by one", model(image[None]), 0, "in one batch", together, i)


def check_losses(model: nn.Module, images: Tensor, targets: Mapping[str, Any]) -> None:
    """Losses are finite, also without objects, and the sums and counts of pictures are those of their batch.

    Batch statistics are left out: evaluation mode, with targets.
    """
    empty = {name: [part[:0] for part in parts] for name, parts in targets.items()}
    for given, words in ((targets, "losses"), (empty, "losses of pictures without objects")):
        with evaluating(model), torch.no_grad():
            together = _losses(model, images, given)
            alone = [_losses(model, images[i : i + 1], _chosen(given, [i])) for i in range(len(images))]
        for name, part in together.items():
            if not bool(torch.isfinite(part.sum)):
                raise ContractError(f"{words}: '{name}' is not finite.")
            for kind in ("sum", "count"):
                whole, parts = (float(getattr(part, kind)), sum(float(getattr(one[name], kind)) for one in alone))
                if abs(whole - parts) > 1e-4 * max(1.0, abs(whole)):
                    raise ContractError(
                        f"{words}: the {kind} of '{name}' is {whole:.6g}, but {parts:.6g} over the pictures one by one."
                    )


def check_loss_gradients(model: nn.Module, images: Tensor, targets: Mapping[str, Any]) -> None:
    """Every trainable parameter gets a finite gradient from the losses, with and without objects."""
    empty = {name: [part[:0] for part in parts] for name, parts in targets.items()}
    for given, needed in ((targets, True), (empty, False)):
        model.train().zero_grad(set_to_none=True)
        with torch_seeded("check_loss_gradients"):
            torch.autograd.backward(_total(_losses(model, images, given)))
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.grad is None and needed:
                raise ContractError(
                    f"parameter '{name}' gets no gradient. Is it used in forward, and is nothing detached?"
                )
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                raise ContractError(f"the gradient of parameter '{name}' is not finite.")


def check_candidates_bfloat16(model: nn.Module, images: Tensor, targets: Mapping[str, Any]) -> None:
    """Under bfloat16 autocast sorted scores are within 0.1 of those in float32, boxes and losses are finite."""
    with evaluating(model), torch.no_grad():
        single: Detected = model(images)
        try:
            with torch.autocast(images.device.type, torch.bfloat16):
                half: Detected = model(images)
                losses = _losses(model, images, targets)
        except RuntimeError as error:
            raise ContractError(f"forward under bfloat16 autocast fails: {error}") from error
    if not bool(half.boxes.isfinite().all()) or not all(bool(torch.isfinite(part.sum)) for part in losses.values()):
        raise ContractError("boxes or losses under bfloat16 autocast are not finite.")
    scores = (one.scores.float().sort(dim=1).values for one in (half, single))
    _close("scores under bfloat16 autocast", next(scores), "in float32", next(scores), 0.1)


def check_candidates_saved(model: nn.Module, other: nn.Module, images: Tensor) -> None:
    """Weights that are saved and loaded into a second model give the same candidates, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_safetensors(model, path)
        report = load_weights(other, path)
    if not report.complete or report.unexpected:
        raise ContractError(f"saved weights do not fit a second model of the same builder: {report.summary()}")
    with evaluating(model), evaluating(other), torch.no_grad():
        a, b = model(images), other(images)
    if not all(torch.equal(one, two) for one, two in zip(a[:4], b[:4], strict=True)):
        raise ContractError("a second model with the saved weights finds others; is part of the state not saved?")


def check_candidates_export(model: nn.Module, images: Tensor) -> None:
    """torch.export takes the evaluation forward with any batch size, and the program gives the same candidates."""
    with evaluating(model), torch.no_grad():
        expected: Detected = model(images[:3])
        try:
            program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        except Exception as error:
            raise ContractError(f"torch.export refuses the model: {type(error).__name__}: {error}") from error
        got = program.module()(images[:3])
    for i in range(3):
        _same_candidates("of the exported program", got, i, "of the model", expected, i)


def check_finds(model: nn.Module, images: Tensor, targets: Mapping[str, Any], steps: int) -> None:
    """The objects of a few pictures are learned by heart: each has a merged box of its class with an IoU above 0.5.

    Of a network that gives one candidate a picture, the largest object is asked for.
    """
    missed = 0
    with evaluating(model), torch.no_grad():
        if model(images).boxes.shape[1] == 1:
            targets = _largest(targets)
    for lr in (2e-3, 1e-2):
        learner = copy.deepcopy(model)
        optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=lr)
        with torch_seeded("check_finds"):
            for step in range(1, steps + 1):
                learner.train()
                optimizer.zero_grad()
                torch.autograd.backward(_total(_losses(learner, images, targets)))
                optimizer.step()
                if step % 20 == 0 or step == steps:
                    missed = _missed(learner, images, targets)
                    if not missed:
                        return
    raise ContractError(
        f"{missed} objects of {len(images)} pictures were not found after {steps} steps on these pictures."
    )


def _largest(targets: Mapping[str, Any]) -> dict[str, Any]:
    """The targets with one object a picture, the one with the largest box."""
    chosen = [int((boxes[:, 2:] - boxes[:, :2]).prod(1).argmax()) for boxes in targets["boxes"]]
    return {name: [one[k : k + 1] for one, k in zip(values, chosen, strict=True)] for name, values in targets.items()}


def _missed(model: nn.Module, images: Tensor, targets: Mapping[str, Any]) -> int:
    with evaluating(model), torch.no_grad():
        found: Detected = model(images)
    missed = 0
    for i, (boxes, labels) in enumerate(zip(targets["boxes"], targets["labels"], strict=True)):
        there = found.scores[i] > 0
        own, scores, names = found.boxes[i, there], found.scores[i, there], found.labels[i, there]
        best = batched_nms(own.float(), scores.float(), names, float(found.overlap))[: 3 * len(boxes)]
        fits = (box_iou(boxes, own[best]) > 0.5) & (labels[:, None] == names[best])
        missed += int((~fits.any(1)).sum())
    return missed


def _losses(model: nn.Module, images: Tensor, targets: Mapping[str, Any]) -> Mapping[str, Part]:
    found: Detected = model(images, targets=dict(targets))
    if not found.losses:
        raise ContractError("forward with targets gave no losses.")
    return found.losses


def _total(losses: Mapping[str, Part]) -> Tensor:
    return torch.stack([part.weight * part.sum / max(1.0, float(part.count)) for part in losses.values()]).sum()


def _wake(model: nn.Module) -> None:
    """Take away what makes a new detector sure that there is nothing, so that there are candidates to compare."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.clamp_(min=-1)


def _same_candidates(words: str, a: Detected, i: int, other: str, b: Detected, j: int) -> None:
    """The better half of the candidates of two answers to one picture agree to 1e-4, in any order.

    Where scores are nearly equal, rounding decides what comes first, and what is the last to be kept.
    """
    size = max(1.0, float(b.boxes[j].abs().max()))
    rows = [
        torch.cat((x.boxes[k] / size, x.scores[k, :, None], x.labels[k, :, None] * 10.0), 1)
        for x, k in ((a, i), (b, j))
    ]
    if a.boxes.shape[1] != b.boxes.shape[1]:
        raise ContractError(f"{a.boxes.shape[1]} candidates {words}, {b.boxes.shape[1]} {other}.")
    better = b.scores[j] > b.scores[j].median().clamp(min=0)
    distance = torch.cdist(rows[1][better], rows[0], p=torch.inf).amin(1)
    if better.any() and not float(distance.max()) <= 1e-4:
        raise ContractError(
            f"candidates {words} differ from those {other} by {float(distance.max()):.1e} of the picture."
        )


def _chosen(targets: Mapping[str, Any], places: Sequence[int]) -> dict[str, Any]:
    return {name: [parts[i] for i in places] for name, parts in targets.items()}


def _scenes(count: int, channels: int, size: Size, classes: int, points: int) -> tuple[Tensor, dict[str, Any]]:
    """Pictures with one or two bright rectangles on noise; the class decides how bright, points lie on the diagonal."""
    generator = torch_generator("scenes", count, channels, *size)
    images = torch.randn((count, channels, *size), generator=generator) / 10
    targets: dict[str, Any] = {"boxes": [], "labels": [], "points": []}
    height, width = size
    for i in range(count):
        sides = [(0.08, 0.1, 0.5, 0.6), (0.55, 0.3, 0.95, 0.9)][: 1 + i % 2]
        boxes = torch.tensor(sides) * torch.tensor([width, height, width, height]) + 2 * i
        boxes = boxes.round()
        boxes[:, 0::2], boxes[:, 1::2] = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
        labels = torch.tensor([(i + k) % classes for k in range(len(sides))])
        for box, label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            images[i, :, box[1] : box[3], box[0] : box[2]] += 1 + label
        share = (torch.arange(points) + 0.5)[:, None] / max(1, points)
        at = boxes[:, None, :2] + share * (boxes[:, None, 2:] - boxes[:, None, :2])
        targets["boxes"].append(boxes)
        targets["labels"].append(labels)
        targets["points"].append(torch.cat((at, torch.full_like(at[..., :1], 2)), 2))
    if not points:
        del targets["points"]
    return images, targets


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
