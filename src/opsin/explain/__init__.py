"""Explain: which parts of a picture a model's answer comes from. One method per file, found by listing.

A method is a function `method(question, *, options...) -> Found` (`opsin.explain.question`); it knows pixels, a score and a
network, but no task. Which number of the answer is explained, the task says (`Task.aim`). Maps come back in pixels of the
original picture. Importing this package, and listing the methods, loads no torch.

    >>> from opsin.explain import explain
    >>> explain(opsin.load("last"), "cat.jpg", "grad-cam").draw(Image.open("cat.jpg"))  # doctest: +SKIP
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from opsin.errors import ConfigError, nearest
from opsin.registry import Registry

if TYPE_CHECKING:
    from opsin.bundle import Bundle
    from opsin.explain.question import Found, Question
    from opsin.results.explanation import Explanation
    from opsin.task import Aim, Geometry

explainers = Registry("explainer", "opsin.explain")


class Asked(NamedTuple):
    """A question about one picture, with what leads its answer back to it."""

    id: str
    question: Question
    aim: Aim
    geometry: Geometry
    original_size: tuple[int, int]  # (H, W)


def explain(
    bundle: Bundle, images: Any, method: str | None = None, *, class_name: str | None = None, head: str | None = None,
    batch_size: int = 32, **options: Any,
) -> Any:  # fmt: skip
    """Explain what a model says of one picture or of several.

    Args:
        bundle: the model; it is left as it was.
        images: as for `Bundle.predict`.
        method: name of a method, e.g. "grad-cam", "integrated-gradients", "occlusion"; by default the task's own.
        class_name: whose score is explained; by default the class that the model says.
        head: which question, when the model answers several; by default the first.
        batch_size: pictures per pass, where a method needs many.
        options: of the method, e.g. `layer="layer3"` or `steps=128`.

    Returns:
        One `Explanation` for one picture, a list for several.

    Raises:
        UnknownName: if there is no such method, class, head or layer.
        ConfigError: if the method has no such option, refuses its value, or cannot explain this network.
    """
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from opsin.task import Sample

    single = isinstance(images, str | Path | Image.Image | np.ndarray | Tensor | Sample)
    method = method or bundle.task.explained_by
    call = checked(method, options)
    found = []
    for number, image in enumerate([images] if single else images):
        with asking(bundle, image, number, class_name, head, batch_size) as asked:
            found.append(explanation(asked, method, call(asked.question)))
    return found[0] if single else found


def checked(method: str, options: Mapping[str, Any]) -> Callable[[Question], Found]:
    """The method with its options, as a function of the question alone.

    Text is turned into the type that an option has, so that options can come from a command line.

    Raises:
        UnknownName: if there is no such method.
        ConfigError: if it has no such option, or a value is not of the type that is needed.
    """
    function, known = explainers.get(method), defaults(method)
    values = {}
    for name, value in options.items():
        if name not in known:
            near = nearest(name, known)
            hint = f"Did you mean '{near[0]}'?" if near else f"It takes: {', '.join(known) or 'none'}."
            raise ConfigError(f"{method} has no option '{name}'. {hint}")
        try:
            values[name] = _like(known[name], value)
        except (KeyError, TypeError, ValueError) as error:
            kind = type(known[name])
            expected = _WORDS.get(kind, f"{kind.__name__}, which only Python can give")
            raise ConfigError(f"{method}: {name} = {value!r}; expected {expected}.") from error
    return lambda question: function(question, **values)


def defaults(method: str) -> dict[str, Any]:
    """Options of a method with their defaults; None for one without.

    Raises:
        UnknownName: if there is no such method.
    """
    options = inspect.signature(explainers.get(method)).parameters.items()
    return {name: None if p.default is p.empty else p.default for name, p in options if p.kind is p.KEYWORD_ONLY}


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _like(default: Any, value: Any) -> Any:
    """A value as the type of a default; where that says nothing of the type, as it is.

    Raises:
        KeyError, TypeError, ValueError: if it is not of that type.
    """
    kind = type(default)
    if default is None or (kind not in _WORDS and isinstance(value, kind)):
        return value
    if kind not in _WORDS:
        raise TypeError(value)
    found = _SWITCH[str(value).lower()] if kind is bool else kind(value)
    if not isinstance(value, str) and found != value:
        raise ValueError(value)  # 3.5 is no whole number
    return found


@contextmanager
def asking(
    bundle: Bundle, image: Any, number: int = 0, class_name: str | None = None, head: str | None = None,
    batch_size: int = 32,
) -> Iterator[Asked]:  # fmt: skip
    """The question about one picture; the model is in evaluation mode inside the block and as it was after it.

    The model gets the very pixels that it gets when it predicts.
    """
    import numpy as np
    import torch

    from opsin.bundle import as_sample
    from opsin.explain.question import Question, undisturbed
    from opsin.task import as_arrays

    task = bundle.task
    with torch.inference_mode(False), undisturbed(bundle.model):
        sample = as_sample(image, number, task.reduce_to, task.spec)
        size = sample.original_size or (int(sample.image.shape[1]), int(sample.image.shape[2]))
        prepared = task.prepare(replace(sample, target={}), 0, train=False)
        batch = task.collate([prepared], np.zeros(1, np.uint64))
        device = next(bundle.model.parameters(), torch.zeros(())).device
        pixels = batch.inputs.to(device, torch.float32)
        with torch.no_grad():
            outputs = as_arrays(bundle.model(pixels))
        aim = task.aim(outputs, class_name=class_name, head=head)
        bounds = (0.0, 255.0) if task.spec is None else task.spec.range
        question = Question(bundle.model, pixels, aim.pick, aim.chance, bounds, batch_size)
        yield Asked(sample.id, question, aim, prepared.geometry, size)


def explanation(asked: Asked, method: str, found: Found) -> Explanation:
    """A method's answer as a result in pixels of the original picture."""
    import numpy as np

    from opsin.explain.original import seen_box, to_original
    from opsin.results.explanation import Explanation

    question = asked.question
    values = found.map.detach().cpu().numpy().astype(np.float32)
    return Explanation(
        id=asked.id,
        method=method,
        head=asked.aim.head,
        class_name=asked.aim.class_name,
        score=float(question.scores(question.pixels)[0]),
        probability=float(question.scores(question.pixels, question.chance)[0]),
        map=to_original(values, asked.geometry, asked.original_size),
        signed=found.signed,
        seen_xyxy=seen_box(asked.geometry, asked.original_size),
        details=found.details,
    )


__all__ = ["Asked", "asking", "checked", "explain", "explainers", "explanation"]
