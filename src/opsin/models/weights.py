"""Weights from files and to files: safetensors, or published state dicts; no file can run code.

What fits is loaded, what does not is reported or refused, and nothing is changed before everything is checked.
A file without a known license is treated as non-commercial.
"""

from __future__ import annotations

import os
import pickle
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from opsin.errors import CheckpointError

# Where training scripts put the weights inside a checkpoint; averaged weights come first, as timm does.
CONTAINERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "net", "weights")
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile

# (a name that the file has, what it looks like), first match wins
LOOKS_LIKE = (
    ("layer3.22.conv3.weight", "ResNet-101 or deeper"),
    ("layer1.0.conv3.weight", "ResNet-50 or a relative with bottlenecks"),
    ("layer3.5.conv2.weight", "ResNet-34"),
    ("layer1.0.conv1.weight", "ResNet-18"),
    ("blocks.0.attn.qkv.weight", "a ViT of timm"),
    ("encoder.layers.encoder_layer_0.ln_1.weight", "a ViT of torchvision"),
    ("stages.0.blocks.0.conv_dw.weight", "a ConvNeXt of timm"),
    ("conv_stem.weight", "an EfficientNet or MobileNet of timm"),
    ("features.conv0.weight", "a DenseNet of torchvision"),
    ("features.0.0.weight", "a MobileNet, EfficientNet or ConvNeXt of torchvision"),
    ("features.0.weight", "an AlexNet, VGG or SqueezeNet of torchvision"),
    ("patch_embed.proj.weight", "a vision transformer of timm"),
)


@dataclass(frozen=True)
class Report:
    """What became of the weights in a file.

    Args:
        path: the file.
        loaded: names in the model that were set from it.
        missing: names in the model that the file lacks; they keep their new weights.
        unexpected: names in the file that the model lacks.
        mismatched: names of the classifier whose shapes differ, with (file, model) shapes; they keep their new weights.
        left: names that the file has and that were not wanted; they keep their new weights.
        adapted: the first convolution, when its input channels were summed or repeated; what the model's `adapt_state`
            did, e.g. position embeddings interpolated to another picture size.
        license: as the file's metadata say; None when they say nothing.
        container: the entry of the checkpoint that held the weights, "" for the file itself.
    """

    path: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None
    left: tuple[str, ...] = ()
    adapted: str | None = None
    license: str | None = None
    container: str = ""

    @property
    def complete(self) -> bool:
        """Whether every weight of the model came from the file."""
        return not (self.missing or self.mismatched or self.adapted or self.left)

    def to_dict(self) -> dict[str, object]:
        """The report as JSON values."""
        mismatched = {name: [list(shape) for shape in shapes] for name, shapes in (self.mismatched or {}).items()}
        lists = {"loaded": list(self.loaded), "missing": list(self.missing), "unexpected": list(self.unexpected)}
        lists["left"] = list(self.left)
        rest = {"adapted": self.adapted, "license": self.license, "container": self.container}
        return {"path": self.path, **lists, "mismatched": mismatched, **rest}

    def summary(self) -> str:
        """One paragraph for people."""
        words = [f"{len(self.loaded)} tensors loaded from {self.path}"]
        if self.container:
            words.append(f"taken from its entry '{self.container}'")
        if self.mismatched:
            words.append(f"newly initialized because the size differs: {_some(self.mismatched)}")
        if self.left:
            words.append(f"left newly initialized: {_some(self.left)}")
        if self.missing:
            words.append(f"newly initialized because the file lacks them: {_some(self.missing)}")
        if self.unexpected:
            words.append(f"not used: {_some(self.unexpected)}")
        if self.adapted:
            words.append(f"adapted: {self.adapted}")
        words.append(f"license: {self.license or 'unknown, treated as non-commercial'}")
        return "; ".join(words) + "."


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    prefix: str = "",
    rename: Mapping[str, str] | None = None,
    only: Sequence[str] = (),
    new_head: bool = False,
    allow_head_mismatch: bool = True,
    adapt_input: bool = False,
) -> Report:
    """Set a model's weights from a file; names are compared, then shapes, then everything is copied at once.

    Wrappers of training scripts (`{"state_dict": ...}`, `module.`) are taken off. A model inside a wrapper of ours
    (`Normalized`, `AsClassified`, `TimmModel`) is found by its names. A network that can fit more files than those with
    its own names and shapes has a method `adapt_state(state) -> (state, note)`, which is called first.

    Args:
        model: the network.
        path: a .safetensors file, or a .pt/.pth state dict (read with weights_only=True).
        prefix: use only the names in the file that begin with this, without it (e.g. "encoder.").
        rename: regular expressions and what they become, applied to the names in the file in this order, e.g.
            `{r"^trunk\\.": "features."}`.
        only: patterns of names in the model (`layer1.*`) that are restored; the rest keeps its new weights. All by default.
        new_head: leave the classifier newly initialized even if the file has one of its size (for other classes).
        allow_head_mismatch: leave a classifier of another size newly initialized, and report it.
        adapt_input: if the first convolution takes another number of channels, sum the file's over channels (to 1) or
            repeat and rescale them, so that equal channels give the same activations; otherwise that is an error.

    Returns:
        What was loaded, missing, unexpected and mismatched, and the license that the file declares.

    Raises:
        CheckpointError: if the file is missing, broken, holds Python objects, matches nothing, or its shapes differ.
    """
    path = Path(path)
    state, metadata, container = read_weights(path)
    state = _renamed(_without_prefix(state, prefix, path), rename or {}, path)
    target, state = _matched(model, state)
    adapt = getattr(target, "adapt_state", None)
    state, note = adapt(state) if adapt else (state, None)
    own = target.state_dict()
    common = {name: tensor for name, tensor in state.items() if name in own}
    if not any(own[name].ndim for name in common):
        raise CheckpointError(_nothing_matches(path, state, own))
    head = head_of(target)
    left = _left_out(common, only, path) | ({n for n in common if n in head} if new_head else set())
    common = {name: tensor for name, tensor in common.items() if name not in left}
    notes = [note, _adapt_first(target, common) if adapt_input else None]
    differing = {name: tensor for name, tensor in common.items() if tensor.shape != own[name].shape}
    mismatched = {
        n: (tuple(t.shape), tuple(own[n].shape)) for n, t in differing.items() if allow_head_mismatch and n in head
    }
    refused = [name for name in differing if name not in mismatched]
    if refused:
        raise CheckpointError(_shapes_differ(path, refused, common, own, _first_convolution(target), adapt_input))
    # A head of another size is new as a whole: old biases do not belong to new weights.
    kept = {name: t for name, t in common.items() if not (mismatched and name in head)}
    _check_finite(path, kept)
    target.load_state_dict(kept, strict=False)
    return Report(
        path=str(path),
        loaded=tuple(kept),
        missing=tuple(n for n in own if n not in common and n not in left and not n.endswith("num_batches_tracked")),
        unexpected=tuple(n for n in state if n not in own),
        left=tuple(sorted(left)),
        mismatched=mismatched or None,
        adapted="; ".join(words for words in notes if words) or None,
        license=metadata.get("license") or None,
        container=container,
    )


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Read the tensors of a file by name, its metadata, and the entry they were found in.

    Raises:
        CheckpointError: if the file is missing, broken, without tensors, or holds other objects besides them.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Give a .safetensors, .pt or .pth file with weights.")
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:] == b"{":  # safetensors: 8 bytes of length, then JSON
            with safetensors.safe_open(path, framework="pt") as opened:
                content: object = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                metadata = opened.metadata() or {}
        else:
            content, metadata = torch.load(path, map_location="cpu", weights_only=True), {}
    except PermissionError as error:
        raise CheckpointError(f"{path}: the file may not be read: {error.strerror}.") from error
    except Exception as error:  # damaged files make the parsers raise anything
        raise CheckpointError(_unreadable(path, error)) from error
    container, state = _unpacked(content, path)
    return state, metadata, container


def save_safetensors(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a model's state dict so that the file is either the old one or the whole new one, also after a power cut.

    Args:
        model: the network; tied weights are written once per name.
        path: where to; the folder must exist.
        metadata: text that travels with the weights, e.g. {"license": "apache-2.0"}.
    """
    path = Path(path)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(safetensors.torch.save(state, dict(metadata or {})))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _unreadable(path: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and found:
        return (
            f"{path}: the file holds Python objects besides tensors ({found[1]}); opsin does not load them, because "
            f"they can run code. Where you trust the file, save its state dict alone, as safetensors."
        )
    why = "" if isinstance(error, pickle.UnpicklingError) else f" ({str(error).partition(chr(10))[0]})"
    return f"{path}: the file is not a readable weight file: truncated, damaged or something else{why}. Copy it again."


def _unpacked(content: object, path: Path) -> tuple[str, dict[str, Tensor]]:
    found = ""
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        name = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)
        if name is None:
            break
        found, content = name, content[name]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: expected a state dict (names to tensors); the file holds {type(content).__name__}."
        )
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(str(name) for name in list(content)[:10])
        raise CheckpointError(f"{path}: no tensors found. Its entries are: {keys or 'none'}.")
    return found, state


def translated(
    state: Mapping[str, Tensor], expressions: Sequence[tuple[str, str]], without: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The same tensors under the names of another library: every expression in turn, where it fits.

    Args:
        state: names to tensors.
        expressions: regular expressions and what they become.
        without: expressions of names that are left out.

    Returns:
        New names to tensors; of tensors that get one name, the first.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if any(re.search(expression, name) for expression in without):
            continue
        for expression, becomes in expressions:
            name = re.sub(expression, becomes, name)
        found.setdefault(name, tensor)
    return found


def _without_prefix(state: dict[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
    for wrapper in (*WRAPPERS, *WRAPPERS):  # twice: they come in either order
        state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    if not prefix:
        return state
    chosen = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not chosen:
        starts = sorted({name.partition(".")[0] + "." for name in state})
        raise CheckpointError(f"{path}: no name begins with '{prefix}'. Names begin with: {', '.join(starts[:20])}.")
    return chosen


def _renamed(state: dict[str, Tensor], rename: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    """The same tensors under new names.

    Raises:
        CheckpointError: if an expression is wrong or fits nothing, or two tensors get one name.
    """
    for expression, becomes in rename.items():
        try:
            names = {name: re.sub(expression, becomes, name) for name in state}
        except re.error as error:
            raise CheckpointError(
                f"rename '{expression}' to '{becomes}': not a regular expression: {error}."
            ) from error
        if all(name == new for name, new in names.items()):
            raise CheckpointError(f"{path}: rename '{expression}' fits none of its names: {_some(state)}.")
        if len(set(names.values())) < len(names):
            twice = next(new for new in names.values() if list(names.values()).count(new) > 1)
            raise CheckpointError(f"{path}: rename '{expression}' gives two tensors the name '{twice}'.")
        state = {names[name]: tensor for name, tensor in state.items()}
    return state


def _left_out(common: Mapping[str, Tensor], only: Sequence[str], path: Path) -> set[str]:
    """Names that no pattern wants; none without patterns.

    Raises:
        CheckpointError: if a pattern fits nothing that the file and the model share.
    """
    wanted: set[str] = set()
    for pattern in only:
        fits = {name for name in common if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")}
        if not fits:
            raise CheckpointError(f"{path}: nothing to restore is named '{pattern}'. It has: {_some(common)}.")
        wanted |= fits
    return set(common) - wanted if only else set()


def _matched(model: nn.Module, state: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model, or the network inside its wrappers, and the names, with or without their common start; best match.

    A bundle's file holds a network inside our wrappers (`net.`), beside the mean and deviation of its pictures.
    """
    targets = [model]
    while isinstance(net := getattr(targets[-1], "net", None), nn.Module):
        targets.append(net)
    states = [state]
    starts = {name.partition(".")[0] for name in state}
    if len(starts) == 1:
        start = starts.pop() + "."
        states.append({name.removeprefix(start): tensor for name, tensor in state.items()})
    while inner := {name.removeprefix("net."): t for name, t in states[-1].items() if name.startswith("net.")}:
        states.append(inner)
    pairs = [(target, names) for target in targets for names in states]

    def fit(pair: tuple[nn.Module, dict[str, Tensor]]) -> tuple[int, bool]:
        shared = len(pair[0].state_dict().keys() & pair[1].keys())
        return shared, hasattr(pair[0], "adapt_state")  # where nothing fits, one that can take names of others

    return max(pairs, key=fit)


def head_of(model: nn.Module) -> set[str]:
    """Names of the tensors of the classifier: as the model says (`head_names`), else the last layer with weights."""
    state = model.state_dict()
    for path, module in model.named_modules():
        names = getattr(module, "head_names", None)
        if names:
            starts = tuple(f"{path}.{name}." if path else f"{name}." for name in names)
            return {name for name in state if name.startswith(starts)}
    config = getattr(model, "pretrained_cfg", None)  # a bare timm network
    if isinstance(config, Mapping) and config.get("classifier"):
        named = config["classifier"]
        return {
            n for n in state if n.startswith(tuple(f"{c}." for c in ([named] if isinstance(named, str) else named)))
        }
    matrices = [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]
    last = matrices[-1].rpartition(".")[0] + "." if matrices else ""
    return {name for name in state if name.startswith(last)} if last else set()


def _first_convolution(model: nn.Module) -> str | None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return f"{name}.weight" if name else "weight"
    return None


def _adapt_first(model: nn.Module, common: dict[str, Tensor]) -> str | None:
    name = _first_convolution(model)
    if name is None or name not in common:
        return None
    weight, own = common[name], model.state_dict()[name]
    if weight.shape == own.shape or weight.shape[:1] + weight.shape[2:] != own.shape[:1] + own.shape[2:]:
        return None
    given, wanted = weight.shape[1], own.shape[1]
    if wanted == 1:
        common[name] = weight.sum(1, keepdim=True)
    else:
        repeated = weight.repeat(1, -(-wanted // given), *[1] * (weight.ndim - 2))[:, :wanted]
        common[name] = repeated * (given / wanted)
    return f"{name}, {given} to {wanted} channels"


def _shapes_differ(
    path: Path, names: list[str], state: Mapping[str, Tensor], own: Mapping[str, Tensor], first: str | None, adapt: bool
) -> str:
    lines = [f"{name} {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model" for name in names]
    more = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
    message = f"{path}: shapes differ: {'; '.join(lines[:4])}{more}."
    if first in names:
        given, wanted = state[first].shape, own[first].shape
        if given[:1] + given[2:] == wanted[:1] + wanted[2:] and not adapt:
            return (
                f"{message} The file is for pictures with {given[1]} channels, the model takes {wanted[1]}. Turn the "
                f"pictures into {given[1]} channels, or pass adapt_input=True to sum or repeat the filters."
            )
    return f"{message} The file belongs to another variant of this network."


def _nothing_matches(path: Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    looks = next((words for name, words in LOOKS_LIKE if name in state), None)
    hint = f" It looks like {looks}." if looks else ""
    return (
        f"{path}: none of its {len(state)} names is in the model.{hint} "
        f"In the file: {_some(state)}. In the model: {_some(own)}."
    )


def _check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{path}: {name} holds values that are not finite; the training behind it has diverged."
            )


def _some(names: Mapping[str, object] | tuple[str, ...]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f", ... ({len(listed)} in all)" if len(listed) > 5 else "")
