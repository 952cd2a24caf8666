"""What any network costs, layer by layer, found by sending a picture without contents through it.

The pass runs on fake tensors: they have shapes and no values, so that nothing is computed and no memory is taken. Each
tensor operation is booked on the innermost module that called it; multiply-adds come from `calculators`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from opsin.analyze import calculators
from opsin.analyze.fields import Fields, Seen
from opsin.errors import ConfigError, OpsinError, ShapeError
from opsin.models import ModelSpec, build, resolve
from opsin.models.builder import evaluating

aten = torch.ops.aten
Shape = tuple[int, ...]


@dataclass
class LayerCost:
    """What one module does itself, its submodules not counted; sizes are for one picture.

    Args:
        name: dotted path; empty for the network itself.
        kind: class name.
        shape: of its output without the batch, () if it never ran or gives no single tensor.
        trainable, frozen: parameters with and without gradient; shared ones count where they come first.
        buffers: values kept beside the parameters.
        macs: multiply-adds.
        values, stored_bytes: activations that it makes (outputs in place and views make none), and their bytes.
        seen: receptive fields of its output; None if unknown.
        calls: how often it ran.
    """

    name: str
    kind: str
    shape: Shape = ()
    trainable: int = 0
    frozen: int = 0
    buffers: int = 0
    macs: int = 0
    values: int = 0
    stored_bytes: int = 0
    seen: Seen | None = None
    calls: int = 0

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.trainable + self.frozen

    @property
    def field(self) -> str:
        """The receptive field in words."""
        if self.seen is None:
            return ""
        height, width = self.seen.height, self.seen.width
        if height.whole or (height.size, height.jump) == (width.size, width.jump):
            return str(height)
        return f"{height.size:g} x {width.size:g} (jump {height.jump:g} x {width.jump:g})"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        seen = None if self.seen is None or self.seen.height.whole else self.seen
        return {
            "name": self.name,
            "type": self.kind,
            "shape": list(self.shape),
            "trainable": self.trainable,
            "frozen": self.frozen,
            "buffers": self.buffers,
            "macs": self.macs,
            "values": self.values,
            "stored_bytes": self.stored_bytes,
            "field": seen and [seen.height.size, seen.width.size],
            "jump": seen and [seen.height.jump, seen.width.jump],
            "whole_picture": self.seen is not None and self.seen.height.whole,
        }


@dataclass
class Cost:
    """A network's layers, in the order in which they finish, and their totals.

    Args:
        layers: every module that has parameters, makes something or is a leaf.
        image: (C, H, W) that was sent through.
        peak_bytes: most bytes of activations alive at once in inference, the picture included; what kernels take for
            themselves is not known.
        weight_bytes: of parameters and buffers as they are stored.
        seen: receptive fields of the last map before the whole picture is seen.
    """

    layers: list[LayerCost]
    image: Shape
    peak_bytes: int = 0
    weight_bytes: int = 0
    trained_bytes: int = 0
    seen: Seen | None = field(default=None)

    def total(self, name: str) -> int:
        """Sum of one count over all layers, e.g. `macs`."""
        return int(sum(getattr(layer, name) for layer in self.layers))

    @property
    def values(self) -> int:
        """Activations of one picture that training stores, the picture included."""
        return self.total("values") + math.prod(self.image)

    @property
    def stored_bytes(self) -> int:
        """Their bytes."""
        return self.total("stored_bytes") + 4 * math.prod(self.image)

    def training_bytes(self, batch: int = 1, optimizer: str = "adam") -> int:
        """Bytes that training takes: weights, then gradients and optimizer states of what is trained, activations."""
        states = calculators.training_memory(self.trained_bytes, 0, optimizer=optimizer, width=1)
        return self.weight_bytes - self.trained_bytes + states + batch * self.stored_bytes

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "image": list(self.image),
            "parameters": self.total("parameters"),
            "trainable": self.total("trainable"),
            "frozen": self.total("frozen"),
            "buffers": self.total("buffers"),
            "macs": self.total("macs"),
            "values": self.values,
            "stored_bytes": self.stored_bytes,
            "peak_bytes": self.peak_bytes,
            "weight_bytes": self.weight_bytes,
            "training_bytes": {o: self.training_bytes(1, o) for o in calculators.STATES if o != "none"},
            "field": self.seen and [self.seen.height.size, self.seen.width.size],
            "jump": self.seen and [self.seen.height.jump, self.seen.width.jump],
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def grouped(self, depth: int) -> list[LayerCost]:
        """Layers with all that lies deeper than `depth` dots summed up into their ancestor."""
        groups: dict[str, LayerCost] = {}
        for layer in self.layers:
            name = ".".join(layer.name.split(".")[:depth])
            old = groups.pop(name, None)  # comes last: the order is that of finishing
            if old is None:
                groups[name] = replace(layer, name=name)
                continue
            sums = ("trainable", "frozen", "buffers", "macs", "values", "stored_bytes")
            summed = {key: getattr(old, key) + getattr(layer, key) for key in sums}
            last = layer if layer.shape else old
            groups[name] = replace(last, name=name, **summed)
        return list(groups.values())


def build_hollow(spec: ModelSpec) -> nn.Module:
    """Build a network without values where its builder allows, so that a large one takes no time and no memory."""
    spec = resolve(spec)
    try:
        with FakeTensorMode():
            return build(spec, check=False)
    except Exception:  # its builder looks at values, or is wrong; then the error comes again
        return build(spec, check=False)


def cost(network: nn.Module, image: Shape) -> Cost:
    """Find what a network costs in evaluation mode; the network stays as it is.

    Args:
        network: takes pictures (1, C, H, W).
        image: (C, H, W).

    Raises:
        ShapeError: if the network cannot take such a picture, naming the module that failed.
        ConfigError: if it looks at the values of its tensors, which an empty picture does not have.
    """
    tensors = [*network.parameters(), *network.buffers()]
    fake = next((tensor.fake_mode for tensor in tensors if isinstance(tensor, FakeTensor)), None)
    mode = fake or FakeTensorMode(allow_non_fake_inputs=True)
    first = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(()))
    with mode:
        images = torch.empty((1, *image), device=first.device, dtype=first.dtype)
    book = _Book(network)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operation would hide the parts
    try:
        with evaluating(network), torch.no_grad(), book.hooked(), mode, _Watch(book, images):
            network(images)
    except OpsinError:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ConfigError(
            f"{book.where} decides by the values of a tensor ({error}); its cost depends on the picture and cannot be told."
        ) from error
    except Exception as error:
        got = f" It gets {' and '.join(map(str, book.got))}." if book.got else ""
        raise ShapeError(f"{book.where} cannot take its input: {type(error).__name__}: {error}{got}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return book.closed(image, tensors)


class _Book:
    """Books what happens on the module in which it happens."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.rows: dict[nn.Module, LayerCost] = {}
        counted: set[int] = set()
        for name, module in network.named_modules():
            row = self.rows[module] = LayerCost(name, type(module).__name__)
            for parameter in module.parameters(recurse=False):
                if id(parameter) not in counted:
                    counted.add(id(parameter))
                    row.trainable += parameter.numel() if parameter.requires_grad else 0
                    row.frozen += 0 if parameter.requires_grad else parameter.numel()
            row.buffers = sum(buffer.numel() for buffer in module.buffers(recurse=False))
        self.finished: dict[nn.Module, None] = {}
        self.stack: list[nn.Module] = [network]
        self.got: list[Shape] = []
        self.fields = Fields()
        self.last: Seen | None = None
        self.peak = 0

    @property
    def where(self) -> str:
        """The module that runs, in words."""
        row = self.rows[self.stack[-1]]
        return f"Layer '{row.name or row.kind}' ({row.kind})"

    @property
    def row(self) -> LayerCost:
        """The page of the module that runs."""
        return self.rows[self.stack[-1]]

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Follow which module runs."""
        handles = []
        for module in self.rows:
            handles.append(module.register_forward_pre_hook(self._enter, prepend=True))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.stack.append(module)
        self.got = [tuple(tensor.shape) for tensor in inputs if isinstance(tensor, Tensor)]

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.stack.pop()
        row = self.rows[module]
        row.calls += 1
        tensor = _single(output)
        if tensor is not None:
            row.shape, row.seen = tuple(tensor.shape[1:]), self.fields.of(tensor)
        self.finished.pop(module, None)
        self.finished[module] = None

    def closed(self, image: Shape, tensors: Sequence[Tensor]) -> Cost:
        """All pages, modules that never ran at the end."""
        order = [*self.finished, *(module for module in self.rows if module not in self.finished)]
        layers = []
        for module in order:
            row = self.rows[module]
            if row.parameters or row.buffers or row.macs or row.values or (not list(module.children()) and row.calls):
                layers.append(row)
        found = Cost(layers, image, self.peak, seen=self.last)
        found.weight_bytes = _bytes(tensors)
        found.trained_bytes = _bytes([tensor for tensor in tensors if tensor.requires_grad])
        return found


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every tensor operation."""

    def __init__(self, book: _Book, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.book, self.images = book, images
        self.alive: dict[int, int] = {}
        self.now = 0
        book.fields.start(images)

    def __enter__(self) -> Any:
        self._live(self.images)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        book = self.book
        outputs = [t for t in (result if isinstance(result, list | tuple) else [result]) if isinstance(t, Tensor)]
        book.row.macs += _macs(func.overloadpacket, args, outputs)
        from_picture = any(book.fields.of(tensor) is not None for tensor in _flat(args))
        book.fields.follow(func, args, outputs)
        if from_picture:
            for output in outputs:
                seen = book.fields.of(output)
                if seen is not None and not seen.height.whole and output.is_floating_point():
                    book.last = seen
                if self._live(output) and output.is_floating_point() and not _same_pool(func, args, output):
                    book.row.values += output.numel()
                    book.row.stored_bytes += output.numel() * output.element_size()
        return result

    def _live(self, tensor: Tensor) -> bool:
        """Whether the tensor's memory is new; it is followed until it is given back."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return False
        self.alive[key] = size
        self.now += size
        self.book.peak = max(self.book.peak, self.now)
        weakref.finalize(storage, self._gone, key)
        return True

    def _gone(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


def _same_pool(func: Any, args: tuple[Any, ...], output: Tensor) -> bool:
    """Adaptive pooling to the size that a map has already: backward needs nothing of it."""
    return func.overloadpacket is aten._adaptive_avg_pool2d and args[0].shape == output.shape


def _flat(args: Any) -> Iterator[Tensor]:
    if isinstance(args, Tensor):
        yield args
    elif isinstance(args, list | tuple):
        for one in args:
            yield from _flat(one)


def _single(output: Any) -> Tensor | None:
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) and output.ndim else None


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _macs(operation: Any, args: tuple[Any, ...], outputs: Sequence[Tensor]) -> int:
    if operation is aten.convolution:
        x, weight, transposed, groups = args[0], args[1], args[6], args[8]
        size = x.shape[2:] if transposed else outputs[0].shape[2:]
        inputs, channels = (
            (x.shape[1], weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, weight.shape[0])
        )
        return calculators.conv_macs(weight.shape[2:], inputs, channels, size, groups) * int(x.shape[0])
    if operation in _PRODUCTS:
        first, second = args[_PRODUCTS[operation] :][:2]
        return calculators.dense_macs(first.shape[-1], second.shape[-1], math.prod(first.shape[:-1]))
    if operation in _ATTENTION:
        query, key, value = args[:3]  # (B, heads, tokens, width)
        one = calculators.attention_macs(query.shape[-2], key.shape[-2], query.shape[-1], value.shape[-1])
        return int(one * math.prod(query.shape[:-2]))
    return 0


_PRODUCTS = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1}
_ATTENTION = (
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
)
