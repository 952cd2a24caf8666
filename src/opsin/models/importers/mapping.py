"""Layers of a file laid onto a network of ours: by name where names agree, else by order and shape; and the report of it.

Kernels are turned into our order of axes, rows of pixels from height-width-channel into channel-height-width order. Small
differences between frameworks are settled exactly: another epsilon of batch norm goes into the variance, a bias in front of a
batch norm into its mean, a convolution with its batch norm folded in brings that batch norm to rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opsin.errors import CheckpointError
from opsin.models.importers import Array, Source, SourceLayer, format_of, read
from opsin.models.importers.tracing import Slot, slots

TURNS = {"HWIO": (3, 2, 0, 1), "IO": (1, 0)}
ROLES = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
ROLES |= {"mean": "running_mean", "variance": "running_var"}
ORDERED = ("conv", "depthwise", "dense")


@dataclass(frozen=True)
class Row:
    """One tensor of the file, or one that the file implies, and where it went.

    Args:
        source: layer and role in the file.
        source_shape: as in the file; () for what the file only implies.
        target: name in our state dict.
        target_shape: of our tensor.
        change: what was done to the values; "" if nothing.
    """

    source: str
    source_shape: tuple[int, ...]
    target: str
    target_shape: tuple[int, ...]
    change: str = ""

    def __str__(self) -> str:
        shapes = f"{self.source} {self.source_shape or ''}".rstrip()
        return f"{shapes} -> {self.target} {self.target_shape}{', ' + self.change if self.change else ''}"


@dataclass(frozen=True)
class LayerMap:
    """What became of the layers in a file.

    Args:
        path: the file.
        format: of the file.
        by: "name" or "order".
        rows: what was set.
        unmatched_source: layers of the file without a place in the network, with their shapes.
        unmatched_target: names in our state dict that the file does not fill; they keep their new values.
        ambiguous: why the order might be another one.
        notes: what else a reader should know.
    """

    path: str
    format: str
    by: str
    rows: tuple[Row, ...]
    unmatched_source: tuple[str, ...]
    unmatched_target: tuple[str, ...]
    ambiguous: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def license(self) -> str | None:
        """None: these formats do not state one."""
        return None

    @property
    def complete(self) -> bool:
        """Whether both sides are used up and nothing could be meant otherwise."""
        return not (self.unmatched_source or self.unmatched_target or self.ambiguous)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        rows = [
            {
                "source": row.source,
                "source_shape": list(row.source_shape),
                "target": row.target,
                "target_shape": list(row.target_shape),
                "change": row.change,
            }
            for row in self.rows
        ]
        left = {"unmatched_source": list(self.unmatched_source), "unmatched_target": list(self.unmatched_target)}
        rest = {"ambiguous": list(self.ambiguous), "notes": list(self.notes), "license": self.license}
        return {"path": self.path, "format": self.format, "by": self.by, "rows": rows, **left, **rest}

    def summary(self) -> str:
        """The whole map for people, a line for each tensor."""
        lines = [f"{self.path} ({self.format}): {len(self.rows)} tensors set, layers matched by {self.by}"]
        lines += [f"  {row}" for row in self.rows]
        lines += [f"  in the file, without a place: {layer}" for layer in self.unmatched_source]
        lines += [f"  in the network, not filled: {name}" for name in self.unmatched_target]
        lines += [f"  ambiguous: {words}" for words in self.ambiguous]
        lines += [f"  note: {words}" for words in self.notes]
        return "\n".join(lines)


def import_layers(
    network: nn.Module, path: Path, image_shape: tuple[int, int, int], *, prefix: str = "", partial: bool = False
) -> LayerMap | None:
    """Set a network's weights from a file of another framework; nothing is changed before everything is checked.

    Args:
        network: one of ours, or any module with convolutions, dense layers and batch norms.
        path: the file.
        image_shape: (C, H, W) of the pictures that the network gets.
        prefix: use only layers whose names begin with this, without it.
        partial: take what fits, though the map is incomplete or ambiguous.

    Returns:
        The layer map; None if the file is of none of these formats.

    Raises:
        CheckpointError: if the file is damaged, nothing fits, or, without `partial`, not everything fits.
        MissingExtra: if the package that reads such files is not installed.
    """
    format = format_of(path) if path.is_file() else None
    if format is None:
        return None
    source = read(path, format)
    chosen = [layer for layer in source.layers if layer.name.startswith(prefix)]
    if not chosen:
        names = ", ".join(layer.name for layer in source.layers[:10])
        raise CheckpointError(f"{path}: no layer's name begins with '{prefix}'. Names are: {names}.")
    inner = {layer.name: layer.name.removeprefix(prefix) for layer in chosen}
    state, found = _mapped(network, source, chosen, inner, path, image_shape)
    if not state:
        raise CheckpointError(f"{path}: nothing in the file fits the network.\n{found.summary()}")
    if not found.complete and not partial:
        raise CheckpointError(
            f"{path}: the layers do not fit one to one. Is it of another network? To take what fits, pass --partial.\n"
            f"{found.summary()}"
        )
    network.load_state_dict(state, strict=False)
    return found


class _Filling:
    """Values for our state dict, with a row of the report for each; a layer whose shapes differ is not filled.

    Args:
        own: our state dict.
        source: the file.
    """

    def __init__(self, own: Mapping[str, Tensor], source: Source) -> None:
        self.own, self.source = own, source
        self.state: dict[str, Tensor] = {}
        self.rows: list[Row] = []
        self.notes: dict[str, None] = dict.fromkeys(source.notes)

    def fits(self, layer: SourceLayer, slot: Slot) -> bool:
        """Whether the kernel, or the length of a batch norm, has our shape, and no value is without a place."""
        own = {role for role, name in ROLES.items() if f"{slot.name}.{name}" in self.own}
        if layer.kind == "batchnorm":
            lengths = {array.shape for array in layer.arrays.values()}
            return lengths == {(slot.module.num_features,)} and {"mean", "variance"} <= set(layer.arrays) <= own
        kernel = layer.arrays.get("kernel")
        return kernel is not None and _turned(kernel, layer.layout, slot.kind)[0].shape == self._kernel(slot).shape

    def weigh(self, layer: SourceLayer, slot: Slot, norm: Slot | None) -> None:
        """Fill a convolution or a dense layer; `norm` is our batch norm that follows it and has no own values."""
        for role, array in layer.arrays.items():
            if role == "kernel":
                values, change = _turned(array, layer.layout, slot.kind)
                channels, height, width = slot.flattened or (1, 1, 1)
                if self.source.flattened == "HWC" and channels > 1 and height * width > 1:
                    rows = values.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
                    values = rows.reshape(len(values), -1)
                    change += f", {_pixels(channels, height, width)}"
                self._set(f"{layer.name} kernel", array, f"{slot.name}.weight", values, change)
        bias = layer.arrays.get("bias")
        if bias is None:
            bias = np.zeros(self._kernel(slot).shape[0], np.float32)
            shape: tuple[int, ...] = ()
        else:
            shape = bias.shape
        if f"{slot.name}.bias" in self.own:
            note = "" if shape else "no bias in the file"
            self._set(f"{layer.name} bias", bias, f"{slot.name}.bias", bias, note, shape)
            bias = np.zeros_like(bias)
        if norm is not None:
            self._rest(layer, norm, bias)

    def normalize(self, layer: SourceLayer, slot: Slot, bias: Array | None) -> None:
        """Fill a batch norm; `bias` is that of the convolution before it, where ours has none."""
        length = slot.module.num_features
        defaults = {"gamma": 1.0, "beta": 0.0} if slot.module.affine else {}
        for role in (*defaults, "mean", "variance"):
            given = layer.arrays.get(role)
            values = np.full(length, defaults[role]) if given is None else given.astype(np.float64)
            change = "" if given is not None else "not in the file"
            channels, height, width = slot.flattened or (1, 1, 1)
            if given is not None and self.source.flattened == "HWC" and channels > 1 and height * width > 1:
                values = values.reshape(height, width, channels).transpose(2, 0, 1).ravel()
                change = _pixels(channels, height, width)
            if role == "mean" and bias is not None:
                values, change = values - bias, "less the bias of the layer before"
            if role == "variance":
                epsilon = layer.epsilon
                if epsilon is None:
                    epsilon = self.source.epsilon
                    self.notes[f"epsilon of batch norm is not in the file; taken as {epsilon:g}"] = None
                if abs(epsilon - slot.module.eps) > 1e-9:
                    values = values + epsilon - slot.module.eps
                    change += f", epsilon {epsilon:g} to {slot.module.eps:g}"
            shape = () if given is None else given.shape
            self._set(f"{layer.name} {role}", values, f"{slot.name}.{ROLES[role]}", values, change, shape)

    def by_name(self, layer: SourceLayer, name: str) -> bool:
        """Fill tensors of any other kind of layer, where all of their names and shapes are ours."""
        targets = {}
        for role in layer.arrays:
            candidates = (f"{name}.{ROLES.get(role, role)}", name)
            targets[role] = next((n for full in candidates for n in _shortened(full) if n in self.own), None)
        if any(n is None or self.own[n].shape != layer.arrays[role].shape for role, n in targets.items()):
            return False
        for role, target in targets.items():
            if target is not None:
                self._set(f"{layer.name} {role}", layer.arrays[role], target, layer.arrays[role])
        return True

    def _rest(self, layer: SourceLayer, norm: Slot, bias: Array) -> None:
        length = norm.module.num_features
        values = {"running_mean": np.zeros(length), "running_var": np.full(length, 1.0)}
        if norm.module.affine:
            values |= {"weight": np.full(length, (1 + norm.module.eps) ** 0.5), "bias": bias}
        else:
            values |= {"running_mean": -bias, "running_var": np.full(length, 1 - norm.module.eps)}
        for name, array in values.items():
            self._set(f"{layer.name} bias", array, f"{norm.name}.{name}", array, "batch norm folded in the file", ())

    def _set(
        self,
        what: str,
        given: Array,
        name: str,
        values: Array,
        change: str = "",
        shape: tuple[int, ...] | None = None,
    ) -> None:
        tensor = torch.from_numpy(values.astype(np.float32)).to(self.own[name].dtype)
        self.state[name] = tensor.reshape(self.own[name].shape)
        shape = tuple(given.shape) if shape is None else shape
        self.rows.append(Row(what, shape, name, tuple(self.own[name].shape), change.removeprefix(", ")))

    def _kernel(self, slot: Slot) -> Tensor:
        return self.own[f"{slot.name}.weight"]


def _mapped(
    network: nn.Module,
    source: Source,
    layers: Sequence[SourceLayer],
    names: Mapping[str, str],
    path: Path,
    shape: tuple[int, int, int],
) -> tuple[dict[str, Tensor], LayerMap]:
    ours = slots(network, shape)
    filling = _Filling(network.state_dict(), source)
    pairs = _named(layers, names, ours, filling)
    by = "name" if 2 * len(pairs) >= len(layers) else "order"
    ambiguous: list[str] = []
    if by == "order":
        pairs, ambiguous = _in_order(layers, ours, filling)
        ambiguous += source.uncertain
    placed = {layer.name for layer, _ in pairs}
    normalized = {slot.name for layer, slot in pairs if layer.kind == "batchnorm"}
    norm_of = {slot.after: slot for slot in ours if slot.after and slot.name not in normalized}
    # A batch norm without values of its own was folded away only where the file shows the layers around it, or has none.
    connected = all(layer.after is not None for layer in layers if layer.kind == "batchnorm")
    kernels = {slot.name: layer for layer, slot in pairs if layer.kind != "batchnorm"}
    for layer, slot in pairs:
        if slot.unclear and source.flattened == "HWC":
            ambiguous.append(f"the order of the pixels in the rows that {slot.name} gets is not known")
        if layer.kind == "batchnorm":
            before = kernels.get(slot.after)
            bias = before.arrays.get("bias") if before and f"{slot.after}.bias" not in filling.own else None
            filling.normalize(layer, slot, bias if bias is not None and bias.any() else None)
        else:
            filling.weigh(layer, slot, norm_of.get(slot.name) if connected else None)
            ambiguous += _otherwise(layer, slot, ours)
            filling.notes |= dict.fromkeys(_padded(layer, slot))
    placed |= {layer.name for layer in layers if layer.name not in placed and filling.by_name(layer, names[layer.name])}
    left = [layer for layer in layers if layer.name not in placed]
    found = LayerMap(
        str(path), source.format, by, tuple(filling.rows),
        tuple(f"{layer.name} ({layer.kind}) {_shapes(layer)}" for layer in left),
        tuple(n for n in filling.own if n not in filling.state and not n.endswith("num_batches_tracked")),
        tuple(ambiguous), tuple(filling.notes),
    )  # fmt: skip
    return filling.state, found


def _named(
    layers: Sequence[SourceLayer], names: Mapping[str, str], ours: Sequence[Slot], filling: _Filling
) -> list[tuple[SourceLayer, Slot]]:
    """Layers with the layer of ours that has their name and shape; one or two common first words are left out if it helps."""
    by_name = {slot.name: slot for slot in ours}
    best: list[tuple[SourceLayer, Slot]] = []
    for cut in range(3):
        found = []
        for layer in layers:
            slot = by_name.get(".".join(names[layer.name].replace("/", ".").split(".")[cut:]))
            if slot is not None and slot.kind == layer.kind and filling.fits(layer, slot):
                found.append((layer, slot))
        best = max(best, found, key=len)
    return best


def _in_order(
    layers: Sequence[SourceLayer], ours: Sequence[Slot], filling: _Filling
) -> tuple[list[tuple[SourceLayer, Slot]], list[str]]:
    """Layers of each kind in order, up to the first whose shape differs; and what might be meant otherwise."""
    theirs = {kind: [layer for layer in layers if layer.kind == kind] for kind in (*ORDERED, "batchnorm")}
    mine = {kind: [slot for slot in ours if slot.kind == kind] for kind in (*ORDERED, "batchnorm")}
    if len(theirs["conv"]) == len(mine["conv"]) + 1 and len(theirs["dense"]) + 1 == len(mine["dense"]):
        theirs["dense"].append(theirs["conv"].pop())  # a classifier that is a convolution of 1x1
    pairs: list[tuple[SourceLayer, Slot]] = []
    for kind in ORDERED:
        pairs += _fitting(theirs[kind], mine[kind], filling)
    by_order = list(pairs)
    slot_of = {layer.name: slot.name for layer, slot in pairs}
    norms = {slot.after: slot for slot in mine["batchnorm"] if slot.after}
    connected = all(layer.after is not None for layer in theirs["batchnorm"])
    loose = []
    for layer in theirs["batchnorm"]:
        if layer.after in slot_of:
            slot = norms.get(slot_of[layer.after])
            if slot is not None and filling.fits(layer, slot):
                pairs.append((layer, slot))
        else:
            loose.append(layer)
    free = _fitting(loose, [slot for slot in mine["batchnorm"] if not (connected and slot.after)], filling)
    by_order += free
    return pairs + free, _interchangeable(by_order)


def _fitting(theirs: Sequence[SourceLayer], mine: Sequence[Slot], filling: _Filling) -> list[tuple[SourceLayer, Slot]]:
    pairs = []
    for layer, slot in zip(theirs, mine):
        if not filling.fits(layer, slot):
            break
        pairs.append((layer, slot))
    return pairs


def _interchangeable(pairs: Sequence[tuple[SourceLayer, Slot]]) -> list[str]:
    """Layers of one kind and shape in parallel branches: nothing says which of them comes first in the file."""
    found = []
    for i, (layer, slot) in enumerate(pairs):
        for other, second in pairs[i + 1 :]:
            same = slot.kind == second.kind and slot.module.weight.shape == second.module.weight.shape
            if same and slot.name not in second.before and second.name not in slot.before:
                found.append(
                    f"{layer.name} and {other.name} may be {slot.name} and {second.name}, or the other way round"
                )
    return found


def _otherwise(layer: SourceLayer, slot: Slot, ours: Sequence[Slot]) -> list[str]:
    """Why a layer of the right shape is another one."""
    found = []
    own_bias = getattr(slot.module, "bias", None) is not None
    if (
        "bias" in layer.arrays
        and layer.arrays["bias"].any()
        and not own_bias
        and all(other.after != slot.name for other in ours)
    ):
        found.append(f"the bias of {layer.name} has no place: {slot.name} has none, and no batch norm follows it")
    stride = getattr(slot.module, "stride", None)
    if layer.stride and stride and layer.stride != stride[0]:
        found.append(f"{layer.name} has stride {layer.stride}, {slot.name} has {stride[0]}")
    return found


def _padded(layer: SourceLayer, slot: Slot) -> list[str]:
    module = slot.module
    if not isinstance(module, nn.Conv2d) or not layer.padding or isinstance(module.padding, str):
        return []
    size, stride, pad = module.kernel_size[0], module.stride[0], module.padding[0]
    same = pad == size // 2 and (stride == 1 or size == 1)
    if layer.padding in (f"{pad}", "same" if same else "", "valid" if pad == 0 else ""):
        return []
    words = {"same": "right and below more than left and above, for even sizes", "valid": "not in the layer itself"}
    return [
        f"{layer.name} pads {words.get(layer.padding, 'by ' + layer.padding)}, {slot.name} by {pad} on all sides: "
        "where the pictures are padded otherwise, the network answers differently. Compare before you trust it"
    ]


def _turned(kernel: Array, layout: str, kind: str) -> tuple[Array, str]:
    """A kernel in our order of axes, and what was done."""
    if layout == "HWCM":
        height, width, channels, maps = kernel.shape
        return kernel.transpose(2, 3, 0, 1).reshape(channels * maps, 1, height, width), "HWCM to OIHW"
    change = ""
    if layout in TURNS:
        kernel = kernel.transpose(TURNS[layout])
        change = f"{layout} to {'OIHW' if layout == 'HWIO' else 'OI'}"
    if kind == "dense" and kernel.ndim == 4 and kernel.shape[2:] == (1, 1):
        return kernel[:, :, 0, 0], f"{change}, 1x1 convolution to dense"
    return kernel, change


def _pixels(channels: int, height: int, width: int) -> str:
    return f"pixels {height}x{width}x{channels} to {channels}x{height}x{width}"


def _shortened(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[cut:]) for cut in range(min(3, len(words)))]


def _shapes(layer: SourceLayer) -> str:
    return ", ".join(f"{role} {tuple(array.shape)}" for role, array in layer.arrays.items())
